"""Losses of distillation: pure functions of tensors, one value an example, in float32 whatever the inputs' dtype."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from hfcompress.errors import CompressionError

TeacherLoss = Literal["mse", "mse_logits", "kl"]
LabelLoss = Literal["mse", "cross_entropy"]
TEACHER_LOSSES: tuple[str, ...] = get_args(TeacherLoss)
LABEL_LOSSES: tuple[str, ...] = get_args(LabelLoss)


def teacher_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: TeacherLoss = "mse", temperature: float = 1.0
) -> Tensor:
    """How far the student's answer is from the teacher's.

    Args:
        student_logits: Shape (batch, classes), any floating dtype.
        teacher_logits: Same shape.
        kind: ``"mse"``: mean over the classes of the squared difference of the probabilities (softmax, temperature 1).
            ``"mse_logits"``: the same of the logits (Ba & Caruana 2014, https://arxiv.org/abs/1312.6184, eq. 1, as a
            mean). ``"kl"``: KL(teacher || student) of the probabilities at ``temperature``, times its square (Hinton
            et al. 2015, https://arxiv.org/abs/1503.02531, section 2).
        temperature: Softens both distributions; for ``"kl"`` only.

    Returns:
        Shape (batch,), float32.

    Raises:
        CompressionError: The shapes differ or ``kind`` is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])
        >>> teacher_loss(student, teacher)  # probabilities (0.5, 0.5) and (1, 0)
        tensor([0.2500])
    """
    _check_shapes(student_logits, teacher_logits)
    student, teacher = student_logits.float(), teacher_logits.float()
    if kind == "mse":
        return (student.softmax(-1) - teacher.softmax(-1)).square().mean(-1)
    if kind == "mse_logits":
        return (student - teacher).square().mean(-1)
    if kind == "kl":
        log_p = (student / temperature).log_softmax(-1)
        log_q = (teacher / temperature).log_softmax(-1)
        return functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1) * temperature**2
    raise CompressionError(f"teacher_loss={kind!r} is unknown; choose one of {', '.join(TEACHER_LOSSES)}.")


def label_loss(logits: Tensor, labels: Tensor, kind: LabelLoss = "mse", label_smoothing: float = 0.0) -> Tensor:
    """How far the answer is from the labels.

    Args:
        logits: Shape (batch, classes), any floating dtype.
        labels: Class indices, shape (batch,), integers.
        kind: ``"mse"``: mean over the classes of the squared difference of the probabilities and the one-hot label (the
            Brier score, divided by the number of classes). ``"cross_entropy"``: -log of the label's probability.
        label_smoothing: Share of the label spread evenly over all classes.

    Returns:
        Shape (batch,), float32.

    Raises:
        CompressionError: The shapes do not fit or ``kind`` is unknown.

    Example:
        >>> import torch
        >>> label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), "cross_entropy")
        tensor([0.6931])
    """
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise CompressionError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit logits of shape "
            f"{tuple(logits.shape)}; class indices, one integer an example, are needed."
        )
    if kind == "cross_entropy":
        return functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
    if kind == "mse":
        target = functional.one_hot(labels, logits.shape[-1]).float()
        target = target * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        return (logits.float().softmax(-1) - target).square().mean(-1)
    raise CompressionError(f"label_loss={kind!r} is unknown; choose one of {', '.join(LABEL_LOSSES)}.")


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise CompressionError(
            f"The student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}; both models must answer the same examples with the same classes."
        )
