"""Messages name the options of the command, and not the arguments of Python's functions."""

import argparse
import re

import pytest
from command_line import COLUMNS

from hfcompress_cli.application import _parser
from hfcompress_cli.messages import name_options

GIVEN = argparse.Namespace(
    verb="shrink", model="bert", data="a.csv", flops=0.5, heads=0.5, drop_layers=0, plain=True, importance="obs",
    include=None, exclude=None, batch_size=16, output="flops=2", label_column="drop_layers", teacher_loss="mse",
    student_layers=None, int8=None, bf16=False, eval_data="./my dataset v2/a.csv",
)  # fmt: skip


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("flops=1.5 must be in (0, 1): the share.", "--flops 1.5 must be in (0, 1): the share."),
        ("give heads=, flops= or drop_layers=.", "give --heads, --flops or --drop-layers."),
        ("leave them out (heads=0) or (drop_layers=)", "leave them out (--heads 0) or (--drop-layers)"),
        ("drop_layers=[3, 9] must be", "--drop-layers [3, 9] must be"),
        ("heads=-1 must be", "--heads -1 must be"),
        ("plain=True needs", "--plain needs"),
        ("importance='obs' needs data: pass dataset=", "--importance obs needs data: pass --data"),
        ("teacher_loss='a b' is unknown", "--teacher-loss 'a b' is unknown"),
        ("5 rows of dataset have no label", "5 rows of --data have no label"),
        ("layers=9 must be", "--student-layers 9 must be"),
        ("include pattern 'x*' matches nothing", "--include pattern 'x*' matches nothing"),
        ("lower batch_size, or `batch_size`", "lower --batch-size, or --batch-size"),
        ("dtype='int8' needs dataset=: rows", "--int8 needs --data: rows"),
        ("set bf16=False", "set --no-bf16"),
        ("as processing_class=, or", "as the tokenizer, or"),
        ("pass rows as dataset=, or", "pass rows as --data, or"),
        ("its config has num_labels=1 and problem_type='x'", "its config has num_labels=1 and problem_type='x'"),
        (
            "set processing_class.pad_token and config.batch_size",
            "set processing_class.pad_token and config.batch_size",
        ),
        ("model.drop_layers(heads) is a call", "model.drop_layers(heads) is a call"),
        ("There is no directory flops=2.", "There is no directory flops=2."),
        ("no column 'drop_layers'", "no column 'drop_layers'"),
        ("the file batch_size.csv, or my/batch_size/a.csv", "the file batch_size.csv, or my/batch_size/a.csv"),
        ("The file ./my dataset v2/a.csv does not exist.", "The file ./my dataset v2/a.csv does not exist."),
        ("(found: 'dataset', 'batch_size', 'flops=2')", "(found: 'dataset', 'batch_size', 'flops=2')"),
        ("the label 'heads=5' of dataset", "the label 'heads=5' of --data"),
        ("--flops 2 and --drop-layers 3", "--flops 2 and --drop-layers 3"),
        ("a/heads=0.5/b and a datasets.Dataset", "a/heads=0.5/b and a datasets.Dataset"),
    ],
)
def test_arguments_are_named_as_options(message, shown):
    assert name_options(message, GIVEN) == shown


def test_a_verb_without_such_an_option_keeps_the_argument():
    assert name_options("pass dataset= or layers=3", argparse.Namespace(amount=1)) == "pass dataset= or layers=3"


