"""What a model reads: examples put into padded batches, and dummy inputs where there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config, get_name, input_names, max_tokens, unwrap
from hfcompress.models.labels import LABELS
from hfcompress.models.padding import readable_padding, split_rows, trim, unpadded_batches, vocabulary_size

Batch = dict[str, Tensor]
TOKENS = 128  # of the dummy text that FLOPs and latency are about, or as many as the model reads
_FIRST_ID = 3  # of dummy inputs; those before it are often special tokens


@dataclass(frozen=True)
class Examples:
    """Examples that one model can read.

    Attributes:
        lengths: How many tokens each has, without padding.
        labels: Their labels, or None if they have none.
        take: Makes the batch of the examples with these indices, on the model's device, without labels; padded.
        batches: Makes all batches of at most so many examples, without any padding: those of one length together, so
            that no logits depend on what else is in the batch. Each comes with the indices of its examples.
    """

    lengths: list[int]
    labels: Tensor | None
    take: Callable[[Sequence[int]], Batch]
    batches: Callable[[int], Iterator[tuple[list[int], Batch]]]


def check_dataset(dataset: Any, name: str = "dataset", *, batch: bool = True) -> None:
    """Refuse what holds no rows: the name of a data set, a dict of splits or of columns, texts, a class or a model.

    Args:
        dataset: A data set, a sequence or an iterator of rows, or a batch of tensors by name.
        name: The argument.
        batch: Whether it may be a batch of tensors.

    Raises:
        CompressionError: It is none of these.
    """
    rows = f"{name} must hold rows with 'input_ids', as a Trainer takes them"
    if isinstance(dataset, str | os.PathLike):
        shown = f"{os.fspath(dataset)!r:.100}"
        raise CompressionError(f"{rows}; it is a name ({shown}). Load it first: datasets.load_dataset({shown}, ...).")
    if isinstance(dataset, Mapping):
        columns = ", ".join(map(str, dataset))
        if any(hasattr(value, "column_names") for value in dataset.values()):
            raise CompressionError(f"{rows}; it is a dict of splits ({columns}). Pass one of them.")
        if not batch or not any(isinstance(value, Tensor) for value in dataset.values()):
            remedy = f"datasets.Dataset.from_dict({name}) makes rows of it"
            raise CompressionError(f"{rows}; it is a dict of columns ({columns}). {remedy}.")
        return
    if isinstance(dataset, type | nn.Module) or not (hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")):
        kind = f"a {type(dataset).__name__}" if isinstance(dataset, nn.Module) else f"{dataset!r:.100}"
        raise CompressionError(f"{rows}; it is {kind}.")
    if isinstance(dataset, Sequence) and len(dataset) and isinstance(dataset[0], str | bytes):
        raise CompressionError(
            f"{rows}; it holds texts, such as {dataset[0]!r:.40}. Encode them first, [tokenizer(text) for text in "
            "texts], and add their labels."
        )


class Padder:
    """Puts encoded rows into a batch of one length, on the model's device.

    Args:
        model: What reads them.
        tokenizer: Pads as it does elsewhere; without one that has a pad token, rows are padded on the right with
            ``config.pad_token_id``.

    Attributes:
        side: On which side rows are padded: ``"left"`` or ``"right"``.
        pad_token_id: The id that they are padded with; None where there is none.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model = model
        pads = None if getattr(tokenizer, "pad_token", "") is None else tokenizer
        self.side: str = getattr(pads, "padding_side", "right")
        self.pad_token_id: int | None = getattr(pads or get_config(model), "pad_token_id", None)
        self._needs_mask = "attention_mask" in input_names(model)
        self._collate = None if pads is None else DataCollatorWithPadding(pads)

    @property
    def device(self) -> torch.device:
        """Where the model is, and the batches will be."""
        return next(self._model.parameters()).device

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows of different lengths where there is no padding token."""
        if self._collate is None and self.pad_token_id is None and len({len(row["input_ids"]) for row in rows}) > 1:
            raise CompressionError(
                f"The rows are of different lengths, and {get_name(self._model)} has no "
                "config.pad_token_id to pad them with; set it, or pass a tokenizer that has a padding token as "
                "processing_class=."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Pad rows, each with ``input_ids`` and columns of the same length.

        Raises:
            CompressionError: They are of different lengths, and there is no padding token.
        """
        if self._needs_mask:
            rows = [{"attention_mask": [1] * len(row["input_ids"]), **row} for row in rows]
        if self._collate is not None:
            lists = [{name: torch.as_tensor(value).tolist() for name, value in row.items()} for row in rows]
            batch = dict(self._collate(lists))
        else:
            self.check(rows)
            batch = {
                name: pad_sequence(
                    [torch.as_tensor(row[name]) for row in rows],
                    batch_first=True,
                    padding_value=(self.pad_token_id or 0) if name == "input_ids" else 0,
                )
                for name in rows[0]
            }
        return readable_padding(self._model, {name: value.to(self.device) for name, value in batch.items()})


