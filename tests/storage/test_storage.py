"""What is saved comes back bit for bit, everywhere; a save is whole or did not happen."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

import hfcompress as hfc
import hfcompress.atomic_folder
from hfcompress.storage.convert import pack_folder, unpack_folder
from tests.architectures import SHRINKABLE, arguments, batch, build, cached, rows, same_bits, state_of

GOLDEN = Path(__file__).parent / "golden"


def pruned(architecture="bert", amount=0.5, **options):
    model = build(architecture, **options).eval()
    hfc.prune_global_l1(model, amount)
    return model


def plain(folder, **options):
    return AutoModelForSequenceClassification.from_pretrained(folder, **options)


def tensors_in(folder):
    """Every tensor as it stands in the files, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= file.get_tensors()
    return found


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_every_architecture_comes_back_bit_for_bit(architecture, tmp_path):
    model = pruned(architecture)
    before = state_of(model)
    hfc.save_compressed(model, tmp_path / "small")
    assert same_bits(model.state_dict(), before)  # saving changes nothing
    assert any(name.endswith(".positions") for name in tensors_in(tmp_path / "small"))
    for again in (hfc.load_compressed(tmp_path / "small"), plain(tmp_path / "small")):
        assert type(again) is type(model)
        assert same_bits(again.state_dict(), before)
        assert hfc.sparsity_report(again) == hfc.sparsity_report(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_comes_back_bit_for_bit_and_minus_zero_with_it(dtype, tmp_path):
    model = pruned().to(dtype)
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[0, :5] = torch.tensor([-0.0, 0.0, 1e-300, -1e-300, 65504.0], dtype=torch.float64).to(dtype)
    hfc.save_compressed(model, tmp_path)
    assert same_bits(hfc.load_compressed(tmp_path).state_dict(), model.state_dict())


def test_another_dtype_can_be_asked_for(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path)
    assert same_bits(plain(tmp_path, dtype=torch.float16).state_dict(), model.half().state_dict())


def test_shards_come_back_bit_for_bit(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors_in(tmp_path))
    for again in (hfc.load_compressed(tmp_path), plain(tmp_path)):
        assert same_bits(again.state_dict(), model.state_dict())


def test_tied_weights_stay_tied(tmp_path):
    from transformers import BertForMaskedLM

    model = BertForMaskedLM(pruned().config)
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path)
    again = hfc.load_compressed(tmp_path)
    assert type(again) is BertForMaskedLM
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert same_bits(again.state_dict(), model.state_dict())


def test_experts_that_a_checkpoint_keeps_apart_are_unpacked_before_they_are_joined(tmp_path):
    from transformers import MixtralConfig, MixtralForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=1, vocab_size=50, num_local_experts=3, pad_token_id=0)
    model = MixtralForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter[1].mul_(torch.rand_like(parameter[1]) > 0.7)  # one of three is worth packing
    hfc.save_compressed(model, tmp_path / "small")
    packed = [name for name in tensors_in(tmp_path / "small") if name.endswith(".positions")]
    assert packed
    assert all("experts.1." in name for name in packed)
    again = plain(tmp_path / "small")
    assert same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "dense")  # names as in the original checkpoint, nothing packed
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(tensors_in(tmp_path / "dense"), tensors_in(tmp_path / "expected"))


FUSED = {"NomicBert": "Wqkv", "Gte": "qkv_proj", "JinaEmbeddingsV3": "Wqkv"}


