"""Copies model folders with their weights packed or unpacked, without building a model."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hfcompress.errors import CompressionError
from hfcompress.models.heads_and_neurons import KINDS
from hfcompress.models.shape_plan import build_from_config
from hfcompress.storage import layout
from hfcompress.storage.load import concrete_class, model_class
from hfcompress.storage.safetensors_file import pack_file, read_shapes, unpack_file
from hfcompress.validation import check_folder_name


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

    If they are not, a warning says so.

    Args:
        source: A folder that `save_compressed` or `pack_folder` wrote.
        out: The folder to write.

    Raises:
        CompressionError: The source is damaged or the result cannot be written.
    """
    _copy_folder(source, out, unpack_file)
    plan = layout.read_config(Path(out)).get("quantization_config")
    if plan is not None:
        uneven = " and ".join(kind for kind in KINDS if kind in plan)
        warnings.warn(
            f"{out} still needs hfcompress to load, as no plain config states its {uneven}: import hfcompress before "
            "from_pretrained, or shrink the original model with plain=True.",
            stacklevel=2,
        )


def _copy_folder(source: layout.Folder, out: layout.Folder, rewrite: Callable[[Path, Path], bool]) -> None:
    check_folder_name(source, "read")
    folder = Path(source)
    if not folder.is_dir():
        raise CompressionError(f"{str(source)!r} is not a directory.")
    _check_weights(folder, layout.read_config(folder))
    if folder.resolve() in Path(out).resolve().parents:
        raise CompressionError(f"{str(out)!r} is inside {str(source)!r}, which is copied; name a folder outside of it.")
    with layout.replacing_model(out) as new:
        for path in folder.rglob("*"):
            if not layout.is_inside(path, folder):
                raise CompressionError(f"{path} is a link out of the folder; copy its target there, or remove it.")
            place = new / path.relative_to(folder)
            if path.is_symlink() and path.is_dir():
                place.symlink_to(os.readlink(path), target_is_directory=True)
            elif path.is_dir():
                place.mkdir()
            elif path.is_file() and not (path.parent == folder and layout.is_weight_file(path.name)):
                shutil.copy2(path, place)
        files = layout.weight_files(folder)
        packed = [rewrite(file, new / file.name) for file in files]
        layout.write_index_and_plan(new, [file.name for file in files], any(packed))


def _check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that was saved with masks or parametrizations on: its weights do not load under these names."""
    names = {name for file in layout.weight_files(folder) for name in read_shapes(file)}
    masked = {name for name in names if name.endswith("_orig") and f"{name.removesuffix('orig')}mask" in names}
    parametrized = {name for name in names if ".parametrizations." in name}
    if not masked and parametrized:
        # Some classes are made that way, and one that is not known here may be.
        with suppress(Exception):
            plain = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            built = build_from_config(plain, concrete_class(model_class(config), plain))
            masked = parametrized - set(built.state_dict())
    if masked:
        raise CompressionError(
            f"{folder} holds {min(masked)}: it was saved with masks of torch.nn.utils.prune, or another "
            "parametrization, still on, and does not load. Make the weights plain parameters in the model that was "
            "saved, with torch.nn.utils.prune.remove(module, name) or "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name), and save it again."
        )
