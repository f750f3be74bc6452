"""What an evaluation says of a student: figures for each example, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hfcompress.losses import LabelLoss, Problem, label_loss

_UNLABELLED = (-1, -100)  # what data sets give to examples without a label


def figures_of(
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


def means_of(figures: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
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
