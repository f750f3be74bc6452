"""Time of shrunken models: half of the heads and neurons removed, against the original model.

BERT-base and GPT-2 small from their configs, random weights, batches of 8 x 128 and 1 x 128, in float32 and, where
the processor computes it natively, bfloat16; the two models are timed in turn. Beside the speed-up stands the ratio of
their FLOPs, nearly all of which are in the layers, the part that shrank.

    python -m benchmarks.structured_speed > benchmarks/results/structured_speed.md
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

import hfcompress as hfc
from benchmarks.prune_global import machine
from hfcompress.compat import mixed_precision

TOKENS = 128


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    makers: dict[str, Callable[[], Any]] = {
        "BERT-base": lambda: BertForSequenceClassification(BertConfig()),
        "GPT-2 small": lambda: GPT2ForSequenceClassification(GPT2Config(pad_token_id=0, use_cache=False)),
    }
    dtypes = [torch.float32] + [torch.bfloat16] * (mixed_precision("cpu").name == "bf16")
    rows = []
    for name, make in makers.items():
        torch.manual_seed(0)
        original = make().eval()
        small = copy.deepcopy(original)
        report = hfc.prune_structured(small, heads=0.5, neurons=0.5, scope="layer", importance="l1")
        ratio = report.flops[0] / report.flops[1]
        for dtype in dtypes:
            for batch in (8, 1):
                times = _time_in_turn([original.to(dtype), small.to(dtype)], batch, repeats)
                speedups = [one / other for one, other in zip(*times, strict=True)]
                medians = [1000 * statistics.median(those) for those in times]
                rows.append(
                    {
                        "model": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "batch": f"{batch} x {TOKENS}",
                        "dense, ms": f"{medians[0]:.0f}",
                        "shrunken, ms": f"{medians[1]:.0f}",
                        "speed-up": f"{statistics.median(speedups):.2f}",
                        "ratio of the FLOPs": f"{ratio:.2f}",
                        "speed-up / ratio": f"{statistics.median(speedups) / ratio:.2f}",
                    }
                )
                print(rows[-1], file=sys.stderr)
    print("# Time of shrunken models\n")
    print(f"Half of the heads and neurons of each layer removed. {machine()};")
    print(f"medians of {repeats} rounds in turn.\n")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


@torch.inference_mode()
def _time_in_turn(models: list[PreTrainedModel], batch: int, repeats: int) -> list[list[float]]:
    inputs = torch.randint(1000, 20000, (batch, TOKENS))
    times: list[list[float]] = [[] for _ in models]
    for turn in range(-2, repeats):
        for model, those in zip(models, times, strict=True):
            start = time.perf_counter()
            model(input_ids=inputs)
            if turn >= 0:
                those.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
