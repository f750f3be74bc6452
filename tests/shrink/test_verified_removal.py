"""Blocks that are known by name but work otherwise are refused."""

import pytest
import torch
import transformers
from architectures import build
from shrinking import LABELLED, refused
from transformers import AutoModelForSequenceClassification

from hfcompress import CompressionError, prune_structured


def build_kind(kind, **more):
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, **more, intermediate_size=64, max_position_embeddings=64, pad_token_id=0
    )
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("kind", ["Olmo2", "Longformer", "DiffLlama"])
def test_heads_made_in_more_places_are_refused(kind):
    if kind == "Olmo2" and not hasattr(transformers, "Olmo2ForSequenceClassification"):
        pytest.skip("transformers 5.3 has no classifier of Olmo2, 5.6 has one")
    more = {"attention_window": [4, 4]} if kind == "Longformer" else {}
    refused(build_kind(kind, **more), "no known layout", heads=0.5)


@pytest.mark.parametrize("budget", [{"flops": 0.9}, {"parameters": 0.8}, {"parameters": 0.8, "plain": True}], ids=str)
@pytest.mark.parametrize("kind", ["Olmo2", "DiffLlama"])
def test_a_budget_is_met_by_neurons_where_heads_have_another_layout(kind, budget):
    if not hasattr(transformers, f"{kind}ForSequenceClassification"):
        pytest.skip("transformers 5.3 has no classifier of Olmo2, 5.6 has one")
    model = build_kind(kind)
    report = prune_structured(model, **budget, dataset=LABELLED, drop_layers=0)
    assert report.removed("heads") == 0 < report.removed("neurons")
    name, share = next(iter(budget.items()))
    before, after = getattr(report, name)
    assert 0.7 * share * before < after <= share * before


@pytest.mark.parametrize("budget", [{"flops": 0.3}, {"latency": 0.01}], ids=str)
def test_a_budget_that_neurons_alone_do_not_meet_is_refused(budget):
    refused(build_kind("DiffLlama"), "cannot be met by removing heads and neurons", **budget)


def test_neurons_made_elsewhere_are_refused_by_name():
    model = build("bert")
    layer = model.bert.encoder.layer[0]
    layer.mixer, layer.intermediate.dense = layer.intermediate.dense, torch.nn.Identity()
    with pytest.raises(CompressionError, match="neurons"):
        prune_structured(model, neurons=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.2, 0.02])
def test_a_norm_over_the_neurons_is_found_out(dtype, spread):
    """A norm over the neurons, hidden in a known place: the smaller model would give other logits."""

    class Scaled(torch.nn.Module):
        def forward(self, states):
            return states / states.norm(dim=-1, keepdim=True)

    model = build("bert").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread / 0.2)
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = Scaled()
    refused(model, "does not give the logits of the full model", neurons=0.5)


def test_attention_that_changes_with_the_text_is_refused_with_a_remedy(tmp_path):
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BigBirdConfig(**sizes, intermediate_size=64, max_position_embeddings=512, pad_token_id=0)
    model = transformers.BigBirdForSequenceClassification(config)
    kinds = {type(module) for module in model.modules()}
    refused(model, r"from_pretrained\(\.\.\., attention_type='original_full'\)", heads=0.5)
    assert {type(module) for module in model.modules()} == kinds
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attention_type="original_full")
    assert prune_structured(loaded, heads=0.5).removed("heads") == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("importance", ["l1", "fisher", "obs"])
def test_a_model_whose_logits_are_no_numbers_is_refused(importance, value):
    model = build("bert", num_labels=3)
    with torch.no_grad():
        model.classifier.weight[0, 0] = value
    message = "NaN or infinite logits.*load the model again"
    refused(model, message, heads=0.5, importance=importance, dataset=None if importance == "l1" else LABELLED)
