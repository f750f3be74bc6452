"""What was measured of one model or of several, and the tables, pictures and the page that show it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from hfcompress.errors import CompressionError
from hfcompress.plots import Point, draw_points, pyplot, svg
from hfcompress.quality import McNemar, median_interval
from hfcompress.tables import align, html, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MB = 1e6
_SURE = 0.99  # of a speed-up; rounds are not quite independent of each other, so 95 % would claim too much
_APART = 1.02  # sizes further apart than this are drawn apart

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2em auto;
  padding: 0 1em }
.wide { overflow-x: auto }
table { font-variant-numeric: tabular-nums; white-space: nowrap }
th { border-bottom: 1px solid #888 }
figure { margin: 1em 0 }
svg { max-width: 100%; height: auto }
figcaption, li { color: #444 }
</style>
</head>
<body>
<h1>$title</h1>
<div class="wide">
$summary
</div>
$figures
<h2>All figures</h2>
<p>In brackets: as a ratio to the first model, unless said otherwise.</p>
<div class="wide">
$table
</div>
<h2>How to read this</h2>
<ul>
$notes
</ul>
</body>
</html>
""")


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass over one batch, timed again and again.

    Attributes:
        batch_size: Examples in the batch.
        tokens: Tokens of each, padding included.
        flops: Floating-point operations of the matrix products, attention included: two for a multiplication with
            addition. Softmax, norms and other operations by element are not counted; zeros are, like other numbers.
        peak_bytes: Bytes of the model, its inputs and what the pass itself allocated, at the worst moment.
        times_ms: Milliseconds of each timed pass, in the order of the rounds.
    """

    batch_size: int
    tokens: int
    flops: int
    peak_bytes: int
    times_ms: tuple[float, ...]

    @property
    def latency_ms(self) -> float:
        """Median milliseconds of a pass."""
        return statistics.median(self.times_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """The first and the third quartile of those times."""
        if len(self.times_ms) == 1:
            return self.times_ms[0], self.times_ms[0]
        first, _, third = statistics.quantiles(self.times_ms, n=4, method="inclusive")
        return first, third

    @property
    def latency_iqr_ms(self) -> float:
        """Interquartile range of those times: their spread."""
        first, third = self.quartiles_ms
        return third - first

    @property
    def throughput(self) -> float:
        """Examples a second, at the median."""
        return 1000 * self.batch_size / self.latency_ms

    @property
    def label(self) -> str:
        """Batch size and length, for tables."""
        return f"{self.batch_size} x {self.tokens}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        derived = ("latency_ms", "latency_iqr_ms", "throughput")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one model. A value that could not be measured without inputs or labels is None.

    Attributes:
        parameters: Number of parameters; a shared one counts once.
        nonzeros: How many of them are not zero.
        zeros: How many of the prunable weights are zero.
        sparsity: The same as a fraction of the prunable weights (see `sparsity_report`).
        bytes: Bytes of the distinct tensors that ``save_pretrained`` writes. Zeros take as much as other numbers.
        bytes_packed: Bytes of them where each tensor is stored densely or as its non-zero values and the places of
            these, whichever is smaller; the size that ``save_compressed`` comes to within 2 %.
        bytes_in_memory: Bytes of the memory behind parameters and buffers.
        device: Where the model is.
        dtype: Of its floating-point parameters, several with a comma.
        threads: That torch uses on the CPU.
        passes: Forward passes, one for each batch size and length that was asked.
        examples: Labelled examples that the next values are about.
        accuracy: Fraction answered correctly.
        accuracy_interval: Its 95 % Wilson interval.
        f1: Of class 1 where there are two classes, else the mean over the classes (macro).
        cross_entropy: Mean of -log of the label's probability, in nats.
        calibration_error: Expected distance between confidence and accuracy, in 15 bins (Guo et al. 2017).
        agreement: Fraction of the examples answered like the reference: the first model of a comparison.
        mcnemar: Whether this model is really worse than the reference.
    """

    parameters: int
    nonzeros: int
    zeros: int
    sparsity: float
    bytes: int
    bytes_packed: int
    bytes_in_memory: int
    device: str
    dtype: str
    threads: int
    passes: tuple[ForwardPass, ...] = ()
    examples: int | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    f1: float | None = None
    cross_entropy: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None
    mcnemar: McNemar | None = None

    @property
    def batch_size(self) -> int | None:
        """Examples in the first of the passes."""
        return self.passes[0].batch_size if self.passes else None

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the first of the passes."""
        return self.passes[0].flops if self.passes else None

    @property
    def latency_ms(self) -> float | None:
        """Median milliseconds of the first of the passes."""
        return self.passes[0].latency_ms if self.passes else None

    @property
    def latency_iqr_ms(self) -> float | None:
        """Interquartile range of its times."""
        return self.passes[0].latency_iqr_ms if self.passes else None

    @property
    def throughput(self) -> float | None:
        """Examples a second in the first of the passes."""
        return self.passes[0].throughput if self.passes else None

    @property
    def peak_bytes(self) -> int | None:
        """Bytes at the worst moment of the first of the passes."""
        return self.passes[0].peak_bytes if self.passes else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        first = ("batch_size", "flops", "latency_ms", "latency_iqr_ms", "throughput", "peak_bytes")
        test = None if self.mcnemar is None else asdict(self.mcnemar) | {"verdict": self.mcnemar.verdict}
        found = asdict(self) | {name: getattr(self, name) for name in first}
        return found | {"mcnemar": test, "passes": [one.to_dict() for one in self.passes]}

    def __str__(self) -> str:
        return Comparison({"model": self}).to_text(verbose=bool(self.passes))


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the first model another one is.

    Attributes:
        ratio: Median over the rounds of the first model's time divided by this one's, of passes that followed closely.
        interval: Its 99 % interval (sign test), or None with fewer than eight rounds.
    """

    ratio: float
    interval: tuple[float, float] | None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 1: else a difference is within the noise, or there are too few rounds."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        return asdict(self) | {"shown": self.shown}

    def __str__(self) -> str:
        if self.shown:
            return f"{self.ratio:.2f}x"
        return f"{self.ratio:.2f}x, {'few rounds' if self.interval is None else 'noise'}"


