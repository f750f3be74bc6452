"""Global magnitude pruning, exact to the weight, without a copy of the weights.

The weights are compared by the bits of their absolute value: read as an integer, they order finite floats exactly as
their magnitude does. A radix selection over those integers, 16 bits a pass (one pass for float16 and bfloat16, two for
float32, four for float64), finds the k-th smallest magnitude by counting alone. Only then is anything written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from hfcompress.errors import CompressionError
from hfcompress.layers import WeightMatrix, check_prunable, select_matrices
from hfcompress.report import SparsityReport, report_of

_CHUNK = 1 << 17  # weights looked at together: half a megabyte of float32, which stays in a core's cache
_DIGIT = 16  # bits decided in one pass
_KEY_TYPE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    _check_amount(amount)
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    matrices = selection.matrices
    total = sum(matrix.weight.numel() for matrix in matrices)
    count = int(amount) if isinstance(amount, Integral) else round(float(amount) * total)
    if count > total:
        raise CompressionError(f"amount={amount} is more than the {total} prunable weights of the model.")

    with torch.no_grad():
        threshold, ties = _threshold(matrices, count)
        _zero_up_to(matrices, threshold, ties)
    return report_of(selection, int(amount) if isinstance(amount, Integral) else float(amount))


def _check_amount(amount: float | int) -> None:
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


def _threshold(matrices: Sequence[WeightMatrix], count: int) -> tuple[int, int]:
    """Find the key of the ``count``-th smallest magnitude, and how many weights with exactly that key are to go.

    Raises:
        CompressionError: A weight is NaN or infinite.
    """
    dtype = _common_dtype(matrices)
    digits = dtype.itemsize * 8 // _DIGIT
    smallest_invalid = int(_keys(torch.tensor([math.inf], dtype=dtype), dtype))
    prefix, rank = 0, count
    for digit in range(digits):
        shift = (digits - 1 - digit) * _DIGIT
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for matrix in matrices:
            found = _count_digits(matrix.weight, dtype, prefix, shift)
            # Infinity is the first key of its leading digit, so the leading digit alone tells (NaN lies above).
            if digit == 0 and found[smallest_invalid >> shift :].any():
                raise CompressionError(
                    f"{matrix.name}.weight contains NaN or infinity, which have no magnitude to compare; "
                    "repair the weights or leave the module out with exclude=."
                )
            counts += found
        below = counts.cumsum(0)
        value = int(torch.searchsorted(below, rank))
        rank -= int(below[value - 1]) if value else 0
        prefix = prefix << _DIGIT | value
    return prefix, rank


def _count_digits(weight: Tensor, dtype: torch.dtype, prefix: int, shift: int) -> Tensor:
    """Histogram of the 16 key bits above ``shift``, over the weights whose higher bits equal ``prefix``."""
    counts = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=weight.device)
    leading = shift + _DIGIT >= dtype.itemsize * 8
    for chunk in _chunks(weight):
        keys = _keys(chunk, dtype).reshape(-1)
        if not leading:
            keys = keys[keys >> (shift + _DIGIT) == prefix]
        digits = (keys >> shift) & ((1 << _DIGIT) - 1) if keys.element_size() > 2 else keys
        counts += torch.bincount(digits, minlength=1 << _DIGIT)
    return counts.cpu()


def _zero_up_to(matrices: Sequence[WeightMatrix], threshold: int, ties: int) -> None:
    """Zero every weight whose key is below the threshold and, in order of position, ``ties`` of those equal to it."""
    dtype = _common_dtype(matrices)
    if threshold == 0:  # as many zeros as asked, or more, are there already
        return
    for matrix in matrices:
        for chunk in _chunks(matrix.weight):
            keys = _keys(chunk, dtype)
            going = keys < threshold
            if ties:
                equal = (keys == threshold).reshape(-1).nonzero().squeeze(1)[:ties]
                going.view(-1)[equal] = True
                ties -= equal.numel()
            chunk.masked_fill_(going, 0)


def _common_dtype(matrices: Sequence[WeightMatrix]) -> torch.dtype:
    return reduce(torch.promote_types, (matrix.weight.dtype for matrix in matrices))


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    """Views of the matrix, in row order whatever its memory layout."""
    if not weight.numel():
        return iter(())
    if weight.is_contiguous():
        return iter(torch.split(weight.detach().view(-1), _CHUNK))
    return iter(torch.split(weight.detach(), max(1, _CHUNK * weight.shape[0] // weight.numel())))


def _keys(chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of the absolute values as non-negative integers, contiguous."""
    return chunk.to(dtype).abs().contiguous().view(_KEY_TYPE[dtype.itemsize])