DISTILL = ["distill", "BERT", "--student-layers", "2", "--data", "TEST", *COLUMNS]
COMPARE = ["compare", "BERT", "--data", "TEST", *COLUMNS]
BAD = [
    ["report", "BERT", "--include", "nothing*"],
    ["report", "BERT", "--exclude", "*"],
    ["prune", "BERT", "--amount", "1.5"],
    ["prune", "BERT", "--amount", "-0.5"],
    ["prune", "BERT", "--amount", "100000000"],
    ["prune", "BERT", "--amount", "0.5", "--include", "nothing*"],
    ["prune", "BERT", "--amount", "0.5", "--exclude", "*"],
    ["shrink", "BERT"],
    ["shrink", "BERT", "--heads", "1.5"],
    ["shrink", "BERT", "--neurons", "-1"],
    ["shrink", "BERT", "--flops", "2"],
    ["shrink", "BERT", "--parameters", "1e-9"],
    ["shrink", "BERT", "--latency", "5"],
    ["shrink", "BERT", "--flops", "0.5", "--heads", "0.5"],
    ["shrink", "BERT", "--flops", "0.5", "--parameters", "0.5"],
    ["shrink", "BERT", "--latency", "0.5", "--drop-layers", "1"],
    ["shrink", "BERT", "--drop-layers", "9"],
    ["shrink", "BERT", "--drop-layers", "1,9"],
    ["shrink", "BERT", "--drop-layers", "0,1,2,3"],
    ["shrink", "BERT", "--neurons", "0.5", "--round-to", "0"],
    ["shrink", "BERT", "--heads", "0.5", "--importance", "fisher"],
    ["shrink", "BERT", "--heads", "0.5", "--plain"],
    ["shrink", "BERT", "--heads", "0.5", "--data", "TEST", "--text-column", "review", "--importance", "taylor"],
    ["shrink", "BERT", "--vocabulary", "TEST", "--text-column", "review", "--min-count", "0"],
    ["shrink", "BERT", "--vocabulary", "TEST", "--text-column", "review", "--keep", "nowhere"],
    ["shrink", "BERT", "--min-count", "2", "--heads", "0.5"],
    [*DISTILL[:2], "--student-layers", "9", *DISTILL[4:]],
    [*DISTILL[:2], "--student-layers", "3,1", *DISTILL[4:]],
    [*DISTILL, "--alpha", "2"],
    [*DISTILL, "--temperature", "0"],
    [*DISTILL, "--teacher-loss", "kl", "--hidden-weight", "-1"],
    [*DISTILL, "--hidden-weight", "1", "--layer-map", '{"0": 9}'],
    [*DISTILL, "--relation-weight", "1", "--relation-heads", "7"],
    [*DISTILL, "--relation-weight", "1", "--relation-layer", "9"],
    [*DISTILL, "--class-weights", "[1.0]"],
    [*DISTILL, "--weight-column", "review"],
    [*DISTILL, "--teacher-dtype", "int4"],
    [*DISTILL, "--max-length", "1000"],
    [*DISTILL, "--rows", "0"],
    [*DISTILL, "--held-out", "2"],
    [*COMPARE, "--batch-size", "0"],
    [*COMPARE, "--length", "1000"],
    [*COMPARE, "--repeats", "0"],
    [*COMPARE, "--label-separator", ";"],
    ["compare", "BERT", "--length", "0"],
    ["pack", "BERT", "BERT"],
    ["unpack", "BERT", "BERT"],
    ["export", "BERT", "--max-drop", "2"],
    ["export", "BERT", "--repeats", "-1"],
    ["export", "BERT", "--int8"],
]  # fmt: skip
PYTHONS = {"dataset", "train_dataset", "eval_dataset", "processing_class", "teacher_processing_class", "layers"}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_no_message_names_an_argument_of_python(arguments, models, data, tmp_path, run):
    places = {"BERT": str(models / "bert"), "TEST": str(data / "test.jsonl")}
    typed = [places.get(one, one) for one in arguments]
    typed += [] if arguments[0] in ("report", "compare", "pack", "unpack") else ["-o", str(tmp_path / "out")]
    run(*typed, status=2)
    names = PYTHONS | set(vars(_parser().parse_args(typed)))
    found = re.findall(r"(?<![\w./-])([a-z][a-z0-9_]*)=", run.error)
    assert not names & set(found), run.error
    words = {name for name in names if "_" in name and not run.error.startswith("no column")}
    assert not words & set(re.findall(r"(?<![\w./'-])[a-z]+(?:_[a-z0-9]+)+(?![\w(/'])", run.error)), run.error
    assert run.error.count("\n") == 1
