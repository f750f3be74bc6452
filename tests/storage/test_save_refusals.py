"""What would not load again is refused before anything is written; what a class of the user's own builds is saved."""

import os

import pytest
import torch
from architectures import SHRINKABLE, build, same_bits
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from transformers import BertConfig, BertModel, BertPreTrainedModel

import hfcompress as hfc

FEED_FORWARD = "bert.encoder.layer.0.output.dense"


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


PARAMETRIZED = {
    "a pruned weight": (
        FEED_FORWARD,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        "prune.remove(module, 'weight')",
    ),
    "a pruned bias": (
        FEED_FORWARD,
        lambda m: prune.random_unstructured(m, "bias", 0.5),
        "prune.remove(module, 'bias')",
    ),
    "pruned rows": (FEED_FORWARD, lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0), "prune.remove"),
    "a pruned head": ("classifier", lambda m: prune.l1_unstructured(m, "weight", 0.5), "prune.remove"),
    "pruned embeddings": ("bert.embeddings.word_embeddings", lambda m: prune.identity(m, "weight"), "prune.remove"),
    "weight_norm": (FEED_FORWARD, parametrizations.weight_norm, "remove_parametrizations(module, 'weight')"),
    "spectral_norm": (FEED_FORWARD, parametrizations.spectral_norm, "remove_parametrizations"),
    "the old spectral_norm": (FEED_FORWARD, spectral_norm, "remove_spectral_norm(module, 'weight')"),
    "a parametrized norm": (
        "bert.embeddings.LayerNorm",
        lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
        "remove_parametrizations(module, 'weight')",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old spectral_norm, in newer torch
@pytest.mark.parametrize("case", PARAMETRIZED)
def test_weights_that_are_computed_are_refused_by_name(case, tmp_path):
    name, change, remedy = PARAMETRIZED[case]
    model = build()
    change(model.get_submodule(name))
    with pytest.raises(hfc.CompressionError) as refused:
        hfc.save_compressed(model, tmp_path / "model")
    assert name in str(refused.value)
    assert remedy in str(refused.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_masks_are_refused_in_every_architecture(architecture, tmp_path):
    model = build(architecture)
    name = hfc.sparsity_report(model).layers[-1].name
    prune.l1_unstructured(model.get_submodule(name), "weight", 0.5)
    with pytest.raises(hfc.CompressionError, match=r"torch\.nn\.utils\.prune\.remove"):
        hfc.save_compressed(model, tmp_path / "model")
    prune.remove(model.get_submodule(name), "weight")
    hfc.save_compressed(model, tmp_path / "model")
    again = hfc.load_compressed(tmp_path / "model").state_dict()
    assert same_bits(again, {name: model.state_dict()[name] for name in again})  # the masks changed the order


def _set(name, value):
    def change(model):
        holder, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(holder) if holder else model, attribute, value)

    return change


OTHER_SHAPES = {
    "another head": (_set("classifier", nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))), "classifier.0.weight"),
    "a larger head": (_set("classifier", nn.Linear(32, 5)), r"classifier.weight is of shape \(5, 32\)"),
    "no pooler": (_set("bert.pooler", None), "bert.pooler.dense.weight is missing"),
    "a part more": (lambda model: model.register_buffer("seen", torch.ones(3)), "seen is of shape"),
    "a config that nothing builds": (lambda model: setattr(model.config, "num_attention_heads", 5), "can be built"),
}


@pytest.mark.parametrize("case", OTHER_SHAPES)
def test_what_its_config_does_not_describe_is_refused(case, tmp_path):
    change, message = OTHER_SHAPES[case]
    model = build()
    change(model)
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.save_compressed(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


PROMPTS = {"tuning": PromptTuningConfig, "prefix": PrefixTuningConfig, "p-tuning": PromptEncoderConfig}


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_that_peft_learned_is_not_left_out(kind, task, wrap, tmp_path):
    model = get_peft_model(build(), PROMPTS[kind](task_type=task, num_virtual_tokens=4))
    with pytest.raises(hfc.CompressionError, match=r"has a prompt of PEFT.*save it with PEFT, model\.save_pretrained"):
        hfc.save_compressed(wrap(model), tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_what_reading_would_refuse_is_refused_before(tmp_path):
    model = build()
    model.config.task_specific_params = {"task": {"num_labels": 10**12}}
    with pytest.raises(hfc.CompressionError, match="labels do not go with") as refused:
        hfc.save_compressed(model, tmp_path / "model")
    assert str(tmp_path / "model" / "config.json") in str(refused.value)
    assert os.listdir(tmp_path) == []


class OwnHead(BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.mlp = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        self.post_init()


class OwnNorm(OwnHead):
    def __init__(self, config):
        super().__init__(config)
        parametrizations.weight_norm(self.mlp[0])


class MoreArguments(OwnHead):
    def __init__(self, config, width):
        super().__init__(config)
        self.more = nn.Linear(width, width)


@pytest.mark.parametrize(("kind", "own"), [(OwnHead, {}), (OwnNorm, {}), (MoreArguments, {"width": 4})])
def test_a_class_of_the_users_own_is_saved(kind, own, tmp_path):
    model = kind(
        BertConfig(
            **{name: getattr(build().config, name) for name in ("hidden_size", "vocab_size")}
            | {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
        ),
        **own,
    )
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path)
    assert same_bits(kind.from_pretrained(tmp_path, **own).state_dict(), model.state_dict())


def test_masks_in_a_class_that_cannot_be_built_are_refused(tmp_path):
    model = MoreArguments(build().config, 4)
    prune.l1_unstructured(model.more, "weight", 0.5)
    with pytest.raises(hfc.CompressionError, match=r"prune\.remove"):
        hfc.save_compressed(model, tmp_path / "model")


class OwnPositions(OwnHead):
    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Module()
        self.scale.weight = nn.Module()
        self.scale.weight.positions = nn.Parameter(torch.ones(4, 4))


def test_a_tensor_with_a_name_of_the_format_is_not_dropped(tmp_path):
    model, saved = OwnPositions(build().config), tmp_path / "saved"
    with pytest.raises(hfc.CompressionError, match=r"'scale\.weight\.positions'.*sparse=False"):
        hfc.save_compressed(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []
    hfc.save_compressed(model, saved, sparse=False)
    assert same_bits(OwnPositions.from_pretrained(saved).state_dict(), model.state_dict())
    with pytest.raises(hfc.CompressionError, match=r"'scale\.weight\.positions'"):
        hfc.pack_folder(saved, tmp_path / "packed")


@pytest.mark.parametrize("change", [lambda m: prune.l1_unstructured(m, "weight", 0.5), parametrizations.weight_norm])
@pytest.mark.parametrize("convert", [hfc.pack_folder, hfc.unpack_folder])
def test_a_folder_with_masks_is_not_copied(change, convert, tmp_path):
    model = build()
    change(model.get_submodule(FEED_FORWARD))
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(hfc.CompressionError, match=f"{FEED_FORWARD}.*still on"):
        convert(tmp_path / "saved", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_figures_count_a_masked_weight_as_it_is():
    model = build()
    before = hfc.sparsity_report(model).whole_model
    prune.l1_unstructured(model.classifier, "weight", 10)
    masked = hfc.sparsity_report(model).whole_model
    assert (masked.weights, masked.zeros) == (before.weights, before.zeros + 10)
