"""Figures of quality of one model, and of two models for the same examples, by what their logits mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import (
    calibration_error,
    example_scores,
    f1_score,
    multi_label_figures,
    predict,
    regression_figures,
)
from hfcompress.models.classifier import get_problem_type
from hfcompress.report.intervals import bootstrap_intervals, mcnemar, sign_flip, wilson_interval

_LEAVE_OUT = "leave out the labels to measure size and speed only."


def common_problem(models: Mapping[str, nn.Module]) -> Problem:
    """Return the problem type of models whose quality is to be compared.

    Raises:
        CompressionError: They have different ones.
    """
    problems = {name: get_problem_type(model, f"model {name!r}") for name, model in models.items()}
    if len(set(problems.values())) > 1:
        found = ", ".join(f"{name!r} {problem!r}" for name, problem in problems.items())
        raise CompressionError(
            f"The models have different problem types, so their quality cannot be compared: {found}. Compare those of "
            f"one type with each other, or {_LEAVE_OUT}"
        )
    return next(iter(problems.values()), "single_label_classification")


def check_labels(name: str, labels: Tensor, problem: Problem) -> Tensor:
    """Return the labels of the inputs of a model as int64 class indices, or as float64 where they are not indices.

    Raises:
        CompressionError: They are not of the kind that the problem needs.
    """
    if problem == "single_label_classification":
        indices = labels.dim() == 1 and not labels.is_floating_point()
        if indices and bool((labels.long() < 0).any()):
            row = int((labels.long() < 0).nonzero()[0])
            raise CompressionError(
                f"Row {row} (from 0) of the inputs for {name!r} has the label {int(labels[row])}, which is no class; "
                f"leave out the rows without a label, or {_LEAVE_OUT}"
            )
        if not indices:
            raise CompressionError(
                f"The labels of the inputs for {name!r} must be class indices, one an example, to measure accuracy; "
                "leave them out to measure size and speed only. A model of several labels an example has problem_type="
                "'multi_label_classification' in its config."
            )
        return labels.long()
    labels = labels.cpu().double()
    if problem == "regression":
        if broken := int((~labels.isfinite()).sum()):
            raise CompressionError(
                f"{broken} of the labels of the inputs for {name!r} are NaN or infinite; leave out those rows."
            )
        return labels
    others = labels[(labels != 0) & (labels != 1)]
    if len(others):
        raise CompressionError(
            f"The labels of the inputs for {name!r} hold {float(others[0]):g}, but the model's problem_type is "
            f"{problem!r}, which needs 0 or 1 for each label of the model; {_LEAVE_OUT}"
        )
    return labels


def score(name: str, logits: Tensor, labels: Tensor, problem: Problem) -> dict[str, Any]:
    """Return the figures of quality of one model alone, by attribute of a `Measurement`.

    Raises:
        CompressionError: The labels do not fit the logits, or a logit is NaN or infinite.
    """
    if problem == "single_label_classification":
        if logits.dim() != 2 or logits.shape[1] < 2 or int(labels.max()) >= logits.shape[1]:
            raise CompressionError(
                f"The labels of the inputs for {name!r} go up to {int(labels.max())}, and the model's logits are of "
                f"shape {tuple(logits.shape)}: one logit for each of two or more classes is needed; {_LEAVE_OUT}"
            )
    elif as_columns(logits).shape != as_columns(labels).shape:
        raise CompressionError(
            f"The labels of the inputs for {name!r} are of shape {tuple(labels.shape)}, but the model's problem_type "
            f"is {problem!r} and its logits are of shape {tuple(logits.shape)}: a number for each logit is needed; "
            f"{_LEAVE_OUT}"
        )
    broken = int((~as_columns(logits).isfinite()).any(-1).sum())
    if broken:
        raise CompressionError(f"The model {name!r} returns NaN or infinity for {broken} of {len(logits)} examples.")
    if problem == "single_label_classification":
        return _score_classes(logits, labels)
    return _score_columns(as_columns(logits), as_columns(labels), problem)


def compare_with_reference(
    name: str, reference: Tensor, logits: Tensor, labels: Tensor, problem: Problem
) -> dict[str, Any]:
    """Return the figures of quality beside the logits of a reference, by attribute of a `Measurement`.

    Raises:
        CompressionError: The reference has another number of logits, or one that is NaN or infinite.
    """
    single = problem == "single_label_classification"
    as_single = as_columns(reference), as_columns(logits)
    if not bool(as_single[0].isfinite().all()) or (not single and as_single[0].shape != as_single[1].shape):
        raise CompressionError(
            f"The reference returns logits of shape {tuple(reference.shape)}, and the model {name!r} of shape "
            f"{tuple(logits.shape)}; they are compared where both return the same number of finite logits."
        )
    if single:
        first, other = reference.argmax(-1), logits.argmax(-1)
        agreement = int((first == other).sum()) / len(labels)
        return {"agreement": agreement, "mcnemar": mcnemar(first == labels, other == labels)}
    reference, logits, labels = *as_single, as_columns(labels)
    scores = example_scores(reference, labels, problem), example_scores(logits, labels, problem)
    if problem == "regression":
        test = sign_flip(*scores, "squared error", lower_is_better=True)
        return {"reference_difference": float((logits - reference).abs().mean()), "sign_flip": test}
    agreement = float(example_scores(logits, predict(reference, problem), problem).mean())
    test = sign_flip(*scores, "label accuracy", lower_is_better=False, largest=1.0)
    return {"agreement": agreement, "sign_flip": test}


def compare_outputs(reference: Tensor, logits: Tensor, problem: Problem) -> dict[str, float]:
    """Return how alike two models' logits are, of shape (examples, outputs): no labels are needed.

    Returns:
        ``"agreement"``, the fraction of the examples, or of their labels, with the same prediction; in regression
        ``"reference_difference"``, the mean absolute difference.
    """
    reference, logits = as_columns(reference), as_columns(logits)
    if problem == "regression":
        return {"reference_difference": float((logits - reference).abs().mean())}
    same = predict(logits, problem) == predict(reference, problem)
    return {"agreement": float(same.double().mean())}


def as_columns(values: Tensor) -> Tensor:
    """Return a tensor of shape (examples, outputs) where there may be no dimension of a single output."""
    return values.reshape(len(values), -1)


def _score_classes(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    predictions = logits.argmax(-1)
    correct = int((predictions == labels).sum())
    return {
        "examples": len(labels),
        "problem_type": "single_label_classification",
        "accuracy": correct / len(labels),
        "accuracy_interval": wilson_interval(correct, len(labels)),
        "f1": f1_score(predictions, labels, logits.shape[1]),
        "cross_entropy": float(cross_entropy(logits, labels)),
        "calibration_error": calibration_error(logits.softmax(-1), labels),
    }


def _score_columns(logits: Tensor, labels: Tensor, problem: Problem) -> dict[str, Any]:
    """Return the figures of a multi-label classifier or a regression, with names of those that are undefined."""
    compute = regression_figures if problem == "regression" else multi_label_figures
    values = {name: float(value) for name, value in compute(logits, labels).items()}
    intervals = bootstrap_intervals(lambda weights: compute(logits, labels, weights), len(labels))
    figures: dict[str, Any] = values | {f"{name}_interval": interval for name, interval in intervals.items()}
    if problem == "multi_label_classification":
        exact = round(values["exact_match"] * len(labels))
        figures["exact_match_interval"] = wilson_interval(exact, len(labels))
        figures["cross_entropy"] = float(binary_cross_entropy_with_logits(logits, labels))
    undefined = tuple(name for name, value in figures.items() if value is None or value != value)
    figures |= dict.fromkeys(undefined)
    return {"examples": len(labels), "problem_type": problem, "undefined": undefined, **figures}
