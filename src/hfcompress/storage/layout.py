"""Knows the files of a model folder: what each holds, how it is checked, and which of them a save replaces."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hfcompress.atomic_folder import put_back, replacing
from hfcompress.errors import CompressionError
from hfcompress.models.architectures import LAYER_COUNTS
from hfcompress.models.labels import label_maps
from hfcompress.models.shape_plan import check_version, is_plan, make_plan
from hfcompress.storage.model_card import CARD, is_our_card
from hfcompress.storage.safetensors_file import is_packed, read_shapes

CONFIG = "config.json"
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
RECORD = "hfcompress_export.json"  # beside a model that another runtime runs
_ADAPTER = "adapter_config.json"
_LARGEST_JSON = 1 << 26  # bytes
_DEEPEST_JSON = 100  # levels; a few hundred end the recursion of Python's own functions

Folder = str | os.PathLike[str]


def is_weight_file(name: str) -> bool:
    """Whether this is a name that transformers gives to safetensors weights or to their index."""
    return _WEIGHTS.fullmatch(name) is not None


def weight_files(folder: Path) -> list[Path]:
    """Return the files with weights, each in the folder, or in the hub cache that the folder is a part of."""
    names = [ONE_FILE]
    if not (folder / ONE_FILE).exists() and (folder / INDEX).exists():
        files = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise CompressionError(f"{folder / INDEX} has no weight_map; it is damaged.")
        names = sorted(set(map(str, files.values())))
    for name in names:
        path = folder / name
        if not is_weight_file(name) or not is_inside(path, folder):
            raise CompressionError(f"{folder} names weights outside of itself: {name!r}.")
        if not path.is_file():
            exported = "it holds an exported model, for hfcompress.load_exported"
            why = exported if (folder / RECORD).is_file() else "there are no safetensors weights to load"
            raise CompressionError(f"{path} is missing; {why}.")
    return [folder / name for name in names]


def most_modules(files: Iterable[Path]) -> int:
    """Return how many modules a model may have whose weights are in these files: far more than any has."""
    return 1000 + 16 * sum(len(read_shapes(file)) for file in files)


def write_index_and_plan(new: Path, files: Sequence[str], packed: bool) -> None:
    """Make the index and the config of a new folder agree with its weight files."""
    if ONE_FILE not in files:
        places = {name: file for file in files for name in read_shapes(new / file)}
        total = sum((new / file).stat().st_size for file in files)
        _write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    config = _read_json(new / CONFIG)
    plan = make_plan(config.pop("quantization_config", None) or {})
    if packed or plan.keys() > make_plan({}).keys():
        config["quantization_config"] = plan
    _write_json(new / CONFIG, config)


def write_labels(new: Path, config: PreTrainedConfig) -> None:
    """Write the names of the labels into ``config.json``.

    transformers leaves out those of two labels, also where the default of the class is another number (BART: three),
    and cannot load what it saved then.
    """
    if labels := label_maps(config):
        labels |= {} if config.label2id is not None else {"label2id": None}
        _write_json(new / CONFIG, _read_json(new / CONFIG) | labels)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a model folder, after checking everything that transformers would read in the folder."""
    if (folder / _ADAPTER).exists():
        raise CompressionError(
            f"{folder} holds a PEFT adapter, not a model; load it with PEFT, "
            "AutoPeftModelForSequenceClassification.from_pretrained(...), or merge it into its base model before it is "
            "saved: model.merge_and_unload()."
        )
    config = _read_json(folder / CONFIG)
    method = config.get("quantization_config")
    if method is not None:
        try:
            if not is_plan(method):
                raise CompressionError(f"its quantization_config is not of hfcompress: {method!r:.200}.")
            check_version(method)
        except CompressionError as error:
            raise CompressionError(f"{folder / CONFIG}: {error}") from None
    files = weight_files(folder)
    held, packed = sum(file.stat().st_size for file in files), [is_packed(file) for file in files]
    most = most_modules(files)
    if method is None and any(packed):
        raise CompressionError(f"{folder} holds packed weights, but not the plan in its {CONFIG}; it is damaged.")
    configs = (one for level in _levels(config) for one in level if isinstance(one, dict))
    for key, value in chain.from_iterable(one.items() for one in configs):
        labels = {"num_labels": value, "id2label": len(value) if isinstance(value, dict) else 0}.get(key)
        if isinstance(labels, int) and labels > held:
            raise CompressionError(f"{folder / CONFIG}: {labels:,} labels do not go with {held} bytes of weights.")
        if key in LAYER_COUNTS and isinstance(value, int) and value > most:  # some configs make a list of so many
            raise CompressionError(f"{folder / CONFIG}: {key}={value:,} does not go with the weights in the folder.")
        if key == "transformers_weights" or (key.endswith("_implementation") and "/" in str(value)):
            raise CompressionError(f"{folder / CONFIG}: {key}={value!r:.200} names something outside of the folder.")
    return config


def check_written(new: Path, directory: Path) -> None:
    """Refuse to put a new folder into the place of another if it could not be read back from there.

    Raises:
        CompressionError: What `read_config` raises, about the folder that was to be written.
    """
    try:
        read_config(new)
    except CompressionError as error:
        raise CompressionError(
            f"The model would not load again: {str(error).replace(str(new), str(directory))}"
        ) from error


def replacing_model(directory: Folder) -> AbstractContextManager[Path]:
    """Yield a new folder, as `replacing` does, which at the end replaces the weights, and our own card, in another one.

    Raises:
        CompressionError: The folder cannot be written, or holds a PEFT adapter; it is unchanged.
    """
    put_back(directory)
    if (Path(directory) / _ADAPTER).exists():
        raise CompressionError(
            f"{str(directory)!r} holds a PEFT adapter, which would be applied to what is saved there; name another "
            "folder."
        )
    check_not_exported(directory)
    own_card = is_our_card(Path(directory) / CARD)
    return replacing(directory, lambda name: is_weight_file(name) or (name == CARD and own_card))


def check_not_exported(directory: Folder) -> None:
    """Refuse to write a model of torch into the folder of an exported one, which would have the config of the other."""
    if (Path(directory) / RECORD).is_file():
        raise CompressionError(f"{str(directory)!r} holds an exported model; name another folder.")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads to something in a folder, or in the hub cache that the folder is a part of."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    return any(path.resolve().is_relative_to(place) for place in inside)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        if path.stat().st_size > _LARGEST_JSON:
            raise OSError(f"its {path.stat().st_size:,} bytes are too many for such a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CompressionError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise CompressionError(f"{path} is not a JSON object; it is damaged.")
    if len(list(islice(_levels(value), _DEEPEST_JSON + 1))) > _DEEPEST_JSON:
        raise CompressionError(f"{path} is nested more than {_DEEPEST_JSON} levels deep; it is damaged.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # Sorted as by transformers, but for what is within: as texts, the numbers of labels would be sorted 0, 1, 10, 2.
    path.write_text(json.dumps(dict(sorted(value.items())), indent=2) + "\n", encoding="utf-8")


def _levels(value: object) -> Iterator[list[Any]]:
    """Yield the values on each level of a JSON value."""
    level = [value]
    while level:
        yield level
        containers = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = list(chain.from_iterable(containers))
