"""95 % intervals of accuracies: of one run over its examples, of several over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from examples.imdb.files import Result


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy on so many examples."""
    low, high = scipy.stats.binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Return half of Student's interval of the mean; 0 for a single value."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)) if len(values) > 1 else 0.0


def format_accuracy(accuracy: float, low: float, high: float) -> str:
    """Write an accuracy and its interval."""
    return f"{accuracy:.3f} ({low:.3f} to {high:.3f})"


def mean_accuracy(results: Iterable[Result], part: str) -> tuple[float, float, float]:
    """Return the mean accuracy on a part of the reviews, and its interval: Wilson's of one seed or Student's."""
    values, counts = zip(*((one[f"{part}_accuracy"], one[f"{part}_examples"]) for one in results), strict=True)
    if len(values) == 1:
        return values[0], *wilson_interval(values[0], counts[0])
    mean = statistics.mean(values)
    return mean, max(0.0, mean - spread(values)), min(1.0, mean + spread(values))


def unpack_correct(result: Result) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which of the test texts a system predicts correctly, from the bits in its result."""
    bits = np.frombuffer(bytes.fromhex(result["test_correct"]), dtype=np.uint8)
    return np.unpackbits(bits, count=result["test_examples"]).astype(bool)


def mcnemar(result: Result, reference: Result) -> float:
    """Return the p-value of McNemar's exact test: whether two systems of one seed differ in accuracy.

    Both were tested on the same texts; those that only one of them has right are equally often of either, if not.
    """
    one, other = unpack_correct(result), unpack_correct(reference)
    gains, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return float(scipy.stats.binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


def paired_difference(result: Result, reference: Result) -> tuple[float, float]:
    """Return the difference of two accuracies on the same texts, and half of its 95 % interval (normal)."""
    each = unpack_correct(result).astype(float) - unpack_correct(reference)
    return float(each.mean()), float(1.96 * each.std(ddof=1) / len(each) ** 0.5)


def mean_difference(results: Sequence[Result], references: Sequence[Result]) -> tuple[float, float]:
    """Return the mean difference of the test accuracy over the seeds, and half of its interval.

    The interval is Student's over the differences of the seeds; of one seed, that of the pairs of predictions.
    """
    pairs = [paired_difference(*pair) for pair in zip(results, references, strict=True)]
    if len(pairs) == 1:
        return pairs[0]
    differences = [difference for difference, _ in pairs]
    return statistics.mean(differences), spread(differences)
