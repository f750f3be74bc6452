"""Memory behind tensors: which share it, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hfcompress.errors import CompressionError


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


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of the distinct tensors that ``save_pretrained`` writes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct(model.state_dict().values()))


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the memory behind tensors; shared memory counts once.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> memory_bytes(layer.parameters()), memory_bytes([layer.weight, layer.weight[:1]])
        (40, 32)
    """
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(storages.values())
