"""What is compared inside a student and its teacher: hidden states and attention relations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from hfcompress.distill.arguments import DistillationArguments, read_layer_map
from hfcompress.distill.exact_mean import Terms
from hfcompress.errors import CompressionError
from hfcompress.losses import hidden_state_loss, relation_loss
from hfcompress.models.classifier import get_config, get_logits, returning_mappings, unwrap
from hfcompress.models.inputs import check_lengths
from hfcompress.models.layers import attention_projections


@dataclass(frozen=True)
class ModelOutputs:
    """What a model returns for a batch."""

    logits: Tensor  # (batch, classes)
    hidden: Sequence[Tensor] = ()  # its hidden states if recorded, the embeddings' first: (batch, tokens, width)
    attention: Sequence[Tensor] = ()  # queries, keys and values of the recorded layer: (batch, tokens, width)


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    try:
        return model(**inputs)
    except TypeError as error:
        if "output_hidden_states" not in str(error):
            raise
        name = type(unwrap(model)).__name__
        raise CompressionError(f"{name} takes no output_hidden_states; set hidden_weight=0.") from error
    except ValueError as error:
        if "padding token" not in str(error):
            raise
        raise CompressionError(
            f"{type(unwrap(model)).__name__} does not read the batch: {error} Set its config.pad_token_id, pass the "
            "tokenizer as processing_class=, or keep the attention_mask in the batch."
        ) from error


@dataclass(frozen=True)
class ForwardRecorder:
    """Runs a model and records what its layers compute; the model stays as it is."""

    hidden: bool = False  # whether its hidden states are recorded
    projections: Sequence[str] = ()  # the modules, three or one for all, whose queries, keys and values are recorded

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> ModelOutputs:
        """Run the model on a batch."""
        inner: Any = unwrap(model)
        found: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self.projections:
                hooks.enter_context(inner.get_submodule(name).register_forward_hook(partial(_record, found, name)))
            try:
                with returning_mappings(model):
                    outputs = _run(model, {**inputs, **({"output_hidden_states": True} if self.hidden else {})})
            except (IndexError, RuntimeError) as error:  # of a table of positions, for a text that is too long
                ids = inputs.get("input_ids")
                if isinstance(ids, Tensor) and ids.dim() == 2 and not should_reduce_batch_size(error):
                    check_lengths("the batch", model, ids.shape[1:])
                raise
        attention = [found[name] for name in self.projections]
        if attention and torch.is_grad_enabled() and not any(vectors.requires_grad for vectors in attention):
            raise CompressionError(
                f"No gradient reaches the attention of {type(inner).__name__}, so relation_weight would not train it: "
                "its layers are frozen, or checkpointed with use_reentrant=True (set gradient_checkpointing_kwargs to "
                "{'use_reentrant': False})."
            )
        if len(attention) == 1:
            attention = list(attention[0].chunk(3, dim=-1))
        hidden = outputs.get("hidden_states") if self.hidden and isinstance(outputs, Mapping) else None
        if self.hidden and not hidden:
            raise CompressionError(f"{type(inner).__name__} returns no hidden states; set hidden_weight=0.")
        logits = get_logits(outputs)
        return ModelOutputs(logits if logits.dim() > 1 else logits[:, None], hidden or (), attention)


class LayerLosses:
    """The terms of the loss about the layers between the embeddings and the logits, of a student and one teacher.

    The projection is from the student's width to the teacher's, None where they are the same.

    Raises:
        CompressionError: The map of layers, or a layer, does not fit the models.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, args: DistillationArguments, projection: nn.Linear | None
    ) -> None:
        configs = [get_config(model) for model in (student, teacher)]
        hidden, relations = args.hidden_weight > 0, args.relation_weight > 0
        layers = ((student, -1), (teacher, args.relation_layer)) if relations else ()
        projections = [attention_projections(model, layer) for model, layer in layers] or [(), ()]
        self.recorders = [ForwardRecorder(hidden, names) for names in projections]  # the student's and the teacher's
        self._hidden_weight, self._relation_weight = args.hidden_weight, args.relation_weight
        self._heads, self._teacher_heads = args.relation_heads, getattr(configs[1], "num_attention_heads", 1)
        self._layer_map = _layer_map(args.layer_map, *(c.num_hidden_layers for c in configs)) if hidden else {}
        self._projection = projection

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs, mask: Tensor | None) -> Terms:
        """Compare the outputs of both for a batch, of which the mask, shape (batch, tokens), shows the real tokens."""
        terms: Terms = {}
        if self._hidden_weight:
            losses = [self._hidden_loss(student.hidden[m], teacher.hidden[n], mask) for m, n in self._layer_map.items()]
            terms["hidden_term"] = (self._hidden_weight, torch.stack(losses).mean(0))
        if self._relation_weight:
            pairs = list(zip(student.attention, teacher.attention, strict=True))
            widths = [vectors.shape[-1] for pair in pairs for vectors in pair]
            heads = self._heads or math.gcd(self._teacher_heads, *widths)
            losses = [relation_loss(ours, theirs, heads, mask) for ours, theirs in pairs]
            terms["relation_term"] = (self._relation_weight, torch.stack(losses).mean(0))
        return terms

    def _hidden_loss(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if self._projection is not None:
            student = self._projection(student.to(self._projection.weight.dtype))
        return hidden_state_loss(student, teacher, mask)


def _record(found: dict[str, Tensor], name: str, module: nn.Module, arguments: Any, output: Tensor) -> None:
    found.setdefault(name, output)  # the first: DeBERTa projects its relative positions with the same modules later


def _layer_map(given: Mapping[int, int] | str | None, student: int, teacher: int) -> dict[int, int]:
    """Return which of the teacher's hidden states each of the student's is compared with, 0 being the embeddings."""
    layer_map = read_layer_map(given)
    if layer_map is None:  # evenly spaced, as in TinyBERT: g(m) = m * N / M
        return {m: round(m * teacher / student) for m in range(student + 1)}
    if not layer_map or not all(0 <= m <= student and 0 <= n <= teacher for m, n in layer_map.items()):
        raise CompressionError(
            f"layer_map={layer_map!r} must lead from the student's hidden states, 0 to {student}, to the teacher's, "
            f"0 to {teacher} (0 being the embeddings)."
        )
    return layer_map
