"""Metrics against scikit-learn, SciPy and plain loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from torch.nn.functional import cross_entropy

from hfcompress.metrics import (
    calibration_error,
    example_scores,
    f1_score,
    mean_metrics,
    multi_label_figures,
    per_example_metrics,
    regression_figures,
)


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 50), st.integers(0, 1000))
def test_f1_is_that_of_scikit_learn(classes, count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels, predictions = (torch.randint(0, classes, (count,), generator=generator) for _ in range(2))
    average = "binary" if classes == 2 else "macro"
    wanted = metrics.f1_score(labels, predictions, average=average, zero_division=0)
    assert f1_score(predictions, labels, classes) == pytest.approx(wanted)


def random_probabilities(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(count, classes, generator=generator)).softmax(-1).double()
    return probabilities, torch.randint(0, classes, (count,), generator=generator)


@given(st.integers(2, 5), st.integers(1, 200), st.integers(0, 1000))
def test_the_calibration_error_is_that_of_a_plain_loop(classes, count, seed):
    probabilities, labels = random_probabilities(count, classes, seed)
    bins = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        bins.setdefault(math.ceil(15 * max(row)), []).append((max(row), row.index(max(row)) == label))
    error = 0.0
    for members in bins.values():
        confidence, accuracy = (sum(values) / len(members) for values in zip(*members, strict=True))
        error += len(members) / count * abs(accuracy - confidence)
    assert calibration_error(probabilities, labels) == pytest.approx(error)


def test_the_calibration_error_is_that_of_scikit_learn():
    probabilities, labels = random_probabilities(5000, 3, seed=0)
    confidence, predictions = probabilities.max(-1)
    correct = (predictions == labels).numpy()
    accuracies, means = calibration_curve(correct, confidence.numpy(), n_bins=15, strategy="uniform")
    counts = np.histogram(confidence.numpy(), np.linspace(0, 1, 16))[0]
    wanted = (counts[counts > 0] / 5000 * np.abs(accuracies - means)).sum()
    assert calibration_error(probabilities, labels) == pytest.approx(wanted)


def test_certain_predictions_have_the_error_of_their_accuracy():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert calibration_error(certain, torch.tensor([0, 1])) == 0
    assert calibration_error(certain, torch.tensor([1, 0])) == 1


def random_logits(count=12, classes=3, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NAMES = {"loss", "accuracy", "agreement", "distillation_loss"}


@pytest.mark.parametrize("missing", [-1, -100])
def test_an_example_without_a_label_counts_for_agreement_alone(missing):
    student, teacher = random_logits(seed=0), random_logits(seed=1)
    labels = torch.arange(12) % 3
    labels[::4] = missing
    known = labels >= 0
    found = per_example_metrics(student, labels, teacher, SINGLE, None, objective_needs_labels=True)
    means = mean_metrics({name: [values] for name, values in found.items()})
    predictions, expected = student[known].argmax(-1), labels[known]
    assert means["loss"] == pytest.approx(float(cross_entropy(student[known], expected)), rel=1e-6)
    assert means["accuracy"] == pytest.approx(metrics.accuracy_score(expected, predictions))
    assert means["agreement"] == pytest.approx(metrics.accuracy_score(teacher.argmax(-1), student.argmax(-1)))
    assert "distillation_loss" not in means


def test_a_batch_has_all_metrics_whatever_is_missing():
    logits = random_logits()
    found = per_example_metrics(logits, None, None, SINGLE, None, objective_needs_labels=True)
    assert set(found) == NAMES
    assert all(values.tolist() == [[0.0, 0.0]] * 12 for values in found.values())


def test_regression_has_no_predictions_to_compare():
    logits = random_logits(classes=1)
    labels = torch.linspace(-1, 1, 12)
    found = per_example_metrics(logits, labels, logits, "regression", None, objective_needs_labels=False)
    assert set(found) == NAMES - {"accuracy", "agreement"}
    assert found["loss"][:, 0].tolist() == pytest.approx(((logits[:, 0] - labels) ** 2).tolist())


def test_accuracy_of_several_labels_is_their_fraction():
    logits, labels = random_logits(), (random_logits(seed=1) > 0).float()
    found = per_example_metrics(logits, labels, None, MULTI, None, objective_needs_labels=False)
    wanted = [1 - metrics.hamming_loss(labels[i : i + 1], logits[i : i + 1] > 0) for i in range(12)]
    assert found["accuracy"][:, 0].tolist() == pytest.approx(wanted)


def test_the_objective_is_given_labels_without_gaps():
    given_labels = []
    labels = torch.tensor([0, -100, 2])

    def objective(labels):
        given_labels.append(labels.tolist())
        return torch.tensor([1.0, 2.0, 3.0])

    options = {"objective_needs_labels": True}
    found = per_example_metrics(random_logits(3), labels, None, SINGLE, objective, **options)
    assert given_labels == [[0, 0, 2]]
    assert found["distillation_loss"].tolist() == [[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]]


def test_the_loss_without_labels_is_the_objective():
    options = {"objective_needs_labels": False}
    found = per_example_metrics(random_logits(2), None, None, SINGLE, lambda _: torch.tensor([1.0, 4.0]), **options)
    assert mean_metrics({name: [values] for name, values in found.items()}) == {"loss": 2.5, "distillation_loss": 2.5}


def test_means_are_over_the_known_examples_of_all_batches():
    first, second = torch.tensor([[1.0, 1.0], [9.0, 0.0]]), torch.tensor([[4.0, 1.0], [4.0, 1.0]])
    assert mean_metrics({"loss": [first, second]}) == {"loss": 3.0}


# Several labels, and numbers

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)
some_labels = SHAPES.flatmap(
    lambda shape: st.tuples(*(arrays.arrays(float, shape, elements=st.sampled_from([0.0, 1.0])) for _ in range(2)))
)
# Few different numbers, for ties and constants, at several sizes.
NUMBERS = st.builds(lambda n, scale: n * scale, st.integers(-4, 4), st.sampled_from([1.0, 1.0, 1e-6, 1e6]))
some_numbers = arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8).flatmap(
    lambda shape: st.tuples(*(arrays.arrays(float, shape, elements=NUMBERS) for _ in range(2)))
)
same = {"rel": 1e-9, "abs": 1e-12, "nan_ok": True}


def as_numbers(figures, index=0):
    return {name: float(value[index]) for name, value in figures.items()}


def wanted_of_labels(labels, predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's mean of no label
        f1 = {name: metrics.f1_score(labels, predictions, average=name, zero_division=np.nan) for name in AVERAGES}
    accuracies = {
        "accuracy": metrics.accuracy_score(labels.ravel(), predictions.ravel()),
        "exact_match": metrics.accuracy_score(labels, predictions),
    }
    return accuracies | {f"f1_{name}": value for name, value in f1.items()}


AVERAGES = ("micro", "macro")


@given(some_labels)
def test_figures_of_several_labels_are_scikit_learns(drawn):
    labels, predictions = drawn
    if labels.shape[1] == 1:  # scikit-learn takes one column for classes
        labels, predictions = np.hstack([labels, labels]), np.hstack([predictions, predictions])
    found = as_numbers(multi_label_figures(torch.from_numpy(predictions - 0.5), torch.from_numpy(labels)))
    assert found == pytest.approx(wanted_of_labels(labels, predictions), **same)
    assert metrics.hamming_loss(labels, predictions) == pytest.approx(1 - found["accuracy"])


def test_macro_f1_leaves_out_labels_that_do_not_occur():
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    logits = torch.tensor([[1.0, -1, -1], [1, -1, 1]])
    assert float(multi_label_figures(logits, labels)["f1_macro"]) == 0.5  # 1, left out, 0
    nothing = multi_label_figures(-torch.ones(2, 3), torch.zeros(2, 3))
    assert [math.isnan(nothing[name]) for name in ("f1_micro", "f1_macro", "accuracy")] == [True, True, False]


def wanted_of_numbers(labels, outputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's of constants
        pearson = [stats.pearsonr(x, y)[0] for x, y in zip(labels.T, outputs.T, strict=True)]
        spearman = [stats.spearmanr(x, y)[0] for x, y in zip(labels.T, outputs.T, strict=True)]
    return {
        "mse": metrics.mean_squared_error(labels, outputs),
        "pearson": np.mean(pearson),
        "spearman": np.mean(spearman),
    }


@given(some_numbers)
def test_figures_of_numbers_are_scipys(drawn):
    labels, outputs = drawn
    found = as_numbers(regression_figures(torch.from_numpy(outputs), torch.from_numpy(labels)))
    wanted = wanted_of_numbers(labels, outputs)
    assert found == pytest.approx(wanted, **same | {"rel": 1e-6})


@settings(max_examples=50)
@given(some_numbers, st.integers(0, 1000))
def test_figures_of_a_resample_are_those_of_its_rows(drawn, seed):
    count = len(drawn[0])
    chosen = np.random.default_rng(seed).integers(0, count, (3, count))
    weights = torch.from_numpy(np.stack([np.bincount(row, minlength=count) for row in chosen])).double()
    labels, outputs = (torch.from_numpy(np.sign(one) + (one > 2)) for one in drawn)
    positive = (labels > 0).double()
    resampled = regression_figures(outputs, labels, weights) | multi_label_figures(outputs, positive, weights)
    for index, row in enumerate(chosen):
        alone = regression_figures(outputs[row], labels[row]) | multi_label_figures(outputs[row], positive[row])
        wanted = as_numbers(alone)
        occurs, occurs_here = (((outputs[part] > 0) | (labels[part] > 0)).any(0) for part in (slice(None), row))
        if not torch.equal(occurs, occurs_here):
            wanted["f1_macro"] = math.nan
        assert as_numbers(resampled, index) == pytest.approx(wanted, **same)


@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1, -1e6])
def test_what_differs_by_rounding_alone_has_no_correlation(constant):
    outputs = torch.full((6, 1), constant)
    outputs[::2] = torch.nextafter(outputs[::2], torch.tensor(math.inf)) if constant else 0.0
    labels = torch.arange(6.0)[:, None]
    for found in (regression_figures(outputs, labels), regression_figures(labels, outputs)):
        assert math.isnan(found["pearson"])
        assert math.isnan(found["spearman"])
        assert found["mse"] >= 0


def test_scores_of_examples_have_the_mean_of_the_figure():
    logits, labels = random_logits(), random_logits(seed=1)
    scores = example_scores(logits, labels, "regression")
    assert float(scores.mean()) == pytest.approx(float(regression_figures(logits, labels)["mse"]))
    labels = (labels > 0).double()
    assert float(example_scores(logits, labels, MULTI).mean()) == pytest.approx(
        float(multi_label_figures(logits, labels)["accuracy"])
    )
