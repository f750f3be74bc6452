"""What bfloat16 autocast costs on processors with and without instructions for it.

A training step and a forward pass of a BERT of 6 layers and width 384 (MiniLM's shape, random weights), 16 texts of 64
tokens, in float32 and under bfloat16 autocast, in turns. Each row is a process of its own, in which oneDNN and torch
use no newer instructions than those named; so one machine stands for older ones.

    python -m benchmarks.precision > benchmarks/results/precision.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from tabulate import tabulate
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.prune_global import machine

# By row: the most that oneDNN and torch may use.
LIMITS = {
    "as it is": {},
    "AVX-512 alone": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2 alone": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.this_process:
        print(json.dumps(_measure(arguments.repeats)))
        return
    rows = []
    for name, limits in LIMITS.items():
        for threads in (1, os.cpu_count() or 1):
            environment = os.environ | limits | {"OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, "-m", "benchmarks.precision", "--this-process"]
            command += ["--repeats", str(arguments.repeats)]
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            rows.append({"processor": name, "threads": threads} | json.loads(output.splitlines()[-1]))
    print("# Precision\n")
    print(f"BERT of 6 layers and width 384, 16 x 64 tokens. {machine()}; medians of {arguments.repeats} in turn.\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _measure(repeats: int) -> dict[str, str]:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = {"input_ids": torch.randint(5, 30_000, (16, 64)), "labels": torch.zeros(16, dtype=torch.int64)}

    def step(bf16: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    def forward(bf16: bool) -> float:
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(**inputs)
        return time.perf_counter() - start

    row: dict[str, str] = {}
    for name, run in {"step": step, "forward pass": forward}.items():
        seconds = [(run(False), run(True)) for _ in range(repeats + 1)][1:]
        in_float32, in_bf16 = (statistics.median(times) for times in zip(*seconds, strict=True))
        ratio = statistics.median(bf16 / float32 for float32, bf16 in seconds)
        row |= {
            f"{name}, float32, s": f"{in_float32:.2f}",
            f"{name}, bf16, s": f"{in_bf16:.2f}",
            f"{name}: ratio": f"{ratio:.1f}",
        }
    return row


if __name__ == "__main__":
    main()
