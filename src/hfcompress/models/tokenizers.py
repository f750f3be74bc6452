"""Tokenizers compared: whether two give every text the same ids."""

from __future__ import annotations

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

# Of the arguments of a tokenizer, those that change no id: where it is from, and how batches are truncated and padded.
_NO_RULE = re.compile(
    r".*_(file|path|side|length|strategy|class|token|tokens)|is_local|local_files_only|padding|truncation|auto_map"
)


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether both give every text the same ids, by their vocabularies and backends."""
    return one is other or tokenizer_rules(one) == tokenizer_rules(other)


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return all that decides which ids a text gets, but for truncation and padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Of a tokenizer written in Python, its arguments decide what it does to a text before it looks words up.
        made = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if not _NO_RULE.fullmatch(name)}
        special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
        return {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "made": made,
            "special": special,
        }
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}
