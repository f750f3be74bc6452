"""How a comparison is shown: the rows of its tables, what they need said, its pictures and its page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from hfcompress.errors import CompressionError
from hfcompress.report.intervals import McNemar, median_interval
from hfcompress.report.plots import Point, draw_points, pyplot, svg
from hfcompress.report.tables import html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hfcompress.report.comparison import Comparison

_MB = 1e6
_APART = 1.02  # sizes further apart than this are drawn apart
SIZES = {
    "MB in memory": "bytes_in_memory",
    "MB on disk, dense": "bytes",
    "MB on disk, packed": "bytes_packed",
}
QUALITIES = {"F1": "f1", "cross-entropy": "cross_entropy", "calibration error": "calibration_error"}

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


def summary(comparison: Comparison) -> tuple[list[tuple[str, ...]], str]:
    """The main figures, a row a model, without the columns that nobody measured."""
    table: list[tuple[str, ...]] = [
        (
            *("model", "parameters", "sparsity", "MB", "MB packed", "GFLOPs", "ms a batch", "speed-up"),
            *("accuracy", "95 % interval", "against first"),
        )
    ]
    anything = any(row.passes for row in comparison.rows.values())
    for name, row in comparison.rows.items():
        test = row.mcnemar
        table.append(
            (
                name,
                f"{row.parameters:,}",
                f"{row.sparsity:.1%}",
                _megabytes(row.bytes),
                _megabytes(row.bytes_packed) if anything else "-",
                _show(row.flops, lambda flops: _number(flops / 1e9)),
                _show(row.latency_ms, lambda ms: f"{ms:.1f}"),
                "1.00x" if row is comparison.first and row.passes else _show(comparison.speedup(name), str),
                _show(row.accuracy, lambda accuracy: f"{accuracy:.3f}"),
                _show(row.accuracy_interval, lambda ends: f"{ends[0]:.3f} to {ends[1]:.3f}"),
                "-" if test is None else f"{test.verdict} (p {_p_value(test)})",
            )
        )
    measured = [index for index, column in enumerate(zip(*table[1:], strict=True)) if set(column) != {"-"}]
    return [tuple(row[index] for index in measured) for row in table], "<" + ">" * (len(measured) - 1)


def all_figures(comparison: Comparison) -> tuple[list[tuple[str, ...]], str]:
    """All figures, a column a model, without the rows that nobody measured."""
    models = list(comparison.rows.values())
    table: list[tuple[str, ...]] = [("", *comparison.rows)]

    def add(label: str, values: Iterable[Any], form: Callable[[Any], str], *, ratios: bool = True) -> None:
        values = list(values)
        cells = [_show(value, form) for value in values]
        if ratios:
            beside = [_show(ratio(value, values[0]), lambda r: f" ({r:.3f}x)") for value in values[1:]]
            cells[1:] = [cell + ("" if r == "-" else r) for cell, r in zip(cells[1:], beside, strict=True)]
        if set(cells) != {"-"}:
            table.append((label, *cells))

    add("parameters", (row.parameters for row in models), "{:,}".format)
    add("parameters that are not zero", (row.nonzeros for row in models), "{:,}".format)
    add("zeros of the prunable weights", (row.sparsity for row in models), "{:.2%}".format, ratios=False)
    for label, figure in SIZES.items():
        add(label, (getattr(row, figure) for row in models), lambda size: _number(size / _MB))
    for index in range(max(len(row.passes) for row in models)):
        ones = [row.passes[index] if index < len(row.passes) else None for row in models]
        labels = list(dict.fromkeys(one.label for one in ones if one))
        of = f", {' or '.join(labels)}"
        add(f"GFLOPs{of}", (one and one.flops / 1e9 for one in ones), _number)
        add(f"ms, median{of}", (one and one.latency_ms for one in ones), "{:.2f}".format)
        quartiles = (one and one.quartiles_ms for one in ones)
        add(f"ms, quartiles{of}", quartiles, lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}", ratios=False)
        speedups = [
            None if row is comparison.first else comparison.speedup(name, index)
            for name, row in comparison.rows.items()
        ]
        add(f"speed-up{of}", speedups, str, ratios=False)
        intervals = (one and one.interval for one in speedups)
        add(f"speed-up, 99 % interval{of}", intervals, lambda i: f"{i[0]:.2f}x to {i[1]:.2f}x", ratios=False)
        add(f"examples a second{of}", (one and one.throughput for one in ones), _number)
        add(f"peak memory in MB{of}", (one and one.peak_bytes / _MB for one in ones), _number)
    add("labelled examples", (row.examples for row in models), "{:,}".format, ratios=False)
    add("accuracy", (row.accuracy for row in models), "{:.3f}".format)
    ends = (row.accuracy_interval for row in models)
    add("accuracy, 95 % interval", ends, lambda i: f"{i[0]:.3f} to {i[1]:.3f}", ratios=False)
    for label, figure in QUALITIES.items():
        add(label, (getattr(row, figure) for row in models), "{:.3f}".format)
    add("answers like the reference", (row.agreement for row in models), "{:.1%}".format, ratios=False)
    tests = [row.mcnemar for row in models]
    pairs = "only the reference right, only this one right"
    add(pairs, tests, lambda test: f"{test.only_first}, {test.only_this}", ratios=False)
    add("McNemar's test", tests, lambda test: f"{test.verdict}, p {_p_value(test)}", ratios=False)
    for label in ("device", "dtype", "threads"):
        add(label, (getattr(row, label) for row in models), str, ratios=False)
    return table, "<" + ">" * len(models)


def notes(comparison: Comparison, verbose: bool) -> list[str]:
    """Say what a reader of the table must know."""
    timed = [row for row in comparison.rows.values() if row.passes]
    lines = []
    if timed:
        where = dict.fromkeys(f"{row.device}, threads: {row.threads}, {row.dtype}" for row in timed)
        batches = dict.fromkeys(one.label for row in timed for one in row.passes[: None if verbose else 1])
        turns = ", the models in turns" if len(timed) > 1 else ""
        lines.append(
            f"Time: median of forward passes after warming up, {len(timed[0].passes[0].times_ms)} of each{turns}; "
            f"batches of {' or '.join(batches)} tokens; on {' or '.join(where)}."
        )
        if verbose:
            lines.append(
                "FLOPs: of the matrix products, attention included, two for a multiplication with addition; "
                "softmax, norms and other operations by element are not counted. Peak memory: the model, its "
                "inputs and what a pass allocates. Packed: non-zero values and their places, or dense where that "
                "is smaller."
            )
        if any(row.zeros for row in timed):
            lines.append("Zeros save no FLOPs and no time here: dense kernels multiply a zero like any other number.")
    others = [name for name, row in comparison.rows.items() if row is not comparison.first]
    for speedup, meaning in (
        (", noise", "the interval of the speed-up holds 1: a difference is not shown"),
        (", few rounds", "fewer than eight rounds cannot show a difference"),
    ):
        if any(str(comparison.speedup(name)).endswith(speedup) for name in others):
            lines.append(f"{speedup[2:]}: {meaning}.")
    if any(row.mcnemar for row in comparison.rows.values()):
        lines.append(
            "Against first: McNemar's test of the answers to the same examples; worse or better at p < 0.05, not "
            "corrected for several models."
        )
    return lines


def pictures(comparison: Comparison) -> list[tuple[str, list[Point], str | None]]:
    """Label of the cost, the models, and what is hollow, for each picture that can be drawn."""
    answered = {name: row for name, row in comparison.rows.items() if row.accuracy is not None}
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


def draw(comparison: Comparison) -> tuple[Figure, tuple[Axes, ...]]:
    """Draw the pictures beside each other, with one legend."""
    panels = pictures(comparison)
    if not panels:
        raise CompressionError("No accuracy was measured, so there is nothing to draw; pass inputs with labels.")
    plt = pyplot()
    figure, grid = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (label, points, hollow) in zip(grid[0], panels, strict=True):
        front = pareto_front({point.name: (point.cost, point.accuracy) for point in points})
        draw_points(axes, points, front, label, hollow)
    for axes in grid[0][1:]:
        axes.set_ylabel("")
    handles, names = grid[0][-1].get_legend_handles_labels()  # the last picture has all models, and what is hollow
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9, frameon=False)
    return figure, tuple(grid[0])


def page(comparison: Comparison, title: str) -> str:
    """Lay out the HTML page."""
    figures = ""
    if pictures(comparison):
        caption = "Accuracy against time and size. On the Pareto front no other model is better at no higher cost."
        figures = f"<figure>\n{svg(draw(comparison)[0])}\n<figcaption>{caption}</figcaption>\n</figure>"
    return _PAGE.substitute(
        title=escape(title),
        summary=html(*summary(comparison)),
        figures=figures,
        table=html(*all_figures(comparison)),
        notes="\n".join(f"<li>{escape(note)}</li>" for note in notes(comparison, verbose=True)),
    )


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


def ratio(value: float | None, base: float | None) -> float | None:
    """Divide, where there is something to divide by."""
    return None if value is None or not base else value / base


def _show(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _megabytes(size: int) -> str:
    return f"{size / _MB:.1f}" if size >= _MB else _number(size / _MB)


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _p_value(test: McNemar) -> str:
    return f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001"
