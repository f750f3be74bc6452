"""Global magnitude pruning: checks everything, selects the weights of smallest magnitude, and sets them to zero."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind
from hfcompress.models.new_head import mark_new_head, new_head
from hfcompress.models.sharded import Shards, is_sharded_by_rows, local_values, shards_of_model
from hfcompress.models.weights import Selection, WeightMatrix, check_prunable, select_matrices
from hfcompress.prune.scan import INTEGER_DTYPES, key_tensor, key_value, split_chunks, split_pieces
from hfcompress.prune.threshold import ThresholdMask, compute_masks
from hfcompress.report.sparsity import SparsityReport, make_report
from hfcompress.validation import check_count, check_fraction, is_integer


def prune_global_l1(
    model: nn.Module,
    amount: float | int,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
) -> SparsityReport:
    """Set the weights of smallest magnitude to zero, exactly as many as asked, in place.

    One-shot global unstructured magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626; the ``L1`` scores
    of `torch.nn.utils.prune.global_unstructured`): the weights of all prunable matrices are ranked together. The zeros
    themselves are the mask: no wrapper, hook or renamed parameter is added. Afterwards exactly ``max(zeros before,
    round(amount * N))`` of the N prunable weights are zero; ties are broken by position (order of the matrices, then
    row by row), whatever the device or thread count.

    Prunable are the ``nn.Linear`` and ``Conv1D`` matrices of ``model.base_model``; not the classification head,
    embeddings, norms, biases or adapters. Unstructured zeros make a dense model neither smaller nor faster.

    A model sharded by FSDP2 gets the zeros that it would have unsharded; all of its processes must call this, and only
    counts are sent between them. What is refused in one of them is refused in all.

    Args:
        model: A Hugging Face classifier in float32, float64, float16 or bfloat16, on any device. Changed in place.
        amount: A float in [0, 1): the fraction of the prunable weights that is zero afterwards, so that a second call
            with the same amount changes nothing. Or an int: the number of weights that are zero afterwards.
        include: Shell patterns over module names, to choose other matrices than the default, the head's included. A
            pattern that matches a module means everything in it: ``"bert.encoder.layer.0"``, ``"*attention*"``.
        exclude: Shell patterns for modules to leave out.

    Returns:
        The zeros of every matrix in scope, after pruning.

    Warns:
        UserWarning: All weights of a matrix are zero, as happens to a pooler that was hardly trained.

    Raises:
        CompressionError: ``amount`` is out of range, a pattern matches nothing, there is nothing to prune, or a weight
            is NaN, infinite, quantized, sharded otherwise than by rows, or on the meta device. The model is then
            unchanged.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> prune_global_l1(model, 0.2).zeros  # of 9216
        1843
    """
    check_model_kind(model, classifier=False)
    shards = shards_of_model(model)
    selection, count = shards.together(partial(_check, model, amount, include, exclude))
    _check_same(shards, selection, count)
    head = new_head(model)  # include= may prune it
    zeros: Counter[str] = Counter()
    for mask in compute_masks(split_pieces(selection.matrices), count):
        _apply(mask)
        zeros[mask.piece.matrix.name] += mask.below + mask.ties
    mark_new_head(model, head)
    report = make_report(model, selection, zeros, int(amount) if is_integer(amount) else float(amount))
    emptied = [layer.name for layer in report.layers if 0 < layer.weights == layer.zeros]
    if count and emptied:
        warnings.warn(
            f"All weights of {', '.join(emptied[:3])}{' and others' * (len(emptied) > 3)} are zero at amount={amount}: "
            "no input passes through them, and training with the zeros kept cannot change that. Leave such matrices, "
            "whose weights are much smaller than others', out with exclude=, or lower the amount.",
            stacklevel=2,
        )
    return report


def check_amount(amount: float | int) -> None:
    """Raise a `CompressionError` unless the amount is a fraction in [0, 1) or a number of weights."""
    if is_integer(amount):
        check_count("amount", amount, least=0)
    else:
        check_fraction("amount", amount, "the fraction of weights that is zero afterwards; an int is their number")


def zeros_asked(amount: float | int, weights: int) -> int:
    """Return how many of the prunable weights are to be zero; raise a `CompressionError` if more than there are."""
    count = int(amount) if is_integer(amount) else round(float(amount) * weights)
    if count > weights:
        raise CompressionError(f"amount={amount} is more than the {weights} prunable weights of the model.")
    return count


def _check(
    model: nn.Module, amount: float | int, include: Sequence[str] | str | None, exclude: Sequence[str] | str | None
) -> tuple[Selection, int]:
    """Return the matrices to prune and the number of zeros asked for; raise a `CompressionError` if these cannot be."""
    check_amount(amount)
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    for matrix in selection.matrices:
        if matrix.weight.is_inference() and not torch.is_inference_mode_enabled():
            raise CompressionError(
                f"{matrix.name}.weight was created in torch.inference_mode() and cannot be changed outside of it; "
                "load the model without it."
            )
    return selection, zeros_asked(amount, sum(matrix.weight.numel() for matrix in selection.matrices))


def _check_same(shards: Shards, selection: Selection, count: int) -> None:
    """Raise a `CompressionError` unless all processes prune the same: a threshold of all is of no use otherwise."""
    if shards.mesh is None:
        return
    names = ", ".join(matrix.name for matrix in selection.matrices)
    chosen, counts = shards.extremes([zlib.crc32(names.encode()), count])
    if chosen[0] != chosen[1]:
        raise CompressionError(
            "The processes chose different matrices to prune; give the same include= and exclude= in all of them."
        )
    if counts[0] != counts[1]:
        raise CompressionError(
            f"The processes ask for {counts[0]} to {counts[1]} zeros; give the same amount in all of them."
        )
    held = [matrix for matrix in selection.matrices if not is_sharded_by_rows(matrix.weight)]
    for matrix, (smallest, largest) in zip(held, shards.extremes([*map(_checksum, held)]), strict=True):
        if smallest != largest:
            raise CompressionError(
                f"{matrix.name}.weight is not sharded, and not the same in all processes; make it the same (by "
                "torch.distributed.broadcast), shard it too, or leave the module out with exclude=."
            )


def _checksum(matrix: WeightMatrix) -> int:
    values = local_values(matrix.weight).contiguous()
    return int(values.view(INTEGER_DTYPES[values.dtype.itemsize]).sum())


@torch.no_grad()
def _apply(mask: ThresholdMask) -> None:
    """Set the pruned weights of a piece to zero."""
    if mask.threshold == 0 or not mask.below + mask.ties:
        return
    weight = mask.piece.weight
    all_ties = mask.ties == mask.equal
    largest = key_value(mask.threshold - (not all_ties), mask.dtype)
    torch.hardshrink(weight, _round_down(largest, weight.dtype), out=weight)
    ties_left = 0 if all_ties else mask.ties
    for chunk in split_chunks(mask.piece):
        if not ties_left:
            return
        equal = key_tensor(chunk, mask.dtype) == mask.threshold
        pruned = equal & (equal.cumsum(0) <= ties_left)
        chunk.masked_fill_(pruned.view(chunk.shape), 0)
        ties_left -= int(pruned.sum())


def _round_down(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of a dtype that is not above the value."""
    rounded = torch.tensor([value], dtype=torch.float64).to(dtype)
    return key_value(int(key_tensor(rounded, dtype)) - (rounded.item() > value), dtype)
