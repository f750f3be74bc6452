"""Heads and neurons found by records: against torch-pruning's graph, and by what is known of BART and T5."""

import pytest
import torch
from architectures import SHRINKABLE, TRACED, WITH_NEURONS, build
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress import CompressionError, prune_structured
from hfcompress.models import traced_neurons
from hfcompress.models.heads_and_neurons import find_groups, has_layout
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.traced_neurons import find_or_trace, trace_neurons


def ends(groups):
    """The modules that make and that consume each group's neurons."""
    return {
        (frozenset(part.module for part in group.slices if part.outputs), group.consumers[0].module) for group in groups
    }


# torch-pruning sees no Conv1D, no layer that is run twice, and no gate in one matrix with what it gates.
@pytest.mark.parametrize(
    "architecture", [name for name in WITH_NEURONS if name not in ("gpt2", "albert", "modernbert", "phi3")]
)
def test_records_name_the_neurons_that_a_trace_finds(architecture):
    model = build(architecture)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    assert has_layout(model, "neurons") is (architecture not in TRACED)
    found, traced = find_or_trace(model, "neurons"), trace_neurons(model)
    assert ends(found) == ends(traced)
    assert [group.count for group in found] == [group.count for group in traced]


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_every_head_is_found(architecture):
    model = build(architecture, layers=3)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert {group.count for group in find_groups(model, "heads")} == {heads}


def test_bart_has_three_kinds_of_attention():
    names = [group.name for group in find_groups(build("bart"), "heads")]
    decoder = [f"model.decoder.layers.{layer}.{kind}" for layer in (0, 1) for kind in ("self_attn", "encoder_attn")]
    assert names == ["model.encoder.layers.0", "model.encoder.layers.1", *decoder]


def test_the_layers_of_a_t5_stack_keep_the_same_heads():
    model = build("t5", layers=3)
    report = prune_structured(model, heads=0.5)
    stacks = {"encoder": 1, "decoder": 2}  # its own attention, and that to the encoder
    assert len(report.blocks) == 3
    for name, kinds in stacks.items():
        layers = model.get_submodule(f"transformer.{name}.block")
        for kind in range(kinds):
            attention = [next(layer.layer[kind].children()) for layer in layers]
            assert len({one.n_heads for one in attention}) == 1
            assert {one.q.out_features for one in attention} == {attention[0].n_heads * 8}


def test_a_trace_leaves_the_model_as_it_was():
    model = build("gptj")
    model.transformer.h[0].requires_grad_(False)
    before = [(parameter.requires_grad, parameter.clone()) for parameter in model.parameters()]
    trace_neurons(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for (trained, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad is trained
        assert torch.equal(parameter, value)


def test_a_trace_that_fails_leaves_no_hooks():
    model = build("gptj")
    own = model.transformer.h[0].mlp.fc_in.register_forward_hook(lambda *_: None)
    model.score.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(CompressionError, match="ZeroDivisionError"):
        trace_neurons(model)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    own.remove()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_trace_keeps_the_hooks_that_a_first_pass_installs():
    model = build("gpt-neox", output_hidden_states=True)
    trace_neurons(model)
    assert len(model.eval()(**dummy_inputs(model, 5)).hidden_states) == 3


def test_a_trace_ends_when_its_time_is_over():
    with pytest.raises(CompressionError, match=r"TimeoutError: no end after 0 seconds"):
        trace_neurons(build("gptj"), seconds=0)


def test_a_model_without_such_neurons_is_refused():
    model = build("gptj")
    for layer in model.transformer.h:
        layer.mlp.act = nn.Sequential(nn.LayerNorm(64), layer.mlp.act)  # parameters between the two
    with pytest.raises(CompressionError, match="a trace shows none"):
        find_or_trace(model, "neurons")


def test_heads_are_never_traced(monkeypatch):
    monkeypatch.setattr(traced_neurons, "trace_neurons", None)
    with pytest.raises(CompressionError, match=r"heads of GPTJ.* have no known layout"):
        find_or_trace(build("gptj"), "heads")
