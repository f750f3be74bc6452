"""Reads all weights once and counts them by magnitude.

The bits of a float's absolute value, read as an integer, are ordered like the value itself. That integer is the
weight's key here; the key of zero is 0. Comparing keys is exact, and the same code for all dtypes and devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcompress.models.weights import WeightMatrix

_PIECE = 1 << 22  # weights that one thread reads and describes together
_CHUNK = 1 << 19  # weights compared by one call: fewer and threads wait for each other, more and they leave the cache
_LISTED = 64  # a piece lists the keys inside the range where they are at most one in so many of its weights,
_BIN_BITS = 14  # or no more than it would have bins
_RUN = 16  # sampled weights that lie together: a line of the cache is read as fast as a single weight
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Piece:
    """Consecutive weights of a matrix, row after row: a view, not a copy."""

    matrix: WeightMatrix
    weight: Tensor


@dataclass(frozen=True)
class Found:
    """What a piece holds below and inside a range of keys ``[low, high)``.

    Attributes:
        below: How many keys lie below the range.
        inside: How many lie inside it.
        largest: The largest key of the piece.
        keys: The keys inside, in order of position; or None where they are too many to list, or all the same.
        bins: Then how many they are by bin: key ``k`` is counted in bin ``(k - low) >> bin_shift(low, high)``.
    """

    below: int
    inside: int
    largest: int
    keys: Array | None
    bins: Array | None


def split_pieces(matrices: Iterable[WeightMatrix]) -> list[Piece]:
    """Cut matrices into pieces, in order."""
    return [Piece(matrix, part) for matrix in matrices for part in _cut(matrix.weight.detach(), _PIECE)]


def split_chunks(piece: Piece) -> Iterator[Tensor]:
    """Cut a piece into smaller views, in order."""
    return _cut(piece.weight, _CHUNK)


def scan(pieces: Sequence[Piece], dtype: torch.dtype, low: int, high: int) -> list[Found]:
    """Read every weight once and compare its key, taken in ``dtype``, with ``[low, high)``.

    Weights in main memory are read through NumPy, in as many threads as torch uses; others on their own device, which
    only keys inside the range leave. What is returned takes at most about 1/64 of the memory of the weights.

    Returns:
        One `Found` a piece.
    """
    count = torch.get_num_threads()
    ends = np.cumsum([0, *(piece.weight.numel() for piece in pieces)])
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1))
    shares = [pieces[first:last] for first, last in pairwise(bounds)]
    with ThreadPoolExecutor(count) as threads:
        scanned = list(threads.map(partial(_scan_share, dtype=dtype, low=low, high=high), shares))
    return [found for share in scanned for found in share]


def sample(pieces: Sequence[Piece], dtype: torch.dtype, size: int) -> Array:
    """Keys of about ``size`` weights, in short runs evenly spaced; of all weights if there are no more."""
    step = max(1, sum(piece.weight.numel() for piece in pieces) // size)
    taken = []
    for piece in pieces:
        weight = piece.weight.reshape(-1)
        whole = weight.numel() // (_RUN * step) * _RUN * step
        taken += [weight[:whole].view(-1, _RUN * step)[:, :_RUN].reshape(-1), weight[whole::step]]
    return np.concatenate([_keys(part, dtype) for part in taken])


def bin_shift(low: int, high: int) -> int:
    """How many of the lowest bits of a key the bins of ``[low, high)`` leave open."""
    return max(0, (high - low - 1).bit_length() - _BIN_BITS)


def count_bins(keys: Array, low: int, high: int) -> Array:
    """Count keys inside the range by bin."""
    shift = bin_shift(low, high)
    return np.bincount((keys - keys.dtype.type(low)) >> shift, minlength=((high - low - 1) >> shift) + 1)


def common_dtype(pieces: Iterable[Piece]) -> torch.dtype:
    """The smallest dtype that holds all weights exactly."""
    return reduce(torch.promote_types, {piece.weight.dtype for piece in pieces} or {torch.float32})


def infinity_key(dtype: torch.dtype) -> int:
    """The key of infinity; that of NaN is larger, that of any finite weight smaller."""
    return int(key_tensor(torch.tensor([math.inf], dtype=dtype), dtype))


def key_value(key: int, dtype: torch.dtype) -> float:
    """The magnitude that has this key."""
    return float(torch.tensor([key], dtype=INTEGER[dtype.itemsize]).view(dtype))


def key_tensor(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The keys of a tensor's elements, flat, on its device."""
    return weight.to(dtype).abs().reshape(-1).view(INTEGER[dtype.itemsize])


def _keys(weight: Tensor, dtype: torch.dtype) -> Array:
    return key_tensor(weight, dtype).cpu().numpy()


def _cut(weight: Tensor, size: int) -> Iterator[Tensor]:
    """Cut into about equal parts of at most ``size``, flat; or between rows, if not contiguous in memory."""
    if not weight.numel():
        return iter(())
    parts = math.ceil(weight.numel() / size)
    if weight.is_contiguous():
        return iter(torch.split(weight.view(-1), math.ceil(weight.numel() / parts)))
    return iter(torch.split(weight, math.ceil(weight.shape[0] / parts)))


def _scan_share(pieces: Sequence[Piece], dtype: torch.dtype, low: int, high: int) -> list[Found]:
    """Scan what falls to one thread."""
    integer = np.dtype(f"int{dtype.itemsize * 8}")
    without_sign = np.iinfo(integer).max
    buffers = [np.empty(_CHUNK, kind) for kind in (integer, bool, bool)]
    found = []
    for piece in pieces:
        if piece.weight.device.type != "cpu":
            found.append(_scan_on_device(piece.weight, dtype, low, high))
            continue
        bits = piece.weight.to(dtype).contiguous().view(-1).view(INTEGER[dtype.itemsize]).numpy()
        below = inside = largest = 0
        listed = []
        for chunk in np.array_split(bits, math.ceil(bits.size / _CHUNK)):
            keys, lower, chosen = (buffer[: chunk.size] for buffer in buffers)
            np.bitwise_and(chunk, without_sign, out=keys)
            np.less(keys, low, out=lower)
            np.less(keys, high, out=chosen)
            np.not_equal(lower, chosen, out=chosen)
            below += int(np.count_nonzero(lower))
            largest = max(largest, int(keys.max()))
            if high - low > 1:
                listed.append(keys[chosen])
            else:
                inside += int(np.count_nonzero(chosen))
        found.append(_found(below, np.concatenate(listed) if listed else inside, largest, bits.size, low, high))
    return found


def _scan_on_device(weight: Tensor, dtype: torch.dtype, low: int, high: int) -> Found:
    keys = key_tensor(weight, dtype)
    lower, chosen = keys < low, (keys >= low) & (keys < high)
    inside = keys[chosen].cpu().numpy() if high - low > 1 else int(chosen.sum())
    return _found(int(lower.sum()), inside, int(keys.max()), keys.numel(), low, high)


def _found(below: int, inside: Array | int, largest: int, weights: int, low: int, high: int) -> Found:
    if isinstance(inside, int):  # of a range of a single key, the number says everything
        return Found(below, inside, largest, None, np.array([inside]))
    if inside.size > max(weights // _LISTED, 1 << _BIN_BITS):
        return Found(below, inside.size, largest, None, count_bins(inside, low, high))
    return Found(below, inside.size, largest, inside, None)
