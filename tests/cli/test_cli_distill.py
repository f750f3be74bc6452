"""``hfcompress distill`` against the trainer in Python and plain loops, and how its options are parsed."""

import io
import json
import random
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from command_line import COLUMNS, contents, load, make_tokenizer, predict, read_reviews
from transformers import AutoTokenizer, BertConfig, BertModel

import hfcompress as hfc
from hfcompress_cli import main


@pytest.fixture(scope="module")
def distilled(models, data, tmp_path_factory):
    """A folder with a student in ``small``, and what was printed."""
    folder = tmp_path_factory.mktemp("distilled")
    command = ["distill", models / "bert", "--student-layers", 2, "--data", data / "train.csv", *COLUMNS]
    options = ["--eval-data", data / "test.jsonl", "--num_train_epochs", 10, "--learning-rate", 3e-3, "--alpha", 0.3]
    options += ["--label-loss", "cross_entropy", "--logging-steps", 20, "-o", folder / "small", "--json"]
    out, error = io.StringIO(), io.StringIO()
    before = contents(models)
    with redirect_stdout(out), redirect_stderr(error):
        assert main(list(map(str, command + options))) == 0
    assert contents(models) == before
    return folder, json.loads(out.getvalue()), error.getvalue()


def test_distill_saves_a_student_of_two_layers(distilled):
    folder, found, _ = distilled
    assert load(folder / "small").config.num_hidden_layers == 2
    assert found["examples"] == {"train": 40, "held_out": 25}


def test_distill_measures_teacher_and_student(distilled, models, data):
    folder, found, _ = distilled
    for name, where in (("teacher", models / "bert"), ("student", folder / "small")):
        assert found["models"][name]["accuracy"] == pytest.approx(predict(where, data)[1])
        assert found["models"][name]["parameters"] == sum(p.numel() for p in load(where).parameters())


def test_distill_trains_on_the_labels(distilled, data):
    assert predict(distilled[0] / "small", data)[1] == 1.0  # easy texts; the teacher guesses


