"""The sparsity report: its figures, tables and pictures."""

import json
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch
from architectures import ARCHITECTURES, SHRINKABLE, build, same_bits, state_of
from matplotlib import pyplot as plt
from torch import nn

from hfcompress import CompressionError, LayerSparsity, SparsityReport, prune_global_l1, sparsity_report
from hfcompress.models.heads_and_neurons import find_groups
from hfcompress.report.sparsity import ZeroCount

mpl.use("Agg")


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
        assert layer == LayerSparsity(layer.name, tuple(weight.shape), "float32", weight.numel(), zeros, layer.kind)
        assert layer.sparsity == zeros / weight.numel()
    assert report.weights == sum(layer.weights for layer in report.layers)
    assert report.zeros == sum(layer.zeros for layer in report.layers) == round(0.3 * report.weights)
    assert report.sparsity == report.zeros / report.weights
    assert [layer.name for layer in report.layers] == [
        name for name in modules if name in {x.name for x in report.layers}
    ]
    parameters = list(model.parameters())
    assert report.whole_model.weights == sum(parameter.numel() for parameter in parameters)
    assert report.whole_model.zeros == sum(int((parameter == 0).sum()) for parameter in parameters)
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
    assert SparsityReport((), ZeroCount(0, 0)).sparsity == 0.0


def test_patterns_choose_what_is_reported():
    model = build("bert")
    assert [layer.name for layer in sparsity_report(model, include="classifier").layers] == ["classifier"]
    assert not any("attention" in layer.name for layer in sparsity_report(model, exclude="*attention*").layers)


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(CompressionError, match="include pattern 'decoder' matches no weight matrix"):
        sparsity_report(build("bert"), include="decoder")


def test_a_model_without_matrices_is_refused():
    with pytest.raises(CompressionError, match="has no weight matrix to prune"):
        sparsity_report(nn.Sequential(nn.LayerNorm(3)))


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CompressionError, match=r"0\.weight is on the meta device"):
        sparsity_report(model)


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_kinds_of_blocks_are_those_of_heads_and_neurons(architecture):
    model = build(architecture)
    kinds = {layer.name: layer.kind for layer in sparsity_report(model, include="*").layers}
    for kind, block in (("heads", "attention"), ("neurons", "feed-forward")):
        parts = {part.module for units in find_groups(model, kind) for part in units.slices} & set(kinds)
        assert parts == {name for name, found in kinds.items() if found == block}
    assert sum(kind == "head" for kind in kinds.values()) > 0
    assert {kinds[name] for name in kinds if "pooler" in name} <= {"pooler", "head"}


def test_matrices_outside_the_body_are_of_the_head():
    model = build("distilbert")
    assert {x.name: x.kind for x in sparsity_report(model, include="*classifier").layers} == {
        "pre_classifier": "head",
        "classifier": "head",
    }


def test_matrices_with_unknown_names_are_of_other_kind():
    assert [layer.kind for layer in sparsity_report(nn.Sequential(nn.Linear(2, 2))).layers] == ["other"]


def test_zeros_of_all_parameters_include_those_out_of_scope():
    model = build("bert")
    model.classifier.weight.data.zero_()
    zero_at_first = sparsity_report(model)
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
    padding = model.bert.embeddings.word_embeddings.weight.shape[1]
    assert zero_at_first.zeros == 0
    assert zero_at_first.whole_model.zeros == biases + padding + model.classifier.weight.numel()
    model.classifier.weight = nn.Parameter(model.classifier.weight.to("meta"))
    assert sparsity_report(model).whole_model.zeros == biases + padding  # what has no values has no zeros


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint16", "uint64", "float4_e2m1fn_x2"])
def test_numbers_that_torch_does_not_count_are_counted_by_hand(dtype):
    if not hasattr(torch, dtype):
        pytest.skip("of a newer torch")
    model, kind = build("bert"), getattr(torch, dtype)
    before = sparsity_report(model).whole_model
    values = torch.tensor([[0, 1], [3, 0], [0, 240]])
    packed = dtype.startswith("float4")  # two numbers in a byte: their zeros are not known
    values = values.to(torch.uint8).view(kind) if packed else values.to(kind)
    model.register_parameter("other", nn.Parameter(values, requires_grad=False))
    found = prune_global_l1(model, 0.2)
    assert found.whole_model == sparsity_report(model).whole_model
    assert found.whole_model.weights == before.weights + 6
    assert found.whole_model.zeros == before.zeros + found.zeros + (0 if packed else 3)


@pytest.fixture
def report():
    layers = (
        LayerSparsity("body.first", (1000, 2), "float32", 2000, 500, "attention"),
        LayerSparsity("body.second", (2, 4), "float16", 8, 0, "feed-forward"),
    )
    return SparsityReport(layers, ZeroCount(3000, 510), not_covered=("body.experts.weight",), amount=0.25)


def test_printing_shows_matrices_totals_and_notes(report):
    assert str(report).splitlines() == [
        "matrix                block         shape     weights  zeros  sparsity",
        "body.first            attention     1000 x 2    2,000    500    25.00%",
        "body.second           feed-forward  2 x 4           8      0     0.00%",
        "all attention         attention                 2,000    500    25.00%",
        "all feed-forward      feed-forward                  8      0     0.00%",
        "all prunable weights                            2,008    500    24.90%",
        "all parameters                                  3,000    510    17.00%",
        "asked: 25.00% of the prunable weights; actual: 24.90%",
        "not covered: body.experts.weight",
    ]


