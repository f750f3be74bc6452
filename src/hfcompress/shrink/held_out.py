"""The rows that a model is shrunk by: those that rank its heads and neurons, and those held out to see what it cost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import MISSING_LABELS
from hfcompress.models.architectures import TOKEN_TYPE_LISTS
from hfcompress.models.classifier import evaluation_mode, get_config, get_logits, get_problem_type, input_names
from hfcompress.models.inputs import Batch, check_dataset, check_mask
from hfcompress.models.labels import LABELS, check_class_names
from hfcompress.models.padding import split_rows
from hfcompress.progress import track
from hfcompress.report.quality import as_columns, check_labels, compare_outputs, score
from hfcompress.shrink.importance import are_batches, check_columns, labelled_batches

SHARE, MOST, LEAST_ROWS = 4, 300, 32  # a fourth of the rows is held out, 300 at most, and none of fewer than 32
_FIGURES = ("accuracy", "f1", "f1_macro", "mse")


@dataclass(frozen=True)
class Rows:
    """A data set, read once.

    Attributes:
        ranking: Rows, or batches of tensors, that heads and neurons are ranked by.
        held_out: The others, in the same form.
        labelled: Whether they have labels.
        note: Why none are held out, if so.
    """

    ranking: list[Any]
    held_out: list[Any]
    labelled: bool
    note: str | None = None


def read_rows(
    model: nn.Module, dataset: Iterable[Any], *, needs_labels: bool, hold_out: bool = True, name: str = "dataset"
) -> Rows:
    """Read a data set, which may be an iterator, and hold some of its rows out, the same ones in each call.

    Labels of None or NaN, and class indices of -1 or -100, are missing. If all are, the rows have none.

    Args:
        model: What reads them.
        dataset: As for `labelled_batches`.
        needs_labels: Whether rows without labels are refused.
        hold_out: Whether rows are held out; else all of them rank.
        name: What an error message calls the data set.

    Raises:
        CompressionError: There are no rows, or none with labels where they are needed, or some have a label and others
            have none; its classes are named in another order than the model's; or what the model reads is no tensor in
            batches of tensors, or padded without an attention mask.
    """
    if not isinstance(dataset, Mapping) or "input_ids" not in dataset:
        check_dataset(dataset, name)
    check_class_names(name, model, dataset)
    rows: list[Any] = [dataset] if isinstance(dataset, Mapping) else list(dataset)
    check_columns(rows, name, needs_labels=needs_labels)
    batches = are_batches(rows)
    if batches:
        rows = [_tensors(model, batch, name) for batch in rows]
    for number, row in enumerate(rows):
        _check_lengths(model, row, f"row {number} of {name}")
    problem = get_problem_type(model, "model")
    missing = [one for row in rows for one in _are_missing(row, batches, problem)]
    if needs_labels:  # those that are none are refused by name when they are read
        missing = [False] * len(missing)
    if 0 < sum(missing) < len(missing):
        raise CompressionError(
            f"{sum(missing)} of {len(missing)} rows of {name} have no label (none, None, NaN, -1 or -100); leave "
            "those rows out, or the labels of all rows."
        )
    if all(missing):
        rows = [{name: value for name, value in row.items() if name not in LABELS} for row in rows]
        check_mask(name, model, (one for row in rows for one in (split_rows(row) if batches else [row])))
    if not hold_out:
        return Rows(rows, [], not all(missing))
    total = len(missing)
    if total < LEAST_ROWS:
        note = f"not measured: {name} has {total} rows, and of fewer than {LEAST_ROWS} none are held out."
        return Rows(rows, [], not all(missing), note)
    chosen = set(random.Random(0).sample(range(total), min(MOST, total // SHARE)))
    if batches:
        ranking, held_out = (_take(rows, chosen, wanted=wanted) for wanted in (False, True))
    else:
        ranking, held_out = ([row for n, row in enumerate(rows) if (n in chosen) is w] for w in (False, True))
    return Rows(ranking, held_out, not all(missing))


class HeldOutRows:
    """Measures a model before it is shrunk, and what the shrunken one does with the same rows.

    Args:
        model: Before it is shrunk.
        rows: Rows, or batches of tensors, that rank nothing.
        labelled: Whether they have labels.
        batch_size: Rows in a batch.
        name: What an error message calls the data set that they are of.

    Raises:
        CompressionError: The model does not read the rows.
    """

    def __init__(
        self, model: PreTrainedModel, rows: list[Any], batch_size: int, *, labelled: bool, name: str = "dataset"
    ) -> None:
        self._problem: Problem = get_problem_type(model, "model")
        self._batches = labelled_batches(model, rows, batch_size, needs_labels=labelled, name=name)
        self._labels = torch.cat([batch["labels"].cpu() for batch in self._batches]) if labelled else None
        self._note: str | None = None
        self._figures: dict[str, Any] = {}
        self._before = _predict(model, self._batches, name)
        self._rows, self._name = len(self._before), name
        try:
            self._figures = self._score("the model", self._before)
        except CompressionError as error:  # labels of a kind that can rank, but not be counted
            self._labels, self._note = None, f"accuracy not measured: {error}"

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the figures of quality, by attribute of a `StructureReport`.

        Args:
            model: The shrunken model.

        Raises:
            CompressionError: Its logits are NaN or infinite where those of the original model are not.
        """
        after = _predict(model, self._batches, self._name)
        broken = as_columns(self._before).isfinite().all(-1) & ~as_columns(after).isfinite().all(-1)
        if broken.any():
            raise CompressionError(
                f"The shrunken model returns NaN or infinity for {int(broken.sum())} of {self._rows} held-out rows."
            )
        figures = self._score("the shrunken model", after)
        pairs = {name: (before, figures[name]) for name, before in self._figures.items()}
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        return (
            known | compare_outputs(self._before, after, self._problem) | {"held_out": self._rows, "note": self._note}
        )

    def _score(self, name: str, logits: Tensor) -> dict[str, Any]:
        if self._labels is None:
            return {}
        labels = self._labels
        if self._problem == "single_label_classification" and bool((labels == labels.long()).all()):
            labels = labels.long()
        figures = score(name, logits, check_labels(name, labels, self._problem), self._problem)
        return {name.removesuffix("_macro"): figures[name] for name in _FIGURES if name in figures}


