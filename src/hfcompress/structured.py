"""Models that are really smaller: attention heads, intermediate neurons and whole layers removed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfcompress.blocks import Kind, Undo, Units, cut, find_units, flops_of, masked, parameters_of
from hfcompress.choice import Scope, choose, choose_for_budget
from hfcompress.errors import CompressionError
from hfcompress.importance import IMPORTANCES, Importance, batches_of, importance_scores
from hfcompress.layers import PRUNABLE_DTYPES, layer_stack
from hfcompress.plan import is_plan, own_configs, write_plan
from hfcompress.probe import TOKENS, answer, calls_of, in_float32, milliseconds, short_text, sizes
from hfcompress.student import keep_layers
from hfcompress.tables import align

_TRIES = 8
_BUDGETS = ("flops", "parameters", "latency")


@dataclass(frozen=True)
class BlockStructure:
    """Heads or neurons of one block.

    Attributes:
        name: The layer.
        kind: ``"heads"`` or ``"neurons"``.
        before: How many it had; under grouped queries a head is a key-value head with all its queries.
        after: How many it has.
    """

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class StructureReport:
    """What was removed, and what it saves. ``print`` shows a table.

    Attributes:
        blocks: Heads, then neurons, of each layer that is left.
        layers: How many layers there were, and are.
        parameters: How many parameters the whole model had, and has.
        flops: Floating-point operations of a text of 128 tokens (or as many as the model can read) before and after,
            counted as it ran.
        asked: The arguments that say how much to remove.
        latency_ms: Milliseconds of such a text before and after, if a budget of latency was asked.
    """

    blocks: tuple[BlockStructure, ...]
    layers: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    asked: dict[str, Any]
    latency_ms: tuple[float, float] | None = None

    def removed(self, kind: Kind) -> float:
        """Fraction of the heads or the neurons, of the layers that are left, that was removed."""
        before = sum(block.before for block in self.blocks if block.kind == kind)
        after = sum(block.after for block in self.blocks if block.kind == kind)
        return 1 - after / before if before else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        removed = {f"{kind}_removed": self.removed(kind) for kind in get_args(Kind)}
        return {**asdict(self), **removed}

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "before", "after", "removed")]
        totals = {"layers": self.layers} | {
            kind: tuple(
                sum(getattr(block, moment) for block in self.blocks if block.kind == kind)
                for moment in ("before", "after")
            )
            for kind in get_args(Kind)
        }
        totals |= {"parameters": self.parameters, f"FLOPs of {TOKENS} tokens": self.flops}
        for name, (before, after) in totals.items():
            if before:
                rows.append((name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"))
        if self.latency_ms is not None:
            dense, small = self.latency_ms
            rows.append((f"ms of {TOKENS} tokens", f"{dense:.1f}", f"{small:.1f}", f"{1 - small / dense:.1%}"))
        asked = ", ".join(f"{name}={value!r}" for name, value in self.asked.items())
        return "\n".join([*align(rows, "<>>>"), f"asked: {asked}"])


def prune_structured(
    model: PreTrainedModel,
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    flops: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    drop_layers: int | Sequence[int] = 0,
    importance: Importance = "l1",
    scope: Scope = "global",
    dataset: Iterable[Any] | None = None,
    batch_size: int = 16,
    round_to: int = 8,
) -> StructureReport:
    """Remove the least important attention heads and intermediate neurons from a classifier, in place.

    What is left is an ordinary, smaller dense model: width, embeddings and classification head stay as they were. Its
    config says its shapes, so what it saves loads again: by plain transformers where the config can say them, and else
    after ``import hfcompress``. Before returning, the call compares the model's answer to a short text with that of the
    whole model in which the same heads and neurons say nothing, and undoes everything if they differ.

    Args:
        model: A sequence classifier, not wrapped, without adapters.
        heads: Fraction of the heads to remove, in [0, 1). Under grouped queries a head is a key-value head with all its
            queries; where all layers share a position bias (MPNet), the same heads go everywhere.
        neurons: Fraction of the intermediate neurons to remove, in [0, 1).
        flops: Instead of fractions: what share of the model's FLOPs (of a text of 128 tokens) to keep at most, in (0,
            1). Heads and neurons are chosen together so that the least importance is lost for it.
        parameters: The same for the share of all parameters.
        latency: The same for the share of the time that a text of 128 tokens takes, measured here and now, again and
            again while the FLOPs to keep are narrowed down. A busy machine measures badly.
        drop_layers: Whole layers to remove first: their indices, or how many, the least important ones then.
        importance: ``"l1"`` needs no data; ``"taylor"`` and ``"fisher"`` need a labelled ``dataset`` (see
            `hfcompress.importance`). With ``"l1"`` heads and neurons cannot be weighed against each other: to meet a
            budget, the same fraction of both is removed.
        scope: ``"global"``: the least important of all layers; ``"layer"``: the same fraction of each.
        dataset: Rows with ``input_ids``, ``labels`` and other inputs, as a Trainer takes them (a few hundred will do);
            or batches of tensors.
        batch_size: Rows in a batch of theirs.
        round_to: Neurons stay in multiples of this, which is friendly to kernels; at least that many, and one head,
            stay in each layer.

    Returns:
        What was asked, and what was removed: heads, neurons, parameters, FLOPs.

    Raises:
        CompressionError: An argument is out of range, a budget cannot be met, the architecture is not understood, or
            the model is wrapped, quantized or on the meta device. The model is untouched then.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> report = prune_structured(model, heads=0.5, neurons=0.5)
        >>> report.removed("heads"), report.removed("neurons"), sum(p.numel() for p in model.parameters())
        (0.5, 0.5, 1003074)
    """
    given: dict[str, Any] = {"heads": heads, "neurons": neurons, "drop_layers": drop_layers}
    given |= {"flops": flops, "parameters": parameters, "latency": latency}
    asked = {name: value for name, value in given.items() if _is_asked(value)}
    _check_arguments(model, asked, importance, scope, round_to, dataset)
    budget = next((name for name in _BUDGETS if name in asked), None)
    kinds: list[Kind] = [kind for kind in get_args(Kind) if kind in asked or budget is not None]
    units = [one for kind in kinds for one in find_units(model, kind)]
    for one in units:
        _check_cuttable(model, one)
    batches = None if importance == "l1" else batches_of(model, dataset, batch_size)

    try:
        before = sizes(model)
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} does not answer a short text: {error}") from error
    undone: list[Undo] = [own_configs(model)]  # which other models may share
    try:
        if "drop_layers" in asked:
            undone.append(_drop_layers(model, drop_layers, importance, batches))
            units = [one for kind in kinds for one in find_units(model, kind)]
        blocks: list[BlockStructure] = []
        times: tuple[float, float] | None = None
        if units:
            scores = importance_scores(model, units, importance, batches)
            if budget is None:
                removed = choose(units, scores, asked, scope=scope, round_to=round_to)
                undone += _cut_and_compare(model, units, removed)
            else:
                options = {"additive": importance != "l1", "scope": scope, "round_to": round_to}
                if budget == "latency":
                    removed, cuts, times = _meet_latency(model, units, scores, asked[budget], options)
                else:
                    removed, cuts = _meet(model, units, scores, budget, asked[budget] * before[budget], options)
                undone += cuts
            blocks = [BlockStructure(u.name, u.kind, u.count, u.count - len(removed[u])) for u in units]
            write_plan(model)
    except BaseException:
        for undo in reversed(undone):
            undo()
        raise
    after = sizes(model)
    return StructureReport(
        blocks=tuple(blocks),
        layers=(before["layers"], after["layers"]),
        parameters=(before["parameters"], after["parameters"]),
        flops=(before["flops"], after["flops"]),
        asked=asked,
        latency_ms=times,
    )


def _meet(
    model: PreTrainedModel, units: list[Units], scores: list[Tensor], what: str, budget: float, options: dict[str, Any]
) -> tuple[dict[Units, set[int]], list[Undo]]:
    """Cut until the model's FLOPs or parameters are within a budget."""
    if what == "flops":
        tokens = short_text(model)["input_ids"].shape[1]
        costs = [flops_of(model, one, tokens, calls) for one, calls in zip(units, calls_of(model, units), strict=True)]
    else:
        costs = [parameters_of(model, one) for one in units]
    surplus, step = sizes(model)[what] - budget, 1
    most = choose_for_budget(units, scores, costs, math.inf, **options)
    while True:
        removed = choose_for_budget(units, scores, costs, surplus, **options)
        cuts = _cut_and_compare(model, units, removed)
        left = sizes(model)[what]
        if left <= budget:
            return removed, cuts
        for undo in reversed(cuts):
            undo()
        if removed == most:
            raise CompressionError(
                f"A budget of {budget:,.0f} {what} cannot be met by removing heads and neurons: with the fewest "
                f"that must stay in each layer {left:,} are left; ask for more, or drop layers too (drop_layers=)."
            )
        # What a unit costs is known but for what does not depend on the text (DeBERTa's positions).
        surplus, step = surplus + step * (left - budget), 2 * step


