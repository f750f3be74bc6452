"""Smaller vocabularies: the tokens that texts do not use removed from a model and its tokenizer."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import evaluation_mode, get_logits, input_names
from hfcompress.models.inputs import TOKENS
from hfcompress.models.profiling import count_parameters
from hfcompress.models.shape_plan import build_from_config
from hfcompress.models.shapes_in_config import own_configs
from hfcompress.models.tensors import identities, stored_bytes
from hfcompress.models.tokenizers import check_texts, token_limit, with_backend
from hfcompress.progress import track
from hfcompress.report.vocabulary import VocabularyReport
from hfcompress.shrink.request import check_model
from hfcompress.shrink.tokenizer_json import (
    added_ids,
    characters_without_piece,
    check_kind,
    model_ids,
    needed_ids,
    renumber,
)
from hfcompress.validation import check_choice, check_count, is_integer

Alphabet = Literal["all", "used"]
# Settings of configs that hold ids of tokens: pad_token_id, forced_eos_token_id, and XLM's pad_index, ...
_ID_SETTING = re.compile(r".*token_(id|ids|index)|(bos|eos|pad|unk|mask|sep|cls)_(id|index)|(begin_)?suppress_tokens")
_TEXTS = 1000  # encoded in one call
_SAMPLES = 8  # texts whose logits are compared


def prune_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str] | Iterable[tuple[str, str]],
    *,
    keep: Iterable[str] = (),
    min_count: int = 1,
    alphabet: Alphabet = "all",
) -> VocabularyReport:
    """Remove the tokens that texts do not use, from a classifier in place and from a copy of its tokenizer.

    A text whose ids are all kept gets the same pieces from the new tokenizer (``report.tokenizer``), under new ids, and
    exactly the same logits. Other texts are made up of shorter pieces. What stays: the tokens of the texts; special and
    added tokens; single characters, within a word and at its start or end; bytes, where they are pieces; of BPE the
    pieces that a kept one is merged from, with all merges among kept pieces; of Unigram a piece with the lowest score;
    each token that the config names. The tokens keep their order, and ``pad`` its id where positions count from it.

    The smaller model is a plain one: a config with another ``vocab_size``. Before returning, the call compares the
    logits of some of the texts, and undoes everything if they differ.

    One kind of text is no longer read as before although its ids are kept: one with a WordPiece word that was unknown
    since a character has no piece in its place (``c``, or ``##c`` within a word). It may be known now.

    Args:
        model: A sequence classifier, not wrapped, without adapters.
        tokenizer: Its fast tokenizer, of WordPiece, BPE, Unigram or whole words. It is not changed.
        texts: What the model will read: texts, or pairs of texts, for example a column of a data set.
        keep: Further tokens to keep, as they stand in the vocabulary: ``"##ing"``.
        min_count: Times that a token must be in the texts to be kept.
        alphabet: ``"all"`` keeps all single characters and bytes; ``"used"`` those in the texts. Other characters turn
            into the unknown token then, or into nothing where there is none, as in GPT-2's vocabulary.

    Returns:
        Tokens, parameters and bytes before and after, the share of texts that are read as before, the new tokenizer.

    Raises:
        CompressionError: The tokenizer is not a fast one or does not fit the model, an argument is out of range, or
            the architecture reads ids otherwise than by rows of its embeddings. The model is untouched then.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
        >>> words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "worse": 4}
        >>> backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=5, hidden_size=12))
        >>> report = prune_vocabulary(model, tokenizer, ["good", "worse"])
        >>> report.tokens, report.tokenizer("worse")["input_ids"], model.config.vocab_size
        ((5, 4), [3], 4)
    """
    check_choice("alphabet", alphabet, get_args(Alphabet))
    check_count("min_count", min_count)
    check_model(model)
    data = _read_tokenizer(tokenizer)
    vocabulary = {**model_ids(data), **added_ids(data)}
    rows = _count_rows(model, vocabulary)
    wanted = _ids_to_keep(keep, vocabulary)
    given = check_texts("texts", texts)
    _check_characters(given)
    encoded = _encode(tokenizer, given)
    counts = Counter(index for ids in encoded for index in ids)
    if not counts.keys() - set(tokenizer.all_special_ids):
        raise CompressionError(
            f"The texts hold no token but special ones (the first is {str(given[0])[:40]!r}); pass texts in the "
            "language of the tokenizer."
        )
    used = {index for index, count in counts.items() if count >= min_count}
    named = {index for config in _configs(model) for _, index in _named_ids(config) if 0 <= index < rows}
    special = {*tokenizer.all_special_ids} & {*vocabulary.values()}
    kept = needed_ids(data, used | wanted | named | special, alphabet, counts)
    kept |= set(range(_first_free_id(model)))
    order = _order(kept, data, rows)
    new_ids = {old: index for index, old in enumerate(order)}
    smaller = with_backend(tokenizer, renumber(data, new_ids))
    _check_tokenizer(smaller, {piece: new_ids[index] for piece, index in vocabulary.items() if index in new_ids})
    same = [
        [new_ids.get(index) for index in old] == new for old, new in zip(encoded, _encode(smaller, given), strict=True)
    ]
    samples = [given[index] for index in sorted(range(len(given)), key=lambda index: not same[index])[:_SAMPLES]]
    before = count_parameters(model), stored_bytes(model)
    batches = list(_sample_batches(model, tokenizer, samples, new_ids))
    expected = _logits(model, batches)
    if all(logits is None for logits in expected):
        raise CompressionError(
            f"{type(model).__name__} reads none of the texts as {type(tokenizer).__name__} encodes them, such as "
            f"{str(samples[0])[:40]!r}; pass the model's own tokenizer, and texts that it reads."
        )
    _check_reload(smaller, samples)
    with ExitStack() as undo:
        _select_rows(model, order, rows, undo)
        found = _logits(model, [{**batch, "input_ids": _renumbered(batch["input_ids"], order)} for batch in batches])
        for old, new in zip(expected, found, strict=True):
            if old is not None and (new is None or not _same_bits(old, new)):
                raise CompressionError(
                    f"With fewer tokens {type(model).__name__} returns other logits for the same texts: it reads ids "
                    "otherwise than by the rows of its embeddings, so its vocabulary cannot be pruned."
                )
        undo.pop_all()
    pieces = [piece for piece, index in vocabulary.items() if index in new_ids]
    return VocabularyReport(
        tokens=(len(vocabulary), len(pieces)),
        parameters=(before[0], count_parameters(model)),
        bytes=(before[1], stored_bytes(model)),
        texts=len(given),
        covered=sum(same) / len(same),
        characters_without_piece=len(characters_without_piece(data, pieces)),
        tokenizer=smaller,
        old_ids=tuple(order),
    )


# The tokenizer


def _read_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CompressionError(
            f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}; load it with AutoTokenizer."
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompressionError(
            f"{type(tokenizer).__name__} is not a fast tokenizer (it has no backend_tokenizer), so its vocabulary "
            "cannot be pruned; load its fast form, if there is one."
        )
    data: dict[str, Any] = json.loads(backend.to_str())
    check_kind(data)
    return data


def _ids_to_keep(keep: Iterable[str], vocabulary: Mapping[str, int]) -> set[int]:
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise CompressionError(f"keep={keep!r} must list tokens: pass [{keep!r}].")
    tokens = list(keep)
    unknown = [token for token in tokens if not isinstance(token, str) or token not in vocabulary]
    if unknown:
        raise CompressionError(
            f"keep names {unknown[0]!r}, which is no token of the vocabulary; tokens are written as in "
            "tokenizer.tokenize(text)."
        )
    return {vocabulary[token] for token in tokens}


def _check_characters(texts: Sequence[Any]) -> None:
    """Refuse texts with half of a surrogate pair, which no tokenizer reads."""
    for number, text in enumerate(texts):
        try:
            "".join(text).encode()
        except UnicodeEncodeError as error:
            raise CompressionError(
                f"Number {number} of texts has {error.object[error.start]!r}, which is no character "
                "(half of a surrogate pair); read the file with its own encoding, or leave the text out."
            ) from error


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any]) -> list[list[int]]:
    """Return the ids of texts, or pairs, with special tokens, neither truncated nor padded."""
    found: list[list[int]] = []
    for start in track(range(0, len(texts), _TEXTS), "reading tokens"):
        part = list(texts[start : start + _TEXTS])
        columns = [part] if isinstance(part[0], str) else [list(column) for column in zip(*part, strict=True)]
        found += tokenizer(*columns, padding=False, truncation=False, verbose=False)["input_ids"]
    return found


def _order(kept: set[int], data: Mapping[str, Any], rows: int) -> list[int]:
    """The old ids in their new order: the model's pieces, tokens added behind them, rows without a token."""
    if len(kept) == rows:
        return list(range(rows))
    model, added = set(model_ids(data).values()), set(added_ids(data).values())
    return sorted(kept, key=lambda index: (0 if index in model else 1 if index in added else 2, index))


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, expected: Mapping[str, int]) -> None:
    found = tokenizer.get_vocab()
    wrong = next((piece for piece in expected if found.get(piece) != expected[piece]), None)
    if wrong is not None or len(found) != len(expected):
        raise CompressionError(
            f"The tokenizer cannot give {wrong!r} the id {expected.get(wrong or '')}: the ids of its vocabulary have "
            "gaps that the tokenizers library does not keep; its vocabulary cannot be pruned."
        )


