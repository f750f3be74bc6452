"""``hfcompress prune`` against the function in Python."""

import torch
from command_line import contents, load
from transformers import AutoTokenizer

import hfcompress as hfc


def test_prune_writes_what_the_function_makes(models, tmp_path, run):
    out = tmp_path / "new/out"
    found = run("prune", models / "bert", "--amount", 0.3, "--exclude", "*pooler*", "-o", out, "--json")
    assert "Written to" in run.error
    expected = load(models / "bert")
    report = hfc.prune_global_l1(expected, 0.3, exclude="*pooler*")
    assert found["zeros"] == report.zeros == round(0.3 * report.weights)
    assert all(map(torch.equal, load(out).parameters(), expected.parameters()))


def test_prune_saves_the_tokenizer_too(models, tmp_path, run):
    run("prune", models / "bert", "--amount", 0.3, "-o", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("good film")["input_ids"] == [4, 3]


def test_prune_leaves_its_input_and_nothing_else_behind(models, tmp_path, run):
    before = contents(models)
    run("prune", models / "bert", "--amount", 0.3, "-o", tmp_path / "new/out")
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["out"]
    assert contents(models) == before


def test_prune_prints_the_fraction_that_is_zero(models, tmp_path, run):
    assert "30.00%" in run("prune", models / "bert", "--amount", 0.3, "-o", tmp_path / "text")


def test_prune_takes_a_number_of_weights(models, tmp_path, run):
    assert run("prune", models / "bert", "--amount", 100, "-o", tmp_path / "out", "--json")["zeros"] == 100
