"""Reads all weights once and counts them by magnitude.

A weight's key is the bits of its absolute value, read as an integer: keys are ordered like the magnitudes, and the key
of zero is 0. Comparing keys is exact, and the same code for all dtypes and devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcompress.models.sharded import local_values
from hfcompress.models.weights import WeightMatrix

_PIECE = 1 << 22  # weights counted together, by one thread
_CHUNK = 1 << 19  # weights compared by one call: with fewer, threads wait for each other; more do not fit the cache
_LISTED = 64  # a piece lists the keys inside the range if they are at most one in so many of its weights,
_BIN_BITS = 14  # or no more than it would have bins
_RUN = 16  # neighbouring weights sampled together: a cache line is read as fast as a single weight
INTEGER_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Piece:
    """Consecutive weights of a matrix, or of what this process holds of it, row after row: a view, not a copy."""

    matrix: WeightMatrix
    weight: Tensor


@dataclass(frozen=True)
class RangeCounts:
    """The keys of a piece below and inside a range ``[low, high)``.

    Attributes:
        below: How many keys lie below the range.
        inside: How many lie inside it.
        largest: The largest key of the piece.
        keys: The keys inside, in order of position; None where they are too many to list, or all the same.
        bins: Then the number of keys in each bin; key ``k`` is in bin ``(k - low) >> bin_shift(low, high)``.
    """

    low: int
    high: int
    below: int
    inside: int
    largest: int
    keys: Array | None
    bins: Array | None

    def by_bin(self) -> Array:
        """Return the number of keys in each bin of the range, whether the keys are listed or not."""
        if self.bins is not None:
            return self.bins
        assert self.keys is not None
        return count_bins(self.keys, self.low, self.high)

    def around(self, key: int) -> tuple[int, int]:
        """Return how many keys are below a key of the range, and how many are equal; bins must hold one key each."""
        if self.keys is not None:
            return self.below + int(np.count_nonzero(self.keys < key)), int(np.count_nonzero(self.keys == key))
        bins, index = self.by_bin(), key - self.low
        return self.below + int(bins[:index].sum()), int(bins[index])


def split_pieces(matrices: Iterable[WeightMatrix]) -> list[Piece]:
    """Split matrices into pieces, in order; each has one at least, an empty shard an empty one."""
    return [Piece(matrix, part) for matrix in matrices for part in _split(local_values(matrix.weight), _PIECE)]


def split_chunks(piece: Piece) -> Sequence[Tensor]:
    """Split a piece into smaller views, in order."""
    return _split(piece.weight, _CHUNK)


def scan(pieces: Sequence[Piece], dtype: torch.dtype, low: int, high: int) -> list[RangeCounts]:
    """Read every weight once and compare its key, taken in ``dtype``, with ``[low, high)``.

    Weights in main memory are read through NumPy, in as many threads as torch uses; others on their own device, from
    which only keys inside the range are copied.

    Returns:
        One `RangeCounts` per piece; together at most about 1/64 of the memory of the weights.
    """
    count = torch.get_num_threads()
    ends = np.cumsum([0, *(piece.weight.numel() for piece in pieces)])
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1))
    bounds[-1] = len(pieces)  # empty ones at the end included
    shares = [pieces[first:last] for first, last in pairwise(bounds)]
    with ThreadPoolExecutor(count) as threads:
        scanned = list(threads.map(partial(_scan_share, dtype=dtype, low=low, high=high), shares))
    return [counts for share in scanned for counts in share]


def sample(pieces: Sequence[Piece], dtype: torch.dtype, step: int) -> Array:
    """Return the keys of about one in ``step`` weights, in short runs evenly spaced."""
    taken = []
    for piece in pieces:
        weight = piece.weight.reshape(-1)
        end = weight.numel() // (_RUN * step) * _RUN * step
        taken += [weight[:end].view(-1, _RUN * step)[:, :_RUN].reshape(-1), weight[end::step]]
    return np.concatenate([key_tensor(part, dtype).cpu().numpy() for part in taken])


def bin_shift(low: int, high: int) -> int:
    """Return how many of the lowest bits of a key the bins of ``[low, high)`` ignore."""
    return max(0, (high - low - 1).bit_length() - _BIN_BITS)


def count_bins(keys: Array, low: int, high: int) -> Array:
    """Return the number of keys in each bin of ``[low, high)``, in which all must be."""
    shift = bin_shift(low, high)
    return np.bincount((keys - keys.dtype.type(low)) >> shift, minlength=((high - low - 1) >> shift) + 1)


def common_dtype(pieces: Iterable[Piece]) -> torch.dtype:
    """Return the smallest dtype that represents all weights exactly."""
    return reduce(torch.promote_types, {piece.weight.dtype for piece in pieces} or {torch.float32})


def infinity_key(dtype: torch.dtype) -> int:
    """Return the key of infinity; that of NaN is larger, that of any finite weight smaller."""
    return int(key_tensor(torch.tensor([math.inf], dtype=dtype), dtype))


def key_value(key: int, dtype: torch.dtype) -> float:
    """Return the magnitude that has this key."""
    return float(torch.tensor([key], dtype=INTEGER_DTYPES[dtype.itemsize]).view(dtype))


def key_tensor(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the keys of a tensor's elements, flat, on its device."""
    return weight.to(dtype).abs().reshape(-1).view(INTEGER_DTYPES[dtype.itemsize])


