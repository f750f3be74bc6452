"""What is selected for removal: against every choice there is."""

import numpy as np
import pytest
import torch
from architectures import build

from hfcompress import prune_structured
from hfcompress.models.heads_and_neurons import find_groups
from hfcompress.shrink.importance import l1_scores
from hfcompress.shrink.selection import select, select_for_budget


def test_the_cheapest_selection_is_the_best_of_all():
    """Against every choice there is, on few heads and neurons."""
    model = build("bert", layers=2, intermediate_size=16)
    groups = [one for kind in ("heads", "neurons") for one in find_groups(model, kind)]
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(one.count, generator=generator).double() for one in groups]
    costs = [70, 70, 5, 5]
    for surplus in (30, 100, 200, 333, 480):
        removed = select_for_budget(groups, scores, costs, surplus, additive=True, round_to=8)
        assert sum(cost * len(removed[one]) for one, cost in zip(groups, costs, strict=True)) >= surplus
        lost = sum(float(score[sorted(removed[one])].sum()) for one, score in zip(groups, scores, strict=True))
        best = np.inf
        heads = sorted(torch.cat([score.sort().values[:-1] for score in scores[:2]]).tolist())
        halves = sorted(float(score.sort().values[:8].sum()) for score in scores[2:])
        for gone_heads in range(len(heads) + 1):
            for gone_neurons in range(len(halves) + 1):
                if 70 * gone_heads + 40 * gone_neurons >= surplus:
                    best = min(best, sum(heads[:gone_heads]) + sum(halves[:gone_neurons]))
        assert lost == pytest.approx(best)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scores_that_cannot_be_added_lose_the_smallest_fraction(scope):
    """Against every thousandth in turn."""
    model = build("bert", layers=2)
    groups = [one for kind in ("heads", "neurons") for one in find_groups(model, kind)]
    scores = [l1_scores(model, one) for one in groups]
    costs = [70, 70, 5, 5]
    for surplus in (-1, 0, 1, 100, 333, 500, 900, 10_000, np.inf):
        found = select_for_budget(groups, scores, costs, surplus, additive=False, scope=scope)
        for thousandths in range(1001):
            both = dict.fromkeys(("heads", "neurons"), thousandths / 1000)
            expected = select(groups, scores, both, scope=scope)
            if sum(cost * len(expected[one]) for one, cost in zip(groups, costs, strict=True)) >= surplus:
                break
        assert found == expected


def test_neurons_stay_in_multiples_and_one_multiple_at_least():
    model = build("bert", layers=2, intermediate_size=52)
    groups = find_groups(model, "neurons")
    scores = [l1_scores(model, one) for one in groups]
    for fraction, round_to in ((0.1, 8), (0.5, 8), (0.99, 8), (0.5, 1), (0.5, 100)):
        removed = select(groups, scores, {"neurons": fraction}, round_to=round_to)
        left = [one.count - len(removed[one]) for one in groups]
        assert all(count == 52 or count % round_to == 0 for count in left)
        assert min(left) >= min(round_to, 52)


def test_even_removal_takes_the_same_share_of_each_layer():
    report = prune_structured(build("bert", layers=3), heads=0.5, neurons=0.25, scope="layer")
    assert [(block.after, block.before) for block in report.blocks] == [(2, 4)] * 3 + [(48, 64)] * 3
