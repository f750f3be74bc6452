"""The folder of an exported model: which files it has, and what is checked before one is run or replaced."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from hfcompress.atomic_folder import put_back, replacing
from hfcompress.deploy.formats import FORMATS
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import count_outputs
from hfcompress.storage.layout import CONFIG, RECORD, is_weight_file
from hfcompress.storage.model_card import CARD, is_our_card

_VERSION = 2  # of the record
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".xml")  # beside a config
_OURS = frozenset[str]().union(*(one.files + one.large for one in FORMATS.values()))

Folder = str | os.PathLike[str]


def is_exported(directory: Folder) -> bool:
    """Whether a folder is one that `export` wrote, and no model of torch was saved there since."""
    folder = Path(directory)
    return (folder / RECORD).is_file() and not any(map(is_weight_file, os.listdir(folder)))


@contextmanager
def replacing_exported(directory: Folder) -> Iterator[Path]:
    """Yield a new folder, which at the end takes the place of what an earlier export wrote; other files stay.

    Raises:
        CompressionError: The folder cannot be written, or holds a model of torch or one that another tool exported,
            whose config would be replaced, also if that was saved in the meantime.
    """
    put_back(directory)
    _check_holds_none(directory)
    old = set[str]()
    with replacing(directory, old.__contains__) as new:
        yield new
        _check_holds_none(directory)
        old |= _written_before(Path(directory))


def _check_holds_none(directory: Folder) -> None:
    """Refuse a folder with a model that no earlier export wrote."""
    target = Path(directory)
    present = set(os.listdir(target) if target.is_dir() else ()) - (_written_before(target) & _OURS)
    held = [name for name in present if name.endswith(_WEIGHTS)]
    if held:
        kind = "of torch" if min(held).endswith(_WEIGHTS[:2]) and min(held) not in _OURS else "of another tool"
        raise CompressionError(
            f"{str(directory)!r} holds a model {kind} ({min(held)}), whose config the exported one would replace; "
            "name another folder."
        )


def _written_before(target: Path) -> set[str]:
    """Return what an earlier export may have written into a folder."""
    if not (target / RECORD).is_file():
        return set()
    try:
        old = {RECORD, *read_record(target)["files"]}
    except CompressionError:  # damaged: it is replaced, and what else was written with it stays
        old = {RECORD, *_OURS}
    if not is_our_card(target / CARD):
        old.discard(CARD)
    return old


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what was done into a new folder, with the sizes of all files in it, and digests of the model's."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))}
    files = {name: size for name, size in files.items() if (folder / name).is_file()}
    digests = {name: _digest(folder / name) for name in sorted(_OURS & files.keys())}
    text = json.dumps({"version": _VERSION, **record, "files": files, "sha256": digests}, indent=2)
    (folder / RECORD).write_text(f"{text}\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Read what was done.

    Raises:
        CompressionError: There is no record, or it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        what = "is not a directory" if not folder.is_dir() else f"has no {RECORD}, so hfcompress did not export it"
        raise CompressionError(f"{folder} {what}; name a folder that hfcompress.export wrote.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (version := record["version"]) != _VERSION:
            remedy = "Export the model again" if version in range(_VERSION) else "Update hfcompress"
            raise CompressionError(f"{path} is of version {version!r:.20}; this hfcompress reads {_VERSION}. {remedy}.")
        files, inputs, digests, format, *_ = (
            record[name] for name in ("files", "inputs", "sha256", "format", "dtype", "max_tokens")
        )
        whole = all(isinstance(one, dict) for one in (files, inputs, digests))
        if not whole or not {*FORMATS[format].files} <= files.keys() & digests.keys():
            raise TypeError("its parts are not what they should be")
    except CompressionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CompressionError(f"{path} cannot be read: {error!r:.200}; export the model again.") from error
    return dict(record)


def check_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder of which a file is missing, or whose model files are not those that were written."""
    for name in record["files"]:
        if name not in (CARD, RECORD) and not (folder / name).is_file():
            raise CompressionError(f"{folder / name} is missing; export the model again.")
    format = FORMATS[record["format"]]
    for name in (one for one in format.files + format.large if one in record["files"]):
        size, written = (folder / name).stat().st_size, record["files"][name]
        if size != written:
            raise CompressionError(
                f"{folder / name} has {size:,} bytes and was written with {written:,}; it is truncated or of another "
                "model. Export the model again."
            )
        if _digest(folder / name) != record["sha256"].get(name):
            raise CompressionError(
                f"{folder / name} is not the file that was written: it is damaged or of another model. Export the "
                "model again."
            )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what tells the config of one model from that of another."""
    text = config.get_text_config()
    return {
        "model_type": config.model_type,
        "outputs": count_outputs(config),
        **{name: getattr(text, name, None) for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
    }


def read_model_config(folder: Path, record: Mapping[str, Any]) -> PreTrainedConfig:
    """Read the config of an exported model; no code of the folder is run.

    Raises:
        CompressionError: It cannot be read, or is that of another model.
    """
    path = folder / CONFIG
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        name = written.get("model_type")
        known = name in CONFIG_MAPPING
        kind = CONFIG_MAPPING[name] if known else PreTrainedConfig
        config: PreTrainedConfig = kind.from_dict(written)
        found, expected = describe_config(config), dict(record["config"])
    except Exception as error:  # whatever a manipulated config leads to
        raise CompressionError(f"{path} cannot be read: {error!r:.200}; export the model again.") from error
    if not known:  # of a class of the user's own, which is not needed to run the graph
        found = {**expected, "outputs": found["outputs"]}
    for name in expected:
        if found.get(name) != expected[name]:
            raise CompressionError(
                f"{path} is of another model: its {name} is {found.get(name)!r:.60}, and that of the exported one "
                f"{expected[name]!r:.60}. Export the model again."
            )
    return config
