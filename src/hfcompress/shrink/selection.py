"""Which heads and neurons to remove: pure functions of their scores and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hfcompress.models.heads_and_neurons import KINDS, Group, Kind

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Chunk:
    """Heads or neurons of one group removed together: one head, or as many neurons as are rounded to."""

    group: Group
    members: tuple[int, ...]
    score: float  # of all of them together

    @property
    def mean(self) -> float:
        """The score of one of them, on average."""
        return self.score / len(self.members)


def split_chunks(group: Group, scores: Tensor, round_to: int) -> list[Chunk]:
    """Split a group into chunks, from the least important; those that must stay are in none."""
    size = round_to if group.kind == "neurons" else 1
    order = scores.argsort(stable=True).tolist()
    ends = range(group.count % size or size, group.count, size)  # so that a multiple of the size is left each time
    starts = [0, *ends]
    return [
        Chunk(group, tuple(order[start:end]), float(scores[order[start:end]].sum()))
        for start, end in zip(starts, ends, strict=False)
    ]


def select(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    fractions: Mapping[str, float],
    *,
    scope: Scope = "global",
    round_to: int = 8,
) -> dict[Group, set[int]]:
    """Select heads and neurons to remove, as many as come closest to a fraction of each kind.

    Args:
        groups: Heads and neurons.
        scores: How much each of them matters, shape (count,).
        fractions: ``{"heads": a fraction, "neurons": a fraction}``.
        scope: The least important of all blocks, or the same fraction of each.
        round_to: Neurons stay in multiples of this; at least that many and one head stay in each block.
    """
    chunks = _all_chunks(groups, scores, round_to)
    return _members(groups, [c for kind in KINDS for c in _fraction(groups, chunks, kind, fractions, scope)])


def select_for_budget(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    costs: Sequence[int],
    surplus: float,
    *,
    additive: bool,
    scope: Scope = "global",
    round_to: int = 8,
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

    Returns:
        Their indices; everything that can be removed if even that does not save the surplus.
    """
    chunks, each = _all_chunks(groups, scores, round_to), dict(zip(groups, costs, strict=True))
    choice = (
        _cheapest(chunks, each, surplus)
        if additive and scope == "global"
        else _even(groups, chunks, each, surplus, scope)
    )
    return _members(groups, choice)


def _all_chunks(groups: Sequence[Group], scores: Sequence[Tensor], round_to: int) -> list[Chunk]:
    return [chunk for one, score in zip(groups, scores, strict=True) for chunk in split_chunks(one, score, round_to)]


def _members(groups: Sequence[Group], chosen: Sequence[Chunk]) -> dict[Group, set[int]]:
    removed: dict[Group, set[int]] = {one: set() for one in groups}
    for chunk in chosen:
        removed[chunk.group].update(chunk.members)
    return removed


def _fraction(
    groups: Sequence[Group], chunks: Sequence[Chunk], kind: Kind, fractions: Mapping[str, float], scope: Scope
) -> list[Chunk]:
    """The least important chunks of a kind, as many as come closest to its fraction: of all, or of each block."""
    fraction = fractions.get(kind, 0.0)
    mine = [one for one in groups if one.kind == kind]
    chosen = []
    for ranked in [mine] if scope == "global" else [[one] for one in mine]:
        target, gone = fraction * sum(one.count for one in ranked), 0
        for chunk in sorted((chunk for chunk in chunks if chunk.group in ranked), key=lambda chunk: chunk.mean):
            if gone + len(chunk.members) / 2 > target:
                break
            chosen.append(chunk)
            gone += len(chunk.members)
    return chosen


def _even(
    groups: Sequence[Group], chunks: list[Chunk], each: dict[Group, int], surplus: float, scope: Scope
) -> list[Chunk]:
    """The smallest fraction of both heads and neurons that saves the surplus."""
    for step in range(1001):
        both: dict[str, float] = dict.fromkeys(KINDS, step / 1000)
        chosen = [chunk for kind in KINDS for chunk in _fraction(groups, chunks, kind, both, scope)]
        if sum(each[chunk.group] * len(chunk.members) for chunk in chosen) >= surplus:
            return chosen
    return chunks


def _cheapest(chunks: list[Chunk], each: dict[Group, int], surplus: float) -> list[Chunk]:
    """Heads and neurons that save the surplus and lose the least importance (Kwon et al. 2022, algorithm 1).

    For each number of heads, in the order of their importance, the neurons to remove beside them; the best of all.
    """
    ordered: dict[str, list[Chunk]] = {kind: [] for kind in KINDS}
    for chunk in sorted(chunks, key=lambda chunk: chunk.score / (each[chunk.group] * len(chunk.members))):
        ordered[chunk.group.kind].append(chunk)
    sums: dict[str, list[tuple[float, float]]] = {}  # of the first chunks: what they save, what they lose
    for kind, those in ordered.items():
        saved = lost = 0.0
        sums[kind] = [(0.0, 0.0)]
        for chunk in those:
            saved, lost = saved + each[chunk.group] * len(chunk.members), lost + chunk.score
            sums[kind].append((saved, lost))
    best, least = (len(ordered["heads"]), len(ordered["neurons"])), math.inf
    count = len(ordered["neurons"])
    for number, (saved, lost) in enumerate(sums["heads"]):
        while count and sums["neurons"][count - 1][0] + saved >= surplus:
            count -= 1  # the more heads are removed, the fewer neurons must be
        if saved + sums["neurons"][count][0] >= surplus and lost + sums["neurons"][count][1] < least:
            best, least = (number, count), lost + sums["neurons"][count][1]
    return ordered["heads"][: best[0]] + ordered["neurons"][: best[1]]
