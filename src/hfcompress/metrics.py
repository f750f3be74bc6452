"""Metrics of classifiers, for each example and over all of them: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hfcompress.losses import LabelLoss, Problem, label_loss

_BINS = 15  # of the calibration error, as in Guo et al. 2017
_UNLABELLED = (-1, -100)  # what data sets give to examples without a label


def per_example_metrics(
    logits: Tensor,
    labels: Tensor | None,
    taught: Tensor | None,
    problem: Problem,
    objective: Callable[[Tensor | None], Tensor] | None,
    *,
    objective_needs_labels: bool,
) -> dict[str, Tensor]:
    """The figures of a batch.

    Args:
        logits: The student's, shape (batch, classes).
        labels: As for `hfcompress.losses.label_loss`; of single labels, -1 and -100 are none. None without labels.
        taught: The teacher's logits, shape (batch, classes), or None.
        problem: What the logits mean.
        objective: The training objective of each example, given labels without gaps; None where it cannot be told.
        objective_needs_labels: Whether it means nothing for an example without a label.

    Returns:
        By name a tensor of shape (batch, 2): the figure of each example, and 1 where it is known, 0 where not. All
        batches have the same names, whatever is missing in some.

    Raises:
        CompressionError: The labels do not fit.
    """
    every, no = torch.ones(len(logits), device=logits.device), torch.zeros(len(logits), device=logits.device)
    labelled = no if labels is None else every
    if labels is not None and problem == "single_label_classification" and not labels.is_floating_point():
        missing = torch.isin(labels, labels.new_tensor(_UNLABELLED))
        labelled, labels = (~missing).to(every.dtype), labels.masked_fill(missing, 0)
    kind: LabelLoss = "mse" if problem == "regression" else "cross_entropy"
    found = {"loss": (no if labels is None else label_loss(logits, labels, kind, problem=problem), labelled)}
    if problem != "regression":
        said = _answer_of(logits, problem)
        found["accuracy"] = (no if labels is None else _same(said, labels.reshape(said.shape)), labelled)
        same = None if taught is None else _same(said, _answer_of(taught, problem))
        found["agreement"] = (no, no) if same is None else (same, every)
    if objective is None or (labels is None and objective_needs_labels):
        found["distillation_loss"] = (no, no)
    else:
        found["distillation_loss"] = (objective(labels), labelled if objective_needs_labels else every)
    return {name: torch.stack(pair, dim=1) for name, pair in found.items()}


def _mean_of(figure: Sequence[Tensor]) -> float | None:
    """The mean of a figure over the examples of all batches for which it is known; None if there is none."""
    values, known = torch.cat(list(figure)).detach().double().unbind(1)
    values = values[known == 1]
    return float(values.mean()) if len(values) else None


def mean_metrics(figures: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The means of all figures that are known; the loss, where no example has a label, is the training objective."""
    means = {name: _mean_of(parts) for name, parts in figures.items()}
    if means["loss"] is None:
        means["loss"] = means["distillation_loss"]
    return {name: mean for name, mean in means.items() if mean is not None}


def _answer_of(logits: Tensor, problem: Problem) -> Tensor:
    """The class, or for each label whether it holds."""
    return logits.argmax(-1) if problem == "single_label_classification" else (logits > 0).to(logits.dtype)


def _same(one: Tensor, other: Tensor) -> Tensor:
    """By example, whether the answers are the same, or for what share of the labels."""
    same = (one == other).float()
    return same if same.dim() == 1 else same.mean(-1)


def f1_score(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """Return the harmonic mean of precision and recall: of class 1 where there are two classes, else the mean of all.

    As scikit-learn's ``f1_score`` with ``average="binary"`` and ``"macro"``: a class that is neither among the labels
    nor among the predictions is left out of the mean, and the F1 of class 1 is then 0.

    Args:
        predictions: Class indices.
        labels: Class indices.
        classes: How many classes the model knows.

    Example:
        >>> f1_score(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 1]), classes=2)
        0.4
    """
    hits = torch.bincount(labels[predictions == labels], minlength=classes).double()
    both = (torch.bincount(predictions, minlength=classes) + torch.bincount(labels, minlength=classes)).double()
    scores = 2 * hits / both.clamp(min=1)
    return float(scores[1] if classes == 2 else scores[both > 0].mean())


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart (Guo et al. 2017).

    The examples are put into 15 bins of equal width by the probability of the predicted class; the error is the mean
    over the examples of the distance between the accuracy and the mean confidence of their bin.

    Args:
        probabilities: Shape (examples, classes).
        labels: Class indices.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
        >>> round(calibration_error(probabilities, torch.tensor([0, 1, 1])), 4)  # (2 * |0.5 - 0.9| + |1 - 0.8|) / 3
        0.3333
    """
    confidence, predictions = probabilities.double().max(-1)
    correct = (predictions == labels).double()
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1  # each with its upper end
    gaps = torch.zeros(_BINS, dtype=torch.double).index_add(0, bins, correct - confidence)
    return float(gaps.abs().sum() / len(labels))
