"""Metrics of classifiers, by example and over all examples: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hfcompress.losses import LabelLoss, Problem, label_loss

_BINS = 15  # of the calibration error, as in Guo et al. 2017
MISSING_LABELS = (-1, -100)  # of examples without a label, by convention of data sets


def per_example_metrics(
    logits: Tensor,
    labels: Tensor | None,
    teacher_logits: Tensor | None,
    problem: Problem,
    objective: Callable[[Tensor | None], Tensor] | None,
    *,
    objective_needs_labels: bool,
) -> dict[str, Tensor]:
    """Return the loss, the accuracy, the agreement with the teacher and the training objective of each example.

    Args:
        logits: The student's logits, shape (batch, classes).
        labels: As for `hfcompress.losses.label_loss`, or None; single labels of -1 and -100 are missing.
        teacher_logits: The teacher's logits, shape (batch, classes), or None.
        problem: The problem type of the classifier.
        objective: The training objective by example, as a function of labels none of which is missing; None where it
            cannot be computed.
        objective_needs_labels: Whether the objective has no meaning for an example without a label.

    Returns:
        By metric a tensor of shape (batch, 2): the value of each example, and 1 where it is known, else 0. The metrics
        do not depend on what is missing, so all batches of a problem have the same.

    Raises:
        CompressionError: The labels do not fit the logits.
    """
    every, none = torch.ones(len(logits), device=logits.device), torch.zeros(len(logits), device=logits.device)
    labelled = none if labels is None else every
    if labels is not None and problem == "single_label_classification" and not labels.is_floating_point():
        missing = torch.isin(labels, labels.new_tensor(MISSING_LABELS))
        labelled, labels = (~missing).to(every.dtype), labels.masked_fill(missing, 0)
    kind: LabelLoss = "mse" if problem == "regression" else "cross_entropy"
    pairs = {"loss": (none if labels is None else label_loss(logits, labels, kind, problem=problem), labelled)}
    if problem != "regression":
        predictions = _predict(logits, problem)
        correct = none if labels is None else _equal(predictions, labels.reshape(predictions.shape))
        pairs["accuracy"] = correct, labelled
        same = None if teacher_logits is None else _equal(predictions, _predict(teacher_logits, problem))
        pairs["agreement"] = (none, none) if same is None else (same, every)
    if objective is None or (labels is None and objective_needs_labels):
        pairs["distillation_loss"] = none, none
    else:
        pairs["distillation_loss"] = objective(labels), labelled if objective_needs_labels else every
    return {name: torch.stack(pair, dim=1) for name, pair in pairs.items()}


def mean_metrics(metrics: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Return the mean of each metric over the examples of all batches for which it is known.

    Args:
        metrics: By metric a tensor for each batch, as `per_example_metrics` returns them.

    Returns:
        The means. A metric that is known of no example is left out; ``"loss"`` is then the training objective.
    """
    means = {name: _mean_known(torch.cat(list(batches))) for name, batches in metrics.items()}
    if means["loss"] is None:
        means["loss"] = means["distillation_loss"]
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean_known(pairs: Tensor) -> float | None:
    values, known = pairs.detach().cpu().double().unbind(1)
    return float(values[known == 1].mean()) if known.any() else None


def _predict(logits: Tensor, problem: Problem) -> Tensor:
    """Return the predicted class of each example, or for each label 1.0 where it is predicted and 0.0 where not."""
    return logits.argmax(-1) if problem == "single_label_classification" else (logits > 0).to(logits.dtype)


def _equal(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return by example whether prediction and target are equal, or the fraction of labels for which they are."""
    equal = (predictions == targets).float()
    return equal if equal.dim() == 1 else equal.mean(-1)


def f1_score(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """Return the F1 score of class 1 where there are two classes, else the mean over the classes (macro).

    As scikit-learn's ``f1_score`` with ``average="binary"`` and ``"macro"``: a class that is neither among the labels
    nor among the predictions is left out of the mean, and the F1 of class 1 is then 0.

    Args:
        predictions: Class indices, shape (examples,).
        labels: Class indices, shape (examples,).
        classes: Number of classes.

    Example:
        >>> f1_score(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 1]), classes=2)
        0.4
    """
    hits = torch.bincount(labels[predictions == labels], minlength=classes).double()
    both = (torch.bincount(predictions, minlength=classes) + torch.bincount(labels, minlength=classes)).double()
    scores = 2 * hits / both.clamp(min=1)
    return float(scores[1] if classes == 2 else scores[both > 0].mean())


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error, the distance of confidence and accuracy (Guo et al. 2017).

    Confidence is the probability of the predicted class. It puts the examples into 15 bins of equal width; the error is
    the mean over the examples of the distance between the accuracy and the mean confidence of their bin.

    Args:
        probabilities: Shape (examples, classes).
        labels: Class indices, shape (examples,).

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
        >>> round(calibration_error(probabilities, torch.tensor([0, 1, 1])), 4)  # (2 * |0.5 - 0.9| + |1 - 0.8|) / 3
        0.3333
    """
    confidence, predictions = probabilities.double().max(-1)
    correct = (predictions == labels).double()
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1  # a bin includes its upper end
    gaps = torch.zeros(_BINS, dtype=torch.double).index_add(0, bins, correct - confidence)
    return float(gaps.abs().sum() / len(labels))
