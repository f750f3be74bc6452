"""``hfcompress report`` against plain counts."""

import json

import pytest
import torch
from architectures import build
from command_line import load, make_tokenizer
from exports import needs_torch_export
from peft import LoraConfig, get_peft_model

import hfcompress as hfc

KEYS = ["model", "class", "kind", "parameters", "bytes", "bytes_in_files", "layers", "heads", "key_value_heads"]
KEYS += ["neurons", "flops", "tokens", "plan", "packed", "needs_hfcompress", "new_head", "sparsity"]


@pytest.fixture
def found(models, run):
    return run("report", models / "bert", "--json")


def test_report_counts_parameters_and_bytes(models, found):
    assert found["parameters"] == sum(p.numel() for p in load(models / "bert").parameters())
    assert found["bytes_in_files"] == (models / "bert" / "model.safetensors").stat().st_size


def test_report_counts_prunable_weights(models, found):
    matrices = [m.weight for m in load(models / "bert").base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert found["sparsity"]["weights"] == sum(weight.numel() for weight in matrices)


def test_report_json_has_its_keys_in_order(found):
    assert list(found) == KEYS


def test_report_prints_class_and_parameters(models, found, run):
    short = run("report", models / "bert")
    assert "BertForSequenceClassification" in short
    assert f"{found['parameters']:,}" in short


def test_report_lists_matrices_only_if_verbose(models, run):
    assert "layer.3.output.dense" not in run("report", models / "bert")
    assert "layer.3.output.dense" in run("report", models / "bert", "--verbose")


# Of tiny models with 32 wide tokens: heads of queries, of keys and values where others, and neurons, in each layer.
SHAPES = {
    "bert": (2, [4, 4], None, [64, 64]),
    "gpt2": (2, [4, 4], None, [64, 64]),
    "llama": (2, [4, 4], [2, 2], [64, 64]),
    "qwen2": (2, [4, 4], [2, 2], [64, 64]),
    "modernbert": (3, [4, 4, 4], None, [64, 64, 64]),
    "bart": (4, None, None, [64, 64, 64, 64]),
    "bloom": (2, None, None, None),
}


@pytest.mark.parametrize("architecture", SHAPES)
def test_report_tells_the_shape(architecture, tmp_path, run):
    layers, heads, shared, neurons = SHAPES[architecture]
    build(architecture).save_pretrained(tmp_path)
    found = run("report", tmp_path, "--json")
    if heads is None and found["heads"] is not None:  # an encoder-decoder has attention of several kinds
        heads = [4] * len(found["heads"])
    assert [found[name] for name in ("layers", "heads", "key_value_heads", "neurons")] == [
        layers,
        heads,
        shared,
        neurons,
    ]


def test_report_counts_flops(models, found):
    model, total = load(models / "bert"), 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            tokens = 1 if module in (model.classifier, model.bert.pooler.dense) else found["tokens"]
            total += 2 * tokens * module.in_features * module.out_features
    attention = 4 * 2 * 2 * found["tokens"] ** 2 * 32  # queries times keys, and weights times values, in each layer
    assert (found["flops"], found["tokens"]) == (total + attention, 64)


def test_report_tells_what_the_plan_says_and_how_it_loads(models, tmp_path, run, monkeypatch):
    assert "loads        without hfcompress" in run("report", models / "bert")
    run("shrink", models / "bert", "--heads", 0.4, "--neurons", 0.4, "-o", tmp_path / "uneven")
    run("pack", tmp_path / "uneven", tmp_path / "packed")
    uneven, packed = (run("report", tmp_path / name, "--json") for name in ("uneven", "packed"))
    plan = json.loads((tmp_path / "uneven" / "config.json").read_text())["quantization_config"]
    assert uneven["plan"] == packed["plan"] == plan
    assert (uneven["heads"], uneven["neurons"]) == (plan["heads"], plan["neurons"])
    assert (uneven["packed"], uneven["needs_hfcompress"]) == (False, True)
    monkeypatch.setenv("COLUMNS", "200")
    text = run("report", tmp_path / "uneven")
    assert "plan         heads and neurons of each layer, which no plain config states (version 1)" in text
    assert "loads        after import hfcompress, because it has a plan" in text


def test_report_fits_the_terminal(models, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("shrink", models / "bert", "--heads", 0.4, "--neurons", 0.4, "-o", "uneven")
    for columns in (60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run("report", "uneven").splitlines()
        assert max(map(len, lines)) <= columns
        assert any(line.startswith(" " * 13) for line in lines)  # what does not fit is below


def test_report_tells_packed_weights(models, tmp_path, run):
    run("prune", models / "bert", "--amount", 0.9, "-o", tmp_path / "pruned")
    run("pack", tmp_path / "pruned", tmp_path / "packed")
    found = [run("report", tmp_path / name, "--json") for name in ("pruned", "packed")]
    assert [one["packed"] for one in found] == [one["needs_hfcompress"] for one in found] == [False, True]
    assert found[0]["sparsity"] == found[1]["sparsity"]
    assert "because its weights are packed" in run("report", tmp_path / "packed")


def test_report_tells_what_is_known_of_an_adapter(models, tmp_path, run):
    adapted = get_peft_model(load(models / "bert"), LoraConfig(r=2, target_modules=["query", "value"]))
    adapted.save_pretrained(tmp_path)
    found = run("report", tmp_path, "--json")
    assert (found["kind"], found["class"], found["rank"], found["modules"]) == (
        "adapter",
        "LORA",
        2,
        ["query", "value"],
    )
    assert found["parameters"] == 4 * 2 * 2 * (32 + 32)  # layers, matrices, rank
    assert "merge it before other verbs" in run("report", tmp_path)
    run("report", tmp_path, "--include", "*", status=2)
    assert "--include is about weight matrices" in run.error


@needs_torch_export
def test_report_tells_what_is_known_of_an_exported_model(models, tmp_path, run):
    run("export", models / "bert", "-o", tmp_path / "onnx", "--repeats", 0)
    found = run("report", tmp_path / "onnx", "--json")
    assert (found["kind"], found["format"], found["dtype"], found["max_tokens"]) == ("exported", "onnx", "float32", 64)
    assert found["bytes_in_files"] == (tmp_path / "onnx" / "model.onnx").stat().st_size
    assert "without hfcompress, in ONNX Runtime" in run("report", tmp_path / "onnx")
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    run("report", tmp_path / "onnx", status=2)
    assert "has 0 bytes and was written with" in run.error


def test_contradicting_labels_are_noted_by_report_and_refused_by_prune(models, tmp_path, run):
    model = load(models / "bert")
    model.config.label2id = {"YES": 0, "NO": 1}
    model.save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    assert run("report", tmp_path / "bert", "--json")["layers"] == 4
    sentence = (
        f"The labels of the model {tmp_path / 'bert'} have no plain meaning: the name 'NO' is of class 0 in id2label"
    )
    assert run.error.startswith(sentence)
    run("prune", tmp_path / "bert", "--amount", 0.2, "-o", tmp_path / "out", status=2)
    assert run.error.startswith(f"hfcompress prune: {sentence}")


def test_what_has_no_weight_to_prune_has_other_figures(models, monkeypatch, run):
    def refuse(*_, **__):
        raise hfc.CompressionError("it is quantized.")

    monkeypatch.setattr(hfc, "sparsity_report", refuse)
    assert "prunable     none: it is quantized." in run("report", models / "bert")
    run("report", models / "bert", "--include", "*", status=2)
