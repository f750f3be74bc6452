"""How long a model takes, and how many times as fast another one is, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hfcompress.report.intervals import median_interval

_SPEEDUP_CONFIDENCE = 0.99  # rounds are not quite independent of each other, so 95 % would claim too much


@dataclass(frozen=True)
class ForwardPass:
    """Repeated timings of a forward pass over one batch.

    Attributes:
        batch_size: Examples in the batch.
        tokens: Tokens of each example, padding included.
        flops: Floating-point operations of the matrix products, attention included: two for a multiplication with
            addition. Softmax, norms and other operations by element are not counted. Zeros are counted like other
            numbers. None of an exported model.
        peak_bytes: Peak memory in bytes: the model, its inputs and what the pass itself allocates. None of an exported
            model.
        times_ms: Milliseconds of each timed pass, in the order of the rounds.
    """

    batch_size: int
    tokens: int
    flops: int | None
    peak_bytes: int | None
    times_ms: tuple[float, ...]

    @property
    def latency_ms(self) -> float:
        """Median of the times in milliseconds."""
        return statistics.median(self.times_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """First and third quartile of the times in milliseconds."""
        if len(self.times_ms) == 1:
            return self.times_ms[0], self.times_ms[0]
        first, _, third = statistics.quantiles(self.times_ms, n=4, method="inclusive")
        return first, third

    @property
    def latency_iqr_ms(self) -> float:
        """Interquartile range of the times in milliseconds."""
        first, third = self.quartiles_ms
        return third - first

    @property
    def throughput(self) -> float:
        """Examples a second, at the median time."""
        return 1000 * self.batch_size / self.latency_ms

    @property
    def label(self) -> str:
        """Batch size and number of tokens, for tables."""
        return f"{self.batch_size} x {self.tokens}"

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        derived = ("latency_ms", "latency_iqr_ms", "throughput")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the first model another one is.

    Attributes:
        ratio: Median over the rounds of the first model's time divided by this one's in the same round.
        interval: 99 % interval of the ratio (sign test), or None with fewer than eight rounds.
    """

    ratio: float
    interval: tuple[float, float] | None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 1; otherwise the difference is within the noise, or there are few rounds."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        return asdict(self) | {"shown": self.shown}

    @property
    def label(self) -> str:
        """The ratio and why a difference is not shown, for tables."""
        reason = "" if self.shown else ", few rounds" if self.interval is None else ", noise"
        return f"{self.ratio:.2f}x{reason}"

    def __str__(self) -> str:
        return self.label


def speedup(first: Sequence[ForwardPass], other: Sequence[ForwardPass], index: int = 0) -> Speedup | None:
    """Compare the times of two models round by round; None if one of them has no forward pass at this index.

    Models that were timed apart, as those of a ladder, have no common rounds: their times are compared in the order in
    which they were measured, as many as both have.
    """
    if index not in range(min(len(first), len(other))):
        return None
    rounds = zip(first[index].times_ms, other[index].times_ms, strict=False)
    ratios = [before / after for before, after in rounds]
    return Speedup(statistics.median(ratios), median_interval(ratios, _SPEEDUP_CONFIDENCE))
