"""A compressed model as a folder: small, written whole or not at all, and read with everything checked."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download, split_torch_state_dict_into_shards
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import logging

from hfcompress.card import CARD, Table, is_ours, write_card
from hfcompress.errors import CompressionError
from hfcompress.files import is_packed, pack_file, pack_tensors, shapes_of, unpack_file
from hfcompress.folders import replacing
from hfcompress.layers import unwrap
from hfcompress.loader import check_size
from hfcompress.plan import METHOD, VERSION, build, is_plan, refusal_of_version

_CONFIG = "config.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER = "adapter_config.json"
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", CARD]  # vocabularies are texts and models of sentencepiece
_LARGEST_JSON = 1 << 26

Folder = str | os.PathLike[str]
Rewrite = Callable[[Path, Path], bool]


def save_compressed(
    model: nn.Module,
    directory: Folder,
    *,
    sparse: Literal["auto", False] = "auto",
    processing_class: Any = None,
    results: Table | None = None,
    notes: Mapping[str, object] | None = None,
    max_shard_size: int | str = "50GB",
    push_to_hub: bool = False,
    repo_id: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
) -> None:
    """Save a model as a small folder that loads anywhere: its zeros packed, with a model card.

    After ``import hfcompress``, plain ``from_pretrained`` and ``pipeline`` load it, bit for bit, into an ordinary dense
    model; without it they refuse to, if anything is packed or shrunken unevenly. The folder takes the place of an old
    one at once, when all is written: a process killed half-way leaves the old one. Files that a save does not write
    stay as they are. Another process whose working directory is the old folder has none afterwards.

    Args:
        model: A Hugging Face model, unchanged by this. A PEFT adapter must be merged before.
        directory: The folder to write.
        sparse: ``"auto"`` packs each matrix that is smaller so; False packs nothing.
        processing_class: The tokenizer, to be saved beside the model.
        results: A table for the model card, as `compare` returns it.
        notes: More lines for the card, for example ``{"teacher": "bert-base-uncased", "data": "IMDB reviews"}``.
        max_shard_size: As for ``save_pretrained``, of the dense weights: packed files are smaller.
        push_to_hub: Whether to upload the folder afterwards.
        repo_id: Where to; by default the name of the folder, in one's own namespace.
        token: The hub token; by default the one of ``hf auth login``.
        private: Whether a new repository is private.

    Raises:
        CompressionError: The model cannot be saved like this, or the folder cannot be written; what was there is as it
            was.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hfcompress.magnitude import prune_global_l1
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> zeros = prune_global_l1(model, 0.9).zeros
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compressed(model, folder)
        ...     again = load_compressed(folder)
        >>> int((again.bert.encoder.layer[0].output.dense.weight == 0).sum()) > 0
        True
    """
    if sparse not in ("auto", False):
        raise CompressionError(f"sparse={sparse!r} is unknown; it must be 'auto' or False.")
    inner = _savable(model)
    _refuse_adapter(directory)
    with replacing(directory, _is_obsolete(directory)) as new:
        if sparse == "auto":
            inner.save_pretrained(new, state_dict={"none": torch.empty(0)})  # all but the weights
            _pack_weights(inner, new, max_shard_size)
        else:
            inner.save_pretrained(new, max_shard_size=max_shard_size)
        if processing_class is not None:
            processing_class.save_pretrained(new)
        if is_ours(Path(directory) / CARD) or not (Path(directory) / CARD).exists():
            write_card(inner, new, results=results, notes=notes or {}, name=Path(directory).resolve().name)
        written = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
    if push_to_hub:
        api = HfApi(token=token)
        repository = api.create_repo(repo_id or Path(directory).resolve().name, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=Path(directory),
            commit_message="Upload compressed model",
            allow_patterns=[*written, CARD],  # the user's own card too
            delete_patterns=[_ONE_FILE, "model-*.safetensors", _INDEX],  # those of an older model, if not uploaded now
        )


def load_compressed(
    directory: Folder,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load what `save_compressed` or ``save_pretrained`` wrote, trusting nothing that stands in the folder.

    Plain ``from_pretrained`` loads the same model. This function moreover checks the config before a model is made of
    it, reads nothing but safetensors, runs no code of the folder's, and refuses a folder with missing or superfluous
    weights where ``from_pretrained`` warns. What is allocated is at most 1,024 times the size of the files.

    Args:
        directory: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.
        token: The hub token.
        local_files_only: Whether to use only what was downloaded before.
        cache_dir: Where downloads are kept.
        kwargs: For ``from_pretrained``, for example ``dtype`` or ``device_map``.

    Returns:
        An ordinary model, in eval mode, of the class that the config names, or else a sequence classifier.

    Raises:
        CompressionError: The folder is missing, damaged or of a newer version, or says what cannot be true. The message
            names file and tensor.

    Example:
        See `save_compressed`.
    """
    for name in ("subfolder", "variant"):
        if name in kwargs:
            raise CompressionError(f"{name}= is not read here; name the folder itself, or use from_pretrained.")
    folder = model_folder(
        directory, revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
    )
    config = _check_folder(folder)
    kind = _kind_of(config)
    options = {"use_safetensors": True, "trust_remote_code": False} | kwargs
    # To be told which weights do not fit; they are refused below.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _parts_limited(folder):
            if config.get("quantization_config") is None:
                _check_plain_size(folder, kind)
            model, info = kind.from_pretrained(folder, **options)
    except CompressionError as error:
        raise CompressionError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except Exception as error:  # whatever a config that was tampered with leads to
        raise CompressionError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if not info[problem] or (problem == "mismatched_keys" and kwargs.get("ignore_mismatched_sizes")):
            continue
        first = min(info[problem], key=str)
        if problem == "mismatched_keys":
            first = f"{first[0]} of shape {tuple(first[1])} where the config says {tuple(first[2])}"
        raise CompressionError(
            f"{folder} does not hold a {type(model).__name__}: {problem.replace('_', ' ')}, such as {first}. "
            "What a class of your own saved, its own from_pretrained loads."
        )
    loaded: PreTrainedModel = model
    return loaded


