"""The loader in transformers: which tensors it unpacks, before which conversions, and what model it leaves."""

import copy
import gc
import json
import pickle
import tempfile
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
import transformers
from architectures import arguments, batch, build, rows, same_bits
from model_folders import plain, pruned, stored_tensors
from torch import nn
from transformers import (
    AutoModel,
    BertModel,
    BertPreTrainedModel,
    MixtralConfig,
    MixtralForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import hfcompress as hfc
from hfcompress.storage.convert import pack_folder

FUSED = {"NomicBert": "Wqkv", "Gte": "qkv_proj", "JinaEmbeddingsV3": "Wqkv"}


def fused(name):
    """Return a random classifier whose checkpoints hold its projections as one matrix."""
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name} (NomicBert and Jina v3 came with 5.4, GTE with 5.20)")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=50, max_position_embeddings=64, pad_token_id=0)
    return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()


def test_separate_experts_are_unpacked_before_they_are_joined(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=1, vocab_size=50, num_local_experts=3, pad_token_id=0)
    model = MixtralForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter[1].mul_(torch.rand_like(parameter[1]) > 0.7)  # one of three is worth packing
    hfc.save_compressed(model, tmp_path / "small")
    packed = [name for name in stored_tensors(tmp_path / "small") if name.endswith(".positions")]
    assert packed
    assert all("experts.1." in name for name in packed)
    again = plain(tmp_path / "small")
    assert same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "dense")  # names as in the original checkpoint, nothing packed
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(stored_tensors(tmp_path / "dense"), stored_tensors(tmp_path / "expected"))


def test_a_weight_of_another_shape_is_refused_by_from_pretrained(tmp_path):
    hfc.save_compressed(pruned(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))
    # By transformers from 5.23 on, by the quantizer before.
    with pytest.raises((RuntimeError, hfc.CompressionError), match="ignore_mismatched_sizes"):
        plain(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "modernbert"])
def test_the_body_alone_loads_in_the_dtype_asked_for(architecture, dtype, tmp_path):
    """Its names are others than in the file; before 5.21, transformers gave such weights no dtype."""
    model = pruned(architecture, amount=0.6)
    hfc.save_compressed(model, tmp_path / "small")
    model.save_pretrained(tmp_path / "dense")
    packed, dense = (AutoModel.from_pretrained(tmp_path / folder, dtype=dtype) for folder in ("small", "dense"))
    assert same_bits(packed.state_dict(), dense.state_dict())


def test_a_matrix_of_zeros_alone_comes_back(tmp_path):
    model = build("bert").eval()
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
    hfc.save_compressed(model, tmp_path)
    assert stored_tensors(tmp_path)["bert.pooler.dense.weight"].shape == (0,)
    for again in (hfc.load_compressed(tmp_path), plain(tmp_path)):
        assert same_bits(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("architecture", ["bert", "NomicBert"])
def test_layers_on_the_disk_are_unpacked_there(architecture, tmp_path):
    model = fused(architecture) if architecture in FUSED else build(architecture).eval()
    hfc.prune_global_l1(model, 0.8)
    hfc.save_compressed(model, tmp_path / "small")
    prefix = model.base_model_prefix
    places = {name: "cpu" for name, _ in model.named_children() if name != prefix}
    places |= {f"{prefix}.{name}": "cpu" for name, _ in model.base_model.named_children()}
    name, _ = next(
        (name, child) for name, child in model.base_model.named_modules() if isinstance(child, nn.ModuleList)
    )
    places[f"{prefix}.{name.partition('.')[0]}"] = "disk"
    again = plain(tmp_path / "small", device_map=places, offload_folder=tmp_path / "offloaded")
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", FUSED)
def test_projections_fused_in_the_checkpoint_are_packed_fused(name, tmp_path):
    model = fused(name)
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path / "small")
    positions = f"{FUSED[name]}.weight.positions"
    assert any(key.endswith(positions) for key in stored_tensors(tmp_path / "small"))
    assert same_bits(hfc.load_compressed(tmp_path / "small").state_dict(), model.state_dict())
    again = plain(tmp_path / "small")
    assert same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "dense")  # fused again
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(stored_tensors(tmp_path / "dense"), stored_tensors(tmp_path / "expected"))


