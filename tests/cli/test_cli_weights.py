"""Weights of classes and examples given to ``hfcompress distill``, against the trainer in Python."""

import csv
import json

import pytest
import torch
from command_line import COLUMNS, load, read_reviews
from transformers import AutoTokenizer

import hfcompress as hfc
from hfcompress_cli.application import _parser
from hfcompress_cli.held_out import read_split, split_by_label

WEIGHTS = [round(0.1 + n % 7, 1) for n in range(25)]


def write(path, reviews, column):
    """Write the reviews with a column of weights, as text in a csv and as numbers in a jsonl."""
    made = [{**row, column: weight} for row, weight in zip(reviews, WEIGHTS, strict=True)]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, made[0])
            writer.writeheader()
            writer.writerows(made)
    else:
        path.write_text("\n".join(map(json.dumps, made)))
    return path


@pytest.mark.parametrize(
    ("held_out", "suffix", "column", "given", "read"),
    [
        (0, "csv", "weight", "balanced", "balanced"),
        (5, "csv", "weight", "balanced", "balanced"),
        (5, "jsonl", "importance", "[1.0, 3.0]", [1.0, 3.0]),
        (0, "jsonl", "importance", None, None),
    ],
    ids=str,
)
def test_distill_weighs_as_the_trainer_does(held_out, suffix, column, given, read, models, data, tmp_path, run):
    rows = read_reviews(data)
    table = write(tmp_path / f"reviews.{suffix}", rows, column)
    options = [] if given is None else ["--class-weights", given]
    options += [] if column == "weight" else ["--weight-column", column]
    options += ["--label-loss", "cross_entropy", "--max-steps", 3, "--learning-rate", 1e-3, "--seed", 5]
    command = ["distill", models / "bert", "--student", models / "bert", "--data", table, *COLUMNS, *options]
    run(*command, "--held-out", held_out / 25, "-o", tmp_path / "out")

    tokenizer, student = AutoTokenizer.from_pretrained(models / "bert"), load(models / "bert")
    weighted = [{**row, "weight": weight} for row, weight in zip(rows, WEIGHTS, strict=True)]
    drawn, _ = split_by_label(weighted, held_out / 25, 5, "sentiment")
    train = [
        {**tokenizer(row["review"]), "labels": int(row["sentiment"] == "YES"), "weight": row["weight"]} for row in drawn
    ]
    args = hfc.DistillationArguments(
        tmp_path / "training",
        label_loss="cross_entropy",
        class_weights=read,
        max_steps=3,
        learning_rate=1e-3,
        seed=5,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    hfc.DistillationTrainer(
        student, args, teacher=load(models / "bert"), train_dataset=train, processing_class=tokenizer
    ).train()
    ids = torch.tensor([[2, 3, 4]])
    found = load(tmp_path / "out")(ids).logits
    assert torch.allclose(found, student.eval()(ids).logits, atol=1e-6)
    assert not torch.allclose(found, load(models / "bert")(ids).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class-weights", "[1.0]"], "list 2, in the order of its config's id2label"),
        (["--class-weights", "even"], "--class-weights even must be 'balanced' or a list"),
        (["--weight-column", "wieght"], "no column 'wieght'"),
        (["--weight-column", "number"], "'label' in the column 'number'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_untrained(options, message, models, data, tmp_path, run):
    rows = [{**row, "number": "label" if n == 20 else 1} for n, row in enumerate(read_reviews(data))]
    table = tmp_path / "reviews.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    command = ["distill", models / "bert", "--student-layers", 2, "--data", table, *COLUMNS, "--held-out", 0]
    run(*command, *options, "-o", tmp_path / "out", status=2)
    assert message in run.error
    assert "train_loss" not in run.error
    assert not (tmp_path / "out").exists()


def said_of_weights(arguments):
    try:
        read_split(arguments, "sentiment", "weight", 42)
    except hfc.CompressionError as error:
        return str(error)
    return ""


def test_a_bad_weight_is_named_by_its_place_in_the_file(models, data, tmp_path, run):
    """In whatever order rows are trained on; one that is held out weighs nothing, so its cell may be empty."""
    reviews, table = read_reviews(data), tmp_path / "reviews.jsonl"
    command = ["finetune", models / "bert", "--data", table, *COLUMNS, "--max-steps", 1, "-o", tmp_path / "out"]
    refused = 0
    for bad in range(len(reviews)):
        rows = [{**row, "weight": "" if n == bad else 2} for n, row in enumerate(reviews)]
        table.write_text("\n".join(map(json.dumps, rows)))
        said = said_of_weights(_parser().parse_args([str(one) for one in command[:-4]] + ["-o", "out"]))
        refused += bool(said)
        assert said.startswith(
            f"Line {bad + 1} of {table} has '' in the column 'weight', which is no weight" * bool(said)
        )
    assert refused == len(reviews) - len(reviews) // 5
    run(*command, "--weight-column", "points", status=2)
    assert "reviews.jsonl has no column 'points'; name the one with the rows' weights" in run.error


def test_a_column_of_that_name_can_be_left_out(models, data, tmp_path, run):
    rows = [{**row, "weight": "heavy"} for row in read_reviews(data)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["distill", models / "bert", "--student-layers", 2, "--data", tmp_path / "reviews.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out", status=2)
    assert f" of {tmp_path / 'reviews.jsonl'} has 'heavy' in the column 'weight'" in run.error
    assert "or say --weight-column '' to weigh all rows the same" in run.error
    run(*command, "--max-steps", 1, "--weight-column", "", "-o", tmp_path / "out")
