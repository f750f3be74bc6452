"""The rows of a ladder: which are learned from, which check the training, and which measure."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.logits_cache import cache_teacher_logits
from hfcompress.distill.teacher_inputs import TEACHER_LOGITS, choose_teacher_input, longest_text
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.models.classifier import count_outputs, get_problem_type, input_names
from hfcompress.models.labels import check_class_names, label_order
from hfcompress.models.padding import lacks_pad_id
from hfcompress.search.deadline import Deadline
from hfcompress.search.reading import (
    UNLABELLED,
    check_labels,
    column,
    fill_labels,
    is_missing,
    read_data,
    text_columns,
    with_classes,
)

if TYPE_CHECKING:
    from datasets import Dataset

_CHECK_SHARE, _CHECK_MOST = 3, 1000  # a third of the rows that are not learned from check the training
_OTHER_SHARE, _OTHER_MOST = 5, 3000  # a fifth of the rows is not learned from where no others are given
_LEAST = 20  # rows to learn from
_CALIBRATION = 512
_LENGTHS = 5000  # texts whose length is looked at, at least where there are so many


@dataclass(frozen=True)
class HeldOut:
    """Which rows are held out.

    Attributes:
        source: What they are of: ``"eval_dataset"`` or ``"train_dataset"``.
        measure: Positions there of those that measure, ascending.
        check: Positions of those that check the training.
        left_out: How many rows without a label are not learned from, since their texts are held out.
        repeated: How many rows that measure have the text of a row to learn from, all the same.
    """

    source: str
    measure: list[int]
    check: list[int]
    left_out: int
    repeated: int

    @property
    def notes(self) -> list[str]:
        """What is not learned from."""
        if not self.left_out:
            return []
        return [
            f"{self.left_out:,} rows without a label are not learned from, as their texts are among those held out."
        ]


@dataclass(frozen=True)
class Parts:
    """The rows, encoded.

    Attributes:
        train: To learn from; a row without a label has the weight 0 in the label term.
        check: Labelled rows that are in no other part; they say which weights of a training are kept, and judge int8.
            Rows that the original was trained on would not do: it has learned their labels by heart, and so have its
            rungs.
        measure: Labelled rows, which decide nothing but which rungs are left out: see ``eval_dataset`` of `compress`.
        measure_original: The same, as the original reads them: other ids, where rungs have a smaller vocabulary.
        labelled: Whether rows to learn from have labels.
        problem: What the labels mean.
        held_out: Which rows check and measure.
    """

    train: Dataset
    check: Dataset
    measure: Dataset
    measure_original: Dataset
    labelled: bool
    problem: Problem
    held_out: HeldOut

    def calibration(self, *, labels: bool) -> list[dict[str, Any]]:
        """Return evenly spaced rows of those to learn from, with or without their labels."""
        data = self.train
        if labels and UNLABELLED in data.column_names:
            data = data.select([n for n, unknown in enumerate(column(data, UNLABELLED)) if not unknown])
        count = min(_CALIBRATION, len(data))
        rows = data.select([n * len(data) // count for n in range(count)])
        left_out = {TEACHER_LOGITS, UNLABELLED} | (set() if labels else {"labels"})
        return [{name: row[name] for name in row if name not in left_out} for row in rows]


def held_out_to_measure(count: int) -> int:
    """Return how many rows must be held out of the training so that so many of them measure."""
    return count + min(_CHECK_MOST, math.ceil(count / (_CHECK_SHARE - 1)))


def read_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Any,
    eval_dataset: Any,
    args: DistillationArguments,
    max_length: int | None,
    seed: int,
) -> Parts:
    """Read the data, encode texts, and hold out what checks the training and what measures.

    A row without a label whose text is held out is not learned from. One with a label is, as data often repeat short
    texts, but it is counted.

    Raises:
        CompressionError: There are too few rows, or no labels to measure by; or they hold neither texts nor ids.
        ImportError: `datasets` is not installed.
    """
    problem = get_problem_type(model, "model")
    train = with_classes(read_data("train_dataset", model, tokenizer, train_dataset, args, max_length), problem)
    missing = [True] * len(train)
    outputs = count_outputs(model.config) or 1
    if "labels" in train.column_names:
        given = list(column(train, "labels"))
        missing = [is_missing(value, problem) for value in given]
        check_labels("train_dataset", given, missing, problem, outputs)
    labelled = [n for n, unknown in enumerate(missing) if not unknown]
    if labelled:
        check_class_names("train_dataset", model, train)
    order = random.Random(seed).sample(labelled, len(labelled))
    if eval_dataset is not None:
        others = with_classes(read_data("eval_dataset", model, tokenizer, eval_dataset, args, max_length), problem)
        known = list(column(others, "labels")) if "labels" in others.column_names else [None] * len(others)
        if len(others) < 2 or any(is_missing(value, problem) for value in known):
            raise CompressionError(
                "eval_dataset must hold two rows or more that all have a label, by which models are measured; of its "
                f"{len(others)} rows {sum(is_missing(value, problem) for value in known)} have none."
            )
        check_labels("eval_dataset", known, [False] * len(others), problem, outputs)
        check_class_names("eval_dataset", model, others)
        order = random.Random(seed).sample(range(len(others)), len(others))
        used: set[int] = set()
    elif len(order) < 2 * _LEAST:
        raise CompressionError(
            f"train_dataset has {len(order)} rows with a label, and without eval_dataset= a fifth of them measures; "
            f"pass eval_dataset=, labelled rows, or at least {2 * _LEAST} labelled rows to learn from."
        )
    else:
        count = min(_OTHER_MOST, len(order) // _OTHER_SHARE)
        classes = [given[n] for n in order] if problem == "single_label_classification" else None
        others, order = train, order[:count] if classes is None else _draw(order, count, classes)
        used = set(order)
    count = min(_CHECK_MOST, len(order) // _CHECK_SHARE)
    positions = [sorted(part) for part in (order[:count], order[count:])]
    check, measure = map(others.select, positions)
    measured = [hash(tokens) for tokens in _tokens(measure)]
    held_out = {*measured, *map(hash, _tokens(check))}
    left, learned, left_out = list[int](), set[int](), 0
    for n, (tokens, unknown_label) in enumerate(zip(_tokens(train), missing, strict=True)):
        if n in used:
            continue
        if (text := hash(tokens)) in held_out:
            if unknown_label:
                left_out += 1
                continue
            learned.add(text)
        left.append(n)
    if len(left) < _LEAST:
        why = f" (the texts of {left_out:,} others are held out)" if left_out else ""
        raise CompressionError(
            f"train_dataset leaves {len(left)} rows to learn from, of {len(train)}{why}; pass at least {_LEAST}."
        )
    rows = train.select(left)
    unknown = [missing[n] for n in left]
    if any(unknown) and not all(unknown):
        rows = fill_labels(rows, unknown, problem, args)
    elif all(unknown) and "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    source = "train_dataset" if eval_dataset is None else "eval_dataset"
    repeated = sum(text in learned for text in measured)
    drawn = HeldOut(source, positions[1], positions[0], left_out, repeated)
    return Parts(rows, check, measure, measure, not all(unknown), problem, drawn)


def check_teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    parts: Parts,
    args: DistillationArguments,
) -> bool:
    """Return whether a teacher reads the model's ids; otherwise it reads the texts with its own tokenizer.

    Raises:
        CompressionError: It cannot read the ids, and there are no texts, or layers are compared token by token.
    """
    if teacher is None:
        return True
    texts = text_columns(args)
    sources = model, teacher, tokenizer, teacher_tokenizer
    reads_ids = all(choose_teacher_input(*sources, part, texts) == "ids" for part in (parts.train, parts.check))
    if args.compares_layers and not reads_ids:
        raise CompressionError(
            f"hidden_weight={args.hidden_weight}, relation_weight={args.relation_weight} compare layers token by "
            "token, but teacher= reads other tokens than the model; set both to 0, or pass one with its tokenizer."
        )
    return reads_ids


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Parts) -> None:
    """Refuse a tokenizer's padding token that a model without one of its own would take for text, or text for it."""
    if not lacks_pad_id(model):
        return
    index, embeddings = tokenizer.pad_token_id, cast(Any, model.get_input_embeddings())
    count = len(embeddings.weight)
    if index >= count:
        raise CompressionError(
            f"processing_class pads with the id {index}, and {type(model).__name__} has tokens from 0 to {count - 1}; "
            "call model.resize_token_embeddings(len(tokenizer)), or choose another padding token."
        )
    for data in (parts.train, parts.check, parts.measure):
        if any(tokens[-1:] == (index,) for tokens in _tokens(data)):
            raise CompressionError(
                f"A text ends with {tokenizer.pad_token!r}, with which processing_class pads, and the config names no "
                "padding token: the model would read the token before. Add one of its own to tokenizer and model."
            )


