"""Global magnitude pruning of BERT-base: `prune_global_l1` against `torch.nn.utils.prune.global_unstructured`.

Both sides run in one call of this program, in turn, each in a process of its own so that peak memory is its own:

    python -m benchmarks.prune_global
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

import hfcompress as hfc

SIDES = ("hfcompress", "torch.nn.utils.prune")


def main() -> None:
    """Measure both sides and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_one(arguments.side, arguments.amount)))
        return

    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            command = [
                sys.executable,
                "-m",
                "benchmarks.prune_global",
                "--side",
                side,
                "--amount",
                str(arguments.amount),
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(output.splitlines()[-1]))
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(*found.values(), strict=True)]
    print(f"BERT-base, amount {arguments.amount}; median of {arguments.repeats} runs in turn\n")
    print("| | seconds | peak memory above the model, MB | zeros |\n|---|---:|---:|---:|")
    for side, runs in found.items():
        seconds, memory = (statistics.median(run[key] for run in runs) for key in ("seconds", "megabytes"))
        print(f"| {side} | {seconds:.2f} | {memory:.0f} | {runs[0]['zeros']:,.0f} |")
    print(f"\n{statistics.median(ratios):.0f} times faster (run by run: {', '.join(f'{r:.0f}' for r in ratios)})")
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), platform.machine())
    print(f"\n{cpu.rpartition(':')[2].strip()}, {os.cpu_count()} cores, torch {torch.__version__}")


def _one(side: str, amount: float) -> dict[str, float]:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig())
    matrices = [module for module in model.bert.modules() if isinstance(module, nn.Linear)]
    before = _peak()
    start = time.perf_counter()
    if side == "hfcompress":
        hfc.prune_global_l1(model, amount)
    else:
        prune.global_unstructured([(m, "weight") for m in matrices], prune.L1Unstructured, amount=amount)
    seconds = time.perf_counter() - start
    zeros = sum(int((module.weight == 0).sum()) for module in matrices)
    return {"seconds": seconds, "megabytes": _peak() - before, "zeros": zeros}


def _peak() -> float:
    """Peak resident memory of this process in MB (Linux counts kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
