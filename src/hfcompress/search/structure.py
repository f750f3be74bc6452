"""What can be removed of a model: heads, neurons and layers, as blocks; and a plan applied to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.blocks import Block, find_blocks
from hfcompress.models.heads_and_neurons import KINDS, Group
from hfcompress.models.layers import layer_stack
from hfcompress.models.shapes_in_config import write_plan
from hfcompress.models.traced_neurons import find_or_trace
from hfcompress.search.loss_table import Plan
from hfcompress.shrink.layers import keep_layers
from hfcompress.shrink.reconstruction import Calibration, copy_sharing_weights, reconstruct_outputs
from hfcompress.shrink.verified_removal import remove_and_verify


@dataclass(frozen=True)
class Structure:
    """The blocks of a model.

    Attributes:
        groups: All heads and neurons that can be removed.
        blocks: The same by layer.
        stack: The name of the stack whose layers the blocks are; None where layers cannot be left out.
        removable: Whether the model can do without the layer of each block.
    """

    groups: list[Group]
    blocks: list[Block]
    stack: str | None
    removable: list[bool]


def find_structure(model: PreTrainedModel) -> Structure:
    """Find what can be removed of a model, which is left as it was.

    Raises:
        CompressionError: Neither its heads nor its neurons have a known layout.
    """
    groups: list[Group] = []
    unknown: list[CompressionError] = []
    for kind in KINDS:
        try:
            groups += find_or_trace(model, kind)
        except CompressionError as error:
            unknown.append(error)
    if not groups:
        raise unknown[0]
    blocks = find_blocks(model, groups)
    stack, count = None, 0
    with suppress(CompressionError):
        stack, count = layer_stack(model)
    if stack is None or count != len(blocks) or count == 1:
        return Structure(groups, blocks, None, [False] * len(blocks))
    light: PreTrainedModel = share_weights(model)
    removable = [_can_do_without(light, stack, count, index) for index in range(count)]
    return Structure(groups, blocks, stack, removable)


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that has the same parameters; what replaces one in the copy leaves the model alone."""
    copied: dict[nn.Module, nn.Module] = copy_sharing_weights(model)
    light = copied[model]
    assert isinstance(light, PreTrainedModel)
    return light


def leave_out(model: PreTrainedModel, structure: Structure, kept: Sequence[int], undo: ExitStack) -> Structure:
    """Keep only the layers of these blocks, in place, and return the structure of what is left."""
    if len(kept) == len(structure.blocks):
        return structure
    assert structure.stack is not None
    keep_layers(model, structure.stack, kept, undo)
    kinds = dict.fromkeys(group.kind for group in structure.groups)
    groups = [group for kind in kinds for group in find_or_trace(model, kind)]
    return Structure(groups, find_blocks(model, groups), structure.stack, [structure.removable[n] for n in kept])


def apply_plan(
    model: PreTrainedModel,
    structure: Structure,
    plan: Plan,
    orders: Mapping[Group, Sequence[int]],
    calibration: Calibration | None,
) -> None:
    """Remove what a plan does not keep, verify that, and reconstruct the outputs of what is left; in place.

    Args:
        model: The model; as it was if this fails.
        structure: Its blocks.
        plan: What is left of each.
        orders: Of each group the heads or neurons in the order in which they are removed.
        calibration: What outputs are reconstructed with; None where they are not.

    Raises:
        CompressionError: The smaller model does not compute what the masked one does, or would not load again.
    """
    kept = [index for index, shape in enumerate(plan) if shape is not None]
    with ExitStack() as undo:
        twins = copy_sharing_weights(model)
        left = leave_out(model, structure, kept, undo)
        removal: dict[Group, set[int]] = {}
        for index, block in zip(kept, left.blocks, strict=True):
            old, (heads, neurons) = structure.blocks[index], plan[index] or (0, 0)
            for groups, before, count in ((block.heads, old.heads, heads), (block.neurons, old.neurons, neurons)):
                for group, same in zip(groups, before, strict=True):
                    removal[group] = set(orders[same][: max(0, group.count - count)])
        remove_and_verify(model, removal, undo)
        write_plan(model)
        if calibration is not None:
            reconstruct_outputs(model, twins, list(removal), calibration, undo)
        undo.pop_all()


def _can_do_without(model: PreTrainedModel, stack: str, count: int, index: int) -> bool:
    with ExitStack() as undo, suppress(CompressionError):
        keep_layers(model, stack, [other for other in range(count) if other != index], undo)
        return True
    return False
