"""Labels that are no numbers, refused by name where examples are put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcompress.distill.collator import WrappingCollator
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.models.labels import LABELS


@dataclass
class LabelCheckingCollator(WrappingCollator):
    """Collates examples, and refuses labels that are no numbers, where the collator raises, drops or takes them.

    Attributes:
        collator: What makes the batches.
        problem: The problem type of the student.
    """

    problem: Problem = "single_label_classification"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, in which True and False are the classes 1 and 0.

        Raises:
            CompressionError: A label is a text or None, and the collator makes no tensor of it; is NaN or infinite; or
                is outside of 0 to 1 where an example has several.
        """
        try:
            batch = self.collator(_with_fractions(features))
        except Exception:  # whatever a collator raises for what is no number
            _check_labels(features, some=False)
            raise
        labels = {name: batch[name] for name in LABELS if isinstance(batch.get(name), Tensor)}
        if not any(name in batch for name in LABELS):
            _check_labels(features, some=True)
        for name, given in labels.items():
            self._check_values(name, given)
        booleans = {name: given.long() for name, given in labels.items() if given.dtype == torch.bool}
        return {**batch, **booleans} if booleans else batch

    def _check_values(self, name: str, labels: Tensor) -> None:
        """Refuse numbers that are no labels, in which a loss would be silently wrong."""
        fit, what = labels.isfinite(), "NaN or infinite"
        if self.problem == "multi_label_classification" and fit.all():
            fit, what = (labels >= 0) & (labels <= 1), "not 0 or 1"
        if not fit.all():
            example = int((~fit).nonzero()[0, 0]) if labels.dim() else 0
            raise CompressionError(
                f"A label in the batch's {name!r} is {what}: {labels[~fit][0].item():g}, of example {example} (from "
                "0) of the batch. Correct it, or leave out the examples without a label."
            )


def _with_fractions(features: list[Any]) -> list[Any]:
    """Make all labels floats where some are no whole numbers: a collator that looks at the first one truncates them."""
    if not all(isinstance(row, Mapping) for row in features):
        return features
    for column in LABELS:
        labels = [row.get(column) for row in features]
        if any(isinstance(label, float) and not label.is_integer() for label in labels):
            numbers = [float(label) if isinstance(label, int) else label for label in labels]
            pairs = zip(features, numbers, strict=True)
            features = [{**row, column: one} if column in row else row for row, one in pairs]
    return features


def _check_labels(features: list[dict[str, Any]], *, some: bool) -> None:
    """Refuse labels that are no numbers; with ``some`` only if other examples have one."""
    rows = [row for row in features if isinstance(row, Mapping)]
    for column in LABELS:
        labels = [row.get(column) for row in rows if column in row]
        if some and all(label is None for label in labels):
            continue
        for label in labels:
            for value in _values(label):
                if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
                    raise CompressionError(
                        f"The label {label!r:.80} in the column {column!r} is no number: give each example its class "
                        "index, model.config.label2id[name] for a name, and leave out those without a label "
                        "(or drop the column to train with alpha=1)."
                    )
        sizes = [len(label) if isinstance(label, list | tuple) else 1 for label in labels]
        for label, size in zip(labels, sizes, strict=True):
            if size != sizes[0]:
                raise CompressionError(
                    f"The label {label!r:.80} in the column {column!r} is of {size} numbers, another of {sizes[0]}; "
                    "give each example as many: a class index, or 0 or 1 for each of the model's labels."
                )


def _values(label: Any) -> Iterator[Any]:
    if isinstance(label, list | tuple):
        for one in label:
            yield from _values(one)
    else:
        yield label
