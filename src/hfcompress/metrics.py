"""Metrics of classifiers, by example and over all examples: pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hfcompress.losses import LabelLoss, Problem, label_loss

_BINS = 15  # of the calibration error, as in Guo et al. 2017
MISSING_LABELS = (-1, -100)  # of examples without a label, by convention of data sets
_ROUNDING = 8 * torch.finfo(torch.float32).eps  # numbers that differ by less, relative to their size, are equal
_NO_VARIANCE = 1e-14  # relative to the mean square: what is left of a variance of 0 in float64


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
        do not depend on what is missing, so all batches of a problem have the same. Logits that are not finite predict
        nothing; of several labels, which may be soft, those above 0.5 are to be predicted.

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
        predictions = predict(logits, problem)
        finite = logits.isfinite().all(-1).to(every.dtype)  # NaN would be class 0
        correct = none
        if labels is not None:
            targets = labels if problem == "single_label_classification" else labels > 0.5  # which may be soft
            correct = _equal(predictions, targets.reshape(predictions.shape)) * finite
        pairs["accuracy"] = correct, labelled
        pairs["agreement"] = none, none
        if teacher_logits is not None:
            same = _equal(predictions, predict(teacher_logits, problem)) * finite
            pairs["agreement"] = same, teacher_logits.isfinite().all(-1).to(every.dtype)
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


def predict(logits: Tensor, problem: Problem) -> Tensor:
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


def example_scores(logits: Tensor, labels: Tensor, problem: Problem) -> Tensor:
    """Return by example the fraction of its labels that are predicted, or in regression the mean squared error.

    Args:
        logits: Shape (examples, outputs).
        labels: Same shape: 1 or 0 per label, or in regression numbers.
        problem: ``"multi_label_classification"`` or ``"regression"``.

    Example:
        >>> labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> example_scores(torch.tensor([[2.0, -2.0], [2.0, -2.0]]), labels, "multi_label_classification").tolist()
        [1.0, 0.5]
    """
    if problem == "regression":
        return (logits.double() - labels.double()).square().mean(-1)
    return (predict(logits, problem) == labels).double().mean(-1)


def multi_label_figures(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Return the accuracies and F1 scores of a multi-label classifier, NaN where one is undefined.

    ``accuracy`` is the fraction of labels that are predicted correctly, ``exact_match`` the fraction of examples with
    all labels correct: scikit-learn's ``1 - hamming_loss`` and ``accuracy_score``. The F1 scores are its ``f1_score``
    with ``zero_division=np.nan``: a label that no example has and none is predicted to have is left out of
    ``f1_macro``. In a sample without one of the other labels ``f1_macro`` is undefined.

    Args:
        logits: Shape (examples, labels); a label is predicted where its logit is above 0.
        labels: Same shape: 1 or 0.
        weights: How often each example counts, shape (samples, examples); each once if None.

    Returns:
        By figure a tensor of shape (samples,).

    Example:
        >>> logits, labels = torch.tensor([[2.0, -2.0], [2.0, -2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> {name: round(float(value), 3) for name, value in multi_label_figures(logits, labels).items()}
        {'accuracy': 0.75, 'exact_match': 0.5, 'f1_micro': 0.8, 'f1_macro': 0.5}
    """
    weights = _each_once(logits) if weights is None else weights
    labels, predictions = labels.double(), predict(logits, "multi_label_classification").double()
    scores = example_scores(logits, labels, "multi_label_classification")
    hits, both = weights @ (predictions * labels), weights @ (predictions + labels)
    return {
        "accuracy": _weighted_mean(scores, weights),
        "exact_match": _weighted_mean((predictions == labels).all(-1).double(), weights),
        "f1_micro": 2 * hits.sum(-1) / both.sum(-1),
        "f1_macro": (2 * hits / both)[:, (predictions + labels).any(0)].mean(-1),
    }


def regression_figures(outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Return the mean squared error and the correlations of a regression, NaN where one is undefined.

    With several outputs a correlation is the mean of those of the outputs. It is undefined where outputs or labels are
    all equal, to the rounding of float32.

    Args:
        outputs: Shape (examples, outputs).
        labels: Same shape.
        weights: How often each example counts, shape (samples, examples); each once if None.

    Returns:
        By figure (``mse``, ``pearson``, ``spearman``) a tensor of shape (samples,).

    Example:
        >>> outputs, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> {name: round(float(value), 3) for name, value in regression_figures(outputs, labels).items()}
        {'mse': 0.333, 'pearson': 0.982, 'spearman': 1.0}
    """
    weights = _each_once(outputs) if weights is None else weights
    pairs = [(_standardize(x), _standardize(y)) for x, y in zip(outputs.T, labels.T, strict=True)]
    return {
        "mse": _weighted_mean(example_scores(outputs, labels, "regression"), weights),
        "pearson": torch.stack([_pearson(x, y, weights) for x, y in pairs]).mean(0),
        "spearman": torch.stack([_spearman(x, y, weights) for x, y in pairs]).mean(0),
    }


def _each_once(logits: Tensor) -> Tensor:
    return torch.ones(1, len(logits), dtype=torch.double)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return weights @ values / weights.sum(-1)


def _standardize(values: Tensor) -> Tensor:
    """Move numbers to a mean of 0 and a largest distance of 1; to 0 where they differ by rounding alone."""
    values = values.double()
    if values.max() - values.min() <= _ROUNDING * values.abs().max():
        return torch.zeros_like(values)
    centred = values - values.mean()
    return centred / centred.abs().max()


def _pearson(first: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    products = torch.stack([first, other, first * first, other * other, first * other], dim=1)
    x, y, xx, yy, xy = (weights @ products / weights.sum(-1, keepdim=True)).unbind(1)
    variances = xx - x * x, yy - y * y
    defined = (variances[0] > _NO_VARIANCE * xx) & (variances[1] > _NO_VARIANCE * yy)
    correlation = (xy - x * y) / (variances[0] * variances[1]).sqrt()
    return correlation.clamp(-1, 1).masked_fill(~defined, math.nan)


def _spearman(first: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    x, y = _ranks(first, weights), _ranks(other, weights)
    weighted = weights * x
    covariance, variances = (weighted * y).sum(-1), ((weighted * x).sum(-1), (weights * y * y).sum(-1))
    return (covariance / (variances[0] * variances[1]).sqrt()).clamp(-1, 1)  # 0 / 0 where all ranks are equal


def _ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Return the ranks of numbers, less their mean, in each sample; equal numbers have the mean of their ranks."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    ends = weights.index_select(1, group.argsort()).cumsum(1).index_select(1, sizes.cumsum(0) - 1)
    starts = pad(ends, (1, 0))[:, :-1]  # how many are in the groups before, and with those in the group itself: ends
    return ((starts + ends - weights.sum(-1, keepdim=True)) / 2).index_select(1, group)
