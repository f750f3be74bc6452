"""The report of heads, neurons and layers that were removed from a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hfcompress.models.heads_and_neurons import KINDS, Kind
from hfcompress.models.inputs import TOKENS
from hfcompress.report.tables import Report, Row, Table

Target = Literal["projection", "residual"]


@dataclass(frozen=True)
class Reconstruction:
    """How the outputs of what is left were reconstructed.

    Attributes:
        target: What was solved for: the original's output of each ``"projection"``, or its ``"residual"`` stream; None
            if neither brought the logits of held-out texts closer to the original's, so that no weight was changed.
        projections: How many weights were solved for.
        logits_error: The mean squared difference of held-out logits from the original's, without and with it.
    """

    target: Target | None
    projections: int
    logits_error: tuple[float, float]


@dataclass(frozen=True)
class BlockStructure:
    """Number of heads or neurons of one block, before and after.

    Attributes:
        name: Name of the layer, or of the block where a layer has several.
        kind: ``"heads"`` or ``"neurons"``.
        before: Number before; with grouped queries a head is a key-value head with all its queries.
        after: Number after.
    """

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class StructureReport(Report):
    """What was removed, and what it saves. ``print`` and a notebook show a table.

    Attributes:
        blocks: Heads, then neurons, of each remaining layer.
        layers: Number of layers, before and after.
        parameters: Number of parameters, before and after.
        flops: Floating-point operations of a text, counted in a forward pass, before and after.
        asked: The arguments that state how much to remove.
        latency_ms: Milliseconds of such a text, before and after, if a latency was asked.
        importance: How heads, neurons and layers were ranked.
        held_out: Number of rows that ranked nothing, which the following figures are about: before and after, without
            any training between. None without a data set.
        accuracy: Fraction of correct predictions; of a multi-label model the fraction of correct labels.
        f1: F1 score of class 1 where there are two classes, else the mean over classes, or labels (macro).
        mse: Mean squared error, regression.
        agreement: Fraction of the rows, or of their labels, with the same prediction after as before.
        reference_difference: Mean absolute difference of the outputs after from those before, regression.
        note: Why some of these figures are missing.
        reconstruction: How outputs were reconstructed, if they were.
        tokens: Of the text that FLOPs and milliseconds are of: 128, or as many as the model can read.
    """

    blocks: tuple[BlockStructure, ...]
    layers: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    asked: dict[str, Any]
    latency_ms: tuple[float, float] | None = None
    importance: str | None = None
    held_out: int | None = None
    accuracy: tuple[float, float] | None = None
    f1: tuple[float, float] | None = None
    mse: tuple[float, float] | None = None
    agreement: float | None = None
    reference_difference: float | None = None
    note: str | None = None
    reconstruction: Reconstruction | None = None
    tokens: int = TOKENS

    def removed(self, kind: Kind) -> float:
        """Return the fraction of the heads or neurons of the remaining layers that was removed."""
        before, after = self._total(kind)
        return 1 - after / before if before else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        asked = {name: np.asarray(value).tolist() for name, value in self.asked.items()}  # without NumPy's numbers
        return asdict(self) | {"asked": asked} | {f"{kind}_removed": self.removed(kind) for kind in KINDS}

    def _total(self, kind: Kind) -> tuple[int, int]:
        blocks = [block for block in self.blocks if block.kind == kind]
        return sum(block.before for block in blocks), sum(block.after for block in blocks)

    def _table(self) -> Table:
        rows: list[Row] = [("", "before", "after", "removed")]
        totals = {"layers": self.layers} | {kind: self._total(kind) for kind in KINDS}
        totals |= {"parameters": self.parameters, f"FLOPs of {self.tokens} tokens": self.flops}
        for name, (before, after) in totals.items():
            if before:
                rows.append((name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"))
        if self.latency_ms is not None:
            full, small = self.latency_ms
            rows.append((f"ms of {self.tokens} tokens", f"{full:.1f}", f"{small:.1f}", f"{1 - small / full:.1%}"))
        notes = ["asked: " + ", ".join(f"{name}={value}" for name, value in self.asked.items())]
        if self.reconstruction is not None and self.reconstruction.target is not None:
            full, small = self.reconstruction.logits_error
            notes.append(
                f"reconstructed: {self.reconstruction.projections} projections for the original's "
                f"{'outputs' if self.reconstruction.target == 'projection' else 'residual stream'}; "
                f"mean squared error of held-out logits {full:.2g} -> {small:.2g}"
            )
        if self.importance is not None:
            notes[0] += f"; ranked by {self.importance}"
        rows += self._quality_rows()
        if self.held_out:
            notes.append(f"Quality: of {self.held_out:,} rows held out of the ranking; not trained since.")
        notes += [] if self.note is None else [f"Quality: {self.note}"]
        return Table(rows, "<>>>", notes)

    def _quality_rows(self) -> list[Row]:
        pairs = {"accuracy": self.accuracy, "F1": self.f1, "mean squared error": self.mse}
        found = [(name, pair) for name, pair in pairs.items() if pair is not None]
        rows: list[Row] = [(name, f"{before:.3f}", f"{after:.3f}", "") for name, (before, after) in found]
        if self.agreement is not None:
            rows.append(("same predictions as before", "", f"{self.agreement:.1%}", ""))
        if self.reference_difference is not None:
            rows.append(("mean distance from the outputs before", "", f"{self.reference_difference:.3g}", ""))
        return rows
