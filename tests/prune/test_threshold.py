"""The threshold does not depend on how the weights are read, and finding it takes little memory."""

import copy

import pytest
import torch
from architectures import same_bits, state_of
from global_pruning import DTYPES, FRACTIONS, assert_pruned_like_the_reference, stack, weight_tensors
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import hfcompress.prune.scan
import hfcompress.prune.threshold
from hfcompress import prune_global_l1
from hfcompress.models.weights import select_matrices
from hfcompress.prune.scan import split_pieces
from hfcompress.prune.threshold import compute_masks

# Some of these amounts leave a matrix without a nonzero weight.
pytestmark = pytest.mark.filterwarnings("ignore:All weights of:UserWarning")


@given(st.lists(weight_tensors(), min_size=2, max_size=3), FRACTIONS, st.data())
def test_how_the_weights_are_read_does_not_matter(weights, amount, data):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_PIECE", "_CHUNK", "_RUN", "_LISTED", "_BIN_BITS"):
            patch.setattr(hfcompress.prune.scan, name, data.draw(st.integers(1, 5), label=name))
        patch.setattr(hfcompress.prune.threshold, "_SAMPLE", (1, data.draw(st.integers(1, 20), label="_SAMPLE")))
        assert_pruned_like_the_reference(stack(*weights), amount)


@given(
    st.lists(weight_tensors(), min_size=1, max_size=3), FRACTIONS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 8)
)
def test_a_misleading_sample_does_not_change_the_result(weights, amount, start, width, bin_bits):
    def wrong_range(keys, total, rank, infinity):
        low = int(start * (infinity - 1))
        return low, low + 1 + int(width * (infinity - 1 - low))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hfcompress.prune.threshold, "_estimate_range", wrong_range)
        patch.setattr(hfcompress.prune.scan, "_BIN_BITS", bin_bits)
        assert_pruned_like_the_reference(stack(*weights), amount)


@given(st.lists(weight_tensors(), min_size=1, max_size=3), st.data())
def test_computing_the_masks_changes_no_weight(weights, data):
    model = stack(*weights)
    before = state_of(model)
    pieces = split_pieces(select_matrices(model).matrices)
    count = data.draw(st.integers(0, sum(weight.numel() for weight in weights)))
    masks = compute_masks(pieces, count)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert sum(mask.below + mask.ties for mask in masks) == max(zeros, count)
    assert same_bits(state_of(model), before)


@pytest.mark.parametrize(
    ("dtype", "amount"),
    [*((torch.float32, amount) for amount in (0.0001, 0.5, 0.9999)), *((dtype, 0.2) for dtype in DTYPES)],
)
def test_more_weights_than_the_sample_follow_the_reference(dtype, amount):
    """Columns, rows and matrices differ in scale, and many weights are zero already."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for rows, columns, scale in ((1000, 600, 1.0), (400, 1024, 0.01), (77, 3, 5.0)):
        weight = torch.randn(rows, columns, generator=generator) * scale
        weight *= torch.logspace(-3, 0, columns) * torch.logspace(0, -2, rows)[:, None]
        weights.append(weight.masked_fill(torch.rand(weight.shape, generator=generator) < 0.03, 0).to(dtype))
    assert_pruned_like_the_reference(stack(*weights), amount)


def test_the_number_of_threads_does_not_matter():
    weights = [torch.randn(300, 500).round(decimals=2), torch.randn(500, 200).round(decimals=2)]
    models = [stack(*copy.deepcopy(weights)) for _ in range(2)]
    before = torch.get_num_threads()
    try:
        for model, threads in zip(models, (1, 2), strict=True):
            torch.set_num_threads(threads)
            assert prune_global_l1(model, 0.3).zeros == 75_000
    finally:
        torch.set_num_threads(before)
    assert same_bits(state_of(models[0]), state_of(models[1]))


class LargestNewTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation allocates."""

    def __init__(self, model):
        super().__init__()
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("shape", [(4096, 2048), (2048, 4096)])
def test_no_copy_of_the_weights_is_made(shape):
    model = stack(torch.randn(shape))
    with LargestNewTensor(model) as memory:
        report = prune_global_l1(model, 0.2)
    assert report.zeros == round(0.2 * 8_388_608)
    assert 0 < memory.largest <= model[0].weight.numel() * 4 / 8


def test_no_copy_of_the_weights_is_made_where_all_are_equal():
    model = stack(torch.ones(4096, 2048))
    with LargestNewTensor(model) as memory:
        prune_global_l1(model, 0.5)
    assert memory.largest <= model[0].weight.numel() * 4 / 4
