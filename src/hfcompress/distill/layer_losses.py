"""What is compared inside a student and its teacher: hidden states and attention relations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.errors import CompressionError
from hfcompress.losses import hidden_state_loss, relation_loss
from hfcompress.models.classifier import get_logits, unwrap
from hfcompress.models.layers import attention_projections


@dataclass(frozen=True)
class ModelOutputs:
    """What a model says of a batch.

    Attributes:
        logits: Shape (batch, classes).
        hidden: Its hidden states if watched, the embeddings' first, each of shape (batch, tokens, width).
        attention: The queries, keys and values of the watched layer, each of shape (batch, tokens, heads * head size).
    """

    logits: Tensor
    hidden: Sequence[Tensor] = ()
    attention: Sequence[Tensor] = ()


class ForwardRecorder:
    """Runs a model and notes what its layers say on the way; the model stays as it is.

    Args:
        model: The model, or one built like it.
        hidden: Whether its hidden states are noted.
        layer: Index of the layer whose queries, keys and values are noted, or None.

    Raises:
        CompressionError: The layer is none, or its attention is not understood.
    """

    def __init__(self, model: nn.Module, *, hidden: bool, layer: int | None) -> None:
        self._hidden = hidden
        self._projections = () if layer is None else attention_projections(model, layer)

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> ModelOutputs:
        """Answer a batch."""
        inner: Any = unwrap(model)
        noted: dict[str, Tensor] = {}
        hooks = [inner.get_submodule(n).register_forward_hook(partial(_note, noted, n)) for n in self._projections]
        try:
            outputs = model(**inputs, **({"output_hidden_states": True} if self._hidden else {}))
        finally:
            for hook in hooks:
                hook.remove()
        attention = [noted[name] for name in self._projections]
        if attention and torch.is_grad_enabled() and not any(vectors.requires_grad for vectors in attention):
            raise CompressionError(
                f"No gradient reaches the attention of {type(inner).__name__}, so relation_weight would teach nothing: "
                "its layers are frozen, or checkpointed with use_reentrant=True (set gradient_checkpointing_kwargs to "
                "{'use_reentrant': False})."
            )
        if len(attention) == 1:
            attention = list(attention[0].chunk(3, dim=-1))
        hidden = outputs.get("hidden_states") if self._hidden and isinstance(outputs, Mapping) else ()
        if hidden is None or self._hidden > bool(hidden):
            raise CompressionError(f"{type(inner).__name__} returns no hidden states; set hidden_weight=0.")
        return ModelOutputs(get_logits(outputs), hidden, attention)


class IntermediateTerms:
    """The terms of the loss about the layers between the embeddings and the answer.

    Args:
        student: The model that learns.
        teacher: Its only teacher.
        hidden_weight: Of the hidden states' term.
        layer_map: Which of the teacher's hidden states each of the student's is compared with, 0 being the
            embeddings; evenly spaced if None, as in TinyBERT (g(m) = m * N / M).
        relation_weight: Of the attention relations' term, which is about the student's last layer.
        relation_layer: The teacher's layer that it is compared with.
        relation_heads: As many as divide the attention's width of both; if None the greatest number that divides
            these and the teacher's attention heads.
        device: The student's.
        seed: Of the projection's random start.

    Attributes:
        projection: From the student's width to the teacher's (TinyBERT's W_h), float32, to be trained; None where they
            are the same, or hidden states are not compared.

    Raises:
        CompressionError: The map or the layer does not fit the models.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        hidden_weight: float,
        layer_map: Mapping[int, int] | None,
        relation_weight: float,
        relation_layer: int,
        relation_heads: int | None,
        device: torch.device,
        seed: int,
    ) -> None:
        configs: list[Any] = [unwrap(model).config for model in (student, teacher)]
        hidden, related = hidden_weight > 0, relation_weight > 0
        self._hidden_weight, self._relation_weight = hidden_weight, relation_weight
        self.student = ForwardRecorder(student, hidden=hidden, layer=-1 if related else None)
        self.teacher = ForwardRecorder(teacher, hidden=hidden, layer=relation_layer if related else None)
        self._heads, self._teacher_heads = relation_heads, getattr(configs[1], "num_attention_heads", 1)
        self._layer_map = _layer_map(layer_map, *(c.num_hidden_layers for c in configs)) if hidden else {}
        self.projection: nn.Linear | None = None
        widths = [config.hidden_size for config in configs]
        if hidden and widths[0] != widths[1]:
            # The same in all processes, and all else in the training stays as it was.
            start = torch.randn(widths[1], widths[0], generator=torch.Generator().manual_seed(seed))
            with torch.random.fork_rng(devices=[]):
                self.projection = nn.Linear(widths[0], widths[1], bias=False)
            self.projection.weight.data = start / widths[0] ** 0.5
            self.projection.to(device)

    def __call__(
        self, student: ModelOutputs, teacher: ModelOutputs, mask: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Compare two answers: by name, the weight of a term and its value for each example, shape (batch,)."""
        terms = {}
        if self._hidden_weight:
            found = [self._hidden(student.hidden[m], teacher.hidden[n], mask) for m, n in self._layer_map.items()]
            terms["hidden_term"] = (self._hidden_weight, torch.stack(found).mean(0))
        if self._relation_weight:
            pairs = list(zip(student.attention, teacher.attention, strict=True))
            widths = [vectors.shape[-1] for pair in pairs for vectors in pair]
            heads = self._heads or math.gcd(self._teacher_heads, *widths)
            found = [relation_loss(ours, theirs, heads, mask) for ours, theirs in pairs]
            terms["relation_term"] = (self._relation_weight, torch.stack(found).mean(0))
        return terms

    def _hidden(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if self.projection is not None:
            student = self.projection(student.to(self.projection.weight.dtype))
        return hidden_state_loss(student, teacher, mask)


def _note(noted: dict[str, Tensor], name: str, module: nn.Module, arguments: Any, output: Tensor) -> None:
    noted.setdefault(name, output)  # the first: DeBERTa projects its relative positions with the same modules later


def _layer_map(given: Mapping[int, int] | None, student: int, teacher: int) -> dict[int, int]:
    if given is None:
        return {m: round(m * teacher / student) for m in range(student + 1)}
    if not given or not all(0 <= m <= student and 0 <= n <= teacher for m, n in given.items()):
        raise CompressionError(
            f"layer_map={dict(given)!r} must lead from the student's hidden states, 0 to {student}, to the teacher's, "
            f"0 to {teacher} (0 being the embeddings)."
        )
    return dict(given)
