"""Model folders copied with their weights packed or unpacked, without a model being made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hfcompress.atomic_folder import replacing
from hfcompress.errors import CompressionError
from hfcompress.storage.layout import (
    INDEX,
    Folder,
    check_folder,
    describe,
    is_inside,
    is_obsolete,
    is_weight_file,
    refuse_adapter,
    weight_files,
)
from hfcompress.storage.safetensors_file import pack_file, unpack_file

Rewrite = Callable[[Path, Path], bool]


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


def _copy(source: Folder, out: Folder, rewrite: Rewrite) -> None:
    folder = Path(source)
    if not folder.is_dir():
        raise CompressionError(f"{str(source)!r} is no folder.")
    check_folder(folder)
    if folder.resolve() in Path(out).resolve().parents:
        raise CompressionError(f"{str(out)!r} lies in {str(source)!r}, which is copied; name a folder outside of it.")
    refuse_adapter(out)
    with replacing(out, is_obsolete(out)) as new:
        for path in folder.rglob("*"):
            if not is_inside(path, folder):
                raise CompressionError(f"{path} is a link out of the folder; copy what it stands for, or remove it.")
            place = new / path.relative_to(folder)
            if path.is_dir():
                place.mkdir()
            elif path.is_file() and not (path.parent == folder and is_weight_file(path.name)):
                shutil.copy2(path, place)
        _rewrite_weights(folder, new, rewrite)


def _rewrite_weights(source: Path, new: Path, rewrite: Rewrite) -> None:
    """Copy the weight files of one folder into another, rewritten."""
    files = weight_files(source)
    packed = [rewrite(file, new / file.name) for file in files]
    describe(new, [file.name for file in files], (source / INDEX).exists(), any(packed))
