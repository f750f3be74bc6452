"""Confidence intervals and paired tests: pure functions of tensors and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

_SIGNIFICANT = 0.05
_MOST_EXACT = 1000  # discordant pairs; beyond that the binomial test is approximated


@dataclass(frozen=True)
class McNemar:
    """Whether the accuracies of two classifiers on the same examples differ significantly (McNemar 1947).

    The test depends on the discordant pairs alone: the examples that only one of the two predicts correctly.

    Attributes:
        only_first: Number of examples that only the first classifier predicts correctly.
        only_this: Number of examples that only this classifier predicts correctly.
        p_value: Probability of a split at least as uneven if both were equally good, two-sided; not corrected for
            several comparisons.
    """

    only_first: int
    only_this: int
    p_value: float

    @property
    def verdict(self) -> str:
        """``"worse"`` or ``"better"`` than the first at p < 0.05, otherwise ``"not shown"``."""
        if self.p_value >= _SIGNIFICANT:
            return "not shown"
        return "worse" if self.only_first > self.only_this else "better"


def mcnemar(first_correct: Tensor, this_correct: Tensor) -> McNemar:
    """Test whether one classifier predicts more of the same examples correctly than another (McNemar 1947).

    The test is the exact binomial one up to 1000 discordant pairs, and chi-squared with the correction for continuity
    (Edwards 1948) beyond.

    Args:
        first_correct: Whether each prediction of the first classifier is correct, shape (examples,), bool.
        this_correct: The same for the other classifier.

    Example:
        >>> import torch
        >>> test = mcnemar(torch.tensor([True] * 9 + [False]), torch.tensor([False] * 8 + [True] * 2))
        >>> test.only_first, test.only_this, round(test.p_value, 4), test.verdict
        (8, 1, 0.0391, 'worse')
    """
    only_first = int((first_correct & ~this_correct).sum())
    only_this = int((this_correct & ~first_correct).sum())
    pairs = only_first + only_this
    if pairs <= _MOST_EXACT:
        tail = sum(math.comb(pairs, count) for count in range(min(only_first, only_this) + 1))
        return McNemar(only_first, only_this, min(1.0, 2 * tail / 2**pairs))
    statistic = max(0, abs(only_first - only_this) - 1) ** 2 / pairs
    return McNemar(only_first, only_this, math.erfc(math.sqrt(statistic / 2)))  # chi-squared, one degree of freedom


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927), within [0, 1] and around it.

    Args:
        successes: Number of successes.
        trials: Number of trials, at least 1.

    Example:
        >>> low, high = wilson_interval(672, 800)
        >>> round(low, 3), round(high, 3)
        (0.813, 0.864)
    """
    z, p = statistics.NormalDist().inv_cdf(0.975), successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Where all or no trials succeed, one end is p itself: rounding must not put it beyond p.
    return max(0.0, min(p, (centre - spread) / scale)), min(1.0, max(p, (centre + spread) / scale))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return a confidence interval of the median for any distribution, by the sign test (Conover 1999, section 3.2).

    Its ends are two of the values. It is None with fewer than six values at 95 %, and fewer than eight at 99 %.

    Example:
        >>> median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
        (1.0, 6.0)
    """
    count, rank, tail = len(values), 0, 1
    while rank < count and 2 * tail <= (1 - confidence) * 2**count:
        rank += 1
        tail += math.comb(count, rank)
    if not rank:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]
