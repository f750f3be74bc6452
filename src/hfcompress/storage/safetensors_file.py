"""A safetensors file with packed tensors in it: written tensor by tensor, read with everything checked."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hfcompress.errors import CompressionError
from hfcompress.storage.sparse_codec import THREADS, Packed, check, pack, unpack

VERSION = 1
METADATA = "hfcompress"  # whose value, in the file's own metadata, is the version
PACKED = ".weight"  # so ends the name of each tensor that may be packed: the loader tells them by it
POSITIONS = ".positions"  # X.positions says where the values of X stand

Pieces = dict[str, Tensor]
Dense = list[tuple[str, str, list[int]]]  # name, dtype and shape


def pack_tensors(tensors: Mapping[str, Tensor], target: Path) -> bool:
    """Write tensors as a safetensors file, packed where that makes them smaller; return whether any is.

    They may be on any device: a few at a time are on the CPU.
    """
    names = {dtype: _name_of(dtype) for dtype in {tensor.dtype for tensor in tensors.values()}}
    dense = [(name, names[tensor.dtype], list(tensor.shape)) for name, tensor in tensors.items()]
    metadata = {"format": "pt"}  # as transformers writes and expects it
    return _write(target, metadata, dense, lambda name: _packed(name, {name: tensors[name].detach().cpu()}))


def pack_file(source: Path, target: Path) -> bool:
    """Copy a safetensors file, its tensors packed where that makes them smaller; return whether any is."""
    return _rewrite(source, target, _packed)


def unpack_file(source: Path, target: Path) -> bool:
    """Copy a safetensors file, its packed tensors whole again; return whether any is packed, which is False."""
    check_file(source)
    return _rewrite(source, target, lambda name, pieces: {name: _whole(name, pieces)})


def check_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Check all that a safetensors file says of its tensors, without making anything of their unpacked size.

    Returns:
        The shape of each tensor, unpacked.

    Raises:
        CompressionError: It is no safetensors file, of a newer version of the format, or contradicts itself.
    """
    with _opened(path) as file, ThreadPoolExecutor(THREADS) as pool:
        names = set(file.keys())
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in names if not _are_positions(n)}
        packed = [name.removesuffix(POSITIONS) for name in names if _are_positions(name)]
        for name in packed:
            if name not in shapes:
                raise CompressionError(f"{path}: {name}{POSITIONS} has no values: there is no tensor {name!r}.")
        if packed and METADATA not in (file.metadata() or {}):
            raise CompressionError(f"{path}: {packed[0]!r} is packed, but the metadata have no version of the format.")

        def shape_of(name: str) -> tuple[int, ...]:
            try:
                return check(Packed(file.get_tensor(name), file.get_tensor(name + POSITIONS)))
            except CompressionError as error:
                raise CompressionError(f"{path}: tensor {name!r} is damaged: {error}.") from None

        return shapes | dict(zip(packed, pool.map(shape_of, packed), strict=True))


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file as it stands there."""
    with _opened(path) as file:
        names: list[str] = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def is_packed(path: Path) -> bool:
    """Whether a safetensors file says that it may hold packed tensors."""
    with _opened(path) as file:
        return METADATA in (file.metadata() or {})


def _packed(name: str, pieces: Pieces) -> Pieces:
    tensor = pieces[name]
    may_be = name.endswith(PACKED) and tensor.dim() > 1 and f"{name}{POSITIONS}" not in pieces
    packed = pack(tensor) if may_be else None
    return pieces if packed is None else {name + POSITIONS: packed.positions, name: packed.values}


def _whole(name: str, pieces: Pieces) -> Tensor:
    return unpack(Packed(pieces[name], pieces[name + POSITIONS])) if name + POSITIONS in pieces else pieces[name]


def _rewrite(source: Path, target: Path, change: Callable[[str, Pieces], Pieces]) -> bool:
    """Write what `change` makes of each tensor of `source`."""
    with _opened(source) as file:
        present = set(file.keys())
        slices = {name: file.get_slice(name) for name in present if not _are_positions(name)}
        dense = [(name, one.get_dtype(), one.get_shape()) for name, one in slices.items()]
        metadata = {k: v for k, v in (file.metadata() or {}).items() if k != METADATA}

        def make(name: str) -> Pieces:
            return change(name, {n: file.get_tensor(n) for n in (name, name + POSITIONS) if n in present})

        return _write(target, metadata, dense, make)


def _write(target: Path, metadata: dict[str, str], dense: Dense, make: Callable[[str], Pieces]) -> bool:
    """Write what `make` gives for each name; a few tensors at a time are in memory."""
    # The widest elements first, as safetensors itself does, so that each tensor is aligned for its dtype.
    dense = sorted(dense, key=lambda one: (-_bits_of(one[1]), one[0]))
    if dense and _bits_of(dense[-1][1]) < 8:
        raise CompressionError(
            f"{dense[-1][0]} has several numbers in a byte ({dense[-1][1]}), which cannot be packed."
        )
    with open(target, "wb") as out, ThreadPoolExecutor(THREADS) as pool:
        writer = _Writer(out, metadata, dense)
        for (name, dtype, _), pieces in zip(dense, _a_few_ahead(pool, make, [name for name, *_ in dense]), strict=True):
            for key, tensor in pieces.items():
                writer.add(key, dtype if key == name else "U8", tensor)
        return writer.finish()


def _a_few_ahead(pool: ThreadPoolExecutor, make: Callable[[str], Pieces], names: Iterable[str]) -> Iterator[Pieces]:
    waiting: deque[Future[Pieces]] = deque()
    for name in names:
        waiting.append(pool.submit(make, name))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Writer:
    """Writes tensors as they come, and last the header that stands before them."""

    def __init__(self, out: BinaryIO, metadata: dict[str, str], dense: Dense) -> None:
        """No header is longer than that of `dense`, the tensors before packing."""
        self._out, self._metadata = out, metadata
        self._entries: dict[str, dict[str, Any]] = {}
        most = 2 * sum(_bits_of(dtype) // 8 * math.prod(shape) + 64 + 8 * len(shape) for _, dtype, shape in dense)
        longest: dict[str, Any] = {"__metadata__": metadata | {METADATA: str(VERSION)}}
        for name, dtype, shape in dense:
            longest[name] = {"dtype": dtype, "shape": [*shape, most], "data_offsets": [most, most]}
            longest[name + POSITIONS] = {"dtype": "U8", "shape": [most], "data_offsets": [most, most]}
        self._start = 8 + -(-len(json.dumps(longest).encode()) // 8) * 8
        out.seek(self._start)

    def add(self, name: str, dtype: str, tensor: Tensor) -> None:
        begin = self._out.tell() - self._start
        if tensor.numel():
            self._out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        end = self._out.tell() - self._start
        self._entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}

    def finish(self) -> bool:
        """Write the header; return whether any tensor is packed."""
        packed = any(map(_are_positions, self._entries))
        version = {METADATA: str(VERSION)} if packed else {}
        header = json.dumps({"__metadata__": self._metadata | version} | self._entries).encode()
        room = self._start - 8
        self._out.seek(0)
        self._out.write(struct.pack("<Q", room) + header.ljust(room))
        return packed


def _are_positions(name: str) -> bool:
    return name.endswith(PACKED + POSITIONS)


def _name_of(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype."""
    file = save({"tensor": torch.empty(0, dtype=dtype)})
    header = json.loads(file[8:])
    return str(header["tensor"]["dtype"])


def _bits_of(dtype: str) -> int:
    """Bits of an element, by safetensors' name of the dtype: F32, BF16, F8_E4M3, BOOL."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
    """Refuse a header with a name twice, of which readers would choose one silently."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CompressionError(f"{path} cannot be read: {twice!r} stands twice in its header.")
        return found

    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=unique)
