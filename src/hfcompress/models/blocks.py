"""The layers of a model as blocks of heads and neurons, and models whose blocks are of other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from hfcompress.models.heads_and_neurons import Group
from hfcompress.models.layers import layer_stacks
from hfcompress.models.surgery import remove

Shape = tuple[int, int]  # how many heads and neurons a block has; 0 of what it has none of


@dataclass(frozen=True)
class Block:
    """The heads and neurons of one layer; a model without a known stack of layers is one block.

    Attributes:
        heads: Its groups of heads: in a decoder two, and one that other layers have too where they share heads.
        neurons: Its groups of neurons.
    """

    heads: tuple[Group, ...]
    neurons: tuple[Group, ...]

    @property
    def shape(self) -> Shape:
        """How many heads and neurons there are; the most where there are several groups."""
        heads, neurons = (max((group.count for group in groups), default=0) for groups in (self.heads, self.neurons))
        return heads, neurons


def find_blocks(model: nn.Module, groups: Sequence[Group]) -> list[Block]:
    """Put heads and neurons together by layer, in the order of the layers.

    Args:
        model: In which the groups were found.
        groups: Heads and neurons, or only one of them.
    """
    layers = [f"{stack}.{index}." for stack, count in layer_stacks(model).items() for index in range(count)]
    found = []
    for layer in layers:
        own = [group for group in groups if any(part.module.startswith(layer) for part in group.slices)]
        if own:
            found.append(_block(own))
    placed = {group for block in found for group in (*block.heads, *block.neurons)}
    if any(group not in placed for group in groups):  # of layers that share weights, or have an unknown stack
        return [_block(groups)]
    return found


@contextmanager
def shaped(model: nn.Module, blocks: Sequence[Block], shapes: Sequence[Shape]) -> Iterator[None]:
    """Give the blocks of a model other sizes while the context lasts, also larger ones; what it computes is of no use.

    Args:
        model: In which the blocks were found.
        blocks: All of them, or those to change.
        shapes: Of each of them. Heads that several blocks share must be as many in all.
    """
    wanted: dict[Group, int] = {}
    for block, (heads, neurons) in zip(blocks, shapes, strict=True):
        wanted |= dict.fromkeys(block.heads, heads) | dict.fromkeys(block.neurons, neurons)
    with ExitStack() as undo:
        for group, count in wanted.items():
            remove(model, group, [index % group.count for index in range(count)], undo)
        yield


def grid(most: int, least: int, points: int, step: int = 1) -> list[int]:
    """Return ascending numbers from the least to the most, each about twice the one before, as many as fit.

    Args:
        most: The last of them; 0 for what there is none of.
        least: The first of them.
        points: How many at most.
        step: Those between are multiples of it.

    Example:
        >>> grid(1536, 8, 5, step=8), grid(12, 1, 4), grid(1, 1, 4), grid(0, 1, 4)
        ([8, 192, 384, 768, 1536], [1, 3, 6, 12], [1], [0])
    """
    if most <= least:
        return [most]
    halves = {max(step, round(most / 2**power / step) * step) for power in range(1, points - 1)}
    return [least, *sorted(one for one in halves if least < one < most), most]


def _block(groups: Sequence[Group]) -> Block:
    heads, neurons = (tuple(group for group in groups if group.kind == kind) for kind in ("heads", "neurons"))
    return Block(heads, neurons)