def model_folder(directory: Folder, **download: Any) -> Path:
    """Return a folder as it is, or where a model of the hub is after it was downloaded.

    Args:
        directory: A folder, or the id of a model on the hub: its config, safetensors and tokenizer are fetched.
        download: For ``huggingface_hub.snapshot_download``, for example ``revision``.

    Raises:
        CompressionError: There is neither such a folder nor such a model.
    """
    if Path(directory).is_dir():
        return Path(directory)
    try:
        return Path(snapshot_download(str(directory), allow_patterns=_FETCHED, ignore_patterns=["*/*"], **download))
    except Exception as error:  # no network, no such model, no access: huggingface_hub says which
        reason = str(error).strip().partition("\n")[0]
        raise CompressionError(
            f"{str(directory)!r} is neither a folder here nor a model that the hub gives: {reason}"
        ) from error


def pack_folder(source: Folder, out: Folder) -> None:
    """Copy a model folder, its weights packed wherever that makes them smaller.

    Args:
        source: A folder that ``save_pretrained`` wrote, with safetensors.
        out: The folder to write; see `save_compressed`.

    Raises:
        CompressionError: The source cannot be read or the result cannot be written.
    """
    _copy(source, out, pack_file)


def unpack_folder(source: Folder, out: Folder) -> None:
    """Copy a model folder, its weights dense, so that transformers alone loads it if its shapes are plain.

    Args:
        source: A folder that `save_compressed` or `pack_folder` wrote.
        out: The folder to write.

    Raises:
        CompressionError: The source is damaged or the result cannot be written.
    """
    _copy(source, out, unpack_file)


