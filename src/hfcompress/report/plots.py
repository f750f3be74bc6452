"""Draws sparsity, and quality against a cost, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable with any kind of colour vision, without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX<>p"
_TEXT = 9
_MARK = 6  # characters of a legend that a mark and the space around it take


@dataclass(frozen=True)
class Point:
    """A model in a picture of quality against a cost.

    Attributes:
        name: Name of the model.
        cost: Place on the horizontal axis.
        quality: Place on the vertical axis.
        quality_interval: Confidence interval of it.
        cost_interval: Confidence interval of the cost, or None if the cost is exact.
        other_cost: A second cost, drawn as a hollow mark, or None.
    """

    name: str
    cost: float
    quality: float
    quality_interval: tuple[float, float]
    cost_interval: tuple[float, float] | None = None
    other_cost: float | None = None


def pyplot() -> Any:
    """Import matplotlib's pyplot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'hfcompress[plots]'") from error
    return plt


def draw_sparsity(
    axes: Axes | None, bars: Mapping[str, Mapping[str, float]], kinds: Sequence[str], total: float
) -> tuple[Figure, Axes]:
    """Draw sparsities as horizontal bars, from top to bottom.

    Args:
        axes: Axes to draw on; those of a new figure if None.
        bars: By name of a layer or matrix, the sparsity of each kind of block in it.
        kinds: All kinds, in the order of the legend.
        total: Sparsity of all prunable weights, drawn as a line.
    """
    plt = pyplot()
    if axes is None:
        height = 1.6 + 0.22 * sum(map(len, bars.values()))
        axes = plt.subplots(figsize=(7.5, height), layout="constrained")[1]
    ticks, place = [], 0.0
    for name, by_kind in bars.items():
        ticks.append((place + (len(by_kind) - 1) / 2, name))
        for kind, sparsity in by_kind.items():
            axes.barh(place, 100 * sparsity, height=0.9, color=COLOURS[kinds.index(kind) % len(COLOURS)])
            place += 1
        place += 0.4
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks], fontsize=_TEXT)
    axes.set_ylim(place - 0.4 - 0.2, -0.8)
    axes.set_xlim(left=0)
    line = axes.axvline(100 * total, color="#444444", linestyle="--", linewidth=1)
    axes.set_xlabel("zeros, % of the weights")
    axes.xaxis.grid(alpha=0.3)
    axes.set_axisbelow(True)
    figure: Any = axes.figure
    patches = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[index % len(COLOURS)]) for index in range(len(kinds))]
    entries = [*patches, line], [*kinds, f"all prunable weights: {total:.2%}"]
    axes.legend(*entries, fontsize=_TEXT, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure, axes


def draw_points(
    axes: Axes,
    points: Sequence[Point],
    front: Sequence[str],
    labels: tuple[str, str],
    hollow: str | None,
    *,
    lower_is_better: bool = False,
) -> None:
    """Draw models by cost and quality, with their intervals and the Pareto front.

    Args:
        axes: Axes to draw on.
        points: The models.
        front: Names of the models on the front.
        labels: Labels of the horizontal and the vertical axis.
        hollow: Legend of the second cost, or None.
        lower_is_better: Whether a lower quality is a better one.
    """
    for index, point in enumerate(points):
        marker = _MARKERS[index % len(_MARKERS)]
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "markersize": 8}
        low, high = point.quality_interval
        left, right = point.cost_interval or (point.cost, point.cost)
        if point.other_cost is not None:
            axes.plot([point.cost, point.other_cost], [point.quality] * 2, ":", linewidth=1, color=style["color"])
            axes.plot([point.other_cost], [point.quality], marker, markerfacecolor="white", **style)
        y_errors = [[point.quality - low], [high - point.quality]]
        x_errors = [[point.cost - left], [right - point.cost]]
        style |= {"fmt": marker, "capsize": 3, "alpha": 0.85, "label": _escape(point.name)}
        axes.errorbar(point.cost, point.quality, y_errors, x_errors, **style)
    steps = sorted((point.cost, point.quality) for point in points if point.name in front)
    costs = [cost for cost, _ in steps]
    # Of models whose difference is not shown, the better one may be the cheaper one: the line follows the best so far.
    best = list(itertools.accumulate((quality for _, quality in steps), min if lower_is_better else max))
    axes.step(costs, best, where="post", color="#888888", linewidth=1, zorder=0, label="Pareto front")
    if hollow is not None and any(point.other_cost is not None for point in points):
        axes.plot([], [], "o", color="#777777", markerfacecolor="white", markersize=8, label=hollow)
    axes.set(xlabel=textwrap.fill(labels[0], 54), ylabel=f"{labels[1]}, 95 % interval")
    axes.set_xlim(0, 1.08 * axes.dataLim.x1)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def draw_legend(figure: Figure, axes: Axes, width: int, **place: Any) -> float:
    """Draw the legend of a picture beside or below it, in as many columns as fit, and return its height in inches.

    Args:
        figure: Where to draw.
        axes: The picture.
        width: Characters that fit beside each other.
        **place: Where in the figure, as for ``Figure.legend``.
    """
    handles, names = axes.get_legend_handles_labels()
    names = [textwrap.fill(name, width - _MARK) or name for name in names]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(4, len(names), width // (longest + _MARK)))
    figure.legend(handles, names, ncols=columns, fontsize=_TEXT, frameon=False, **place)
    lines = [len(name.splitlines()) for name in names]
    height = max(sum(column) for column in (lines[start::columns] for start in range(columns)))
    return 1.5 * _TEXT / 72 * height


def _escape(name: str) -> str:
    """Escape what matplotlib does not show literally: $ starts a formula, and a label that begins with _ is hidden."""
    label = name.replace("$", r"\$")
    return label if label and not label.startswith("_") else f" {label}"


def svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element, and close it.

    Black and white are those of the page around it, ``currentColor`` and ``--background``, which may be a dark one.
    """
    plt, text = pyplot(), io.StringIO()
    with plt.rc_context({"svg.hashsalt": "hfcompress"}):  # for the same text from the same figure
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return element.replace("#000000", "currentColor").replace("#ffffff", "var(--background, #ffffff)")