@pytest.mark.parametrize("name", FUSED)
def test_a_checkpoint_that_fuses_what_the_model_keeps_apart_is_packed_fused(name, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=50, max_position_embeddings=64, pad_token_id=0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    hfc.prune_global_l1(model, 0.5)
    hfc.save_compressed(model, tmp_path / "small")
    fused = f"{FUSED[name]}.weight.positions"
    assert any(key.endswith(fused) for key in tensors_in(tmp_path / "small"))
    assert same_bits(hfc.load_compressed(tmp_path / "small").state_dict(), model.state_dict())
    again = plain(tmp_path / "small")
    assert same_bits(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "dense")  # fused again
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(tensors_in(tmp_path / "dense"), tensors_in(tmp_path / "expected"))


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


def test_only_what_the_loader_can_tell_apart_is_packed(tmp_path):
    model = Mine(pruned().config).eval()
    with torch.no_grad():
        for parameter in model.bert.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.9)
    hfc.save_compressed(model, tmp_path / "small")
    hfc.save_compressed(model, tmp_path / "dense", sparse=False)
    pack_folder(tmp_path / "dense", tmp_path / "copy")
    for folder in ("small", "copy"):
        tensors = tensors_in(tmp_path / folder)
        packed = {name.removesuffix(".positions") for name in tensors} - set(model.state_dict())
        assert {name.removesuffix(".positions") for name in tensors if name.endswith(".weight.positions")}
        assert packed <= {"places"}  # whose positions are a parameter
        assert same_bits(Mine.from_pretrained(tmp_path / folder).state_dict(), model.state_dict())
    with pytest.raises(hfc.CompressionError, match="own from_pretrained"):
        hfc.load_compressed(tmp_path / "small")


