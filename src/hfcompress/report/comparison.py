"""What was measured of one model or of several, side by side."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from hfcompress.report.intervals import median_interval
from hfcompress.report.measurements import Measurement, Speedup
from hfcompress.report.rendering import QUALITIES, SIZES, all_figures, draw, notes, page, ratio, summary
from hfcompress.report.tables import align, html, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = (
    *("parameters", "nonzeros", *SIZES.values(), "flops", "latency_ms", "throughput", "peak_bytes"),
    *("accuracy", *QUALITIES.values()),
)
_SURE = 0.99  # of a speed-up; rounds are not quite independent of each other, so 95 % would claim too much


@dataclass(frozen=True)
class Comparison:
    """Several models side by side; ratios are to the first. ``print`` shows the main figures, a notebook too.

    Attributes:
        rows: A `Measurement` a name, in the order given.
    """

    rows: dict[str, Measurement]

    @property
    def first(self) -> Measurement:
        """The model that the others are compared with."""
        return next(iter(self.rows.values()))

    def speedup(self, name: str, index: int = 0) -> Speedup | None:
        """Compare the time of a model's forward pass with that of the first model, round by round.

        Args:
            name: The model's name.
            index: Which of the passes.

        Returns:
            How many times as fast it is; None if one of the two was not timed.
        """
        passes = [row.passes[index : index + 1] for row in (self.first, self.rows[name])]
        if not all(passes):
            return None
        rounds = zip(*(one[0].times_ms for one in passes), strict=True)
        ratios = [first / this for first, this in rounds]
        return Speedup(statistics.median(ratios), median_interval(ratios, _SURE))

    def ratios(self, name: str) -> dict[str, float | None]:
        """Divide each figure of a model by that of the first; None where there is none, or it is zero."""
        return {figure: ratio(getattr(self.rows[name], figure), getattr(self.first, figure)) for figure in _FIGURES}

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
        rows, alignment = all_figures(self) if verbose else summary(self)
        return "\n".join([*align(rows, alignment), *notes(self, verbose)])

    def to_markdown(self, *, verbose: bool = False) -> str:
        """Return the comparison as a Markdown table; ``verbose`` as for `to_text`."""
        rows, alignment = all_figures(self) if verbose else summary(self)
        lines = [line for note in notes(self, verbose) for line in ("", note)]
        return "\n".join([*markdown(rows, alignment), *lines])

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
        return draw(self)

    def to_html(self, title: str = "Models compared") -> str:
        """Return a page of its own: tables and pictures in one file that needs no network.

        Args:
            title: Heading of the page.

        Raises:
            ImportError: There is a picture to draw, and matplotlib is not installed: as for `plot`.

        Example:
            ``Path("comparison.html").write_text(comparison.to_html(), encoding="utf-8")``
        """
        return page(self, title)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "\n".join([html(*summary(self)), *(f"<p>{escape(note)}</p>" for note in notes(self, verbose=False))])
