"""Copies model folders with their weights packed or unpacked, without building a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hfcompress.errors import CompressionError
from hfcompress.storage import layout
from hfcompress.storage.safetensors_file import pack_file, unpack_file


def pack_folder(source: layout.Folder, out: layout.Folder) -> None:
    """Copy a model folder, its weights packed wherever that makes them smaller.

    Args:
        source: A folder that ``save_pretrained`` wrote, with safetensors.
        out: The folder to write; see `save_compressed`.

    Raises:
        CompressionError: The source cannot be read or the result cannot be written.
    """
    _copy_folder(source, out, pack_file)


def unpack_folder(source: layout.Folder, out: layout.Folder) -> None:
    """Copy a model folder, its weights unpacked, so that transformers alone loads it if its shapes are plain.

    Args:
        source: A folder that `save_compressed` or `pack_folder` wrote.
        out: The folder to write.

    Raises:
        CompressionError: The source is damaged or the result cannot be written.
    """
    _copy_folder(source, out, unpack_file)


def _copy_folder(source: layout.Folder, out: layout.Folder, rewrite: Callable[[Path, Path], bool]) -> None:
    folder = Path(source)
    if not folder.is_dir():
        raise CompressionError(f"{str(source)!r} is not a directory.")
    layout.read_config(folder)
    if folder.resolve() in Path(out).resolve().parents:
        raise CompressionError(f"{str(out)!r} is inside {str(source)!r}, which is copied; name a folder outside of it.")
    with layout.replacing_model(out) as new:
        for path in folder.rglob("*"):
            if not layout.is_inside(path, folder):
                raise CompressionError(f"{path} is a link out of the folder; copy its target there, or remove it.")
            place = new / path.relative_to(folder)
            if path.is_dir():
                place.mkdir()
            elif path.is_file() and not (path.parent == folder and layout.is_weight_file(path.name)):
                shutil.copy2(path, place)
        files = layout.weight_files(folder)
        packed = [rewrite(file, new / file.name) for file in files]
        layout.write_index_and_plan(new, [file.name for file in files], any(packed))
