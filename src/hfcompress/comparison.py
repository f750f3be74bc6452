"""What was measured of one model or of several, side by side."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from hfcompress.display import QUALITIES, SIZES, all_figures, draw, notes, page, ratio, summary
from hfcompress.quality import McNemar, median_interval
from hfcompress.tables import align, html, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = (
    *("parameters", "nonzeros", *SIZES.values(), "flops", "latency_ms", "throughput", "peak_bytes"),
    *("accuracy", *QUALITIES.values()),
)
_SURE = 0.99  # of a speed-up; rounds are not quite independent of each other, so 95 % would claim too much


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
