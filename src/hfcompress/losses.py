"""Loss functions of distillation: pure functions of tensors that return one float32 value per example.

The meaning of a classifier's logits depends on ``problem``, its ``problem_type`` in transformers:

- ``"single_label_classification"``: one class per example; the probabilities are the softmax of the logits;
- ``"multi_label_classification"``: any number of labels per example; each probability is the sigmoid of its logit;
- ``"regression"``: the logits are the predicted values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from hfcompress.errors import CompressionError
from hfcompress.validation import check_choice, check_fraction, check_number

TeacherLoss = Literal["mse", "mse_logits", "kl"]
LabelLoss = Literal["mse", "cross_entropy"]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
TEACHER_LOSSES: tuple[str, ...] = get_args(TeacherLoss)
LABEL_LOSSES: tuple[str, ...] = get_args(LabelLoss)
_kl_div = partial(functional.kl_div, reduction="none", log_target=True)


_NONE = -(1 << 62)  # no label is left out: the usual -100 would count as one with a loss of 0


def teacher_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: TeacherLoss = "mse",
    temperature: float = 1.0,
    problem: Problem = "single_label_classification",
) -> Tensor:
    """Compute the distillation loss of each example: the student's logits against the teacher's.

    Args:
        student_logits: Shape (batch, classes), any floating dtype.
        teacher_logits: Same shape.
        kind: ``"mse"``: squared difference of the probabilities at temperature 1, averaged over the classes.
            ``"mse_logits"``: the same of the logits (Ba & Caruana 2014, https://arxiv.org/abs/1312.6184, eq. 1, as a
            mean). ``"kl"``: KL(teacher || student) of the probabilities at ``temperature``, times its square (Hinton
            et al. 2015, https://arxiv.org/abs/1503.02531, section 2); in multi-label classification the mean of the
            labels' divergences. In regression the first two are equal and the third is undefined.
        temperature: Divides the logits of both models; for ``"kl"`` only.
        problem: The problem type, see `hfcompress.losses`.

    Returns:
        Shape (batch,), float32.

    Raises:
        CompressionError: The shapes differ or are no (batch, classes), ``kind`` is unknown, or it is undefined for the
            problem; the temperature is not above 0.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])
        >>> teacher_loss(student, teacher)  # probabilities (0.5, 0.5) and (1, 0)
        tensor([0.2500])
    """
    check_teacher_loss(kind, problem)
    check_number("temperature", temperature, zero=False)
    _check_logits("student_logits", student_logits)
    if student_logits.shape != teacher_logits.shape:
        raise CompressionError(
            f"The student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}; both models need the same examples and the same classes."
        )
    student, teacher = student_logits.float(), teacher_logits.float()
    if kind == "mse":
        return (probabilities(student, problem) - probabilities(teacher, problem)).square().mean(-1)
    if kind == "mse_logits":
        return (student - teacher).square().mean(-1)
    student, teacher = student / temperature, teacher / temperature
    if problem == "single_label_classification":
        return _kl_div(student.log_softmax(-1), teacher.log_softmax(-1)).sum(-1) * temperature**2
    positive, negative = (
        _kl_div(functional.logsigmoid(sign * student), functional.logsigmoid(sign * teacher)) for sign in (1, -1)
    )
    return (positive + negative).mean(-1) * temperature**2


def label_loss(
    logits: Tensor,
    labels: Tensor,
    kind: LabelLoss = "mse",
    label_smoothing: float = 0.0,
    problem: Problem = "single_label_classification",
    *,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Compute the supervised loss of each example: the logits against the labels.

    Args:
        logits: Shape (batch, classes), any floating dtype.
        labels: Class indices, integers of shape (batch,). In multi-label classification 1.0 or 0.0 per label, shape
            (batch, labels). In regression numbers, shape (batch,) or (batch, outputs).
        kind: ``"mse"``: squared difference of the probabilities and the one-hot label, averaged over the classes (the
            Brier score, divided by the number of classes); in regression of logits and labels. ``"cross_entropy"``:
            -log of the label's probability; in multi-label classification the mean of the binary cross-entropies.
        label_smoothing: Share of the label spread evenly over all classes, or over 0 and 1 of each of several labels.
        problem: The problem type, see `hfcompress.losses`.
        class_weights: A weight for each class, shape (classes,): each value is multiplied by that of its label. As in
            `torch.nn.CrossEntropyLoss`, the smoothed part of ``"cross_entropy"`` is weighted class by class. In
            multi-label classification the value is the weighted mean over the labels. Undefined in regression.

    Returns:
        Shape (batch,), float32.

    Raises:
        CompressionError: The labels or weights do not fit, ``kind`` is unknown, or it is undefined for the problem; the
            smoothing is not in [0, 1].

    Example:
        >>> import torch
        >>> label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), "cross_entropy")
        tensor([0.6931])
    """
    check_label_loss(kind, problem, label_smoothing)
    _check_logits("logits", logits)
    logits = logits.float()
    if class_weights is not None:
        _check_class_weights(logits, class_weights, problem)
    if problem == "single_label_classification":
        _check_indices(logits, labels)
        labels = labels.long()
        if kind == "cross_entropy":
            return functional.cross_entropy(
                logits,
                labels,
                class_weights,
                ignore_index=_NONE,
                reduction="none",
                label_smoothing=label_smoothing,
            )
        target = functional.one_hot(labels, logits.shape[-1]).float()
        target = target * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        values = (logits.softmax(-1) - target).square().mean(-1)
        return values if class_weights is None else values * class_weights[labels]
    if labels.shape not in (logits.shape, logits.shape[:1] if logits.shape[-1:] == (1,) else logits.shape):
        raise CompressionError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            f"{problem} needs one number per logit."
        )
    target = labels.reshape(logits.shape).float()
    if problem == "regression":
        return (logits - target).square().mean(-1)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    if kind == "cross_entropy":
        values = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    else:
        values = (logits.sigmoid() - target).square()
    return values.mean(-1) if class_weights is None else values @ (class_weights / class_weights.sum())


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared difference of the student's and the teacher's hidden states for each example.

    The hidden-state loss of TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351, eq. 8 and 9). Project the
    student's hidden states to the teacher's width first where the widths differ.

    Args:
        student: Shape (batch, tokens, width), any floating dtype.
        teacher: Same shape.
        mask: Attention mask of shape (batch, tokens): padding, where it is 0, is ignored. No padding if None.

    Returns:
        Shape (batch,), float32: the mean over the tokens of each example and the width.

    Raises:
        CompressionError: The shapes do not fit.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 4), torch.tensor([1.0, 9.0]).view(1, 2, 1).expand(1, 2, 4)
        >>> hidden_state_loss(student, teacher, torch.tensor([[1, 0]]))  # the second token is padding
        tensor([1.])
    """
    _check_tokens(student, teacher, mask)
    if student.shape[-1] != teacher.shape[-1]:
        raise CompressionError(
            f"The student's hidden states are {student.shape[-1]} wide, the teacher's {teacher.shape[-1]}; "
            "project them to the same width first."
        )
    return _mean_over_tokens((student.float() - teacher.float()).square().mean(-1), mask)


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Compute the divergence of the student's self-attention relations from the teacher's for each example.

    MiniLMv2 (Wang et al. 2021, https://arxiv.org/abs/2012.15828, section 3): the queries, keys or values of all
    attention heads are concatenated and split into relation heads; the relation of a token to all tokens is the softmax
    of its scaled dot products with them. The loss is KL(teacher || student), averaged over relation heads and tokens.
    Neither the widths nor the numbers of attention heads need to be equal.

    Args:
        student: Shape (batch, tokens, width), any floating dtype: the queries, keys or values of all heads.
        teacher: Shape (batch, tokens, other width): the same of the teacher.
        heads: Number of relation heads; divides both widths.
        mask: Attention mask of shape (batch, tokens): padding, where it is 0, is ignored. No padding if None.

    Returns:
        Shape (batch,), float32: the mean over the tokens of each example and the relation heads.

    Raises:
        CompressionError: The shapes do not fit, or ``heads`` does not divide the widths.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 4), 100 * torch.eye(2).view(1, 2, 2)
        >>> relation_loss(student, teacher, heads=2)  # uniform relations against one-hot ones: half of log 4
        tensor([0.3466])
    """
    _check_tokens(student, teacher, mask)
    log_p, log_q = (_log_relations(vectors.float(), heads, mask) for vectors in (student, teacher))
    return _mean_over_tokens(_kl_div(log_p, log_q).sum(-1).mean(1), mask)


