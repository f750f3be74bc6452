"""What an evaluation says of a student: figures for each example, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hfcompress.losses import LabelLoss, Problem, label_loss

_LABELLED = "labelled"  # 1 where an example has a label
_NEED_LABELS = ("loss", "accuracy")


def figures_of(
    logits: Tensor,
    labels: Tensor | None,
    taught: Tensor | None,
    problem: Problem,
    objective: Callable[[Tensor | None], Tensor] | None,
) -> dict[str, Tensor]:
    """The figures of a batch.

    Args:
        logits: The student's, shape (batch, classes).
        labels: As for `hfcompress.losses.label_loss`; of single labels, -1 and -100 are none. None without labels.
        taught: The teacher's logits, shape (batch, classes), or None.
        problem: What the logits mean.
        objective: The training objective of each example, given labels without gaps; None where it cannot be told.

    Returns:
        By name a tensor of shape (batch,); empty if there is nothing to tell.

    Raises:
        CompressionError: The labels do not fit.
    """
    found = {}
    labelled = torch.ones(len(logits), device=logits.device)
    if labels is not None:
        if problem == "single_label_classification" and not labels.is_floating_point():
            labelled, labels = (labels >= 0).to(labelled.dtype), labels.clamp(min=0)
        kind: LabelLoss = "mse" if problem == "regression" else "cross_entropy"
        found["loss"] = label_loss(logits, labels, kind, problem=problem)
        if problem != "regression":
            said = answer_of(logits, problem)
            found["accuracy"] = _same(said, labels.reshape(said.shape))
    if objective is not None:
        found["distillation_loss"] = objective(labels)
    if taught is not None and problem != "regression":
        found["agreement"] = _same(answer_of(logits, problem), answer_of(taught, problem))
    return found | {_LABELLED: labelled} if found else {}


def means_of(figures: Mapping[str, Sequence[Tensor]], *, objective_needs_labels: bool) -> dict[str, float]:
    """The means over the examples of all batches; of what needs a label, over those that have one.

    Where none has one, the loss is the training objective.
    """
    columns = {name: torch.cat(list(parts)).detach().double() for name, parts in figures.items()}
    labelled = columns.pop(_LABELLED) == 1
    needing = (*_NEED_LABELS, *["distillation_loss"] * objective_needs_labels)
    chosen = {name: values[labelled] if name in needing else values for name, values in columns.items()}
    means = {name: float(values.mean()) for name, values in chosen.items() if len(values)}
    if "loss" not in means and "distillation_loss" in means:
        means["loss"] = means["distillation_loss"]
    return means


def answer_of(logits: Tensor, problem: Problem) -> Tensor:
    """The class, or for each label whether it holds."""
    return logits.argmax(-1) if problem == "single_label_classification" else (logits > 0).to(logits.dtype)


def _same(one: Tensor, other: Tensor) -> Tensor:
    """By example, whether the answers are the same, or for what share of the labels."""
    same = (one == other).float()
    return same if same.dim() == 1 else same.mean(-1)
