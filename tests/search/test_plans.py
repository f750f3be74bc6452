"""The dynamic program, the loss table and the random search against brute force, on toys of three layers."""

from itertools import product

import numpy as np
import pytest
import torch
from architectures import SHRINKABLE, build
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcompress.models.blocks import find_blocks
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.profiling import TimeTable
from hfcompress.search import dynamic_program
from hfcompress.search.candidates import weigh_layers
from hfcompress.search.dynamic_program import Option, least_loss, undominated
from hfcompress.search.loss_table import (
    best_plan,
    fastest_plan,
    head_counts,
    improve,
    neuron_counts,
    predicted_time,
    tabulate_losses,
)

NUMBERS = st.floats(0, 100, allow_nan=False)
LAYERS = st.lists(
    st.lists(st.builds(Option, st.just((1, 8)), NUMBERS, NUMBERS), min_size=1, max_size=6), min_size=3, max_size=3
)


def by_brute_force(layers, limit):
    """The least loss of all ways to choose one option a layer; None if none is within the limit."""
    within = [way for way in product(*layers) if sum(one.time for one in way) <= limit]
    return min((sum(one.loss for one in way) for way in within), default=None)


@given(LAYERS, st.floats(0, 250))
@settings(max_examples=300, deadline=None)
def test_it_loses_as_little_as_brute_force(layers, limit):
    chosen, least = least_loss(layers, limit), by_brute_force(layers, limit)
    if chosen is None:
        assert least is None
        return
    assert sum(one.time for one in chosen) <= limit * (1 + 1e-9) + 1e-12
    assert all(one in options for one, options in zip(chosen, layers, strict=True))
    assert least is None or sum(one.loss for one in chosen) <= least + 1e-9


@given(LAYERS, st.floats(0, 250))
@settings(max_examples=100, deadline=None)
def test_options_that_are_dominated_change_nothing(layers, limit):
    few = [undominated(options) for options in layers]
    one, other = least_loss(layers, limit), least_loss(few, limit)
    assert (one is None) == (other is None)
    if one is not None:
        assert sum(o.loss for o in one) == pytest.approx(sum(o.loss for o in other))


def test_thinned_sums_come_close(monkeypatch):
    random = np.random.default_rng(0)
    layers = [[Option((1, 8), *pair) for pair in random.random((20, 2))] for _ in range(6)]
    exact = sum(one.loss for one in least_loss(layers, 2.0))
    monkeypatch.setattr(dynamic_program, "_STATES", 200)
    thinned = least_loss(layers, 2.0)
    assert sum(one.time for one in thinned) <= 2.0
    assert exact <= sum(one.loss for one in thinned) <= 1.05 * exact + 0.01


def toy(architecture="bert", seed=0):
    """Blocks with random scores, and a table of times."""
    model = build(architecture, layers=3)
    groups = [group for kind in KINDS for group in find_groups(model, kind)]
    generator = torch.Generator().manual_seed(seed)
    scores = {group: torch.rand(group.count, generator=generator, dtype=torch.float64) for group in groups}
    times = TimeTable((1, 4), (8, 64), ((1.0, 3.0), (2.0, 5.0)), rest=0.5)
    return find_blocks(model, groups), scores, times


