"""Finds what to remove of a model so that it takes a share of the original's time, and removes it."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.blocks import Shape
from hfcompress.models.profiling import TimeTable
from hfcompress.search.clock import Clock
from hfcompress.search.loss_table import (
    PARTS,
    BlockLosses,
    Plan,
    best_plan,
    fastest_plan,
    improve,
    predicted_time,
    removal_orders,
    tabulate_losses,
)
from hfcompress.search.processes import agree, processes
from hfcompress.search.request import Request
from hfcompress.search.rows import Parts
from hfcompress.search.stitching import StitchedModel
from hfcompress.search.structure import Structure, apply_plan, find_structure
from hfcompress.shrink.importance import importance_scores, labelled_batches
from hfcompress.shrink.reconstruction import Calibration, read_calibration

_BATCH = 16
_TRIES = 5  # plans whose time is measured; each aims at the middle by what the one before missed it
_BAND = (0.94, 0.99)  # of the time, where a plan meets it: not by chance, and without removing more than is needed


class TooFastError(CompressionError):
    """No plan takes so little time.

    Attributes:
        share: What share of the original's time the fastest takes.
    """

    def __init__(self, share: float) -> None:
        super().__init__(f"Even the fewest heads, neurons and layers take {share:.3f} of the time.")
        self.share = share


@dataclass(frozen=True)
class Search:
    """How plans are searched for.

    Attributes:
        clock: Times models beside the original.
        times: The table of times.
        request: What is asked of the models.
    """

    clock: Clock
    times: TimeTable
    request: Request


@dataclass(frozen=True)
class Candidate:
    """A smaller model, not trained yet.

    Attributes:
        model: The model.
        plan: What is left of each block of the model that it was made of.
        predicted: What share of the original's time the table of times says.
        evaluated: How many plans were evaluated.
    """

    model: PreTrainedModel
    plan: Plan
    predicted: float
    evaluated: int


def make_candidate(
    model: PreTrainedModel, search: Search, parts: Parts, share: float, tick: Callable[[float], None]
) -> Candidate:
    """Make a smaller model that takes a share of the original's time, as measured where a few tries suffice.

    Args:
        model: What to make it of, which is not changed: the original, or the rung above.
        search: How.
        parts: Whose rows to learn from rank, reconstruct and evaluate.
        share: Of the original's time, at most.
        tick: Called with what share of this is done.

    Raises:
        TooFastError: No plan takes so little time.
    """
    structure, importance = find_structure(model), search.request.importance
    rows = parts.calibration(labels=importance != "obs")
    calibration = read_calibration(model, [{n: row[n] for n in row if n != "labels"} for row in rows], _BATCH)
    texts = [*calibration.fit, *calibration.held_out]
    batches = texts if importance == "obs" else labelled_batches(model, rows, _BATCH)
    scores = importance_scores(model, structure.groups, importance, batches)
    tick(0.2)
    try:
        return _make(model, structure, scores, calibration, search, share, tick)
    except _NoSuchLayersError:
        structure = replace(structure, removable=[False] * len(structure.blocks))
        return _make(model, structure, scores, calibration, search, share, tick)


class _NoSuchLayersError(CompressionError):
    """The layers that a plan keeps are no model: a pattern of layers must repeat, for example."""


def weigh_layers(losses: Sequence[BlockLosses], evaluate: Callable[[Plan], float]) -> list[BlockLosses]:
    """Replace what leaving out a layer loses by what it is found to lose, in the unit of the scores.

    The scores of a layer's heads and neurons do not add up to what the model loses without all of them. So the model
    is evaluated without each layer, and with half of the neurons (or heads) of each, of which the scores are known.

    Args:
        losses: By the scores.
        evaluate: The loss of a plan on calibration rows.
    """
    full: list[Shape] = [(max(own.heads), max(own.neurons)) for own in losses]
    units = []
    for index, own in enumerate(losses):
        count = min(own.neurons, key=lambda n: abs(2 * n - full[index][1]))
        heads = min(own.heads, key=lambda n: abs(2 * n - full[index][0]))
        by_neurons = own.neurons[count] > 0
        scored = own.neurons[count] if by_neurons else own.heads[heads]
        shape = (full[index][0], count) if by_neurons else (heads, full[index][1])
        if scored > 0:
            units.append(evaluate((*full[:index], shape, *full[index + 1 :])) / scored)
    unit = statistics.median(units) if units else 0.0
    if not unit > 0 or not math.isfinite(unit):
        return list(losses)
    found = []
    for index, own in enumerate(losses):
        layer = own.layer
        if layer is not None:
            try:
                layer = evaluate((*full[:index], None, *full[index + 1 :])) / unit
            except CompressionError:  # the model cannot do without it
                layer = None
        found.append(replace(own, layer=layer))
    return found


def _share(clock: Clock, model: PreTrainedModel, structure: Structure, plan: Plan, least: float, most: float) -> float:
    """Time a plan in the first process; once more if it does not lie between, as other programs disturb a stopwatch."""
    if not processes().is_main_process:
        return 0.0
    found = clock.share_of_plan(model, structure, plan)
    return found if least <= found <= most else (found + clock.share_of_plan(model, structure, plan)) / 2


def _make(
    model: PreTrainedModel,
    structure: Structure,
    scores: Sequence[Tensor],
    calibration: Calibration,
    search: Search,
    share: float,
    tick: Callable[[float], None],
) -> Candidate:
    """Search, time what is found, aim again if it misses its time, and make the model."""
    request, orders = search.request, removal_orders(structure.groups, scores)
    by_group = dict(zip(structure.groups, scores, strict=True))
    losses = tabulate_losses(structure.blocks, by_group, request.round_to, structure.removable)
    stitched = StitchedModel(model, structure, orders, [*calibration.fit, *calibration.held_out])
    if any(structure.removable):
        losses = weigh_layers(losses, stitched.loss)
    least = predicted_time(fastest_plan(losses), search.times)
    if least > share:
        raise TooFastError(least)
    aim = max(least, statistics.mean(_BAND) * share)
    done, weights, evaluations = 0, np.ones((len(losses), PARTS)), request.evaluations
    (low, high), timed = _BAND, list[tuple[float, Plan]]()
    for _ in range(_TRIES):

        def find(weights: np.ndarray, limit: float = aim) -> Plan | None:
            return best_plan(structure.blocks, losses, search.times, limit, weights)

        def evaluate(plan: Plan) -> float:
            nonlocal done
            done += 1
            tick(0.2 + 0.7 * min(1.0, done / (1.5 * request.evaluations)))
            try:
                return stitched.loss(plan)
            except CompressionError:  # the model cannot do without these layers together
                return math.inf

        plan, weights, tried = improve(find, evaluate, weights, evaluations=evaluations, seed=request.seed)
        if not math.isfinite(min(tried)):
            raise _NoSuchLayersError("The model cannot do without the layers that each plan in this time leaves out.")
        evaluations = max(1, request.evaluations // 4)  # of another try, which begins with the weights that were found
        plan = agree(plan)
        found = agree(_share(search.clock, model, structure, plan, low * share, high * share))
        timed.append((found, plan))
        aim *= statistics.mean(_BAND) * share / found
        if low * share <= found <= high * share or aim < least or plan in [before for _, before in timed[:-1]]:
            break
    fast = [one for one in timed if one[0] <= high * share]
    plan = max(fast, key=itemgetter(0))[1] if fast else min(timed, key=itemgetter(0))[1]
    smaller = copy.deepcopy(model)
    try:
        apply_plan(smaller, structure, plan, orders, calibration if request.reconstruct else None)
    except CompressionError as error:
        if any(structure.removable) and None in plan:
            raise _NoSuchLayersError(str(error)) from error
        raise
    tick(1.0)
    return Candidate(smaller, plan, predicted_time(plan, search.times), done)
