"""The vocabulary of a fast tokenizer made smaller: functions on its JSON, ``tokenizer.backend_tokenizer.to_str()``.

A text whose old pieces are all kept gets the same pieces from the smaller tokenizer:

- WordPiece takes the longest piece that matches: what is gone was not the longest.
- BPE merges the pair of the lowest rank: the pieces that a kept one is merged from are kept, and all merges among kept
  pieces, in their order, so that each step finds the same pair.
- Unigram takes the sequence of the highest score: it is still there, all others are no better than before, and the
  score of unknown text stays, as a piece with the lowest score is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hfcompress.errors import CompressionError

_KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # tokens of byte_fallback


def check_kind(data: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose pieces are not known, or not the same each time."""
    kind = data["model"].get("type")
    if kind not in _KINDS:
        raise CompressionError(
            f"The tokenizer's model is {kind!r}; the vocabulary of {', '.join(_KINDS)} can be pruned."
        )
    if data["model"].get("dropout"):
        raise CompressionError(
            f"The tokenizer has dropout={data['model']['dropout']}, by which a text gets other ids each time; set "
            "tokenizer.backend_tokenizer.model.dropout = None."
        )


def model_ids(data: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of each piece of the tokenizer's model; tokens that were added behind it are not among them."""
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        return {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def added_ids(data: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of each added token, special or not, within the model's pieces or behind them."""
    return {token["content"]: token["id"] for token in data["added_tokens"]}


def needed_ids(data: Mapping[str, Any], used: Iterable[int], alphabet: str, seen: Iterable[int]) -> set[int]:
    """Return the ids that must stay so that texts of the used ids keep their pieces and other texts still encode.

    Args:
        data: The tokenizer.
        used: The ids to keep.
        alphabet: ``"all"`` single characters and bytes, or those that are ``"used"``.
        seen: The ids of all texts, whose characters are the used ones.
    """
    model, ids, added = data["model"], model_ids(data), added_ids(data)
    pieces = {index: piece for piece, index in ids.items()}
    kept = {*used, *added.values(), *_processor_ids(data.get("post_processor"))}
    if model.get("unk_token") in ids:
        kept.add(ids[model["unk_token"]])
    if model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    kept |= _alphabet_ids(data, ids, None if alphabet == "all" else {pieces[one] for one in seen if one in pieces})
    if model["type"] == "BPE":
        ancestors = _ancestors(model, (pieces[index] for index in kept if index in pieces))
        kept |= {ids[piece] for piece in ancestors if piece in ids}
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        lowest = min(scores)
        if not any(index < len(scores) and scores[index] == lowest for index in kept):
            kept.add(scores.index(lowest))
    return kept


def renumber(data: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return the tokenizer with these old ids alone, under their new ids; normalizer, pre-tokenizer, decoder as is.

    Args:
        data: The tokenizer.
        new_ids: The new id of each old one that stays. Those of the model's pieces come first.
    """
    model = dict(data["model"])
    if isinstance(model["vocab"], list):
        kept_ids = sorted((index for index in range(len(model["vocab"])) if index in new_ids), key=new_ids.__getitem__)
        model["vocab"] = [model["vocab"][index] for index in kept_ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        ids = sorted((new_ids[index], piece) for piece, index in model["vocab"].items() if index in new_ids)
        model["vocab"] = {piece: index for index, piece in ids}
    if model["type"] == "BPE":
        kept, merged = model["vocab"], _merged(model)
        model["merges"] = [merge for merge in model["merges"] if all(p in kept for p in (*_pair(merge), merged(merge)))]
    padding = data.get("padding")
    if padding is not None:
        padding = {**padding, "pad_id": new_ids.get(padding["pad_id"], padding["pad_id"])}
    return {
        **data,
        "model": model,
        "added_tokens": [{**token, "id": new_ids[token["id"]]} for token in data["added_tokens"]],
        "post_processor": _renumber_processor(data.get("post_processor"), new_ids),
        "padding": padding,
    }


def characters_without_piece(data: Mapping[str, Any], kept: Iterable[str]) -> set[str]:
    """Return the characters in the tokenizer's pieces that lack a kept piece of their own, in one of their forms.

    A text with one of them can turn into unknown text where a longer piece was removed.
    """
    model, kept = data["model"], set(kept)
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in kept for byte in range(256)):
        return set()
    added = added_ids(data)
    known = (piece for piece in model_ids(data) if piece not in added and not _is_byte(model, piece))
    characters = {character for piece in known for character in _core(model, piece)}
    prefix, suffix = _affixes(model)
    forms = [(before, after) for before in {"", prefix} for after in {"", suffix}]
    return {one for one in characters if not all(f"{before}{one}{after}" in kept for before, after in forms)}


def _alphabet_ids(data: Mapping[str, Any], ids: Mapping[str, int], used: set[str] | None) -> set[int]:
    """The ids of single characters, in all their forms, and of bytes: all, or those in the used pieces."""
    model, added = data["model"], added_ids(data)
    characters = None
    if used is not None:
        characters = {one for piece in used if piece not in added for one in _core(model, piece)}
    return {
        index
        for piece, index in ids.items()
        if (len(core := _core(model, piece)) == 1 and (characters is None or core in characters))
        or (_is_byte(model, piece) and used is None)
    }


def _affixes(model: Mapping[str, Any]) -> tuple[str, str]:
    """What stands before a piece within a word, and behind one at its end."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _core(model: Mapping[str, Any], piece: str) -> str:
    prefix, suffix = _affixes(model)
    return piece.removeprefix(prefix).removesuffix(suffix) or piece


def _is_byte(model: Mapping[str, Any], piece: str) -> bool:
    return bool(model.get("byte_fallback")) and _BYTE.fullmatch(piece) is not None


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _merged(model: Mapping[str, Any]) -> Any:
    length = len(_affixes(model)[0])
    return lambda merge: _pair(merge)[0] + _pair(merge)[1][length:]


def _ancestors(model: Mapping[str, Any], pieces: Iterable[str]) -> set[str]:
    """The pieces that each of these is merged from, step by step.

    Within a text, what becomes a piece is merged as it would be alone: no merge reaches across its ends.
    """
    merged = _merged(model)
    ranks: dict[tuple[str, str], tuple[int, str]] = {}
    parts: dict[str, tuple[str, str]] = {}
    for rank, merge in enumerate(model["merges"]):
        pair, piece = _pair(merge), merged(merge)
        ranks[pair] = rank, piece  # of a pair that is there twice, the last counts
        parts.setdefault(piece, pair)
    found: set[str] = set()
    for piece in pieces:
        symbols = list(_leaves(piece, parts))
        found.update(symbols)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, (len(ranks) + 1, "")))
            if best not in ranks:
                break
            index = next(i for i in range(len(symbols)) if (symbols[i], symbols[i + 1]) == best)
            symbols[index : index + 2] = [ranks[best][1]]
            found.add(ranks[best][1])
    return found


def _leaves(piece: str, parts: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """The pieces that no merge makes, of which this one is made in the end."""
    stack = [piece]
    while stack:
        one = stack.pop()
        if one in parts:
            stack += reversed(parts[one])
        else:
            yield one


def _processor_ids(processor: Mapping[str, Any] | None) -> Iterator[int]:
    """The ids that a post-processor adds to a text."""
    if processor is None:
        return
    for one in processor.get("processors", ()):  # of a Sequence
        yield from _processor_ids(one)
    for key in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if key in processor:
            yield processor[key][1]
    for token in processor.get("special_tokens", {}).values():  # of TemplateProcessing
        yield from token["ids"]


def _renumber_processor(processor: Mapping[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    made = dict(processor)
    if "processors" in made:
        made["processors"] = [_renumber_processor(one, new_ids) for one in made["processors"]]
    for key in ("sep", "cls"):
        if key in made:
            made[key] = [made[key][0], new_ids[made[key][1]]]
    if "special_tokens" in made:
        made["special_tokens"] = {
            name: {**token, "ids": [new_ids[index] for index in token["ids"]]}
            for name, token in made["special_tokens"].items()
        }
    return made
