"""Confidence intervals and paired tests: pure functions of tensors and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SIGNIFICANT = 0.05
_MOST_EXACT = 1000  # discordant pairs; beyond that the binomial test is approximated
_MOST_ENUMERATED = 13  # differences whose signs are flipped in all 8192 ways
_SAMPLES = 9999  # of signs, where there are more differences
_RESAMPLES = 1000  # of the bootstrap
_MOST_UNDEFINED = 0.05  # fraction of resamples without a figure, up to which the others make an interval
_NUMBERS_AT_ONCE = 2**20  # that a step of either holds


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


@dataclass(frozen=True)
class SignFlip:
    """Whether the mean scores of two models for the same examples differ significantly (Fisher 1935).

    The test is the paired permutation test: if both models are equally good, the difference of their scores for an
    example is as likely to have the other sign.

    Attributes:
        score: What is compared, such as ``"squared error"``.
        difference: Mean over the examples of this model's score less that of the first.
        p_value: Probability of a mean difference at least as large, two-sided; not corrected for several comparisons.
        exact: Whether all signs were tried, otherwise 9999 random ones.
        lower_is_better: Whether a lower score is a better one.
        interval: 95 % interval of the difference, paired by examples; None of fewer than two examples.
    """

    score: str
    difference: float
    p_value: float
    exact: bool
    lower_is_better: bool
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """``"worse"`` or ``"better"`` than the first at p < 0.05, otherwise ``"not shown"``."""
        if self.p_value >= _SIGNIFICANT:
            return "not shown"
        return "better" if (self.difference < 0) == self.lower_is_better else "worse"


def sign_flip(
    first: Tensor, this: Tensor, score: str, *, lower_is_better: bool, largest: float | None = None
) -> SignFlip:
    """Test whether the mean scores of two models for the same examples differ, by a paired permutation test.

    All signs of the differences are tried where at most 13 are not 0, and otherwise 9999 random ones, the same in each
    call.

    Args:
        first: Score of the first model for each example, shape (examples,).
        this: The same of the other model.
        score: What the scores are, in words.
        lower_is_better: Whether a lower score is a better one.
        largest: The largest difference of two scores, as for `paired_interval`.

    Example:
        >>> first, this = torch.zeros(6), torch.tensor([1.0, 2.0, 1.0, 3.0, 2.0, 1.0])
        >>> test = sign_flip(first, this, "squared error", lower_is_better=True)
        >>> test.p_value, test.verdict  # 2 of 64 signs
        (0.03125, 'worse')
    """
    differences = (this.double() - first.double()).numpy()
    changed = differences[differences != 0]
    exact = len(changed) <= _MOST_ENUMERATED
    # A sum counts as no smaller where rounding alone makes it so.
    least = abs(changed.sum()) - 1e-10 * np.abs(changed).sum()
    count, tried, total = (0, 0, 2 ** len(changed)) if exact else (1, 1, _SAMPLES + 1)  # random ones count the observed
    random = np.random.default_rng(0)
    while tried < total:
        number = min(total - tried, _NUMBERS_AT_ONCE // max(1, len(changed)) + 1)
        flipped: np.ndarray
        if exact:
            flipped = np.arange(tried, tried + number)[:, None] >> np.arange(len(changed)) & 1
        else:
            octets = random.integers(0, 256, (number, -(-len(changed) // 8)), dtype=np.uint8)
            flipped = np.unpackbits(octets, axis=1, count=len(changed))
        count += int((np.abs((1.0 - 2.0 * flipped) @ changed) >= least).sum())
        tried += number
    interval = paired_interval(torch.from_numpy(differences), largest=largest) if len(differences) > 1 else None
    return SignFlip(score, float(differences.mean()), count / total, exact, lower_is_better, interval)


def bootstrap_intervals(
    figures: Callable[[Tensor], Mapping[str, Tensor]], examples: int
) -> dict[str, tuple[float, float] | None]:
    """Return 95 % confidence intervals of figures by the percentile bootstrap over examples (Efron 1979).

    The 1000 resamples are the same in each call. With few examples, below about 30, the intervals are too narrow.

    Args:
        figures: Returns figures by name, each of shape (resamples,), given how often each example is in each resample,
            shape (resamples, examples); NaN where a figure is undefined.
        examples: Number of examples.

    Returns:
        The intervals, around the figures of the examples themselves. An interval is None where the figure is the same
        in all resamples, which then say nothing about others, or undefined in more than 5 % of them.

    Example:
        >>> values = torch.arange(100.0, dtype=torch.double)
        >>> low, high = bootstrap_intervals(lambda weights: {"mean": weights @ values / 100}, 100)["mean"]
        >>> round(low), round(high)  # 49.5 with a standard error of 2.9
        (44, 55)
    """
    found = figures(torch.ones(1, examples, dtype=torch.double))
    random, resamples, left = np.random.default_rng(0), [], _RESAMPLES
    while left:
        number = min(left, _NUMBERS_AT_ONCE // examples + 1)
        drawn = random.integers(0, examples, (number, examples)) + examples * np.arange(number)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=number * examples).reshape(number, examples)
        resamples.append(figures(torch.from_numpy(weights).double()))
        left -= number
    values = {name: torch.cat([one[name] for one in resamples]).numpy() for name in found}
    return {name: _percentiles(float(found[name]), values[name]) for name in found}


def _percentiles(figure: float, values: np.ndarray) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if math.isnan(figure) or len(defined) < (1 - _MOST_UNDEFINED) * len(values):
        return None
    if np.ptp(defined) <= 1e-12 * np.abs(defined).max():
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return min(figure, float(low)), max(figure, float(high))


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


def paired_interval(
    differences: Tensor, confidence: float = 0.95, *, largest: float | None = 1.0
) -> tuple[float, float]:
    """Return a confidence interval of a mean of paired differences (Bonett and Price 2012).

    It is Wald's with the largest difference added once as a gain and once as a loss, so that it has a width where no
    two scores differ.

    Args:
        differences: Of the scores of two models for each example, shape (examples,).
        confidence: Of the interval.
        largest: The largest difference of two scores: 1 of what is right or wrong. None where there is none, as of
            squared errors: nothing is added then, and of fewer than two differences the interval has no ends.

    Example:
        >>> import torch
        >>> low, high = paired_interval(torch.tensor([1.0] * 5 + [-1.0] * 2 + [0.0] * 193))
        >>> round(low, 3), round(high, 3)
        (-0.014, 0.044)
    """
    values = differences.double()
    if largest is not None:
        values = torch.cat([values, values.new_tensor([largest, -largest])])
    elif len(values) < 2:
        return -math.inf, math.inf
    z, variance = statistics.NormalDist().inv_cdf(0.5 + confidence / 2), values.var(correction=int(largest is None))
    mean, error = float(values.mean()), math.sqrt(float(variance) / len(values))
    return mean - z * error, mean + z * error


def difference_interval(
    one: float, other: float, one_ends: tuple[float, float], other_ends: tuple[float, float]
) -> tuple[float, float]:
    """Return a confidence interval of the difference of two figures, made of the interval of each (Zou, Donner 2008).

    Its confidence is theirs if the figures are independent; of two models on the same examples it is too wide, as their
    accuracies vary together. With Wilson's intervals it is method 10 of Newcombe 1998.

    Args:
        one: A figure.
        other: The figure that is subtracted from it.
        one_ends: Interval of the first figure.
        other_ends: Interval of the other figure.

    Example:
        >>> low, high = difference_interval(56 / 70, 48 / 80, wilson_interval(56, 70), wilson_interval(48, 80))
        >>> round(low, 4), round(high, 4)  # Newcombe 1998, table II
        (0.0524, 0.3339)
    """
    low = math.hypot(one - one_ends[0], other_ends[1] - other)
    high = math.hypot(one_ends[1] - one, other - other_ends[0])
    return one - other - low, one - other + high


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return a confidence interval of the median for any distribution, by the sign test (Conover 1999, section 3.2).

    Its ends are two of the values. It is None with fewer than six values at 95 %, and fewer than eight at 99 %.

    Example:
        >>> median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
        (1.0, 6.0)
    """
    count, rank, tail = len(values), 0, 1
    while rank < count and 2 * tail / 2**count <= 1 - confidence:  # of whole numbers beyond those of a float
        rank += 1
        tail += math.comb(count, rank)
    if not rank:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]