def probabilities(logits: Tensor, problem: Problem = "single_label_classification") -> Tensor:
    """Convert logits to probabilities of the same shape and dtype; in regression return them unchanged."""
    if problem == "regression":
        return logits
    return logits.softmax(-1) if problem == "single_label_classification" else logits.sigmoid()


def mean_logits(
    logits: Sequence[Tensor], weights: Sequence[float], problem: Problem = "single_label_classification"
) -> Tensor:
    """Compute logits whose probabilities are the weighted mean of several models' probabilities.

    Args:
        logits: One tensor per model, each of shape (batch, classes).
        weights: One weight per model; they sum to 1.
        problem: The problem type, see `hfcompress.losses`.

    Returns:
        Shape (batch, classes), float32; the logits of a single model unchanged.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> mean_logits([one, other], [0.5, 0.5]).softmax(-1)
        tensor([[0.7000, 0.3000]])
    """
    if len(logits) == 1:
        return logits[0]
    shares = torch.tensor(weights, device=logits[0].device).view(-1, 1, 1)
    stacked = torch.stack([one.float() for one in logits])
    if problem == "regression":
        return (stacked * shares).sum(0)
    if problem == "single_label_classification":
        mean = (stacked.log_softmax(-1) + shares.log()).logsumexp(0)
        # Softmax ignores a constant; with this one, models with equal logits give these logits.
        return mean + (stacked.logsumexp(-1, keepdim=True) * shares).sum(0)
    positive, negative = ((functional.logsigmoid(sign * stacked) + shares.log()).logsumexp(0) for sign in (1, -1))
    return positive - negative


