"""The sparsity report: its numbers, and the three forms it is read in."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, build, same_bits, state_of
from torch import nn

from hfcompress import CompressionError, LayerSparsity, SparsityReport, prune_global_l1, sparsity_report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_numbers_are_those_counted_by_hand(architecture):
    model = build(architecture)
    prune_global_l1(model, 0.3)
    before = state_of(model)
    report = sparsity_report(model)
    modules = dict(model.named_modules())
    for layer in report.layers:
        weight = modules[layer.name].weight
        zeros = int((weight == 0).sum())
        assert layer == LayerSparsity(layer.name, tuple(weight.shape), "float32", weight.numel(), zeros)
        assert layer.sparsity == zeros / weight.numel()
    assert report.weights == sum(layer.weights for layer in report.layers)
    assert report.zeros == sum(layer.zeros for layer in report.layers) == round(0.3 * report.weights)
    assert report.sparsity == report.zeros / report.weights
    assert same_bits(model.state_dict(), before)


def test_a_negative_zero_is_a_zero_and_a_denormal_is_not():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[0.0, -0.0], [1e-45, 1.0]])
    assert sparsity_report(model).zeros == 2


def test_the_dtype_of_each_matrix_is_reported():
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).double())
    assert [layer.dtype for layer in sparsity_report(model).layers] == ["bfloat16", "float64"]


def test_an_empty_matrix_is_not_sparse():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.empty(0, 2))
    report = sparsity_report(model)
    assert (report.weights, report.zeros, report.sparsity, report.layers[0].sparsity) == (0, 0, 0.0, 0.0)
    assert SparsityReport(()).sparsity == 0.0


def test_patterns_choose_what_is_reported():
    model = build("bert")
    assert [layer.name for layer in sparsity_report(model, include="classifier").layers] == ["classifier"]
    assert not any("attention" in layer.name for layer in sparsity_report(model, exclude="*attention*").layers)


def test_refusals_name_the_place():
    with pytest.raises(CompressionError, match="include pattern 'decoder' matches no weight matrix"):
        sparsity_report(build("bert"), include="decoder")
    with pytest.raises(CompressionError, match="has no weight matrix to prune"):
        sparsity_report(nn.Sequential(nn.LayerNorm(3)))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CompressionError, match=r"0\.weight is on the meta device"):
        sparsity_report(model)


@pytest.fixture
def report():
    layers = (
        LayerSparsity("body.first", (1000, 2), "float32", 2000, 500),
        LayerSparsity("body.second", (2, 4), "float16", 8, 0),
    )
    return SparsityReport(layers, not_covered=("body.experts.weight",), amount=0.25)


def test_printing_shows_an_aligned_table_with_every_matrix_the_sum_and_the_notes(report):
    assert str(report).splitlines() == [
        "matrix                shape     weights  zeros  sparsity",
        "body.first            1000 x 2    2,000    500    25.00%",
        "body.second           2 x 4           8      0     0.00%",
        "all prunable weights              2,008    500    24.90%",
        "asked: 0.25",
        "not covered: body.experts.weight",
    ]


def test_markdown_is_a_table_with_the_same_rows(report):
    assert report.to_markdown().splitlines()[:5] == [
        "| matrix | shape | weights | zeros | sparsity |",
        "|---|---|---:|---:|---:|",
        "| body.first | 1000 x 2 | 2,000 | 500 | 25.00% |",
        "| body.second | 2 x 4 | 8 | 0 | 0.00% |",
        "| all prunable weights |  | 2,008 | 500 | 24.90% |",
    ]


def test_the_notes_below_a_markdown_table_are_not_rows_of_it(report):
    lines = report.to_markdown().splitlines()
    assert lines[5] == ""  # without an empty line Markdown reads the note as one more row
    assert "asked: 0.25" in lines[6:]


def test_a_plain_report_has_no_notes():
    assert "asked" not in str(sparsity_report(build("bert")))
    assert "not covered" not in str(sparsity_report(build("bert")))


def test_json_holds_everything(report):
    assert json.loads(report.to_json()) == {
        "weights": 2008,
        "zeros": 500,
        "sparsity": 500 / 2008,
        "amount": 0.25,
        "layers": [
            {
                "name": "body.first",
                "shape": [1000, 2],
                "dtype": "float32",
                "weights": 2000,
                "zeros": 500,
                "sparsity": 0.25,
            },
            {"name": "body.second", "shape": [2, 4], "dtype": "float16", "weights": 8, "zeros": 0, "sparsity": 0.0},
        ],
        "not_covered": ["body.experts.weight"],
    }
