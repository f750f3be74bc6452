"""What of a model to remove, as asked: heads and neurons found, scored and selected; layers ranked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import evaluation_mode, get_logits
from hfcompress.models.heads_and_neurons import KINDS, Group, Kind, find_groups
from hfcompress.models.inputs import Batch
from hfcompress.models.labels import LABELS
from hfcompress.models.layers import layer_stack
from hfcompress.models.padding import without_padding
from hfcompress.models.shapes_in_config import stated_counts
from hfcompress.models.traced_neurons import find_or_trace
from hfcompress.shrink.budget import Budget, BudgetError
from hfcompress.shrink.data import Data
from hfcompress.shrink.importance import importance_scores
from hfcompress.shrink.layers import keep_layers
from hfcompress.shrink.reconstruction import Twins, reconstruct_outputs
from hfcompress.shrink.request import Request
from hfcompress.shrink.selection import select
from hfcompress.shrink.verified_removal import LayoutError, Removal, remove_and_verify
from hfcompress.validation import is_integer

_WORSE = 2  # numbers of layers that are worse than the best before no more are tried


@dataclass(frozen=True)
class Found:
    """Heads and neurons that can be removed.

    Attributes:
        groups: Those of each block.
        left: By kind, the numbers that may be left in each block, the same in all; None where they may differ.
    """

    groups: list[Group]
    left: dict[Kind, list[int]] | None = None


@dataclass(frozen=True)
class Choice:
    """Heads and neurons to remove.

    Attributes:
        removal: Them, by group; empty where only layers are removed.
        latency_ms: For a budget of latency, the milliseconds before and after.
    """

    removal: Removal
    latency_ms: tuple[float, float] | None = None


def find(model: PreTrainedModel, request: Request) -> Found:
    """Find the heads and neurons that are asked for; for a budget those of the two that can be removed.

    Raises:
        CompressionError: They have no known layout, or all neurons would stay, or a smaller matrix would not fit where
            they are, or no plain config states fewer of them.
    """
    groups: list[Group] = []
    unknown: list[CompressionError] = []
    for kind in request.kinds:
        try:
            groups += find_or_trace(model, kind)
        except CompressionError as error:
            unknown.append(error)
    if unknown and (request.measure is None or not groups):
        raise unknown[0]
    widest = max((group.count for group in groups if group.kind == "neurons"), default=0)
    if "neurons" in request.asked and widest <= request.round_to:
        raise CompressionError(
            f"round_to={request.round_to} leaves at least so many neurons in each layer, and {type(model).__name__} "
            f"has {widest} in its widest, so none can be removed; choose a smaller one, or leave out neurons=."
        )
    for name in dict.fromkeys(part.module for group in groups for part in group.slices):
        module = model.get_submodule(name)
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooks or "weight" not in module._parameters:
            raise CompressionError(
                f"{name} has {'hooks' if hooks else 'a parametrization'}, which would not fit the smaller matrix; "
                f"remove {'them' if hooks else 'it'} first."
            )
    return _keep_plain(model, groups, request) if request.plain else Found(groups)


def _keep_plain(model: PreTrainedModel, groups: Sequence[Group], request: Request) -> Found:
    """Keep the heads and neurons, for a budget those of the two, of which a plain config can state a smaller number."""
    left: dict[Kind, list[int]] = {}
    unknown: list[CompressionError] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        try:
            left[kind] = stated_counts(model, [group for group in groups if group.kind == kind], request.round_to)
        except CompressionError as error:
            unknown.append(error)
    if unknown and (request.measure is None or not left):
        raise unknown[0]
    return Found([group for group in groups if group.kind in left], left)


def choose(model: PreTrainedModel, found: Found, request: Request, data: Data, budget: Budget | None) -> Choice:
    """Choose heads and neurons to remove, by fractions or for a budget; only neurons where it fails without heads.

    Raises:
        BudgetError: It cannot be met.
    """
    if not found.groups:
        return Choice({})
    score = partial(importance_scores, model, kind=data.importance, batches=data.batches)
    if budget is None:
        scores = score(found.groups)
        return Choice(
            select(found.groups, scores, request.asked, scope=request.scope, round_to=request.round_to, left=found.left)
        )
    neurons = [group for group in found.groups if group.kind == "neurons"]
    meet = partial(
        budget.select,
        model,
        score=score,
        additive=data.importance != "l1",
        scope=request.scope,
        round_to=request.round_to,
        left=found.left,
    )
    if len(neurons) in (0, len(found.groups)):
        return Choice(*meet(found.groups))
    try:
        chosen = Choice(*meet(found.groups))
        with ExitStack() as trial:
            remove_and_verify(model, chosen.removal, trial)
    except LayoutError:  # a record may fit the heads by its names alone (DiffLlama, OLMo2)
        return Choice(*meet(neurons))
    return chosen


def choose_with_layers(
    model: PreTrainedModel,
    found: Found,
    request: Request,
    data: Data,
    budget: Budget,
    twins: Twins,
    undo: ExitStack,
) -> Choice:
    """Choose heads and neurons to remove for a budget, and layers, which are dropped, in place.

    The least important layers are dropped, but for those that the model cannot do without. How many is tried with a
    fourth of the texts, from the fewest that bring the budget within reach to those that meet it alone, or until two
    in turn were worse than the best. Without texts they are the fewest.

    Args:
        model: With all layers.
        found: Its heads and neurons.
        request: What is asked.
        data: What ranks, and tells how much the logits change.
        budget: What to meet.
        twins: By module of the model, that of the original.
        undo: Puts the layers back when it is closed.

    Raises:
        BudgetError: It cannot be met, or the layers cannot be ranked or dropped.
    """
    part = data.part()
    expected = None if part.batches is None else _logits(model, part.batches)
    trial = partial(_try_layers, model, found, request=request, data=part, budget=budget, twins=twins)
    best, least, worse = None, math.inf, 0
    refusal: BudgetError | None = None
    for kept in _fewer_layers(model, data):
        try:
            loss, is_last = trial(kept, expected=expected)
        except BudgetError as error:
            refusal = error
            continue
        worse = 0 if loss < least else worse + 1
        if best is None or loss < least:
            best, least = kept, loss
        if is_last or worse == _WORSE or loss == math.inf:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    return choose(model, _keep_layers(model, found, best, request, undo), request, data, budget)


def _fewer_layers(model: PreTrainedModel, data: Data) -> Iterator[list[int]]:
    """Yield all layers, then those without the least important one, and so on; only all if they cannot be ranked."""
    try:
        stack, count = layer_stack(model)
    except CompressionError:
        yield []
        return
    kept = list(range(count))
    yield kept
    try:
        ranked = rank_layers(model, data)
    except CompressionError:
        return
    for layer in ranked:
        fewer = [index for index in kept if index != layer]
        if not fewer:
            return
        try:
            with ExitStack() as trial:
                keep_layers(model, stack, fewer, trial)
        except CompressionError:  # such as the first of a ModernBERT
            continue
        kept = fewer
        yield kept


def _keep_layers(model: PreTrainedModel, found: Found, kept: Sequence[int], request: Request, undo: ExitStack) -> Found:
    """Keep these layers, in place, and return the heads and neurons that there are then."""
    if not kept or len(kept) == (stack := layer_stack(model))[1]:
        return found
    keep_layers(model, stack[0], kept, undo)
    return find(model, request)


def _try_layers(
    model: PreTrainedModel,
    found: Found,
    kept: Sequence[int],
    *,
    request: Request,
    data: Data,
    budget: Budget,
    twins: Twins,
    expected: Tensor | None,
) -> tuple[float, bool]:
    """Return how much the logits change with these layers, infinite where nothing tells; and whether they alone do.

    Raises:
        BudgetError: They do not meet the budget.
    """
    with ExitStack() as trial:
        chosen = choose(model, _keep_layers(model, found, kept, request, trial), request, data, budget)
        if data.calibration is None and data.batches is None:
            return math.inf, True
        if chosen.removal:
            remove_and_verify(model, chosen.removal, trial)
        alone = not any(chosen.removal.values())
        if data.calibration is not None:
            error = reconstruct_outputs(model, twins, list(chosen.removal), data.calibration, trial).logits_error[1]
            return error, alone
        assert data.batches is not None
        assert expected is not None
        return float((_logits(model, data.batches) - expected).square().mean()), alone


def _logits(model: PreTrainedModel, batches: Sequence[Batch]) -> Tensor:
    with evaluation_mode(model), without_padding(model):
        found = [model(**{name: value for name, value in one.items() if name not in LABELS}) for one in batches]
    return torch.cat([get_logits(outputs).cpu().double() for outputs in found])


def drop_layers(model: PreTrainedModel, layers: Any, data: Data, undo: ExitStack) -> None:
    """Drop layers, in place: those with these indices, or so many, the least important ones."""
    stack, count = layer_stack(model)
    if is_integer(layers):
        kept = sorted(rank_layers(model, data)[layers:])
    else:
        kept = sorted(set(range(count)) - {index % count for index in layers})
    keep_layers(model, stack, kept, undo)


def rank_layers(model: PreTrainedModel, data: Data) -> list[int]:
    """Return the indices of the layers, the least important first."""
    count = layer_stack(model)[1]
    groups: list[Group] = []
    with suppress(CompressionError):
        groups = [group for kind in KINDS for group in find_groups(model, kind)]
    if len(groups) != 2 * count:
        raise CompressionError(
            f"The layers of {type(model).__name__} cannot be ranked, as their heads or neurons have no known layout, "
            "or they share heads, or have several blocks of a kind; name them by index (drop_layers=[1])."
        )
    scores = [float(score.sum()) for score in importance_scores(model, groups, data.importance, data.batches)]
    return sorted(range(count), key=lambda index: scores[index] + scores[count + index])
