"""``hfcompress shrink`` against models shrunk in Python."""

import csv
import json
import random
import re
import subprocess
import sys

import pytest
import torch
from architectures import build
from command_line import NUMBERS, load, make_tokenizer, read_reviews
from transformers import AutoModel, AutoTokenizer

import hfcompress as hfc
from hfcompress_cli.held_out import split_by_label

IDS = torch.tensor([[2, 3, 4]])


def test_shrink_removes_the_fractions_asked(models, tmp_path, run):
    half = run("shrink", models / "bert", "--heads", 0.5, "--neurons", 0.5, "-o", tmp_path / "half", "--json")
    assert half["heads_removed"] == half["neurons_removed"] == 0.5
    assert half["parameters"][1] == sum(p.numel() for p in load(tmp_path / "half").parameters())


def test_shrink_drops_the_layers_named(models, tmp_path, run):
    run("shrink", models / "bert", "--drop-layers", "1,2", "-o", tmp_path / "two")
    kept = load(models / "bert")
    kept.bert.encoder.layer = kept.bert.encoder.layer[::3]
    assert torch.allclose(load(tmp_path / "two")(IDS).logits, kept(IDS).logits)


def test_what_was_removed_is_a_table(models, tmp_path, run):
    shown = run("shrink", models / "bert", "--neurons", 0.5, "-o", tmp_path / "half").partition("\n\n")[0].splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown]
    assert {"layers", "neurons", "parameters"} <= {row[0] for row in rows}
    assert rows[0] == ["before", "after", "removed"]
    assert max(map(len, shown)) <= 80


def test_shrink_ranks_by_the_loss_on_rows_drawn(models, data, tmp_path, run):
    ranked = ("--importance", "fisher", "--data", data / "test.jsonl", *NUMBERS, "--rows", 8)
    run("shrink", models / "gpt2", "--flops", 0.7, *ranked, "-o", tmp_path / "ranked")
    tokenizer = AutoTokenizer.from_pretrained(models / "gpt2")
    drawn = [
        {"input_ids": tokenizer(row["review"])["input_ids"], "labels": int(row["sentiment"] == "YES")}
        for row in random.Random(42).sample(read_reviews(data), 8)  # of so few none are held out
    ]
    expected = load(models / "gpt2")
    hfc.prune_structured(expected, flops=0.7, importance="fisher", dataset=drawn)
    assert torch.allclose(load(tmp_path / "ranked")(IDS).logits, expected(IDS).logits, atol=1e-6)
    assert load(tmp_path / "ranked").config.pad_token_id is None  # as before


def test_a_model_shrunk_evenly_is_a_plain_one(models, tmp_path, run):
    run("shrink", models / "bert", "--neurons", 0.5, "--scope", "layer", "-o", tmp_path / "out")
    assert AutoModel.from_pretrained(tmp_path / "out").config.intermediate_size == 32


def write_reviews(data, path, *, labels=True):
    """Write the forty reviews under the names of columns that the command expects."""
    with (data / "train.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label") if labels else ("text",), *(r if labels else r[:1] for r in rows)]
        )
    return path


def test_labelled_data_rank_and_say_what_it_cost(models, data, tmp_path, run):
    reviews = write_reviews(data, tmp_path / "reviews.csv")
    found = run("shrink", models / "bert", "--flops", 0.6, "--data", reviews, "-o", tmp_path / "out", "--json")
    assert found["importance"] == "obs"
    assert found["held_out"] == 8
    with reviews.open(newline="") as file:
        rows = list(csv.DictReader(file))
    _, chosen = split_by_label(rows, 0.2, 42, "label")  # those that finetune and distill hold out
    for folder, accuracy in zip((models / "bert", tmp_path / "out"), found["accuracy"], strict=True):
        model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in chosen]
        right = [int(one.argmax()) == int(row["label"]) for one, row in zip(logits, chosen, strict=True)]
        assert accuracy == sum(right) / 8
    table = run("shrink", models / "bert", "--flops", 0.6, "--data", reviews, "-o", tmp_path / "again")
    assert "accuracy" in table
    assert "same predictions as before" in table
    assert "\n(if the model was trained on these before, its accuracy on others is lower)\n" in table


def test_texts_without_labels_are_not_ignored(models, data, tmp_path, run):
    texts = write_reviews(data, tmp_path / "texts.csv", labels=False)
    shrink = ("shrink", models / "bert", "--flops", 0.6, "--data", texts, "-o")
    found = run(*shrink, tmp_path / "out", "--json")
    assert "no labels in a column 'label'" in run.error
    assert "warning" not in run.error
    assert (found["importance"], found["held_out"], found["accuracy"]) == ("obs", 8, None)
    assert 0 <= found["agreement"] <= 1
    run(*shrink, tmp_path / "other", "--importance", "fisher", status=2)
    assert "no column 'label'" in run.error
    run(*shrink, tmp_path / "other", "--label-column", "stars", status=2)
    assert "no column 'stars'" in run.error


@pytest.mark.parametrize("cells", [("", ""), ("1", "")], ids=["none", "some"])
def test_rows_without_a_label_are_left_out_where_others_have_one(cells, models, tmp_path, run):
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("text,label\n" + "".join(f"good film,{cells[n % 2]}\n" for n in range(80)))
    shrink = ("shrink", models / "bert", "--flops", 0.8, "--data", reviews, "-o", tmp_path / "out", "--json")
    found = run(*shrink)
    labelled = bool(cells[0])
    assert found["importance"] == "obs"
    assert (found["accuracy"] is not None) == labelled
    assert found["held_out"] == (8 if labelled else 16)
    assert ("40 of 80 rows have no text or no label" in run.error) is labelled


