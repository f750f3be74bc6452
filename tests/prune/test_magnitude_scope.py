"""Which weights are in the scope of global pruning, and what it never changes."""

import copy
from collections import OrderedDict

import pytest
import torch
from architectures import ARCHITECTURES, build, same_bits, state_of
from global_pruning import stack
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hfcompress import prune_global_l1, sparsity_report
from hfcompress.models.weights import select_matrices


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_but_matrices_of_the_body_changes(architecture):
    model = build(architecture)
    before = state_of(model)
    modules = [name for name, _ in model.named_modules()]
    prune_global_l1(model, 0.5)
    after = state_of(model)
    assert list(after) == list(before)
    assert [name for name, _ in model.named_modules()] == modules
    body = {f"{matrix.name}.weight" for matrix in select_matrices(model).matrices}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == body
    other = {name for name, module in model.named_modules() if not isinstance(module, nn.Linear | Conv1D)}
    assert not any(key.rpartition(".")[0] in other for key in changed)
    assert not any(key.startswith(("classifier", "score")) or key.endswith("bias") for key in changed)


def test_parameters_stay_the_same_objects_with_their_settings():
    model = build("bert")
    model.bert.pooler.dense.weight.requires_grad_(False)
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    prune_global_l1(model, 0.3)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None


def test_include_prunes_the_named_matrices_only():
    model = build("bert")
    before = state_of(model)
    report = prune_global_l1(model, 0.5, include=["classifier", "bert.encoder.layer.0"])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{layer.name}.weight" for layer in report.layers}
    assert "classifier.weight" in changed
    assert all(key.startswith(("classifier", "bert.encoder.layer.0.")) for key in changed)


def test_exclude_leaves_the_named_matrices_alone():
    model = build("bert")
    before = state_of(model)
    report = prune_global_l1(model, 0.5, exclude="*attention*")
    assert report.zeros == round(0.5 * report.weights)
    for key, value in model.state_dict().items():
        assert "attention" not in key or torch.equal(value, before[key])


def test_a_tied_matrix_counts_once():
    model = stack(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    model[1].weight = model[0].weight
    assert prune_global_l1(model, 0.5).zeros == 1
    assert model[1].weight.tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "tie", [lambda weight: weight.data, lambda weight: weight.data.t()], ids=["same", "transposed"]
)
def test_parameters_on_one_storage_count_once(tie):
    first = nn.Linear(3, 3, bias=False)
    second = nn.Linear(3, 3, bias=False)
    second.weight = nn.Parameter(tie(first.weight))
    report = prune_global_l1(nn.Sequential(first, second), 0.34)
    assert (report.weights, report.zeros, report.whole_model.weights) == (9, 3, 9)
    assert int((first.weight == 0).sum()) == 3


def test_the_head_in_a_data_parallel_wrapper_is_not_in_scope():
    model = build("bert")
    wrapped = nn.DataParallel(model)
    head = model.classifier.weight.clone()
    assert prune_global_l1(wrapped, 0.5).weights == sparsity_report(model).weights
    assert torch.equal(model.classifier.weight, head)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_model_can_be_copied(architecture):
    model = build(architecture)
    prune_global_l1(model, 0.2)
    assert same_bits(copy.deepcopy(model).state_dict(), model.state_dict())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_model_can_be_saved_and_loaded(architecture, tmp_path):
    model = build(architecture)
    report = prune_global_l1(model, 0.2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same_bits(OrderedDict(sorted(loaded.state_dict().items())), OrderedDict(sorted(model.state_dict().items())))
    assert sparsity_report(loaded).zeros == report.zeros
