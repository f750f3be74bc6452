"""What keeping zeros costs in training: `KeepSparsity` against `torch.nn.utils.prune`'s masks.

A training step of BERT-base (batch 16 x 128, AdamW, under bfloat16 autocast where the processor computes it natively)
on a model pruned by 20 %, in turns: nothing kept, kept by `KeepSparsity.apply`, kept by masks that torch multiplies in
at every forward pass.

    python -m benchmarks.keep_sparsity > benchmarks/results/keep_sparsity.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

import hfcompress as hfc
from benchmarks.prune_global import machine
from hfcompress.compat import mixed_precision

BF16 = mixed_precision("cpu").name == "bf16"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    names = ("nothing kept", "KeepSparsity", "torch.nn.utils.prune")
    prepared = {name: _prepare_step(name) for name in names}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(steps + 1):
        for name, (step, _) in prepared.items():
            if turn:
                seconds[name].append(step())
            else:
                step()  # warms up
    plain = statistics.median(step for step, _ in seconds["nothing kept"])
    rows = []
    for name, (_, mask_bytes) in prepared.items():
        total, keeping = (statistics.median(part) for part in zip(*seconds[name], strict=True))
        rows.append(
            {
                "": name,
                "s a step": f"{total:.3f}",
                "of the step without": f"{total / plain:.1%}",
                "keeping alone, s": f"{keeping:.3f}" if keeping else "-",
                "keeping alone, of the step": f"{keeping / plain:.2%}" if keeping else "-",
                "bytes a prunable weight": f"{mask_bytes:.2f}",
            }
        )
    print("# Keeping zeros during training\n")
    precision = "bfloat16 autocast" if BF16 else "float32"
    print(f"BERT-base, 20 % pruned, batch 16 x 128, {precision}, AdamW. {machine()};")
    print(f"medians of {steps} steps in turn.\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _prepare_step(name: str) -> tuple[Callable[[], tuple[float, float]], float]:
    """Return a training step, which returns its seconds and those of keeping, and the masks' bytes per weight."""
    masks: Any = prune  # which has no types
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig())
    weights = hfc.prune_global_l1(model, 0.2).weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    keep, mask_bytes = hfc.KeepSparsity(), 0
    if name == "KeepSparsity":
        keep.read(model)
        mask_bytes = sum(mask.nbytes for _, _, mask in keep._kept)
    elif name == "torch.nn.utils.prune":
        for module in [module for module in model.bert.modules() if isinstance(module, nn.Linear)]:
            mask = (module.weight != 0).float()
            masks.custom_from_mask(module, "weight", mask)
            mask_bytes += 2 * mask.nbytes  # the mask, and the product with it
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = torch.randint(1000, 20000, (16, 128))
    labels = torch.randint(0, 2, (16,))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        before = time.perf_counter()
        keep.apply()  # does nothing where nothing was read
        after = time.perf_counter()
        optimizer.zero_grad()
        return time.perf_counter() - start, after - before if name == "KeepSparsity" else 0.0

    return step, mask_bytes / weights


if __name__ == "__main__":
    main()
