"""Heads and neurons by layer, over the architectures; and models whose layers have other sizes."""

import pytest
import torch
from architectures import SHRINKABLE, WITH_NEURONS, build, same_bits, state_of

from hfcompress.models.blocks import find_blocks, grid, shaped
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_parameters
from hfcompress.models.traced_neurons import find_or_trace


def groups_of(model, kinds=KINDS):
    return [group for kind in kinds for group in find_groups(model, kind)]


@pytest.mark.parametrize("architecture", SHRINKABLE)
def test_each_layer_is_a_block(architecture):
    model = build(architecture, layers=3)
    blocks = find_blocks(model, groups_of(model))
    layers = {"albert": 1, "bart": 6, "t5": 6}.get(architecture, 3)
    assert len(blocks) == layers
    assert all(block.heads and block.neurons for block in blocks)
    together = {group for block in blocks for group in (*block.heads, *block.neurons)}
    assert together == set(groups_of(model))


@pytest.mark.parametrize("architecture", sorted(set(WITH_NEURONS) - set(SHRINKABLE)))
def test_blocks_of_neurons_alone_hold_all_of_them(architecture):
    model = build(architecture)
    groups = find_or_trace(model, "neurons")
    blocks = find_blocks(model, groups)
    assert sorted(group.name for block in blocks for group in block.neurons) == sorted(one.name for one in groups)
    assert len(blocks) == len(groups)


@pytest.mark.parametrize("architecture", SHRINKABLE)
@pytest.mark.parametrize("shape", [(1, 8), (6, 96)], ids=["smaller", "larger"])
def test_a_model_of_other_sizes_runs_and_comes_back(architecture, shape):
    model = build(architecture).eval()
    before, text = state_of(model), dummy_inputs(model, 12)
    if shape[0] > 4 and architecture == "t5":
        shape = (4, 96)
    blocks, count = find_blocks(model, groups_of(model)), count_parameters(model)
    with torch.no_grad(), shaped(model, blocks, [shape] * len(blocks)):
        assert model(**text).logits.isfinite().all()
        found = find_groups(model, "neurons")
        assert {group.count for group in found} == {shape[1]}
        assert count_parameters(model) != count
    assert same_bits(state_of(model), before)


def test_a_grid_halves_down_from_the_most():
    assert grid(3072, 8, 6, step=8) == [8, 192, 384, 768, 1536, 3072]
    assert grid(4, 1, 6) == [1, 2, 4]
    assert grid(5, 8, 4, step=8) == [5]