def _draw(order: Sequence[int], count: int, classes: Sequence[int]) -> list[int]:
    """Return the first rows of an order, but none that is the last of its class, which is to be learned from."""
    left, drawn = Counter(classes), list[int]()
    for row, label in zip(order, classes, strict=True):
        if len(drawn) < count and left[label] > 1:
            left[label] -= 1
            drawn.append(row)
    if len(drawn) < 2:
        raise CompressionError(
            f"The {len(order)} rows with a label in train_dataset have {len(left)} classes, so that too few can be "
            "held out to measure with; pass eval_dataset=, labelled rows."
        )
    return drawn


def with_logits(
    model: PreTrainedModel,
    teacher: nn.Module,
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase | None,
    args: DistillationArguments,
    folder: Path,
    deadline: Deadline,
) -> Parts:
    """Add the teacher's logits, in the order of the model's classes: computed once, for all rungs.

    Raises:
        TimeUpError: The time is over; of what is computed by then, whole files are in the folder.
        CompressionError: The teacher has other classes or another kind of labels than the model.
    """
    roles = ("model", "teacher")
    problems = [get_problem_type(one, role) for one, role in zip((model, teacher), roles, strict=True)]
    if problems[0] != problems[1]:
        raise CompressionError(f"The model's problem_type is {problems[0]!r}, the teacher's {problems[1]!r}.")
    order = None if teacher is model else label_order(model, teacher, roles, strict=True)
    texts: dict[str, Any] = {}
    if tokenizer is not None:
        longest = longest_text([teacher], tokenizer, args.teacher_max_length)
        texts = {"text_column": args.text_column, "text_pair_column": args.text_pair_column, "max_length": longest}

    def add(data: Any) -> Any:
        if not len(data):
            return data
        own = copy.deepcopy(teacher)
        own.register_forward_pre_hook(lambda module, given: deadline.check_alone())
        found = cache_teacher_logits(own, data, processing_class=tokenizer, cache_dir=folder / "logits", **texts)
        found = found.with_format(None)
        if order is None:
            return found
        return found.map(lambda row: {TEACHER_LOGITS: [row[TEACHER_LOGITS][n] for n in order]})

    return replace(parts, train=add(parts.train), check=add(parts.check))


