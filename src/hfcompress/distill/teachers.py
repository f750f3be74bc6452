"""The teachers of a student: whether they fit it, and their outputs in the order of its classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.distill.layer_losses import ForwardRecorder, ModelOutputs
from hfcompress.errors import CompressionError
from hfcompress.losses import mean_logits
from hfcompress.models.classifier import are_default_names, get_problem_type, input_names, label_names, label_order
from hfcompress.models.tensors import check_has_values, identities
from hfcompress.validation import is_number


class Teachers:
    """One teacher or several, whose probabilities are averaged.

    Attributes:
        models: The teachers.
        module: The teacher itself, or a list module of several.

    Raises:
        CompressionError: A teacher does not fit the student, or the weights the teachers.
    """

    def __init__(self, student: nn.Module, models: Sequence[nn.Module], weights: Sequence[float] | None) -> None:
        self._label_orders = [_check_pair(student, model) or slice(None) for model in models]
        self._weights = _normalize([1.0] * len(models) if weights is None else weights, len(models))
        self._problem = get_problem_type(student, "student")
        self.models = list(models)
        self.module = models[0] if len(models) == 1 else nn.ModuleList(models)

    def freeze(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Freeze the teachers in place, move them to a device, convert them if a dtype is given; into eval mode."""
        self.module.requires_grad_(False)
        self.module.to(device, dtype).eval()

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any], recorder: ForwardRecorder) -> ModelOutputs:
        """Run each teacher on the inputs that it takes; return the mean, and of a single one also what is recorded."""
        self.module.eval()
        found, logits = [], []
        for model, order in zip(self.models, self._label_orders, strict=True):
            names = input_names(model)
            found.append(recorder(model, {name: value for name, value in inputs.items() if name in names}))
            logits.append(found[-1].logits[..., order])
        return replace(found[0], logits=mean_logits(logits, self._weights, self._problem))

    def reorder(self, cached: Tensor) -> Tensor:
        """Put logits that were computed before, by the only teacher, into the order of the student's classes."""
        return cached[..., self._label_orders[0]] if len(self.models) == 1 else cached


def _normalize(weights: Sequence[float], count: int) -> list[float]:
    valid = isinstance(weights, Sequence) and len(weights) == count
    if not valid or not all(is_number(weight) and 0 < weight < math.inf for weight in weights):
        raise CompressionError(f"teacher_weights={weights!r} must list {count} numbers above 0, one per teacher.")
    return [float(weight) / float(sum(weights)) for weight in weights]


def _check_pair(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Refuse a teacher that does not fit a student; return the order of its classes if it is not the student's."""
    if not isinstance(teacher, nn.Module):
        raise CompressionError(f"teacher must be a model or a list of models, not {type(teacher).__name__}; load it.")
    check_has_values(teacher.named_parameters(), "The teacher's ")
    if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
        raise CompressionError(
            "The teacher's weights are partitioned by DeepSpeed (ZeRO-3), so that it cannot run by itself; load it "
            "before the training arguments are made, or compute its logits beforehand with cache_teacher_logits."
        )
    ours, theirs = ({key for p in model.parameters() for key in identities(p)} for model in (student, teacher))
    if ours & theirs:
        raise CompressionError(
            "Teacher and student share parameters, so freezing one would freeze both; pass copy.deepcopy(teacher)."
        )
    own, other = get_problem_type(student, "student"), get_problem_type(teacher, "teacher")
    if own != other:
        raise CompressionError(f"The student's problem_type is {own!r}, the teacher's {other!r}; they must match.")
    labels, others = label_names(student), label_names(teacher)
    differ = set(labels.values()) != set(others.values()) and not any(map(are_default_names, (labels, others)))
    if labels and others and (len(labels) != len(others) or differ):
        raise CompressionError(
            f"The teacher has {len(others)} labels ({others}), the student {len(labels)} ({labels}); they must match."
        )
    return label_order(student, teacher)
