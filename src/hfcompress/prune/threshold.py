"""Finds the magnitude up to which weights are pruned, and which of those equal to it; changes no weight.

1. A sorted sample of the weights gives a narrow range in which the threshold almost surely lies.
2. One scan of all weights counts those below the range and lists the few inside it: the threshold is one of these. If
   it lies elsewhere, or the list grows too long, the range is changed and the weights are scanned again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hfcompress.errors import CompressionError
from hfcompress.prune.scan import Array, Piece, RangeCounts, bin_shift, common_dtype, infinity_key, sample, scan

_SAMPLE = 1 << 17, 1 << 19  # weights at least and at most; of a larger model more pay off


@dataclass(frozen=True)
class ThresholdMask:
    """The pruned weights of a piece: all ``below`` the threshold, and the first ``ties`` of those ``equal`` to it."""

    piece: Piece
    dtype: torch.dtype  # of the keys
    threshold: int  # a key
    below: int
    equal: int
    ties: int


def compute_masks(pieces: Sequence[Piece], count: int) -> list[ThresholdMask]:
    """Choose the ``count`` weights of smallest magnitude, or the zeros if these are more.

    Raises:
        CompressionError: A weight is NaN or infinite.
    """
    if not pieces:
        return []
    dtype = common_dtype(pieces)
    threshold, counts = _find_threshold(pieces, dtype, max(count, 1))
    ties_left = count - sum(below for below, _ in counts)
    masks = []
    for piece, (below, equal) in zip(pieces, counts, strict=True):
        ties = equal if threshold == 0 else min(equal, ties_left)  # zeros always stay zero
        ties_left -= ties
        masks.append(ThresholdMask(piece, dtype, threshold, below, equal, ties))
    return masks


def _find_threshold(pieces: Sequence[Piece], dtype: torch.dtype, rank: int) -> tuple[int, list[tuple[int, int]]]:
    """Find the key of the ``rank``-th smallest magnitude, and how many keys of each piece are below and equal to it."""
    infinity = infinity_key(dtype)
    smallest, beyond = 1, infinity  # bounds of the threshold, unless it is zero
    total = sum(piece.weight.numel() for piece in pieces)
    size = min(max(_SAMPLE[0], total >> 7), _SAMPLE[1])
    low, high = _estimate_range(sample(pieces, dtype, size), total, rank, infinity)
    while True:
        scanned = scan(pieces, dtype, low, high)
        _check_finite(pieces, scanned, infinity)
        below, inside = sum(one.below for one in scanned), sum(one.inside for one in scanned)
        if rank <= below and low == 1:
            return 0, [(0, one.below) for one in scanned]
        if rank <= below:
            low, high = smallest, low
        elif rank > below + inside:
            low, high = high, beyond
        elif all(one.keys is not None for one in scanned):
            listed = np.concatenate([one.keys for one in scanned if one.keys is not None])
            key = int(np.partition(listed, rank - below - 1)[rank - below - 1])
            return key, [one.around(key) for one in scanned]
        else:
            bins = np.sum([one.by_bin() for one in scanned], axis=0)
            chosen, shift = int(np.searchsorted(np.cumsum(bins), rank - below)), bin_shift(low, high)
            if not shift:
                return low + chosen, [one.around(low + chosen) for one in scanned]
            low, high = low + (chosen << shift), min(high, low + (chosen + 1 << shift))
        smallest, beyond = low, high


def _estimate_range(keys: Array, total: int, rank: int, infinity: int) -> tuple[int, int]:
    """Return a range of keys around the one at ``rank``, from a sample of all: narrow, and hardly ever wrong."""
    # Four standard deviations of the number of sampled keys below the threshold; none if all were sampled.
    margin = 0 if keys.size == total else 4 * math.ceil(math.sqrt(keys.size * rank * (total - rank)) / total + 1)
    middle = -(-keys.size * rank // total) - 1
    first, last = max(0, middle - margin), min(keys.size - 1, middle + margin)
    keys = np.partition(keys, (first, last))
    low = min(int(keys[first]), infinity - 1) if middle >= margin else 0
    high = min(int(keys[last]) + 1, infinity) if middle + margin < keys.size else infinity
    # There may be millions of zeros, so they are never listed: keys below 1 are zeros.
    return (max(low, 1), high) if high > 1 else (0, 1)


def _check_finite(pieces: Sequence[Piece], scanned: Sequence[RangeCounts], infinity: int) -> None:
    for piece, counts in zip(pieces, scanned, strict=True):
        if counts.largest >= infinity:
            raise CompressionError(
                f"{piece.matrix.name}.weight contains NaN or infinity, which cannot be ranked by magnitude; "
                "repair the weights or leave the module out with exclude=."
            )
