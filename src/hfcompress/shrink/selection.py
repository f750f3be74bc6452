"""Which heads and neurons to remove: pure functions of their scores and costs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Literal

import torch
from torch import Tensor

from hfcompress.models.heads_and_neurons import KINDS, Group, Kind

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Chunk:
    """Heads or neurons of one group removed together: one head, or as many neurons as are rounded to."""

    group: Group
    members: tuple[int, ...]
    score: float  # of all of them together
    cost: int  # what removing them saves


def split_chunks(group: Group, scores: Tensor, cost: int, round_to: int) -> list[Chunk]:
    """Split a group into chunks, from the least important; those that must stay are in none."""
    size = round_to if group.kind == "neurons" else 1
    order = scores.argsort(stable=True).tolist()
    ends = range(group.count % size or size, group.count, size)  # so that a multiple of the size is left each time
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [Chunk(group, tuple(part), float(scores[part].sum()), cost * len(part)) for part in parts]


def select(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    fractions: Mapping[str, float],
    *,
    scope: Scope = "global",
    round_to: int = 8,
    left: Mapping[Kind, Sequence[int]] | None = None,
) -> dict[Group, set[int]]:
    """Select heads and neurons to remove, as many as come closest to a fraction of each kind.

    Args:
        groups: Heads and neurons.
        scores: How much each of them matters, shape (count,).
        fractions: ``{"heads": a fraction, "neurons": a fraction}``.
        scope: The least important of all blocks, or the same fraction of each.
        round_to: Neurons stay in multiples of this; at least that many and one head stay in each block.
        left: Where the same number is to be left in all blocks: by kind, the numbers that may be.
    """
    if left is not None:
        merged = _merge(groups, scores, [0] * len(groups), left)
        return _spread(groups, scores, merged, _closest(merged.groups, merged.chunks, fractions, "layer"))
    chunks = [split_chunks(group, score, 0, round_to) for group, score in zip(groups, scores, strict=True)]
    return _members(groups, _closest(groups, chunks, fractions, scope))


def select_for_budget(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    costs: Sequence[int],
    surplus: float,
    *,
    additive: bool,
    scope: Scope = "global",
    round_to: int = 8,
    left: Mapping[Kind, Sequence[int]] | None = None,
) -> dict[Group, set[int]]:
    """Select heads and neurons to remove so that a surplus is saved.

    Args:
        groups: Heads and neurons.
        scores: How much each of them matters, shape (count,).
        costs: What removing one of each group saves.
        surplus: What must be saved.
        additive: Whether the scores of heads and neurons can be added and compared: then the least importance is lost.
            Otherwise, or with scope ``"layer"``, the same fraction of both is removed.
        scope: As for `select`.
        round_to: As for `select`.
        left: As for `select`.

    Returns:
        Their indices; everything that can be removed if even that does not save the surplus.
    """
    if left is not None:
        merged = _merge(groups, scores, costs, left)
        surplus -= merged.saved
        chosen = _for_budget(merged.groups, merged.chunks, surplus, additive=additive, scope="layer")
        return _spread(groups, scores, merged, chosen)
    chunks = [split_chunks(*one, round_to) for one in zip(groups, scores, costs, strict=True)]
    return _members(groups, _for_budget(groups, chunks, surplus, additive=additive and scope == "global", scope=scope))


def _for_budget(
    groups: Sequence[Group], chunks: Sequence[Sequence[Chunk]], surplus: float, *, additive: bool, scope: Scope
) -> list[Chunk]:
    if additive:
        return _cheapest(chain.from_iterable(chunks), surplus)

    def thousandths(count: int) -> list[Chunk]:
        return _closest(groups, chunks, dict.fromkeys(KINDS, count / 1000), scope)

    fewest = bisect_left(range(1000), surplus, key=lambda count: sum(chunk.cost for chunk in thousandths(count)))
    return thousandths(fewest)


@dataclass(frozen=True)
class _Merged:
    """The blocks of each kind as one block: its units are the least important one of each together, and so on.

    Attributes:
        groups: One a kind.
        chunks: What is removed of each to come from one number that may be left to the next.
        saved: What is saved by removing what the larger blocks have more than that, which is done in any case.
    """

    groups: list[Group]
    chunks: list[list[Chunk]]
    saved: int


def _merge(
    groups: Sequence[Group], scores: Sequence[Tensor], costs: Sequence[int], left: Mapping[Kind, Sequence[int]]
) -> _Merged:
    merged = _Merged([], [], sum(cost * (g.count - max(left[g.kind])) for cost, g in zip(costs, groups, strict=True)))
    for kind in dict.fromkeys(group.kind for group in groups):
        mine = [index for index, group in enumerate(groups) if group.kind == kind]
        counts = sorted(left[kind], reverse=True)
        group = replace(groups[mine[0]], count=counts[0])
        ranked = torch.stack([scores[n].sort().values[groups[n].count - counts[0] :] for n in mine]).sum(0)
        cost = sum(costs[n] for n in mine)
        parts = [range(counts[0] - before, counts[0] - after) for before, after in pairwise(counts)]
        made = [Chunk(group, tuple(one), float(ranked[one.start : one.stop].sum()), cost * len(one)) for one in parts]
        merged.groups.append(group)
        merged.chunks.append(made)
    return merged


def _spread(
    groups: Sequence[Group], scores: Sequence[Tensor], merged: _Merged, chosen: Sequence[Chunk]
) -> dict[Group, set[int]]:
    """Return what to remove of each block where as many are to be left in all as of the merged one."""
    left = {group.kind: group.count - len(gone) for group, gone in _members(merged.groups, chosen).items()}
    return {
        group: set(score.argsort(stable=True)[: group.count - left[group.kind]].tolist())
        for group, score in zip(groups, scores, strict=True)
    }


def _members(groups: Sequence[Group], chosen: Sequence[Chunk]) -> dict[Group, set[int]]:
    removed: dict[Group, set[int]] = {one: set() for one in groups}
    for chunk in chosen:
        removed[chunk.group].update(chunk.members)
    return removed


def _closest(
    groups: Sequence[Group], chunks: Sequence[Sequence[Chunk]], fractions: Mapping[str, float], scope: Scope
) -> list[Chunk]:
    """The least important chunks, as many as come closest to the fraction of each kind: of all, or of each block."""
    chosen = []
    for kind in KINDS:
        mine = [pair for pair in zip(groups, chunks, strict=True) if pair[0].kind == kind]
        for pool in [mine] if scope == "global" else [[pair] for pair in mine]:
            target, gone = fractions.get(kind, 0.0) * sum(group.count for group, _ in pool), 0
            ranked = sorted(chain(*(own for _, own in pool)), key=lambda chunk: chunk.score / len(chunk.members))
            for chunk in ranked:
                if gone + len(chunk.members) / 2 > target:
                    break
                chosen.append(chunk)
                gone += len(chunk.members)
    return chosen


def _cheapest(chunks: Iterable[Chunk], surplus: float) -> list[Chunk]:
    """Heads and neurons that save the surplus and lose the least importance (Kwon et al. 2022, algorithm 1).

    For each number of heads, in the order of their importance, the neurons to remove beside them; the best of all.
    """
    ranked = sorted(chunks, key=lambda chunk: chunk.score / max(1, chunk.cost))
    heads, neurons = ([chunk for chunk in ranked if chunk.group.kind == kind] for kind in KINDS)
    saved, lost = _sums(neurons)
    best, least = (len(heads), len(neurons)), math.inf
    for number, (cost, score) in enumerate(zip(*_sums(heads), strict=True)):
        count = bisect_left(saved, surplus - cost)  # the fewest neurons that save the rest
        if count <= len(neurons) and score + lost[count] < least:
            best, least = (number, count), score + lost[count]
    return heads[: best[0]] + neurons[: best[1]]


def _sums(chunks: Sequence[Chunk]) -> tuple[list[int], list[float]]:
    """Costs and scores of the first chunks together, from none of them to all."""
    costs = accumulate((chunk.cost for chunk in chunks), initial=0)
    return list(costs), list(accumulate((chunk.score for chunk in chunks), initial=0.0))
