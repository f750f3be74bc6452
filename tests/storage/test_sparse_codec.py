"""Packed tensors: the same bits again, small, and read by whoever follows docs/format.md."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfcompress import CompressionError
from hfcompress.storage.sparse_codec import MOST_EXPANSION, Packed, pack, unpack, unpacked_shape

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.float8_e4m3fn]
SIZES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor.contiguous().view(SIZES[tensor.element_size()])


def sparse(shape, sparsity, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator)
    dense[torch.rand(shape, generator=generator) < sparsity] = 0
    return (dense * 100).to(dtype) if not dtype.is_floating_point else dense.to(dtype)


def by_the_format(packed):
    """Unpack by docs/format.md alone, in plain Python."""
    blob = packed.positions.numpy().tobytes()
    coding, dims = blob[0], blob[1]
    shape = struct.unpack_from(f"<{dims}Q", blob, 8)
    (length,) = struct.unpack_from("<Q", blob, 8 + 8 * dims)
    stream = zlib.decompress(blob[16 + 8 * dims : 16 + 8 * dims + length])
    places = []
    if coding == 0:
        places = [8 * at + bit for at, byte in enumerate(stream) for bit in range(8) if byte >> bit & 1]
    else:
        here = -1
        for byte in stream:
            here += 255 if byte == 255 else byte + 1
            if byte != 255:
                places.append(here)
    flat = np.zeros(math.prod(shape), bits(packed.values).numpy().dtype)
    for place, value in zip(places, bits(packed.values).numpy(), strict=True):
        flat[place] = value
    return torch.from_numpy(flat.reshape(shape)).view(packed.values.dtype)


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    sparsity=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.9, 0.97, 0.999]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_packed_tensors_come_back_by_us_and_by_the_format(shape, sparsity, dtype, seed):
    tensor = sparse(shape, sparsity, dtype, seed)
    packed = pack(tensor)
    if packed is None:
        return
    assert packed.nbytes < tensor.nbytes
    assert unpacked_shape(packed) == tuple(shape)
    for again in (unpack(packed), by_the_format(packed)):
        assert again.dtype == tensor.dtype
        assert torch.equal(bits(again), bits(tensor))


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.5, 0.87, 0.88, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_several_chunks_come_back_bit_for_bit(dtype, sparsity):
    tensor = sparse((700, 401), sparsity, dtype)  # two chunks and an end within a byte
    packed = pack(tensor)
    assert torch.equal(bits(unpack(packed)), bits(tensor))
    assert tensor.nbytes <= MOST_EXPANSION * packed.nbytes


@pytest.mark.parametrize(
    ("dtype", "sparsity", "most"),
    [(torch.float32, s, 0.02) for s in (0.1, 0.2, 0.5, 0.7, 0.9)]
    + [(torch.float32, 0.99, 0.10)]
    + [(torch.bfloat16, s, 0.03) for s in (0.1, 0.2, 0.5, 0.7, 0.9)],
)
def test_the_size_is_values_plus_entropy_of_the_positions(dtype, sparsity, most):
    tensor = sparse((768, 768), sparsity, dtype)
    p = float((tensor == 0).double().mean())
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    reference = (1 - p) * tensor.nbytes + entropy * tensor.numel() / 8
    assert pack(tensor).nbytes <= (1 + most) * reference


def test_tensors_that_would_not_be_smaller_are_not_packed():
    for tensor in (
        torch.randn(300, 300),
        torch.tensor(0.0),
        torch.zeros(0, 3),
        torch.eye(2),
        torch.zeros(3, 2, dtype=torch.complex128),
    ):
        assert pack(tensor) is None
    almost_dense = torch.randn(1000, 100)
    almost_dense.view(-1)[:10] = 0
    assert pack(almost_dense) is None


def test_views_are_packed_by_their_own_elements():
    tensor = sparse((60, 80), 0.7)
    for view in (tensor.T, tensor[::2, 5:], torch.nn.Parameter(tensor)):
        assert torch.equal(unpack(pack(view)), view)


def packed_with(coding=None, dims=None, sizes=None, length=None, plain=None, stream=None, tail=b"", values=None):
    """A packed 4 x 16 tensor of ones on the diagonal of its bits, with something about it changed."""
    tensor = torch.zeros(4, 16)
    tensor.view(-1)[::9] = 1
    sizes = [4, 16] if sizes is None else sizes
    plain = np.packbits((tensor.view(-1) != 0).numpy(), bitorder="little").tobytes() if plain is None else plain
    stream = zlib.compress(plain) if stream is None else stream
    length = len(stream) if length is None else length
    head = struct.pack("<BB6x", coding or 0, len(sizes) if dims is None else dims)
    blob = head + struct.pack(f"<{len(sizes) + 1}Q", *sizes, length) + stream + bytes(-len(stream) % 8) + tail
    values = tensor.view(-1)[::9].clone() if values is None else values
    return Packed(values, torch.from_numpy(np.frombuffer(bytearray(blob), np.uint8)))


def test_the_tensor_that_is_damaged_below_is_sound():
    assert unpack(packed_with()).nonzero().shape == (8, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"coding": 7}, "begin with"),
        ({"dims": 0}, "begin with"),
        ({"dims": 200}, "begin with"),
        ({"sizes": [4, 17]}, "does not fit shape"),
        ({"sizes": [4, 2**40]}, "cannot be of shape"),
        ({"sizes": [2**63, 2**63]}, "cannot be of shape"),
        ({"sizes": [0, 16]}, "cannot be of shape"),
        ({"length": 3}, "coded bytes but hold"),
        ({"length": 2**63}, "coded bytes but hold"),
        ({"stream": b"not a zlib stream at all"}, "damaged"),
        ({"stream": zlib.compress(bytes(8))[:-4]}, "do not end"),
        ({"stream": zlib.compress(bytes(8)) + b"more"}, "do not end"),
        ({"stream": zlib.compress(bytes(10**7))}, "do not end"),  # a bomb: 10 MB in 10 kB
        ({"plain": bytes(8)}, "name 0 elements but there are 8"),
        ({"plain": bytes(7)}, "does not fit shape"),
        ({"plain": b"\xff" * 8}, "name 64 elements but there are 8"),
        ({"sizes": [3, 21], "plain": bytes(7) + b"\x80"}, "does not fit shape"),  # a bit beyond the end
        ({"coding": 1, "plain": b"\x09" * 8}, "gaps reach"),
        ({"coding": 1, "plain": b"\x01" * 7}, "name 7 elements but there are 8"),
        ({"coding": 1, "plain": b"\x01" * 8 + b"\xff"}, "do not end|gaps reach"),
        ({"values": torch.ones(7)}, "there are 7 values"),
        ({"values": torch.ones(2, 4)}, "the values are not a list"),
        ({"values": torch.ones(8, dtype=torch.complex128)}, "the values are not a list"),
        ({"values": torch.ones(100)}, "cannot be of shape"),
        ({"tail": b"12345678"}, "coded bytes but hold"),
        ({"tail": b"1"}, "multiple of 8"),
    ],
)
def test_a_packed_tensor_that_contradicts_itself_is_refused(damage, message):
    packed = packed_with(**damage)
    for read in (unpacked_shape, unpack):
        with pytest.raises(CompressionError, match=message):
            read(packed)


def test_positions_of_another_shape_or_dtype_are_refused():
    sound = packed_with()
    for positions in (sound.positions[:8], sound.positions.float(), sound.positions.view(-1, 8)):
        with pytest.raises(CompressionError, match="not a multiple of 8"):
            unpacked_shape(Packed(sound.values, positions))
