"""The command as a whole: its exit status, its messages and its help."""

import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError

import datasets
import pytest
import transformers
from command_line import COLUMNS, VERBS, load

import hfcompress as hfc
from hfcompress_cli import main


@pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/full")
def test_results_that_cannot_be_printed_exit_with_1(models, capsys):
    with open("/dev/full", "w") as full, redirect_stdout(full):
        assert main(["report", str(models / "bert"), "--verbose"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hfcompress report: the results cannot be printed: ")
    assert error.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error(models, capsys):
    reader, writer = os.pipe()
    os.close(reader)  # as head does
    with open(writer, "w") as closed, redirect_stdout(closed):
        assert main(["report", str(models / "bert"), "--verbose"]) == 0
    assert capsys.readouterr().err == ""


def bad_inputs():
    distill = ["distill", "BERT", "--student-layers", "2", "--data", "TEST", *COLUMNS]
    return {
        "no directory": (["report", "./nowhere"], "There is no directory ./nowhere."),
        "no hub": (["report", "nobody/nothing"], "is not a directory, and cannot be loaded from the hub"),
        "no model in the folder": (["report", "EMPTY"], "does not load as a text classifier"),
        "amount": (["prune", "BERT", "--amount", "1.5"], "--amount 1.5 must be in [0, 1)"),
        "pattern": (["prune", "BERT", "--amount", "0.5", "--include", "nothing*"], "nothing*"),
        "nothing asked": (["shrink", "BERT"], "Nothing was asked"),
        "importance without data": (["shrink", "BERT", "--heads", "0.5", "--importance", "taylor"], "--data"),
        "layers": (["distill", "BERT", "--student-layers", "9", *distill[4:]], "--student-layers 9"),
        "no data": ([*distill[:5], "./none.csv", *COLUMNS], "The file ./none.csv does not exist"),
        "broken data": ([*distill[:5], "BROKEN", *COLUMNS], "cannot be read"),
        "column": ([*distill[:6]], "no column 'text'"),
        "alpha": ([*distill, "--alpha", "2"], "--alpha 2.0 must be in [0, 1]"),
        "training arguments": (
            [*distill, "--load-best-model-at-end", "--eval-strategy", "epoch"],
            "do not go together",
        ),
        "length": ([*distill, "--max-length", "1000"], "--max-length 1000"),
        "rows": ([*distill, "--rows", "0"], "--rows=0"),
        "teacher's length": (
            [*distill[:2], "--student", "GPT2", *distill[4:], "--teacher_max_length", "1000"],
            "--teacher-max-length 1000 must be between 1 and the 64 tokens",
        ),
        "labels": (
            ["compare", "GPT2", "--data", "TEST", *COLUMNS],
            "The label 'NO' of the data is not one of the model's",
        ),
        "device": (["compare", "BERT", "--device", "abacus"], "The device abacus cannot be used"),
        "twice": (["compare", "BERT", "BERT"], "name a model twice"),
        "no tokenizer": (["compare", "BARE", "--data", "TEST", *COLUMNS], "has no tokenizer"),
        "a page nowhere": (["compare", "BERT", "--html", "NOWHERE"], "there is no directory"),
        "a page for a folder": (["compare", "BERT", "--html", "EMPTY", "--overwrite"], "is a directory; name a file"),
        "packed into itself": (["pack", "BERT", "INSIDE"], "which is copied; name a folder outside of it"),
        "names and indices": (
            ["compare", "BERT", "--data", "MIXED"],
            "names of the model's, such as 'YES', and indices, such as '0'",
        ),
        "no model to pack": (["pack", "EMPTY", "OUT"], "is not a model: there is no config.json"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_exits_with_2_and_one_line(case, models, data, tmp_path, run):
    arguments, message = bad_inputs()[case]
    places = {
        "BERT": models / "bert",
        "GPT2": models / "gpt2",
        "TEST": data / "test.jsonl",
        "EMPTY": tmp_path / "empty",
        "BROKEN": tmp_path / "broken.parquet",
    }
    places |= {"BARE": tmp_path / "bare", "OUT": tmp_path / "out", "INSIDE": models / "bert" / "packed"}
    places |= {"NOWHERE": tmp_path / "none" / "page.html", "MIXED": tmp_path / "mixed.csv"}
    places["EMPTY"].mkdir()
    places["BROKEN"].write_text("not parquet")
    places["MIXED"].write_text("text,label\na film,YES\na film,0\n")
    if "BARE" in arguments:
        load(models / "bert").save_pretrained(places["BARE"])
    output = ["-o", tmp_path / "out"] if arguments[0] in ("prune", "shrink", "distill") else []
    assert run(*(places.get(one, one) for one in arguments), *output, status=2) == ""
    assert message in run.error
    lines = run.error.strip().splitlines()
    assert lines[-1].startswith(f"hfcompress {arguments[0]}: ")
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["shrink", "bert", "-o", "out", "--drop-layers", "some"],
        ["mend"],
        [],
        ["distill", "--alpha", "1"],
        ["prune", "bert", "-o", "out", "--amount", "20 per cent"],
        ["shrink", "bert", "-o", "out", "--flops", "half"],
        ["distill", "b", "--student-layers", "2", "--data", "a", "--eval-data", "b", "--held-out", "0.1", "-o", "out"],
    ],
)
def test_what_argparse_refuses_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*([verb] if verb else []), "--help"])
    assert stopped.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


ASK = """
import contextlib, io, json, sys
from hfcompress_cli import main

def ask(words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            status = f"{main(words.split())}, returned"
        except SystemExit as stopped:
            status = stopped.code
    heavy = {"torch", "transformers", "numpy", "hfcompress", "accelerate", "datasets"} & set(sys.modules)
    return {"status": status, "heavy": sorted(heavy), "out": out.getvalue(), "error": error.getvalue()}

print(json.dumps({words: ask(words) for words in json.loads(sys.argv[1])}))
"""
MISTYPED = ["prune", "prune bert -o out --amount 0.2 --epoch 2", "shrink bert -o out --flop 0.5"]
MISTYPED += ["compare bert --lenght 4", "mend"]


def test_help_imports_neither_torch_nor_transformers():
    asked = ["--help", "--version", *(f"{verb} --help" for verb in VERBS), *MISTYPED]
    done = subprocess.run([sys.executable, "-c", ASK, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert list(answers) == asked
    for words, answer in answers.items():
        assert (answer["status"], answer["heavy"]) == (2 if words in MISTYPED else 0, []), words
        printed, other = (answer["error"], answer["out"]) if words in MISTYPED else (answer["out"], answer["error"])
        assert printed.startswith("hfcompress 0." if words == "--version" else "usage: hfcompress"), words
        assert other == "", words


def test_the_version_needs_no_metadata(monkeypatch, capsys):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"hfcompress {hfc.__version__}\n"


def test_the_program_exits_with_its_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hfcompress", "report", "nowhere/", "--json"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("hfcompress_cli", run_name="__main__")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "hfcompress report: There is no directory nowhere/.\n"


def test_logging_is_afterwards_as_it_was(models, tmp_path, run):
    (tmp_path / "broken.parquet").write_text("not parquet")
    before = [library.get_verbosity() for library in (transformers.logging, datasets.logging)]
    run("compare", models / "bert", "--data", tmp_path / "broken.parquet", status=2)
    assert [library.get_verbosity() for library in (transformers.logging, datasets.logging)] == before
