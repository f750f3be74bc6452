"""What models read while they are measured: a batch of tensors, or the rows of a data set, padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.teacher import config_of, inputs_of

Batch = dict[str, Tensor]
_LABELS = ("labels", "label")


@dataclass(frozen=True)
class Examples:
    """Examples that one model can read.

    Attributes:
        lengths: How many tokens each has.
        labels: Its class, or None if the examples have no labels.
        take: Makes the batch of the examples with these indices, on the model's device, without labels.
    """

    lengths: list[int]
    labels: Tensor | None
    take: Callable[[Sequence[int]], Batch]


def examples_of(name: str, model: nn.Module, inputs: Any, processing_class: PreTrainedTokenizerBase | None) -> Examples:
    """Read a batch or a data set for a model.

    Args:
        name: The model's name, for messages.
        model: What reads them.
        inputs: A mapping of tensors with one row an example, or a sequence of mappings with the token ids of one.
        processing_class: The tokenizer that pads rows; without it, they are padded on the right with the model's
            ``pad_token_id``.

    Raises:
        CompressionError: There are no examples, or they cannot be read as such.
    """
    device = next(model.parameters()).device
    if isinstance(inputs, Mapping):
        found = _of_tensors(name, inputs, device)
    else:
        found = _of_rows(name, model, inputs, processing_class, device)
    if found.labels is not None and not found.labels.is_floating_point():
        found = replace(found, labels=found.labels.long())
    labels = found.labels
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point() or int(labels.min()) < 0):
        raise CompressionError(
            f"The labels of the inputs for {name!r} must be class indices, one an example, to measure accuracy; leave "
            "them out to measure size and speed only."
        )
    return found


def _of_tensors(name: str, inputs: Mapping[str, Any], device: torch.device) -> Examples:
    tensors = {key: value.to(device) for key, value in inputs.items() if isinstance(value, Tensor)}
    labels = next((tensors.pop(key) for key in _LABELS if key in tensors), None)
    lengths = {key: len(value) for key, value in tensors.items()} | ({} if labels is None else {"labels": len(labels)})
    if not tensors or len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = {key: lengths.get(key, type(value).__name__) for key, value in inputs.items()}
        raise CompressionError(
            f"inputs for {name!r} must be tensors with one row an example, at least one: found {found}; or a data "
            "set, with token ids in each row."
        )
    first = tensors.get("input_ids", next(iter(tensors.values())))
    tokens = first.shape[1] if first.dim() > 1 else 1

    def take(indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(indices, device=device)
        return {key: value[chosen] for key, value in tensors.items()}

    return Examples([tokens] * len(first), labels, take)


def _of_rows(
    name: str, model: nn.Module, inputs: Any, tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> Examples:
    rows = [dict(row) for row in inputs] if isinstance(inputs, Sequence) or hasattr(inputs, "__getitem__") else []
    columns = set.intersection(*(set(row) for row in rows)) if rows else set()
    known = inputs_of(model)
    read = [column for column in (rows[0] if rows else ()) if column in columns & known - set(_LABELS)]
    if "input_ids" not in read:
        raise CompressionError(
            f"inputs for {name!r} must be a batch of tensors, or a data set with input_ids in each row: found "
            f"{type(inputs).__name__} of {len(rows)} rows with {', '.join(sorted(columns)) or 'no columns'}."
        )
    ids = [{column: torch.as_tensor(row[column]) for column in read} for row in rows]
    lengths = [len(row["input_ids"]) for row in ids]
    limit = getattr(config_of(model), "max_position_embeddings", None)
    if not min(lengths) or (limit is not None and max(lengths) > limit):
        raise CompressionError(
            f"A row of the inputs for {name!r} has {min(lengths) and max(lengths)} tokens, and the model reads 1 to "
            f"{limit}; truncate the texts and leave out empty ones."
        )
    pad = getattr(config_of(model), "pad_token_id", None)
    if pad is None and tokenizer is None and len(set(lengths)) > 1:
        raise CompressionError(
            f"The rows of the inputs for {name!r} are of different lengths, and {type(model).__name__} has no "
            "config.pad_token_id; set it, or pass the tokenizer as processing_class=."
        )
    if "attention_mask" in known and "attention_mask" not in read:
        ids = [row | {"attention_mask": torch.ones_like(row["input_ids"])} for row in ids]
    fillers = {column: (pad or 0) if column == "input_ids" else 0 for column in ids[0]}
    collate = None if tokenizer is None else DataCollatorWithPadding(tokenizer)

    def take(indices: Sequence[int]) -> Batch:
        chosen = [ids[index] for index in indices]
        if collate is not None:
            batch = dict(collate([{column: value.tolist() for column, value in row.items()} for row in chosen]))
        else:
            batch = {
                column: pad_sequence([row[column] for row in chosen], batch_first=True, padding_value=filler)
                for column, filler in fillers.items()
            }
        return {column: value.to(device) for column, value in batch.items()}

    label = next((column for column in _LABELS if column in columns), None)
    try:
        labels = None if label is None else torch.tensor([row[label] for row in rows], device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompressionError(
            f"The column {label!r} of the inputs for {name!r} holds no class indices: {error}"
        ) from error
    return Examples(lengths, labels, take)