def _meet_latency(
    model: PreTrainedModel, units: list[Units], scores: list[Tensor], share: float, options: dict[str, Any]
) -> tuple[dict[Units, set[int]], list[Undo], tuple[float, float]]:
    """Cut as few FLOPs as bring the time of a text within a share, by bisection; each is timed beside the whole model.

    Returns:
        What was removed, how to undo it, and the milliseconds of the whole and the smaller model.
    """
    tokens = short_text(model)["input_ids"].shape[1]
    costs = [flops_of(model, one, tokens, calls) for one, calls in zip(units, calls_of(model, units), strict=True)]
    low, high = 0.0, float(sum(cost * one.count for cost, one in zip(costs, units, strict=True)))
    best: tuple[dict[Units, set[int]], tuple[float, float]] | None = None
    surplus = high  # first whether it can be met at all
    for _ in range(_TRIES):
        removed = choose_for_budget(units, scores, costs, surplus, **options)
        dense = milliseconds(model)
        cuts = _cut_and_compare(model, units, removed)
        small = milliseconds(model)
        for undo in reversed(cuts):
            undo()
        if small <= share * dense:
            best, high = (removed, (dense, small)), surplus
        elif best is None:
            raise CompressionError(
                f"latency={share} cannot be met by removing heads and neurons: with the fewest that must stay in each "
                f"layer, {small / dense:.2f} of the time is left; ask for more, or drop layers before (drop_layers=)."
            )
        else:
            low = surplus
        surplus = (low + high) / 2
    assert best is not None
    return best[0], _cut_and_compare(model, units, best[0]), best[1]