@contextmanager
def _parts_limited(folder: Path) -> Iterator[None]:
    """Refuse a config whose model would have far more modules than there are weights, while it is being built."""
    most, thread, made = 1000 + 16 * sum(len(shapes_of(file)) for file in _weight_files(folder)), get_ident(), 0

    def count(*_: object) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > most:
            raise CompressionError(f"{folder / _CONFIG} describes a model of more than {most:,} parts.")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_plain_size(folder: Path, kind: Any) -> None:
    """Refuse a dense folder whose config describes a larger model, as the loader does where something is packed."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if kind is AutoModelForSequenceClassification:
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    check_size(build(config, kind), sum(file.stat().st_size for file in _weight_files(folder)))


def is_weight_file(name: str) -> bool:
    """Whether transformers calls its safetensors weights, or their index, so."""
    return _WEIGHTS.fullmatch(name) is not None


def _copy(source: Folder, out: Folder, rewrite: Rewrite) -> None:
    folder = Path(source)
    if not folder.is_dir():
        raise CompressionError(f"{str(source)!r} is no folder.")
    _check_folder(folder)
    if folder.resolve() in Path(out).resolve().parents:
        raise CompressionError(f"{str(out)!r} lies in {str(source)!r}, which is copied; name a folder outside of it.")
    _refuse_adapter(out)
    with replacing(out, _is_obsolete(out)) as new:
        for path in folder.rglob("*"):
            if not _is_inside(path, folder):
                raise CompressionError(f"{path} is a link out of the folder; copy what it stands for, or remove it.")
            place = new / path.relative_to(folder)
            if path.is_dir():
                place.mkdir()
            elif path.is_file() and not (path.parent == folder and is_weight_file(path.name)):
                shutil.copy2(path, place)
        _rewrite_weights(folder, new, rewrite)


def _pack_weights(model: PreTrainedModel, new: Path, max_shard_size: int | str) -> None:
    """Write the weights that ``save_pretrained`` would write, in the same files, each tensor packed on its way."""
    state: dict[str, Tensor] = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    pattern = "model{suffix}.safetensors"
    try:
        state = revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
        split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size, filename_pattern=pattern)
    except (RuntimeError, ValueError) as error:  # weights that share memory undeclared; a size that is none
        raise CompressionError(f"{type(model).__name__} cannot be laid into files: {error}") from error
    (new / _ONE_FILE).unlink()  # of no weights
    packed = False
    for file, names in logging.tqdm(split.filename_to_tensors.items(), desc="Packing model shards"):
        packed = pack_tensors({name: state[name] for name in names}, new / file) or packed
    _describe(new, [*split.filename_to_tensors], split.is_sharded, packed)


def _rewrite_weights(source: Path, new: Path, rewrite: Rewrite) -> None:
    """Copy the weight files of one folder into another, rewritten."""
    files = _weight_files(source)
    packed = [rewrite(file, new / file.name) for file in files]
    _describe(new, [file.name for file in files], (source / _INDEX).exists(), any(packed))


def _describe(new: Path, files: Iterable[str], is_sharded: bool, is_packed: bool) -> None:
    """Make index and config say what the weight files hold."""
    if is_sharded:
        places = {name: file for file in files for name in shapes_of(new / file)}
        total = sum((new / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (new / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = _json(new / _CONFIG)
    plan = {k: v for k, v in (config.pop("quantization_config", None) or {}).items() if k in ("heads", "neurons")}
    if is_packed or plan:
        config["quantization_config"] = {"quant_method": METHOD, "version": VERSION, **plan}
    (new / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _savable(model: nn.Module) -> PreTrainedModel:
    inner = unwrap(model)
    if not isinstance(inner, PreTrainedModel):
        raise CompressionError(f"{type(inner).__name__} is no Hugging Face model, so there is nothing to load it with.")
    if getattr(inner, "_hf_peft_config_loaded", False) or any(hasattr(m, "base_layer") for m in inner.modules()):
        raise CompressionError("The model has a PEFT adapter; merge it first: model = model.merge_and_unload().")
    plan = getattr(inner.config, "quantization_config", None)
    if plan is not None and not is_plan(plan):
        raise CompressionError(f"{type(inner).__name__} is quantized; save it with its own save_pretrained.")
    for name, tensor in inner.state_dict().items():
        if tensor.is_meta or isinstance(tensor, DTensor):
            where = "on the meta device" if tensor.is_meta else "sharded over devices (DTensor)"
            raise CompressionError(f"{name} is {where}, so its values are not here; load or gather the weights first.")
    return inner


def _refuse_adapter(directory: Folder) -> None:
    if (Path(directory) / _ADAPTER).exists():
        raise CompressionError(
            f"{str(directory)!r} holds a PEFT adapter, which would be applied to what is saved there; name another "
            "folder."
        )


def _is_obsolete(directory: Folder) -> Callable[[str], bool]:
    """Which files of an old folder go: weights, which must not mix with new ones, and a card that we wrote."""
    own_card = is_ours(Path(directory) / CARD)
    return lambda name: is_weight_file(name) or (name == CARD and own_card)


def _check_folder(folder: Path) -> dict[str, Any]:
    """Check what a folder says of itself before transformers reads it, and return its config."""
    config = _json(folder / _CONFIG)
    if (folder / _ADAPTER).exists():
        raise CompressionError(f"{folder} holds a PEFT adapter, not a model; load it with PEFT.")
    method = config.get("quantization_config")
    if method is not None and not is_plan(method):
        raise CompressionError(
            f"{folder / _CONFIG} has a quantization_config that is not of hfcompress: {method!r:.200}."
        )
    if method is not None and (newer := refusal_of_version(method)):
        raise CompressionError(f"{folder / _CONFIG}: {newer}")
    files = _weight_files(folder)
    held = sum(file.stat().st_size for file in files)
    if method is None and any(is_packed(file) for file in files):
        raise CompressionError(f"{folder} holds packed weights, but its {_CONFIG} does not say so; it is damaged.")
    for key, value in _settings_in(config):
        labels = {"num_labels": value, "id2label": len(value) if isinstance(value, dict) else 0}.get(key)
        if isinstance(labels, int) and labels > held:
            raise CompressionError(f"{folder / _CONFIG}: {labels:,} labels do not go with {held} bytes of weights.")
        if key == "transformers_weights" or (key.endswith("_implementation") and "/" in str(value)):
            raise CompressionError(f"{folder / _CONFIG}: {key}={value!r:.200} names something outside of the folder.")
    return config


def _kind_of(config: Mapping[str, Any]) -> Any:
    """The class of the model that a config names, if it is one of transformers'."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    return kind if is_model else AutoModelForSequenceClassification


