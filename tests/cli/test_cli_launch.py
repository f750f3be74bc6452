"""``hfcompress distill`` and ``finetune`` in two processes, as a launcher starts them, against one; who says what."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from architectures import LONG
from command_line import COLUMNS, load

from hfcompress_cli.application import main

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


def launch(launcher, *arguments):
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "hfcompress_cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


# Each launcher and each verb; all pairs with HYPOTHESIS_PROFILE=long, as a launch imports torch in three processes.
PAIRS = [("accelerate", "distill"), ("torchrun", "finetune")]
if LONG:
    PAIRS = list(itertools.product(LAUNCHERS, ("distill", "finetune")))


@pytest.mark.parametrize(("launcher", "verb"), PAIRS)
def test_two_processes_write_what_one_does(launcher, verb, models, data, tmp_path, run):
    command = [verb, models / "bert", *(["--student-layers", 2] if verb == "distill" else [])]
    command += ["--data", data / "train.csv", *COLUMNS, "--json"]
    command += ["--max-steps", 6, "--learning-rate", 0.01, "--optim", "sgd", "--use-cpu", "--seed", 3]
    one = run(*command, "--per-device-train-batch-size", 8, "-o", tmp_path / "one")
    done = launch(launcher, *command, "--per-device-train-batch-size", 4, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert two["examples"] == one["examples"]
    assert two["evaluation"]["eval_loss"] == pytest.approx(one["evaluation"]["eval_loss"], rel=1e-4)
    assert done.stderr.count("Written to") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    for first, second in zip(load(tmp_path / "one").parameters(), load(tmp_path / "two").parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (0, "hfcompress prune: runs in one process; start it without accelerate launch or torchrun.\n"),
        (1, "hfcompress: process 1 failed, and the first one did not.\n"),
    ],
)
def test_what_all_refuse_is_said_by_the_first_process(rank, said, models, tmp_path, run, monkeypatch):
    """The others wait for the launcher to end them, and speak only if it does not."""
    monkeypatch.setattr("hfcompress_cli.launch._PATIENCE", 0)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out", status=2) == ""
    assert run.error == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_no_failure_of_a_process(option, monkeypatch):
    monkeypatch.setattr("hfcompress_cli.launch._PATIENCE", 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([option]) == 0
