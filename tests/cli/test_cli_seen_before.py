"""Figures on held-out rows say that they are too good where the model was trained on these rows before."""

import pytest
from command_line import COLUMNS
from transformers import BertModel

CLAUSE = "was trained on these before, its accuracy on others is lower)"
STEP = ["--max-steps", 1]
OPTIONS = {
    "finetune": STEP,
    "prune": ["--amount", 0.2, *STEP],
    "shrink": ["--heads", 0.5],
    "distill": ["--student-layers", 1, *STEP],
}


@pytest.mark.parametrize("verb", OPTIONS)
def test_held_out_rows_may_have_been_seen_before(verb, models, data, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, target in (("bert", models / "bert"), ("train.csv", data / "train.csv")):
        (tmp_path / name).symlink_to(target)
    command = [verb, "bert", "--data", "train.csv", *COLUMNS, *OPTIONS[verb]]
    printed = run(*command, "-o", "one")
    assert " ".join(printed.split()).count(f"(if the {'teacher' if verb == 'distill' else 'model'} {CLAUSE}") == 1
    assert max(map(len, printed.splitlines())) <= 80
    assert CLAUSE not in run(*command, "--eval-data", data / "test.jsonl", "-o", "two")


def test_a_base_model_has_seen_no_labels(models, data, tmp_path, run):
    BertModel.from_pretrained(models / "bert").save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((models / "bert" / name).read_bytes())
    command = ["finetune", tmp_path / "base", "--data", data / "train.csv", *COLUMNS, *STEP]
    assert CLAUSE not in run(*command, "-o", tmp_path / "out")