def test_half_precision_saved_very_sparse_loads_in_another_dtype(tmp_path):
    model = build("bert", vocab_size=30_000).bfloat16()
    embeddings = model.get_input_embeddings().weight.data
    embeddings.mul_(torch.rand_like(embeddings, dtype=torch.float32) > 0.9994)
    hfc.save_compressed(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < embeddings.nbytes
    again = hfc.load_compressed(tmp_path, dtype=torch.float32)
    assert same_bits(again.state_dict(), model.float().state_dict())


def test_zeros_and_uneven_shapes_together(tmp_path):
    model = pruned("bert", 0.6)
    model.bert.encoder.layer[1].output.dense.weight.data[:, :32] = 0
    hfc.prune_structured(model, heads=0.25, neurons=0.4, round_to=1)
    hfc.save_compressed(model, tmp_path)
    again = plain(tmp_path)
    assert same_bits(again.state_dict(), model.state_dict())
    assert again.config.quantization_config == model.config.quantization_config
    body = AutoModel.from_pretrained(tmp_path)
    assert same_bits(body.state_dict(), model.bert.state_dict())


def test_what_comes_back_is_an_ordinary_model(tmp_path):
    import copy
    import pickle

    hfc.save_compressed(pruned(), tmp_path / "small")
    model = plain(tmp_path / "small")
    assert "quantization_config" not in model.config.to_dict()
    same = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert same_bits(same.state_dict(), model.state_dict())
    zeros = hfc.sparsity_report(model).zeros
    settings = arguments(TrainingArguments, tmp_path / "out", max_steps=2)
    Trainer(model, settings, train_dataset=rows(batch(8)), callbacks=[hfc.KeepSparsity()]).train()
    assert hfc.sparsity_report(model).zeros >= zeros
    model.save_pretrained(tmp_path / "dense")
    assert not any(name.endswith(".positions") for name in tensors_in(tmp_path / "dense"))
    assert same_bits(plain(tmp_path / "dense").state_dict(), model.state_dict())


def test_a_pipeline_reads_the_folder(tmp_path):
    model = pruned()
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    hfc.save_compressed(model, tmp_path / "small", processing_class=tokenizer)
    answer = pipeline("text-classification", str(tmp_path / "small"))("good good bad")[0]
    expected = model(**tokenizer("good good bad", return_tensors="pt")).logits.softmax(-1).max().detach()
    assert answer["score"] == pytest.approx(float(expected), abs=1e-6)


def test_only_what_gets_smaller_is_packed(tmp_path):
    model = build()
    model.bert.encoder.layer[0].output.dense.weight.data[:, ::2] = 0
    hfc.save_compressed(model, tmp_path)
    packed = [name for name in tensors_in(tmp_path) if name.endswith(".positions")]
    assert packed == ["bert.encoder.layer.0.output.dense.weight.positions"]


@pytest.mark.parametrize("sparse", ["auto", False])
def test_a_folder_without_anything_packed_needs_no_hfcompress(sparse, tmp_path):
    model = pruned() if sparse is False else build()
    hfc.save_compressed(model, tmp_path, sparse=sparse)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_bits(plain(tmp_path).state_dict(), model.state_dict())


def test_packing_and_unpacking_a_folder(tmp_path):
    model = pruned(amount=0.8)
    model.save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    (tmp_path / "dense" / "notes.txt").write_text("mine")
    pack_folder(tmp_path / "dense", tmp_path / "small")
    size = {name: sum(p.stat().st_size for p in (tmp_path / name).glob("*.safetensors")) for name in ("dense", "small")}
    assert size["small"] < size["dense"]
    assert same_bits(plain(tmp_path / "small").state_dict(), model.state_dict())
    unpack_folder(tmp_path / "small", tmp_path / "again")
    assert same_bits(tensors_in(tmp_path / "again"), tensors_in(tmp_path / "dense"))
    assert (tmp_path / "again" / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (tmp_path / "dense" / "config.json").read_text()
    )


def test_the_golden_folder_loads():
    """Written by version 0.1.0 of the library (tests/golden/make.py); every later one must read it."""
    model = hfc.load_compressed(GOLDEN)
    with safe_open(GOLDEN / "expected" / "dense.safetensors", "pt") as file:
        expected = file.get_tensors()
    assert same_bits(dict(sorted(model.state_dict().items())), dict(sorted(expected.items())))
    assert hfc.sparsity_report(model).sparsity == pytest.approx(0.6, abs=0.2)


# The model card


def test_the_card_says_what_was_done(tmp_path):
    from huggingface_hub import ModelCard

    model = pruned(amount=0.3)
    results = hfc.compare({"pruned": model})
    hfc.save_compressed(model, tmp_path, results=results, notes={"teacher": "a larger BERT"})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data["library_name"] == "transformers"
    report = hfc.sparsity_report(model)
    assert f"{report.zeros:,} of {report.weights:,}" in card.text
    assert "teacher: a larger BERT" in card.text
    assert results.to_markdown() in card.text
    held = (tmp_path / "model.safetensors").stat().st_size
    assert f"{held:,} bytes on disk" in card.text


def test_a_card_of_the_users_own_stays(tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    hfc.save_compressed(build(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


# The hub


def test_the_folder_is_uploaded_whole(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, **options):
            assert "README.md" in options["allow_patterns"]
            assert "notes.txt" not in options["allow_patterns"]
            calls.append(("upload", repo_id, sorted(os.listdir(folder_path))))

    monkeypatch.setattr("hfcompress.storage.save.HfApi", Api)
    hfc.save_compressed(pruned(), tmp_path / "small", push_to_hub=True, token="secret", private=True)
    assert calls == [
        ("token", "secret"),
        ("create", "small", {"private": True, "exist_ok": True}),
        ("upload", "me/small", ["README.md", "config.json", "model.safetensors"]),
    ]
    (tmp_path / "small" / "README.md").write_text("my own words")  # uploaded like one of ours
    (tmp_path / "small" / "notes.txt").write_text("mine")
    hfc.save_compressed(pruned(), tmp_path / "small", push_to_hub=True)


def test_a_hub_id_loads_from_the_cache_without_a_network(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "small")
    cached(tmp_path / "small", tmp_path, "me/small")
    for again in (
        hfc.load_compressed("me/small", cache_dir=tmp_path, local_files_only=True, revision="main"),
        plain("me/small", cache_dir=tmp_path, local_files_only=True),
    ):
        assert same_bits(again.state_dict(), model.state_dict())
    with pytest.raises(hfc.CompressionError, match="'me/other' is neither a folder"):
        hfc.load_compressed("me/other", cache_dir=tmp_path, local_files_only=True)


def test_a_hub_folder_may_be_reached_by_a_link(tmp_path, monkeypatch):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "small")
    cached(tmp_path / "small", tmp_path, "me/small")
    snapshot = next((tmp_path / "models--me--small" / "snapshots").iterdir())
    (tmp_path / "link").symlink_to(snapshot)
    assert same_bits(hfc.load_compressed(tmp_path / "link").state_dict(), model.state_dict())
    monkeypatch.chdir(snapshot)
    assert same_bits(hfc.load_compressed(".").state_dict(), model.state_dict())


# Whole or not at all


def test_a_save_into_the_working_directory_stays_in_it(tmp_path, monkeypatch):
    (tmp_path / "model" / "runs").mkdir(parents=True)
    for place in (tmp_path / "model", tmp_path / "model" / "runs"):
        monkeypatch.chdir(place)
        target = os.path.relpath(tmp_path / "model")
        for amount in (0.3, 0.6):
            model = pruned(amount=amount)
            hfc.save_compressed(model, target)
            assert os.getcwd() == str(place)
            assert same_bits(hfc.load_compressed(target).state_dict(), model.state_dict())


def test_what_others_write_into_the_folder_during_a_save_stays(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder)
    (folder / "runs").mkdir()
    exchange = hfcompress.atomic_folder._exchange

    def meanwhile(one, other):
        (folder / "notes.txt").write_text("mine")
        (folder / "runs" / "events").write_text("mine too")
        return exchange(one, other)

    monkeypatch.setattr("hfcompress.atomic_folder._exchange", meanwhile)
    model = pruned(amount=0.7)
    hfc.save_compressed(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "runs" / "events").read_text() == "mine too"
    assert same_bits(hfc.load_compressed(folder).state_dict(), model.state_dict())


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_pipes_and_look_alikes_of_the_user_stay(tmp_path):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder)
    os.mkfifo(folder / "pipe")
    (tmp_path / ".model.important.saving").mkdir()
    hfc.save_compressed(pruned(amount=0.7), folder)
    assert (folder / "pipe").is_fifo()
    assert (tmp_path / ".model.important.saving").is_dir()


def test_an_adapter_in_the_folder_is_not_left_beside_other_weights(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "model", sparse=False)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for save in (
        lambda: hfc.save_compressed(model, tmp_path / "adapter"),
        lambda: pack_folder(tmp_path / "model", tmp_path / "adapter"),
    ):
        with pytest.raises(hfc.CompressionError, match="holds a PEFT adapter, which would be applied"):
            save()
    assert os.listdir(tmp_path / "adapter") == ["adapter_config.json"]


def test_a_copy_has_the_folders_too(tmp_path):
    hfc.save_compressed(pruned(), tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    unpack_folder(tmp_path / "model", tmp_path / "plain")
    assert (tmp_path / "plain" / "1_Pooling" / "config.json").read_text() == "{}"


def test_other_files_stay_and_old_weights_go(tmp_path):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder, max_shard_size="20KB")
    (folder / "notes.txt").write_text("mine")
    (folder / "runs").mkdir()
    (folder / "runs" / "log").write_text("mine too")
    (folder / "link").symlink_to("notes.txt")
    os.chmod(folder, 0o750)
    hfc.save_compressed(pruned(amount=0.7), folder)
    names = ["README.md", "config.json", "link", "model.safetensors", "notes.txt", "runs"]
    assert sorted(os.listdir(folder)) == names
    assert (folder / "runs" / "log").read_text() == "mine too"
    assert (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    hfc.save_compressed(build(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


def test_without_an_exchange_of_the_system_two_renames_do(tmp_path, monkeypatch):
    hfc.save_compressed(pruned(), tmp_path / "model")
    monkeypatch.setattr("hfcompress.atomic_folder._exchange", lambda one, other: False)
    model = pruned(amount=0.7)
    hfc.save_compressed(model, tmp_path / "model")
    assert same_bits(hfc.load_compressed(tmp_path / "model").state_dict(), model.state_dict())
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("when", ["save_pretrained", "pack", "flush", "exchange"])
def test_a_save_that_fails_leaves_the_old_folder_and_no_debris(when, tmp_path, monkeypatch):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "model")
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {
        "save_pretrained": "transformers.PreTrainedModel.save_pretrained",
        "pack": "hfcompress.storage.save.pack_tensors",
        "flush": "os.fsync",
        "exchange": "hfcompress.atomic_folder._exchange",
    }[when]
    monkeypatch.setattr(target, fail)
    with pytest.raises(hfc.CompressionError, match=r"cannot be written.*No space left"):
        hfc.save_compressed(pruned(amount=0.7), tmp_path / "model")
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_a_full_disk_is_said_and_leaves_the_old_folder(tmp_path):
    """The limit on the size of files stands for the disk: writing beyond it fails as on a full one."""
    import resource

    model = pruned()
    hfc.save_compressed(model, tmp_path / "model")
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(hfc.CompressionError, match="cannot be written"):
            hfc.save_compressed(model, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(hfc.CompressionError, match="is a file; name a folder"):
        hfc.save_compressed(build(), tmp_path / "file")
    with pytest.raises(hfc.CompressionError, match="cannot be written"):
        hfc.save_compressed(build(), tmp_path / "file" / "inside")
    with pytest.raises(hfc.CompressionError, match="cannot be written"):
        hfc.save_compressed(build(), "/proc/nothing/model")


@pytest.fixture
def no_progress_bars():
    """tqdm's bars share a lock with forked processes, which one that is killed may take with it."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.usefixtures("no_progress_bars")
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_any_moment_the_folder_is_the_old_or_the_new_one(tmp_path):
    """A child that holds two models saves them in turn until it is killed; HFCOMPRESS_KILLS=100 for a long run."""
    folder, moments = tmp_path / "model", int(os.environ.get("HFCOMPRESS_KILLS", "12"))
    models = [pruned(amount=0.3), pruned(amount=0.8)]
    states = [state_of(model) for model in models]
    start = time.perf_counter()
    hfc.save_compressed(models[0], folder)
    duration = time.perf_counter() - start
    chance = random.Random(0)
    seen = set()
    for moment in range(moments):
        through, saved = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for model in (models[1], models[0]):
                        hfc.save_compressed(model, folder)
                        os.write(saved, b".")
            finally:
                os._exit(1)
        if moment % 3 == 0:
            os.read(through, 1)  # the first save got through
        if moment:
            time.sleep(chance.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(through)
        os.close(saved)
        again = hfc.load_compressed(folder).state_dict()
        found = [same_bits(again, state) for state in states]
        assert sum(found) == 1
        seen.add(found.index(True))
    assert 1 in seen  # in the first round at the latest, which is killed right after a save
    hfc.save_compressed(models[0], folder)
    assert os.listdir(tmp_path) == ["model"]  # what the killed ones left is gone


@pytest.mark.usefixtures("no_progress_bars")
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_of_two_processes_that_save_to_one_folder_one_wins_whole(tmp_path):
    folder = tmp_path / "model"
    models = [pruned(amount=0.3), pruned(amount=0.8)]
    states = [state_of(model) for model in models]
    children = []
    for model in models:
        child = os.fork()
        if child == 0:
            try:
                for _ in range(10):
                    hfc.save_compressed(model, folder)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    again = hfc.load_compressed(folder).state_dict()
    assert sum(same_bits(again, state) for state in states) == 1
    assert os.listdir(tmp_path) == ["model"]


# What cannot be saved


def test_what_cannot_be_saved_is_refused_by_name(tmp_path):
    from peft import LoraConfig, get_peft_model

    with pytest.raises(hfc.CompressionError, match="Linear is no Hugging Face model"):
        hfc.save_compressed(torch.nn.Linear(2, 2), tmp_path / "model")
    with pytest.raises(hfc.CompressionError, match="sparse='always' is unknown"):
        hfc.save_compressed(build(), tmp_path / "model", sparse="always")
    with pytest.raises(hfc.CompressionError, match="PEFT adapter; merge it first"):
        hfc.save_compressed(get_peft_model(build(), LoraConfig(target_modules=["query"])), tmp_path / "model")
    base = build()
    get_peft_model(base, LoraConfig(target_modules=["query"]))
    with pytest.raises(hfc.CompressionError, match="PEFT adapter; merge it first"):
        hfc.save_compressed(base, tmp_path / "model")
    with pytest.raises(hfc.CompressionError, match="cannot be laid into files"):
        hfc.save_compressed(build(), tmp_path / "model", max_shard_size="lots")
    with pytest.raises(hfc.CompressionError, match="is on the meta device"):
        hfc.save_compressed(build().to("meta"), tmp_path / "model")
    quantized = build()
    quantized.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(hfc.CompressionError, match="is quantized"):
        hfc.save_compressed(quantized, tmp_path / "model")
    assert os.listdir(tmp_path) == []
