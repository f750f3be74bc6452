"""The teachers of a student: whether they fit it, and their outputs in the order of its classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.distill.layer_losses import ForwardRecorder, ModelOutputs
from hfcompress.errors import CompressionError
from hfcompress.losses import mean_logits
from hfcompress.models.classifier import check_model_kind, get_problem_type, input_names, unwrap
from hfcompress.models.labels import label_order
from hfcompress.models.new_head import check_trained
from hfcompress.models.padding import (
    fill_padding,
    find_padding,
    padded_with,
    reading,
    split_rows,
    unpadded_batches,
    without_padding,
)
from hfcompress.models.plain_weights import is_quantized
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
        self._runs = [_PaddedRun(model) for model in models]
        self.models = list(models)
        self.module = models[0] if len(models) == 1 else nn.ModuleList(models)

    def freeze(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Freeze the teachers in place, move them to a device, convert them if a dtype is given; into eval mode."""
        self.module.requires_grad_(False)
        self.module.to(device, dtype).eval()
        for model in self.models:  # which a Trainer in bf16 or fp16 has left with a forward under autocast
            own: Any = unwrap(model)
            if "_original_forward" in vars(own):
                own.forward = own._original_forward

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any], recorder: ForwardRecorder) -> ModelOutputs:
        """Run each teacher on the inputs that it takes; return the mean, and of a single one also what is recorded.

        The logits of a row do not depend on how the batch is padded.
        """
        self.module.eval()
        found = [run(inputs, recorder) for run in self._runs]
        logits = [one.logits[..., order] for one, order in zip(found, self._label_orders, strict=True)]
        return replace(found[0], logits=mean_logits(logits, self._weights, self._problem))

    def reorder(self, cached: Tensor) -> Tensor:
        """Put logits that were computed before, by the teachers, into the order of the student's classes.

        Raises:
            CompressionError: The teachers have their classes in different orders.
        """
        if any(order != self._label_orders[0] for order in self._label_orders):
            raise CompressionError(
                "The data have teacher_logits, and the teachers have their classes in different orders; leave out the "
                "teachers, or the column."
            )
        return cached[..., self._label_orders[0]]


class _PaddedRun:
    """Runs a teacher on padded batches; each row gets the logits that it would get alone.

    Most architectures give them if the padding has the id that they take for padding. Whether this one does is found
    out at the first batch of each side and length; where it does not (XLNet padded on the right, a convolution), rows
    of one length are read together, without padding.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._names = model, input_names(model)
        self._is_quantized = any(map(is_quantized, model.modules()))
        self._is_exact: dict[tuple[bool, bool, int], bool] = {}

    def __call__(self, inputs: Mapping[str, Any], recorder: ForwardRecorder) -> ModelOutputs:
        padding, model = find_padding(inputs), self._model
        if self._is_quantized:
            with torch.autocast(next(model.parameters()).device.type, enabled=False):  # it computes in float32 alone
                return self._run_unpadded(inputs, recorder)
        if padding is None:
            with without_padding(model) if "attention_mask" in inputs else nullcontext():
                return self._run(inputs, recorder)
        key = bool(padding[:, 0].any()), bool(padding[:, -1].any()), padding.shape[1].bit_length()
        exact, outputs = self._is_exact.get(key), None
        if exact is not False:
            filled, index = fill_padding(model, inputs)
            with padded_with(model, index), suppress(ValueError):
                outputs = self._run(filled, recorder)
        if exact and outputs is not None:
            return outputs
        alone = self._run_unpadded(inputs, recorder)
        if exact is None and outputs is not None:
            self._is_exact[key] = exact = _are_close(outputs.logits, alone.logits, model)
        return outputs if outputs is not None and exact else alone

    def _run(self, inputs: Mapping[str, Any], recorder: ForwardRecorder) -> ModelOutputs:
        return recorder(self._model, {name: value for name, value in inputs.items() if name in self._names})

    def _run_unpadded(self, inputs: Mapping[str, Any], recorder: ForwardRecorder) -> ModelOutputs:
        rows, order, found = split_rows(inputs), [], []
        with without_padding(self._model):
            for indices, batch in unpadded_batches(self._model, rows, len(rows)):
                order += indices
                with reading(self._model, batch):
                    found.append(self._run(batch, recorder))
        logits = torch.cat([one.logits for one in found])[torch.tensor(order).argsort()]
        if recorder == ForwardRecorder():
            return ModelOutputs(logits)
        padding = find_padding(inputs)
        shape = next(value.shape[:2] for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 1)
        texts = ~padding if padding is not None else torch.ones(shape, dtype=torch.bool, device=logits.device)
        columns = zip(*([*one.hidden, *one.attention] for one in found), strict=True)
        vectors = [_put_together([row for part in parts for row in part], order, texts) for parts in columns]
        layers = len(found[0].hidden)
        return ModelOutputs(logits, vectors[:layers], vectors[layers:])


def _put_together(rows: Sequence[Tensor], order: Sequence[int], texts: Tensor) -> Tensor:
    """Return the vectors of texts that were read alone, shape (batch, tokens, width), as those of a padded batch.

    Args:
        rows: By text its vectors, shape (tokens of the text, width).
        order: Which text of the batch each is.
        texts: Where the tokens of the texts are in the batch, shape (batch, tokens), bool.
    """
    batch = rows[0].new_zeros(*texts.shape, rows[0].shape[-1])
    for row, index in zip(rows, order, strict=True):
        tokens = int(texts[index].sum())
        if len(row) != tokens:
            raise CompressionError(
                f"The teacher returns vectors of {len(row)} tokens for a text of {tokens}, and they are compared token "
                "by token; set hidden_weight=0 and relation_weight=0."
            )
        batch[index, texts[index]] = row
    return batch


def _are_close(padded: Tensor, alone: Tensor, model: nn.Module) -> bool:
    """Whether logits are equal but for rounding, in the least precise dtype that the model computes in."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} | {alone.dtype}
    if torch.is_autocast_enabled(alone.device.type):
        dtypes.add(torch.get_autocast_dtype(alone.device.type))
    tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    scale = max(1.0, float(alone.float().abs().max()))
    return bool((padded.float() - alone.float()).abs().max() <= tolerance * scale)


def _normalize(weights: Sequence[float], count: int) -> list[float]:
    valid = isinstance(weights, Sequence) and len(weights) == count
    if not valid or not all(is_number(weight) and 0 < weight < math.inf for weight in weights):
        raise CompressionError(f"teacher_weights={weights!r} must list {count} numbers above 0, one per teacher.")
    return [float(weight) / float(sum(weights)) for weight in weights]


def _check_pair(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Refuse a teacher that does not fit a student; return the order of its classes if it is not the student's."""
    check_model_kind(teacher, "teacher", needed="a model or a list of models")
    check_has_values(teacher.named_parameters(), "The teacher's ")
    check_trained(teacher, "teacher")
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
    return label_order(student, teacher, ("student", "teacher"), strict=True)