def _drop_layers(
    model: PreTrainedModel, layers: int | Sequence[int], importance: Importance, batches: list[dict[str, Tensor]] | None
) -> Undo:
    name, count = layer_stack(model)
    if isinstance(layers, Integral):
        units = [one for kind in get_args(Kind) for one in find_units(model, kind)]
        if len(units) != 2 * count:
            raise CompressionError(
                f"The layers of {type(model).__name__} cannot be ranked, as they share heads; name them by index."
            )
        scores = [float(score.sum()) for score in importance_scores(model, units, importance, batches)]
        ranked = sorted(range(count), key=lambda index: scores[index] + scores[count + index])
        gone = set(ranked[: int(layers)])
    else:
        assert isinstance(layers, Sequence)
        gone = {int(index) % count for index in layers}
    return keep_layers(model, name, [index for index in range(count) if index not in gone])


def _cut_and_compare(model: PreTrainedModel, units: list[Units], removed: dict[Units, set[int]]) -> list[Undo]:
    """Cut, and make sure that the model answers like the whole one in which what was cut says nothing."""
    device = next(model.parameters()).device
    kept = [sorted(set(range(one.count)) - removed[one]) for one in units]
    masks = []
    for one, stay in zip(units, kept, strict=True):
        mask = torch.zeros(one.count, device=device)
        mask[stay] = 1
        masks.append((one, mask))
    undone: list[Undo] = []
    try:
        # Half precision would hide what is wrong behind its rounding.
        with in_float32(model):
            whole = answer(model)
            with masked(model, masks):
                expected = answer(model)
            for one, stay in zip(units, kept, strict=True):
                undone.append(cut(model, one, stay))
            try:
                found = answer(model)
            except Exception as error:  # whatever a block says to heads or neurons that are missing
                raise CompressionError(f"{_unknown(model)} ({error})") from error
        # What a wrong cut changes is of the size of what the removed ones said.
        tolerance = 0.02 * (whole - expected).abs().max() + 1e-5 * expected.abs().max()
        if not bool(((found - expected).abs() <= tolerance).all()):
            raise CompressionError(_unknown(model))
    except BaseException:
        for undo in reversed(undone):
            undo()
        raise
    return undone