def readable(parts: Parts, model: PreTrainedModel, args: DistillationArguments) -> Parts:
    """Leave out the columns that nothing reads."""
    more = [TEACHER_LOGITS, UNLABELLED, *([args.weight_column] if args.weight_column else [])]
    return replace(
        parts,
        train=_keep_readable(parts.train, model, more),
        check=_keep_readable(parts.check, model, more[:1]),
        measure=_keep_readable(parts.measure, model, []),
        measure_original=_keep_readable(parts.measure_original, model, []),
    )


def text_lengths(data: Dataset) -> list[int]:
    """Return how many tokens texts have, without padding; of many texts those of some thousand, evenly spaced."""
    some = data.select(range(0, len(data), max(1, len(data) // _LENGTHS)))
    if "attention_mask" in some.column_names:
        return [sum(mask) for mask in column(some, "attention_mask")]
    return [len(ids) for ids in column(some, "input_ids")]


def _tokens(data: Dataset) -> Iterator[tuple[int, ...]]:
    """The tokens of each text, without padding."""
    ids = column(data, "input_ids")
    if "attention_mask" not in data.column_names:
        return map(tuple, ids)
    return (tuple(compress(*row)) for row in zip(ids, column(data, "attention_mask"), strict=True))


def _keep_readable(data: Dataset, model: PreTrainedModel, more: Sequence[str]) -> Dataset:
    """Keep the columns that a model reads, and these."""
    known = [name for name in data.column_names if name in input_names(model) or name in (*more, "labels")]
    return data.select_columns(known)