def _weight_files(folder: Path) -> list[Path]:
    """The files with weights, each in the folder, or in the hub cache that the folder is a part of."""
    names = [_ONE_FILE]
    if not (folder / names[0]).exists() and (folder / _INDEX).exists():
        places = _json(folder / _INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CompressionError(f"{folder / _INDEX} has no weight_map; it is damaged.")
        names = sorted(set(map(str, places.values())))
    for name in names:
        path = folder / name
        if not is_weight_file(name) or not _is_inside(path, folder):
            raise CompressionError(f"{folder} names weights outside of itself: {name!r}.")
        if not path.is_file():
            raise CompressionError(f"{path} is missing; there are no safetensors weights to load.")
    return [folder / name for name in names]


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads to what is in a folder, or in the hub cache that the folder is a part of."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    return any(path.resolve().is_relative_to(place) for place in inside)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise CompressionError(f"{path} is no file.")
        if path.stat().st_size > _LARGEST_JSON:
            raise CompressionError(f"{path} is of {path.stat().st_size:,} bytes, too much for what it is.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CompressionError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise CompressionError(f"{path} is no JSON object; it is damaged.")
    return value


def _settings_in(config: object) -> Iterator[tuple[str, Any]]:
    """All settings of a config and of the configs within it."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key), value
            yield from _settings_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from _settings_in(value)
