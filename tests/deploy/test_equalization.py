"""Channels of an ONNX model equalized for int8: the same logits, over the architectures; which channels are found."""

import copy
import os

import numpy as np
import onnx
import pytest
import torch
from architectures import WITH_NEURONS, build
from exports import TOKENIZER, inputs, needs_torch_export, shrunken

from hfcompress.deploy.equalization import equalize, largest_inputs
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph
from hfcompress.deploy.runtime import open_session
from hfcompress.models.heads_and_neurons import find_linear_paths

pytestmark = needs_torch_export
ALL = os.environ.get("HYPOTHESIS_PROFILE") == "long"  # an export takes seconds
SAMPLE = ("bert", "gpt2", "llama", "modernbert", "t5")
NOT_EXPORTED = ("xlnet", "funnel")
FOUND = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "deberta-v2"), ("values", "residuals")),
    **dict.fromkeys(("xlm-roberta", "camembert", "mpnet"), ("values", "residuals")),
    "albert": ("values", "norms"),  # behind the embeddings; the norms of its layers are read by weights that are shared
    **dict.fromkeys(("gpt2", "gpt-neo", "opt"), ("values", "norms")),
    **dict.fromkeys(("llama", "qwen2", "modernbert"), ("values", "neurons", "norms")),
    "bart": ("values", "residuals"),
}


@torch.no_grad()
def exported(model):
    return build_graph(model, GraphInputs(model, TOKENIZER))


def run(graph, folder, data):
    onnx.save(graph, folder / "run.onnx")
    session = open_session(folder / "run.onnx")
    names = {one.name for one in session.get_inputs()}
    feeds = {name: value.numpy() for name, value in data.items() if name in names}
    if "token_type_ids" in names:
        feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    return session.run(["logits"], feeds)[0]


def equalized(model, folder, *, residuals=True):
    """The ONNX model of a classifier, the same equalized, and which channels were."""
    graph = exported(model)
    before = graph.SerializeToString()
    data = inputs(3, 20, seed=5)
    names = {one.name for one in graph.graph.input}
    batch = {name: data.get(name, torch.zeros_like(data["input_ids"])) for name in names}
    made, found = equalize(
        graph, find_linear_paths(model), largest_inputs(graph, [batch], folder), residuals=residuals
    )
    assert graph.SerializeToString() == before
    return graph, made, found


@pytest.mark.parametrize("architecture", [n for n in WITH_NEURONS if n not in NOT_EXPORTED] if ALL else SAMPLE)
@pytest.mark.parametrize("shape", ["whole", "shrunken"])
def test_the_logits_stay(architecture, shape, tmp_path):
    try:
        model = build(architecture).eval() if shape == "whole" else shrunken(architecture)
    except Exception:
        pytest.skip('x')
    graph, made, found = equalized(model, tmp_path)
    print(architecture, found, len(graph.SerializeToString()), len(made.SerializeToString()))
    for size in ((1, 5), (4, 33)):
        data = inputs(*size, seed=1)
        print(abs(run(made, tmp_path, data) - run(graph, tmp_path, data)).max())
        np.testing.assert_allclose(run(made, tmp_path, data), run(graph, tmp_path, data), rtol=1e-5, atol=1e-5)
    if architecture in FOUND: assert found == FOUND[architecture]