def test_long_models_are_shown_layer_by_layer():
    model = build("bert", layers=6)  # 37 matrices
    report = prune_global_l1(model, 1234)
    lines = [" ".join(line.split()) for line in str(report).splitlines()]
    assert lines[0] == "layer matrices weights zeros sparsity attention feed-forward"
    assert len(lines) == 1 + 6 + 4
    parts = [layer for layer in report.layers if layer.name.startswith("bert.encoder.layer.3.")]
    zeros, attention, other = (sum(x.zeros for x in of) for of in (parts, parts[:4], parts[4:]))
    share = f"{zeros / 8192:.2%} {attention / 4096:.2%} {other / 4096:.2%}"
    assert lines[4] == f"bert.encoder.layer.3 6 8,192 {zeros:,} {share}"
    assert lines[7].startswith("bert.pooler.dense 1 1,024 ")
    assert lines[8].startswith("all prunable weights 37 50,176 1,234 2.46% ")
    assert lines[9].startswith(f"all parameters {sum(p.numel() for p in model.parameters()):,} ")
    assert lines[10] == "asked: 1,234 zeros; actual: 1,234"
    assert len(report.to_markdown(verbose=False).splitlines()) == 1 + 1 + 6 + 3 + 2


def test_the_verbose_table_shows_every_matrix():
    report = prune_global_l1(build("bert", layers=6), 1234)
    assert len(report.to_text(verbose=True).splitlines()) == 1 + 37 + 3 + 2 + 1


def test_markdown_is_a_table_with_the_same_rows(report):
    assert report.to_markdown().splitlines()[:4] == [
        "| matrix | block | shape | weights | zeros | sparsity |",
        "|---|---|---|---:|---:|---:|",
        "| body.first | attention | 1000 x 2 | 2,000 | 500 | 25.00% |",
        "| body.second | feed-forward | 2 x 4 | 8 | 0 | 0.00% |",
    ]


def test_notes_below_a_markdown_table_are_not_rows_of_it(report):
    lines = report.to_markdown().splitlines()
    assert lines[8] == ""  # without an empty line Markdown reads the note as one more row
    assert lines[9].startswith("asked: 25.00%")


def test_a_plain_report_has_no_notes():
    assert "asked" not in str(sparsity_report(build("bert")))
    assert "not covered" not in str(sparsity_report(build("bert")))


def test_json_holds_everything(report):
    first = {"name": "body.first", "shape": [1000, 2], "dtype": "float32", "kind": "attention"}
    second = {"name": "body.second", "shape": [2, 4], "dtype": "float16", "kind": "feed-forward"}
    numbers = {"weights": 2000, "zeros": 500, "sparsity": 0.25}, {"weights": 8, "zeros": 0, "sparsity": 0.0}
    assert json.loads(report.to_json()) == {
        "weights": 2008,
        "zeros": 500,
        "sparsity": 500 / 2008,
        "amount": 0.25,
        "whole_model": {"weights": 3000, "zeros": 510, "sparsity": 0.17},
        "kinds": {"attention": numbers[0], "feed-forward": numbers[1]},
        "layers": [first | numbers[0], second | numbers[1]],
        "not_covered": ["body.experts.weight"],
    }


def test_pandas_has_a_row_a_matrix(report):
    frame = report.to_pandas()
    assert list(frame.columns) == ["name", "kind", "shape", "dtype", "weights", "zeros", "sparsity"]
    assert frame.sparsity.tolist() == [0.25, 0.0]
    assert frame.groupby("kind").zeros.sum().to_dict() == {"attention": 500, "feed-forward": 0}


def test_a_notebook_shows_the_same_table(report):
    tree = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>")
    rows = [[cell.text or "" for cell in row] for row in tree.iter("tr")]
    assert [" ".join(" ".join(row).split()) for row in rows] == [
        " ".join(x.split()) for x in str(report).splitlines()[:7]
    ]
    assert [note.text for note in tree.iter("p")] == str(report).splitlines()[7:]


def test_a_notebook_shows_totals_in_bold_below_a_line(report):
    tree = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>")
    styles = {row[0].text: row[0].get("style") for row in tree.iter("tr")}
    assert [name for name, style in styles.items() if "bold" in style] == [
        "all attention",
        "all feed-forward",
        "all prunable weights",
        "all parameters",
    ]
    assert [name for name, style in styles.items() if "border-top" in style] == ["all attention"]


def test_the_picture_has_a_bar_for_each_kind_of_each_layer():
    report = prune_global_l1(build("bert"), 0.3)
    figure, axes = report.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "bert.pooler.dense",
    ]
    first = [layer for layer in report.layers if ".layer.0." in layer.name]
    attention = sum(layer.zeros for layer in first[:4]) / sum(layer.weights for layer in first[:4])
    assert len(axes.patches) == 5
    assert axes.patches[0].get_width() == pytest.approx(100 * attention)
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "all prunable weights: 30.00%"
    plt.close(figure)
    figure, given = plt.subplots()
    assert report.plot(given, verbose=True) == (figure, given)
    assert len(given.patches) == 13
    plt.close(figure)


@pytest.mark.parametrize(
    ("package", "call", "remedy"),
    [("pandas", "to_pandas", "pip install pandas"), ("matplotlib", "plot", r"pip install 'hfcompress\[plots\]'")],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, report, package, call, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=remedy):
        getattr(report, call)()
