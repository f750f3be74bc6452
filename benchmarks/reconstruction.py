"""Time and memory of `prune_structured(reconstruct=)`: half of the FLOPs kept, with 512 texts.

Models from their configs, random weights; texts of 128 tokens, as of long reviews, or of 27, as of sentences. Each call
runs in a process of its own, so that the peak of its resident memory is its own. CPU-s is the time of the processor on
all threads, which other processes lengthen less than s. Memory is measured once more in another process, in which what
is freed goes back to the system at once (two settings of glibc, which make it slower), so that the peak is what is
held, not what the allocator keeps for later. Beside it stands what is kept: first the Gram matrices of all projections,
by which heads and neurons are ranked, and then the activations of one layer for all texts that are read: its inputs in
both models, a target, the hidden states between its halves, and what the second half's projection reads if no neuron is
removed.

    python -m benchmarks.reconstruction > benchmarks/results/reconstruction.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from tabulate import tabulate
from transformers import BertConfig, BertForSequenceClassification

import hfcompress as hfc
from benchmarks.prune_global import _peak, _reset_peak, machine

MODELS = {
    "MiniLM (6 layers, 384)": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "BERT-base (12 layers, 768)": {},
}
FREED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--models", type=int, default=len(MODELS), help="how many, from the smallest")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_shrink(**json.loads(arguments.case))))
        return
    rows = []
    for model in list(MODELS)[: arguments.models]:
        for tokens in (27, 128):
            for reconstruct in (False, True):
                case = {"model": model, "texts": arguments.texts, "tokens": tokens, "reconstruct": reconstruct}
                found, held = (_run(case, environment) for environment in ({}, FREED))
                rows.append(
                    {
                        "model": model,
                        "texts": f"{arguments.texts} x {tokens}",
                        "reconstruct": reconstruct,
                        "s": f"{found['seconds']:.1f}",
                        "CPU-s": f"{found['cpu']:.1f}",
                        "MB of the model": f"{found['model']:.0f}",
                        "MB above it": f"{found['peak']:.0f}",
                        "MB held": f"{held['peak']:.0f}",
                        "Gram matrices, MB": f"{found['gram']:.0f}" if reconstruct else "",
                        "a layer's activations, MB": f"{found['states']:.0f}" if reconstruct else "",
                        "sum, MB": f"{found['gram'] + found['states']:.0f}" if reconstruct else "",
                    }
                )
                print(rows[-1], file=sys.stderr)
    print("# Time and memory of reconstruction\n")
    print(f"`prune_structured(flops=0.5)` with and without. {machine()}. Where other processes")
    print("run, CPU-s tells more than s. MB held is the same where freed memory goes back to the system at once.\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _run(case: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reconstruction", "--case", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _shrink(model: str, texts: int, tokens: int, reconstruct: bool) -> dict[str, float]:
    torch.manual_seed(0)
    config = BertConfig(**MODELS[model])
    network: Any = BertForSequenceClassification(config).eval()
    ids = torch.randint(1000, 20000, (texts, tokens)).tolist()
    rows = [{"input_ids": text} for text in ids]
    with torch.no_grad():
        network(input_ids=torch.tensor(ids[:8]))  # what torch loads and reserves once
    before, start, cpu = _reset_peak(), time.perf_counter(), time.process_time()
    hfc.prune_structured(network, flops=0.5, dataset=rows, reconstruct=reconstruct)
    hidden, neurons = config.hidden_size, config.intermediate_size
    read = min(texts * 3 // 4 * tokens, 1 << 15)  # a fourth of the texts is held out
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": _peak() - before,
        "model": 4 * sum(parameter.numel() for parameter in BertForSequenceClassification(config).parameters()) / 1e6,
        "gram": 8 * config.num_hidden_layers * (neurons**2 + 3 * hidden**2) / 1e6,
        "states": 4 * read * (4 * hidden + neurons) / 1e6,
    }


if __name__ == "__main__":
    main()
