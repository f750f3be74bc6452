"""What each choice loses: fewer heads, fewer neurons, or a layer left out; and the plan that loses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from hfcompress.models.blocks import Block, Shape
from hfcompress.models.heads_and_neurons import Group
from hfcompress.models.profiling import TimeTable
from hfcompress.search.dynamic_program import Option, least_loss, undominated

Plan = tuple[Shape | None, ...]  # of each block what is left, or None if its layer is left out
_RATIO = 0.9  # between the numbers of neurons that are tried, as in ZipLM
_HEADS = 16  # numbers of heads that are tried at most
PARTS = 3  # of a block whose losses are weighted: heads, neurons, the layer


@dataclass(frozen=True)
class BlockLosses:
    """What is lost of one block.

    Attributes:
        heads: By how many heads may be left, what is lost then.
        neurons: By how many neurons may be left, what is lost then.
        layer: What is lost if the layer is left out; None where it cannot be.
    """

    heads: Mapping[int, float]
    neurons: Mapping[int, float]
    layer: float | None


def removal_orders(groups: Sequence[Group], scores: Sequence[Tensor]) -> dict[Group, list[int]]:
    """Return of each group the heads or neurons in the order in which they are removed, the least important first."""
    return {group: score.argsort(stable=True).tolist() for group, score in zip(groups, scores, strict=True)}


def tabulate_losses(
    blocks: Sequence[Block], scores: Mapping[Group, Tensor], round_to: int, removable: Sequence[bool]
) -> list[BlockLosses]:
    """Add up the scores of what is removed, by block and by how much is left.

    Args:
        blocks: Of the model.
        scores: How much each head or neuron matters, shape (count,).
        round_to: Neurons stay in multiples of this.
        removable: Whether the layer of each block can be left out; it loses all its scores then.
    """
    lost: dict[Group, list[float]] = {
        group: [0.0, *accumulate(score.sort().values.tolist())] for group, score in scores.items()
    }
    holders = {group: sum(group in (*b.heads, *b.neurons) for b in blocks) for group in scores}

    def at(groups: Sequence[Group], left: int) -> float:
        return sum((lost[group][max(0, group.count - left)] / holders[group] for group in groups), 0.0)

    found = []
    for block, can_go in zip(blocks, removable, strict=True):
        heads, neurons = block.shape
        layer = at(block.heads, 0) + at(block.neurons, 0) if can_go else None
        found.append(
            BlockLosses(
                {count: at(block.heads, count) for count in head_counts(heads)},
                {count: at(block.neurons, count) for count in neuron_counts(neurons, round_to)},
                layer,
            )
        )
    return found


def head_counts(most: int) -> list[int]:
    """Return the numbers of heads that are tried, 16 at most; only 0 where there are none."""
    return sorted({max(1, round(most * n / _HEADS)) for n in range(1, _HEADS + 1)}) if most else [0]


def neuron_counts(most: int, round_to: int) -> list[int]:
    """Return the numbers of neurons that are tried: nine tenths of each other, in multiples of a number.

    Example:
        >>> neuron_counts(64, 8), neuron_counts(0, 8), neuron_counts(6, 8)
        ([8, 16, 24, 32, 40, 48, 56, 64], [0], [6])
    """
    if most <= round_to:
        return [most]
    counts, share = {most, round_to}, 1.0
    while share * most > round_to:
        counts.add(max(round_to, round(share * most / round_to) * round_to))
        share *= _RATIO
    return sorted(count for count in counts if count <= most)


def best_plan(
    blocks: Sequence[Block],
    losses: Sequence[BlockLosses],
    times: TimeTable,
    limit: float,
    weights: np.ndarray | None = None,
) -> Plan | None:
    """Find the plan that loses least within a time.

    Args:
        blocks: Of the model. Where some share heads, all keep the same number of them.
        losses: Of each block.
        times: The times of layers.
        limit: The model's time at most.
        weights: What the losses of each block are multiplied by, shape (blocks, 3): heads, neurons, the layer.

    Returns:
        None if there is no plan within the time.
    """
    weights = np.ones((len(blocks), PARTS)) if weights is None else weights
    groups = [group for block in blocks for group in block.heads]
    found: list[tuple[float, Plan]] = []
    for shared in sorted(losses[0].heads) if len(set(groups)) < len(groups) else [None]:
        layers = [_options(own, times, w, shared) for own, w in zip(losses, weights, strict=True)]
        chosen = _with_a_layer(layers, limit - times.rest)
        if chosen is not None:
            found.append((sum(one.loss for one in chosen), tuple(one.shape for one in chosen)))
    return min(found, key=lambda one: one[0])[1] if found else None


def predicted_time(plan: Plan, times: TimeTable) -> float:
    """Return the time of a model by a plan."""
    return times.model(shape for shape in plan if shape is not None)


def fastest_plan(losses: Sequence[BlockLosses]) -> Plan:
    """Return the plan that takes the least time: the fewest heads and neurons, and all layers left out but one."""
    fewest: list[Shape | None] = [(min(own.heads), min(own.neurons)) for own in losses]
    stays = [index for index, own in enumerate(losses) if own.layer is None] or [0]
    return tuple(shape if index in stays else None for index, shape in enumerate(fewest))


def improve(
    find: Callable[[np.ndarray], Plan | None],
    evaluate: Callable[[Plan], float],
    weights: np.ndarray,
    *,
    evaluations: int,
    seed: int,
) -> tuple[Plan, np.ndarray, list[float]]:
    """Improve the weights of the losses by a short random search (SPDY, section 3.2): what they find is evaluated.

    Args:
        find: Finds the best plan by weights; not None for those to begin with.
        evaluate: The loss of a plan on calibration rows.
        weights: To begin with, shape (blocks, 3): heads, neurons, the layer.
        evaluations: How many plans are evaluated at most.
        seed: Of the search.

    Returns:
        The best plan, its weights, and the losses of all plans that were evaluated, the first one's first.
    """
    random = np.random.default_rng(seed)
    plan = find(weights)
    assert plan is not None
    known = {plan: evaluate(plan)}
    for trial in range(4 * evaluations):  # many weights lead to the same plan, which costs nothing
        if len(known) >= evaluations:
            break
        width = 1.0 if trial < evaluations else 0.3
        changed = random.random(weights.shape) < max(0.2, 1 - trial / evaluations)
        tried = weights * np.where(changed, np.exp(width * random.standard_normal(weights.shape)), 1.0)
        other = find(tried)
        if other is None:
            continue
        if other not in known:
            known[other] = evaluate(other)
        if known[other] < known[plan]:
            plan, weights = other, tried
    return plan, weights, list(known.values())


def _options(own: BlockLosses, times: TimeTable, weights: np.ndarray, shared: int | None) -> list[Option]:
    of_heads, of_neurons, of_layer = (float(weight) for weight in weights)
    heads = own.heads if shared is None else {shared: own.heads[shared]}
    made = undominated(
        Option((h, n), of_heads * lost + of_neurons * own.neurons[n], times.layer(h, n))
        for h, lost in heads.items()
        for n in own.neurons
    )
    if own.layer is not None:
        made.append(Option(None, of_layer * own.layer, 0.0))
    return made


def _with_a_layer(layers: Sequence[Sequence[Option]], limit: float) -> list[Option] | None:
    """Choose as `least_loss` does, but never to leave out all layers."""
    chosen = least_loss(layers, limit)
    if chosen is None or any(one.shape is not None for one in chosen):
        return chosen
    best = None
    for index, options in enumerate(layers):
        staying = [option for option in options if option.shape is not None]
        other = least_loss([*layers[:index], staying, *layers[index + 1 :]], limit) if staying else None
        if other is not None and (best is None or sum(o.loss for o in other) < sum(o.loss for o in best)):
            best = other
    return best