def test_distill_reports_the_agreement(distilled, models, data):
    folder, found, _ = distilled
    logits = predict(models / "bert", data)[0], predict(folder / "small", data)[0]
    agreement = (logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean().item()
    assert found["evaluation"]["eval_agreement"] == pytest.approx(agreement)


def test_distill_logs_to_standard_error(distilled):
    assert "label_term" in distilled[2]  # the Trainer's log


def test_distill_leaves_no_checkpoints(distilled):
    folder = distilled[0]
    assert [one.name for one in folder.iterdir()] == ["small"]
    assert not any(one.is_dir() for one in (folder / "small").iterdir())


def test_distill_does_what_the_trainer_does(models, data, tmp_path, run):
    arguments = {
        "alpha": 0.7,
        "teacher_loss": "kl",
        "temperature": 2.0,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "seed": 5,
    }
    options = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = ["distill", *options, "--student", models / "gpt2", models / "bert", "--data", data / "test.jsonl"]
    run(*command, *COLUMNS, "--held-out", 0, "--max-length", 8, "-o", tmp_path / "out")
    assert "train_loss" in run.error

    own, other = (AutoTokenizer.from_pretrained(models / name) for name in ("gpt2", "bert"))
    own.pad_token = own.eos_token
    student, teacher = load(models / "gpt2"), load(models / "bert")
    student.config.pad_token_id = own.pad_token_id
    rows = read_reviews(data)
    rows = random.Random(5).sample(rows, len(rows))
    train = [{**own(row["review"]), "labels": int(row["sentiment"] == "YES"), "review": row["review"]} for row in rows]
    args = hfc.DistillationArguments(
        tmp_path / "training", **arguments, text_column="review", save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    trainer = hfc.DistillationTrainer(
        student, args, teacher=teacher, teacher_processing_class=other, train_dataset=train, processing_class=own
    )
    trainer.train()
    ids = torch.tensor([[2, 3, 4]])
    found = load(tmp_path / "out")
    assert torch.allclose(found(ids).logits, student.eval()(ids).logits, atol=1e-5)
    assert not torch.allclose(found(ids).logits, load(models / "gpt2")(ids).logits, atol=1e-3)


def test_a_teacher_without_a_padding_token_gets_one(models, data, tmp_path, run):
    command = ["distill", models / "gpt2", "--student", models / "bert", "--data", data / "test.jsonl"]
    run(*command, "--text-column", "review", "--alpha", 1, "--max-steps", 1, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_each_epoch_is_a_line(models, data, tmp_path, run):
    command = [
        "distill",
        models / "bert",
        "--student-layers",
        1,
        "--data",
        data / "test.jsonl",
        *COLUMNS,
        "--overwrite",
    ]
    run(*command, "--epochs", 2, "-o", tmp_path / "out")
    assert [line.split(",")[0][:13] for line in run.error.splitlines() if " loss " in line] == [
        "epoch 1: loss", "epoch 2: loss"
    ]  # fmt: skip
    run(*command, "--epochs", 2, "--logging-steps", 2, "-o", tmp_path / "out")
    assert run.error.count(": loss ") == 3  # of 6 updates


def test_checkpoints_stay_where_they_were_asked(models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student-layers", "0,3", "--data", data / "test.jsonl", *COLUMNS]
    checkpoints = ["--save-strategy", "steps", "--save-steps", 2, "--max-steps", 2, "--output-dir", tmp_path / "kept"]
    run(*command, *checkpoints, "-o", tmp_path / "out")
    assert (tmp_path / "kept" / "checkpoint-2").is_dir()


def test_with_alpha_1_no_labels_are_read(models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student-layers", "0,3", "--data", data / "test.jsonl", *COLUMNS]
    printed = run(*command, "--max-steps", 1, "--alpha", 1, "-o", tmp_path / "out")
    assert re.search(
        r"trained on 20 rows, measured on 5 others, \d of which.*; student and teacher agree on", printed, re.DOTALL
    )
    assert "accuracy" not in printed


@pytest.fixture
def body(tmp_path):
    """A folder of a BERT without a head."""
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "body")
    make_tokenizer().save_pretrained(tmp_path / "body")
    return tmp_path / "body"


def test_a_new_head_takes_the_labels_of_its_teacher(body, models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student", body, "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.id2label == {0: "NO", 1: "YES"}
    assert "has no trained classification head (classifier.bias, classifier.weight)" in run.error


def test_a_head_with_unnamed_labels_takes_the_teachers(models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student", models / "gpt2", "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    config = load(tmp_path / "out").config
    assert config.id2label == {0: "NO", 1: "YES"}
    assert config.label2id == {"NO": 0, "YES": 1}


@pytest.mark.parametrize("given", ["id2label", "label2id"])
def test_a_teacher_may_have_one_label_map(given, body, models, data, tmp_path, run):
    teacher = tmp_path / "teacher"
    shutil.copytree(models / "bert", teacher)
    config = json.loads((teacher / "config.json").read_text())
    config |= {"id2label": {"0": "YES", "1": "NO"}, "label2id": {"YES": "0", "NO": "1"}}
    del config["label2id" if given == "id2label" else "id2label"]
    (teacher / "config.json").write_text(json.dumps(config))
    command = ["distill", teacher, "--student", body, "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.id2label == {0: "YES", 1: "NO"}


def test_labels_that_contradict_each_other_end_the_command(models, data, tmp_path, run):
    teacher = tmp_path / "teacher"
    shutil.copytree(models / "bert", teacher)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"label2id": {"NO": 1, "YES": 0}}))
    command = ["distill", teacher, "--student", models / "gpt2", "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out", status=2)
    assert "have no plain meaning" in run.error
    assert not (tmp_path / "out").exists()


def test_labels_of_another_teacher_are_refused_untrained(models, data, tmp_path, run):
    command = ["distill", models / "gpt2", "--student", models / "bert", "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out", status=2)
    assert "of the data is not one of the model's, which are 'LABEL_0' (0), 'LABEL_1' (1)" in run.error
    assert "train_loss" not in run.error


def test_a_model_without_a_head_is_not_compared(body, data, run):
    run("compare", body, "--data", data / "test.jsonl", *COLUMNS, status=2)
    assert "fine-tune it first" in run.error


def test_what_a_mistyped_training_option_is_called(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["distill", "bert", "--student-layers", "2", "--data", "a.csv", "-o", "out", "--temprature", "2"])
    assert "unrecognized arguments: --temprature" in capsys.readouterr().err


def test_an_options_value_is_not_taken_for_the_teacher(tmp_path, run):
    options = ["--learning_rate", "3e-5", "--student-layers", "2", "--data", "./none.csv", "-o", tmp_path / "out"]
    run("distill", *options, "--fp16_full_eval", "False", "./teacher", status=2)
    assert "The file ./none.csv does not exist" in run.error


def test_no_training_argument_hides_an_option_of_ours(capsys):
    helps = []
    for option in ("--help-all", "--help"):
        with pytest.raises(SystemExit, match="0"):
            main(["distill", option])
        helps.append(capsys.readouterr().out)
    full, light = helps
    for option in {word.strip("[](),") for word in light.split() if word.strip("[](").startswith("--")}:
        assert option in full
    assert "of the teacher's layers" in " ".join(full.split())


def test_all_training_arguments_are_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["distill", "--help-all"])
    full = capsys.readouterr().out
    assert "--warmup_steps" in full
    assert "--relation_heads" in full
