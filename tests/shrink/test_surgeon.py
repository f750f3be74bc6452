"""The losses of removals that are made up for: against a loop that solves for what is left each time."""

import numpy as np
import pytest
import torch
from architectures import build, same_bits
from shrinking import LABELLED, everywhere

from hfcompress import prune_structured
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.surgery import weight_axis
from hfcompress.shrink.importance import labelled_batches
from hfcompress.shrink.surgeon import obs_scores, removal_losses

UNLABELLED = [{name: value for name, value in row.items() if name != "labels"} for row in LABELLED]


def least_loss(gram, weight, gone):
    """The least tr((W - W')H(W - W')') where these inputs of W' are 0."""
    stays = np.setdiff1d(np.arange(len(gram)), gone)
    root = np.linalg.cholesky(gram).T
    solved = np.linalg.lstsq(root[:, stays], root @ weight.T, rcond=None)[0]
    return np.square(root @ weight.T - root[:, stays] @ solved).sum()


@pytest.mark.parametrize(("size", "matrices"), [(1, 1), (3, 1), (2, 2)])
def test_losses_are_those_of_solving_for_what_is_left(size, matrices):
    random = np.random.default_rng(size)
    count = 5
    weights = [random.normal(size=(4, count * size)) for _ in range(matrices)]
    inputs = [random.normal(size=(50, count * size)) for _ in range(matrices)]
    grams = [each.T @ each for each in inputs]
    found = removal_losses(*([torch.tensor(one) for one in each] for each in (grams, weights)), count).numpy()

    damped = [gram + 0.01 * gram.diagonal().mean() * np.eye(len(gram)) for gram in grams]
    gone, before, expected = [], 0.0, np.zeros(count)
    for _ in range(count):
        totals = {}
        for unit in set(range(count)) - set(gone):
            columns = np.concatenate([np.arange(one * size, (one + 1) * size) for one in [*gone, unit]])
            totals[unit] = sum(least_loss(*pair, columns) for pair in zip(damped, weights, strict=True))
        unit = min(totals, key=totals.get)
        expected[unit] = max(totals[unit] - before, expected.max())
        gone, before = [*gone, unit], totals[unit]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.argsort().tolist() == gone


def test_scores_rise_in_the_order_of_the_removal():
    """Two inputs that cancel out but for a little: without the first, the other costs nothing."""
    states = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states[:, 1] = states[:, 1] / 3 - states[:, 0]
    found = removal_losses([states.T @ states], [torch.tensor([[1.0, 1.0, 10.0]]).double()], 3)
    assert found[2] > 100 * found[:2].max()
    assert found[:2].min() < found[:2].max() < 1.001 * found[:2].min()


def test_neurons_removed_in_steps_are_mostly_the_same():
    random = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(*shape, 40, generator=random, dtype=torch.float64) for shape in ((200,), (6,)))
    one, several = (removal_losses([states.T @ states], [weight], 40, step) for step in (1, 4))
    assert len({*one.argsort()[:20].tolist()} & {*several.argsort()[:20].tolist()}) >= 15
    assert torch.all(removal_losses([torch.zeros(4, 4).double()], [torch.zeros(2, 4).double()], 4).isfinite())


@everywhere
def test_scores_leave_the_model_and_follow_its_inputs(architecture):
    """A head or neuron that a projection does not read costs nothing."""
    model = build(architecture)
    groups = [group for kind in KINDS for group in find_groups(model, kind)]
    for group in groups:
        for part in group.consumers:
            module = model.get_submodule(part.module)
            weight = module.weight.data.movedim(weight_axis(module, outputs=False), 0)
            weight[part.size : 2 * part.size] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = obs_scores(model, groups, labelled_batches(model, UNLABELLED, 16, needs_labels=False))
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for group, score in zip(groups, scores, strict=True):
        assert score.shape == (group.count,)
        assert score.isfinite().all()
        assert score.argmin() == 1
        assert score[1] < 1e-9 * score.max()


@pytest.mark.parametrize("settings", [{}, {"num_labels": 1}, {"num_labels": 3}])
def test_a_model_is_shrunk_by_them_without_labels(settings):
    reports = [
        prune_structured(build("bert", layers=3, **settings), flops=0.6, importance="obs", dataset=UNLABELLED)
        for _ in range(2)
    ]
    assert reports[0] == reports[1]
    assert reports[0].flops[1] <= 0.6 * reports[0].flops[0]


@pytest.mark.parametrize("reconstruct", [True, False])
@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "llama", "qwen2"])
def test_a_model_without_a_padding_token_is_shrunk_by_them(architecture, reconstruct):
    """As one that has a padding token, which no text has here."""
    texts = [{"input_ids": [5 + (7 * row + n) % 20 for n in range(4 + row % 3)]} for row in range(12)]
    models = [build(architecture) for _ in range(2)]
    models[1].config.pad_token_id = None
    settings = {"neurons": 0.5, "importance": "obs", "reconstruct": reconstruct, "dataset": texts}
    reports = [prune_structured(model, **settings) for model in models]
    assert reports[0] == reports[1]
    assert same_bits(models[0].state_dict(), models[1].state_dict())
    assert models[1].config.pad_token_id is None
