"""Shapes of shrunken models in config.json: plain settings, plans, and plans that are refused."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from architectures import TRACED, build, same_bits
from shrinking import logits
from transformers import AutoModelForSequenceClassification

import hfcompress as hfc
from hfcompress import CompressionError, prune_structured


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"heads": 0.5, "neurons": 0.5, "scope": "layer"}),
        ("qwen2", {"heads": 0.5, "neurons": 0.5, "scope": "layer"}),
        ("bert", {"neurons": 0.5, "scope": "layer"}),
        ("gpt2", {"neurons": 0.5, "scope": "layer", "drop_layers": [1]}),
        ("distilbert", {"neurons": 0.5, "scope": "layer"}),
        ("modernbert", {"neurons": 0.5, "scope": "layer"}),
    ],
)
def test_shapes_of_a_plain_config_need_no_hfcompress(architecture, settings, tmp_path):
    model = build(architecture, layers=3)
    prune_structured(model, **settings)
    assert "quantization_config" not in model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert "hfcompress" not in (tmp_path / "config.json").read_text()
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 3}, "version 3.*reads version 1 and 2"),
        ({"heads": [1, 2]}, "does not fit"),
        ({"heads": [1, 2, 99]}, "does not fit"),
        ({"heads": [1, 2, 0]}, "does not fit"),
        ({"heads": "many"}, "does not fit"),
        ({"neurons": [8, 8, True]}, "does not fit"),
    ],
)
def test_a_damaged_or_newer_plan_is_refused(damage, message, tmp_path):
    model = build("bert", layers=3)
    prune_structured(model, heads=0.5, neurons=0.4)
    model.save_pretrained(tmp_path)
    file = Path(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= damage
    file.write_text(json.dumps(config))
    with pytest.raises(CompressionError, match=message):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", TRACED)
def test_a_plan_names_the_modules_of_traced_neurons(architecture, tmp_path):
    model = build(architecture)
    prune_structured(model, neurons=0.41)  # not the same number in both layers
    plan = model.config.quantization_config
    assert plan["version"] == 2
    for entry in plan["neurons"]:
        assert model.get_submodule(entry["down"]).in_features == entry["width"]
        assert {model.get_submodule(name).out_features for name in entry["up"]} == {entry["width"]}
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same_bits(again.state_dict(), model.state_dict())


def test_traced_neurons_can_be_removed_again_and_layers_too(tmp_path):
    model = build("gptj", layers=3)
    prune_structured(model, neurons=0.25)
    prune_structured(model, neurons=0.5, drop_layers=[1])
    student = hfc.student_from_teacher(model, 1)
    for index, one in enumerate((model, student)):
        hfc.save_compressed(one, tmp_path / str(index))
        again = hfc.load_compressed(tmp_path / str(index))
        assert same_bits(again.state_dict(), one.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 4000},
        {"width": True},
        {"width": "many"},
        {"up": ["transformer.h.0.mlp.nowhere"]},
        {"up": ["transformer.wte"]},
        {"up": []},
        {"up": "transformer.h.0.mlp.fc_in"},
        {"down": "transformer.h.0.ln_1"},
        {"down": ""},
        {"down": None},
    ],
    ids=str,
)
def test_a_plan_of_other_modules_or_widths_is_refused(change, tmp_path):
    model = build("gptj")
    prune_structured(model, neurons=0.41)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["neurons"][0] |= change
    file.write_text(json.dumps(config))
    for load in (hfc.load_compressed, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(CompressionError, match=r"plan of config\.json"):
            load(tmp_path)


COPIES = {
    "itself": lambda config: config,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "from_dict": lambda config: type(config).from_dict(config.to_dict()),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_plan_says_who_can_rebuild_the_shapes(way, loaded, tmp_path):
    model = build("bert", layers=3)
    prune_structured(model, heads=0.5, neurons=0.4)
    if loaded:
        model.save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    plan = COPIES[way](model.config).quantization_config
    assert isinstance(plan, dict)
    assert plan.quant_method == plan["quant_method"] == "hfcompress"
    assert type(plan.to_dict()) is dict
    assert plan.to_dict() == plan