def _check_reload(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any]) -> None:
    """Refuse a tokenizer that its class loads otherwise than it was saved: some expect certain ids."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        loaded = type(tokenizer).from_pretrained(folder)
    if loaded.get_vocab() != tokenizer.get_vocab() or _encode(loaded, texts) != _encode(tokenizer, texts):
        name = type(tokenizer).__name__
        raise CompressionError(
            f"A smaller vocabulary would not be loaded as it was saved: {name} makes more of it than tokenizer.json "
            "says; load the tokenizer with PreTrainedTokenizerFast.from_pretrained instead."
        )


# The model


def _count_rows(model: PreTrainedModel, vocabulary: Mapping[str, int]) -> int:
    """Return the rows of the token embeddings."""
    name = type(model).__name__
    try:
        embeddings: Any = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor):
        raise CompressionError(f"{name} has no embedding with a row for each token, so no vocabulary to prune.")
    rows = len(weight)
    if model.get_output_embeddings() is not None:
        raise CompressionError(
            f"{name} has a head with an output for each token; prune_vocabulary takes classifiers, whose logits stay."
        )
    if not any(getattr(config, "vocab_size", None) == rows for config in _configs(model)):
        raise CompressionError(
            f"The token embeddings of {name} have {rows} rows, but its config says "
            f"vocab_size={getattr(model.config, 'vocab_size', None)}; use model.resize_token_embeddings, which sets it."
        )
    beyond = next((piece for piece, index in vocabulary.items() if index >= rows), None)
    if beyond is not None:
        raise CompressionError(
            f"The tokenizer gives {beyond!r} the id {vocabulary[beyond]}, but the embeddings of {name} have {rows} "
            "rows; pass the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first."
        )
    return rows


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Return all configs of a model, with those inside configs, and its generation config if there is one."""
    stack: list[Any] = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    stack.append(vars(model).get("generation_config"))
    found: dict[int, Any] = {}
    while stack:
        config = stack.pop()
        if config is not None and id(config) not in found and hasattr(config, "to_dict"):
            found[id(config)] = config
            stack += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return list(found.values())


