"""The loader in transformers: which tensors it unpacks, before which conversions, and what model it leaves."""

import copy
import pickle

import pytest
import torch
import transformers
from architectures import arguments, batch, build, rows, same_bits
from model_folders import plain, pruned, stored_tensors
from transformers import (
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


@pytest.mark.parametrize("name", FUSED)
def test_projections_fused_in_the_checkpoint_are_packed_fused(name, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=50, max_position_embeddings=64, pad_token_id=0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path / "small")
    fused = f"{FUSED[name]}.weight.positions"
    assert any(key.endswith(fused) for key in stored_tensors(tmp_path / "small"))
    assert same_bits(hfc.load_compressed(tmp_path / "small").state_dict(), model.state_dict())
    again = plain(tmp_path / "small")
    assert same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "dense")  # fused again
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(stored_tensors(tmp_path / "dense"), stored_tensors(tmp_path / "expected"))


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
