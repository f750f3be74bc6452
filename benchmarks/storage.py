"""Saving and loading pruned models: `save_compressed` against `save_pretrained` and `from_pretrained`.

BERT-base from its config, random weights, pruned to several amounts. The two run in turn in one process; memory is
measured in separate processes, as the peak of the anonymous resident memory (mapped file pages do not count). The dense
model is read from the page cache (`disable_mmap=True`), as the packed one is.

    python -m benchmarks.storage > benchmarks/results/storage.md
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tabulate import tabulate
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

import hfcompress as hfc
from benchmarks.prune_global import machine

AMOUNTS = (0.1, 0.2, 0.5, 0.7, 0.9, 0.99)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--amounts", type=float, nargs="+", default=AMOUNTS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if arguments.memory:
        print(json.dumps(_measure_memory(arguments.memory[0], Path(arguments.memory[1]))))
        return
    sizes, times, memory = [], [], []
    for dtype in (torch.float32, torch.bfloat16):
        for amount in arguments.amounts:
            with tempfile.TemporaryDirectory() as folder:
                where = {"dtype": str(dtype).removeprefix("torch."), "amount": amount}
                dense, packed = Path(folder, "dense"), Path(folder, "packed")
                seconds = _time_in_turn(_make_model(dtype, amount), dense, packed, arguments.repeats)
                sizes.append(where | _size_row(dense, packed))
                times.append(where | _time_row(seconds, dense))
                if dtype == torch.float32:
                    memory.append(where | _memory_row(packed))
    print("# Saving and loading pruned models\n")
    print(
        f"BERT-base, {machine()}; medians of {arguments.repeats} rounds, in each of which both sides had their turn.\n"
    )
    _print_table("Size", sizes)
    print("The reference is the bytes of the non-zeros and the entropy of the positions, over the packed tensors.\n")
    _print_table("Time", times)
    print("MB/s are of dense bytes. `save_compressed` flushes to the disk (fsync), `save_pretrained` does not.\n")
    _print_table("Peak anonymous memory above the model, MB", memory)


def _make_model(dtype: torch.dtype, amount: float) -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).to(dtype)
    hfc.prune_global_l1(model, amount)
    return model


def _time_in_turn(model: Any, dense: Path, packed: Path, repeats: int) -> dict[str, list[float]]:
    def load_dense() -> object:
        return BertForSequenceClassification.from_pretrained(dense, disable_mmap=True)

    steps: dict[str, Callable[[], object]] = {
        "save dense": lambda: model.save_pretrained(dense),
        "save packed": lambda: hfc.save_compressed(model, packed),
        "load dense": load_dense,
        "load packed": lambda: hfc.load_compressed(packed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            result = step()
            elapsed = time.perf_counter() - start
            del result
            if round_ >= 0:
                seconds[name].append(elapsed)
    return seconds


def _time_row(seconds: dict[str, list[float]], dense: Path) -> dict[str, str]:
    megabytes = (dense / "model.safetensors").stat().st_size / 1e6
    row: dict[str, str] = {}
    for verb in ("save", "load"):
        ours, theirs = seconds[f"{verb} packed"], seconds[f"{verb} dense"]
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        row |= {
            f"{verb} dense, s": f"{statistics.median(theirs):.2f}",
            f"{verb} packed, s": f"{statistics.median(ours):.2f}",
            f"{verb}: ratio": f"{ratio:.2f}",
            f"{verb} packed, MB/s": f"{megabytes / statistics.median(ours):.0f}",
        }
    return row


def _size_row(dense: Path, packed: Path) -> dict[str, str]:
    reference = held = 0.0
    with safe_open(packed / "model.safetensors", "pt") as file, safe_open(dense / "model.safetensors", "pt") as full:
        names: list[str] = file.keys()
        for name in [key.removesuffix(".positions") for key in names if key.endswith(".positions")]:
            tensor = full.get_tensor(name)
            p = float((tensor == 0).double().mean())
            entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
            reference += (1 - p) * tensor.nbytes + entropy * tensor.numel() / 8
            held += file.get_tensor(name).nbytes + file.get_tensor(f"{name}.positions").nbytes
    files = [(folder / "model.safetensors").stat().st_size / 1e6 for folder in (dense, packed)]
    return {
        "dense file, MB": f"{files[0]:.1f}",
        "packed file, MB": f"{files[1]:.1f}",
        "packed / dense": f"{files[1] / files[0]:.3f}",
        "packed tensors against the reference": f"{held / reference - 1:+.2%}" if reference else "-",
    }


def _memory_row(packed: Path) -> dict[str, str]:
    row: dict[str, str] = {}
    for verb in ("save", "load"):
        command = [sys.executable, "-m", "benchmarks.storage", "--memory", verb, str(packed)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        row |= {verb: f"{found['peak']:.0f}", "largest tensor twice": f"{2 * found['largest']:.0f}"}
    return row


def _measure_memory(verb: str, packed: Path) -> dict[str, float]:
    """Save or load once; return how far the anonymous memory rose above that of the model alone."""
    hfc.load_compressed(packed)  # so that what only the first call allocates does not count
    model = None
    if verb == "save":
        model = hfc.load_compressed(packed)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # in memory, not mapped
    with _PeakMemory() as peak, tempfile.TemporaryDirectory(dir=packed.parent) as folder:
        before = _anonymous_memory()
        if model is not None:
            hfc.save_compressed(model, Path(folder, "again"))
        else:
            model = hfc.load_compressed(packed)
            before = _anonymous_memory()  # with the model
    largest = max(parameter.nbytes for parameter in model.parameters()) / 1e6
    return {"peak": max(0.0, peak.highest - before), "largest": largest}


class _PeakMemory:
    """The highest anonymous memory while the block runs, sampled every millisecond."""

    def __init__(self) -> None:
        self.highest = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.001):
            self.highest = max(self.highest, _anonymous_memory())


def _anonymous_memory() -> float:
    """Return the anonymous resident memory of this process in MB, by Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e6


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"## {title}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