def check_teacher_loss(kind: str, problem: str = "single_label_classification") -> None:
    """Raise a `CompressionError` unless this loss exists and is defined for this problem."""
    check_problem(problem)
    check_choice("teacher_loss", kind, TEACHER_LOSSES)
    if kind == "kl" and problem == "regression":
        raise CompressionError(
            "teacher_loss='kl' compares probabilities, and a regression head (num_labels=1) has none; choose 'mse'."
        )


def check_label_loss(kind: str, problem: str = "single_label_classification", label_smoothing: float = 0.0) -> None:
    """Raise a `CompressionError` unless this loss exists and is defined for this problem."""
    check_problem(problem)
    check_choice("label_loss", kind, LABEL_LOSSES)
    check_fraction("label_smoothing", label_smoothing, "the share of a label that is spread", one=True)
    if problem == "regression" and (kind == "cross_entropy" or label_smoothing):
        what = "label_loss='cross_entropy'" if kind == "cross_entropy" else f"label smoothing ({label_smoothing})"
        raise CompressionError(
            f"{what} needs classes, and a regression head (num_labels=1) has none; use label_loss='mse' without "
            "smoothing, or a head with num_labels=2 for two classes."
        )


def _check_logits(name: str, logits: Tensor) -> None:
    if logits.dim() != 2:
        raise CompressionError(
            f"{name} of shape {tuple(logits.shape)} must be (batch, classes); of one output an example, (batch, 1)."
        )


def check_problem(problem: str) -> None:
    """Raise a `CompressionError` unless this problem exists."""
    check_choice("problem_type", problem, get_args(Problem))


def _log_relations(vectors: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return the log of each token's relations to all tokens, shape (batch, heads, tokens, tokens)."""
    width = vectors.shape[-1]
    if heads < 1 or width % heads:
        raise CompressionError(f"{heads} relation heads do not divide a width of {width}; choose a common divisor.")
    split = vectors.view(*vectors.shape[:2], heads, width // heads).transpose(1, 2)
    scores: Tensor = split @ split.transpose(-1, -2) / (width // heads) ** 0.5
    if mask is not None:
        # Not -inf: the divergence at a padding token would be 0 * (inf - inf).
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def _mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average (batch, tokens) over the tokens of each example; 0 for an example that is all padding."""
    if mask is None:
        return values.mean(-1)
    real = mask != 0
    return torch.where(real, values, 0.0).sum(-1) / real.sum(-1).clamp(min=1)


def _check_tokens(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    if student.dim() != 3 or student.shape[:2] != teacher.shape[:2] or teacher.dim() != 3:
        raise CompressionError(
            f"The student's states have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; they are "
            "compared token by token, (batch, tokens, width), so both models must read the same tokens."
        )
    if mask is not None and mask.shape != student.shape[:2]:
        raise CompressionError(
            f"The mask of shape {tuple(mask.shape)} does not fit {tuple(student.shape[:2])}: one number per token."
        )


def _check_class_weights(logits: Tensor, class_weights: Tensor, problem: Problem) -> None:
    if problem == "regression":
        raise CompressionError("Class weights need classes, and a regression head has none; leave them out.")
    if class_weights.shape != logits.shape[-1:]:
        raise CompressionError(
            f"Class weights of shape {tuple(class_weights.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            f"list {logits.shape[-1]}, one for each class."
        )


def _check_indices(logits: Tensor, labels: Tensor) -> None:
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise CompressionError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit logits of shape "
            f"{tuple(logits.shape)}; pass one class index per example (for several labels per example, set "
            "problem_type='multi_label_classification' in the model's config)."
        )
    if labels.device.type != "cpu":  # reading the values would make the CPU wait
        return
    labels = labels.long()  # torch compares a uint8 with 256 as if that were 0
    wrong = labels[(labels < 0) | (labels >= logits.shape[-1])]
    if wrong.numel():
        raise CompressionError(
            f"The label {int(wrong[0])} is none of the {logits.shape[-1]} classes, which count from 0; leave out "
            "examples without a label, or train on them with alpha=1."
        )
