"""Makes the pictures and the HTML page of several measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfcompress.errors import CompressionError
from hfcompress.report.intervals import median_interval
from hfcompress.report.measurements import MB, Measurement, all_figures, explain, main_figures, main_quality
from hfcompress.report.pareto import SAME_SIZE, Cost, pareto_front
from hfcompress.report.plots import Point, draw_legend, draw_points, pyplot, svg
from hfcompress.report.tables import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODELS_A_TABLE = 6  # beside each other on the page, whose width this fits


@dataclass(frozen=True)
class _Panel:
    """A picture of quality against one cost: its models, and the names of those on the Pareto front."""

    cost: Cost
    label: str
    points: list[Point]
    front: list[str]
    hollow: str | None = None


def page(models: Mapping[str, Measurement], title: str) -> str:
    """Return an HTML page with tables, notes and pictures."""
    panels = _panels(models)
    return render(
        "comparison.html.j2",
        title=title,
        summary=main_figures(models),
        pictures=_draw_apart(models, panels),
        fronts={panel.cost: panel.front for panel in panels},
        quality=main_quality(list(models.values()))[0],
        all_figures=all_figures(models).split(_MODELS_A_TABLE),
        notes=explain(models, verbose=True),
    )


def draw(models: Mapping[str, Measurement]) -> tuple[Figure, tuple[Axes, ...]]:
    """Draw the pictures beside each other, with one legend."""
    panels = _panels(models)
    if not panels:
        raise CompressionError("No accuracy was measured, so there is nothing to draw; pass inputs with labels.")
    figure, grid = pyplot().subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid[0], panels, strict=True):
        _draw_panel(axes, panel, models)
    for axes in grid[0][1:]:
        axes.set_ylabel("")
    # The last picture has all models and the hollow mark.
    figure.set_figheight(4.4 + draw_legend(figure, grid[0][-1], 75 * len(panels), loc="outside lower center"))
    return figure, tuple(grid[0])


def draw_apart(models: Mapping[str, Measurement]) -> list[str]:
    """Return each picture, and the legend, as SVG, so small that a telephone shows them in full size."""
    return _draw_apart(models, _panels(models))


def _draw_apart(models: Mapping[str, Measurement], panels: list[_Panel]) -> list[str]:
    if not panels:
        return []
    pictures = []
    for panel in panels:
        figure, axes = pyplot().subplots(figsize=(4.5, 3.6), layout="constrained")
        _draw_panel(axes, panel, models)
        if panel is panels[-1]:
            legend = pyplot().figure(figsize=(1, 1))
            draw_legend(legend, axes, 34, loc="upper left")
        pictures.append(svg(figure))
    return [*pictures, svg(legend)]


def _draw_panel(axes: Axes, panel: _Panel, models: Mapping[str, Measurement]) -> None:
    quality, _, lower_is_better = main_quality(list(models.values()))
    labels = panel.label, quality + (", lower is better" if lower_is_better else "")
    draw_points(axes, panel.points, panel.front, labels, panel.hollow, lower_is_better=lower_is_better)


def _panels(models: Mapping[str, Measurement]) -> list[_Panel]:
    """Return what each picture shows; the one of times is left out where no model was timed."""
    times, sizes, batches = [], [], []
    _, figure, _ = main_quality(list(models.values()))
    for name, one in models.items():
        quality = getattr(one, figure)
        if quality is None:
            continue
        interval = getattr(one, f"{figure}_interval") or (quality, quality)
        if one.passes:
            timed = one.passes[0]
            ends = median_interval(timed.times_ms) or timed.quartiles_ms
            times.append(Point(name, timed.latency_ms, quality, interval, ends))
            batches.append(timed.label)
        dense = one.bytes / MB if one.bytes > SAME_SIZE * one.bytes_packed else None
        sizes.append(Point(name, one.bytes_packed / MB, quality, interval, other_cost=dense))
    panels = []
    if times:
        label = f"milliseconds a batch of {' or '.join(dict.fromkeys(batches))} tokens, 95 % interval"
        panels.append(_Panel("time", label, times, pareto_front(models, "time")))
    if sizes:
        front = pareto_front(models, "size")
        panels.append(_Panel("size", "MB on disk, packed", sizes, front, "the same, saved dense"))
    return panels