def loss_by_hand(blocks, scores, plan):
    """What a plan removes, added up unit by unit; of heads that blocks share, each has its part."""
    total = 0.0
    for block, shape in zip(blocks, plan, strict=True):
        for groups, left in zip((block.heads, block.neurons), shape or (0, 0), strict=True):
            for group in groups:
                holders = sum(group in (*other.heads, *other.neurons) for other in blocks)
                total += sum(sorted(scores[group].tolist())[: group.count - left]) / holders
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [4.0, 7.0, 11.0])
def test_a_plan_loses_as_little_as_brute_force(seed, limit):
    blocks, scores, times = toy(seed=seed)
    losses = tabulate_losses(blocks, scores, 16, [True] * 3)
    plan = best_plan(blocks, losses, times, limit)
    shapes = [None, *product(head_counts(4), neuron_counts(64, 16))]
    within = [way for way in product(shapes, repeat=3) if any(way) and predicted_time(way, times) <= limit]
    least = min(loss_by_hand(blocks, scores, way) for way in within)
    assert predicted_time(plan, times) <= limit
    assert loss_by_hand(blocks, scores, plan) == pytest.approx(least)


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_plans_of_every_architecture_are_within_the_time(architecture):
    blocks, scores, times = toy(architecture)
    losses = tabulate_losses(blocks, scores, 8, [False] * len(blocks))
    full = predicted_time([block.shape for block in blocks], times)
    plan = best_plan(blocks, losses, times, 0.7 * full)
    assert 0.6 * full < predicted_time(plan, times) <= 0.7 * full
    if architecture in ("mpnet", "t5"):  # whose layers share heads
        assert len({heads for heads, _ in plan}) == 1
    assert best_plan(blocks, losses, times, times.rest) is None
    assert predicted_time(fastest_plan(losses), times) < 0.5 * full


def test_one_layer_stays_whatever_it_loses():
    blocks, scores, times = toy()
    losses = tabulate_losses(blocks, dict.fromkeys(scores, torch.zeros(4).double()) | scores, 8, [True] * 3)
    light = [type(own)(own.heads, own.neurons, 0.0) for own in losses]
    plan = best_plan(blocks, light, times, times.rest + 1.0)
    assert sorted(shape is None for shape in plan) == [False, True, True]
    assert fastest_plan(light) == ((1, 8), None, None)


def test_a_layer_that_must_stay_does():
    blocks, scores, times = toy()
    losses = tabulate_losses(blocks, scores, 8, [False, True, True])
    plan = best_plan(blocks, losses, times, times.rest + 1.2)
    assert plan[0] is not None
    assert plan[1:] == (None, None)


def test_a_layer_loses_what_the_model_without_it_does():
    """On the calibration rows a neuron of the second block loses thrice its score, others twice."""
    blocks, scores, _ = toy()
    losses = tabulate_losses(blocks, scores, 8, [False, True, True])
    without = {1: 7.0, 2: 3.0}

    def evaluate(plan):
        out = [index for index, shape in enumerate(plan) if shape is None]
        if out:
            return without[out[0]]
        return sum((3 if n == 1 else 2) * losses[n].neurons[shape[1]] for n, shape in enumerate(plan))

    found = weigh_layers(losses, evaluate)
    assert [own.layer for own in found] == [None, pytest.approx(3.5), pytest.approx(1.5)]
    assert [own.neurons for own in found] == [own.neurons for own in losses]
    flat = weigh_layers(losses, lambda plan: 0.0)
    assert [own.layer for own in flat] == [own.layer for own in losses]


def test_weights_decide_what_is_spared():
    blocks, scores, times = toy()
    losses = tabulate_losses(blocks, scores, 8, [False] * 3)
    weights = np.ones((3, 3))
    weights[1] = 1000
    plan = best_plan(blocks, losses, times, 8.0, weights)
    assert plan[1] == (4, 64)


def test_the_random_search_finds_what_the_weights_hide():
    """The calibration loss is another one than the table's, in which the second layer matters most."""
    blocks, scores, times = toy()
    losses = tabulate_losses(blocks, scores, 8, [False] * 3)
    asked = []

    def evaluate(plan):
        asked.append(plan)
        return 100.0 * (4 - plan[1][0]) + 10.0 * (64 - plan[1][1]) + 0.1 * (64 - plan[0][1])

    def search(seed):
        return improve(
            lambda w: best_plan(blocks, losses, times, 8.0, w), evaluate, np.ones((3, 3)), evaluations=20, seed=seed
        )

    plan, weights, seen = search(0)
    assert best_plan(blocks, losses, times, 8.0, weights) == plan
    assert len(seen) == len(asked) <= 20
    assert len(set(asked)) == len(asked)
    assert evaluate(plan) == min(seen) < seen[0]
    assert search(0)[0] == plan
    assert predicted_time(plan, times) <= 8.0
