"""Global pruning against an independent NumPy reference: which weights are pruned, and how many."""

import warnings

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build, same_bits, state_of
from global_pruning import DTYPES, FRACTIONS, assert_pruned_like_the_reference, stack, weight_tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from hfcompress import prune_global_l1, sparsity_report
from hfcompress.models.weights import select_matrices

# Some of these amounts leave a matrix without a nonzero weight.
pytestmark = pytest.mark.filterwarnings("ignore:All weights of:UserWarning")


@given(st.lists(weight_tensors(), min_size=1, max_size=4), FRACTIONS)
def test_a_fraction_zeroes_the_weights_that_a_stable_sort_names(weights, amount):
    assert_pruned_like_the_reference(stack(*weights), amount)


@given(st.lists(weight_tensors(), min_size=1, max_size=4), st.data())
def test_a_count_zeroes_the_weights_that_a_stable_sort_names(weights, data):
    total = sum(weight.numel() for weight in weights)
    assert_pruned_like_the_reference(stack(*weights), data.draw(st.integers(0, total)))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_each_dtype_alone_follows_the_reference(dtype, data):
    weights = [data.draw(weight_tensors(dtype)) for _ in range(2)]
    assert_pruned_like_the_reference(stack(*weights), data.draw(FRACTIONS))


@given(st.lists(weight_tensors(), min_size=1, max_size=3), FRACTIONS)
def test_pruning_twice_changes_nothing(weights, amount):
    model = stack(*weights)
    first = prune_global_l1(model, amount)
    before = state_of(model)
    assert prune_global_l1(model, amount) == first
    assert same_bits(state_of(model), before)


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_pruned_like_the_reference(architecture, num_labels):
    assert_pruned_like_the_reference(build(architecture, num_labels), 0.2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_ties_the_result_is_that_of_torch(architecture):
    ours, theirs = build(architecture), build(architecture)
    prune_global_l1(ours, 0.2)
    modules = dict(theirs.named_modules())
    chosen = [(modules[matrix.name], "weight") for matrix in select_matrices(theirs).matrices]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=0.2)
    for module, name in chosen:
        prune.remove(module, name)
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_conv1d_is_pruned_as_it_is_stored():
    model = nn.Sequential(Conv1D(3, 2))
    assert_pruned_like_the_reference(model, 0.5)
    assert sparsity_report(model).layers[0].shape == (2, 3)


def test_ties_are_broken_by_matrix_and_then_row_by_row():
    model = stack(torch.ones(2, 2), torch.ones(2, 2))
    prune_global_l1(model, 5)
    assert model[0].weight.tolist() == [[0, 0], [0, 0]]
    assert model[1].weight.tolist() == [[0, 1], [1, 1]]


def test_ties_in_a_transposed_matrix_are_broken_row_by_row():
    model = stack(torch.ones(3, 2).t())
    prune_global_l1(model, 2)
    assert model[0].weight.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_neighbouring_floats_are_distinguished():
    one = torch.tensor(1.0, dtype=torch.float64)
    above = torch.nextafter(one, torch.tensor(2.0, dtype=torch.float64))
    model = stack(torch.stack([above, one, above, above]).reshape(2, 2))
    prune_global_l1(model, 1)
    assert model[0].weight.tolist() == [[float(above), 0], [float(above), float(above)]]


def test_dtypes_are_compared_by_value():
    model = stack(
        torch.tensor([[0.5, 3.0]], dtype=torch.bfloat16),
        torch.tensor([[1.0], [0.25]], dtype=torch.float16),
        torch.tensor([[0.75]], dtype=torch.float64),
    )
    prune_global_l1(model, 3)
    assert [layer.weight.flatten().tolist() for layer in model] == [[0, 3], [1, 0], [0]]


def test_a_tenth_and_then_a_fifth_is_a_fifth():
    model = build("bert")
    total = sparsity_report(model).weights
    assert prune_global_l1(model, 0.1).zeros == round(0.1 * total)
    assert prune_global_l1(model, 0.2).zeros == round(0.2 * total)
    assert prune_global_l1(model, 0.1).zeros == round(0.2 * total)


def test_weights_that_are_zero_already_count_first():
    model = stack(torch.tensor([[0.0, 1.0, -0.0, 2.0]]))
    assert prune_global_l1(model, 1).zeros == 2
    assert prune_global_l1(model, 3).zeros == 3
    assert model[0].weight.tolist() == [[0, 0, 0, 2]]


def test_an_amount_may_be_a_numpy_number():
    assert prune_global_l1(stack(torch.ones(2, 2)), np.float32(0.5)).zeros == 2
    assert prune_global_l1(stack(torch.ones(2, 2)), np.int64(3)).zeros == 3


def test_an_amount_of_one_is_one_weight():
    assert prune_global_l1(stack(torch.ones(2, 2)), 1).zeros == 1


def test_all_weights_can_be_pruned_by_number():
    assert prune_global_l1(stack(torch.ones(2, 2)), 4).zeros == 4


def test_the_report_holds_the_amount():
    model = build("bert")
    assert prune_global_l1(model, 0.2).amount == 0.2
    assert prune_global_l1(model, 2000).amount == 2000
    assert sparsity_report(model).amount is None


def test_a_matrix_without_a_nonzero_weight_is_named_in_a_warning():
    model = build("bert")
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-3)
    message = r"All weights of bert\.pooler\.dense are zero at amount=0\.5: .*exclude="
    with pytest.warns(UserWarning, match=message) as caught:
        prune_global_l1(model, 0.5)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_matrices_with_nonzero_weights_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_global_l1(build("bert"), 0.5)


def test_an_amount_of_zero_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_global_l1(stack(torch.zeros(2, 2), torch.ones(2, 2)), 0)
