"""A ladder of models, each a number of times as fast as the original: the record, and what shows it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import CompressionError
from hfcompress.report.intervals import McNemar, SignFlip
from hfcompress.report.measurements import (
    Measurement,
    cells,
    main_quality_columns,
    megabytes,
    more_quality_columns,
    p_value,
)
from hfcompress.report.rendering import draw, draw_apart
from hfcompress.report.tables import Report, Row, Table, render
from hfcompress.report.times import ForwardPass, Speedup, speedup
from hfcompress.search.loss_table import Plan
from hfcompress.search.rows import held_out_to_measure
from hfcompress.validation import check_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL = "original"
_ROUNDING = 1e-9
_MOST_ROWS = 1000  # times those that there are


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
        drop_interval: Its 95 % interval, paired by rows.
        recipe: What it was made of and how it was trained, in words.
        epochs: How many epochs that were.
        machine: What both were timed on: the accelerator, or what the processor can do; and threads.
        notes: What else is to say about it.
        stopped: Whether its training was stopped by ``time_limit``.
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
    drop_interval: tuple[float, float]
    recipe: str
    epochs: float
    machine: str
    notes: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def speedup(self) -> Speedup:
        """How many times as fast as the original it is, as measured, with its 99 % interval."""
        found = speedup(self.original.passes, self.measured.passes)
        assert found is not None
        return found

    @property
    def kept(self) -> float | None:
        """The share of the original's accuracy that it has; None in regression."""
        before, after = self.original.accuracy, self.measured.accuracy
        return None if not before or after is None else after / before

    def confirms(self, max_drop: float) -> bool:
        """Whether it is shown to lose at most so much: ``drop_interval`` ends there or before."""
        return self.drop_interval[1] <= max_drop + _ROUNDING

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
        lists = {name: list(plain[name]) for name in ("layers", "notes", "drop_interval")}
        lists["shapes"] = [None if shape is None else list(shape) for shape in self.shapes]
        measured = {name: plain[name].to_dict() for name in ("original", "measured")}
        derived = {"speedup": self.speedup.to_dict(), "kept": self.kept}
        return plain | lists | measured | derived

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rung:
        """Make it again from what `to_dict` returned."""
        own = {one.name: values[one.name] for one in fields(cls)}
        own |= {name: _read_measurement(values[name]) for name in ("original", "measured")}
        own |= {name: tuple(values[name]) for name in ("layers", "notes", "drop_interval")}
        own["shapes"] = tuple(None if shape is None else tuple(shape) for shape in values["shapes"])
        return cls(**own)


