"""What is selected for pruning, in which order, and what is named as out of reach."""

import pytest
import torch
from architectures import ARCHITECTURES, build
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from hfcompress import CompressionError
from hfcompress.models.classifier import unwrap
from hfcompress.models.weights import select_matrices


def names(model, **patterns):
    return [matrix.name for matrix in select_matrices(model, **patterns).matrices]


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_default_is_every_linear_of_the_body_in_module_order(architecture, num_labels):
    model = build(architecture, num_labels)
    prefix = model.base_model_prefix + "."
    expected = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix)
    ]
    assert names(model) == expected
    assert len(expected) >= 6
    assert select_matrices(model).not_covered == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_selected_weights_are_the_parameters_themselves(architecture):
    model = build(architecture)
    parameters = dict(model.named_parameters())
    for matrix in select_matrices(model).matrices:
        assert matrix.weight is parameters[f"{matrix.name}.weight"]


def test_the_pooler_is_body_and_the_classifier_is_not():
    assert "bert.pooler.dense" in names(build("bert"))
    assert "classifier" not in names(build("bert"))


def test_a_bare_module_is_its_own_body():
    assert names(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))) == ["0", "2"]
    assert names(nn.Linear(2, 3)) == [""]


def test_include_chooses_among_all_matrices_the_head_included():
    model = build("bert")
    assert names(model, include="classifier") == ["classifier"]
    assert names(model, include=["bert.pooler.dense", "classifier"]) == ["bert.pooler.dense", "classifier"]


def test_a_pattern_of_a_module_means_everything_inside_it():
    model = build("bert")
    inside = [name for name in names(model) if name.startswith("bert.encoder.layer.1.")]
    assert names(model, include="bert.encoder.layer.1") == inside
    assert len(inside) == 6


def test_the_order_of_patterns_does_not_order_the_matrices():
    model = build("bert")
    patterns = ["bert.encoder.layer.1", "bert.encoder.layer.0"]
    assert names(model, include=patterns) == names(model, include=patterns[::-1])


def test_exclude_leaves_out_what_matches():
    model = build("bert")
    assert names(model, exclude="bert.pooler") == [name for name in names(model) if "pooler" not in name]
    assert names(model, include="*attention*", exclude=["*key"]) == [
        name for name in names(model) if "attention" in name and not name.endswith("key")
    ]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("patterns", ["nowhere*", ["bert.pooler", "nowhere*"]])
def test_a_pattern_that_matches_nothing_is_refused_by_name(argument, patterns):
    with pytest.raises(CompressionError, match=rf"{argument} pattern 'nowhere\*'"):
        select_matrices(build("bert"), **{argument: patterns})


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("patterns", [[], [3], ""])
def test_patterns_that_are_no_patterns_are_refused(argument, patterns):
    with pytest.raises(CompressionError, match=argument):
        select_matrices(build("bert"), **{argument: patterns})


def test_a_shared_module_counts_once():
    shared = nn.Linear(3, 3)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0"]


def test_a_tied_parameter_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names(model) == ["0"]


def test_a_matrix_tied_through_its_memory_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    assert names(model) == ["0"]


def test_two_empty_matrices_are_two():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    for layer in model:
        layer.weight = nn.Parameter(torch.empty(0, 3))
    assert names(model) == ["0", "1"]


def test_a_matrix_tied_to_an_embedding_is_left_alone():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    assert names(model) == ["2"]


class Adapted(nn.Module):
    """A linear layer with LoRA-like adapters, in the shape that PEFT gives it."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4)})


def test_adapters_are_never_selected_not_even_by_include():
    model = nn.Sequential(Adapted())
    assert names(model) == ["0.base_layer"]
    assert names(model, include="0") == ["0.base_layer"]
    with pytest.raises(CompressionError, match="lora_A"):
        select_matrices(model, include="*lora_A*")


def test_matrices_in_other_modules_are_named_as_not_covered():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Conv2d(1, 1, 3))
    assert select_matrices(model).not_covered == ("1.in_proj_weight", "2.weight")


def test_a_weight_computed_by_torch_prune_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prune.l1_unstructured(model[1], "weight", 3)
    with pytest.raises(CompressionError, match=r"'1'.*torch\.nn\.utils\.prune\.remove"):
        select_matrices(model)
    prune.remove(model[1], "weight")
    assert names(model) == ["0", "1"]


def test_a_weight_computed_by_a_parametrization_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(CompressionError, match="'0' is computed from other parameters"):
        select_matrices(model)


# torch 2.13 imports its own deprecated torch.jit when it compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_unwrap_looks_through_torch_compile():
    model = build("bert")
    compiled = torch.compile(model)
    assert unwrap(compiled) is model
    assert [m.weight for m in select_matrices(compiled).matrices] == [m.weight for m in select_matrices(model).matrices]


def test_unwrap_looks_through_an_adapter_model():
    class Peft(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def get_base_model(self):
            return self.inner

    model = build("bert")
    assert unwrap(Peft(model)) is model
    assert names(Peft(model)) == [f"inner.{name}" for name in names(model)]
