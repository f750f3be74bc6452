"""The same in two processes as in one; both are started once for all tests here."""

import os
import subprocess
import sys

import pytest
import torch
import two_processes
from architectures import CAN_SHARD, build, texts, word_tokenizer
from test_logits_cache import online


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, *settings, two_processes.__file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / "two_processes.pt")


@pytest.mark.parametrize("scenario", two_processes.SCENARIOS)
def test_two_processes_train_evaluate_and_resume_as_one(scenario, found, tmp_path):
    one, two = two_processes.distill(scenario, tmp_path, processes=1), found["distilled"][scenario]
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert two["zeros"] == one["zeros"]
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_two_processes_share_the_work_of_a_teacher(found):
    """Each computes what the other does not; both see all of it."""
    rows, logits = zip(*found["shared"], strict=True)
    assert sum(rows) == len(texts())
    assert all(rows)
    expected = online(build(num_labels=3), word_tokenizer(), texts())
    for one in logits:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not CAN_SHARD, reason="FSDP2 on a CPU needs torch 2.7")
def test_zeros_of_sharded_weights_are_kept_shard_by_shard(found):
    assert len(found["sharded"]) == 3
    for (_, kept), one in found["sharded"].items():
        assert one["zeros"] > 1000
        assert one["lost"] == 0 if kept else one["lost"] > 0.9 * one["zeros"]
