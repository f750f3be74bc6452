"""Confidence intervals and paired tests: what chance may do to a figure. Pure functions of tensors and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

SIGNIFICANT = 0.05
_EXACT = 1000  # discordant pairs: up to here the binomial sum itself, beyond its approximation


@dataclass(frozen=True)
class McNemar:
    """Whether one classifier is really worse than another on the same examples (McNemar 1947).

    Only the examples that one of them answers correctly and the other does not say anything about that.

    Attributes:
        only_first: How many only the first answers correctly.
        only_this: How many only this one answers correctly.
        p_value: The probability of a split at least as uneven if both were equally good, two-sided. It is not
            corrected for several models being compared.
    """

    only_first: int
    only_this: int
    p_value: float

    @property
    def verdict(self) -> str:
        """``"worse"`` or ``"better"`` than the first at p < 0.05, else ``"not shown"``."""
        if self.p_value >= SIGNIFICANT:
            return "not shown"
        return "worse" if self.only_first > self.only_this else "better"


def mcnemar(first_correct: Tensor, this_correct: Tensor) -> McNemar:
    """Test whether one classifier answers more of the same examples correctly than another.

    Up to 1000 discordant pairs the exact binomial test, beyond that chi-squared with the correction for continuity
    (Edwards 1948).

    Args:
        first_correct: Whether the first one's answers are correct, one bool an example.
        this_correct: The same for the other one.

    Example:
        >>> import torch
        >>> test = mcnemar(torch.tensor([True] * 9 + [False]), torch.tensor([False] * 8 + [True] * 2))
        >>> test.only_first, test.only_this, round(test.p_value, 4), test.verdict
        (8, 1, 0.0391, 'worse')
    """
    only_first = int((first_correct & ~this_correct).sum())
    only_this = int((this_correct & ~first_correct).sum())
    pairs = only_first + only_this
    if pairs <= _EXACT:
        tail = sum(math.comb(pairs, count) for count in range(min(only_first, only_this) + 1))
        return McNemar(only_first, only_this, min(1.0, 2 * tail / 2**pairs))
    statistic = max(0, abs(only_first - only_this) - 1) ** 2 / pairs
    return McNemar(only_first, only_this, math.erfc(math.sqrt(statistic / 2)))  # chi-squared, one degree of freedom


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927), which stays within [0, 1].

    Args:
        successes: How many of the trials succeeded.
        trials: How many there were, at least 1.

    Example:
        >>> low, high = wilson_interval(672, 800)
        >>> round(low, 3), round(high, 3)
        (0.813, 0.864)
    """
    z, p = statistics.NormalDist().inv_cdf(0.975), successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return an interval that holds the median with at least this confidence, whatever the distribution.

    Two of the values in order, by the sign test (Conover 1999, section 3.2). Too few values have none: at 95 %, fewer
    than six; at 99 %, fewer than eight.

    Example:
        >>> median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
        (1.0, 6.0)
    """
    count = len(values)
    tail, rank = 0, 0
    while rank < count:
        tail += math.comb(count, rank)
        if 2 * tail > (1 - confidence) * 2**count:
            break
        rank += 1
    if not rank:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]
