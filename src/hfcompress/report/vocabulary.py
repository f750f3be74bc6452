"""The report of tokens that were removed from a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfcompress.report.tables import Report, Row, Table


@dataclass(frozen=True)
class VocabularyReport(Report):
    """What was removed from a vocabulary, and what it saves. ``print`` and a notebook show a table.

    Attributes:
        tokens: Number of tokens of the tokenizer, before and after.
        parameters: Number of parameters of the model, before and after.
        bytes: Bytes of its tensors, before and after.
        texts: Number of texts that were read.
        covered: Share of them that get the same pieces as before, and so exactly the same logits.
        characters_without_piece: Number of characters in the old pieces that have no piece of their own now: a new text
            with one of them can turn into unknown text.
        tokenizer: The tokenizer of the pruned model.
        old_ids: For each row of the new embeddings, the id that it had before.
    """

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    texts: int
    covered: float
    characters_without_piece: int
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    old_ids: tuple[int, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        return {
            "tokens": list(self.tokens),
            "parameters": list(self.parameters),
            "bytes": list(self.bytes),
            "texts": self.texts,
            "covered": self.covered,
            "characters_without_piece": self.characters_without_piece,
        }

    def _table(self) -> Table:
        rows: list[Row] = [("", "before", "after", "removed")]
        for name, (before, after) in {
            "tokens": self.tokens,
            "parameters": self.parameters,
            "bytes": self.bytes,
        }.items():
            rows.append((name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"))
        notes = [f"{self.covered:.1%} of the {self.texts:,} texts get the same pieces as before, and the same logits"]
        if self.characters_without_piece:
            notes.append(
                f"{self.characters_without_piece:,} characters of the old vocabulary have no piece of their own: other "
                "texts with one of them can turn into unknown text"
            )
        return Table(rows, "<>>>", notes)
