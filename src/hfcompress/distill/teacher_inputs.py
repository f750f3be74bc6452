"""What a teacher reads of the examples: the student's ids, or the text with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from hfcompress.distill.collator import WrappingCollator
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config, input_names, max_tokens, unwrap
from hfcompress.models.tokenizers import same_tokenizer, token_limit

TEACHER_LOGITS = "teacher_logits"  # the column with the logits of a teacher that were computed before


@dataclass
class TeacherCollator(WrappingCollator):
    """Collates for the student, and encodes the same texts, where there are any, with the teacher's tokenizer."""

    teacher_tokenizer: PreTrainedTokenizerBase  # not `tokenizer`, which the Trainer saves as the student's
    text_columns: Sequence[str]
    max_length: int | None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, with ``teacher_inputs`` unless the teacher's logits are there or the texts are not."""
        # Where nothing is encoded yet, the collator may need the text itself.
        left_out = self.text_columns if all("input_ids" in one or "inputs_embeds" in one for one in features) else ()
        texts = [[feature.get(column) for feature in features] for column in self.text_columns]
        cached = all(TEACHER_LOGITS in feature for feature in features)
        own = [{name: value for name, value in feature.items() if name not in left_out} for feature in features]
        batch = dict(self.collator(own))
        if cached or any(text is None for column in texts for text in column):
            return batch
        cut = {"truncation": self.max_length is not None, "max_length": self.max_length}
        encoded = self.teacher_tokenizer(*texts, **cut, return_attention_mask=True)
        # Padded by the mask alone: which id padding has is up to each teacher, and some tokenizers have none.
        padded = {
            name: pad_sequence([torch.tensor(row) for row in rows], batch_first=True) for name, rows in encoded.items()
        }
        return batch | {"teacher_inputs": padded}


def choose_teacher_input(
    student: nn.Module,
    teacher: nn.Module,
    student_tokenizer: Any,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    dataset: Any,
    text_columns: Sequence[str],
) -> Literal["ids", "text", "nothing"]:
    """Choose what a teacher reads: the student's ids, the text, or nothing, where the data have its logits.

    Raises:
        CompressionError: It cannot read the student's ids, and the data have neither text nor logits.
    """
    columns = known_columns(dataset)
    cached = columns is not None and TEACHER_LOGITS in columns
    if teacher_tokenizer is None:
        sizes = [getattr(get_config(model), "vocab_size", None) for model in (student, teacher)]
        if None in sizes or sizes[0] == sizes[1]:
            return "ids"
        if cached:
            return "nothing"
        raise CompressionError(
            f"The student's vocabulary has {sizes[0]} tokens, the teacher's {sizes[1]}, so the teacher cannot read the "
            "student's ids; pass teacher_processing_class= and keep the text column in the data."
        )
    # By which a teacher tells the texts of a pair apart, and which a student may not have (DistilBERT).
    types = {"token_type_ids"} & {*teacher_tokenizer.model_input_names} & input_names(teacher) - {*(columns or ())}
    lacks_types = len(text_columns) > 1 and bool(types - {*getattr(student_tokenizer, "model_input_names", ())})
    if student_tokenizer is not None and same_tokenizer(student_tokenizer, teacher_tokenizer) and not lacks_types:
        return "ids"
    missing = [] if columns is None or cached else [column for column in text_columns if column not in columns]
    if missing:
        raise CompressionError(
            f"The teacher has a tokenizer of its own and needs the text, but the data have no column {missing[0]!r} "
            f"(they have {', '.join(columns or ())}); keep it, or name it with text_column= (and text_pair_column=)."
        )
    return "text"


def known_columns(dataset: Any) -> list[str] | None:
    """Return the columns of a data set as far as they are known before it is read."""
    if isinstance(dataset, Sequence):
        return list(dataset[0]) if len(dataset) and isinstance(dataset[0], Mapping) else None
    form = getattr(dataset, "format", None)
    transformed = isinstance(form, Mapping) and form.get("type") == "custom"  # by set_transform
    return None if transformed else getattr(dataset, "column_names", None)


def longest_text(
    teachers: Sequence[nn.Module], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int | None:
    """Return how many tokens of a text the teachers are given at most; None for all.

    Raises:
        CompressionError: ``max_length`` is more than a teacher reads.
    """
    limits = [limit for limit in (token_limit(tokenizer, teacher) for teacher in teachers) if limit is not None]
    if max_length is None:
        return min(limits, default=None)
    for teacher in teachers:
        limit = max_tokens(teacher)
        if limit is not None and max_length > limit:
            raise CompressionError(
                f"teacher_max_length={max_length} is more than the {limit} tokens that the teacher, "
                f"{type(unwrap(teacher)).__name__}, reads; lower it, or leave it out."
            )
    return max_length
