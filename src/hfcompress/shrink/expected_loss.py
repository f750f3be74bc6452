"""The curvature of a classifier's loss where labels are as likely as it predicts itself."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcompress.losses import Problem


def expected_loss(logits: Tensor, problem: Problem, random: torch.Generator) -> Tensor:
    """A value whose squared gradient is that of the loss, expected over labels as likely as the model predicts.

    So their mean is the diagonal of the Fisher information itself, for which the empirical one takes the data's labels.

    Args:
        logits: Shape (batch, classes).
        problem: With two classes the expectation is exact; of more it is that of whether the predicted class is the
            label. Several labels, or outputs of a regression, are added with random signs, so that the products of two
            cancel out on average; the outputs of a regression are equally uncertain.
        random: Draws the signs.

    Returns:
        Shape (batch,), float32.
    """
    logits = logits.float()
    if problem == "single_label_classification":
        best = logits.argmax(1, keepdim=True)
        odds = logits.gather(1, best)[:, 0] - logits.scatter(1, best, float("-inf")).logsumexp(1)
        return odds * _deviation(odds)
    signs = (2 * torch.randint(2, logits.shape, generator=random) - 1).to(logits)
    weights = signs / logits.shape[1] * (1 if problem == "regression" else _deviation(logits))
    return (logits * weights).sum(1)


def _deviation(odds: Tensor) -> Tensor:
    """The standard deviation of a label with these log-odds."""
    return (odds.sigmoid() * (-odds).sigmoid()).sqrt().detach()
