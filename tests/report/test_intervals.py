"""Intervals and tests of chance against SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hfcompress.metrics import multi_label_figures, regression_figures
from hfcompress.report.intervals import (
    bootstrap_intervals,
    mcnemar,
    median_interval,
    paired_interval,
    sign_flip,
    wilson_interval,
)


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


# Permutation test


def permuted(first, this, **options):
    return stats.permutation_test(
        (np.asarray(this), np.asarray(first)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        **options,
    ).pvalue


some_scores = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9)


@settings(max_examples=50)
@given(some_scores, st.sampled_from([1.0, 1 / 3, 0.1]), st.booleans())
def test_few_differences_are_flipped_in_all_ways(pairs, scale, lower_is_better):
    first, this = scale * torch.tensor(pairs, dtype=torch.double).T
    found = sign_flip(first, this, "score", lower_is_better=lower_is_better)
    assert found.exact
    assert found.p_value == pytest.approx(permuted(first, this), abs=1e-9)
    assert found.difference == pytest.approx(float((this - first).mean()))
    good = (found.difference < 0) == lower_is_better
    assert found.verdict == ("not shown" if found.p_value >= 0.05 else "better" if good else "worse")


@pytest.mark.parametrize("count", [14, 100, 3000])
@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_many_differences_are_flipped_at_random(count, shift):
    random = np.random.default_rng(count)
    first, this = random.normal(size=count), random.normal(size=count)
    this += 12 * shift / np.sqrt(count)
    found = sign_flip(*map(torch.from_numpy, (first, this)), "score", lower_is_better=True)
    wanted = permuted(first, this, n_resamples=4999, rng=np.random.default_rng(0)) if count < 3000 else None
    by_t = stats.ttest_rel(this, first).pvalue
    assert not found.exact
    assert found.p_value == pytest.approx(wanted or by_t, abs=0.03)
    again = sign_flip(*map(torch.from_numpy, (first, this)), "score", lower_is_better=True)
    assert again == found


def test_random_flips_agree_with_all_of_them():
    first = torch.tensor([0.0] * 14)
    this = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, -11, -12, 13, -3])
    assert sign_flip(first, this, "score", lower_is_better=False).p_value == pytest.approx(
        permuted(first, this, n_resamples=2**14), abs=0.01
    )


def test_equal_scores_show_nothing():
    scores = torch.rand(100)
    found = sign_flip(scores, scores.clone(), "score", lower_is_better=True)
    assert (found.p_value, found.difference, found.verdict) == (1.0, 0.0, "not shown")


def test_the_permutation_test_is_wrong_no_more_often_than_it_says():
    random, false = np.random.default_rng(0), 0
    for _ in range(200):  # differences with heavy tails and no mean
        differences = torch.from_numpy(random.standard_t(2, 20))
        false += sign_flip(torch.zeros(20), differences, "score", lower_is_better=True).p_value < 0.05
    assert false <= stats.binom.ppf(0.999, 200, 0.05)


# Paired differences


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=30), st.sampled_from([0.1, 1.0, 7.0]))
def test_the_paired_interval_adds_the_largest_difference_twice(differences, largest):
    values = largest * np.array([*differences, 1, -1])
    wanted = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(len(values)))
    assert paired_interval(torch.tensor(largest * np.array(differences)), largest=largest) == pytest.approx(wanted)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30))
def test_without_a_largest_difference_the_paired_interval_is_walds(differences):
    values = np.array(differences)
    error = values.std(ddof=1) / np.sqrt(len(values))
    wanted = values.mean() - 1.959964 * error, values.mean() + 1.959964 * error
    assert paired_interval(torch.tensor(values), largest=None) == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    found = sign_flip(torch.zeros(len(values)), torch.tensor(values), "squared error", lower_is_better=True)
    assert found.interval == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_one_difference_has_no_interval_without_a_largest():
    assert paired_interval(torch.tensor([0.3]), largest=None) == (-np.inf, np.inf)
    assert sign_flip(torch.zeros(1), torch.ones(1), "score", lower_is_better=True).interval is None


# Bootstrap


def test_the_bootstrap_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(1).exponential(size=80)
    weighted = torch.from_numpy(values)
    found = bootstrap_intervals(lambda weights: {"mean": weights @ weighted / 80}, 80)["mean"]
    wanted = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert found == pytest.approx(tuple(wanted.confidence_interval), abs=0.1 * width)


def regression_sample(random, count):
    outputs = random.normal(size=(count, 1))
    return outputs, 0.7 * outputs + np.sqrt(1 - 0.49) * random.normal(size=(count, 1))


def label_sample(random, count):
    labels = (random.random((count, 4)) < [0.5, 0.3, 0.2, 0.4]).astype(float)
    wrong = random.random((count, 4)) < 0.05 + 0.3 * random.random(
        (count, 1)
    )  # labels of an example are not independent
    return np.where(wrong, 1 - labels, labels) - 0.5, labels


@pytest.mark.parametrize("kind", [(regression_figures, regression_sample), (multi_label_figures, label_sample)])
def test_the_bootstrap_interval_covers_as_often_as_it_says(kind):
    figures, sample = kind
    truth = {
        name: float(v) for name, v in figures(*map(torch.from_numpy, sample(np.random.default_rng(9), 200_000))).items()
    }
    random, covered, samples = np.random.default_rng(0), dict.fromkeys(truth, 0), 150
    for _ in range(samples):
        drawn = list(map(torch.from_numpy, sample(random, 120)))
        for name, (low, high) in bootstrap_intervals(
            lambda weights, drawn=drawn: figures(*drawn, weights), 120
        ).items():
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():  # in small samples somewhat less than 95 %
        assert stats.binom.ppf(0.001, samples, 0.92) <= count <= stats.binom.ppf(0.999, samples, 0.97), name


def test_a_bootstrap_interval_holds_the_figure_and_is_repeatable():
    outputs, labels = map(torch.from_numpy, regression_sample(np.random.default_rng(0), 12))
    found = [bootstrap_intervals(lambda weights: regression_figures(outputs, labels, weights), 12) for _ in range(2)]
    assert found[0] == found[1]
    for name, figure in regression_figures(outputs, labels).items():
        low, high = found[0][name]
        assert low <= float(figure) <= high


def test_equal_examples_have_no_bootstrap_interval():
    zeros = torch.zeros(9, 1)
    found = bootstrap_intervals(lambda weights: regression_figures(zeros, zeros, weights), 9)
    assert found == {"mse": None, "pearson": None, "spearman": None}
    one_label = torch.zeros(9, 2)
    one_label[0, 0] = 1  # a third of the resamples have no label
    found = bootstrap_intervals(lambda weights: multi_label_figures(one_label - 0.5, one_label, weights), 9)
    assert found["f1_micro"] is None


def test_of_very_many_rounds_the_median_has_an_interval_too():
    values = np.random.default_rng(0).normal(size=3000)
    low, high = median_interval(values.tolist(), 0.99)
    ranks = stats.binom.ppf([0.005, 0.995], 3000, 0.5).astype(int)
    assert (low, high) == pytest.approx(tuple(np.sort(values)[[ranks[0] - 1, ranks[1]]]), abs=1e-2)