def _unknown(model: PreTrainedModel) -> str:
    return (
        f"{type(model).__name__} without these heads and neurons does not answer like the whole model in which they "
        "say nothing, so its attention or feed-forward blocks are built in a way that is not known; it is unchanged."
    )


def _check_arguments(
    model: object, asked: dict[str, Any], importance: str, scope: str, round_to: Any, dataset: object
) -> None:
    if not isinstance(model, PreTrainedModel):
        raise CompressionError(
            f"The model must be a transformers PreTrainedModel, not {type(model).__name__}; pass the model below "
            "wrappers, adapters merged (PEFT: merge_and_unload())."
        )
    for name in ("heads", "neurons"):
        value = asked.get(name, 0.0)
        if not _is_number(value) or not 0 <= value < 1:
            raise CompressionError(f"{name}={value!r} must be in [0, 1): the fraction of the {name} to remove.")
    for name in _BUDGETS:
        value = asked.get(name, 0.5)
        if not _is_number(value) or not 0 < value < 1:
            raise CompressionError(f"{name}={value!r} must be in (0, 1): the share of the model's {name} to keep.")
    if not asked:
        raise CompressionError(
            "Nothing was asked: give heads=, neurons=, flops=, parameters=, latency= or drop_layers=."
        )
    if len(set(_BUDGETS) & set(asked)) + bool({"heads", "neurons"} & set(asked)) > 1:
        raise CompressionError(
            f"{', '.join(f'{name}={value!r}' for name, value in asked.items())} exclude each other: give fractions of "
            "heads and neurons, or one budget."
        )
    if "latency" in asked and "drop_layers" in asked:
        raise CompressionError(
            f"latency={asked['latency']!r} is measured beside the whole model; drop layers in a call before."
        )
    _check_layers(model, asked.get("drop_layers", 0))
    if importance not in IMPORTANCES:
        raise CompressionError(f"importance={importance!r} is unknown; choose one of {', '.join(IMPORTANCES)}.")
    if scope not in get_args(Scope):
        raise CompressionError(f"scope={scope!r} is unknown; choose one of {', '.join(get_args(Scope))}.")
    if not _is_index(round_to) or round_to < 1:
        raise CompressionError(f"round_to={round_to!r} must be a whole number, 1 or more.")
    if importance != "l1" and dataset is None:
        raise CompressionError(f"importance={importance!r} needs labelled data: pass dataset=, or choose 'l1'.")
    plan = getattr(model.config, "quantization_config", None)
    if plan is not None and not is_plan(plan):
        raise CompressionError(
            f"The config has a quantization_config of its own ({type(plan).__name__}); shrink the model, then quantize."
        )
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise CompressionError(
            "attention_type='block_sparse' turns to another attention for short texts; set "
            "model.set_attention_type('original_full') first."
        )
    for key, parameter in model.named_parameters():
        if parameter.is_meta:
            raise CompressionError(f"{key} is on the meta device and holds no values; load the weights first.")
        if parameter.dtype not in PRUNABLE_DTYPES or type(parameter.data) is not torch.Tensor:
            raise CompressionError(
                f"{key} is quantized or sharded ({type(parameter.data).__name__}, {parameter.dtype}); shrink the "
                "model first, in a floating-point dtype and on one device."
            )


def _is_asked(value: object) -> bool:
    return len(value) > 0 if isinstance(value, Sequence) else value is not None and value != 0


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_layers(model: PreTrainedModel, layers: Any) -> None:
    if layers == 0:
        return
    count = layer_stack(model)[1]
    if _is_index(layers):
        valid = 0 < int(layers) < count
    else:
        valid = isinstance(layers, Sequence) and all(_is_index(index) and -count <= index < count for index in layers)
        valid = valid and len({int(index) % count for index in layers}) < count
    if not valid:
        raise CompressionError(
            f"drop_layers={layers!r} must be a number from 1 to {count - 1}, or indices of the model's {count} layers, "
            "of which at least one must stay."
        )


def _check_cuttable(model: PreTrainedModel, units: Units) -> None:
    for part in units.parts:
        module = model.get_submodule(part.module)
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooks or "weight" not in module._parameters:
            what = "hooks" if hooks else "a parametrization"
            raise CompressionError(
                f"{part.module} has {what}, which would not fit the smaller matrix; remove {'them' if hooks else 'it'} "
                "first."
            )
