"""The Pareto front ignores differences within noise, and without noise is the plain one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcompress import Measurement
from hfcompress.report.intervals import McNemar, SignFlip
from hfcompress.report.pareto import pareto_front
from hfcompress.report.times import ForwardPass

STEADY = [1.0] * 20
SHAKY = [1.0, 1.3] * 10
WORSE, BETTER, NOT_SHOWN = McNemar(50, 10, 1e-6), McNemar(10, 50, 1e-6), McNemar(20, 18, 0.87)


def model(quality, ms=10.0, size=1000, rounds=STEADY, width=0.0, figure="accuracy", **more):
    """A measurement whose interval is as wide as this to either side."""
    fixed = {"parameters": 1, "nonzeros": 1, "zeros": 0, "sparsity": 0.0, "device": "cpu", "dtype": "", "threads": 1}
    passes = (ForwardPass(1, 1, 1, 1, tuple(ms * one for one in rounds)),) if ms else ()
    found = {figure: quality, f"{figure}_interval": (quality - width, quality + width)}
    sizes = {"bytes": size, "bytes_packed": size, "bytes_in_memory": size}
    return Measurement(**fixed, **sizes, passes=passes, **found, **more)


def test_an_interval_that_is_not_known_shows_nothing():
    perfect = replace(model(1.0, ms=20.0), accuracy_interval=None)
    models = {"first": model(0.5, ms=30.0, width=0.4), "perfect": perfect, "other": model(0.93, ms=20.0, width=0.01)}
    assert {"perfect", "other"} <= set(pareto_front(models, [one.latency_ms for one in models.values()]))


exact_models = st.dictionaries(st.text("abc", max_size=3), st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=8)


@given(exact_models, st.sampled_from(["time", "size"]), st.sampled_from(["accuracy", "mse"]))
def test_without_noise_it_holds_what_no_other_dominates(given_models, cost, figure):
    sign = -1 if figure == "mse" else 1
    models = {name: model(sign * q, c, 1000 * c, figure=figure) for name, (c, q) in given_models.items()}
    front = pareto_front(models, cost) if models else []
    for name, (c, q) in given_models.items():
        better = [one for one in given_models.values() if one[0] <= c and one[1] >= q and one != (c, q)]
        assert (name in front) == (not better)


def test_a_better_quality_within_noise_does_not_pay_for_its_cost():
    large, small = model(0.84, 20.0), model(0.835, 10.0, mcnemar=NOT_SHOWN)
    assert pareto_front({"large": large, "small": small}, "time") == ["small"]
    assert pareto_front({"large": large, "small": replace(small, mcnemar=WORSE)}, "time") == ["large", "small"]


def test_models_that_differ_by_noise_alone_are_all_on_it():
    models = {"a": model(0.84, rounds=SHAKY, width=0.02), "b": model(0.835, 10.1, rounds=SHAKY[::-1], width=0.02)}
    assert pareto_front(models, "time") == ["a", "b"]
    models["b"] = replace(models["b"], mcnemar=NOT_SHOWN, accuracy_interval=(0.835, 0.835))
    assert pareto_front(models, "time") == ["a", "b"]


def test_a_worse_model_is_off_it_where_the_time_is_noise():
    first = model(0.84, rounds=SHAKY)
    worse = model(0.7, 10.0, rounds=SHAKY[::-1], mcnemar=WORSE)
    assert pareto_front({"first": first, "worse": worse}, "time") == ["first"]
    assert pareto_front({"first": first, "better": replace(worse, mcnemar=BETTER)}, "time") == ["better"]


@pytest.mark.parametrize(("size", "front"), [(1019, ["a", "b"]), (1021, ["a"])])
def test_sizes_within_two_percent_are_the_same(size, front):
    assert pareto_front({"a": model(0.8, size=1000), "b": model(0.8, size=size)}, "size") == front


@pytest.mark.parametrize(("width", "front"), [(0.05, ["first", "small"]), (0.01, ["first", "large", "small"])])
def test_others_are_compared_by_both_intervals(width, front):
    # The interval of the difference of 0.04 is wide by the root of two.
    models = {
        "first": model(0.9, 30.0),
        "large": model(0.84, 20.0, width=width, mcnemar=WORSE),
        "small": model(0.8, 10.0, width=width, mcnemar=WORSE),
    }
    assert pareto_front(models, "time") == front


def test_of_a_lower_figure_the_paired_test_says_which_is_better():
    verdict = SignFlip("squared error", 0.1, 0.001, False, True)
    models = {"first": model(0.2, figure="mse"), "other": model(0.3, figure="mse", sign_flip=verdict)}
    assert pareto_front(models, "time") == ["first"]
    models["other"] = replace(models["other"], sign_flip=replace(verdict, difference=-0.1))
    assert pareto_front(models, "time") == ["other"]


def test_models_without_the_figures_are_left_out():
    models = {
        "first": model(0.8),
        "untimed": model(0.9, ms=None),
    }
    models["unlabelled"] = replace(models["first"], accuracy=None, accuracy_interval=None)
    assert pareto_front(models, "time") == ["first"]
    assert pareto_front(models, "size") == ["untimed"]


def test_where_the_tests_contradict_each_other_all_stay():
    # Each is faster than the next in most rounds, as dice can be.
    rounds = [(1.0, 2.0, 3.0), (2.0, 3.0, 1.0), (3.0, 1.0, 2.0)]
    times = [list(one) * 30 for one in zip(*rounds, strict=True)]
    models = {name: model(0.8, rounds=times[index]) for index, name in enumerate("abc")}
    assert pareto_front(models, "time") == ["a", "b", "c"]