def _predict(model: nn.Module, batches: Sequence[Batch], name: str) -> Tensor:
    """Return the logits of all rows, float64, on the CPU."""
    logits = []
    with evaluation_mode(model):
        for batch in track(batches, "measuring held-out rows"):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            try:
                logits.append(get_logits(model(**inputs)).cpu().double())
            except (TypeError, ValueError, IndexError, RuntimeError) as error:  # such as ids that it does not have
                raise CompressionError(f"{type(model).__name__} does not read the rows of {name}: {error}") from error
    return torch.cat(logits)


def _are_missing(row: Mapping[str, Any], batch: bool, problem: Problem) -> list[bool]:
    """Whether the label of a row is missing, or of each row of a batch."""
    value = next((row[name] for name in LABELS if row.get(name) is not None), None)
    count = len(row["input_ids"]) if batch else 1
    if value is None:
        return [True] * count
    try:
        labels = torch.as_tensor(value).reshape(count, -1)
    except (TypeError, ValueError, RuntimeError):  # refused by name when the rows are read
        return [False] * count
    if labels.is_floating_point():
        return labels.isnan().any(-1).tolist()
    if labels.dtype == torch.bool:
        return [False] * count
    if problem == "single_label_classification":
        return torch.isin(labels.cpu(), torch.tensor(MISSING_LABELS)).all(-1).tolist()
    return [False] * count


def _tensors(model: nn.Module, batch: Mapping[str, Any], dataset: str) -> dict[str, Tensor]:
    """Return the columns of a batch that have a row for each text; those that are read must be among them."""
    texts = len(batch["input_ids"])
    found = {n: v for n, v in batch.items() if isinstance(v, Tensor) and v.dim() and len(v) == texts}
    for name in batch.keys() & (input_names(model) | set(LABELS)) - found.keys():
        if batch[name] is not None:
            raise CompressionError(
                f"The {name} of {dataset} must be tensors with a row for each text, as its input_ids are."
            )
    return found


def _check_lengths(model: nn.Module, row: Mapping[str, Any], place: str) -> None:
    """Refuse a row, or a batch, whose attention mask or token types are not as many as its ids."""
    has_lists = any(getattr(get_config(model), name, None) for name in TOKEN_TYPE_LISTS)
    for name in {"attention_mask", "token_type_ids"} & row.keys() & input_names(model):
        sizes = [
            tuple(one.shape) if hasattr(one, "shape") else (len(one),) if isinstance(one, Sequence) else None
            for one in (row[name], row["input_ids"])
        ]
        if name == "token_type_ids" and sizes[0] is not None and has_lists:
            sizes[0] = sizes[0][: len(sizes[1] or ())]
        if sizes[0] != sizes[1]:
            raise CompressionError(
                f"The {name} of {place} must have a number for each of its input_ids; its shape is "
                f"{sizes[0]}, and theirs is {sizes[1]}. Leave the column out, or encode the texts again."
            )


def _take(batches: Sequence[Batch], chosen: set[int], *, wanted: bool) -> list[Batch]:
    """Return the rows of batches that are, or are not, among those chosen, as smaller batches."""
    made, first = [], 0
    for batch in batches:
        count = len(batch["input_ids"])
        mine = [n for n in range(count) if (first + n in chosen) is wanted]
        first += count
        if mine:
            made.append({name: value[mine] for name, value in batch.items()})
    return made
