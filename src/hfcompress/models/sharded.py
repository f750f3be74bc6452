"""Weights sharded by rows over processes, as FSDP2 shards them (DTensor): what this process holds, and counts of all.

Each process counts in what it holds; only such counts are sent, never weights. Who calls a function that sends must
call it in all processes, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hfcompress.errors import CompressionError

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """The processes that hold a model's weights in shards: blocks of rows, in the order of the processes' ranks.

    Without a mesh, this process alone, which holds all.
    """

    mesh: DeviceMesh | None = None
    axis: int = 0  # of the mesh: along it the weights are sharded, along others replicated

    @property
    def size(self) -> int:
        """Number of processes among which the rows are divided."""
        return 1 if self.mesh is None else self.mesh.size(self.axis)

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(self.axis)

    def counts(self, weight: Tensor) -> bool:
        """Whether this process adds to sums over a weight: to those over one that all hold, only the first does."""
        return is_sharded_by_rows(weight) or self.rank == 0

    def sum(self, counts: Sequence[int] | Array) -> Array:
        """Return the sums of the processes' counts."""
        if self.mesh is None:
            return np.asarray(counts, np.int64)
        total = torch.tensor(np.asarray(counts, np.int64), device=self.mesh.device_type)
        distributed.all_reduce(total, group=self.mesh.get_group(self.axis))
        return total.cpu().numpy()

    def find_bin(self, bins: Array, rank: int) -> int:
        """Return the bin that holds the ``rank``-th of what all processes count in bins, the first being 1."""
        if self.mesh is None:
            return int(np.searchsorted(np.cumsum(bins), rank))
        width = math.isqrt(bins.size)  # sums of so many bins are sent, then one such group of bins
        sums = np.cumsum(self.sum(np.add.reduceat(bins, np.arange(0, bins.size, width))))
        group = int(np.searchsorted(sums, rank))
        before = int(sums[group - 1]) if group else 0
        inside = self.sum(bins[group * width : (group + 1) * width])
        return group * width + int(np.searchsorted(np.cumsum(inside), rank - before))

    def starts(self, weights: Sequence[Tensor], counts: Sequence[int]) -> list[int]:
        """Return how many are counted before what this process holds of each weight: in earlier weights and rows."""
        columns = [self.rank if is_sharded_by_rows(weight) else 0 for weight in weights]
        table = np.zeros((len(weights), self.size), np.int64)
        for row, (weight, count) in enumerate(zip(weights, counts, strict=True)):
            table[row, columns[row]] = count if self.counts(weight) else 0
        flat = self.sum(table.reshape(-1))
        before = (np.cumsum(flat) - flat).reshape(table.shape)
        return [int(before[row, column]) for row, column in enumerate(columns)]

    def together(self, check: Callable[[], T]) -> T:
        """Return what a check returns; where it raises in one process, raise the same sentence in all of the mesh."""
        if self.mesh is None:
            return check()
        error = None
        try:
            result = check()
        except Exception as raised:  # whatever it is: the other processes would wait for this one
            error = raised
        if not self._largest([error is not None])[0]:
            return result
        sentence = None if error is None else str(error)
        for group in self.mesh.get_all_groups():
            sentences: list[str | None] = [None] * group.size()
            distributed.all_gather_object(sentences, sentence, group=group)
            sentence = next((one for one in sentences if one is not None), None)
        raise CompressionError(sentence) from error

    def extremes(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return the smallest and the largest of each of some numbers in all processes of the mesh."""
        ends = self._largest([*(-number for number in numbers), *numbers]).tolist()
        return [(-end, largest) for end, largest in zip(ends[: len(numbers)], ends[len(numbers) :], strict=True)]

    def _largest(self, numbers: Sequence[int]) -> Array:
        assert self.mesh is not None
        largest = torch.tensor(np.asarray(numbers, np.int64), device=self.mesh.device_type)
        for group in self.mesh.get_all_groups():
            distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=group)
        return largest.cpu().numpy()


def find_shards(tensors: Iterable[Tensor]) -> Shards:
    """Return the processes over which the first sharded one of some tensors is sharded."""
    for tensor in tensors:
        if is_sharded_by_rows(tensor):
            assert isinstance(tensor, DTensor)
            return Shards(tensor.device_mesh, next(i for i, one in enumerate(tensor.placements) if one.is_shard()))
    return Shards()


def shards_of_model(model: nn.Module) -> Shards:
    """Return the processes over which a model is sharded, if it is."""
    reshard(model)
    return find_shards(model.parameters())


def shard_ranks(tensor: Tensor) -> tuple[int, ...]:
    """Return the ranks of the processes over which a tensor is sharded by rows; none if it is not sharded."""
    shards = find_shards([tensor])
    if shards.mesh is None:
        return ()
    return tuple(distributed.get_process_group_ranks(shards.mesh.get_group(shards.axis)))


def is_sharded_by_rows(tensor: Tensor) -> bool:
    """Whether a tensor is sharded by rows over one axis of a mesh of processes, and the same along the others."""
    return isinstance(tensor, DTensor) and has_known_placements(tensor) and any(p.is_shard() for p in tensor.placements)


def has_known_placements(tensor: DTensor) -> bool:
    """Whether a tensor is sharded by rows over at most one axis of its mesh, and replicated over the others."""
    # Not ==: to torch 2.6 a _StridedShard(0), whose rows are not in the order of the ranks, equals Shard(0).
    others = [placement for placement in tensor.placements if not placement.is_replicate()]
    return not others or (len(others) == 1 and type(others[0]) is Shard and others[0].dim == 0)


def local_values(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, sharing memory with it."""
    values = tensor.detach()
    return values.to_local() if isinstance(values, DTensor) else values


def sum_local_counts(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[int]:
    """Return the counts of the full tensors, from those of what this process holds of each."""
    totals = np.array(counts, np.int64)
    positions: dict[tuple[int, ...], list[int]] = {}
    for position, tensor in enumerate(tensors):
        if is_sharded_by_rows(tensor):
            positions.setdefault(shard_ranks(tensor), []).append(position)
    for here in positions.values():
        totals[here] = find_shards([tensors[here[0]]]).sum(totals[here])
    return [int(total) for total in totals]


def reshard(model: nn.Module) -> None:
    """Let FSDP2 drop the full weights that it holds after a forward pass; what is written to them would be lost."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
