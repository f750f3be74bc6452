"""A teacher beside its student: whether the two fit, what the teacher reads, and what it answers."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.intermediate import Answer, Watch
from hfcompress.layers import unwrap
from hfcompress.losses import Problem, check_problem, mean_logits


class Teachers:
    """One teacher or several, frozen, on the student's device; their answers in the order of the student's classes.

    Args:
        student: Whom they teach.
        models: The teachers; frozen, moved and put into eval mode in place.
        weights: What each counts for in the mean of their probabilities; all the same if None.
        device: The student's.
        dtype: To which they are converted, or None.

    Attributes:
        module: The teacher itself, or a list module of several.
        inputs: Names of all inputs that they take.

    Raises:
        CompressionError: A teacher does not fit the student, or the weights the teachers; nothing was changed then.
    """

    def __init__(
        self,
        student: nn.Module,
        models: Sequence[nn.Module],
        weights: Sequence[float] | None,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self._label_orders = [_check_pair(student, model) for model in models]
        self._weights = _shares(weights, len(models))
        self._models = list(models)
        self._problem = problem_of(student, "student")
        self.inputs = frozenset[str]().union(*map(inputs_of, models))
        self.module = models[0] if len(models) == 1 else nn.ModuleList(models)
        self.module.requires_grad_(False)
        # Without gradients there is nothing to synchronise, so no wrapper is needed: a plain move will do.
        self.module.to(device, dtype).eval()

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Any], watch: Watch) -> Answer:
        """Answer a batch; each teacher takes what it knows of the inputs. Of a single one also what was watched."""
        self.module.eval()
        answers, logits = [], []
        for model, order in zip(self._models, self._label_orders, strict=True):
            known = inputs_of(model)
            answers.append(watch(model, {name: value for name, value in inputs.items() if name in known}))
            logits.append(_ordered(answers[-1].logits, order))
        return replace(answers[0], logits=mean_logits(logits, self._weights, self._problem))

    def in_order(self, cached: Tensor) -> Tensor:
        """Put logits that were computed before, by the only teacher, into the order of the student's classes."""
        return _ordered(cached, self._label_orders[0]) if len(self._models) == 1 else cached


class TeacherCollator:
    """Collates for the student, and encodes the same texts with the teacher's tokenizer."""

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
        """Make a batch, with ``teacher_inputs`` unless the teacher's answers are there."""
        own = [{name: value for name, value in f.items() if name not in self.text_columns} for f in features]
        if all("teacher_logits" in feature for feature in features):
            return dict(self.collator(own))
        for feature in features:
            check_text_columns(self.text_columns, feature)
        texts = [[feature[column] for feature in features] for column in self.text_columns]
        batch = dict(self.collator(own))
        assert self.tokenizer is not None
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt")
        return batch | {"teacher_inputs": dict(encoded)}


def inputs_of(model: nn.Module) -> frozenset[str]:
    """Names of the inputs that a model takes."""
    return frozenset(inspect.signature(unwrap(model).forward).parameters)


def config_of(model: nn.Module) -> Any:
    """The config of a model, wrapped or not; None if it has none."""
    return getattr(unwrap(model), "config", None)


def check_text_columns(wanted: Sequence[str], found: Iterable[str]) -> None:
    """Raise a `CompressionError` unless the columns for a teacher with its own tokenizer are among those found."""
    found = list(found)
    missing = [column for column in wanted if column not in found]
    if missing:
        raise CompressionError(
            f"The teacher has a tokenizer of its own and needs the text, but the data have no column {missing[0]!r} "
            f"(they have {', '.join(found)}); keep it, or name it with text_column= (and text_pair_column=)."
        )


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether both give every text the same ids, as far as their vocabularies and backends tell."""
    if one is other:
        return True
    return tokenizer_rules(one) == tokenizer_rules(other)


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that decides which ids a text gets, but for cutting and padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}


def problem_of(model: nn.Module, role: str) -> Problem:
    """What the outputs of a model mean, by its config as transformers reads it."""
    config = config_of(model)
    outputs = getattr(config, "num_labels", 2)
    problem = getattr(config, "problem_type", None)
    if problem is None:
        problem = "regression" if outputs == 1 else "single_label_classification"
    if outputs == 1 and problem == "single_label_classification":
        raise CompressionError(
            f"The {role} has num_labels=1 and problem_type={problem!r}; a choice needs at least two classes."
        )
    check_problem(problem)
    return cast(Problem, problem)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    valid = [isinstance(weight, Real) and 0 < weight < math.inf for weight in weights]
    if len(weights) != count or not all(valid):
        raise CompressionError(
            f"teacher_weights={list(weights)!r} must be one positive number for each teacher, of which there are "
            f"{count}."
        )
    return [float(weight) / float(sum(weights)) for weight in weights]


def _check_pair(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Check that a teacher can teach a student; return the order of its classes if it differs from the student's."""
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        raise CompressionError(
            "Teacher and student share parameters, so freezing the teacher would freeze the student; pass a copy, for "
            "example copy.deepcopy(teacher)."
        )
    problems = [problem_of(student, "student"), problem_of(teacher, "teacher")]
    if problems[0] != problems[1]:
        raise CompressionError(
            f"The student's problem_type is {problems[0]!r}, the teacher's {problems[1]!r}; both must answer the same "
            "question."
        )
    taught, labels = (config_of(model).id2label for model in (teacher, student))
    if len(taught) != len(labels):
        raise CompressionError(
            f"The teacher has {len(taught)} labels ({taught}), the student {len(labels)} ({labels}); both must have "
            "the same."
        )
    generic = {f"LABEL_{index}" for index in range(len(labels))}
    if generic not in (set(taught.values()), set(labels.values())) and set(taught.values()) != set(labels.values()):
        raise CompressionError(f"The teacher's labels are {taught}, the student's {labels}; both must have the same.")
    return label_order(student, teacher)


def label_order(first: nn.Module, other: nn.Module) -> list[int] | None:
    """Where the classes of the first model are among those of another: None in the same places, or without names."""
    labels, others = (getattr(config_of(model), "id2label", None) or {} for model in (first, other))
    generic = {f"LABEL_{index}" for index in range(len(labels))}
    if labels == others or set(labels.values()) != set(others.values()) or set(labels.values()) == generic:
        return None
    index = {name: class_id for class_id, name in others.items()}
    return [index[labels[class_id]] for class_id in sorted(labels)]


def _ordered(logits: Tensor, order: list[int] | None) -> Tensor:
    return logits if order is None else logits[:, order]
