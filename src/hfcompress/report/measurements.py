"""What was measured of a model: records and what follows from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from hfcompress.report.intervals import McNemar


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
