"""A data set, read once: what ranks heads and neurons, reconstructs outputs, and says what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from hfcompress.models.inputs import Batch
from hfcompress.shrink.held_out import HeldOutRows, Rows, read_rows
from hfcompress.shrink.importance import Importance, labelled_batches
from hfcompress.shrink.reconstruction import Calibration, read_calibration
from hfcompress.shrink.request import Request
from hfcompress.validation import check_count


@dataclass(frozen=True)
class Data:
    """What was read of a data set, or what is done without one.

    Attributes:
        importance: How heads, neurons and layers are ranked: as asked, or as the data set allows.
        batches: What they are ranked by; None for ``"l1"``.
        calibration: What outputs are reconstructed with; None where they are not.
        held_out: Rows that are in neither; None where none are held out.
        note: Why none are, with a data set.
    """

    importance: Importance
    batches: list[Batch] | None = None
    calibration: Calibration | None = None
    held_out: HeldOutRows | None = None
    note: str | None = None

    def part(self) -> Data:
        """Return it with about a fourth of the texts."""
        calibration = None if self.calibration is None else self.calibration.part()
        batches = None if self.batches is None else self.batches[::4]
        return replace(self, batches=batches, calibration=calibration)

    def quality(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what a `StructureReport` says of the shrunken model's predictions, by attribute."""
        if self.held_out is not None:
            return self.held_out.measure(model)
        return {} if self.note is None else {"held_out": 0, "note": self.note}


def read_data(
    model: PreTrainedModel,
    dataset: Iterable[Any] | None,
    eval_dataset: Iterable[Any] | None,
    batch_size: int,
    request: Request,
) -> Data:
    """Read data sets, which may be iterators, for a model that is not shrunk yet.

    Without ``eval_dataset`` some rows of ``dataset`` are held out to measure with.

    Raises:
        CompressionError: It has no rows, or no labels where they are needed, or the model does not read them.
    """
    check_count("batch_size", batch_size)
    held_out = None
    if eval_dataset is not None:
        others = read_rows(model, eval_dataset, needs_labels=False, hold_out=False, name="eval_dataset")
        held_out = HeldOutRows(model, others.ranking, batch_size, labelled=others.labelled, name="eval_dataset")
    if dataset is None:
        return Data("l1", held_out=held_out)
    needs_labels = request.importance in ("taylor", "fisher")
    rows = read_rows(model, dataset, needs_labels=needs_labels, hold_out=eval_dataset is None)
    importance = _suited_to(rows, request) if request.importance == "auto" else request.importance
    calibration = batches = None
    if request.reconstruct or importance == "obs":
        calibration = read_calibration(model, rows.ranking, batch_size)
    if importance == "obs" and calibration is not None:
        batches = [*calibration.fit, *calibration.held_out]
    elif importance != "l1":
        batches = labelled_batches(model, rows.ranking, batch_size)
    if rows.held_out:
        held_out = HeldOutRows(model, rows.held_out, batch_size, labelled=rows.labelled)
    return Data(importance, batches, calibration if request.reconstruct else None, held_out, rows.note)


def _suited_to(rows: Rows, request: Request) -> Importance:
    """Return how to rank by what there is."""
    if request.reconstruct:
        return "obs"
    return "fisher" if rows.labelled else "l1"
