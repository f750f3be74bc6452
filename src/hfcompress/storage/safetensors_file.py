"""Writes and reads safetensors files in which some tensors are packed."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hfcompress.errors import CompressionError
from hfcompress.storage.sparse_codec import THREADS, Packed, pack, unpack, unpacked_shape

VERSION = 1
METADATA = "hfcompress"  # key of the version in the metadata of a file
PACKABLE = ".weight"  # the end of the name of each tensor that may be packed; the loader recognises them by it
POSITIONS = ".positions"  # X.positions holds the positions of the values in X
_FLUSHED_AT_ONCE = 1 << 26  # bytes

Entries = dict[str, Tensor]  # the tensors by which a file represents one tensor of the model: one, or two if packed
TensorInfo = tuple[str, str, list[int]]  # of an unpacked tensor: name, dtype as in safetensors, shape


def pack_file(source: Path, target: Path) -> bool:
    """Copy a safetensors file, its tensors packed where that makes them smaller; return whether any is.

    Raises:
        CompressionError: A tensor that is not of this format has a name of it.
    """
    taken = [] if is_packed(source) else sorted(filter(_are_positions, read_shapes(source)))
    if taken:
        raise CompressionError(
            f"The model has a tensor {taken[0]!r}, the name under which the positions of packed weights are stored; "
            "rename it, or save without packing: sparse=False."
        )
    return _rewrite(source, target, _pack_entry)


def unpack_file(source: Path, target: Path) -> bool:
    """Copy a safetensors file, its packed tensors unpacked; return whether any is packed, which is False."""
    check_packed_tensors(source)
    return _rewrite(source, target, _unpack_entries)


def check_packed_tensors(path: Path) -> bool:
    """Check the packed tensors of a safetensors file, in little memory; return whether there are any.

    Raises:
        CompressionError: It is not a safetensors file, is of a newer version of the format, or contradicts itself.
    """
    with _open(path) as file, ThreadPoolExecutor(THREADS) as pool:
        names = set(file.keys())
        packed = [name.removesuffix(POSITIONS) for name in names if _are_positions(name)]
        for name in set(packed) - names:
            raise CompressionError(f"{path}: {name}{POSITIONS} has no values: there is no tensor {name!r}.")
        if packed and METADATA not in (file.metadata() or {}):
            raise CompressionError(f"{path}: {packed[0]!r} is packed, but the metadata have no version of the format.")

        def check(name: str) -> None:
            try:
                unpacked_shape(Packed(file.get_tensor(name), file.get_tensor(name + POSITIONS)))
            except CompressionError as error:
                raise CompressionError(f"{path}: tensor {name!r} is damaged: {error}.") from None

        list(pool.map(check, packed))  # raises what any of them raised
        return bool(packed)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor as it is stored in a safetensors file."""
    with _open(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def is_packed(path: Path) -> bool:
    """Whether the metadata of a safetensors file announce packed tensors."""
    with _open(path) as file:
        return METADATA in (file.metadata() or {})


def _pack_entry(name: str, entries: Entries) -> Entries:
    tensor = entries[name]
    packable = name.endswith(PACKABLE) and tensor.dim() > 1 and name + POSITIONS not in entries
    packed = pack(tensor) if packable else None
    return entries if packed is None else {name + POSITIONS: packed.positions, name: packed.values}


def _unpack_entries(name: str, entries: Entries) -> Entries:
    return {name: unpack(Packed(entries[name], entries[name + POSITIONS]))} if len(entries) > 1 else entries


def _rewrite(source: Path, target: Path, change: Callable[[str, Entries], Entries]) -> bool:
    """Write what `change` returns for each tensor of `source`."""
    with _open(source) as file:
        present = set(file.keys())
        slices = {name: file.get_slice(name) for name in present if not _are_positions(name)}
        infos = [(name, one.get_dtype(), one.get_shape()) for name, one in slices.items()]
        metadata = {key: value for key, value in (file.metadata() or {}).items() if key != METADATA}

        def make(name: str) -> Entries:
            own = (name, name + POSITIONS) if _are_positions(name + POSITIONS) else (name,)
            return change(name, {one: file.get_tensor(one) for one in own if one in present})

        return _write(target, metadata, infos, make)


def _write(target: Path, metadata: dict[str, str], infos: list[TensorInfo], make: Callable[[str], Entries]) -> bool:
    """Write what `make` returns for each name, a few tensors at a time, and last the header in front of them."""
    # The widest elements first, as in safetensors itself, so that each tensor is aligned for its dtype.
    infos = sorted(infos, key=lambda info: (-_bits_per_element(info[1]), info[0]))
    if infos and _bits_per_element(infos[-1][1]) < 8:
        raise CompressionError(f"{infos[-1][0]} has several numbers in a byte ({infos[-1][1]}) and cannot be packed.")
    room = _header_room(metadata, infos)
    header: dict[str, Any] = {}
    flushes: list[Future[None]] = []  # while the next tensors are packed, so that the flush at the end is short
    with open(target, "wb") as out, ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as flusher:
        out.seek(8 + room)
        for (name, dtype, _), entries in zip(infos, _make_ahead(pool, make, [info[0] for info in infos]), strict=True):
            for key, tensor in entries.items():
                begin = out.tell() - 8 - room
                if tensor.numel():  # none of a matrix that is zero everywhere
                    out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
                offsets = [begin, out.tell() - 8 - room]
                shape = list(tensor.shape)
                header[key] = {"dtype": dtype if key == name else "U8", "shape": shape, "data_offsets": offsets}
            if out.tell() > _FLUSHED_AT_ONCE * (len(flushes) + 1):
                flushes.append(flusher.submit(os.fsync, out.fileno()))
        packed = any(map(_are_positions, header))
        version = {METADATA: str(VERSION)} if packed else {}
        out.seek(0)
        out.write(struct.pack("<Q", room))
        out.write(json.dumps({"__metadata__": metadata | version} | header).encode().ljust(room))
        for flush in flushes:
            flush.result()  # raises what writing to the disk raised
    return packed


def _header_room(metadata: dict[str, str], infos: list[TensorInfo]) -> int:
    """Return the bytes of the longest header that packing these tensors can lead to, a multiple of 8."""
    most = 2 * sum(_bits_per_element(d) // 8 * math.prod(shape) + 64 + 8 * len(shape) for _, d, shape in infos)
    longest: dict[str, Any] = {"__metadata__": metadata | {METADATA: str(VERSION)}}
    for name, dtype, shape in infos:
        longest[name] = {"dtype": dtype, "shape": [*shape, most], "data_offsets": [most, most]}
        longest[name + POSITIONS] = {"dtype": "U8", "shape": [most], "data_offsets": [most, most]}
    return -(-len(json.dumps(longest).encode()) // 8) * 8


def _make_ahead(pool: ThreadPoolExecutor, make: Callable[[str], Entries], names: Iterable[str]) -> Iterator[Entries]:
    """Yield what `make` returns for each name, while the threads work on the next few."""
    waiting: deque[Future[Entries]] = deque()
    for name in names:
        waiting.append(pool.submit(make, name))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _are_positions(name: str) -> bool:
    return name.endswith(PACKABLE + POSITIONS)


def _bits_per_element(dtype: str) -> int:
    """Return the bits of an element, from the dtype's name in safetensors: F32, BF16, F8_E4M3, BOOL."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CompressionError(f"{path} cannot be read: {error}.") from error
    with opened as file:
        _refuse_duplicates(path)
        version = (file.metadata() or {}).get(METADATA, str(VERSION))
        if version != str(VERSION):
            raise CompressionError(
                f"{path} is of version {version!r} of the packed format; this hfcompress reads version {VERSION}. "
                "Update it: pip install -U hfcompress"
            )
        yield file


def _refuse_duplicates(path: Path) -> None:
    """Refuse a header with a name twice, of which each reader would choose one silently."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CompressionError(f"{path} cannot be read: {name!r} is in its header twice.")
        return found

    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=unique)