def read_examples(
    owner: str, model: nn.Module, inputs: Any, processing_class: PreTrainedTokenizerBase | None = None
) -> Examples:
    """Read a batch or a data set for a model.

    Args:
        owner: Whose inputs they are, for messages.
        model: What reads them.
        inputs: A mapping of tensors with one row an example, or a sequence of mappings with the token ids of one.
        processing_class: The tokenizer that pads rows; see `Padder`.

    Raises:
        CompressionError: There are no examples, they cannot be read as such, or they are longer than the model reads.
    """
    if isinstance(inputs, Mapping):
        return _read_tensors(owner, model, inputs, processing_class)
    return _read_rows(owner, model, inputs, processing_class)


def check_mask(owner: str, model: nn.Module, rows: Iterable[Mapping[str, Any]], tokenizer: Any = None) -> None:
    """Refuse rows that have padding at an end, and no attention mask to tell it from the text."""
    config = get_config(model)
    own = getattr(config, "pad_token_id", None)
    index = getattr(tokenizer, "pad_token_id", None)
    index = own if index is None else index
    ends = getattr(config, "eos_token_id", None)
    at_end = index == own and index in [
        *(ends if isinstance(ends, list) else [ends]),
        getattr(config, "bos_token_id", None),
    ]
    if index is None or at_end or "attention_mask" not in input_names(model):
        return
    for row in rows:
        ids = row.get("input_ids", ())
        if "attention_mask" not in row and len(ids) > 1 and index in (int(ids[0]), int(ids[-1])):
            raise CompressionError(
                f"A row of {owner} begins or ends with the padding token, {index}, and has no attention_mask, so that "
                f"{get_name(model)} would read it as text; pass the attention_mask, or rows without "
                "padding."
            )


def check_lengths(owner: str, model: nn.Module, lengths: Iterable[int]) -> None:
    """Refuse a text without a token, or with more than the model reads."""
    limit = max_tokens(model)
    for length in lengths:
        if length < 1 or (limit is not None and length > limit):
            reads = "at least 1" if limit is None else f"1 to {limit}"
            raise CompressionError(
                f"A row of {owner} has {length} tokens, and {get_name(model)} reads {reads}; truncate the "
                "texts and leave out empty ones."
            )


def check_ids(owner: str, model: nn.Module, texts: Iterable[Sequence[int]]) -> None:
    """Refuse tokens that have no row in the model's table, in texts that are not empty."""
    tokens = vocabulary_size(model)
    extremes = (index for ids in texts for index in (min(ids), max(ids)))
    wrong = None if tokens is None else next((index for index in extremes if not 0 <= index < tokens), None)
    if wrong is not None and tokens is not None:
        raise CompressionError(
            f"{owner} has the token {wrong}, and {get_name(model)} has those from 0 to {tokens - 1}; pass the model's "
            "own tokenizer, or rows that it encoded; if tokens were added to it, call "
            "model.resize_token_embeddings(len(tokenizer)) and train the model further."
        )


