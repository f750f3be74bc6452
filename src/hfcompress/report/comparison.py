"""Several measurements side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfcompress.report.measurements import Measurement, make_table
from hfcompress.report.rendering import draw, page
from hfcompress.report.tables import Report, Table
from hfcompress.report.times import Speedup, speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = (
    *("parameters", "nonzeros", "bytes_in_memory", "bytes", "bytes_packed"),
    *("flops", "latency_ms", "throughput", "peak_bytes"),
    *("accuracy", "f1", "cross_entropy", "calibration_error", "exact_match", "f1_micro", "f1_macro", "mse"),
)


@dataclass(frozen=True)
class Comparison(Report):
    """Several models side by side. ``print`` and a notebook show the main figures.

    Attributes:
        rows: Measurements by name of the model. Ratios are to the first.
    """

    rows: dict[str, Measurement]

    @property
    def first(self) -> Measurement:
        """The measurement that the others are compared with."""
        return next(iter(self.rows.values()))

    def speedup(self, name: str, index: int = 0) -> Speedup | None:
        """Compare the times of a model with those of the first model, round by round.

        Args:
            name: Name of the model.
            index: Index of the forward pass.

        Returns:
            How many times as fast it is; None if one of the two was not timed.
        """
        return speedup(self.first.passes, self.rows[name].passes, index)

    def ratios(self, name: str) -> dict[str, float | None]:
        """Divide each figure of a model by that of the first; None where one is missing or the first is 0."""
        pairs = {figure: (getattr(self.rows[name], figure), getattr(self.first, figure)) for figure in _FIGURES}
        return {figure: None if value is None or not base else value / base for figure, (value, base) in pairs.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ratios and speed-ups by model, as plain Python values that JSON can hold."""
        result = {}
        for name, row in self.rows.items():
            speedups = [self.speedup(name, index) for index in range(len(row.passes))]
            result[name] = row.to_dict() | {"ratios": self.ratios(name)}
            result[name]["speedups"] = [one and one.to_dict() for one in speedups]
        return result

    def to_text(self, *, verbose: bool = False, width: int | None = None) -> str:
        """Return a table for a terminal.

        Args:
            verbose: Show all figures and their ratios to the first, a column a model; otherwise the main figures, a row
                a model.
            width: Characters of a line. Columns beyond it follow below, each time with the first column.
        """
        return self._table(verbose).text(width)

    def to_markdown(self, *, verbose: bool = False) -> str:
        """Return a Markdown table; ``verbose`` as for `to_text`."""
        return self._table(verbose).markdown()

    def plot(self) -> tuple[Figure, tuple[Axes, ...]]:
        """Draw accuracy against milliseconds and against bytes, with intervals and the Pareto front.

        A model is off the front where another one is shown to be cheaper and not shown to be worse, or shown to be
        better and not shown to be costlier. Not shown does not mean equal.

        Of a multi-label model it is the label accuracy, of a regression the mean squared error, of which less is
        better. Bytes are those of a packed file; a hollow mark shows the dense file where it is larger. Models without
        accuracy are left out, and so is the first picture if no model was timed.

        Returns:
            The figure and its axes, from left to right.

        Raises:
            CompressionError: The accuracy of no model was measured.
            ImportError: matplotlib is not installed: ``pip install 'hfcompress[plots]'``.
        """
        return draw(self.rows)

    def to_html(self, title: str = "Models compared") -> str:
        """Return an HTML page with tables and pictures, in one file that needs no network, for screens of any width.

        Args:
            title: Heading of the page.

        Raises:
            ImportError: There is a picture to draw, and matplotlib is not installed; see `plot`.

        Example:
            ``Path("comparison.html").write_text(comparison.to_html(), encoding="utf-8")``
        """
        return page(self.rows, title)

    def _table(self, verbose: bool = False) -> Table:
        return make_table(self.rows, verbose=verbose)
