"""Padding that changes no logits: those of a row are what the model returns for its text alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config, get_name, unwrap
from hfcompress.models.exported import ExportedModule
from hfcompress.models.plain_weights import is_quantized

Row = Mapping[str, Any]


def find_padding(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return where the rows of a batch are padded, at their ends by the attention mask; None if nowhere."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    kept = (mask != 0).int()
    padding = (kept.cumsum(1) == 0) | (kept.flip(1).cumsum(1).flip(1) == 0)
    return padding if bool(padding.any()) else None


def fill_padding(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Give the padding of a batch an id that the model can tell from the text, whatever a tokenizer wrote there.

    Returns:
        The batch, and the id: ``config.pad_token_id``, or one that is in no text where that is no usable id; None if
        there is no padding or no such id, and then the batch is as it was.
    """
    ids, padding = inputs.get("input_ids"), find_padding(inputs)
    if padding is None or not isinstance(ids, Tensor) or ids.shape != padding.shape:
        return dict(inputs), None
    index = pad_id(model)
    if index is None:
        index = _unused_id(model, ids[~padding])
    if index is None:
        return dict(inputs), None
    return {**inputs, "input_ids": ids.masked_fill(padding, index)}, index


def align_padding(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch for a model that learns, its padding filled with ``config.pad_token_id`` if that is usable."""
    return dict(inputs) if pad_id(model) is None else fill_padding(model, inputs)[0]


def readable_padding(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch, its padding filled with another id where the model cannot read the one that it has."""
    ids, padding = inputs.get("input_ids"), find_padding(inputs)
    if padding is None or not isinstance(ids, Tensor) or ids.shape != padding.shape:
        return inputs
    size, end = vocabulary_size(model), end_of_text(get_config(model))
    unreadable = (size is not None and bool((ids[padding] >= size).any())) or bool((ids[padding] == end).any())
    return fill_padding(model, inputs)[0] if unreadable else inputs


def pad_id(model: nn.Module) -> int | None:
    """Return the id with which a model can be padded, by its config; None if that names none in its vocabulary."""
    config = _text_config(model)
    index, size = getattr(config, "pad_token_id", None), vocabulary_size(model)
    if not isinstance(index, int) or index < 0 or (size is not None and index >= size):
        return None
    return None if index == end_of_text(get_config(model)) else index


@contextmanager
def padded_with(model: nn.Module, index: int | None) -> Iterator[None]:
    """Let ``config.pad_token_id`` be another id while the context lasts; None leaves it."""
    config = _text_config(model)
    if index is None or not hasattr(config, "pad_token_id"):
        yield
        return
    before = config.pad_token_id
    config.pad_token_id = index
    try:
        yield
    finally:
        config.pad_token_id = before


def lacks_pad_id(model: nn.Module) -> bool:
    """Whether ``config.pad_token_id`` is None, so that the model reads batches without padding alone."""
    return getattr(_text_config(model), "pad_token_id", 0) is None


def pad_like(model: nn.Module, tokenizer: Any) -> None:
    """Set ``config.pad_token_id``, if it is None, to the id that a tokenizer pads with, in place."""
    if lacks_pad_id(model):
        _text_config(model).pad_token_id = get_config(model).pad_token_id = tokenizer.pad_token_id


@contextmanager
def without_padding(model: nn.Module) -> Iterator[None]:
    """Let a model without ``config.pad_token_id`` read batches without padding, of each text the last token too."""
    with padded_with(model, -1 if lacks_pad_id(model) else None):  # an id that no text has
        yield


@contextmanager
def reading(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[None]:
    """Refuse in a sentence what a model fails at: Funnel at short texts, BART and T5 at those without an end."""
    try:
        yield
    except (torch.OutOfMemoryError, CompressionError):
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        if should_reduce_batch_size(error):  # memory
            raise
        ids = batch.get("input_ids")
        tokens = f"{ids.shape[1]} tokens" if isinstance(ids, Tensor) and ids.dim() == 2 else "this kind"
        name, reason = get_name(model), str(error).rstrip(".")
        raise CompressionError(
            f"{name} does not read texts of {tokens}, even by themselves: {reason}. "
            "Leave them out, or encode them as the model needs them (with the token that ends a text, for BART and T5)."
        ) from error


def split_rows(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a batch, each without its padding; what is not a tensor of so many rows goes with each."""
    size = max((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), default=0)
    rows = [
        {n: v[index] if isinstance(v, Tensor) and v.dim() and len(v) == size else v for n, v in inputs.items()}
        for index in range(size)
    ]
    return [trim(row) for row in rows]


def trim(row: Row) -> dict[str, Any]:
    """Return a row without the padding at its ends, by its attention mask."""
    mask = row.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 1:
        return dict(row)
    kept = mask.nonzero().flatten().tolist()
    start, end = (kept[0], kept[-1] + 1) if kept else (0, 0)
    if end - start == len(mask):
        return dict(row)
    along = {name for name, value in row.items() if isinstance(value, Tensor) and value.dim()}
    return {n: v[start:end] if n in along and len(v) == len(mask) else v for n, v in row.items()}


def unpadded_batches(
    model: nn.Module, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Put rows of one length together, so that no batch is padded, and no row's logits depend on the others.

    Yields:
        The indices of the rows, and the batch.
    """
    eos = end_of_text(get_config(model))
    if isinstance(unwrap(model), ExportedModule) or any(map(is_quantized, model.modules())):
        batch_size = 1  # dynamic quantization takes the scale of the inputs of a layer from all rows of a batch

    def shape(index: int) -> list[Any]:
        row = rows[index]
        # BART and T5 read only batches in which each text has as many of these tokens.
        ends = [int((row["input_ids"] == eos).sum())] if eos >= 0 and "input_ids" in row else []
        return [*(tuple(value.shape) for value in row.values() if isinstance(value, Tensor)), *ends]

    shapes = {index: shape(index) for index in range(len(rows))}
    for _, group in groupby(sorted(shapes, key=shapes.__getitem__), key=shapes.__getitem__):
        indices = list(group)
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            first = rows[part[0]]
            yield (
                part,
                {n: torch.stack([rows[i][n] for i in part]) if isinstance(v, Tensor) else v for n, v in first.items()},
            )


def _text_config(model: nn.Module) -> Any:
    config = get_config(model)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def end_of_text(config: Any) -> int:
    """Return the id at the last of which BART and T5 classify, so that it cannot be padding too; else -1."""
    eos = getattr(config, "eos_token_id", None)
    return eos if getattr(config, "is_encoder_decoder", False) and isinstance(eos, int) else -1


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many rows the table of a model's tokens has; None if it has no such table."""
    inner: Any = unwrap(model)
    try:
        size: int = inner.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):
        return None
    return size


def _unused_id(model: nn.Module, ids: Tensor) -> int | None:
    """Return an id of the vocabulary that is not among these, nor one that ends a text."""
    size = vocabulary_size(model)
    if size is None:
        return None
    used = set(torch.unique(ids).tolist())
    eos = getattr(_text_config(model), "eos_token_id", None)
    used |= set(eos if isinstance(eos, list) else [eos])
    return next((index for index in range(size) if index not in used), None)
