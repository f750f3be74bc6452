"""Sharded weights get the zeros that they would have unsharded; the processes are started once for all tests here."""

import os
import subprocess
import sys

import pytest
import sharded_pruning
import torch
from architectures import CAN_SHARD

with_fsdp = pytest.mark.skipif(not CAN_SHARD, reason="FSDP2 on a CPU needs torch 2.7")


def run(size, folder):
    """Run sharded_pruning in so many processes; return what each of them found."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", sharded_pruning.__file__, str(size), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(3, tmp_path_factory.mktemp("sharded"))  # by which few sizes can be divided


def test_uneven_and_empty_shards_are_pruned_as_a_stable_sort_says(found):
    """All dtypes, alone and mixed; with ties; some matrices in shards, others in all processes."""
    for one in found:
        assert len(one["stacks"]) == 60
        assert [case for case, same in one["stacks"].items() if not same] == []


@with_fsdp
def test_a_model_under_fsdp2_gets_the_zeros_of_the_unsharded(found):
    for one in found:
        assert len(one["architectures"]) == 28
        for case, outcome in one["architectures"].items():
            assert outcome == {"differing": [], "reports": True}, case


@with_fsdp
def test_full_weights_left_by_a_forward_pass_are_not_pruned(found):
    for one in found:
        assert one["after a forward pass"] == {"differing": [], "reports": True, "kept are shards": True}


def test_only_few_counts_are_sent(found):
    for one in found:
        assert {name for name, _ in one["sent"]} == {"c10d.allreduce_.default"}
        assert sum(sent for _, sent in one["sent"]) < 20_000  # bytes; for 2,000,000 weights
        assert one["sent"] == found[0]["sent"]


REFUSALS = {
    "NaN in the first": "1.weight contains NaN or infinity",
    "infinity in the last": "1.weight contains NaN or infinity",
    "NaN in a matrix that all hold, in the last": "1.weight is not sharded, and not the same in all processes",
    "amount": "amount=1.5 must be in",
    "amount in the last": "amount=1.5 must be in",
    "amount of no number in the first": "amount='half' must be in",
    "too many": "amount=145 is more than the 144 prunable weights",
    "amounts that differ": "The processes ask for 58 to 72 zeros; give the same amount",
    "matrices that differ": "The processes chose different matrices",
    "include in the last": "include pattern 'no such' matches no weight matrix",
    "report of nothing in the last": "include pattern 'no such' matches no weight matrix",
    "equal nowhere": "1.weight is not sharded, and not the same in all processes",
    "columns": "1.weight is sharded over devices as (Shard(dim=1),)",
    "partial": "1.weight is sharded over devices as (Partial(sum),)",
    "partial, kept": "1.weight is sharded over devices as (Partial(sum),), so that each holds a part of a sum",
    "strided": "1.weight is sharded over devices as (_StridedShard(dim=0, sf=2),)",
    "two axes": "1.weight is sharded over devices as (Shard(dim=0), Shard(dim=1))",
    "two axes of rows": "1.weight is sharded over devices as (Shard(dim=0), Shard(dim=0))",
    "two groups": "0.weight is sharded over the processes (0, 1",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_the_same_in_all_processes(case, found):
    sentences = {one["refused"][case][0] for one in found}
    assert len(sentences) == 1
    assert sentences.pop().startswith(REFUSALS[case])
    assert all(unchanged for _, unchanged in (one["refused"][case] for one in found))


@with_fsdp
def test_gradual_pruning_in_training_is_that_of_the_unsharded(found):
    for one in found:
        plain, sharded = one["training"]
        assert sharded["zeros"] == sharded["report"].zeros == plain["zeros"]
        assert sharded["log"] == plain["log"]
        assert len(sharded["log"]) == 4
        assert sharded["report"] == found[0]["training"][1]["report"]


def test_a_process_whose_shards_have_no_zeros_warns_of_nothing(found):
    assert [one["warned"] for one in found] == [[]] * len(found)


def test_shards_that_are_replicated_are_counted_once(tmp_path):
    found = run(4, tmp_path)
    for one in found:
        assert len(one["replicated"]) == 2 + CAN_SHARD
        for outcome in one["replicated"].values():
            assert outcome == {"differing": [], "reports": True}
    sentences, unchanged = zip(*(one["replicated refused"] for one in found), strict=True)
    assert len(set(sentences)) == 1
    assert sentences[0].startswith("0.weight contains NaN")
    assert all(unchanged)
