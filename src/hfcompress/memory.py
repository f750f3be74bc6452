"""Memory: what a model takes, and what a forward pass takes at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hfcompress.probe import evaluating, wait_for


def bytes_in_memory(model: nn.Module) -> int:
    """Bytes of the memory behind a model's parameters and buffers; shared memory counts once.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> bytes_in_memory(layer), bytes_in_memory(nn.Sequential(layer, layer))
        (40, 40)
    """
    return _distinct([*model.parameters(), *model.buffers()])


def peak_bytes(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Bytes of the model, its inputs and all tensors alive at the worst moment of a forward pass without gradients.

    On CUDA, what the model and the inputs take plus the peak of torch's allocator during the pass above what was
    allocated before. Elsewhere every tensor is followed from the operation that makes it to its end; scratch memory
    inside an operation, Python and the libraries are not in it.

    Args:
        model: In any mode, which it keeps.
        inputs: Arguments of its ``forward``, by name.

    Example:
        >>> peak_bytes(nn.Linear(4, 2), {"input": torch.ones(3, 4)})  # 8 + 2 weights, 12 in, 6 out, 4 bytes each
        112
    """
    held = [*model.parameters(), *model.buffers(), *inputs.values()]
    device = next(iter(inputs.values())).device
    with evaluating(model):
        if device.type != "cuda":
            live = _LiveBytes(held)
            with live:
                model(**inputs)
            return live.peak
        wait_for(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(**inputs)
        wait_for(device)
        return _distinct(held) + int(torch.cuda.max_memory_allocated(device)) - before


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not type it
    """Follows the memory behind tensors: how much is alive, and how much was at most."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        held = list(held)
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in held})
        self.live = self.peak = _distinct(held)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._end, storage.nbytes())

    def _end(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        return result


def _distinct(tensors: Iterable[Tensor]) -> int:
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(storages.values())
