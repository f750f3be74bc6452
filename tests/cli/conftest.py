"""Tiny models and data for the tests of the command, and a way to run it."""

import csv
import json

import pytest
from architectures import build
from command_line import WORDS, make_tokenizer

from hfcompress_cli import main


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a BERT with four layers and of a GPT-2 with other ids and no token for padding."""
    folder = tmp_path_factory.mktemp("models")
    build("bert", layers=4, id2label={0: "NO", 1: "YES"}, label2id={"NO": 0, "YES": 1}).save_pretrained(folder / "bert")
    make_tokenizer().save_pretrained(folder / "bert")
    gpt2 = build("gpt2")
    gpt2.config.pad_token_id = None
    gpt2.save_pretrained(folder / "gpt2")
    make_tokenizer(WORDS[::-1], pad=None).save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Forty labelled reviews as train.csv, and the first of them, with labels as names and numbers, as test.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        (f"{WORDS[n % 2]} {'film ' * (n % 4)}{WORDS[2 + n % 2 if n % 3 else 4 + n % 2]}", int(n % 3 > 0))
        for n in range(40)
    ]
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "sentiment"), *rows])
    test = [{"review": text, "sentiment": "YES" if label else "NO", "number": label} for text, label in rows[:25]]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, test)))
    return folder


@pytest.fixture
def run(capsys):
    """Run the command; return its standard output, as JSON where it is that. ``run.error`` is its standard error."""

    def call(*arguments, status=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        printed = capsys.readouterr()
        call.error = printed.err
        return json.loads(printed.out) if "--json" in arguments else printed.out

    return call
