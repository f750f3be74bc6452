"""Random weights for global pruning, and a NumPy reference of its result, that the tests share."""

import math

import numpy as np
import pytest
import torch
from architectures import same_bits, state_of
from hypothesis import strategies as st
from torch import nn

from hfcompress import CompressionError, prune_global_l1
from hfcompress.models.weights import select_matrices

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

FRACTIONS = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.999]), st.floats(0, 1, exclude_max=True))


def stack(*weights):
    """Return a model of linear layers that hold these very tensors."""
    layers = []
    for weight in weights:
        layers.append(nn.Linear(1, 1, bias=False))
        layers[-1].weight = nn.Parameter(weight)
    return nn.Sequential(*layers)


def reference(weights, amount):
    """Return the weights after pruning, in float64: a stable sort by magnitude, order of the matrix and position."""
    arrays = [weight.detach().double().numpy().copy() for weight in weights]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    count = amount if isinstance(amount, int) else round(amount * flat.size)
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0.0
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends), arrays, strict=True)]


def assert_pruned_like_the_reference(model, amount):
    weights = [matrix.weight for matrix in select_matrices(model).matrices]
    expected = reference(weights, amount)
    total = sum(weight.numel() for weight in weights)
    zeros_before = sum(int((weight == 0).sum()) for weight in weights)
    report = prune_global_l1(model, amount)
    for weight, array in zip(weights, expected, strict=True):
        assert np.array_equal(weight.detach().double().numpy(), array)
    asked = amount if isinstance(amount, int) else round(amount * total)
    assert report.zeros == sum(int((weight == 0).sum()) for weight in weights) == max(zeros_before, asked)
    assert report.weights == total


def values(dtype):
    """Draw numbers of a dtype: many ties, zeros of both signs, denormals, the largest, and other finite ones."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal
    special = [0.0, -0.0, 0.5, -0.5, 0.25, smallest, -smallest, smallest / 4, -smallest / 8, limits.max, limits.min]
    return st.one_of(st.sampled_from(special), st.floats(-2, 2))


@st.composite
def weight_tensors(draw, dtype=None):
    dtype = dtype or draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(0, 3), (3, 0), (1, 1), (1, 7), (7, 1), (2, 5), (4, 4)]))
    size = math.prod(shape)
    kind = draw(st.sampled_from(["any", "constant", "sparse"]))
    numbers = draw(st.lists(values(dtype), min_size=size, max_size=size))
    if kind == "constant":
        numbers = numbers[:1] * size
    elif kind == "sparse":
        numbers = [0.0 if index % 2 else number for index, number in enumerate(numbers)]
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(shape)
    layout = draw(st.sampled_from(["plain", "transposed", "strided"]))
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "strided":
        return torch.zeros(shape[0], 2 * shape[1], dtype=dtype)[:, ::2].copy_(tensor)
    return tensor


def assert_refused(model, match, amount=0.5, **patterns):
    before = state_of(model)
    with pytest.raises(CompressionError, match=match):
        prune_global_l1(model, amount, **patterns)
    assert same_bits(model.state_dict(), before)
