"""What a model costs and how well it answers: parameters, bytes, FLOPs, latency, accuracy; several side by side."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfcompress.errors import CompressionError
from hfcompress.layers import select_matrices
from hfcompress.probe import count_flops, evaluating, wait_for
from hfcompress.report import align, count_zeros, report_of

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model. A value that could not be measured without inputs or labels is None.

    Attributes:
        parameters: Number of parameters; a shared one counts once.
        zeros: How many of the prunable weights are zero.
        sparsity: The same as a fraction of the prunable weights (see `sparsity_report`).
        bytes: Bytes of the distinct tensors that ``save_pretrained`` writes. Zeros take as much as other numbers.
        flops: Floating-point operations of one forward pass of ``batch_size`` examples, attention included; two for a
            multiplication with addition. Zeros are multiplied like other numbers.
        latency_ms: Median milliseconds of such a pass.
        latency_iqr_ms: Interquartile range of those times.
        batch_size: Examples in that pass.
        examples: Labelled examples that the next values are about.
        accuracy: Fraction answered correctly.
        accuracy_interval: Its 95 % Wilson interval.
        cross_entropy: Mean of -log of the label's probability, in nats.
    """

    parameters: int
    zeros: int
    sparsity: float
    bytes: int
    flops: int | None = None
    latency_ms: float | None = None
    latency_iqr_ms: float | None = None
    batch_size: int | None = None
    examples: int | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    cross_entropy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return str(Comparison({"model": self}))


