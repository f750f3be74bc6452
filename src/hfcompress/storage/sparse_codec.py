"""Packs a tensor as its non-zero values and their encoded positions, byte by byte as docs/format.md specifies.

A position costs about the binary entropy of the density: a bitmask, or the gaps between non-zeros where these are few,
each in the Huffman codes of a zlib stream. Tensors are read in chunks that fit the processor's cache.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.errors import CompressionError

MOST_EXPANSION = 1024  # a tensor has at most so many times the bytes of the packed one
THREADS = min(4, os.cpu_count() or 1)
_BITMASK, _GAPS = 0, 1
_LEAST_SAVED = {1: 0.029, 2: 0.029, 4: 0.019, 8: 0.019}  # of the packed tensor, by the bytes of an element
_FAR = 255  # stands for 255 zeros that no non-zero follows yet
_CHUNK = 1 << 17  # elements; a multiple of 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BYTE_TO_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64)[:, 0]

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """A tensor without its zeros.

    Attributes:
        values: The elements whose bits are not all 0, in row-major order: 1-D, on the CPU, of the tensor's dtype.
        positions: The encoded shape, and positions of the values: 1-D, uint8, on the CPU, a multiple of 8 bytes.
    """

    values: Tensor
    positions: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return int(self.values.nbytes + self.positions.nbytes)


def pack(tensor: Tensor) -> Packed | None:
    """Leave out the zeros of a tensor, if that makes it smaller.

    `unpack` returns the same tensor, bit for bit: -0.0 is kept as a value.

    Args:
        tensor: On the CPU, of a dtype of 1, 2, 4 or 8 bytes.

    Returns:
        The packed tensor; None where it would not be smaller, or so small that `unpack` would refuse it.

    Example:
        >>> packed = pack(torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]] * 8))
        >>> packed.values.tolist(), packed.nbytes
        ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 80)
        >>> unpack(packed).shape
        torch.Size([32, 2])
    """
    if not 0 < tensor.dim() < 256 or not tensor.numel() or tensor.element_size() not in _INTEGERS:
        return None
    flat = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()]).numpy()
    starts = range(0, flat.size, _CHUNK)
    counts = [int(np.count_nonzero(flat[start : start + _CHUNK])) for start in starts]
    if (flat.size - sum(counts)) * tensor.element_size() <= flat.size // 16:  # a mask costs more than so few zeros
        return None
    values = np.empty(sum(counts), flat.dtype)
    few = 8 * values.size <= flat.size  # their gaps are fewer bytes than the bitmask
    masks, indices, end = [], [], 0
    for start, count in zip(starts, counts, strict=True):
        chunk = flat[start : start + _CHUNK]
        mask = chunk != 0
        found = np.flatnonzero(mask)
        chunk.take(found, out=values[end : end + count], mode="clip")
        masks.append(np.packbits(mask, bitorder="little"))
        if few:
            indices.append(found + start)
        end += count
    codings = [(_GAPS, _encode_gaps(np.concatenate(indices)))] if few else []
    for coding, plain in [*codings, (_BITMASK, np.concatenate(masks))]:
        positions = _encode_positions(coding, tensor.shape, plain, values)
        packed = Packed(torch.from_numpy(values).view(tensor.dtype), positions)
        if packed.nbytes < tensor.nbytes <= MOST_EXPANSION * packed.nbytes:
            return packed
    return None


def unpack(packed: Packed, *, size_is_checked: bool = False) -> Tensor:
    """Put the zeros back.

    Args:
        packed: Returned by `pack`, or read from a file; it is checked before memory of the unpacked size is taken.
        size_is_checked: Whether `unpacked_shape` has checked these positions, with values of the dtype in the file.

    Returns:
        The tensor, on the CPU, of the dtype of the values.

    Raises:
        CompressionError: Shape, positions and values contradict each other, or the tensor would have more than 1,024
            times the bytes of the packed one.

    Example:
        >>> tensor = torch.tensor([0.0, 0.0, 0.0, -0.0, 0.0, 0.0, 3.0, 0.0] * 20, dtype=torch.bfloat16)
        >>> torch.equal(unpack(pack(tensor)).view(torch.int16), tensor.view(torch.int16))
        True
    """
    # Values of one byte may have become eight bytes wide since the check.
    shape, coding, plain = _read(packed, 8 * MOST_EXPANSION if size_is_checked else MOST_EXPANSION)
    out = torch.zeros(shape, dtype=packed.values.dtype)
    integers = _INTEGERS[out.element_size()]
    to, values = out.view(-1).view(integers), packed.values.contiguous().view(integers)
    if coding == _GAPS:
        to.scatter_(0, torch.from_numpy(_decode_gaps(plain)), values)
        return out
    end = 0
    for start in range(0, len(plain), _CHUNK // 8):  # in one thread: Python runs one at a time
        mask = _BYTE_TO_BITS.take(plain[start : start + _CHUNK // 8]).view(np.bool_)
        places = torch.from_numpy(np.flatnonzero(mask))
        begin, end = end, end + len(places)
        to[8 * start : 8 * start + _CHUNK].scatter_(0, places, values[begin:end])
    return out


def unpacked_shape(packed: Packed) -> tuple[int, ...]:
    """Return the shape of the tensor that `unpack` makes, or raise what it raises, in little memory."""
    return _read(packed, MOST_EXPANSION)[0]


def _encode_positions(coding: int, shape: Sequence[int], plain: Bytes, values: NDArray[Any]) -> Tensor:
    density = values.size / math.prod(shape)
    entropy = -sum(p * math.log2(p) for p in (density, 1 - density) if p)
    # Few zeros or very many make Huffman codes worth their time; about as many as not, they save next to nothing.
    least = _LEAST_SAVED[values.itemsize] * (values.nbytes + len(plain))
    worth = coding == _GAPS or (1 - entropy) * len(plain) > least
    packer = zlib.compressobj(1 if worth else 0, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    stream = packer.compress(plain.data) + packer.flush()
    head = struct.pack(f"<BB6x{len(shape) + 1}Q", coding, len(shape), *shape, len(stream))
    return torch.from_numpy(np.frombuffer(bytearray(head + stream + bytes(-len(stream) % 8)), np.uint8))


def _read(packed: Packed, most_expansion: int) -> tuple[tuple[int, ...], int, Bytes]:
    """Check a packed tensor; return its shape, its coding and the decompressed bytes of the positions."""
    positions, values = packed.positions, packed.values
    blob = positions.numpy() if positions.dtype == torch.uint8 and positions.dim() == 1 else np.empty(0, np.uint8)
    if values.dim() != 1 or values.element_size() not in _INTEGERS:
        raise CompressionError(f"the values are not a list of numbers: {tuple(values.shape)}, {values.dtype}")
    if len(blob) < 24 or len(blob) % 8:
        raise CompressionError(f"the positions are not a multiple of 8 uint8 numbers: {tuple(positions.shape)}")
    coding, dims = blob[0], int(blob[1])
    start = 16 + 8 * dims
    if coding not in (_BITMASK, _GAPS) or not dims or blob[2:8].any() or len(blob) < start:
        raise CompressionError(f"the positions begin with {blob[:8].tolist()}, which is not in the format")
    *shape, length = struct.unpack_from(f"<{dims + 1}Q", blob.data, 8)
    size, padding = math.prod(shape), -length % 8
    if start + length + padding != len(blob) or blob[start + length :].any():
        raise CompressionError(f"the positions state {length} coded bytes but hold {len(blob) - start}")
    held = values.nbytes + len(blob)
    if not size or size * values.element_size() > most_expansion * held or values.numel() > size:
        raise CompressionError(f"{values.numel()} values in {held} bytes cannot be of shape {shape}")
    expected = (size + 7) // 8 if coding == _BITMASK else values.numel() + size // _FAR
    plain = _inflate(blob[start : start + length], expected)
    if coding == _BITMASK:
        if len(plain) != expected or (size % 8 and plain[-1] >> size % 8):
            raise CompressionError(f"the bitmask of {8 * len(plain)} bits does not fit shape {tuple(shape)}")
        found = int(np.bitwise_count(plain).sum(dtype=np.int64))
    else:
        found = len(plain) - int(np.count_nonzero(plain == _FAR))
        reach = int(plain.sum(dtype=np.int64)) + found
        if reach > size or (len(plain) and plain[-1] == _FAR):
            raise CompressionError(f"the gaps reach to element {reach} of {size}")
    if found != values.numel():
        raise CompressionError(f"the positions name {found} elements but there are {values.numel()} values")
    return tuple(shape), int(coding), plain


def _inflate(stream: Bytes, most: int) -> Bytes:
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(stream.data, most + 1)
    except zlib.error as error:
        raise CompressionError(f"the coded positions are damaged ({error})") from None
    if len(plain) > most or not unpacker.eof or unpacker.unused_data:
        raise CompressionError(f"the coded positions do not end after at most {most} bytes, as they should")
    return np.frombuffer(plain, np.uint8)


def _encode_gaps(indices: Indices) -> Bytes:
    """Return the number of zeros before each non-zero; each 255 stands for 255 zeros that no non-zero follows yet."""
    gaps = np.diff(indices, prepend=-1) - 1
    far = gaps // _FAR
    coded = np.full(len(gaps) + int(far.sum()), _FAR, np.uint8)
    coded[np.cumsum(far + 1) - 1] = gaps % _FAR
    return coded


def _decode_gaps(gaps: Bytes) -> Indices:
    """Return the indices of the non-zeros."""
    steps = gaps.astype(np.int64)
    steps += gaps != _FAR
    indices: Indices = steps.cumsum()[gaps != _FAR] - 1
    return indices
