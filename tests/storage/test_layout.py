"""What a save writes into config.json beside what transformers writes."""

import json

import pytest
from architectures import build, same_bits
from model_folders import file_bytes, plain
from transformers import BartConfig, BartForSequenceClassification

import hfcompress as hfc


def bart(**labels):
    """A tiny BART, whose config has three labels unless another number is asked for."""
    parts = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    sizes = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in parts.items()}
    return BartForSequenceClassification(
        BartConfig(vocab_size=50, d_model=16, max_position_embeddings=32, **sizes, **labels)
    ).eval()


@pytest.mark.parametrize("sparse", ["auto", False])
@pytest.mark.parametrize("load", [hfc.load_compressed, plain])
def test_two_labels_of_a_class_with_three_load_again(load, sparse, tmp_path):
    model = bart(num_labels=2)
    hfc.save_compressed(model, tmp_path, sparse=sparse)
    again = load(tmp_path)
    assert again.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert same_bits(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("sparse", ["auto", False])
@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {0: "bad", 1: "good"}}, {"num_labels": 1}])
def test_the_names_of_labels_come_back(labels, sparse, tmp_path):
    model = bart(**labels)
    hfc.save_compressed(model, tmp_path, sparse=sparse)
    again = plain(tmp_path).config
    assert (again.id2label, again.label2id) == (model.config.id2label, model.config.label2id)


def test_packed_weights_with_two_labels_load_again(tmp_path):
    model = bart(num_labels=2)
    hfc.prune_global_l1(model, 0.8)
    hfc.save_compressed(model, tmp_path)
    assert same_bits(hfc.load_compressed(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("make", [build, lambda: bart(num_labels=2)])
def test_a_plain_folder_differs_from_transformers_by_labels_only(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "expected")
    hfc.save_compressed(model, tmp_path / "saved", sparse=False)
    expected, saved = file_bytes(tmp_path / "expected"), file_bytes(tmp_path / "saved")
    assert saved.keys() == expected.keys() | {"README.md"}
    assert saved["model.safetensors"] == expected["model.safetensors"]
    config = json.loads(saved["config.json"])
    labels = {name: config.pop(name) for name in ("id2label", "label2id")}
    theirs = json.loads(expected["config.json"])
    assert labels == {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    assert {name: theirs.pop(name, value) for name, value in labels.items()} == labels  # before 5.3, BART's are written
    assert json.dumps(config, indent=2) == json.dumps(theirs, indent=2)
