"""Classifiers and their tokenizers by name, for the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress_cli.data import reason_of

# Where none of these is in a folder, transformers makes an empty tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
)


def load(
    name: str, *, trained: bool = False, labels_of: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a classifier, and its tokenizer if it has one.

    Args:
        name: A folder, or an id of the hub.
        trained: Refuse a model without a trained head.
        labels_of: Whose labels a new head gets.
    """
    source = source_of(name)
    model, missing = _from_pretrained(source)
    if missing and labels_of is not None:
        taught = labels_of.config
        labels = {"num_labels": taught.num_labels, "id2label": taught.id2label, "label2id": taught.label2id}
        model, missing = _from_pretrained(source, **labels, problem_type=taught.problem_type)
    if missing:
        message = f"{name} holds no trained classification head ({', '.join(sorted(missing))})"
        if trained:
            raise CompressionError(f"{message}; fine-tune it first.")
        print(f"{message}; it gets a new one.", file=sys.stderr)
    return model, _tokenizer(source)


def source_of(name: str) -> str:
    """The folder of that name, or else the name as an id of the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1):
        raise CompressionError(f"There is no folder {name}.")
    return str(folder) if folder.is_dir() else name


def _from_pretrained(source: str, **config: Any) -> tuple[PreTrainedModel, list[str]]:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True, **config)
    except Exception as error:  # whatever a config that makes no sense leads to
        reason = reason_of(error)
        if os.path.isdir(source):
            raise CompressionError(f"The folder {source} does not load as a text classifier: {reason}") from error
        raise CompressionError(f"The model {source} is no folder, and cannot be had from the hub: {reason}") from error
    return model.eval(), list(info["missing_keys"])


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    if os.path.isdir(source) and not any(os.path.exists(os.path.join(source, file)) for file in TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(f"{source} has no tokenizer that loads: {reason_of(error)}", file=sys.stderr)
        return None
    return tokenizer


def needed(tokenizer: PreTrainedTokenizerBase | None, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model that cannot do without."""
    if tokenizer is None:
        raise CompressionError(f"{name} has no tokenizer; save one there with tokenizer.save_pretrained().")
    return tokenizer


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """See that texts of different lengths can be put into one batch: GPT-2 has no token for that."""
    if tokenizer.pad_token is None:
        index = model.config.pad_token_id
        tokenizer.pad_token = tokenizer.eos_token if index is None else tokenizer.convert_ids_to_tokens(index)
        if tokenizer.pad_token is None:
            raise CompressionError("The tokenizer has no token for padding and none for the end of a text; add one.")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def device_of(name: str | None) -> torch.device:
    """The device of that name; without one, the accelerator if there is one."""
    try:
        device = torch.accelerator.current_accelerator(check_available=True) if name is None else torch.device(name)
        device = device or torch.device("cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CompressionError(f"The device {name} cannot be used: {reason_of(error)}") from error
    return device
