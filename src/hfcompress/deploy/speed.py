"""Times what was exported beside the classifier on this machine, and says which is fastest here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.formats import FORMATS
from hfcompress.models.classifier import max_tokens
from hfcompress.models.inputs import TOKENS
from hfcompress.report.benchmark import compare
from hfcompress.report.comparison import Comparison
from hfcompress.report.times import speedup

BATCHES = (1, 16)
TORCH, ALL_INT8 = "torch float32", "all of it int8"


def label(format: str, dtype: str) -> str:
    """Return the name of a model in a table of times."""
    return f"{FORMATS[format].runtime} {dtype}"


def time_models(
    model: nn.Module,
    exported: Mapping[str, ExportedModel],
    rows: Sequence[Mapping[str, Any]] | None,
    tokenizer: PreTrainedTokenizerBase,
    repeats: int,
) -> Comparison:
    """Time the classifier and exported models in turns, for one text and for several; and compare them on the rows.

    Args:
        model: The classifier, in float32 on the CPU.
        exported: By name.
        rows: Texts whose lengths are those of the data; dummy texts of 128 tokens if None.
        tokenizer: Pads them.
        repeats: Rounds.
    """
    length = min(TOKENS, max_tokens(model) or TOKENS) if rows is None else None
    models: dict[str, Any] = {TORCH: model, **exported}
    return compare(models, rows, batch_size=BATCHES, length=length, repeats=repeats, processing_class=tokenizer)


def is_slower(found: Comparison, name: str, than: str) -> bool:
    """Whether a model is slower than another one at every batch that was timed."""
    ratios = [
        speedup(found.rows[than].passes, found.rows[name].passes, index) for index in range(len(found.first.passes))
    ]
    return all(one is not None and one.ratio < 1 for one in ratios)


def describe_times(found: Comparison) -> list[str]:
    """Say how long each model takes, and how it compares with the first."""
    lines = []
    for index, first in enumerate(found.first.passes):
        times = [f"{name} {one.passes[index].latency_ms:.1f}" for name, one in found.rows.items()]
        ratios = [str(found.speedup(name, index)) for name in list(found.rows)[1:]]
        lines.append(f"ms a batch of {first.label} tokens: {', '.join(times)} (speed-up {', '.join(ratios)}).")
    return lines