def _split(weight: Tensor, size: int) -> Sequence[Tensor]:
    """Split into about equal views of at most ``size``, flat; or between rows, if not contiguous in memory."""
    flat = weight.view(-1) if weight.is_contiguous() else weight
    if not weight.numel():
        return (flat,)
    return torch.split(flat, math.ceil(len(flat) / math.ceil(weight.numel() / size)))


def _scan_share(pieces: Sequence[Piece], dtype: torch.dtype, low: int, high: int) -> list[RangeCounts]:
    """Scan the pieces of one thread."""
    integer = np.dtype(f"int{dtype.itemsize * 8}")
    without_sign = np.iinfo(integer).max
    buffers = [np.empty(_CHUNK, kind) for kind in (integer, bool, bool)]
    scanned = []
    for piece in pieces:
        if piece.weight.device.type != "cpu":
            scanned.append(_scan_on_device(piece.weight, dtype, low, high))
            continue
        bits = piece.weight.to(dtype).contiguous().view(-1).view(INTEGER_DTYPES[dtype.itemsize]).numpy()
        below = inside = largest = 0
        listed = []
        for chunk in np.array_split(bits, math.ceil(bits.size / _CHUNK) or 1):
            keys, lower, chosen = (buffer[: chunk.size] for buffer in buffers)
            np.bitwise_and(chunk, without_sign, out=keys)
            np.less(keys, low, out=lower)
            np.less(keys, high, out=chosen)
            np.not_equal(lower, chosen, out=chosen)
            below += int(np.count_nonzero(lower))
            largest = max(largest, int(keys.max(initial=0)))
            if high - low > 1:
                listed.append(keys[chosen])
            else:
                inside += int(np.count_nonzero(chosen))
        scanned.append(_summarize(below, np.concatenate(listed) if listed else inside, largest, bits.size, low, high))
    return scanned


def _scan_on_device(weight: Tensor, dtype: torch.dtype, low: int, high: int) -> RangeCounts:
    keys = key_tensor(weight, dtype)
    lower, chosen = keys < low, (keys >= low) & (keys < high)
    inside = keys[chosen].cpu().numpy() if high - low > 1 else int(chosen.sum())
    largest = int(keys.max()) if keys.numel() else 0
    return _summarize(int(lower.sum()), inside, largest, keys.numel(), low, high)


def _summarize(below: int, inside: Array | int, largest: int, weights: int, low: int, high: int) -> RangeCounts:
    """Keep the keys inside the range, or, where they are many, their number in each bin."""
    if isinstance(inside, int):  # the range is a single key
        return RangeCounts(low, high, below, inside, largest, None, np.array([inside]))
    if inside.size > max(weights // _LISTED, 1 << _BIN_BITS):
        return RangeCounts(low, high, below, inside.size, largest, None, count_bins(inside, low, high))
    return RangeCounts(low, high, below, inside.size, largest, inside, None)
