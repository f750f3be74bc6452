"""Intervals and tests of chance against SciPy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hfcompress.report.intervals import mcnemar, median_interval, wilson_interval


@given(st.data())
def test_the_wilson_interval_is_that_of_scipy(data):
    trials = data.draw(st.integers(1, 10_000))
    successes = data.draw(st.integers(0, trials))
    wanted = stats.binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_the_wilson_interval_includes_the_proportion():
    for trials, successes in ((n, k) for n in range(1, 60) for k in range(n + 1)):
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1


def correctness(both, only_first, only_this, neither):
    first = [True] * (both + only_first) + [False] * (only_this + neither)
    this = [True] * both + [False] * only_first + [True] * only_this + [False] * neither
    return torch.tensor(first), torch.tensor(this)


@given(st.integers(0, 60), st.integers(0, 60))
def test_few_discordant_pairs_are_tested_exactly(only_first, only_this):
    found = mcnemar(*correctness(3, only_first, only_this, 2))
    pairs = only_first + only_this
    wanted = stats.binomtest(only_first, pairs).pvalue if pairs else 1.0
    assert (found.only_first, found.only_this) == (only_first, only_this)
    assert found.p_value == pytest.approx(wanted, abs=1e-12)
    significant = "worse" if only_first > only_this else "better"
    assert found.verdict == (significant if wanted < 0.05 else "not shown")


@pytest.mark.parametrize(("only_first", "only_this"), [(501, 500), (560, 500), (900, 700), (5000, 5300)])
def test_many_discordant_pairs_are_tested_by_chi_squared(only_first, only_this):
    found = mcnemar(*correctness(0, only_first, only_this, 0)).p_value
    statistic = (abs(only_first - only_this) - 1) ** 2 / (only_first + only_this)
    assert found == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)
    assert found == pytest.approx(stats.binomtest(only_first, only_first + only_this).pvalue, abs=5e-3)


def test_equally_many_discordant_pairs_show_nothing():
    assert mcnemar(*correctness(0, 600, 600, 0)).p_value == 1.0


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_median_interval_is_the_shortest_that_is_sure_enough(confidence, values):
    count, ordered = len(values), sorted(values)
    wanted = None
    for rank in range(1, count // 2 + 1):  # P(rank <= B <= count - rank) for B binomial
        sure = stats.binom.cdf(count - rank, count, 0.5) - stats.binom.cdf(rank - 1, count, 0.5)
        if sure >= confidence:
            wanted = ordered[rank - 1], ordered[count - rank]
    assert median_interval(values, confidence) == wanted


@pytest.mark.parametrize(("confidence", "count"), [(0.95, 6), (0.99, 8)])
def test_too_few_values_have_no_median_interval(confidence, count):
    assert median_interval([1.0] * (count - 1), confidence) is None
    assert median_interval([1.0] * count, confidence) == (1.0, 1.0)
