"""Where a model's body ends: the classification head is never pruned, wherever it is."""

import copy

import pytest
import torch
from architectures import WITH_NEURONS, build
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PerceiverConfig,
    PerceiverForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

import hfcompress as hfc
from hfcompress.models.weights import select_matrices

CONFIG = BertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
)


def body_matrices(model):
    """The rule for transformers' own classes, written anew: all matrices of the base model."""
    body = {id(module) for module in model.base_model.modules()}
    kinds = (nn.Linear, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and id(module) in body]


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_the_matrices_of_the_body_are_in_scope(architecture):
    model = build(architecture)
    assert [matrix.name for matrix in select_matrices(model).matrices] == body_matrices(model)


def test_in_no_classifier_is_the_head_in_scope():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    checked = 0
    for config, kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.items():
        try:
            with torch.device("meta"):
                model = kind(config(vocab_size=99, pad_token_id=1, num_labels=3, **sizes))
        except Exception:  # it needs other settings, or a package that is not there
            continue
        heads = ["perceiver.decoder.decoder.final_layer"] * (config.model_type == "perceiver")
        found = [matrix.name for matrix in select_matrices(model).matrices]
        expected = [name for name in body_matrices(model) if name not in heads]
        assert set(found) <= set(expected), kind.__name__
        tied = len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
        assert tied or found == expected, kind.__name__
        checked += 1
    assert checked > 50


class CrossEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_config(copy.deepcopy(CONFIG))
        self.classifier = nn.Linear(32, 3)


class AroundClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIG))


class OtherPrefix(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, config.num_labels))
        self.encoder = AutoModel.from_config(copy.deepcopy(config))


class ClassifierAsBody(PreTrainedModel):
    config_class = BertConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))


@pytest.mark.parametrize("wrap", [CrossEncoder, AroundClassifier, lambda: OtherPrefix(copy.deepcopy(CONFIG))])
@pytest.mark.parametrize("parallel", [False, True])
def test_of_a_wrapper_the_model_inside_is_pruned(wrap, parallel):
    model = wrap()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = hfc.prune_global_l1(nn.DataParallel(model) if parallel else model, 0.5)
    assert report.zeros == round(0.5 * report.weights)
    assert len(report.layers) == 13
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert not any("classifier" in name for name in changed)


def test_a_classifier_as_the_body_keeps_its_head():
    layers = hfc.prune_global_l1(ClassifierAsBody(copy.deepcopy(CONFIG)), 0.5).layers
    assert [layer.name.removeprefix("model.") for layer in layers] == body_matrices(build("bert"))


class AllInOne(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, config.num_labels))


@pytest.mark.parametrize("num_labels", [1, 3, 32])
def test_a_class_that_is_its_own_body_keeps_its_head(num_labels):
    config = BertConfig(**CONFIG.to_dict() | {"id2label": {n: str(n) for n in range(num_labels)}, "label2id": None})
    assert [layer.name for layer in hfc.prune_global_l1(AllInOne(config), 0.5).layers] == [
        "layers.0",
        "layers.1",
        "layers.2",
    ]


def test_the_head_of_perceiver_is_left_out_and_can_be_named():
    config = PerceiverConfig(vocab_size=50, num_latents=4, d_latents=32, d_model=32, num_self_attends_per_block=1)
    config.num_self_attention_heads = config.num_cross_attention_heads = 4
    model, head = PerceiverForSequenceClassification(config), "perceiver.decoder.decoder.final_layer"
    assert head not in [layer.name for layer in hfc.prune_global_l1(model, 0.3).layers]
    assert [(layer.name, layer.kind) for layer in hfc.sparsity_report(model, include=head).layers] == [(head, "head")]


def test_the_head_of_a_plain_module_is_reported_as_such():
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "classifier": nn.Linear(4, 2)})
    assert [(layer.name, layer.kind) for layer in hfc.sparsity_report(model).layers] == [
        ("layer", "other"),
        ("classifier", "head"),
    ]