@dataclass(frozen=True)
class Comparison:
    """Several models side by side; ratios are to the first. ``print`` shows the main figures, a notebook too.

    Attributes:
        rows: A `Measurement` a name, in the order given.
    """

    rows: dict[str, Measurement]

    def speedup(self, name: str, index: int = 0) -> Speedup | None:
        """Compare the time of a model's forward pass with that of the first model, round by round.

        Args:
            name: The model's name.
            index: Which of the passes.

        Returns:
            How many times as fast it is; None if one of the two was not timed.
        """
        passes = [row.passes[index : index + 1] for row in (self._first, self.rows[name])]
        if not all(passes):
            return None
        rounds = zip(*(one[0].times_ms for one in passes), strict=True)
        ratios = [first / this for first, this in rounds]
        return Speedup(statistics.median(ratios), median_interval(ratios, _SURE))

    def ratios(self, name: str) -> dict[str, float | None]:
        """Divide each figure of a model by that of the first; None where there is none, or it is zero."""
        return {figure: _ratio(getattr(self.rows[name], figure), getattr(self._first, figure)) for figure in _FIGURES}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        result = {}
        for name, row in self.rows.items():
            speedups = [self.speedup(name, index) for index in range(len(row.passes))]
            beside = {"ratios": self.ratios(name), "speedups": [one and one.to_dict() for one in speedups]}
            result[name] = row.to_dict() | beside
        return result

    def to_json(self) -> str:
        """Return the comparison as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the comparison as a table for a terminal.

        Args:
            verbose: Show all figures, absolute and as ratios to the first, a column a model; otherwise the main ones, a
                row a model.
        """
        rows, alignment = self._all_figures() if verbose else self._summary()
        return "\n".join([*align(rows, alignment), *self._notes(verbose)])

    def to_markdown(self, *, verbose: bool = False) -> str:
        """Return the comparison as a Markdown table; ``verbose`` as for `to_text`."""
        rows, alignment = self._all_figures() if verbose else self._summary()
        notes = [line for note in self._notes(verbose) for line in ("", note)]
        return "\n".join([*markdown(rows, alignment), *notes])

    def plot(self) -> tuple[Figure, tuple[Axes, ...]]:
        """Draw accuracy against milliseconds and against bytes, with intervals and the Pareto front.

        Bytes are those of a packed file; where a dense file is larger, a hollow mark says so. Models without accuracy
        are left out, and so is the first picture if none was timed.

        Returns:
            The figure and its axes, from left to right.

        Raises:
            CompressionError: The accuracy of no model was measured.
            ImportError: matplotlib is not installed: ``pip install 'hfcompress[plots]'``.
        """
        pictures = self._pictures()
        if not pictures:
            raise CompressionError("No accuracy was measured, so there is nothing to draw; pass inputs with labels.")
        plt = pyplot()
        figure, grid = plt.subplots(
            1, len(pictures), figsize=(5.5 * len(pictures), 4.8), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (label, points, hollow) in zip(grid[0], pictures, strict=True):
            front = pareto_front({point.name: (point.cost, point.accuracy) for point in points})
            draw_points(axes, points, front, label, hollow)
        for axes in grid[0][1:]:
            axes.set_ylabel("")
        handles, names = grid[0][-1].get_legend_handles_labels()  # the last picture has all models, and what is hollow
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9, frameon=False)
        return figure, tuple(grid[0])

    def to_html(self, title: str = "Models compared") -> str:
        """Return a page of its own: tables and pictures in one file that needs no network.

        Args:
            title: Heading of the page.

        Raises:
            ImportError: There is a picture to draw, and matplotlib is not installed: as for `plot`.

        Example:
            ``Path("comparison.html").write_text(comparison.to_html(), encoding="utf-8")``
        """
        figures = ""
        if self._pictures():
            caption = "Accuracy against time and size. On the Pareto front no other model is better at no higher cost."
            figures = f"<figure>\n{svg(self.plot()[0])}\n<figcaption>{caption}</figcaption>\n</figure>"
        return _PAGE.substitute(
            title=escape(title),
            summary=html(*self._summary()),
            figures=figures,
            table=html(*self._all_figures()),
            notes="\n".join(f"<li>{escape(note)}</li>" for note in self._notes(verbose=True)),
        )

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "\n".join([html(*self._summary()), *(f"<p>{escape(note)}</p>" for note in self._notes(verbose=False))])

    @property
    def _first(self) -> Measurement:
        return next(iter(self.rows.values()))

    def _summary(self) -> tuple[list[tuple[str, ...]], str]:
        """The main figures, a row a model, without the columns that nobody measured."""
        table: list[tuple[str, ...]] = [
            (
                *("model", "parameters", "sparsity", "MB", "MB packed", "GFLOPs", "ms a batch", "speed-up"),
                *("accuracy", "95 % interval", "against first"),
            )
        ]
        anything = any(row.passes for row in self.rows.values())
        for name, row in self.rows.items():
            test = row.mcnemar
            table.append(
                (
                    name,
                    f"{row.parameters:,}",
                    f"{row.sparsity:.1%}",
                    f"{row.bytes / _MB:.1f}",
                    f"{row.bytes_packed / _MB:.1f}" if anything else "-",
                    _show(row.flops, lambda flops: _number(flops / 1e9)),
                    _show(row.latency_ms, lambda ms: f"{ms:.1f}"),
                    "1.00x" if row is self._first and row.passes else _show(self.speedup(name), str),
                    _show(row.accuracy, lambda accuracy: f"{accuracy:.3f}"),
                    _show(row.accuracy_interval, lambda ends: f"{ends[0]:.3f} to {ends[1]:.3f}"),
                    "-" if test is None else f"{test.verdict} (p {_p_value(test)})",
                )
            )
        measured = [index for index, column in enumerate(zip(*table[1:], strict=True)) if set(column) != {"-"}]
        return [tuple(row[index] for index in measured) for row in table], "<" + ">" * (len(measured) - 1)

    def _all_figures(self) -> tuple[list[tuple[str, ...]], str]:
        """All figures, a column a model, without the rows that nobody measured."""
        models = list(self.rows.values())
        table: list[tuple[str, ...]] = [("", *self.rows)]

        def add(label: str, values: Iterable[Any], form: Callable[[Any], str], *, ratio: bool = True) -> None:
            values = list(values)
            cells = [_show(value, form) for value in values]
            if ratio:
                beside = [_show(_ratio(value, values[0]), lambda r: f" ({r:.3f}x)") for value in values[1:]]
                cells[1:] = [cell + ("" if r == "-" else r) for cell, r in zip(cells[1:], beside, strict=True)]
            if set(cells) != {"-"}:
                table.append((label, *cells))

        add("parameters", (row.parameters for row in models), "{:,}".format)
        add("parameters that are not zero", (row.nonzeros for row in models), "{:,}".format)
        add("zeros of the prunable weights", (row.sparsity for row in models), "{:.2%}".format, ratio=False)
        for label, figure in _SIZES.items():
            add(label, (getattr(row, figure) for row in models), lambda size: _number(size / _MB))
        for index in range(max(len(row.passes) for row in models)):
            ones = [row.passes[index] if index < len(row.passes) else None for row in models]
            labels = list(dict.fromkeys(one.label for one in ones if one))
            of = f", {' or '.join(labels)}"
            add(f"GFLOPs{of}", (one and one.flops / 1e9 for one in ones), _number)
            add(f"ms, median{of}", (one and one.latency_ms for one in ones), "{:.2f}".format)
            quartiles = (one and one.quartiles_ms for one in ones)
            add(f"ms, quartiles{of}", quartiles, lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}", ratio=False)
            speedups = [None if row is self._first else self.speedup(name, index) for name, row in self.rows.items()]
            add(f"speed-up{of}", speedups, str, ratio=False)
            intervals = (one and one.interval for one in speedups)
            add(f"speed-up, 99 % interval{of}", intervals, lambda i: f"{i[0]:.2f}x to {i[1]:.2f}x", ratio=False)
            add(f"examples a second{of}", (one and one.throughput for one in ones), _number)
            add(f"peak memory in MB{of}", (one and one.peak_bytes / _MB for one in ones), _number)
        add("labelled examples", (row.examples for row in models), "{:,}".format, ratio=False)
        add("accuracy", (row.accuracy for row in models), "{:.3f}".format)
        ends = (row.accuracy_interval for row in models)
        add("accuracy, 95 % interval", ends, lambda i: f"{i[0]:.3f} to {i[1]:.3f}", ratio=False)
        for label, figure in _QUALITIES.items():
            add(label, (getattr(row, figure) for row in models), "{:.3f}".format)
        add("answers like the reference", (row.agreement for row in models), "{:.1%}".format, ratio=False)
        tests = [row.mcnemar for row in models]
        pairs = "only the reference right, only this one right"
        add(pairs, tests, lambda test: f"{test.only_first}, {test.only_this}", ratio=False)
        add("McNemar's test", tests, lambda test: f"{test.verdict}, p {_p_value(test)}", ratio=False)
        for label in ("device", "dtype", "threads"):
            add(label, (getattr(row, label) for row in models), str, ratio=False)
        return table, "<" + ">" * len(models)

    def _notes(self, verbose: bool) -> list[str]:
        timed = [row for row in self.rows.values() if row.passes]
        notes = []
        if timed:
            where = dict.fromkeys(f"{row.device}, threads: {row.threads}, {row.dtype}" for row in timed)
            batches = dict.fromkeys(one.label for row in timed for one in row.passes[: None if verbose else 1])
            turns = ", the models in turns" if len(timed) > 1 else ""
            notes.append(
                f"Time: median of forward passes after warming up, {len(timed[0].passes[0].times_ms)} of each{turns}; "
                f"batches of {' or '.join(batches)} tokens; on {' or '.join(where)}."
            )
            if verbose:
                notes.append(
                    "FLOPs: of the matrix products, attention included, two for a multiplication with addition; "
                    "softmax, norms and other operations by element are not counted. Peak memory: the model, its "
                    "inputs and what a pass allocates. Packed: non-zero values and their places, or dense where that "
                    "is smaller."
                )
            if any(row.zeros for row in timed):
                notes.append(
                    "Zeros save no FLOPs and no time here: dense kernels multiply a zero like any other number."
                )
        others = [name for name, row in self.rows.items() if row is not self._first]
        for speedup, meaning in (
            (", noise", "the interval of the speed-up holds 1: a difference is not shown"),
            (", few rounds", "fewer than eight rounds cannot show a difference"),
        ):
            if any(str(self.speedup(name)).endswith(speedup) for name in others):
                notes.append(f"{speedup[2:]}: {meaning}.")
        if any(row.mcnemar for row in self.rows.values()):
            notes.append(
                "Against first: McNemar's test of the answers to the same examples; worse or better at p < 0.05, not "
                "corrected for several models."
            )
        return notes

    def _pictures(self) -> list[tuple[str, list[Point], str | None]]:
        """Label of the cost, the models, and what is hollow, for each picture that can be drawn."""
        answered = {name: row for name, row in self.rows.items() if row.accuracy is not None}
        times, sizes = [], []
        for name, row in answered.items():
            accuracy, interval = row.accuracy or 0.0, row.accuracy_interval or (0.0, 0.0)  # which mypy cannot know
            if row.passes:
                one = row.passes[0]
                ends = median_interval(one.times_ms) or one.quartiles_ms
                times.append(Point(name, one.latency_ms, accuracy, interval, ends))
            dense = row.bytes / _MB if row.bytes > _APART * row.bytes_packed else None
            sizes.append(Point(name, row.bytes_packed / _MB, accuracy, interval, other_cost=dense))
        if not sizes:
            return []
        by_size = ("MB on disk, packed", sizes, "the same, saved dense")
        if not times:
            return [by_size]
        batches = " or ".join(dict.fromkeys(row.passes[0].label for row in answered.values() if row.passes))
        return [(f"milliseconds a batch of {batches} tokens, 95 % interval", times, None), by_size]


def pareto_front(models: dict[str, tuple[float, float]]) -> list[str]:
    """Name the models that no other one beats: none is as cheap and more accurate, or as accurate and cheaper.

    Args:
        models: By name, a cost (less is better) and an accuracy (more is better).

    Example:
        >>> pareto_front({"large": (10.0, 0.9), "small": (2.0, 0.8), "waste": (11.0, 0.85)})
        ['large', 'small']
    """

    def beaten(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in models.values())

    return [name for name, one in models.items() if not beaten(*one)]


_SIZES = {
    "MB in memory": "bytes_in_memory",
    "MB on disk, dense": "bytes",
    "MB on disk, packed": "bytes_packed",
}
_QUALITIES = {"F1": "f1", "cross-entropy": "cross_entropy", "calibration error": "calibration_error"}
_FIGURES = (
    *("parameters", "nonzeros", *_SIZES.values(), "flops", "latency_ms", "throughput", "peak_bytes"),
    *("accuracy", *_QUALITIES.values()),
)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _show(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _p_value(test: McNemar) -> str:
    return f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001"
