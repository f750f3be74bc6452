"""The Pareto front of measured models, by quality and a cost; differences within noise are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from hfcompress.report.intervals import difference_interval
from hfcompress.report.measurements import Measurement, main_quality
from hfcompress.report.times import speedup

Cost = Literal["time", "size"]
SAME_SIZE = 1.02  # times another packed size, up to which both are the same: that is how exact a packed size is


def pareto_front(models: Mapping[str, Measurement], cost: Cost) -> list[str]:
    """Return the names of the models that no other one dominates.

    A model dominates another one if it is shown to be cheaper and not shown to be worse, or shown to be better and not
    shown to be costlier. What is shown:

    - of two times, a 99 % interval of the speed-up that excludes 1;
    - of two sizes, a difference of more than 2 %;
    - of the quality of a model and the first one, the paired test (p < 0.05), if there is one;
    - of the quality of others, a 95 % interval of the difference, made of both intervals, that excludes 0.

    Args:
        models: Measurements by name; the first is the one that the others were compared with. Those without a quality
            or, for ``"time"``, without times are left out.
        cost: ``"time"`` of the first forward pass, or ``"size"`` of the packed file.
    """
    compare_costs = _compare_times if cost == "time" else _compare_sizes
    ones = list(models.values())
    _, figure, _ = main_quality(ones)

    def dominates(one: Measurement, other: Measurement) -> bool:
        cheaper, better = compare_costs(one, other), _compare_quality(ones, one, other)
        return min(cheaper, better) >= 0 and max(cheaper, better) > 0

    known = {name: one for name, one in models.items() if getattr(one, figure) is not None}
    known = {name: one for name, one in known.items() if one.passes or cost == "size"}
    front = [name for name, model in known.items() if not any(dominates(one, model) for one in known.values())]
    return front or list(known)  # tests of pairs can disagree with each other: a circle dominates nothing


def _compare_times(one: Measurement, other: Measurement) -> int:
    """Return 1 if one model is shown to be faster, -1 if it is shown to be slower, otherwise 0."""
    found = None if one is other else speedup(other.passes, one.passes)
    if found is None or not found.shown:
        return 0
    return 1 if found.ratio > 1 else -1


def _compare_sizes(one: Measurement, other: Measurement) -> int:
    """Return 1 if one model is smaller, -1 if it is larger, 0 if the difference is too small to tell."""
    if max(one.bytes_packed, other.bytes_packed) <= SAME_SIZE * min(one.bytes_packed, other.bytes_packed):
        return 0
    return 1 if one.bytes_packed < other.bytes_packed else -1


def _compare_quality(models: Sequence[Measurement], one: Measurement, other: Measurement) -> int:
    """Return 1 if one model is shown to be better, -1 if it is shown to be worse, otherwise 0."""
    verdicts = {"better": 1, "worse": -1, "not shown": 0}
    if one is other:
        return 0
    if other is models[0] and one.paired_test is not None:
        return verdicts[one.paired_test.verdict]
    if one is models[0] and other.paired_test is not None:
        return -verdicts[other.paired_test.verdict]
    _, figure, lower_is_better = main_quality(models)
    figures = [getattr(model, figure) for model in (one, other)]
    ends = [getattr(model, f"{figure}_interval") for model in (one, other)]
    if None in ends:  # which is not known, as of outputs that are all right
        return 0
    low, high = difference_interval(*figures, *ends)
    difference = int(low > 0) - int(high < 0)
    return -difference if lower_is_better else difference
