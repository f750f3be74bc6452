"""Global magnitude pruning, exact to the weight, in about two readings of the weights and one writing.

1. A sorted sample of the weights tells a narrow range in which the threshold almost surely lies.
2. One reading of all weights counts how many are below the range and lists the few inside it: the threshold is one of
   these. Should the sample have misled, or the list grow too long, the range is changed and the weights read again.
3. One writing zeroes what is below the threshold, and of the weights equal to it as many as needed, by position.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models.weights import check_prunable, select_matrices
from hfcompress.prune.scan import (
    Array,
    Found,
    Piece,
    bin_shift,
    common_dtype,
    count_bins,
    infinity_key,
    key_tensor,
    key_value,
    sample,
    scan,
    split_chunks,
    split_pieces,
)
from hfcompress.report.sparsity import SparsityReport, make_report

_SAMPLE = 1 << 17, 1 << 19  # weights at least and at most: of a larger model more pay off


@dataclass(frozen=True)
class _Cut:
    """What goes of one piece: the ``below`` weights with smaller keys, and the first ``ties`` of the ``equal`` ones."""

    piece: Piece
    dtype: torch.dtype
    key: int
    below: int
    equal: int
    ties: int


def prune_global_l1(
    model: nn.Module,
    amount: float | int,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
) -> SparsityReport:
    """Set the globally smallest weights to zero, exactly as many as asked, in place.

    One-shot global unstructured magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626; the ``L1`` scores
    of `torch.nn.utils.prune.global_unstructured`): all prunable matrices compete, the smallest absolute values go. The
    zeros themselves are the mask: no wrapper, hook or renamed parameter is added. Afterwards exactly
    ``max(zeros before, round(amount * N))`` of the N prunable weights are zero; equal magnitudes go by position (order
    of the matrices, then row by row), whatever the device or thread count.

    Prunable are the ``nn.Linear`` and ``Conv1D`` matrices of ``model.base_model``; not the classification head,
    embeddings, norms, biases or adapters. Unstructured zeros make a dense model neither smaller nor faster.

    Args:
        model: A Hugging Face classifier in float32, float64, float16 or bfloat16, on any device. Changed in place.
        amount: A float in [0, 1): the fraction of the prunable weights to be zero afterwards, so that a second call
            with the same amount changes nothing. Or an int: how many are to be zero.
        include: Shell patterns over module names, to choose other matrices than the default, the head's included. A
            pattern that matches a module means everything in it: ``"bert.encoder.layer.0"``, ``"*attention*"``.
        exclude: Shell patterns for modules to leave out.

    Returns:
        The zeros of every matrix in scope, after pruning.

    Warns:
        UserWarning: A matrix is left with nothing but zeros, as happens to a pooler that was hardly trained.

    Raises:
        CompressionError: ``amount`` is out of range, a pattern matches nothing, there is nothing to prune, or a weight
            is NaN, infinite, quantized, sharded or on the meta device. The model is then unchanged.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> prune_global_l1(model, 0.2).zeros  # of 9216
        1843
    """
    check_amount(amount)
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    matrices = selection.matrices
    for matrix in matrices:
        if matrix.weight.is_inference() and not torch.is_inference_mode_enabled():
            raise CompressionError(
                f"{matrix.name}.weight was made in torch.inference_mode(), so that it cannot be changed outside of it; "
                "load the model without it."
            )
    total = sum(matrix.weight.numel() for matrix in matrices)
    count = int(amount) if isinstance(amount, Integral) else round(float(amount) * total)
    if count > total:
        raise CompressionError(f"amount={amount} is more than the {total} prunable weights of the model.")

    cuts = _decide(split_pieces(selection.matrices), count)
    zeros: Counter[str] = Counter()
    for cut in cuts:
        _apply(cut)
        zeros[cut.piece.matrix.name] += cut.below + cut.ties
    report = make_report(model, selection, zeros, int(amount) if isinstance(amount, Integral) else float(amount))
    emptied = [layer.name for layer in report.layers if 0 < layer.weights == layer.zeros]
    if count and emptied:
        warnings.warn(
            f"Nothing is left of {', '.join(emptied[:3])}{' and others' * (len(emptied) > 3)} at amount={amount}: all "
            "weights are zero, so that no input reaches what follows, and none will learn with the zeros kept. Leave "
            "such matrices, whose weights are much smaller than others', out with exclude=, or lower the amount.",
            stacklevel=2,
        )
    return report


def check_amount(amount: float | int) -> None:
    """Raise a `CompressionError` unless the amount is a fraction in [0, 1) or a number of weights."""
    valid = isinstance(amount, Real) and not isinstance(amount, bool)
    if valid and isinstance(amount, Integral):
        valid = amount >= 0
    elif valid:
        valid = math.isfinite(amount) and 0 <= amount < 1
    if not valid:
        raise CompressionError(
            f"amount={amount!r} must be a float in [0, 1), the fraction of weights to be zero, "
            "or an int of at least 0, their number."
        )


def _decide(pieces: Sequence[Piece], count: int) -> list[_Cut]:
    """Find what goes of each piece so that ``count`` weights, or all that are zero already, are zero.

    Raises:
        CompressionError: A weight is NaN or infinite.
    """
    if not pieces:
        return []
    dtype = common_dtype(pieces)
    key, around = _threshold(pieces, dtype, max(count, 1))
    ties_left = count - sum(below for below, _ in around)
    cuts = []
    for piece, (below, equal) in zip(pieces, around, strict=True):
        ties = equal if key == 0 else min(equal, ties_left)  # no zero ever comes back
        ties_left -= ties
        cuts.append(_Cut(piece, dtype, key, below, equal, ties))
    return cuts


def _threshold(pieces: Sequence[Piece], dtype: torch.dtype, rank: int) -> tuple[int, list[tuple[int, int]]]:
    """Find the key of the ``rank``-th smallest magnitude, and how many keys of each piece are below and equal to it."""
    infinity = infinity_key(dtype)
    smallest, beyond = 1, infinity  # where the threshold is known to be, unless it is zero
    total = sum(piece.weight.numel() for piece in pieces)
    size = min(max(_SAMPLE[0], total >> 7), _SAMPLE[1])
    low, high = _guess(sample(pieces, dtype, size), total, rank, infinity)
    while True:
        found = scan(pieces, dtype, low, high)
        _check_finite(pieces, found, infinity)
        below, inside = sum(one.below for one in found), sum(one.inside for one in found)
        shift = bin_shift(low, high)
        if rank <= below and low == 1:
            return 0, [(0, one.below) for one in found]
        if rank <= below:  # the sample misled
            low, high = smallest, low
        elif rank > below + inside:
            low, high = high, beyond
        elif all(one.keys is not None for one in found):
            listed = np.concatenate([one.keys for one in found if one.keys is not None])
            key = int(np.partition(listed, rank - below - 1)[rank - below - 1])
            return key, [_around(one, key, low, high) for one in found]
        else:
            bins = np.sum([_bins(one, low, high) for one in found], axis=0)
            chosen = int(np.searchsorted(np.cumsum(bins), rank - below))
            if not shift:
                return low + chosen, [_around(one, low + chosen, low, high) for one in found]
            low, high = low + (chosen << shift), min(high, low + (chosen + 1 << shift))
        smallest, beyond = low, high


def _guess(keys: Array, total: int, rank: int, infinity: int) -> tuple[int, int]:
    """A range of keys, narrow but wide enough for the threshold to be in it nearly always."""
    # Four standard deviations of the number of sampled keys below the threshold; none if all were sampled.
    margin = 0 if keys.size == total else 4 * math.ceil(math.sqrt(keys.size * rank * (total - rank)) / total + 1)
    middle = -(-keys.size * rank // total) - 1
    first, last = max(0, middle - margin), min(keys.size - 1, middle + margin)
    keys = np.partition(keys, (first, last))
    low = min(int(keys[first]), infinity - 1) if middle >= margin else 0
    high = min(int(keys[last]) + 1, infinity) if middle + margin < keys.size else infinity
    # Of zeros there may be millions, so no list of keys should begin with them: what is below 1 is zero.
    return (max(low, 1), high) if high > 1 else (0, 1)


def _check_finite(pieces: Sequence[Piece], found: Sequence[Found], infinity: int) -> None:
    for piece, one in zip(pieces, found, strict=True):
        if one.largest >= infinity:
            raise CompressionError(
                f"{piece.matrix.name}.weight contains NaN or infinity, which have no magnitude to compare; "
                "repair the weights or leave the module out with exclude=."
            )


def _around(found: Found, key: int, low: int, high: int) -> tuple[int, int]:
    """How many of a piece's keys are below a key of the range, and how many equal to it."""
    if found.keys is not None:
        return found.below + int(np.count_nonzero(found.keys < key)), int(np.count_nonzero(found.keys == key))
    bins = _bins(found, low, high)
    return found.below + int(bins[: key - low].sum()), int(bins[key - low])


