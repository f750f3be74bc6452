"""What the labels count for in the label term: weights of the classes, and of the examples from a column."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from hfcompress.distill.collator import WrappingCollator
from hfcompress.distill.teacher_inputs import known_columns
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import MISSING_LABELS
from hfcompress.models.labels import LABELS
from hfcompress.validation import is_number

_LEAST, _MOST = 1e-15, 1e15  # products and sums of such weights are exact enough in float32
WEIGHT_RANGE = f"0 or a number from {_LEAST:g} to {_MOST:g}"
WEIGHT_COLUMN = "weight"  # what the column is called unless the arguments say otherwise


@dataclass
class WeightCollator(WrappingCollator):
    """Collates a batch without its column of weights, and adds them as numbers; NaN where a row has none."""

    column: str

    def __call__(self, features: list[Any]) -> Mapping[str, Any]:
        """Make a batch; where no row has a weight, the collator's."""
        if not any(isinstance(feature, Mapping) and self.column in feature for feature in features):
            batch: Mapping[str, Any] = self.collator(features)
            return batch
        weights = [as_weight(feature.get(self.column)) for feature in features]
        own = [{name: value for name, value in feature.items() if name != self.column} for feature in features]
        return {**self.collator(own), self.column: torch.tensor(weights)}


@dataclass
class LabelWeights:
    """What each label counts for.

    Attributes:
        by_class: The weight of each of the student's classes, or None.
        column: The column with the weight of each example; None where no column is read.
        required: Whether the batches have that column; None until that is known.
        checked: Whether its values are known to be weights.
        problem: The problem type of the student.
    """

    by_class: Tensor | None
    column: str | None
    required: bool | None
    checked: bool
    problem: Problem

    def check(self, batch: Mapping[str, Any]) -> None:
        """Refuse a training batch without the column where others have it, and values that are no weights."""
        given = batch.get(self.column) if self.column is not None else None
        if self.required is None:
            self.required = given is not None
        if self.required is not (given is not None):
            which = f"a batch has {'no' if given is None else 'the'} column {self.column!r}"
            raise CompressionError(
                f"Of the data {which}, which holds the examples' weights; all need it, also in a data set's format. "
                "Name another with weight_column=, or set that to None to weigh all examples the same."
            )
        if given is not None and not self.checked:
            _check_weights(torch.as_tensor(given).tolist(), str(self.column), "of a batch")

    def take(self, batch: Mapping[str, Any], ones: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Take the labels and their weights out of a batch.

        Args:
            batch: The batch.
            ones: A one for each example, which it weighs where nothing else is said.

        Returns:
            The labels; by example the weight from the column, 0 where there is no label; and that times the weight of
            its class: an update's label term is divided by the sum of these.
        """
        labels, given = batch.get("labels"), batch.get(self.column) if self.column is not None else None
        weights = ones if given is None else torch.as_tensor(given).to(ones)
        by_label = self.problem == "single_label_classification" and (self.by_class is not None or given is not None)
        if not by_label or not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            return labels, weights, weights  # labels that do not fit are refused by the loss
        missing = torch.isin(labels.long(), torch.tensor(MISSING_LABELS, device=labels.device))
        labels, weights = labels.masked_fill(missing, 0), weights.masked_fill(missing.to(weights.device), 0)
        if self.by_class is None:
            return labels, weights, weights
        # A label of no class is refused by the loss.
        by_class = self.by_class[labels.long().clamp(0, len(self.by_class) - 1).to(self.by_class.device)]
        return labels, weights, weights * by_class.to(weights.device)


def read_class_weights(given: Any) -> list[float] | str | None:
    """Read the weights of the classes, which the command line and files give as JSON."""
    try:
        read = json.loads(given) if isinstance(given, str) and given != "balanced" else given
    except ValueError:
        read = given
    read = read.tolist() if hasattr(read, "tolist") else read
    if read is None or (isinstance(read, str) and read == "balanced"):
        return read
    listed = isinstance(read, Sequence) and all(is_number(one) and is_weight(one) for one in read)
    if not listed or not any(read):
        raise CompressionError(
            f"class_weights={given!r} must be 'balanced' or a list with the weight of each class, {WEIGHT_RANGE} "
            "and not always 0, for example [1.0, 3.0]."
        )
    return [float(one) for one in read]


def make_label_weights(
    class_weights: list[float] | str | None,
    column: str | None,
    problem: Problem,
    classes: int | None,
    dataset: Any,
    device: torch.device,
) -> LabelWeights:
    """Make the weights of a training from its arguments and data.

    Args:
        class_weights: As `read_class_weights` returns them.
        column: The column with the weight of each example, where the data have it; None to read none.
        problem: The problem type of the student.
        classes: Number of its classes, if known.
        dataset: The data to train on, or None.
        device: Where the student is.

    Raises:
        CompressionError: The weights do not fit the student or the data.
    """
    if class_weights is not None and problem == "regression":
        raise CompressionError(
            f"class_weights={class_weights!r} need classes, and a regression head (num_labels=1) has none; weigh the "
            "examples by a column (weight_column=)."
        )
    if class_weights == "balanced":
        if problem != "single_label_classification":
            raise CompressionError(
                "class_weights='balanced' is defined for one label an example, and the student's problem_type is "
                f"{problem!r}; list the weight of each label."
            )
        class_weights = None if dataset is None else _balance(dataset, classes)
    if class_weights is not None and classes is not None and len(class_weights) != classes:
        raise CompressionError(
            f"class_weights={class_weights!r} are {len(class_weights)} weights; the student has {classes} classes, so "
            f"list {classes}, in the order of its config's id2label."
        )
    present = _check_column(dataset, column) if column is not None and dataset is not None else None
    return LabelWeights(
        by_class=None if class_weights is None else torch.tensor(class_weights, device=device),
        column=column,
        required=True if present or column not in (None, WEIGHT_COLUMN) else None,
        checked=bool(present),
        problem=problem,
    )


def _balance(dataset: Any, classes: int | None) -> list[float]:
    """Return examples / (classes * examples of the class), as scikit-learn's ``compute_class_weight``."""
    what = "class_weights='balanced' counts the labels of the training data"
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise CompressionError(f"{what}, which is not possible where they are streamed; list the weights instead.")
    columns = {name: values for name in LABELS if (values := _read_column(dataset, name)) is not None}
    labels = [[_as_index(value) for value in values] for values in columns.values()]
    if not labels or labels.count(labels[0]) < len(labels):
        differ = f"whose columns {' and '.join(columns)} differ: keep one of them"
        raise CompressionError(f"{what}, {differ if labels else 'which have no labels'}; or list the weights.")
    known = [index for index in labels[0] if index not in MISSING_LABELS]
    count = max((index for index in known if index is not None), default=0) + 1 if classes is None else classes
    for row, index in enumerate(labels[0]):
        if index not in MISSING_LABELS and (index is None or not 0 <= index < count):
            value = next(iter(columns.values()))[row]
            raise CompressionError(
                f"{what}; row {row} (from 0) has the label {value!r}, which is not the index of one of {count} classes."
            )
    found = Counter(known)
    counts = [found[index] for index in range(count)]
    if 0 in counts:
        raise CompressionError(
            f"{what}, of which none has the class {counts.index(0)} (the classes have {counts} examples); list the "
            "weights instead."
        )
    return [len(known) / (count * one) for one in counts]


def _check_column(dataset: Any, column: str) -> bool:
    """Check the weights in a data set as far as they can be known before it is read; return whether all are."""
    columns = known_columns(dataset)
    if isinstance(dataset, Sequence) and any(isinstance(row, Mapping) and column in row for row in dataset):
        columns = [column]  # of some row, perhaps not the first
    if columns is None:
        return False
    if column not in columns:
        if column != WEIGHT_COLUMN:
            raise CompressionError(
                f"The data have no column {column!r} (weight_column=), they have {', '.join(columns)}; name the "
                "column with the examples' weights, or set weight_column=None (on the command line to '')."
            )
        return False
    if isinstance(dataset, IterableDataset):
        return False
    _check_weights(_read_column(dataset, column) or (), column, "(from 0) of the training data")
    return True


def _read_column(dataset: Any, name: str) -> list[Any] | None:
    """Return a column of data that are not streamed; None if no row has it."""
    if isinstance(dataset, Sequence) or known_columns(dataset) is None:
        rows = (dataset[index] for index in range(len(dataset)))
        values = [row.get(name) if isinstance(row, Mapping) else None for row in rows]
        return None if all(value is None for value in values) else values
    return list(dataset.with_format(None)[name]) if name in dataset.column_names else None


def _as_index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def as_weight(value: Any) -> float:
    """Return it as a number; NaN if it is none."""
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return float("nan")


def is_weight(value: Any) -> bool:
    """Whether a value is 0 or in the range of weights."""
    number = as_weight(value)
    return number == 0 or _LEAST <= number <= _MOST


def _check_weights(values: Sequence[Any], column: str, where: str) -> None:
    for row, value in enumerate(values):
        if not is_weight(value):
            raise CompressionError(
                f"Row {row} {where} has {value!r} in the column {column!r}, which is no weight: {WEIGHT_RANGE}. "
                "Correct it, name another column with weight_column=, or set that to None (on the command line to '') "
                "to weigh all examples the same."
            )
