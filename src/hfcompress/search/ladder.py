"""A ladder of models, each a number of times as fast as the original: the record, and what shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcompress.errors import CompressionError
from hfcompress.report.intervals import McNemar, SignFlip, paired_interval
from hfcompress.report.measurements import MB, ForwardPass, Measurement, Speedup, main_quality, speedup
from hfcompress.report.rendering import draw
from hfcompress.report.tables import Report, Row, Table, render
from hfcompress.search.loss_table import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL = "original"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One model of a ladder.

    Attributes:
        name: Such as ``"4x"``: the speed-up that was asked. What it has is ``speedup``.
        target: That as a number.
        runtime: What runs it: ``"torch"``, ``"onnx"`` or ``"onnx-int8"``.
        folder: With the model, the tokenizer and a card.
        original: The original, measured in turns with this model, run by torch.
        measured: This model.
        predicted: The speed-up by the table of times.
        shapes: Of each layer that is left, how many heads and neurons; 0 of what has no known layout.
        layers: How many layers there are, of how many.
        drop: The loss of accuracy (label accuracy of several labels; R2 of a regression).
        recipe: How it was trained, in words.
        notes: What else is to say about it.
    """

    name: str
    target: float
    runtime: str
    folder: str
    original: Measurement
    measured: Measurement
    predicted: float
    shapes: Plan
    layers: tuple[int, int]
    drop: float
    recipe: str
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> Speedup:
        """How many times as fast as the original it is, as measured, with its 99 % interval."""
        found = speedup(self.original, self.measured)
        assert found is not None
        return found

    @property
    def kept(self) -> float | None:
        """The share of the original's accuracy that it has; None in regression."""
        before, after = self.original.accuracy, self.measured.accuracy
        return None if not before or after is None else after / before

    @property
    def drop_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the loss of accuracy, paired by rows; None for several labels and in regression."""
        test, examples = self.measured.mcnemar, self.measured.examples
        if test is None or examples is None:
            return None
        same = examples - test.only_first - test.only_this
        signs = [1.0] * test.only_first + [-1.0] * test.only_this + [0.0] * same
        return paired_interval(torch.tensor(signs))

    @cached_property
    def model(self) -> Any:
        """The model, loaded from its folder: a `PreTrainedModel`, or an `ExportedModel` where ONNX Runtime runs it."""
        if self.runtime == "torch":
            from hfcompress.storage.load import load_compressed

            return load_compressed(self.folder)
        from hfcompress.deploy.exported_model import load_exported

        return load_exported(Path(self.folder) / "onnx")

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        lists = {name: list(plain[name]) for name in ("layers", "notes")}
        lists["shapes"] = [None if shape is None else list(shape) for shape in self.shapes]
        measured = {name: plain[name].to_dict() for name in ("original", "measured")}
        derived = {"speedup": self.speedup.to_dict(), "kept": self.kept, "drop_interval": self.drop_interval}
        return plain | lists | measured | derived

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rung:
        """Make it again from what `to_dict` returned."""
        own = {one.name: values[one.name] for one in fields(cls)}
        own |= {name: _read_measurement(values[name]) for name in ("original", "measured")}
        own |= {name: tuple(values[name]) for name in ("layers", "notes")}
        own["shapes"] = tuple(None if shape is None else tuple(shape) for shape in values["shapes"])
        return cls(**own)


@dataclass(frozen=True)
class Ladder(Report):
    """Models of one original, from the slowest to the fastest. ``print`` and a notebook show a table.

    Attributes:
        rungs: The models.
        notes: What was asked and is not there, and why.
        directory: The folder with the folders of the models.
    """

    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    directory: str

    def __getitem__(self, name: str) -> Rung:
        """Return the rung of that name, such as ``"4x"``.

        Raises:
            CompressionError: There is none.
        """
        found = next((rung for rung in self.rungs if rung.name == name), None)
        if found is None:
            there = ", ".join(rung.name for rung in self.rungs) or "none"
            reason = " ".join(self.notes)
            raise CompressionError(f"The ladder has no rung {name!r}; it has {there}. {reason}".rstrip())
        return found

    def __len__(self) -> int:
        return len(self.rungs)

    def best(self, max_drop: float = 0.01) -> Rung:
        """Return the fastest model that loses at most so much accuracy, as measured.

        Args:
            max_drop: Such as 0.01, a point. Whether the rows suffice to confirm it says `Rung.drop_interval`.

        Raises:
            CompressionError: All lose more.
        """
        within = [rung for rung in self.rungs if rung.drop <= max_drop + 1e-9]
        if not within:
            least = min(self.rungs, key=lambda rung: rung.drop, default=None)
            nearest = "" if least is None else f"; {least.name} loses least, {least.drop:.4f}"
            raise CompressionError(f"No rung loses at most max_drop={max_drop:g}{nearest}.")
        return max(within, key=lambda rung: rung.speedup.ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        return {
            "directory": self.directory,
            "notes": list(self.notes),
            "rungs": {rung.name: rung.to_dict() for rung in self.rungs},
        }

    def plot(self) -> tuple[Figure, tuple[Axes, ...]]:
        """Draw accuracy against milliseconds and against bytes, with intervals and the Pareto front.

        Raises:
            CompressionError: The ladder has no rung.
            ImportError: matplotlib is not installed: ``pip install 'hfcompress[plots]'``.
        """
        return draw(self._models())

    def to_html(self, title: str = "A ladder of models") -> str:
        """Return an HTML page with the table and the picture, in one file that needs no network.

        Args:
            title: Heading of the page.

        Raises:
            ImportError: matplotlib is not installed; see `plot`.
        """
        from hfcompress.report.rendering import draw_apart

        pictures = draw_apart(self._models()) if self.rungs else []
        return render("ladder.html.j2", title=title, table=self._table(), left=self._layers(), pictures=pictures)

    def _models(self) -> dict[str, Measurement]:
        if not self.rungs:
            raise CompressionError(f"The ladder has no rung, so there is nothing to draw. {' '.join(self.notes)}")
        return {FULL: self.rungs[0].original} | {rung.name: rung.measured for rung in self.rungs}

    def _table(self) -> Table:
        return rung_table(self.rungs, self.notes)

    def _layers(self) -> Table:
        """What is left of each layer, a row a model."""
        rows: list[Row] = [("rung", "layers", "heads, by layer", "neurons, by layer", "predicted", "folder")]
        for rung in self.rungs:
            left = [shape for shape in rung.shapes if shape is not None]
            heads, neurons = (" ".join(str(shape[n]) for shape in left) for n in (0, 1))
            layers = f"{rung.layers[0]} of {rung.layers[1]}"
            rows.append((rung.name, layers, heads, neurons, f"{rung.predicted:.2f}x", rung.folder))
        return Table(rows, "<><<><")


def rung_table(rungs: Sequence[Rung], notes: Sequence[str] = ()) -> Table:
    """Return the table of a ladder, the original first."""
    if not rungs:
        return Table([("rung",), ("none",)], "<", notes)
    label, figure, _ = main_quality([rungs[0].original])
    head = ("rung", "speed-up", "99 % interval", "ms", label, "95 % interval", "kept", "p", "MB", "recipe")
    first = rungs[0].original
    rows: list[Row] = [
        head,
        (FULL, "1.00x", "", f"{first.latency_ms:.2f}", *_quality(first, figure), "", "", _mb(first), ""),
    ]
    for rung in rungs:
        found, own, test = rung.speedup, rung.measured, rung.measured.paired_test
        between = "few rounds" if found.interval is None else "{:.2f} to {:.2f}".format(*found.interval)
        kept = "-" if rung.kept is None else f"{rung.kept:.1%}"
        p = "-" if test is None else f"{test.p_value:.3f}"
        cells = (f"{found.ratio:.2f}x", between, f"{own.latency_ms:.2f}", *_quality(own, figure), kept, p, _mb(own))
        rows.append((rung.name, *cells, rung.recipe))
    timed = first.passes[0]
    own_notes = [
        f"Measured in turns with the original, {timed.label} tokens, on {first.device} with {first.threads} threads; "
        f"quality of {first.examples:,} rows that taught nothing. p: the paired test against the original."
    ]
    own_notes += [f"{rung.name}: {note}" for rung in rungs for note in rung.notes]
    return Table(rows, "<>>>>>>>><", [*own_notes, *notes])


def _quality(one: Measurement, figure: str) -> tuple[str, str]:
    value, interval = getattr(one, figure), getattr(one, f"{figure}_interval")
    between = "-" if interval is None else "{:.3f} to {:.3f}".format(*interval)
    return "-" if value is None else f"{value:.3f}", between


def _mb(one: Measurement) -> str:
    return f"{one.bytes / MB:.1f}"


def _read_measurement(values: Mapping[str, Any]) -> Measurement:
    own = {one.name: values[one.name] for one in fields(Measurement)}
    own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
    own["passes"] = tuple(_record(ForwardPass, one) for one in values["passes"])
    own["mcnemar"] = values["mcnemar"] and _record(McNemar, values["mcnemar"])
    own["sign_flip"] = values["sign_flip"] and _record(SignFlip, values["sign_flip"])
    return Measurement(**own)


def _record(kind: Any, values: Mapping[str, Any]) -> Any:
    own = {one.name: values[one.name] for one in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})