def _bins(found: Found, low: int, high: int) -> Array:
    """The keys inside the range by bin, whether they were listed or not."""
    if found.bins is not None:
        return found.bins
    assert found.keys is not None
    return count_bins(found.keys, low, high)


@torch.no_grad()
def _apply(cut: _Cut) -> None:
    """Zero what goes of one piece."""
    if cut.key == 0 or not cut.below + cut.ties:
        return
    weight = cut.piece.weight
    whole = cut.ties == cut.equal
    torch.hardshrink(weight, _at_most(key_value(cut.key - (not whole), cut.dtype), weight.dtype), out=weight)
    left = 0 if whole else cut.ties
    for chunk in split_chunks(cut.piece):
        if not left:
            return
        equal = (key_tensor(chunk, cut.dtype) == cut.key).nonzero().squeeze(1)[:left]
        going = torch.zeros(chunk.numel(), dtype=torch.bool, device=chunk.device)
        going[equal] = True
        chunk.masked_fill_(going.view(chunk.shape), 0)
        left -= equal.numel()


def _at_most(value: float, dtype: torch.dtype) -> float:
    """The largest number of a dtype that is not above the value."""
    rounded = torch.tensor([value], dtype=torch.float64).to(dtype)
    if rounded.item() <= value:
        return rounded.item()
    return key_value(int(key_tensor(rounded, dtype)) - 1, dtype)
