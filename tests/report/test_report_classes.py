"""Every class of report, as a real call returns it, can be converted and written into a model card."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from architectures import batch, build
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import make_tokenizer

import hfcompress as hfc
from hfcompress.report.tables import Report, Table

DATA = batch(12)


@pytest.fixture(scope="module")
def reports():
    model = build("bert")
    pruned = build("bert")
    shrunk = build("bert")
    tokenizer = make_tokenizer("wordpiece")
    compared = hfc.compare({"full": model, "pruned": pruned}, DATA, repeats=2)
    return {
        "SparsityReport": hfc.prune_global_l1(pruned, 0.3),
        "StructureReport": hfc.prune_structured(shrunk, heads=0.25, neurons=0.5, importance="l1"),
        "Measurement": hfc.measure(model, DATA, repeats=2),
        "Comparison": compared,
        "VocabularyReport": hfc.prune_vocabulary(
            build("bert", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id), tokenizer, ["a good plot"]
        ),
        "ExportReport": hfc.ExportReport(
            directory="onnx",
            format="onnx",
            dtype="float32",
            inputs=("input_ids", "attention_mask"),
            bytes=(40_000, 41_000),
            difference=1e-7,
            weight_bits=None,
            static=False,
            gate=None,
            times=compared,
            processor=("AVX2",),
            versions={"onnx": "1.19"},
        ),
    }


CLASSES = ["SparsityReport", "StructureReport", "Measurement", "Comparison", "VocabularyReport", "ExportReport"]
every_class = pytest.mark.parametrize("name", CLASSES)


def test_no_class_of_report_is_left_out_here(reports):
    assert set(CLASSES) == set(reports)
    others = {"Ladder"}  # see tests/search
    assert {kind.__name__ for kind in Report.__subclasses__()} - others == set(reports)
    assert all(type(report).__name__ == name for name, report in reports.items())


@every_class
def test_a_report_is_a_dict_that_json_can_hold(reports, name):
    figures = reports[name].to_dict()
    assert figures
    assert json.loads(json.dumps(figures)) == json.loads(reports[name].to_json())


def test_numbers_of_numpy_are_those_of_python_in_json():
    asked = {"heads": np.float32(0.5), "drop_layers": [np.int64(1)]}
    report = hfc.StructureReport(blocks=(), layers=(2, 1), parameters=(20, 10), flops=(20, 10), asked=asked)
    assert json.loads(report.to_json())["asked"] == {"heads": 0.5, "drop_layers": [1]}
    assert "asked: heads=0.5" in str(report)


@every_class
def test_a_report_is_a_markdown_table(reports, name):
    head, rule, *rest = reports[name].to_markdown().splitlines()
    rows = rest[: rest.index("")] if "" in rest else rest
    assert rows
    assert set(rule) == set("|-:") or set(rule) == set("|-")
    assert {line.replace(r"\|", "").count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert all(line == "" or not line.startswith("|") for line in rest[len(rows) :])


@every_class
def test_a_report_is_a_table_of_text_which_print_shows(reports, name):
    lines = reports[name].to_text().splitlines()
    assert str(reports[name]) == reports[name].to_text()
    assert len(lines) > 2
    assert all(line == line.rstrip() and "|" not in line for line in lines)


@every_class
def test_a_notebook_shows_the_figures_that_print_shows(reports, name):
    tree = ElementTree.fromstring(f"<main>{reports[name]._repr_html_()}</main>")
    rows = [" ".join(" ".join(cell.text or "" for cell in row).split()) for row in tree.iter("tr")]
    notes = [note.text for note in tree.iter("p")]
    lines = [" ".join(line.split()) for line in str(reports[name]).splitlines()]
    assert rows + notes == lines
    assert len(list(tree.iter("table"))) == 1


@given(st.lists(st.text(), min_size=4, max_size=4))
def test_a_notebook_shows_any_name_literally(texts):
    printable = ["".join(one for one in text if one.isprintable()) for text in (*texts, "<script>&'\"")]
    table = Table([("model", printable[0]), (printable[4], printable[1])], "<>", printable[2:4])
    tree = ElementTree.fromstring(f"<main>{table.html()}</main>")
    assert [cell.text or "" for cell in tree.iter() if cell.tag in ("th", "td")][1:] == [
        printable[0], printable[4], printable[1],
    ]  # fmt: skip
    assert [note.text or "" for note in tree.iter("p")] == printable[2:4]
    assert {one.tag for one in tree.iter()} <= {"main", "div", "table", "thead", "tbody", "tr", "th", "td", "p"}


@every_class
def test_a_saved_model_has_the_report_in_its_card(reports, name, tmp_path):
    hfc.save_compressed(build("bert"), tmp_path / "model", results=reports[name])
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"\n{reports[name].to_markdown()}\n" in card
