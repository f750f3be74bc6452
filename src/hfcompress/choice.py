"""Which heads and neurons go: pure functions of their scores and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from hfcompress.blocks import Kind, Units

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Chunk:
    """Heads or neurons of one block that go together: one head, or as many neurons as are rounded to."""

    units: Units
    members: tuple[int, ...]
    score: float  # of all of them together

    @property
    def mean(self) -> float:
        """The score of one of them, on average."""
        return self.score / len(self.members)


def chunks_of(units: Units, scores: Tensor, round_to: int) -> list[Chunk]:
    """Cut a block's heads or neurons into chunks, from the least important; those that must stay are in none."""
    size = round_to if units.kind == "neurons" else 1
    order = scores.argsort(stable=True).tolist()
    ends = range(units.count % size or size, units.count, size)  # so that a multiple of the size is left each time
    starts = [0, *ends]
    return [
        Chunk(units, tuple(order[start:end]), float(scores[order[start:end]].sum()))
        for start, end in zip(starts, ends, strict=False)
    ]


def choose(
    units: Sequence[Units],
    scores: Sequence[Tensor],
    fractions: Mapping[str, float],
    *,
    scope: Scope = "global",
    round_to: int = 8,
) -> dict[Units, set[int]]:
    """Say which heads and neurons go, as many as come closest to a fraction of each kind.

    Args:
        units: The heads or neurons of each block.
        scores: How much each of them matters, shape (count,).
        fractions: ``{"heads": a fraction, "neurons": a fraction}``.
        scope: The least important of all blocks, or the same fraction of each.
        round_to: Neurons stay in multiples of this; at least that many and one head stay in each block.
    """
    chunks = _all_chunks(units, scores, round_to)
    return _members(units, [c for kind in get_args(Kind) for c in _fraction(units, chunks, kind, fractions, scope)])


def choose_for_budget(
    units: Sequence[Units],
    scores: Sequence[Tensor],
    costs: Sequence[int],
    surplus: float,
    *,
    additive: bool,
    scope: Scope = "global",
    round_to: int = 8,
) -> dict[Units, set[int]]:
    """Say which heads and neurons go to save a surplus.

    Args:
        units: The heads or neurons of each block.
        scores: How much each of them matters, shape (count,).
        costs: What removing one of a block saves.
        surplus: What must be saved.
        additive: Whether the scores of heads and neurons can be added and compared: then the least importance is lost.
            Otherwise, or with scope ``"layer"``, the same fraction of both goes.
        scope: As for `choose`.
        round_to: As for `choose`.

    Returns:
        Their indices; everything that can go if even that does not save the surplus.
    """
    chunks, each = _all_chunks(units, scores, round_to), dict(zip(units, costs, strict=True))
    choice = (
        _cheapest(chunks, each, surplus)
        if additive and scope == "global"
        else _even(units, chunks, each, surplus, scope)
    )
    return _members(units, choice)


def _all_chunks(units: Sequence[Units], scores: Sequence[Tensor], round_to: int) -> list[Chunk]:
    return [chunk for one, score in zip(units, scores, strict=True) for chunk in chunks_of(one, score, round_to)]


def _members(units: Sequence[Units], chosen: Sequence[Chunk]) -> dict[Units, set[int]]:
    removed: dict[Units, set[int]] = {one: set() for one in units}
    for chunk in chosen:
        removed[chunk.units].update(chunk.members)
    return removed


def _fraction(
    units: Sequence[Units], chunks: Sequence[Chunk], kind: Kind, fractions: Mapping[str, float], scope: Scope
) -> list[Chunk]:
    """The least important chunks of a kind, as many as come closest to its fraction: of all, or of each block."""
    fraction = fractions.get(kind, 0.0)
    mine = [one for one in units if one.kind == kind]
    groups = [mine] if scope == "global" else [[one] for one in mine]
    chosen = []
    for group in groups:
        target, gone = fraction * sum(one.count for one in group), 0
        for chunk in sorted((chunk for chunk in chunks if chunk.units in group), key=lambda chunk: chunk.mean):
            if gone + len(chunk.members) / 2 > target:
                break
            chosen.append(chunk)
            gone += len(chunk.members)
    return chosen


def _even(
    units: Sequence[Units], chunks: list[Chunk], each: dict[Units, int], surplus: float, scope: Scope
) -> list[Chunk]:
    """The smallest fraction of both heads and neurons that saves the surplus."""
    for step in range(1001):
        both = dict.fromkeys(get_args(Kind), step / 1000)
        chosen = [chunk for kind in get_args(Kind) for chunk in _fraction(units, chunks, kind, both, scope)]
        if sum(each[chunk.units] * len(chunk.members) for chunk in chosen) >= surplus:
            return chosen
    return chunks


def _cheapest(chunks: list[Chunk], each: dict[Units, int], surplus: float) -> list[Chunk]:
    """Heads and neurons that save the surplus and lose the least importance (Kwon et al. 2022, algorithm 1).

    For each number of heads, in the order of their importance, the neurons that must go beside them; the best of all.
    """
    ordered: dict[str, list[Chunk]] = {kind: [] for kind in get_args(Kind)}
    for chunk in sorted(chunks, key=lambda chunk: chunk.score / (each[chunk.units] * len(chunk.members))):
        ordered[chunk.units.kind].append(chunk)
    sums: dict[str, list[tuple[float, float]]] = {}  # of the first chunks: what they save, what they lose
    for kind, those in ordered.items():
        saved = lost = 0.0
        sums[kind] = [(0.0, 0.0)]
        for chunk in those:
            saved, lost = saved + each[chunk.units] * len(chunk.members), lost + chunk.score
            sums[kind].append((saved, lost))
    best, least = (len(ordered["heads"]), len(ordered["neurons"])), math.inf
    count = len(ordered["neurons"])
    for number, (saved, lost) in enumerate(sums["heads"]):
        while count and sums["neurons"][count - 1][0] + saved >= surplus:
            count -= 1  # the more heads go, the fewer neurons must
        if saved + sums["neurons"][count][0] >= surplus and lost + sums["neurons"][count][1] < least:
            best, least = (number, count), lost + sums["neurons"][count][1]
    return ordered["heads"][: best[0]] + ordered["neurons"][: best[1]]
