"""``hfcompress shrink --vocabulary`` against the function in Python and the original model."""

import csv

import pytest
import torch
from command_line import COLUMNS, NUMBERS, load
from transformers import AutoTokenizer

import hfcompress as hfc

TEXT = ("--text-column", "review")


def write_table(file, *rows):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


@pytest.fixture
def tables(tmp_path):
    """Two files with texts, the second with texts to pair them with."""
    first = write_table(tmp_path / "first.csv", ["review"], ["good film"], ["good"])
    second = write_table(tmp_path / "second.csv", ["review", "reply"], ["a film", "not so"], ["a film", "so"])
    return first, second


def words(folder):
    return set(AutoTokenizer.from_pretrained(folder).get_vocab()) - {"[PAD]", "[UNK]"}


def logits(folder, *texts):
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits


def test_the_tokens_of_the_texts_are_kept(models, tables, tmp_path, run):
    found = run("shrink", models / "bert", "--vocabulary", tables[0], *TEXT, "-o", tmp_path / "out", "--json")
    assert words(tmp_path / "out") == {"a", "good", "film"}  # single characters stay
    assert found["vocabulary"]["tokens"] == [10, 5]
    assert set(found) == {"vocabulary"}
    assert load(tmp_path / "out").config.vocab_size == 5


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_logits_of_the_texts_stay_bit_by_bit(model, models, tables, tmp_path, run):
    run("shrink", models / model, "--vocabulary", tables[0], *TEXT, "-o", tmp_path / "out")
    for text in ("good film", "film", "good good"):
        assert torch.equal(logits(tmp_path / "out", text), logits(models / model, text))


@pytest.mark.parametrize("repeated", [False, True])
def test_several_files_are_read(repeated, models, tables, tmp_path, run):
    options = ["--vocabulary", tables[0], *(["--vocabulary"] if repeated else []), tables[1]]
    run("shrink", models / "bert", *options, *TEXT, "-o", tmp_path / "out")
    assert words(tmp_path / "out") == {"good", "film", "a"}


def test_both_texts_of_a_pair_are_read(models, tables, tmp_path, run):
    pair = (*TEXT, "--text-pair-column", "reply")
    found = run("shrink", models / "bert", "--vocabulary", tables[1], *pair, "-o", tmp_path / "out", "--json")
    assert words(tmp_path / "out") == {"a", "film", "not", "so"}
    assert found["vocabulary"]["texts"] == 2
    assert torch.equal(logits(tmp_path / "out", "a film", "not so"), logits(models / "bert", "a film", "not so"))


def test_all_rows_are_read_whatever_rows_says(models, data, tmp_path, run):
    texts = ("--vocabulary", data / "train.csv", *TEXT)
    ranked = ("--importance", "fisher", "--data", data / "test.jsonl", *NUMBERS, "--rows", 1, "--neurons", 0.5)
    run("shrink", models / "bert", *texts, *ranked, "-o", tmp_path / "out")
    assert words(tmp_path / "out") == {"a", "film", "good", "fine", "bad", "dull"}


def test_the_settings_are_those_of_the_function(models, tables, tmp_path, run):
    settings = ("--min-count", 2, "--keep", "dull", "so", "--alphabet", "used")
    run("shrink", models / "bert", "--vocabulary", tables[0], *TEXT, *settings, "-o", tmp_path / "out")
    assert words(tmp_path / "out") == {"good", "dull", "so"}


def test_tokens_are_removed_before_neurons(models, tables, tmp_path, run):
    asked = ("--vocabulary", *tables, *TEXT, "--neurons", 0.5)
    found = run("shrink", models / "bert", *asked, "-o", tmp_path / "out", "--json")
    expected = load(models / "bert")
    vocabulary = hfc.prune_vocabulary(expected, AutoTokenizer.from_pretrained(models / "bert"), ["good", "a film"])
    structure = hfc.prune_structured(expected, neurons=0.5)
    assert found["vocabulary"]["parameters"] == list(vocabulary.parameters)
    assert found["parameters"] == list(structure.parameters)
    inputs = vocabulary.tokenizer("a good film", return_tensors="pt")
    assert torch.allclose(logits(tmp_path / "out", "a good film"), expected(**inputs).logits, atol=1e-6)


def test_the_reports_of_both_are_printed(models, tables, tmp_path, run):
    tokens = run("shrink", models / "bert", "--vocabulary", *tables, *TEXT, "-o", tmp_path / "one")
    both = run("shrink", models / "bert", "--vocabulary", *tables, *TEXT, "--heads", 0.5, "-o", tmp_path / "both")
    assert both.startswith(tokens)
    assert "heads" in both.removeprefix(tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", 0.5, "--min-count", 2], "--min-count needs texts whose tokens are kept: --vocabulary"),
        (["--heads", 0.5, "--keep", "so"], "--keep needs"),
        (["--alphabet", "used"], "--alphabet needs"),
        (["--vocabulary", "FIRST"], "no column 'text'"),
        (["--vocabulary", "FIRST", "none.csv", *TEXT], "The file none.csv does not exist"),
        (["--vocabulary", "FIRST", *TEXT, "--min-count", 0], "--min-count 0 must be"),
        (["--vocabulary", "FIRST", *TEXT, "--keep", "strange"], "strange"),
        (["--vocabulary", "FIRST", *TEXT, "--flops", 1.5], "--flops 1.5 must be"),
        (["--vocabulary", "FIRST", "--data", "TEST", *COLUMNS], "Nothing was asked"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, message, models, data, tables, tmp_path, run):
    places = {"FIRST": tables[0], "TEST": data / "test.jsonl"}
    run("shrink", models / "bert", *(places.get(one, one) for one in arguments), "-o", tmp_path / "out", status=2)
    assert message in run.error
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused(models, tables, tmp_path, run):
    load(models / "bert").save_pretrained(tmp_path / "bare")
    run("shrink", tmp_path / "bare", "--vocabulary", tables[0], *TEXT, "-o", tmp_path / "out", status=2)
    assert "has no tokenizer" in run.error


def test_other_verbs_read_each_model_with_its_tokenizer(models, data, tmp_path, run):
    texts = ("--vocabulary", data / "test.jsonl", *TEXT, "--alphabet", "used")
    run("shrink", models / "bert", *texts, "-o", tmp_path / "out")
    names = [str(models / "bert"), str(tmp_path / "out")]
    found = run("compare", *names, "--data", data / "test.jsonl", *NUMBERS, "--repeats", 1, "--json")
    rows = found.get("models", found)
    assert rows[names[1]]["accuracy"] == rows[names[0]]["accuracy"]
    assert rows[names[1]]["agreement"] == 1
    learned = ("--max-steps", 1, "--learning-rate", 0, "--alpha", 1, "--held-out", 0.8)
    taught = run("distill", names[0], "--student", names[1], "--data", data / "test.jsonl", *COLUMNS, *learned, "-o",
                 tmp_path / "student")  # fmt: skip
    assert "agree on 100" in taught
