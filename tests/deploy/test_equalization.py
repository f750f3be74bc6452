"""Channels of an ONNX model equalized for int8: the same logits, over the architectures; which channels are found."""

import numpy as np
import onnx
import pytest
import torch
from architectures import LONG, SHRINKABLE, WITH_NEURONS, build
from exports import TOKENIZER, inputs, logits, needs_torch_export, shrunken
from torch import nn

from hfcompress.deploy.equalization import equalize, largest_inputs
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph
from hfcompress.deploy.runtime import open_session
from hfcompress.models.heads_and_neurons import LinearPath, Slice, find_linear_paths

pytestmark = needs_torch_export
SAMPLE = ("albert", "qwen2", "modernbert")  # all with HYPOTHESIS_PROFILE=long: an export takes seconds
NOT_EXPORTED = ("xlnet", "funnel")
POST_NORM = ("bert", "roberta", "distilbert", "deberta-v2", "xlm-roberta", "camembert", "mpnet")
PRE_NORM = ("gpt2", "gpt-neo", "opt", "t5")
FOUND = {
    **dict.fromkeys(POST_NORM, ("values", "residuals")),
    **dict.fromkeys(PRE_NORM, ("values", "norms")),
    **dict.fromkeys(("electra", "bart"), ("values", "norms", "residuals")),
    **dict.fromkeys(("llama", "qwen2", "gemma"), ("values", "neurons", "norms")),
    **dict.fromkeys(("phi", "bloom", "gptj", "falcon", "gpt-neox", "persimmon", "ctrl"), ("norms",)),
    "phi3": ("neurons", "norms"),
    "convbert": ("norms", "residuals"),
    "xlm": ("residuals",),
    "modernbert": ("values", "neurons", "norms", "residuals"),
    "albert": ("values", "norms"),  # behind the embeddings; the norms of its layers are read by shared weights
}


@torch.no_grad()
def export(model):
    return build_graph(model, GraphInputs(model, TOKENIZER))


def complete(graph, data):
    zeros = torch.zeros_like(data["input_ids"])
    return {one.name: data.get(one.name, zeros) for one in graph.graph.input}


def run(graph, folder, data):
    onnx.save(graph, folder / "run.onnx")
    feeds = {name: value.numpy() for name, value in complete(graph, data).items()}
    return open_session(folder / "run.onnx").run(["logits"], feeds)[0]


def count_weights(graph):
    return sum(np.prod(one.dims) for one in graph.graph.initializer)


def measured(graph, folder):
    return largest_inputs(graph, [complete(graph, inputs(3, 20, seed=5)), complete(graph, inputs(1, 4))], folder)


def same(one, other, folder):
    for size in ((1, 5), (4, 33)):
        expected, found = (run(graph, folder, inputs(*size, seed=1)) for graph in (one, other))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [n for n in WITH_NEURONS if n not in NOT_EXPORTED] if LONG else SAMPLE)
@pytest.mark.parametrize("whole", [True, False] if LONG else [True])
def test_the_logits_stay(architecture, whole, tmp_path):
    heads = {"heads": 0.0} if architecture not in SHRINKABLE else {}
    model = build(architecture).eval() if whole else shrunken(architecture, **heads)
    graph, data = export(model), inputs(3, 20, seed=2)
    np.testing.assert_allclose(run(graph, tmp_path, data), logits(model, data).numpy(), rtol=1e-4, atol=1e-4)
    before = graph.SerializeToString()
    made, found = equalize(graph, find_linear_paths(model), measured(graph, tmp_path), residuals=True, folder=tmp_path)
    assert graph.SerializeToString() == before
    assert made.SerializeToString() != before
    assert found == FOUND[architecture]
    if architecture == "albert":  # weights that its layers share are still there once
        assert count_weights(made) <= count_weights(graph) + 200
    same(graph, made, tmp_path)


@pytest.fixture(scope="module")
def bert():
    model = build("bert").eval()
    return model, export(model)


def test_one_multiplication_undoes_the_factors_of_a_norm(bert, tmp_path):
    model, graph = bert
    largest = measured(graph, tmp_path)
    counts = []
    for residuals in (False, True):
        made, found = equalize(graph, find_linear_paths(model), largest, residuals=residuals, folder=tmp_path)
        same(graph, made, tmp_path)
        assert ("residuals" in found) == residuals
        counts.append(len(made.graph.node) - len(graph.graph.node))
    assert counts == [0, 2 * model.config.num_hidden_layers]  # the last norm is read by the pooler's choice alone


def spread(values):
    return max(values) / np.median(values)


def test_a_planted_outlier_becomes_like_the_others(tmp_path):
    model = build("gpt2").eval()
    block = model.transformer.h[0]
    with torch.no_grad():
        block.ln_1.weight[3] *= 1000
        block.ln_1.bias[3] *= 1000
        block.attn.c_attn.weight[3] /= 1000
    graph = export(model)
    (name,) = (n.input[0] for n in graph.graph.node if n.name.startswith("transformer.h.0.attn.c_attn#"))
    largest = measured(graph, tmp_path)
    assert spread(largest[name]) > 100
    made, _ = equalize(graph, find_linear_paths(model), largest, residuals=False, folder=tmp_path)
    assert spread(measured(made, tmp_path)[name]) < 20
    same(graph, made, tmp_path)


def test_a_path_that_is_not_linear_changes_the_logits(bert, tmp_path):
    """What the gate finds before it uses a model."""
    graph, layer = bert[1], "bert.encoder.layer.0"
    path = LinearPath("neurons", 64, Slice(f"{layer}.intermediate.dense", True), Slice(f"{layer}.output.dense", False))
    made, _ = equalize(graph, [path], measured(graph, tmp_path), residuals=False, folder=tmp_path)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        same(graph, made, tmp_path)


# Where the paths are


def names(model):
    return {(path.producer.module, path.consumer.module) for path in find_linear_paths(model)}


def test_no_path_leads_through_gelu():
    model = build("bert")
    layers = [f"bert.encoder.layer.{index}.attention" for index in range(2)]
    assert names(model) == {(f"{layer}.self.value", f"{layer}.output.dense") for layer in layers}


def test_the_gated_neurons_are_those_without_an_activation():
    paths = [path for path in find_linear_paths(build("modernbert", layers=1)) if path.kind == "neurons"]
    assert {path.producer for path in paths} == {Slice(f"model.layers.{i}.mlp.Wi", True, 1, 2) for i in range(3)}
    assert ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj") in names(build("llama"))


def test_grouped_values_are_read_several_times():
    path = find_linear_paths(build("llama"))[0]
    assert (path.count, path.producer.size, path.consumer.size) == (2, 8, 16)


def test_without_a_record_there_is_no_path():
    assert find_linear_paths(build("bloom")) == []
    assert find_linear_paths(nn.Linear(2, 2)) == []