@dataclass(frozen=True)
class Ladder(Report):
    """Models of one original, from the slowest to the fastest. ``print`` and a notebook show a table.

    Attributes:
        rungs: The models.
        notes: What was asked and is not there, and why.
        directory: The folder with the folders of the models.
        measured_on: Positions of the rows that measured them, in ``eval_dataset``, or in ``train_dataset`` where that
            was not given.
        repeated: How many of these have the text of a row that was learned from.
    """

    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    directory: str
    measured_on: tuple[int, ...] = ()
    repeated: int = 0

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
        """Return the fastest model that is shown to lose at most so much accuracy: see `Rung.confirms`.

        The intervals are not corrected for the number of models that are compared. If the rows are too few to show
        that of any model, a warning says so, and it is the fastest that loses at most so much as measured.

        Args:
            max_drop: Such as 0.01, a point.

        Raises:
            CompressionError: All lose more, or ``max_drop`` is not in [0, 1].
        """
        check_fraction("max_drop", max_drop, "the loss of accuracy that is allowed; 0.01 is a point", one=True)
        found = fastest_within(self.rungs, max_drop)
        if found is None:
            least = min(self.rungs, key=lambda rung: rung.drop, default=None)
            nearest = "" if least is None else f"; {least.name} loses least, {least.drop:.4f}"
            raise CompressionError(f"No rung loses at most max_drop={max_drop:g}{nearest}.")
        if not found.confirms(max_drop):
            warnings.warn(describe_choice(self.rungs, max_drop)[0], UserWarning, stacklevel=2)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        return {
            "directory": self.directory,
            "notes": list(self.notes),
            "measured_on": list(self.measured_on),
            "repeated": self.repeated,
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
        pictures = draw_apart(self._models()) if self.rungs else []
        return render("ladder.html.j2", title=title, table=self._table(), left=self._layers(), pictures=pictures)

    def _models(self) -> dict[str, Measurement]:
        if not self.rungs:
            raise CompressionError(f"The ladder has no rung, so there is nothing to draw. {' '.join(self.notes)}")
        return side_by_side(self.rungs)

    def _table(self) -> Table:
        return rung_table(self.rungs, self.notes, self.repeated)

    def _layers(self) -> Table:
        """What is left of each layer, a row a model."""
        rows: list[Row] = [("rung", "layers", "heads, by layer", "neurons, by layer", "predicted", "folder")]
        for rung in self.rungs:
            left = [shape for shape in rung.shapes if shape is not None]
            heads, neurons = (" ".join(str(shape[n]) for shape in left) for n in (0, 1))
            layers = f"{rung.layers[0]} of {rung.layers[1]}"
            rows.append((rung.name, layers, heads, neurons, f"{rung.predicted:.2f}x", rung.folder))
        return Table(rows, "<><<><")


def in_words(rung: Rung, loss: float, *, asked: bool = False) -> str:
    """Return a loss, measured or asked for, in points of accuracy, or in regression of R2."""
    if rung.measured.mse is not None:
        return f"{loss:{'g' if asked else '.3f'}} of R2"
    return f"{100 * loss:{'g' if asked else '.2f'}} point{'' if asked and loss == 0.01 else 's'}"


def fastest_within(rungs: Sequence[Rung], max_drop: float) -> Rung | None:
    """Return the fastest model that is shown to lose at most so much; if none is, the fastest that does as measured."""
    within = [rung for rung in rungs if rung.drop <= max_drop + _ROUNDING]
    shown = [rung for rung in within if rung.confirms(max_drop)]
    return max(shown or within, key=lambda rung: rung.speedup.ratio, default=None)


def describe_choice(rungs: Sequence[Rung], max_drop: float) -> list[str]:
    """Say which model is the fastest that loses at most so much, and whether that is shown; nothing if none does."""
    chosen = fastest_within(rungs, max_drop)
    if chosen is None:
        return []
    points = in_words(chosen, max_drop, asked=True)
    if chosen.confirms(max_drop):
        return [f"{chosen.name} is the fastest that is shown to lose at most {points}."]
    return [
        f"{chosen.name} is the fastest that loses at most {points} as measured, which is not shown of any model: "
        f"{chosen.measured.examples:,} rows are too few."
    ]


def describe_test(rung: Rung, max_drop: float) -> str:
    """Say whether a model is shown to lose at most so much, and if not how many rows it would take."""
    (low, high), examples, points = (
        rung.drop_interval,
        rung.measured.examples or 0,
        in_words(rung, max_drop, asked=True),
    )
    if rung.confirms(max_drop):
        of_rows = f"the 95 % interval of the paired difference, of {examples:,} rows,"
        return f"It loses at most {points}: {of_rows} ends at {in_words(rung, high)}."
    text = (
        f"It loses {in_words(rung, rung.drop)} as measured, but {examples:,} rows are too few to show that it loses at "
        f"most {points}: the 95 % interval of the paired difference ends at {in_words(rung, high)}"
    )
    room = max_drop - (low + high) / 2
    factor = math.inf if room <= 0 else ((high - low) / 2 / room) ** 2  # the width falls with the square root of rows
    if factor > _MOST_ROWS:
        return f"{text}; at this loss more than {_MOST_ROWS:,} times as many would be needed."
    needed = held_out_to_measure(math.ceil(factor * examples))
    unit = 10 ** max(0, len(str(needed)) - 2)
    rows = f"{unit * math.ceil(needed / unit):,} held-out rows"
    return f"{text}; at this loss about {rows} would do, with those that check the training."


def side_by_side(rungs: Sequence[Rung]) -> dict[str, Measurement]:
    """Return the original and the rungs as if all had been timed in turns with each other.

    Each rung was timed in turns with the original alone, and a machine is not always as fast. So the original's time is
    its median beside the first rung, and of each rung that, by what it took of the original's time in its own rounds.
    """
    first = rungs[0].original
    reference = first.passes[0]
    steady = replace(reference, times_ms=(reference.latency_ms,) * len(reference.times_ms))
    models = {FULL: replace(first, passes=(steady,))}
    for rung in rungs:
        own, before = rung.measured.passes[0], rung.original.passes[0]
        shares = (one / other for one, other in zip(own.times_ms, before.times_ms, strict=True))
        times = tuple(reference.latency_ms * share for share in shares)
        models[rung.name] = replace(rung.measured, passes=(replace(own, times_ms=times),))
    return models


def rung_table(rungs: Sequence[Rung], notes: Sequence[str], repeated: int) -> Table:
    """Return the table of a ladder, the original first."""
    if not rungs:
        return Table([("rung",), ("none",)], "<", notes)
    models, first = side_by_side(rungs), rungs[0].original
    ones, speedups = list(models.values()), [rung.speedup for rung in rungs]
    lost, form = ("points lost", _as_points) if first.mse is None else ("R2 lost", "{:.3f}".format)
    tests = [rung.measured.paired_test for rung in rungs]
    intervals = ["few rounds" if one.interval is None else "{:.2f} to {:.2f}".format(*one.interval) for one in speedups]
    losses = [f"{form(rung.drop)} ({' to '.join(map(form, rung.drop_interval))})" for rung in rungs]
    columns = {
        "rung": list(models),
        "speed-up": ["1.00x", *(f"{one.ratio:.2f}x" for one in speedups)],
        "99 % interval": ["", *intervals],
        "ms": cells(ones, "latency_ms", "{:.2f}".format),
        **main_quality_columns(ones),
        "F1": cells(ones, "f1", "{:.3f}".format),  # of rare classes accuracy says little
        **more_quality_columns(ones),
        "kept": ["", *("-" if rung.kept is None else f"{rung.kept:.1%}" for rung in rungs)],
        lost: ["", *losses],
        "p": ["", *("-" if test is None else p_value(test) for test in tests)],
        "MB": cells(ones, "bytes", megabytes),
        "recipe": ["", *(rung.recipe for rung in rungs)],
    }
    table = [[head, *column] for head, column in columns.items() if not {*column} <= {"", "-"}]
    tokens, machine = first.passes[0].label, _by_value(rungs, attrgetter("machine"))
    seen = f" (the texts of {repeated:,} are learned from in other rows)" if repeated else ""
    own_notes = [
        f"Each timed in turns with the original, {tokens} tokens, on {machine}; "
        "ms: of the original beside the first rung, divided by the speed-up.",
        f"Quality of {first.examples:,} rows held out of the training{seen}; if the original was fine-tuned on them, "
        f"or its epoch chosen by them, it is worse on others. With the {lost} the 95 % interval of the paired "
        "difference; p: the paired test of no difference from the original. Neither is corrected for several models.",
    ]
    if any(rung.runtime != "torch" for rung in rungs):
        own_notes[:0] = [
            f"Run by {_by_value(rungs, _runtime)}, and the original by torch: speed, quality and MB are those of the "
            "exported models, in the directory onnx of each rung, not of the weights beside it in torch."
        ]
    own_notes += [f"{rung.name}: {note}" for rung in rungs for note in rung.notes]
    return Table(list(zip(*table, strict=True)), f"<{'>' * (len(table) - 2)}<", [*own_notes, *notes])


def _runtime(rung: Rung) -> str:
    return {"torch": "torch", "onnx": "ONNX Runtime in float32", "onnx-int8": "ONNX Runtime in int8"}[rung.runtime]


def _by_value(rungs: Sequence[Rung], read: Callable[[Rung], str]) -> str:
    """Return what all rungs have; where they differ, the names of the rungs behind each value."""
    names: dict[str, list[str]] = {}
    for rung in rungs:
        names.setdefault(read(rung), []).append(rung.name)
    return " and ".join(value if len(names) == 1 else f"{value} ({', '.join(own)})" for value, own in names.items())


def _as_points(loss: float) -> str:
    return f"{100 * loss:.2f}"


def _read_measurement(values: Mapping[str, Any]) -> Measurement:
    own = {one.name: values[one.name] for one in fields(Measurement)}
    own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
    own["passes"] = tuple(_record(ForwardPass, one) for one in values["passes"])
    own["mcnemar"] = values["mcnemar"] and _record(McNemar, values["mcnemar"])
    own["sign_flip"] = values["sign_flip"] and _record(SignFlip, values["sign_flip"])
    return Measurement(**own)


def _record(kind: Any, values: Mapping[str, Any]) -> Any:
    own = {one.name: values[one.name] for one in fields(kind) if one.name in values}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})
