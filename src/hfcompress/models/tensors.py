"""Memory behind tensors: which share it, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hfcompress.errors import CompressionError


def float64_device(device: torch.device) -> torch.device:
    """Return where numbers of a device are computed with in float64: there, or on the CPU (MPS has no float64)."""
    return torch.device("cpu") if device.type == "mps" else device


def has_plain_values(tensor: Tensor) -> bool:
    """Whether this is a plain dense tensor with values: not quantized, sharded, lazy, sparse or on the meta device."""
    if is_lazy(tensor) or tensor.is_meta:
        return False
    return type(tensor.data) is Tensor and tensor.layout is torch.strided


def check_has_values(named: Iterable[tuple[str, Tensor]], owner: str = "") -> None:
    """Raise a `CompressionError` if a tensor is on the meta device.

    ``owner`` stands before the tensor's name in the message, for example ``"The teacher's "``.
    """
    for name, tensor in named:
        if tensor.is_meta:
            raise CompressionError(f"{owner}{name} is on the meta device and holds no values; load the weights first.")


def is_torchao(tensor: Tensor) -> bool:
    """Whether torchao's `quantize_` made a tensor: it looks like one of floats, and wraps others."""
    return type(tensor).__module__.partition(".")[0] == "torchao"


def wrapped_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that one of torchao wraps, such as integers and their scales; else the tensor itself."""
    if not is_torchao(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined] # what torch.compile asks for too
    return [part for name in names for part in wrapped_tensors(getattr(tensor, name))]


def identities(tensor: Tensor) -> list[object]:
    """Return what identifies a tensor, and the numbers that it holds.

    Parameters tied through ``.data``, or as each other's transpose, are two objects on one memory.
    """
    found: list[object] = [id(tensor)]
    if has_plain_values(tensor) and tensor.numel():
        steps = sorted(zip(tensor.stride(), tensor.shape, strict=True))
        found.append((tensor.device, tensor.data_ptr(), tuple(steps)))
    return found


def distinct(tensors: Iterable[Tensor], seen: set[object] | None = None) -> Iterator[Tensor]:
    """Yield each tensor once, tied ones not again.

    Args:
        tensors: In any order; the first of those that are tied is yielded.
        seen: Identities that do not count, to which those of the tensors are added.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> len(list(distinct([layer.weight, layer.bias, layer.weight.T])))
        2
    """
    seen = set() if seen is None else seen
    for tensor in tensors:
        keys = identities(tensor)
        new = seen.isdisjoint(keys)
        seen.update(keys)
        if new:
            yield tensor


def packed_tensors(model: nn.Module) -> list[Tensor]:
    """Return what the quantized modules of `torch.ao` hold, such as those of ``quantize_dynamic``.

    They keep weights and biases neither as parameters nor as buffers, and make a copy for each state dict, so that a
    module that is in the model twice must be asked once.
    """
    found = []
    for module in model.modules():
        own: dict[str, Any] = {}
        module._save_to_state_dict(own, "", keep_vars=False)
        values = [value for value in own.values() if not isinstance(value, Tensor) or value.is_quantized]
        for tensor in _leaves(values):  # those of dtype=torch.float16 are given in float32
            halved = own.get("dtype") is torch.float16 and tensor.dim() > 1
            found.append(tensor.half() if halved else tensor)
    return found


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        yield from _leaves(value.__getstate__())


def stored_tensors(model: nn.Module) -> list[Tensor]:
    """Return the distinct tensors of a model's state dict, with those that quantized modules keep packed."""
    state = (value for value in model.state_dict().values() if isinstance(value, Tensor) and not value.is_quantized)
    return [*distinct(state), *packed_tensors(model)]


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of the numbers of a tensor, with the scales of a quantized one that has several."""
    if is_torchao(tensor):
        return sum(map(tensor_bytes, wrapped_tensors(tensor)))
    if not tensor.is_quantized:
        return tensor.numel() * tensor.element_size()
    return tensor.untyped_storage().nbytes() + sum(map(tensor_bytes, _scales(tensor)))


def count_nonzero(tensor: Tensor) -> int:
    """Count the numbers of a tensor that are not zero, quantized or not; of several in a byte, all bytes."""
    plain = tensor.dequantize() if tensor.is_quantized or is_torchao(tensor) else tensor
    for as_flags in (False, True):  # it takes neither float8 nor unsigned integers
        try:
            return int(torch.count_nonzero(plain.bool() if as_flags else plain))
        except RuntimeError as error:  # of torch 2.6; later a NotImplementedError, which is one
            if "not implemented" not in str(error):
                raise
    return plain.numel()


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """Return plain tensors that together hold all of a tensor, quantized or not."""
    if not tensor.is_quantized:
        return wrapped_tensors(tensor)
    scales = _scales(tensor) or [torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
    return [tensor.int_repr(), *scales]


def _scales(tensor: Tensor) -> list[Tensor]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return []
    return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of the distinct tensors of a model's state dict, quantized ones included."""
    return sum(map(tensor_bytes, stored_tensors(model)))


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the memory behind tensors; shared memory counts once.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> memory_bytes(layer.parameters()), memory_bytes([layer.weight, layer.weight[:1]])
        (40, 32)
    """
    parts = [part for tensor in tensors for part in wrapped_tensors(tensor)]
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in parts if t.numel()}
    return sum(storages.values())
