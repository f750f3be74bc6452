"""Whether two tokenizers give every text the same ids; texts checked and encoded; copies."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import max_tokens
from hfcompress.models.labels import LABELS
from hfcompress.validation import is_number

# Of the arguments of a tokenizer, those that change no id: where it is from, and how batches are truncated and padded.
_NO_RULE = re.compile(
    r".*_(file|path|side|length|strategy|class|token|tokens)|is_local|local_files_only|padding|truncation|auto_map"
)


def check_tokenizer(tokenizer: object, name: str = "processing_class") -> None:
    """Refuse the name or the class of a tokenizer, and what cannot encode texts; None is no tokenizer.

    Raises:
        CompressionError: It is none; the message says how one is loaded.
    """
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if isinstance(tokenizer, str | os.PathLike):
        shown = f"{os.fspath(tokenizer)!r:.100}"
        remedy = f"load it first: AutoTokenizer.from_pretrained({shown})"
        raise CompressionError(f"{name} is a name ({shown}), and a tokenizer is needed; {remedy}.")
    if isinstance(tokenizer, Tokenizer):
        remedy = f"PreTrainedTokenizerFast(tokenizer_object={name})"
        raise CompressionError(f"{name} is a tokenizers.Tokenizer; wrap it for transformers: {remedy}.")
    if isinstance(tokenizer, type | nn.Module) or not (callable(tokenizer) or hasattr(tokenizer, "pad")):
        kind = f"the class {tokenizer.__name__}" if isinstance(tokenizer, type) else f"a {type(tokenizer).__name__}"
        raise CompressionError(f"{name} is {kind}, and a tokenizer is needed: AutoTokenizer.from_pretrained(...).")


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


def with_backend(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return a copy of a fast tokenizer that has another backend, given as its JSON, and is else the same."""
    backend = Tokenizer.from_str(json.dumps(data))
    vocabulary, merges = data["model"]["vocab"], data["model"].get("merges", [])
    own = {  # what classes keep of what they were made of
        "_tokenizer": backend,
        "_vocab": list(map(tuple, vocabulary)) if isinstance(vocabulary, list) else dict(vocabulary),
        "_vocab_scores": list(map(tuple, vocabulary)),
        "_merges": [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges],
    }
    replaced = {id(value): own[name] for name, value in vars(tokenizer).items() if name in own and value is not None}
    made = copy.deepcopy(tokenizer, replaced)
    made.init_kwargs.pop("added_tokens_decoder", None)  # by their old ids
    return made


def token_limit(tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> int | None:
    """Return how many tokens of a text a tokenizer makes, and a model reads, at most; None if there is no limit.

    Without one ``tokenizer.model_max_length`` is 1e30, and in some files -1.
    """
    limit = tokenizer.model_max_length
    limits = [limit] if is_number(limit) and 0 < limit < LARGE_INTEGER else []
    read = None if model is None else max_tokens(model)
    return min([int(limit) for limit in limits] + ([] if read is None else [read]), default=None)


def truncation(limit: int | None) -> dict[str, Any]:
    """Return the arguments by which a tokenizer truncates to a limit, or not at all, whatever limit it has itself."""
    return {"truncation": limit is not None, "max_length": LARGE_INTEGER if limit is None else limit}


def encode_texts(owner: str, model: nn.Module, inputs: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """Encode inputs that are texts, or pairs of texts, truncated to what tokenizer and model take; return others as is.

    Rows with a ``text`` (and a ``text_pair``), and no ``input_ids``, are texts too; their labels are kept.

    Raises:
        CompressionError: They are texts and there is no tokenizer, or not all of them are texts.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, type):
        raise CompressionError(
            f"{owner} are the class {inputs.__name__}; pass a data set, texts or a batch of tensors."
        )
    if isinstance(inputs, Mapping) or not hasattr(inputs, "__getitem__") or not len(inputs):
        return inputs
    first = next(iter(inputs))
    parts = _texts_in(first)
    if parts and getattr(inputs, "ndim", 1) != 1:  # of a DataFrame the names of its columns
        raise CompressionError(
            f"{owner} are a {type(inputs).__name__} of several columns; pass the column with the texts, or pairs of "
            "texts as list(zip(first, second))."
        )
    if parts == 0 and not hasattr(first, "keys"):
        raise CompressionError(
            f"{owner} hold {type(first).__name__} examples, such as {first!r:.40}: pass a batch of tensors by name, "
            "rows with input_ids, or texts."
        )
    if parts == 0:
        return inputs
    if tokenizer is None:
        raise CompressionError(
            f"{owner} are texts, such as {str(first)[:40]!r}; pass their tokenizer as processing_class=, or what it "
            "returns for them: tokenizer(texts, padding=True, truncation=True, return_tensors='pt')."
        )
    rows = list(inputs)
    wrong = next((number for number, row in enumerate(rows) if _texts_in(row) != parts), None)
    if wrong is not None:
        kind = "a text" if parts == 1 else "a pair of texts"
        raise CompressionError(f"Number {wrong} of {owner} is {rows[wrong]!r:.40}, not {kind} like the first.")
    columns = zip(*map(_texts_of, rows), strict=True)
    encoded = tokenizer(*map(list, columns), **truncation(token_limit(tokenizer, model)))
    made = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    labels = [{n: row[n] for n in LABELS if n in row} if isinstance(row, Mapping) else {} for row in rows]
    return [one | own for one, own in zip(made, labels, strict=True)]


def check_texts(name: str, texts: Any) -> list[Any]:
    """Return texts, or pairs of texts, as a list of them; rows with ``text``, and ``text_pair``, are texts too.

    Raises:
        CompressionError: They are a single text, there are none, or not all of them are texts.
    """
    if isinstance(texts, str | Mapping) or not isinstance(texts, Iterable):
        raise CompressionError(
            f"{name} must be a list of texts, or of pairs of texts, not {type(texts).__name__}: pass [text], or a "
            "column of a data set, such as dataset['text']."
        )
    rows = list(texts)
    if not rows:
        raise CompressionError(f"{name} holds no text; pass the texts that the model will read.")
    parts = _texts_in(rows[0]) or 1
    wrong = next((number for number, row in enumerate(rows) if _texts_in(row) != parts), None)
    if wrong is not None:
        raise CompressionError(
            f"Number {wrong} of {name} is {rows[wrong]!r:.60}, not {'a text' if parts == 1 else 'a pair of texts'}"
            f"{'' if wrong == 0 else ' like the first'}: pass texts, for example dataset['text'], without missing ones."
        )
    return [tuple(found) if parts == 2 else found[0] for found in map(_texts_of, rows)]


def _texts_in(row: Any) -> int:
    """How many texts an example is made of; 0 if it is something else."""
    return len(_texts_of(row))


def _texts_of(row: Any) -> list[str]:
    """Return the texts that an example is made of; none if it is something else."""
    if isinstance(row, str):
        return [str(row)]
    if isinstance(row, Mapping) and "input_ids" not in row and isinstance(row.get("text"), str):
        row = [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
        return row if all(isinstance(one, str) for one in row) else []
    return list(row) if isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(o, str) for o in row) else []
