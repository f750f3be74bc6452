"""A folder with a model: which files are whose, what they say of themselves, and which of them a save replaces."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import check_version, is_plan, make_plan
from hfcompress.storage.model_card import CARD, is_ours
from hfcompress.storage.safetensors_file import is_packed, shapes_of

CONFIG = "config.json"
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER = "adapter_config.json"
_LARGEST_JSON = 1 << 26

Folder = str | os.PathLike[str]


def is_weight_file(name: str) -> bool:
    """Whether transformers calls its safetensors weights, or their index, so."""
    return _WEIGHTS.fullmatch(name) is not None


def weight_files(folder: Path) -> list[Path]:
    """The files with weights, each in the folder, or in the hub cache that the folder is a part of."""
    names = [ONE_FILE]
    if not (folder / names[0]).exists() and (folder / INDEX).exists():
        places = _json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CompressionError(f"{folder / INDEX} has no weight_map; it is damaged.")
        names = sorted(set(map(str, places.values())))
    for name in names:
        path = folder / name
        if not is_weight_file(name) or not is_inside(path, folder):
            raise CompressionError(f"{folder} names weights outside of itself: {name!r}.")
        if not path.is_file():
            raise CompressionError(f"{path} is missing; there are no safetensors weights to load.")
    return [folder / name for name in names]


def describe(new: Path, files: Iterable[str], is_sharded: bool, packed: bool) -> None:
    """Make index and config say what the weight files hold."""
    if is_sharded:
        places = {name: file for file in files for name in shapes_of(new / file)}
        total = sum((new / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = _json(new / CONFIG)
    given = config.pop("quantization_config", None)
    plan = make_plan(given or {})
    if packed or plan.keys() > make_plan({}).keys():
        config["quantization_config"] = plan
    (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> dict[str, Any]:
    """Check what a folder says of itself before transformers reads it, and return its config."""
    config = _json(folder / CONFIG)
    if (folder / _ADAPTER).exists():
        raise CompressionError(f"{folder} holds a PEFT adapter, not a model; load it with PEFT.")
    method = config.get("quantization_config")
    if method is not None and not is_plan(method):
        raise CompressionError(
            f"{folder / CONFIG} has a quantization_config that is not of hfcompress: {method!r:.200}."
        )
    if method is not None:
        try:
            check_version(method)
        except CompressionError as error:
            raise CompressionError(f"{folder / CONFIG}: {error}") from None
    files = weight_files(folder)
    held = sum(file.stat().st_size for file in files)
    if method is None and any(is_packed(file) for file in files):
        raise CompressionError(f"{folder} holds packed weights, but its {CONFIG} does not say so; it is damaged.")
    for key, value in _settings_in(config):
        labels = {"num_labels": value, "id2label": len(value) if isinstance(value, dict) else 0}.get(key)
        if isinstance(labels, int) and labels > held:
            raise CompressionError(f"{folder / CONFIG}: {labels:,} labels do not go with {held} bytes of weights.")
        if key == "transformers_weights" or (key.endswith("_implementation") and "/" in str(value)):
            raise CompressionError(f"{folder / CONFIG}: {key}={value!r:.200} names something outside of the folder.")
    return config


def refuse_adapter(directory: Folder) -> None:
    """Refuse to write where a PEFT adapter is."""
    if (Path(directory) / _ADAPTER).exists():
        raise CompressionError(
            f"{str(directory)!r} holds a PEFT adapter, which would be applied to what is saved there; name another "
            "folder."
        )


def is_obsolete(directory: Folder) -> Callable[[str], bool]:
    """Which files of an old folder go: weights, which must not mix with new ones, and a card that we wrote."""
    own_card = is_ours(Path(directory) / CARD)
    return lambda name: is_weight_file(name) or (name == CARD and own_card)


def is_inside(path: Path, folder: Path) -> bool:
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