@dataclass(frozen=True)
class Comparison:
    """Several models side by side. ``print`` shows a table of what was measured; ratios are against the first.

    Attributes:
        rows: A `Measurement` a name, in the order given.
    """

    rows: dict[str, Measurement]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        return {name: row.to_dict() for name, row in self.rows.items()}

    def to_json(self) -> str:
        """Return the comparison as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the comparison as a Markdown table."""
        table = [f"| {' | '.join(row)} |" for row in self._table()]
        return "\n".join([table[0], "|---" + "|---:" * (table[0].count("|") - 2) + "|", *table[1:]])

    def __str__(self) -> str:
        table = self._table()
        return "\n".join(align(table, "<" + ">" * (len(table[0]) - 1)))

    def _table(self) -> list[tuple[str, ...]]:
        base = next(iter(self.rows.values()))
        table: list[tuple[str, ...]] = [
            ("model", "parameters", "sparsity", "MB", "GFLOPs", "ms a batch", "speed-up", "accuracy", "95 % interval")
        ]
        for name, row in self.rows.items():
            speedup = None if row.latency_ms is None or not base.latency_ms else base.latency_ms / row.latency_ms
            interval = row.accuracy_interval
            table.append(
                (
                    name,
                    f"{row.parameters:,}",
                    f"{row.sparsity:.1%}",
                    f"{row.bytes / 1e6:.1f}",
                    "-" if row.flops is None else f"{row.flops / 1e9:.2f}",
                    "-" if row.latency_ms is None else f"{row.latency_ms:.1f}",
                    "-" if speedup is None else f"{speedup:.2f}x",
                    "-" if row.accuracy is None else f"{row.accuracy:.3f}",
                    "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                )
            )
        measured = [index for index, column in enumerate(zip(*table[1:], strict=True)) if set(column) != {"-"}]
        return [tuple(row[index] for index in measured) for row in table]


def measure(model: nn.Module, inputs: Inputs | None = None, *, batch_size: int = 16, repeats: int = 20) -> Measurement:
    """Measure one model. It is not changed: its mode and gradients are as before.

    Args:
        model: A Hugging Face classifier.
        inputs: What the model reads, tensors with one row an example, as a tokenizer returns them with
            ``return_tensors="pt"``. With class indices under ``"labels"``, accuracy and cross-entropy are measured over
            all of them. Without inputs only the size is measured.
        batch_size: Examples of the batch that is timed: the first ones of the inputs.
        repeats: How often it is timed, after three unmeasured passes.

    Returns:
        The measurement.

    Raises:
        CompressionError: The inputs are empty or of different lengths, or a number is not positive.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> ids = torch.ones(4, 8, dtype=torch.long)
        >>> result = measure(model, {"input_ids": ids, "labels": torch.zeros(4, dtype=torch.long)})
        >>> result.flops, result.examples
        (565760, 4)
    """
    return compare({"model": model}, inputs, batch_size=batch_size, repeats=repeats).rows["model"]


def compare(
    models: Mapping[str, nn.Module],
    inputs: Inputs | Mapping[str, Inputs] | None = None,
    *,
    batch_size: int = 16,
    repeats: int = 20,
) -> Comparison:
    """Measure several models side by side, timed in turn so that a machine's change of pace hits all alike.

    Args:
        models: Models by name; ratios are against the first.
        inputs: As for `measure`, for all models; or by the same names where each has its own tokenizer.
        batch_size: Examples of the batch that is timed.
        repeats: Rounds of timing.

    Returns:
        The measurements by name.

    Raises:
        CompressionError: No models, inputs missing for one of them, or as for `measure`.

    Example:
        ``print(compare({"BERT": model, "pruned 20 %": pruned}, tokenizer(texts, padding=True, return_tensors="pt")))``
    """
    if not models:
        raise CompressionError("models is empty; pass at least one, as {name: model}.")
    if batch_size < 1 or repeats < 1:
        raise CompressionError(f"batch_size={batch_size} and repeats={repeats} must be at least 1.")
    batches = {name: _inputs_of(name, models, inputs) for name in models}

    fields: dict[str, dict[str, Any]] = {name: _size(model) for name, model in models.items()}
    timed = {}
    for name, (inputs_of, labels) in batches.items():
        if inputs_of is None:
            continue
        first = {key: value[:batch_size] for key, value in inputs_of.items()}
        timed[name] = first
        fields[name]["batch_size"] = len(next(iter(first.values())))
        fields[name]["flops"] = count_flops(models[name], first)
        if labels is not None:
            fields[name] |= _quality(models[name], inputs_of, labels, batch_size)
    for name, times in _latencies({name: models[name] for name in timed}, timed, repeats).items():
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        fields[name] |= {"latency_ms": statistics.median(times), "latency_iqr_ms": quartiles[2] - quartiles[0]}
    return Comparison({name: Measurement(**values) for name, values in fields.items()})


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927), which stays within [0, 1].

    Args:
        successes: How many of the trials succeeded.
        trials: How many there were, at least 1.

    Example:
        >>> low, high = wilson_interval(672, 800)
        >>> round(low, 3), round(high, 3)
        (0.813, 0.864)
    """
    z, p = statistics.NormalDist().inv_cdf(0.975), successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _inputs_of(
    name: str, models: Mapping[str, nn.Module], inputs: Inputs | Mapping[str, Inputs] | None
) -> tuple[dict[str, Tensor] | None, Tensor | None]:
    """The inputs of one model on its device, without the labels, and the labels."""
    if inputs is None:
        return None, None
    own: Any = inputs
    if any(isinstance(value, Mapping) for value in inputs.values()):
        if name not in inputs:
            raise CompressionError(f"inputs has none for {name!r}; it has {', '.join(map(repr, inputs))}.")
        own = inputs[name]
    device = next(models[name].parameters()).device
    tensors = {key: value.to(device) for key, value in own.items() if isinstance(value, Tensor)}
    labels = tensors.pop("labels", None)
    lengths = {key: len(value) for key, value in tensors.items()} | ({} if labels is None else {"labels": len(labels)})
    if not tensors or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise CompressionError(
            f"inputs for {name!r} must be tensors with one row an example, at least one: found {lengths}."
        )
    return tensors, labels


def _size(model: nn.Module) -> dict[str, Any]:
    selection = select_matrices(model)
    report = report_of(selection, count_zeros(selection.matrices))
    stored = {(t.device, t.data_ptr(), t.shape) if t.numel() else id(t): t for t in model.state_dict().values()}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "zeros": report.zeros,
        "sparsity": report.sparsity,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
    }


def _quality(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, batch_size: int) -> dict[str, Any]:
    logits = []
    with evaluating(model):
        for start in range(0, len(labels), batch_size):
            logits.append(model(**{k: v[start : start + batch_size] for k, v in inputs.items()}).logits.float())
    scores = torch.cat(logits)
    correct = int((scores.argmax(-1) == labels).sum())
    return {
        "examples": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_interval": wilson_interval(correct, len(labels)),
        "cross_entropy": float(cross_entropy(scores, labels)),
    }


def _latencies(
    models: dict[str, nn.Module], inputs: dict[str, dict[str, Tensor]], repeats: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(-3, repeats):
        for name, model in models.items():
            device = next(iter(inputs[name].values())).device
            with evaluating(model):
                wait_for(device)
                start = time.perf_counter()
                model(**inputs[name])
                wait_for(device)
                elapsed = time.perf_counter() - start
            if repeat >= 0:
                times[name].append(1000 * elapsed)
    return times
