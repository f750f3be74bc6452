"""Metrics against scikit-learn and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve
from torch.nn.functional import cross_entropy

from hfcompress.metrics import calibration_error, f1_score, mean_metrics, per_example_metrics


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
