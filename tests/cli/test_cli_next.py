"""The next command to type, as a verb prints it: it can be typed, fits 80 columns, and leads on."""

import json
import shlex

import pytest
import torch
from command_line import COLUMNS, WORDS, all_next_of, load, make_tokenizer, next_of
from transformers import BertConfig, BertModel

import hfcompress as hfc
from hfcompress.errors import CompressionError
from hfcompress_cli import held_out, training
from hfcompress_cli.held_out import read_split
from hfcompress_cli.outputs import free_name, next_command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a space in its models' names."""
    monkeypatch.chdir(tmp_path)
    config = BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained("my base")
    make_tokenizer().save_pretrained("my base")
    return tmp_path


def test_from_a_base_model_each_verb_names_the_next(here, data, run):
    (here / "my train.csv").write_bytes((data / "train.csv").read_bytes())
    first = ["finetune", "my base/", "--data", "my train.csv", *COLUMNS, "--epochs", 1, "-o", "my teacher/"]
    following = next_of(run(*first))
    assert following[:2] == ["shrink", "my teacher/"]
    following = next_of(run(*following, "--rows", 20))
    assert following[:4] == ["distill", "my teacher/", "--student", "my teacher-half/"]
    run(*following, "--max-steps", 2)
    assert sorted(one.name for one in here.iterdir()) == [
        "my base", "my teacher", "my teacher-half", "my teacher-half-distilled", "my train.csv",
    ]  # fmt: skip


def test_the_ladder_is_measured_with_rows_that_the_training_held_out(here, data, run, monkeypatch):
    drawn = []

    def read(*arguments):
        split = read_split(*arguments)
        parts = split.table, split.rows, split.eval_table, split.held_out
        drawn.append([[row["review"] for row in part] for part in parts])
        return split

    def compress(*arguments, **settings):
        raise CompressionError("is not run here.")

    monkeypatch.setattr(training, "read_split", read)
    monkeypatch.setattr(held_out, "read_split", read)
    monkeypatch.setattr(hfc, "compress", compress)
    how = ["--rows", 30, "--held-out", 0.3, "--seed", 7, "--class-weights", "[1, 2]", "--epochs", 1]
    (first,) = all_next_of(run("finetune", "my base", "--data", data / "train.csv", *COLUMNS, *how, "-o", "teacher"))
    assert first[:2] == ["compress", "teacher"]
    assert json.loads(first[first.index("--class-weights") + 1]) == [1, 2]
    run(*first, status=2)
    assert "is not run here" in run.error
    assert drawn[0] == drawn[1]
    assert [len(part) for part in drawn[0]] == [30, 21, 30, 9]
    how = ["--eval-data", data / "train.csv", "--epochs", 1]
    first, _ = all_next_of(run("finetune", "my base", "--data", data / "train.csv", *COLUMNS, *how, "-o", "other"))
    run(*first, status=2)
    assert drawn[2] == drawn[3]
    assert [len(part) for part in drawn[2]] == [40] * 4


def test_stars_are_read_as_names_by_the_next_commands_too(here, run, monkeypatch):
    def compress(*arguments, **settings):
        raise CompressionError("is not run here.")

    monkeypatch.setattr(hfc, "compress", compress)
    for name, most in (("train.csv", 5), ("eval.csv", 4)):  # no text to measure with has the last label
        lines = [f"{WORDS[n % 8]} {WORDS[n % 7]} film,{n % most + 1}" for n in range(40)]
        (here / name).write_text("\n".join(["text,label", *lines]))
    how = ["--data", "train.csv", "--eval-data", "eval.csv", "--max-steps", 2]
    ladder, smaller = all_next_of(run("finetune", "my base", *how, "-o", "stars"))
    run(*ladder, status=2)
    assert "is not run here" in run.error
    student = next_of(run(*smaller))
    run(*student, "--max-steps", 1)
    assert list(load("stars-half-distilled").config.id2label.values()) == ["1", "2", "3", "4", "5"]


def test_after_pruning_comes_a_training_and_then_packing(here, models, data, run):
    following = next_of(run("prune", models / "bert", "--amount", "30%", "--exclude", "*pooler*", "-o", "p"))
    assert following[following.index("--exclude") + 1] == "*pooler*"
    following[following.index("FILE.csv")] = str(data / "train.csv")
    following = next_of(run(*following, *COLUMNS))
    assert following == ["pack", "p-trained/", "p-trained-packed/"]
    run(*following)
    (here / "my copy").symlink_to("p-trained")
    run("pack", "my copy", "my packed")
    command = run.error.rstrip(".\n").partition("with: hfcompress ")[2]
    assert shlex.split(command) == ["unpack", "my packed", "OUT"]
    zeros = [(load(here / name).bert.encoder.layer[0].output.dense.weight == 0).sum() for name in ("p", "p-trained")]
    assert zeros[0] == zeros[1] > 0


@pytest.mark.parametrize("verb", [["prune", "my base", "--amount", "0.2"], ["shrink", "my base", "--heads", "0.5"]])
def test_a_base_model_is_trained_next(verb, here, run):
    assert next_of(run(*verb, "-o", "smaller"))[:2] == ["finetune", "smaller"]


def test_texts_without_labels_are_distilled_on_logits_alone(here, models, data, run):
    (here / "texts.csv").write_text("text\n" + "a good film\nso bad\n" * 20)
    following = next_of(run("shrink", models / "bert", "--heads", 0.25, "--data", "texts.csv", "-o", "half"))
    assert following[-4:-2] == ["--alpha", "1"]
    run(*following, "--max-steps", 1)


def test_long_and_odd_names_stay_in_one_piece():
    names = ["a" * 60, "b c" * 30, "it's", "$HOME", ""]
    command = next_command("compare", *([one] for one in names))
    assert shlex.split(command.replace("\\\n", ""))[2:] == names
    assert all(len(line) <= 80 or line.count(" ") > 4 for line in command.splitlines())


def test_a_name_that_is_free_is_proposed(tmp_path, monkeypatch):
    (tmp_path / "a-half").mkdir()
    assert free_name(f"{tmp_path}/a/", "half") == f"{tmp_path}/a-half-2/"
    assert free_name(f"{tmp_path}/b", "half") == f"{tmp_path}/b-half/"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert free_name(".", "half") == free_name("./", "half") == f"{tmp_path}/here-half/"
    assert free_name("../here", "half") == free_name("../here/.", "half") == "../here-half/"