def _named_ids(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the ids of tokens that a config names, with the names of the settings."""
    for name, value in vars(config).items():
        if _ID_SETTING.fullmatch(name):
            yield from ((name, index) for index in _flatten(value))


def _flatten(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flatten(one)
    elif is_integer(value):
        yield int(value)


def _map_ids(value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map_ids(one, new_ids) for one in value)
    return new_ids.get(value, value) if is_integer(value) else value


def _first_free_id(model: nn.Module) -> int:
    """Return the first id that may become another: where positions count from the padding id, the one behind it."""
    token_weights = {id(model.get_input_embeddings().weight)}  # type: ignore[operator] # typed as Module | Tensor
    fixed = 0
    for module in model.modules():
        index = vars(module).get("padding_idx")
        # Of a whole model, and of the token embeddings, it is the id alone; of others it is where positions begin.
        reads_tokens = isinstance(module, PreTrainedModel) or id(getattr(module, "weight", None)) in token_weights
        if is_integer(index) and not reads_tokens:
            fixed = max(fixed, index + 1)
    return fixed


def _select_rows(model: PreTrainedModel, order: Sequence[int], rows: int, undo: ExitStack) -> None:
    """Keep these rows of all tensors that the vocabulary gives their size, in this order; write it into the config.

    Which tensors these are, and which settings of modules follow from the config, is found by building the model from
    the old and the new config, without weights.
    """
    new_ids = {old: index for index, old in enumerate(order)}
    own_configs(model, undo)
    old_model = _build(model)
    if vars(model).get("generation_config") is not None:
        undo.callback(setattr, model, "generation_config", model.generation_config)
        model.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    for config in _configs(model):
        if getattr(config, "vocab_size", None) == rows:
            config.vocab_size = len(order)
        for name in {name for name, _ in _named_ids(config)}:
            setattr(config, name, _map_ids(getattr(config, name), new_ids))
    new_model = _build(model)

    old_tensors, new_tensors, tensors = _tensors(old_model), _tensors(new_model), _tensors(model)
    made: dict[object, Tensor] = {}
    for name in old_tensors:
        old, new = old_tensors[name].shape, new_tensors[name].shape
        if old == new:
            continue
        changed = [axis for axis, sizes in enumerate(zip(old, new, strict=True)) if sizes[0] != sizes[1]]
        if len(changed) != 1 or (old[changed[0]], new[changed[0]]) != (rows, len(order)):
            raise CompressionError(f"{name} would change from {tuple(old)} to {tuple(new)} with the vocabulary.")
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != old:
            raise CompressionError(
                f"{type(model).__name__} has {'no' if tensor is None else 'another'} {name} than its config builds, so "
                "its vocabulary cannot be pruned; merge adapters (merge_and_unload()) first."
            )
        _replace(model, name, tensor, changed[0], order, made, undo)

    old_modules, new_modules = dict(old_model.named_modules()), dict(new_model.named_modules())
    for name, module in model.named_modules():
        if name in old_modules and name in new_modules:
            before, after = vars(old_modules[name]), vars(new_modules[name])
            for key in before.keys() & after.keys() & vars(module).keys():
                if is_integer(before[key]) and before[key] != after[key] and vars(module)[key] == before[key]:
                    undo.callback(setattr, module, key, before[key])
                    setattr(module, key, after[key])


def _build(model: PreTrainedModel) -> PreTrainedModel:
    try:
        return build_from_config(model.config, type(model))
    except Exception as error:  # whatever a constructor raises
        raise CompressionError(
            f"{type(model).__name__} cannot be built from its config alone, so its vocabulary cannot be pruned: {error}"
        ) from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _replace(
    model: nn.Module,
    name: str,
    tensor: Tensor,
    axis: int,
    order: Sequence[int],
    made: dict[object, Tensor],
    undo: ExitStack,
) -> None:
    """Put the chosen rows in place of a tensor; what was one tensor, or one memory, stays one."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if id(tensor) not in made:
        memory = identities(tensor)[-1]
        if memory not in made:
            made[memory] = tensor.detach().index_select(axis, torch.tensor(order, device=tensor.device))
        chosen = made[memory]
        is_parameter = isinstance(tensor, nn.Parameter)
        made[id(tensor)] = nn.Parameter(chosen, requires_grad=tensor.requires_grad) if is_parameter else chosen
    undo.callback(setattr, module, attribute, tensor)
    setattr(module, attribute, made[id(tensor)])


# The logits of some texts, before and after


def _sample_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any], kept: Mapping[int, int]
) -> Iterator[dict[str, Tensor]]:
    """Yield each text by itself, and all of them padded, with the kept ids alone."""
    limit, device, rows = token_limit(tokenizer, model) or TOKENS, next(model.parameters()).device, []
    limit = min(limit, TOKENS)
    for text in texts:
        pair = (text,) if isinstance(text, str) else text
        row = tokenizer(*pair, truncation=True, max_length=limit, verbose=False)
        stay = [place for place, index in enumerate(row["input_ids"]) if index in kept]
        rows.append({name: [row[name][place] for place in stay] for name in row if name in input_names(model)})
    rows = [row for row in rows if row["input_ids"]]
    yield from ({name: torch.tensor([value], device=device) for name, value in row.items()} for row in rows)
    if tokenizer.pad_token is not None and tokenizer.pad_token_id in kept:
        yield {name: value.to(device) for name, value in DataCollatorWithPadding(tokenizer)(rows).items()}


def _renumbered(ids: Tensor, order: Sequence[int]) -> Tensor:
    places = torch.zeros(max(order) + 1, dtype=ids.dtype, device=ids.device)
    places[torch.tensor(order, device=ids.device)] = torch.arange(len(order), dtype=ids.dtype, device=ids.device)
    return places[ids]


def _logits(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor | None]:
    """Return the logits of each batch, None of one that the model does not read."""
    found: list[Tensor | None] = []
    with evaluation_mode(model):
        for batch in batches:
            try:
                outputs = model(**batch)
            except (IndexError, RuntimeError, ValueError):
                found.append(None)
            else:
                found.append(get_logits(outputs))
    return found


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
