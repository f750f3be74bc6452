"""A teacher beside its student: whether the two fit, what the teacher reads, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfcompress.distill.layer_losses import ForwardRecorder, ModelOutputs
from hfcompress.errors import CompressionError
from hfcompress.losses import mean_logits
from hfcompress.models.classifier import (
    are_default_names,
    get_config,
    get_problem_type,
    input_names,
    label_names,
    label_order,
)
from hfcompress.models.tensors import check_has_values, identities
from hfcompress.models.tokenizers import same_tokenizer
from hfcompress.validation import is_number


class Teachers:
    """One teacher or several; their answers in the order of the student's classes.

    Args:
        student: Whom they teach.
        models: The teachers.
        weights: What each counts for in the mean of their probabilities; all the same if None.

    Attributes:
        models: The teachers.
        module: The teacher itself, or a list module of several.
        inputs: Names of all inputs that they take.

    Raises:
        CompressionError: A teacher does not fit the student, or the weights the teachers.
    """

    def __init__(
        self,
        student: nn.Module,
        models: Sequence[nn.Module],
        weights: Sequence[float] | None,
    ) -> None:
        self._label_orders = [_check_pair(student, model) for model in models]
        self._weights = _shares(weights, len(models))
        self.models = list(models)
        self._problem = get_problem_type(student, "student")
        self.inputs = frozenset[str]().union(*map(input_names, models))
        self.module = models[0] if len(models) == 1 else nn.ModuleList(models)

    def freeze(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Freeze the teachers in place, move them to a device, convert them if a dtype is given; into eval mode."""
        self.module.requires_grad_(False)
        # Without gradients there is nothing to synchronise, so no wrapper is needed: a plain move will do.
        self.module.to(device, dtype).eval()

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Any], watch: ForwardRecorder) -> ModelOutputs:
        """Answer a batch; each teacher takes what it knows of the inputs. Of a single one also what was watched."""
        self.module.eval()
        answers, logits = [], []
        for model, order in zip(self.models, self._label_orders, strict=True):
            known = input_names(model)
            answers.append(watch(model, {name: value for name, value in inputs.items() if name in known}))
            logits.append(_ordered(answers[-1].logits, order))
        return replace(answers[0], logits=mean_logits(logits, self._weights, self._problem))

    def in_order(self, cached: Tensor) -> Tensor:
        """Put logits that were computed before, by the only teacher, into the order of the student's classes."""
        return _ordered(cached, self._label_orders[0]) if len(self.models) == 1 else cached


class TeacherCollator:
    """Collates for the student, and encodes the same texts, where there are any, with the teacher's tokenizer."""

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase | None,
        text_columns: Sequence[str],
        max_length: int | None,
    ) -> None:
        self.collator = collator
        self.tokenizer = tokenizer
        self.text_columns = text_columns
        self.max_length = max_length

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, with ``teacher_inputs`` unless the teacher's answers are there or the texts are not."""
        # Where nothing is encoded yet, the collator may need the text itself.
        has_inputs = all("input_ids" in feature or "inputs_embeds" in feature for feature in features)
        left_out = set(self.text_columns) if has_inputs else set()
        texts = [[feature.get(column) for feature in features] for column in self.text_columns]
        answered = all("teacher_logits" in feature for feature in features)
        own = [{name: value for name, value in feature.items() if name not in left_out} for feature in features]
        batch = dict(self.collator(own))
        if answered or any(text is None for column in texts for text in column):
            return batch
        assert self.tokenizer is not None
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt")
        return batch | {"teacher_inputs": dict(encoded)}


def check_text_columns(wanted: Sequence[str], found: Iterable[str]) -> None:
    """Raise a `CompressionError` unless the columns for a teacher with its own tokenizer are among those found."""
    found = list(found)
    missing = [column for column in wanted if column not in found]
    if missing:
        raise CompressionError(
            f"The teacher has a tokenizer of its own and needs the text, but the data have no column {missing[0]!r} "
            f"(they have {', '.join(found)}); keep it, or name it with text_column= (and text_pair_column=)."
        )


def reading_of(
    student: nn.Module,
    teacher: nn.Module,
    student_tokenizer: Any,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    dataset: Any,
    text_columns: Sequence[str],
) -> Literal["ids", "text", "nothing"]:
    """Tell what a teacher reads of the examples: the student's ids, the text, or nothing, where they have its answers.

    Raises:
        CompressionError: It cannot read the student's ids, and there is nothing else to go by.
    """
    columns = _columns_of(dataset)
    cached = columns is not None and "teacher_logits" in columns
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
    if student_tokenizer is not None and same_tokenizer(student_tokenizer, teacher_tokenizer):
        return "ids"
    if columns is not None and not cached:
        check_text_columns(text_columns, columns)
    return "text"


def _columns_of(dataset: Any) -> list[str] | None:
    """The columns of a data set as far as they are known before it is read."""
    if isinstance(dataset, Sequence):
        first = dataset[0] if len(dataset) else None
        return list(first) if isinstance(first, Mapping) else None
    form = getattr(dataset, "format", None)
    made_on_the_way = isinstance(form, Mapping) and form.get("type") == "custom"  # by set_transform
    return None if made_on_the_way else getattr(dataset, "column_names", None)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    if not isinstance(weights, Sequence):
        raise CompressionError(f"teacher_weights={weights!r} must be a list, one positive number for each teacher.")
    valid = [is_number(weight) and 0 < weight < math.inf for weight in weights]
    if len(weights) != count or not all(valid):
        raise CompressionError(
            f"teacher_weights={list(weights)!r} must be one positive number for each teacher, of which there are "
            f"{count}."
        )
    return [float(weight) / float(sum(weights)) for weight in weights]


def _check_pair(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Check that a teacher can teach a student; return the order of its classes if it differs from the student's."""
    if not isinstance(teacher, nn.Module):
        raise CompressionError(
            f"teacher must be a model or a list of models, not {type(teacher).__name__}; load it first."
        )
    check_has_values(teacher.named_parameters(), "The teacher's ")
    if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
        raise CompressionError(
            "The teacher's weights are partitioned by DeepSpeed (ZeRO-3), so that it cannot answer by itself; load it "
            "before the training arguments are made, or let it answer beforehand with cache_teacher_logits."
        )
    students, teachers = ({key for p in m.parameters() for key in identities(p)} for m in (student, teacher))
    if students & teachers:
        raise CompressionError(
            "Teacher and student share parameters, so freezing the teacher would freeze the student; pass a copy, for "
            "example copy.deepcopy(teacher)."
        )
    problems = [get_problem_type(student, "student"), get_problem_type(teacher, "teacher")]
    if problems[0] != problems[1]:
        raise CompressionError(
            f"The student's problem_type is {problems[0]!r}, the teacher's {problems[1]!r}; both must answer the same "
            "question."
        )
    taught, labels = label_names(teacher), label_names(student)
    if taught and labels and len(taught) != len(labels):
        raise CompressionError(
            f"The teacher has {len(taught)} labels ({taught}), the student {len(labels)} ({labels}); both must have "
            "the same."
        )
    names = [set(found.values()) for found in (taught, labels)]
    if names[0] != names[1] and not any(are_default_names(found) for found in (taught, labels)):
        raise CompressionError(f"The teacher's labels are {taught}, the student's {labels}; both must have the same.")
    return label_order(student, teacher)


def _ordered(logits: Tensor, order: list[int] | None) -> Tensor:
    return logits if order is None else logits[:, order]
