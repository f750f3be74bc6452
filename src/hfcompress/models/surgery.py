"""Heads and neurons removed from a model, or masked in it; both can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfcompress.models.heads_and_neurons import Group, NeuronGroup, Slice, weight_axis

_SIZES = {Conv1D: ("nf", "nx"), nn.Embedding: ("embedding_dim", "")}  # attributes of outputs and inputs


def remove(model: nn.Module, group: Group, kept: Sequence[int], undo: ExitStack) -> None:
    """Keep only the heads or neurons of a group with these ascending indices, in place.

    The weights may be on the meta device. Closing ``undo`` puts everything back.
    """

    def put(holder: Any, name: str, value: Any) -> None:
        undo.callback(setattr, holder, name, getattr(holder, name))
        setattr(holder, name, value)

    for part in group.slices:
        module: Any = model.get_submodule(part.module)
        index = _positions(part, group.count, kept)
        put(module, "weight", _select(module.weight, weight_axis(module, outputs=part.outputs), index))
        if part.outputs and getattr(module, "bias", None) is not None:
            put(module, "bias", _select(module.bias, 0, index))
        sizes = _SIZES.get(type(module), ("out_features", "in_features"))
        put(module, sizes[0] if part.outputs else sizes[1], len(index))
    for counter in group.counters:
        put(model.get_submodule(counter.module), counter.attribute, counter.each * len(kept))


@contextmanager
def masked(model: nn.Module, masks: Sequence[tuple[Group, Tensor]]) -> Iterator[None]:
    """Multiply the outputs of heads or neurons by masks, while the context lasts.

    Args:
        model: In which the groups were found.
        masks: For each group a tensor of shape (count,), or (batch, 1, count) for each example its own.
    """
    with ExitStack() as hooks:
        for group, mask in masks:
            for part in group.consumers:
                spread = mask.repeat_interleave(part.size, dim=-1)
                if mask.dim() == 3 and isinstance(group, NeuronGroup) and group.tokens_first:
                    spread = spread.transpose(0, 1)

                def multiply(module: nn.Module, inputs: tuple[Any, ...], spread: Tensor = spread) -> tuple[Any, ...]:
                    states = inputs[0]
                    if states.dim() == 2 < spread.dim():  # OPT puts the tokens of all examples under each other
                        spread = spread.expand(-1, len(states) // len(spread), -1).flatten(0, 1)
                    return states * spread.to(states), *inputs[1:]

                hooks.callback(model.get_submodule(part.module).register_forward_pre_hook(multiply).remove)
        yield


def _positions(part: Slice, count: int, kept: Sequence[int]) -> Tensor:
    one = (torch.tensor(list(kept), dtype=torch.long)[:, None] * part.size + torch.arange(part.size)).flatten()
    return (torch.arange(part.repeats)[:, None] * count * part.size + one).flatten()


def _select(parameter: nn.Parameter, dim: int, index: Tensor) -> nn.Parameter:
    if parameter.is_meta:
        shape = [len(index) if axis == dim else size for axis, size in enumerate(parameter.shape)]
        chosen = parameter.new_empty(shape)
    else:
        chosen = parameter.detach().index_select(dim, index.to(parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
