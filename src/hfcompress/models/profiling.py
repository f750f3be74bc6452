"""What running a model costs: FLOPs, time, memory at the peak, calls. The model stays as it was."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
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
    times = []
    with evaluation_mode(model):
        text = dummy_inputs(model)
        for _ in range(9):
            start = time.perf_counter()
            model(**text)
            synchronize(text["input_ids"].device)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