def test_data_beside_l1_measure_what_it_cost(models, data, tmp_path, run):
    reviews = write_reviews(data, tmp_path / "reviews.csv")
    l1 = ("--importance", "l1", "--data", reviews)
    found = run("shrink", models / "gpt2", "--heads", 0.5, *l1, "-o", tmp_path / "out", "--json")
    assert found["importance"] == "l1"
    assert len(found["accuracy"]) == 2


@pytest.mark.parametrize(("given", "held_out"), [(("--eval-data", "other"), 7), (("--held-out", 0.4), 16), ((), 8)])
def test_the_rows_to_measure_with_are_those_asked(given, held_out, models, data, tmp_path, run):
    reviews = write_reviews(data, tmp_path / "reviews.csv")
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + 4 * "good film,1\n" + 3 * "bad film,0\n")
    given = [other if word == "other" else word for word in given]
    shrink = ("shrink", models / "bert", "--flops", 0.6, "--data", reviews, *given, "-o", tmp_path / "out", "--json")
    assert run(*shrink)["held_out"] == held_out
    if other in given:
        run("shrink", models / "bert", "--flops", 0.6, *given, "-o", tmp_path / "again", status=2)
        assert "name those to rank by with --data" in run.error


def test_without_data_a_warning_names_what_to_pass(models, tmp_path):
    shrink = [sys.executable, "-m", "hfcompress_cli", "shrink", models / "bert", "--flops", "0.5", "-o"]
    done = subprocess.run([*shrink, tmp_path / "out"], capture_output=True, text=True)
    (line,) = [line for line in done.stderr.splitlines() if "ranked by their weights alone" in line]
    assert line.startswith("warning: Heads and neurons")
    assert "--data" in line
    assert ".py" not in done.stderr


def test_each_verb_says_whether_the_folder_loads_alone(models, data, tmp_path, run):
    def said():
        (line,) = [line for line in run.error.splitlines() if line.startswith("Written to")]
        return line

    uneven, plain, packed = (tmp_path / name for name in ("uneven", "plain", "packed"))
    run("shrink", models / "bert", "--flops", 0.7, "--importance", "l1", "-o", uneven)
    assert "does not load without hfcompress" in said()
    assert "heads" in said()
    assert "--plain" in said()
    run("shrink", models / "bert", "--flops", 0.9, "--importance", "l1", "--plain", "-o", plain)
    assert said() == f"Written to {plain}; it loads without hfcompress."
    run("prune", models / "bert", "--amount", 0.8, "-o", tmp_path / "pruned")
    assert "it loads without" in said()
    run("pack", tmp_path / "pruned", packed)
    assert f"packed: import hfcompress before, or write a plain one with: hfcompress unpack {packed} OUT" in said()
    run("unpack", packed, tmp_path / "unpacked")
    assert "it loads without" in said()
    run("pack", uneven, tmp_path / "both")
    run("unpack", tmp_path / "both", tmp_path / "still")
    assert "does not load without hfcompress" in said()
    distill = ("--student-layers", 1, "--data", data / "test.jsonl", *NUMBERS, "--max-steps", 1, "--report-to", "none")
    run("distill", models / "bert", *distill, "-o", tmp_path / "student")
    assert "it loads without" in said()


def test_a_budget_that_plain_shapes_do_not_meet_names_the_remedy(models, tmp_path, run):
    shrink = ("shrink", models / "bert", "--flops", 0.3, "--importance", "l1", "--plain", "--drop-layers", "0,")
    run(*shrink, "-o", tmp_path / "out", status=2)
    assert "drop layers" in run.error
    assert not (tmp_path / "out").exists()


WITHOUT = """
import sys
sys.modules["hfcompress"] = None
import torch
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
print(model(torch.tensor([[2, 3, 4]])).logits.tolist())
"""


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_plain_drops_layers_and_loads_without_hfcompress(architecture, data, tmp_path, run):
    source, out, reviews = tmp_path / "source", tmp_path / "out", write_reviews(data, tmp_path / "rows.csv")
    build(architecture, layers=6).save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    found = run("shrink", source, "--flops", 0.25, "--data", reviews, "--plain", "-o", out, "--json")
    assert f"Written to {out}; it loads without hfcompress." in run.error
    assert found["layers"][1] < 6
    assert found["flops"][1] <= 0.25 * found["flops"][0]
    done = subprocess.run([sys.executable, "-c", WITHOUT, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout)), load(out)(IDS).logits)


def test_weights_that_stay_are_kept_where_that_is_asked(models, data, tmp_path, run):
    reviews = write_reviews(data, tmp_path / "rows.csv")
    shrink = ("shrink", models / "bert", "--neurons", 0.5, "--data", reviews, "--json", "-o")
    found = run(*shrink, tmp_path / "kept", "--no-reconstruct")
    assert found["reconstruction"] is None
    assert run(*shrink, tmp_path / "solved")["reconstruction"]["logits_error"][0] > 0
    biases = [load(folder).bert.encoder.layer[0].output.dense.bias for folder in (models / "bert", tmp_path / "kept")]
    assert torch.equal(*biases)
