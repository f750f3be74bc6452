"""95 % intervals of accuracies: of one run over its examples, of several over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

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
    return mean, mean - spread(values), mean + spread(values)
