"""What running a model costs: FLOPs, time, memory at the peak, calls. The model stays as it was."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from hfcompress.compat import quantized_products, uncounted_products
from hfcompress.models.classifier import evaluation_mode
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.tensors import memory_bytes, packed_tensors

_LARGEST_KEPT = 2**25 - 2**16  # bytes; of glibc's 32 MiB its own header and the alignment go off


def count_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Count the floating-point operations of a forward pass, attention included."""
    formulas = dict.fromkeys(uncounted_products(), _grouped_flops)
    formulas |= dict.fromkeys(quantized_products(), _quantized_flops)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # The counter does not know the fused attention of CPUs; as plain matrix products it is counted like any other.
    with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(**inputs)
    return int(counter.get_total_flops())


def _grouped_flops(tokens: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    """The FLOPs of each token times the matrix of its expert, by the shapes (tokens, in) and (experts, in, out)."""
    return 2 * tokens[0] * tokens[1] * weights[2]


def _quantized_flops(inputs: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """The FLOPs that the same layer takes in floating point; its weights are packed and have no shape."""
    return 2 * math.prod(out_shape) * inputs[-1]


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def milliseconds(model: nn.Module) -> float:
    """Time a text of 128 tokens: the median of seven passes, after two that are not counted."""
    keep_freed_memory()
    times = []
    with evaluation_mode(model):
        text = dummy_inputs(model)
        for _ in range(9):
            start = time.perf_counter()
            model(**text)
            synchronize(text["input_ids"].device)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def keep_freed_memory() -> None:
    """Let the C library keep what a forward pass frees for the next one, as in a process that has run for a while.

    glibc gives large blocks back to the system until a larger one was freed, of 32 MiB at most (mallopt(3), "dynamic
    mmap threshold"). Until then a large model takes page faults in every pass, and a small one none: how many times as
    fast it is would depend on what its process did before.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class TimeTable:
    """How long a layer takes by how many heads and neurons are left in it; all times are in one unit, any one.

    Attributes:
        heads: Ascending numbers of heads.
        neurons: Ascending numbers of neurons.
        times: Of a layer, by heads and then by neurons.
        rest: Of all that is in no layer: embeddings and head.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    rest: float

    def layer(self, heads: float, neurons: float) -> float:
        """Return the time of a layer, interpolated linearly in both numbers; outside of the table that of its edge.

        Example:
            >>> TimeTable((1, 3), (8, 16), ((1.0, 2.0), (3.0, 4.0)), rest=0.5).layer(2, 12)
            2.5
        """
        low, share = _place(self.heads, heads)
        column, part = _place(self.neurons, neurons)
        rows = self.times[low], self.times[min(low + 1, len(self.heads) - 1)]
        right = min(column + 1, len(self.neurons) - 1)
        first, second = ((1 - part) * row[column] + part * row[right] for row in rows)
        return (1 - share) * first + share * second

    def model(self, layers: Iterable[tuple[float, float]]) -> float:
        """Return the time of a model whose layers have so many heads and neurons."""
        return self.rest + sum(self.layer(*one) for one in layers)


def tabulate_times(
    time_layers: Callable[[Sequence[tuple[int, int]]], float],
    layers: int,
    heads: Sequence[int],
    neurons: Sequence[int],
    *,
    fewer: int | None = None,
) -> TimeTable:
    """Make a table of times from models all of whose layers are alike.

    A layer is timed among others of its kind, because one that is timed alone finds its weights in the cache.

    Args:
        time_layers: Times a model whose layers have so many heads and neurons.
        layers: How many layers such a model has.
        heads: Ascending numbers of heads.
        neurons: Ascending numbers of neurons.
        fewer: With how many layers the smallest shape is timed too, to tell what is in no layer; None where the number
            of layers does not vary, so that this is counted among the layers.
    """
    found = {(h, n): time_layers([(h, n)] * layers) for h in heads for n in neurons}
    rest, smallest = 0.0, (heads[0], neurons[0])
    if fewer is not None and fewer < layers:
        short = time_layers([smallest] * fewer)
        rest = max(0.0, (layers * short - fewer * found[smallest]) / (layers - fewer))
    times = tuple(tuple(max(0.0, found[h, n] - rest) / layers for n in neurons) for h in heads)
    return TimeTable(tuple(heads), tuple(neurons), times, rest)


def _place(grid: Sequence[int], value: float) -> tuple[int, float]:
    """Return the index of the grid's number at or below a value, and what share of the way to the next one it is."""
    index = min(max(bisect_right(grid, value) - 1, 0), max(0, len(grid) - 2))
    if len(grid) == 1:
        return 0, 0.0
    return index, min(max((value - grid[index]) / (grid[index + 1] - grid[index]), 0.0), 1.0)


def count_calls(model: nn.Module, modules: Sequence[str]) -> list[int]:
    """Count how often a forward pass calls each of these modules: those of shared layers several times."""
    counts = [0] * len(modules)
    with ExitStack() as hooks:
        for index, name in enumerate(modules):

            def count(module: nn.Module, inputs: Any, index: int = index) -> None:
                counts[index] += 1

            hooks.callback(model.get_submodule(name).register_forward_pre_hook(count).remove)
        with evaluation_mode(model):
            model(**dummy_inputs(model, 12))
    return counts


def peak_bytes(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Return the bytes of the model, its inputs and all tensors alive at the worst moment of a forward pass.

    The pass is one without gradients. On CUDA, what the model and the inputs take plus the peak of torch's allocator
    during the pass above what was allocated before. Elsewhere every tensor is followed from the operation that makes it
    to its end; scratch memory inside an operation, Python and the libraries are not in it.

    Args:
        model: In any mode, which it keeps.
        inputs: Arguments of its ``forward``, by name.

    Example:
        >>> peak_bytes(nn.Linear(4, 2), {"input": torch.ones(3, 4)})  # 8 + 2 weights, 12 in, 6 out, 4 bytes each
        112
    """
    held = [*model.parameters(), *model.buffers(), *packed_tensors(model), *inputs.values()]
    device = next(iter(inputs.values())).device
    with evaluation_mode(model):
        if device.type != "cuda":
            live = _LiveBytes(held)
            with live:
                model(**inputs)
            return live.peak
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(**inputs)
        synchronize(device)
        return memory_bytes(held) + int(torch.cuda.max_memory_allocated(device)) - before


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not type it
    """Follows the memory behind tensors: how much is alive, and how much was at most."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        held = list(held)
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in held})
        self.live = self.peak = memory_bytes(held)

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
