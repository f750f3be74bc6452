"""load_compressed, pipeline and from_pretrained: where a model may be, and with which options it is loaded."""

import os
from pathlib import Path

import pytest
import torch
from architectures import batch, build, cached, same_bits, word_tokenizer
from model_folders import plain, pruned
from safetensors.torch import load_file
from transformers import BertTokenizerFast, BitsAndBytesConfig, pipeline

import hfcompress as hfc

GOLDEN = Path(__file__).parent / "golden"


def test_another_dtype_can_be_asked_for(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path)
    assert same_bits(plain(tmp_path, dtype=torch.float16).state_dict(), model.half().state_dict())


@pytest.mark.parametrize("option", ["subfolder", "variant"])
def test_another_place_for_the_weights_is_refused(option, tmp_path):
    hfc.save_compressed(pruned(), tmp_path)
    with pytest.raises(hfc.CompressionError, match=f"{option}= is not supported"):
        hfc.load_compressed(tmp_path, **{option: "other"})


def test_a_second_quantization_is_refused_and_told_what_works(tmp_path):
    hfc.save_compressed(pruned(), tmp_path)
    with pytest.raises(hfc.CompressionError, match=r"quantize the model then, such as with torchao: quantize_\(model"):
        hfc.load_compressed(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_a_loaded_model_is_quantized_by_torchao(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    model = build("bert", layers=3).eval()
    hfc.prune_structured(model, heads=0.5, neurons=0.4)
    hfc.save_compressed(model, tmp_path)
    loaded = hfc.load_compressed(tmp_path)
    torchao.quantize_(loaded, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits, atol=0.1, rtol=0.1)
    before, found = hfc.measure(model), hfc.measure(loaded)
    assert found.parameters == before.parameters
    assert found.nonzeros == before.parameters - sum(map(zeros, loaded.parameters()))
    assert found.zeros > 0
    assert found.dtype == "float32, int8"
    assert found.bytes < 0.7 * before.bytes
    assert hfc.measure(loaded, batch(), repeats=1).flops is None
    with pytest.raises(hfc.CompressionError, match=r"is quantized \(torchao.*cannot be exported"):
        hfc.export(loaded, tmp_path / "onnx", processing_class=word_tokenizer())


def zeros(parameter):
    values = parameter.dequantize() if hasattr(parameter, "qdata") else parameter
    return int((values == 0).sum())


def test_any_option_of_from_pretrained_is_passed_on(tmp_path):
    hfc.save_compressed(pruned(), tmp_path)
    assert hfc.load_compressed(tmp_path, classifier_dropout=0.25).config.classifier_dropout == 0.25


def test_a_pipeline_reads_the_folder(tmp_path):
    model = pruned()
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    hfc.save_compressed(model, tmp_path / "small", processing_class=tokenizer)
    output = pipeline("text-classification", str(tmp_path / "small"))("good good bad")[0]
    expected = model(**tokenizer("good good bad", return_tensors="pt")).logits.softmax(-1).max().detach()
    assert output["score"] == pytest.approx(float(expected), abs=1e-6)


def test_the_golden_folder_of_the_first_format_loads():
    """Written by version 0.1.0 of the library (tests/storage/golden/make.py); every later one must read it."""
    model = hfc.load_compressed(GOLDEN)
    expected = load_file(GOLDEN / "expected" / "dense.safetensors")
    assert same_bits(dict(sorted(model.state_dict().items())), dict(sorted(expected.items())))
    assert hfc.sparsity_report(model).sparsity == pytest.approx(0.6, abs=0.2)


def test_a_hub_id_loads_from_the_cache_without_a_network(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "small")
    cached(tmp_path / "small", tmp_path, "me/small")
    for again in (
        hfc.load_compressed("me/small", cache_dir=tmp_path, local_files_only=True, revision="main"),
        plain("me/small", cache_dir=tmp_path, local_files_only=True),
    ):
        assert same_bits(again.state_dict(), model.state_dict())


def test_an_unknown_name_is_neither_a_directory_nor_a_model(tmp_path):
    with pytest.raises(hfc.CompressionError, match="'me/other' is neither a directory"):
        hfc.load_compressed("me/other", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("name", ["", None, 3, b"model"])
def test_what_names_no_folder_is_not_the_working_directory(name, tmp_path, monkeypatch):
    hfc.save_compressed(pruned(), tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    message = "folder to read is empty" if name == "" else f"{name!r} is not the path of a folder to read"
    for read in (hfc.load_compressed, lambda source: hfc.pack_folder(source, tmp_path / "out")):
        with pytest.raises(hfc.CompressionError, match=message):
            read(name)
    assert os.listdir(tmp_path) == ["model"]


def test_a_hub_folder_may_be_reached_by_a_link(tmp_path, monkeypatch):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "small")
    cached(tmp_path / "small", tmp_path, "me/small")
    snapshot = next((tmp_path / "models--me--small" / "snapshots").iterdir())
    (tmp_path / "link").symlink_to(snapshot)
    assert same_bits(hfc.load_compressed(tmp_path / "link").state_dict(), model.state_dict())
    monkeypatch.chdir(snapshot)
    assert same_bits(hfc.load_compressed(".").state_dict(), model.state_dict())
