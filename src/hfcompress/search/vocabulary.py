"""A vocabulary of the tokens in the texts to learn from, which all rungs read instead of the original's."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.errors import CompressionError
from hfcompress.models.tokenizers import check_texts
from hfcompress.report.vocabulary import VocabularyReport
from hfcompress.search.reading import column, encode, text_columns
from hfcompress.search.rows import Parts
from hfcompress.shrink.vocabulary import prune_vocabulary

if TYPE_CHECKING:
    from datasets import Dataset


def with_fewer_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Parts,
    args: DistillationArguments,
    max_length: int | None,
) -> tuple[PreTrainedModel, VocabularyReport]:
    """Return a copy of a model with the tokens of the texts to learn from, and the report with its tokenizer.

    Raises:
        CompressionError: Rows have no texts, or other ids than the tokenizer gives these; or as for `prune_vocabulary`.
    """
    columns = text_columns(args)
    for owner, data in (("train_dataset", parts.train), ("eval_dataset", parts.check), ("eval_dataset", parts.measure)):
        lacking = [name for name in columns if name not in data.column_names]
        if lacking:
            raise CompressionError(
                f"vocabulary=True needs the texts of all rows, and {owner} has no column {lacking[0]!r}; add it to "
                "the rows, or name the columns, text_column=... and text_pair_column=... (in args=, if you pass that)."
            )
        if not len(data):  # of so few rows that none checks the training
            continue
        for name in columns:
            check_texts(f"{owner}[{name!r}]", column(data, name))
        again = encode(data, model, tokenizer, columns, max_length)
        pairs = enumerate(zip(column(data, "input_ids"), column(again, "input_ids"), strict=True))
        wrong = next((index for index, (given, own) in pairs if given != own), None)
        if wrong is not None:
            raise CompressionError(
                f"vocabulary=True encodes texts anew, and a row of {owner} has other input_ids than processing_class "
                f"gives its text {data[columns[0]][wrong]!r:.60}; leave out input_ids, and set max_length=."
            )
    smaller = copy.deepcopy(model)
    texts = [list(column(parts.train, name)) for name in columns]
    report = prune_vocabulary(smaller, tokenizer, list(texts[0] if len(texts) == 1 else zip(*texts, strict=True)))
    return smaller, report


def read_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Parts,
    args: DistillationArguments,
    max_length: int | None,
) -> Parts:
    """Return the rows as another tokenizer encodes them; the original keeps its own form of those that measure."""

    def again(data: Dataset) -> Dataset:
        return encode(data, model, tokenizer, text_columns(args), max_length) if len(data) else data

    return replace(parts, train=again(parts.train), check=again(parts.check), measure=again(parts.measure))
