"""``hfcompress report`` against plain counts."""

import pytest
import torch
from command_line import load


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
    assert list(found) == ["model", "class", "parameters", "bytes", "bytes_in_files", "sparsity"]


def test_report_prints_class_and_parameters(models, found, run):
    short = run("report", models / "bert")
    assert "BertForSequenceClassification" in short
    assert f"{found['parameters']:,}" in short


def test_report_lists_matrices_only_if_verbose(models, run):
    assert "layer.3.output.dense" not in run("report", models / "bert")
    assert "layer.3.output.dense" in run("report", models / "bert", "--verbose")
