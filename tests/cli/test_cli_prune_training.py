"""``hfcompress prune --data``: pruned, and trained with the zeros kept."""

import pytest
import torch
from command_line import COLUMNS, contents, load

import hfcompress as hfc


@pytest.mark.parametrize("schedule", [None, "one-shot", "linear", "cubic"])
def test_the_zeros_are_exact_after_the_training(schedule, models, data, tmp_path, run):
    asked = [] if schedule is None else ["--schedule", schedule]
    before = contents(models)
    command = ["prune", models / "bert", "--amount", "40%", "--data", data / "train.csv", *COLUMNS, "--epochs", 2]
    found = run(*command, *asked, "--learning-rate", 1e-2, "-o", tmp_path / "out", "--json")
    made, old = load(tmp_path / "out"), load(models / "bert")
    report = hfc.sparsity_report(made)
    assert report.zeros == round(0.4 * report.weights) == found["zeros"]
    assert not torch.equal(made.classifier.weight, old.classifier.weight)  # it was trained
    assert set(found["evaluation"]) == {"before", "trained"} | ({"pruned"} if schedule is None else set())
    assert contents(models) == before
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_patterns_choose_what_is_pruned_and_kept(models, data, tmp_path, run):
    command = ["prune", models / "bert", "--amount", 0.4, "--data", data / "train.csv", *COLUMNS, "--max-steps", 2]
    run(*command, "--include", "*attention*", "-o", tmp_path / "out")
    made = load(tmp_path / "out")
    report = hfc.sparsity_report(made, include="*attention*")
    assert report.zeros == round(0.4 * report.weights)
    assert hfc.sparsity_report(made, exclude="*attention*").zeros == 0


def test_a_training_needs_data_and_a_trained_head(models, data, tmp_path, run):
    for option in (["--epochs", 2], ["--schedule", "cubic"], ["--eval-data", data / "test.jsonl"]):
        run("prune", models / "bert", "--amount", 0.5, *option, "-o", tmp_path / "out", status=2)
        assert f"{option[0]} is for a training: name the texts to train on with --data" in run.error
    load(models / "bert").base_model.save_pretrained(tmp_path / "body")
    command = ["prune", tmp_path / "body", "--amount", 0.5, "--data", data / "train.csv", *COLUMNS]
    run(*command, "-o", tmp_path / "out", status=2)
    assert "fine-tune it first: hfcompress finetune" in run.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("amount", "zeros"), [("20%", 0.2), ("12.5 %", 0.125), ("0.3", 0.3), ("0%", 0), ("1e-1", 0.1)])
def test_an_amount_may_be_a_percentage(amount, zeros, models, tmp_path, run):
    found = run("prune", models / "bert", "--amount", amount, "-o", tmp_path / "out", "--json")
    assert found["zeros"] == round(zeros * found["weights"])
    assert "per cent" not in run.error


@pytest.mark.parametrize("amount", [1, 20, 100])
def test_a_small_number_of_weights_is_asked_about(amount, models, tmp_path, run):
    found = run("prune", models / "bert", "--amount", amount, "-o", tmp_path / "out", "--json")
    assert found["zeros"] == amount
    assert f"Did you mean {amount} per cent? That is --amount {amount}%." in run.error


def test_a_small_number_is_asked_about_in_a_small_model_too(models, tmp_path, run):
    asked = ["--include", "bert.pooler.dense", "--amount"]  # 1,024 weights
    run("prune", models / "bert", *asked, 20, "-o", tmp_path / "out")
    assert "warning: --amount 20 is 20 of 1,024 weights. Did you mean 20 per cent?" in run.error


def test_a_large_number_of_weights_is_not_asked_about(models, tmp_path, run):
    run("prune", models / "bert", "--amount", 1000, "-o", tmp_path / "out")
    assert "warning" not in run.error


@pytest.mark.parametrize("amount", ["20.0", "-5%", "-.5"])
@pytest.mark.parametrize("trains", [False, True])
def test_an_amount_that_is_no_share_says_how_one_is_written(amount, trains, models, data, tmp_path, run):
    training = ["--data", data / "train.csv", *COLUMNS] if trains else []
    run("prune", models / "bert", "--amount", amount, *training, "-o", tmp_path / "out", status=2)
    assert "must be in [0, 1): the fraction of weights that is zero afterwards, as 0.2 or 20%" in run.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("amount", ["100%", "150%", "-1", "1.5"])
def test_an_impossible_amount_is_refused_as_an_option(amount, models, tmp_path, run):
    run("prune", models / "bert", f"--amount={amount}", "-o", tmp_path / "out", status=2)
    assert "--amount" in run.error
    assert "amount=" not in run.error
