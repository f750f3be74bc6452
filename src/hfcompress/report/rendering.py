"""Makes the pictures and the HTML page of several measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hfcompress.errors import CompressionError
from hfcompress.report.intervals import median_interval
from hfcompress.report.measurements import MB, Measurement, all_figures, explain, main_figures, main_quality
from hfcompress.report.plots import Point, draw_points, pyplot, svg
from hfcompress.report.tables import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSE_IS_LARGER = 1.02  # times the packed size, from which on both sizes are drawn


def page(models: Mapping[str, Measurement], title: str) -> str:
    """Return an HTML page with tables, notes and pictures."""
    return render(
        "comparison.html.j2",
        title=title,
        summary=main_figures(models),
        picture=svg(draw(models)[0]) if _panels(models) else None,
        quality=main_quality(list(models.values()))[0].capitalize(),
        all_figures=all_figures(models),
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
    quality, _, lower_is_better = main_quality(list(models.values()))
    sign = -1 if lower_is_better else 1
    for axes, (label, points, hollow) in zip(grid[0], panels, strict=True):
        front = pareto_front({point.name: (point.cost, sign * point.quality) for point in points})
        draw_points(axes, points, front, (label, quality + (", lower is better" if lower_is_better else "")), hollow)
    for axes in grid[0][1:]:
        axes.set_ylabel("")
    handles, names = grid[0][-1].get_legend_handles_labels()  # the last picture has all models and the hollow mark
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9, frameon=False)
    return figure, tuple(grid[0])


def _panels(models: Mapping[str, Measurement]) -> list[tuple[str, list[Point], str | None]]:
    """Return the label of the cost, the models and the meaning of a hollow mark, for each picture."""
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
        dense = one.bytes / MB if one.bytes > _DENSE_IS_LARGER * one.bytes_packed else None
        sizes.append(Point(name, one.bytes_packed / MB, quality, interval, other_cost=dense))
    by_time = f"milliseconds a batch of {' or '.join(dict.fromkeys(batches))} tokens, 95 % interval"
    panels = [(by_time, times, None), ("MB on disk, packed", sizes, "the same, saved dense")]
    return [panel for panel in panels if panel[1]]


def pareto_front(models: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the models that no other one dominates: as cheap and more accurate, or as good and cheaper.

    Args:
        models: By name, a cost (less is better) and an accuracy (more is better).

    Example:
        >>> pareto_front({"large": (10.0, 0.9), "small": (2.0, 0.8), "waste": (11.0, 0.85)})
        ['large', 'small']
    """

    def dominated(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in models.values())

    return [name for name, point in models.items() if not dominated(*point)]
