"""``hfcompress compress``: from a folder and a file of texts to a ladder."""

import json
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import COLUMNS, contents, load, next_of, read_reviews
from stopwatch import time_by_flops
from transformers import AutoTokenizer, TrainingArguments

import hfcompress as hfc
from hfcompress.errors import CompressionError
from hfcompress.storage.model_card import MARK
from hfcompress_cli import application
from hfcompress_cli.commands import compress as command
from hfcompress_cli.commands.compress import put_back, set_aside
from hfcompress_cli.held_out import read_split
from hfcompress_cli.tables import Row

SHORT = ("--epochs", 1, "--speedup", "1.5,2.5", "--batch-size", 4)


@pytest.fixture(autouse=True)
def stopwatch(monkeypatch):
    time_by_flops(monkeypatch)


def test_compress_writes_a_ladder_and_goes_on(run, models, data, tmp_path):
    before = contents(models)
    texts = ["--data", data / "train.csv", "--eval-data", data / "test.jsonl", *COLUMNS]
    command = ["compress", models / "bert", *texts, *SHORT, "-o", tmp_path / "ladder"]
    found = run(*command, "--json")
    assert contents(models) == before
    assert list(found["rungs"]) == ["1.5x", "2.5x"]
    assert found == json.loads(json.dumps(found))
    reviews = read_reviews(data)
    for name, rung in found["rungs"].items():
        folder = tmp_path / "ladder" / name
        assert rung["measured"]["parameters"] == sum(p.numel() for p in load(folder).parameters())
        assert rung["measured"]["examples"] == len(reviews) - len(reviews) // 3
        assert AutoTokenizer.from_pretrained(folder)("good")["input_ids"]
    assert "<svg" in (tmp_path / "ladder" / "index.html").read_text()
    measured = [json.loads(line) for line in (tmp_path / "ladder" / "measured.jsonl").read_text().splitlines()]
    assert len(measured) == rung["measured"]["examples"]
    assert re.fullmatch(r"Line \d+ of .*test\.jsonl", measured[0].pop("source"))
    assert measured[0]["review"] in {row["review"] for row in reviews}
    (tmp_path / "ladder" / ".replaced").mkdir()  # as if --overwrite had been killed
    for name in ("ladder.json", "1.5x", "2.5x"):
        (tmp_path / "ladder" / name).rename(tmp_path / "ladder" / ".replaced" / name)
    table = run(*command)  # of what is done
    assert table.startswith("rung")
    assert f"{found['rungs']['2.5x']['speedup']['ratio']:.2f}x" in table
    again = run(*next_of(table, 300), "--json")
    rungs = [found["rungs"]["1.5x"]["original"], *(one["measured"] for one in found["rungs"].values())]
    for one, rung in zip(again.values(), rungs, strict=True):
        assert one["accuracy"] == rung["accuracy"]
        assert [one["passes"][0][name] for name in ("batch_size", "tokens")] == [4, rung["passes"][0]["tokens"]]
    run(*command, "--seed", 1, status=2)
    said = run.error.replace("\n", " ")
    assert "other arguments (--seed 1, there 42); name another --output, or remove that one." in said
    written = contents(tmp_path / "ladder")
    run(*command, "--speedup", "0.5", "--overwrite", status=2)
    assert contents(tmp_path / "ladder") == written


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--speedup", "fast"), "is no list of numbers such as 2,4,10"),
        (("--speedup", "0.5"), "must be a number above 1"),
        (("--epochs", 0), "must be a finite number above 0"),
        (("--epochs", "inf"), "--epochs inf must be a finite number above 0"),
        (("--weight-column", COLUMNS[1]), f"--weight-column {COLUMNS[1]} is the column of the "),
        (("--max-drop", 2), "--max-drop 2"),
        (("--max-drop", "200%"), "--max-drop 2"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(asked, message, run, models, data, tmp_path, capsys):
    command = ["compress", models / "bert", "--data", data / "train.csv", *COLUMNS, *asked, "-o", tmp_path / "ladder"]
    if asked == ("--speedup", "fast"):
        with pytest.raises(SystemExit):
            run(*command)
        assert message in capsys.readouterr().err
    else:
        run(*command, status=2)
        assert message in run.error
    assert not (tmp_path / "ladder").exists()


def test_a_vocabulary_of_the_texts(run, models, data, tmp_path):
    lines = (data / "train.csv").read_text().splitlines()
    weighed = [f"{lines[0]},points", *(f"{line},{n % 3}" for n, line in enumerate(lines[1:]))]
    (tmp_path / "train.csv").write_text("\n".join(weighed))
    texts = ["--data", tmp_path / "train.csv", "--eval-data", data / "test.jsonl", *COLUMNS]
    short = ("--epochs", 1, "--speedup", "1.5", "--batch-size", 4, "--max-drop", "90%", "--vocabulary")
    short = (*short, "--weight-column", "points", "--class-weights", "balanced")
    found = run("compress", models / "bert", *texts, *short, "-o", tmp_path / "ladder", "--json")
    before, after = (len(AutoTokenizer.from_pretrained(one)) for one in (models / "bert", tmp_path / "ladder" / "1.5x"))
    assert after < before
    assert found["rungs"]["1.5x"]["recipe"].startswith(f"of original; {after} of {before} tokens; ")
    assert load(tmp_path / "ladder" / "1.5x").config.vocab_size == after


def test_a_folder_without_a_ladder_is_left_alone(run, models, data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    command = ["compress", models / "bert", "--data", data / "train.csv", *COLUMNS, "-o", tmp_path]
    for more in ([], ["--overwrite"]):
        run(*command, *more, status=2)
        assert "holds no ladder" in run.error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def a_ladder(folder):
    """Write what looks like a ladder, beside a file of the user's, and return what is there."""
    (folder / "2x").mkdir(parents=True)
    written = {"2x/README.md": MARK, "ladder.json": '{"rungs": [{"name": "2x"}]}', "notes.txt": "mine"}
    written |= {"index.html": "<table>", "measured.jsonl": "{}"}
    for name, text in written.items():
        (folder / name).write_text(text)
    return contents(folder)


@pytest.mark.parametrize("begun", [None, "not whole", '{"rungs": [], "ended": false}', '{"rungs": [], "ended": true}'])
def test_a_ladder_comes_back_if_another_one_has_no_model(begun, tmp_path):
    before = a_ladder(tmp_path)
    with set_aside(tmp_path):
        assert [one.name for one in tmp_path.iterdir() if one.name != ".replaced"] == ["notes.txt"]
        if begun is not None:
            (tmp_path / "ladder.json").write_text(begun)
            for name in ("2x", "4.5x"):  # saved, and the process ended before that was noted
                (tmp_path / name).mkdir()
                (tmp_path / name / "README.md").write_text(MARK)
    assert contents(tmp_path) == before


def test_a_ladder_is_replaced_by_one_that_has_a_model(tmp_path):
    a_ladder(tmp_path)
    text = '{"rungs": [{"name": "4x"}], "ended": false}'
    with set_aside(tmp_path):
        (tmp_path / "4x").mkdir()
        (tmp_path / "ladder.json").write_text(text)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["4x", "ladder.json", "notes.txt"]
    assert (tmp_path / "ladder.json").read_text() == text


def test_a_ladder_whose_successor_cannot_be_reached_stays(run, models, data, tmp_path):
    command = ["compress", models / "bert", "--data", data / "train.csv", *COLUMNS, *SHORT, "-o", tmp_path / "ladder"]
    run(*command, "--speedup", 1.5)
    before = contents(tmp_path / "ladder")
    assert "900x: cannot be reached" in run(*command, "--speedup", 900, "--overwrite")
    assert "ladder is as it was: no model of another ladder was done." in run.error
    assert contents(tmp_path / "ladder") == before


def killed_after(moves, patch):
    """Let the process be killed at the folder, or file, that would be moved after so many."""
    moved, rename = [], Path.rename

    def move(self, target):
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(self)
        return rename(self, target)

    patch.setattr(Path, "rename", move)
    return moved


@pytest.mark.parametrize("put_back_moves", [0, 1, 2])
@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_ladder_that_was_set_aside_comes_back_after_a_kill(moves, put_back_moves, tmp_path):
    """Also where the process that puts it back is killed: no model of the old ladder is taken for a new one."""
    before = a_ladder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        moved = killed_after(moves, patch)
        patch.setattr(command, "put_back", lambda output: None)  # the process is gone
        with pytest.raises(KeyboardInterrupt), set_aside(tmp_path):
            raise KeyboardInterrupt
    assert len(moved) == moves
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        killed_after(put_back_moves, patch)
        put_back(tmp_path)
    put_back(tmp_path)
    assert contents(tmp_path) == before


def test_an_interrupted_overwrite_says_which_ladder_is_there(tmp_path):
    text = ["compress", "model", "--data", "data.csv", "--overwrite", "-o", str(tmp_path)]
    arguments = application._parser().parse_args(text)
    assert application._what_was_written(arguments, None) == "nothing was written"
    (tmp_path / "ladder.json").write_text("{}")
    before = application._identity(arguments)
    with set_aside(tmp_path):  # and no other one has begun
        pass
    assert application._what_was_written(arguments, before) == f"the ladder in {tmp_path} is as it was"
    (tmp_path / "new").write_text("{}")
    (tmp_path / "new").replace(tmp_path / "ladder.json")
    said = application._what_was_written(arguments, before)
    assert said.endswith("and the same command without --overwrite goes on from there")


def test_rows_and_classes_are_weighed_as_a_training_weighs_them(run, models, data, tmp_path, monkeypatch):
    seen = []

    def watch(model, rows, *, args, **settings):
        seen.append(([row.get("weight") for row in rows], args.weight_column, args.class_weights))
        raise CompressionError("is not run here.")

    monkeypatch.setattr(hfc, "compress", watch)
    lines = (data / "train.csv").read_text().splitlines()
    file = tmp_path / "train.csv"
    file.write_text("\n".join([f"{lines[0]},weight", *(f"{line},{n % 3}" for n, line in enumerate(lines[1:]))]))
    (tmp_path / "more.csv").write_text("review\nso good\n")
    command = ["compress", models / "bert", "--data", file, *COLUMNS, "-o", tmp_path / "ladder"]
    run(*command, "--class-weights", "balanced", "--unlabelled", tmp_path / "more.csv", status=2)
    run(*command, "--weight-column", "", "--class-weights", "[1, 2]", status=2)
    (weights, *first), (no_weights, *second) = seen
    assert {*weights[:-1]} == {"0", "1", "2"}
    assert (weights[-1], first) == (None, ["weight", "balanced"])
    assert ({*no_weights}, second) == ({None}, [None, [1.0, 2.0]])


def test_a_column_of_labels_weighs_no_rows(run, models, data, tmp_path, monkeypatch):
    seen = []

    def watch(model, rows, *, args, **settings):
        seen.append((args.weight_column, "weight" in rows[0]))
        raise CompressionError("is not run here.")

    monkeypatch.setattr(hfc, "compress", watch)
    text = (data / "train.csv").read_text().replace("sentiment", "weight", 1)
    (tmp_path / "train.csv").write_text(text)
    columns = ["--text-column", "review", "--label-column", "weight"]
    command = [models / "bert", "--data", tmp_path / "train.csv", *columns]
    run("compress", *command, "-o", tmp_path / "ladder", status=2)
    assert seen == [(None, False)]
    assert "weighed" not in run.error
    run("finetune", *command, "--epochs", 1, "-o", tmp_path / "out")
    run("distill", *command, "--student-layers", 1, "--epochs", 1, "-o", tmp_path / "student")
    assert "weighed" not in run.error
    other = [*command[:-2], "--label-column", "weight", "--weight-column", "review"]
    for verb in ("finetune", "distill"):
        more = ["--student-layers", 1] if verb == "distill" else []
        run(verb, *other, *more, "-o", tmp_path / "other", status=2)
        assert "--weight-column review is the column of the texts; name another, or '' for none." in run.error


def test_the_command_that_goes_on_behind_an_overwrite_is_said(run, models, data, tmp_path):
    command = ["compress", models / "bert", "--data", data / "train.csv", *COLUMNS, *SHORT, "-o", tmp_path / "ladder"]
    run(*command, "--time-limit", 1e-6, "--overwrite")
    assert "The same command without --overwrite goes on from there." in run.error
    run(*command, "--time-limit", 1e-6)
    assert "without --overwrite" not in run.error


def test_a_delimiter_may_be_of_unlabelled_texts_alone(run, models, data, tmp_path):
    (tmp_path / "more.csv").write_text("review;id\nso good;1\n")
    texts = ["--data", data / "test.jsonl", "--unlabelled", tmp_path / "more.csv", "--delimiter", ";", *COLUMNS]
    run("compress", models / "bert", *texts, "--time-limit", 1e-6, "-o", tmp_path / "ladder")


def test_what_is_asked_of_the_models_reaches_compress(run, models, data, tmp_path, monkeypatch):
    seen = []

    def watch(model, rows, **settings):
        seen.append(settings)
        raise CompressionError("is not run here.")

    monkeypatch.setattr(hfc, "compress", watch)
    command = ["compress", models / "bert", "--data", data / "train.csv", *COLUMNS, "-o", tmp_path / "ladder"]
    options = ["--speedup", "2,3", "--max-drop", "2%", "--runtime", "onnx-int8", "--device", "cpu", "--time-limit", 1.5]
    options += ["--batch-size", 3, "--length", 7, "--max-length", 9, "--vocabulary", "--seed", 5]
    asked = {"speedup": [2, 3], "max_drop": 0.02, "runtime": "onnx-int8", "device": "cpu", "time_limit": 1.5}
    asked |= {"batch_size": 3, "length": 7, "max_length": 9, "vocabulary": True, "seed": 5}
    usual = dict.fromkeys(asked) | {"runtime": "torch", "batch_size": 16, "vocabulary": False, "seed": 42}
    run(*command, *options, status=2)
    run(*command, status=2)
    assert [{name: one[name] for name in asked} for one in seen] == [asked, usual]


def test_rows_are_written_as_another_verb_reads_them(models, tmp_path):
    """Whatever a column is called, and though the data have their classes in another order."""
    model, file = load(models / "bert"), tmp_path / "measured.jsonl"
    rows = [Row.make({"source": "a film", "label": 0}.items(), "Row 3"), Row.make({"label": 1}.items(), "Row 4")]
    for row in rows:
        row.class_names = {"label": [model.config.id2label[1], model.config.id2label[0]]}
    command.write_rows(rows, "label", model, None, file)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert written == [
        {"source": "a film", "label": model.config.id2label[1]},
        {"source": "Row 4", "label": model.config.id2label[0]},
    ]
    command.write_rows([], "label", model, None, file)
    assert file.read_text() == ""


def test_a_page_of_another_ladder_does_not_stay(tmp_path, monkeypatch):
    def to_html():
        raise ImportError("no matplotlib")

    (tmp_path / "index.html").write_text("<table>")
    command.write_page(SimpleNamespace(to_html=to_html), tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_the_rows_that_measure_are_those_that_finetune_held_out(data):
    """So that the accuracies are of rows that the model was not trained on."""
    parts = []
    for verb in ("finetune", "distill", "compress"):
        more = ["--student-layers", 1] if verb == "distill" else []
        text = [verb, "model", *more, "--data", data / "train.csv", *COLUMNS, "-o", "out"]
        arguments = application._parser().parse_args([str(word) for word in text])
        seed = arguments.seed if verb == "compress" else TrainingArguments.seed
        split = read_split(arguments, arguments.label_column, None, seed)
        parts.append((split.rows, split.held_out))
        if verb == "distill":  # on logits alone
            split = read_split(arguments, None, None, seed, drawn_by=arguments.label_column)
            parts.append((split.rows, split.held_out))
    assert parts[0] == parts[1] == parts[2] == parts[3]
    assert len(parts[0][1]) == round(0.2 * (len(parts[0][0]) + len(parts[0][1])))
