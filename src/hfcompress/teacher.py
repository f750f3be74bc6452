"""A teacher beside its student: whether the two fit, what the teacher reads, and what it answers."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.intermediate import Answer, Watch
from hfcompress.layers import memory_of, unwrap
from hfcompress.losses import Problem, check_problem, mean_logits

# Of the arguments of a tokenizer, those that change no id: where it is from, and how batches are cut and filled up.
_NO_RULE = re.compile(
    r".*_(file|path|side|length|strategy|class|token|tokens)|is_local|local_files_only|padding|truncation|auto_map"
)


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
        self._problem = problem_of(student, "student")
        self.inputs = frozenset[str]().union(*map(inputs_of, models))
        self.module = models[0] if len(models) == 1 else nn.ModuleList(models)

    def freeze(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Freeze the teachers in place, move them to a device, convert them if a dtype is given; into eval mode."""
        self.module.requires_grad_(False)
        # Without gradients there is nothing to synchronise, so no wrapper is needed: a plain move will do.
        self.module.to(device, dtype).eval()

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Any], watch: Watch) -> Answer:
        """Answer a batch; each teacher takes what it knows of the inputs. Of a single one also what was watched."""
        self.module.eval()
        answers, logits = [], []
        for model, order in zip(self.models, self._label_orders, strict=True):
            known = inputs_of(model)
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
        sizes = [getattr(config_of(model), "vocab_size", None) for model in (student, teacher)]
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


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether both give every text the same ids, as far as their vocabularies and backends tell."""
    if one is other:
        return True
    return tokenizer_rules(one) == tokenizer_rules(other)


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that decides which ids a text gets, but for cutting and padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Of a tokenizer written in Python, how it was made says what it does to a text before it looks words up.
        made = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if not _NO_RULE.fullmatch(name)}
        special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
        return {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "made": made,
            "special": special,
        }
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
    valid = [isinstance(weight, Real) and 0 < weight < math.inf for weight in weights]
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
    if any(parameter.is_meta for parameter in teacher.parameters()):
        raise CompressionError("The teacher is on the meta device and holds no weights; load them first.")
    if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
        raise CompressionError(
            "The teacher's weights are partitioned by DeepSpeed (ZeRO-3), so that it cannot answer by itself; load it "
            "before the training arguments are made, or let it answer beforehand with cache_teacher_logits."
        )
    students, teachers = ({key for p in m.parameters() for key in memory_of(p)} for m in (student, teacher))
    if students & teachers:
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
    taught, labels = _labels(teacher), _labels(student)
    if taught and labels and len(taught) != len(labels):
        raise CompressionError(
            f"The teacher has {len(taught)} labels ({taught}), the student {len(labels)} ({labels}); both must have "
            "the same."
        )
    names = [set(found.values()) for found in (taught, labels)]
    if names[0] != names[1] and not any(_made_up(found) for found in (taught, labels)):
        raise CompressionError(f"The teacher's labels are {taught}, the student's {labels}; both must have the same.")
    return label_order(student, teacher)


def label_order(first: nn.Module, other: nn.Module) -> list[int] | None:
    """Where the classes of the first model are among those of another: None in the same places, or without names."""
    labels, others = _labels(first), _labels(other)
    if labels == others or set(labels.values()) != set(others.values()) or _made_up(labels):
        return None
    index = {name: class_id for class_id, name in others.items()}
    return [index[labels[class_id]] for class_id in sorted(labels)]


def _labels(model: nn.Module) -> dict[int, str]:
    """The names of a model's classes by index; none without a config."""
    config = config_of(model)
    labels = dict(getattr(config, "id2label", None) or {})
    named = {index: name for name, index in (getattr(config, "label2id", None) or {}).items()}
    return named if _made_up(labels) and set(named) == set(labels) else labels  # label2id may have been set alone


def _made_up(labels: Mapping[int, str]) -> bool:
    """Whether these are the names that transformers gives to classes without any."""
    return set(labels.values()) == {f"LABEL_{index}" for index in range(len(labels))}


def _ordered(logits: Tensor, order: list[int] | None) -> Tensor:
    return logits if order is None else logits[:, order]
