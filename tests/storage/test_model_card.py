"""The model card that a save writes."""

import pytest
import torch
from architectures import build
from huggingface_hub import ModelCard
from model_folders import pruned
from transformers import BertPreTrainedModel

import hfcompress as hfc


class Mine(BertPreTrainedModel):
    """A model of which no weight is prunable."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(10, 4)
        self.post_init()


@pytest.fixture
def model():
    return pruned(amount=0.3)


@pytest.fixture
def card(model, tmp_path):
    hfc.save_compressed(model, tmp_path, notes={"teacher": "a larger BERT"})
    return ModelCard.load(tmp_path / "README.md")


def test_a_card_has_metadata_for_the_hub(card):
    assert card.data.pipeline_tag == "text-classification"
    assert card.data["library_name"] == "transformers"
    assert card.data.tags == ["hfcompress"]


def test_a_card_states_zeros_and_bytes(card, model, tmp_path):
    report = hfc.sparsity_report(model)
    assert f"{report.zeros:,} of {report.weights:,}" in card.text
    held = (tmp_path / "model.safetensors").stat().st_size
    unpacked = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert f"- Weights: {held:,} bytes on disk, {unpacked:,} in memory." in card.text


def test_a_card_lists_the_notes(card):
    assert "\n- teacher: a larger BERT\n" in card.text


def test_a_card_shows_the_results(model, tmp_path):
    results = hfc.compare({"pruned": model})
    hfc.save_compressed(model, tmp_path, results=results)
    assert f"\n## Measured\n\n{results.to_markdown()}" in (tmp_path / "README.md").read_text()


def test_a_card_without_results_has_no_section_for_them(card):
    assert "Measured" not in card.text
    assert "None" not in card.text


def test_a_card_lists_the_neurons_left(tmp_path):
    model = build().eval()
    model.bert.encoder.layer[1].output.dense.weight.data[:, :32] = 0  # so that one layer loses more
    hfc.prune_structured(model, neurons=0.3, round_to=1)
    hfc.save_compressed(model, tmp_path)
    counts = ", ".join(map(str, model.config.quantization_config["neurons"]))
    assert f"\n- Neurons left in each layer: {counts}.\n" in (tmp_path / "README.md").read_text()


def test_a_card_lists_neurons_that_the_plan_names(tmp_path):
    model = build().eval()
    layers = [f"bert.encoder.layer.{index}." for index in range(2)]
    plan = [{"up": [f"{n}intermediate.dense"], "down": f"{n}output.dense", "width": 64} for n in layers]
    model.config.quantization_config = {"quant_method": "hfcompress", "version": 2, "neurons": plan}
    hfc.save_compressed(model, tmp_path)
    assert "\n- Neurons left in each layer: 64, 64.\n" in (tmp_path / "README.md").read_text()


def test_a_model_without_prunable_weights_has_a_card_too(tmp_path):
    hfc.save_compressed(Mine(build().config), tmp_path / "model")
    assert "prunable" not in (tmp_path / "model" / "README.md").read_text()


def test_our_own_card_is_replaced(tmp_path):
    hfc.save_compressed(build(), tmp_path, notes={"run": "first"})
    hfc.save_compressed(build(), tmp_path, notes={"run": "second"})
    card = (tmp_path / "README.md").read_text()
    assert "second" in card
    assert "first" not in card


def test_a_card_of_the_users_own_stays(tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    hfc.save_compressed(build(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"