@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_of_what_was_unpacked_for_loading_stays(damaged, tmp_path, monkeypatch):
    model = fused("NomicBert")
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path / "small")
    if damaged:
        config = json.loads((tmp_path / "small" / "config.json").read_text())
        (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"intermediate_size": 63}))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises((RuntimeError, hfc.CompressionError)) if damaged else nullcontext():
        plain(tmp_path / "small")
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


class Mine(BertPreTrainedModel):
    """A model with tensors that no layer of transformers has, all of them mostly zeros."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.rnn = torch.nn.LSTM(32, 32)
        self.prompt = torch.nn.Parameter(torch.zeros(4, 32))
        self.places = torch.nn.Module()
        self.places.positions = torch.nn.Parameter(torch.randn(8, 32))
        self.register_buffer("table", torch.eye(30, dtype=torch.bool))
        if "C64" in safetensors.torch._TYPES:  # from safetensors 0.7 on
            self.register_buffer("waves", torch.zeros(4, 40, dtype=torch.complex64))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.post_init()


def test_only_tensors_that_the_loader_recognises_are_packed(tmp_path):
    model = Mine(pruned().config).eval()
    with torch.no_grad():
        for parameter in model.bert.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.9)
    hfc.save_compressed(model, tmp_path / "small")
    hfc.save_compressed(model, tmp_path / "dense", sparse=False)
    pack_folder(tmp_path / "dense", tmp_path / "copy")
    for folder in ("small", "copy"):
        tensors = stored_tensors(tmp_path / folder)
        packed = {name.removesuffix(".positions") for name in tensors} - set(model.state_dict())
        assert {name.removesuffix(".positions") for name in tensors if name.endswith(".weight.positions")}
        assert packed <= {"places"}  # whose positions are a parameter
        assert same_bits(Mine.from_pretrained(tmp_path / folder).state_dict(), model.state_dict())
    with pytest.raises(hfc.CompressionError, match="a class of your own"):
        hfc.load_compressed(tmp_path / "small")


def test_very_sparse_half_precision_loads_in_another_dtype(tmp_path):
    model = build("bert", vocab_size=30_000).bfloat16()
    embeddings = model.get_input_embeddings().weight.data
    embeddings.mul_(torch.rand_like(embeddings, dtype=torch.float32) > 0.9994)
    hfc.save_compressed(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < embeddings.nbytes
    again = hfc.load_compressed(tmp_path, dtype=torch.float32)
    assert same_bits(again.state_dict(), model.float().state_dict())


@pytest.fixture
def loaded(tmp_path):
    hfc.save_compressed(pruned(), tmp_path / "small")
    return plain(tmp_path / "small")


def test_a_loaded_model_has_no_quantization_config(loaded):
    assert "quantization_config" not in loaded.config.to_dict()


def test_a_loaded_model_can_be_copied_and_pickled(loaded):
    same = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    assert same_bits(same.state_dict(), loaded.state_dict())


def test_a_loaded_model_can_be_trained_with_its_zeros_kept(loaded, tmp_path):
    zeros = hfc.sparsity_report(loaded).zeros
    settings = arguments(TrainingArguments, tmp_path / "out", max_steps=2)
    Trainer(loaded, settings, train_dataset=rows(batch(8)), callbacks=[hfc.KeepSparsity()]).train()
    assert hfc.sparsity_report(loaded).zeros >= zeros


def test_a_loaded_model_saves_itself_unpacked(loaded, tmp_path):
    loaded.save_pretrained(tmp_path / "dense")
    assert not any(name.endswith(".positions") for name in stored_tensors(tmp_path / "dense"))
    assert same_bits(plain(tmp_path / "dense").state_dict(), loaded.state_dict())