def dummy_inputs(model: nn.Module, tokens: int = TOKENS, batch_size: int = 1) -> Batch:
    """Make texts without padding, for models whose outputs do not matter.

    Returns:
        ``input_ids`` and ``attention_mask``, each of shape (batch_size, tokens), on the model's device; of fewer tokens
        if the model does not read so many.
    """
    config, device = get_config(model), next(model.parameters()).device
    embeddings: Any = unwrap(model)
    vocabulary: int = embeddings.get_input_embeddings().weight.shape[0]
    tokens = min(tokens, max_tokens(model) or tokens)
    ids = (_FIRST_ID + torch.arange(batch_size * tokens, device=device)) % vocabulary
    pad, eos = (getattr(config, name, None) for name in ("pad_token_id", "eos_token_id"))
    plain = next((one for one in range(_FIRST_ID, vocabulary) if one not in (pad, eos)), 0)
    for special in (pad, eos):
        if isinstance(special, int):
            ids[ids == special] = plain
    ids = ids.view(batch_size, tokens)
    if getattr(config, "is_encoder_decoder", False) and isinstance(eos, int):
        ids[:, -1] = eos  # at which BART and T5 classify
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _read_tensors(owner: str, model: nn.Module, inputs: Mapping[str, Any], tokenizer: Any) -> Examples:
    device = next(model.parameters()).device
    tensors = {key: value.to(device) for key, value in inputs.items() if isinstance(value, Tensor)}
    for key in [*input_names(model), *LABELS] if tensors else ():  # such as labels that were put beside them as a list
        if key not in tensors and inputs.get(key) is not None:
            try:
                tensors[key] = torch.as_tensor(inputs[key], device=device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise CompressionError(f"{key!r} of {owner} is no tensor: {error}") from error
    labels = next((tensors.pop(key) for key in LABELS if key in tensors), None)
    sizes = {key: len(value) for key, value in tensors.items()} | ({} if labels is None else {"labels": len(labels)})
    if not tensors or len(set(sizes.values())) != 1 or 0 in sizes.values():
        found = {key: sizes.get(key, type(value).__name__) for key, value in inputs.items()}
        raise CompressionError(
            f"{owner} must be tensors with one row an example, at least one: found {found}; or a data set, with token "
            "ids in each row."
        )
    first = tensors.get("input_ids", next(iter(tensors.values())))
    tokens = first.shape[1] if first.dim() > 1 else 1
    if "input_ids" in tensors:
        check_lengths(owner, model, [tokens])

    def take(indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(indices, device=device)
        return readable_padding(model, {key: value[chosen] for key, value in tensors.items()})

    rows = split_rows(tensors)
    if labels is not None:
        check_mask(owner, model, rows, tokenizer)
    lengths = [row["input_ids"].numel() if "input_ids" in row else tokens for row in rows]
    if "input_ids" in tensors:
        check_lengths(owner, model, lengths)
    return Examples(lengths, labels, take, lambda size: unpadded_batches(model, rows, size))


def _read_rows(owner: str, model: nn.Module, inputs: Any, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
    rows = [dict(row) for row in inputs] if isinstance(inputs, Sequence) or hasattr(inputs, "__getitem__") else []
    columns = set.intersection(*(set(row) for row in rows)) if rows else set()
    check_columns(owner, rows, sorted(input_names(model) - {"attention_mask", *LABELS}))
    read = [column for column in (rows[0] if rows else ()) if column in columns & input_names(model) - set(LABELS)]
    if "input_ids" not in read:
        raise CompressionError(
            f"{owner} must be a batch of tensors, or a data set with input_ids in each row: found "
            f"{type(inputs).__name__} of {len(rows)} rows with {', '.join(sorted(columns)) or 'no columns'}."
        )
    encoded = [{column: torch.as_tensor(row[column]) for column in read} for row in rows]
    check_lengths(owner, model, (len(row["input_ids"]) for row in encoded))
    label, padder = next((column for column in LABELS if column in columns), None), Padder(model, tokenizer)
    try:
        values = None if label is None else [torch.as_tensor(row[label]).tolist() for row in rows]
        labels = None if values is None else torch.as_tensor(values, device=padder.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompressionError(f"The column {label!r} of {owner} holds no numbers: {error}") from error
    if labels is not None:
        check_mask(owner, model, rows, tokenizer)
    unpadded = unpadded_rows(model, rows, read)
    lengths = [len(row["input_ids"]) for row in unpadded]
    check_lengths(owner, model, lengths)

    def batches(size: int) -> Iterator[tuple[list[int], Batch]]:
        for indices, batch in unpadded_batches(model, unpadded, size):
            yield indices, {name: value.to(padder.device) for name, value in batch.items()}

    return Examples(lengths, labels, lambda indices: padder([encoded[index] for index in indices]), batches)


def check_columns(owner: str, rows: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse rows of which some have one of these columns, and others have not: it would be left out of all."""
    for name in names:
        lacking = next((n for n, row in enumerate(rows) if isinstance(row, Mapping) and name not in row), None)
        if lacking is not None and any(isinstance(row, Mapping) and name in row for row in rows):
            raise CompressionError(
                f"Row {lacking} of {owner} has no {name!r}, and others have it; give it to all or none."
            )


def unpadded_rows(model: nn.Module, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[Batch]:
    """Return these columns of rows as tensors, without padding, and with an attention mask if the model takes one."""
    needs_mask, made = "attention_mask" in input_names(model), []
    for row in rows:
        mask = row.get("attention_mask", [1] * len(row["input_ids"]))
        own = trim({"attention_mask": torch.as_tensor(mask)} | {name: torch.as_tensor(row[name]) for name in columns})
        made.append(own if needs_mask else {name: own[name] for name in columns})
    return made
