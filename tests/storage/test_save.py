"""save_compressed: every model comes back bit for bit; what cannot be saved is refused and leaves nothing."""

import json
import os

import pytest
import torch
from architectures import SHRINKABLE, build, same_bits, state_of
from model_folders import plain, pruned, stored_tensors
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertForMaskedLM

import hfcompress as hfc


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_every_architecture_comes_back_bit_for_bit(architecture, tmp_path):
    model = pruned(architecture)
    before = state_of(model)
    hfc.save_compressed(model, tmp_path / "small")
    assert same_bits(model.state_dict(), before)  # saving changes nothing
    assert any(name.endswith(".positions") for name in stored_tensors(tmp_path / "small"))
    for again in (hfc.load_compressed(tmp_path / "small"), plain(tmp_path / "small")):
        assert type(again) is type(model)
        assert same_bits(again.state_dict(), before)
        assert hfc.sparsity_report(again) == hfc.sparsity_report(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_minus_zero_come_back_bit_for_bit(dtype, tmp_path):
    model = pruned().to(dtype)
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[0, :5] = torch.tensor([-0.0, 0.0, 1e-300, -1e-300, 65504.0], dtype=torch.float64).to(dtype)
    hfc.save_compressed(model, tmp_path)
    assert same_bits(hfc.load_compressed(tmp_path).state_dict(), model.state_dict())


def test_shards_come_back_bit_for_bit(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for again in (hfc.load_compressed(tmp_path), plain(tmp_path)):
        assert same_bits(again.state_dict(), model.state_dict())


def test_the_index_of_shards_names_every_stored_tensor(tmp_path):
    hfc.save_compressed(pruned(), tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored_tensors(tmp_path))


def test_tied_weights_stay_tied(tmp_path):
    model = BertForMaskedLM(pruned().config)
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path)
    again = hfc.load_compressed(tmp_path)
    assert type(again) is BertForMaskedLM
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert same_bits(again.state_dict(), model.state_dict())


def test_zeros_and_uneven_shapes_come_back_together(tmp_path):
    model = pruned("bert", 0.6)
    model.bert.encoder.layer[1].output.dense.weight.data[:, :32] = 0
    hfc.prune_structured(model, heads=0.25, neurons=0.4, round_to=1)
    hfc.save_compressed(model, tmp_path)
    again = plain(tmp_path)
    assert same_bits(again.state_dict(), model.state_dict())
    assert again.config.quantization_config == model.config.quantization_config
    body = AutoModel.from_pretrained(tmp_path)
    assert same_bits(body.state_dict(), model.bert.state_dict())


def test_only_matrices_that_get_smaller_are_packed(tmp_path):
    model = build()
    model.bert.encoder.layer[0].output.dense.weight.data[:, ::2] = 0
    hfc.save_compressed(model, tmp_path)
    packed = [name for name in stored_tensors(tmp_path) if name.endswith(".positions")]
    assert packed == ["bert.encoder.layer.0.output.dense.weight.positions"]


@pytest.mark.parametrize("sparse", ["auto", False])
def test_a_folder_with_nothing_packed_needs_no_hfcompress(sparse, tmp_path):
    model = pruned() if sparse is False else build()
    hfc.save_compressed(model, tmp_path, sparse=sparse)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_bits(plain(tmp_path).state_dict(), model.state_dict())


@pytest.fixture
def uploads(monkeypatch):
    """The calls of the hub's API, of which none is made."""
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls.append(("upload", repo_id, sorted(os.listdir(folder_path)), options["allow_patterns"]))

    monkeypatch.setattr("hfcompress.storage.save.HfApi", Api)
    return calls


def test_the_complete_folder_is_uploaded(tmp_path, uploads):
    hfc.save_compressed(pruned(), tmp_path / "small", push_to_hub=True, token="secret", private=True)
    files = ["README.md", "config.json", "model.safetensors"]
    assert uploads[:2] == [("token", "secret"), ("create", "small", {"private": True, "exist_ok": True})]
    assert uploads[2][:3] == ("upload", "me/small", files)
    assert set(uploads[2][3]) == set(files)


def test_a_card_of_the_users_own_is_uploaded(tmp_path, uploads):
    (tmp_path / "README.md").write_text("my own words")
    hfc.save_compressed(pruned(), tmp_path, push_to_hub=True)
    assert "README.md" in uploads[2][3]


def test_other_files_in_the_folder_are_not_uploaded(tmp_path, uploads):
    (tmp_path / "notes.txt").write_text("mine")
    hfc.save_compressed(pruned(), tmp_path, push_to_hub=True)
    assert "notes.txt" in uploads[2][2]
    assert "notes.txt" not in uploads[2][3]


def with_adapter(model):
    get_peft_model(model, LoraConfig(target_modules=["query"]))
    return model


def quantized(model):
    model.config.quantization_config = {"quant_method": "fp8"}
    return model


REFUSED = {
    "no Hugging Face model": (lambda: torch.nn.Linear(2, 2), {}, "Linear is not a Hugging Face model"),
    "an unknown choice": (build, {"sparse": "always"}, "sparse='always' is unknown"),
    "a PEFT model": (
        lambda: get_peft_model(build(), LoraConfig(target_modules=["query"])),
        {},
        "PEFT adapter; merge it first",
    ),
    "a model with adapters in it": (lambda: with_adapter(build()), {}, "PEFT adapter; merge it first"),
    "no size of shards": (build, {"max_shard_size": "lots"}, "max_shard_size='lots' must be a number of bytes"),
    "a size of nothing": (build, {"max_shard_size": -1}, "max_shard_size=-1 must be a number of bytes"),
    "no size at all": (build, {"max_shard_size": None}, "max_shard_size=None must be a number of bytes"),
    "results as text": (build, {"results": "90 %"}, r"results='90 %' has no to_markdown\(\)"),
    "a class of results": (build, {"results": hfc.Comparison}, r"has no to_markdown\(\)"),
    "notes as text": (build, {"notes": "IMDB"}, "notes='IMDB' must be names and texts"),
    "a list of notes": (build, {"notes": ["IMDB"]}, r"notes=\['IMDB'\] must be names and texts"),
    "no values": (lambda: build().to("meta"), {}, "is on the meta device"),
    "a quantized model": (lambda: quantized(build()), {}, "is quantized"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name(case, tmp_path, monkeypatch):
    make, options, message = REFUSED[case]
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", lambda *args, **kwargs: pytest.fail("written"))
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.save_compressed(make(), tmp_path / "model", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [None, 3, b"model"])
def test_what_names_no_folder_is_refused(name):
    with pytest.raises(hfc.CompressionError, match=f"{name!r} is not the path of a folder to write"):
        hfc.save_compressed(build(), name)


def test_a_refused_save_marks_no_head_as_new(tmp_path):
    build().bert.save_pretrained(tmp_path / "body")
    model = plain(tmp_path / "body")
    before = model.config.to_dict()
    (tmp_path / "file").write_text("")
    with pytest.raises(hfc.CompressionError, match="is a file"):
        hfc.save_compressed(model, tmp_path / "file")
    assert model.config.to_dict() == before


@pytest.mark.parametrize("size", [20_000, 2e4, "20KB", " .02 mb"])
def test_sizes_of_shards_are_numbers_or_texts(size, tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path, max_shard_size=size)
    assert same_bits(hfc.load_compressed(tmp_path).state_dict(), model.state_dict())
