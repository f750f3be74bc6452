"""Finds the magnitude up to which weights are pruned, and which of those equal to it; changes no weight.

1. A sorted sample of the weights gives a narrow range in which the threshold almost surely lies.
2. One scan of all weights counts those below the range and lists the few inside it: the threshold is one of these. If
   it lies elsewhere, or the list grows too long, the range is changed and the weights are scanned again.

Where the weights are sharded over processes, each samples and scans its own, and the same is decided in all from sums
of their counts by bin. The range is narrowed until each bin is one key.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

import numpy as np
import torch

from hfcompress.errors import CompressionError
from hfcompress.models.sharded import Shards, find_shards, sum_local_counts
from hfcompress.prune.scan import (
    Array,
    Piece,
    RangeCounts,
    bin_shift,
    common_dtype,
    count_bins,
    infinity_key,
    sample,
    scan,
)

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

    Of sharded weights these are counted in all processes, each of which gets the masks of its own pieces.

    Raises:
        CompressionError: A weight is NaN or infinite.
    """
    weights = {piece.matrix.name: piece.matrix.weight for piece in pieces}
    total = sum(weight.numel() for weight in weights.values())
    if not total:
        return []
    dtype, shards = common_dtype(pieces), find_shards(weights.values())
    threshold, counts = _find_threshold(pieces, dtype, total, max(count, 1), shards)
    below_in, equal_in = Counter(dict.fromkeys(weights, 0)), Counter(dict.fromkeys(weights, 0))
    for piece, (below, equal) in zip(pieces, counts, strict=True):
        below_in[piece.matrix.name] += below
        equal_in[piece.matrix.name] += equal
    ties_wanted = count - sum(sum_local_counts([*weights.values()], [*below_in.values()]))
    ties_before = dict(zip(weights, shards.starts([*weights.values()], [*equal_in.values()]), strict=True))
    masks = []
    for piece, (below, equal) in zip(pieces, counts, strict=True):
        left = max(0, ties_wanted - ties_before[piece.matrix.name])
        ties = equal if threshold == 0 else min(equal, left)  # zeros always stay zero
        ties_before[piece.matrix.name] += equal
        masks.append(ThresholdMask(piece, dtype, threshold, below, equal, ties))
    return masks


def _find_threshold(
    pieces: Sequence[Piece], dtype: torch.dtype, total: int, rank: int, shards: Shards
) -> tuple[int, list[tuple[int, int]]]:
    """Find the key of the ``rank``-th smallest magnitude, and how many keys of each piece are below and equal to it."""
    infinity = infinity_key(dtype)
    smallest, beyond = 1, infinity  # bounds of the threshold, unless it is zero
    in_sums = [shards.counts(piece.matrix.weight) for piece in pieces]
    step = max(1, total // min(max(_SAMPLE[0], total >> 7), _SAMPLE[1]))
    keys = sample([*compress(pieces, in_sums)], dtype, step)
    if shards.mesh is None:
        low, high = _estimate_range(keys, total, rank, infinity)
    else:
        low, high = _estimate_shared_range(keys, total, rank, infinity, shards)
    while True:
        scanned = scan(pieces, dtype, low, high)
        shards.together(partial(_check_finite, pieces, scanned, infinity))
        summed = [*compress(scanned, in_sums)]
        below, inside = shards.sum([sum(one.below for one in summed), sum(one.inside for one in summed)]).tolist()
        if rank <= below and low == 1:
            return 0, [(0, one.below) for one in scanned]
        if rank <= below:
            low, high = smallest, low
        elif rank > below + inside:
            low, high = high, beyond
        elif shards.mesh is None and all(one.keys is not None for one in scanned):
            listed = np.concatenate([one.keys for one in scanned if one.keys is not None])
            key = int(np.partition(listed, rank - below - 1)[rank - below - 1])
            return key, [one.around(key) for one in scanned]
        else:
            bins = np.sum([one.by_bin() for one in summed], axis=0)
            chosen, shift = shards.find_bin(bins, rank - below), bin_shift(low, high)
            if not shift:
                return low + chosen, [one.around(low + chosen) for one in scanned]
            low, high = low + (chosen << shift), min(high, low + (chosen + 1 << shift))
        smallest, beyond = low, high


def _estimate_range(keys: Array, total: int, rank: int, infinity: int) -> tuple[int, int]:
    """Return a range of keys around the one at ``rank``, from a sample of all: narrow, and hardly ever wrong."""
    middle, margin = _expected_position(keys.size, total, rank)
    first, last = max(0, middle - margin), min(keys.size - 1, middle + margin)
    keys = np.partition(keys, (first, last))
    low = min(int(keys[first]), infinity - 1) if middle >= margin else 0
    high = min(int(keys[last]) + 1, infinity) if middle + margin < keys.size else infinity
    # There may be millions of zeros, so they are never listed: keys below 1 are zeros.
    return (max(low, 1), high) if high > 1 else (0, 1)


def _estimate_shared_range(keys: Array, total: int, rank: int, infinity: int, shards: Shards) -> tuple[int, int]:
    """Return the range that `_estimate_range` would for the keys sampled in all processes, widened to bins of these."""
    sampled = int(shards.sum([keys.size])[0])
    middle, margin = _expected_position(sampled, total, rank)
    bins, shift = count_bins(np.minimum(keys, infinity - 1), 0, infinity), bin_shift(0, infinity)
    low = shards.find_bin(bins, middle - margin + 1) << shift if middle >= margin else 0
    high = shards.find_bin(bins, middle + margin + 1) + 1 << shift if middle + margin < sampled else infinity
    return max(low, 1), min(high, infinity)


def _expected_position(sampled: int, total: int, rank: int) -> tuple[int, int]:
    """Return where among sorted sampled keys the one at ``rank`` of all is expected, and by how much it may be off."""
    # Four standard deviations of the number of sampled keys below the threshold; none if all were sampled.
    margin = 0 if sampled == total else 4 * math.ceil(math.sqrt(sampled * rank * (total - rank)) / total + 1)
    return -(-sampled * rank // total) - 1, margin


def _check_finite(pieces: Sequence[Piece], scanned: Sequence[RangeCounts], infinity: int) -> None:
    for piece, counts in zip(pieces, scanned, strict=True):
        if counts.largest >= infinity:
            raise CompressionError(
                f"{piece.matrix.name}.weight contains NaN or infinity, which cannot be ranked by magnitude; "
                "repair the weights or leave the module out with exclude=."
            )
