"""Scores of heads and neurons: against sums by hand and finite differences."""

import numpy as np
import pytest
import torch
from architectures import batch, build
from shrinking import LABELLED, refused
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from hfcompress import prune_structured
from hfcompress.models.heads_and_neurons import find_groups
from hfcompress.models.surgery import masked
from hfcompress.shrink.importance import l1_scores, mask_gradients


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "modernbert"])
def test_the_removed_ones_are_the_least_important(architecture):
    model = build(architecture, layers=3)
    expected = {}
    for kind in ("heads", "neurons"):
        for group in find_groups(model, kind):
            sums = np.zeros(group.count)
            for part in group.slices:
                module = model.get_submodule(part.module)
                weight = module.weight.detach().double().abs().numpy()
                along = weight if part.outputs != isinstance(module, Conv1D) else weight.T
                if part.outputs:
                    along = along.reshape(part.repeats, group.count, -1).sum((0, 2))
                else:
                    along = along.reshape(group.count, -1).sum(1)
                sums += along
            np.testing.assert_allclose(l1_scores(model, group), sums, rtol=1e-6)
            expected[group.kind, group.name] = sums
    report = prune_structured(model, heads=0.5, neurons=0.0)
    flat = sorted(score for (kind, _), sums in expected.items() if kind == "heads" for score in sums)
    threshold = flat[len(flat) // 2]
    for block in report.blocks:
        important = sum(score >= threshold for score in expected["heads", block.name])
        assert block.after == max(1, important) or abs(block.after - important) <= 1


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert", "llama"])
def test_mask_gradients_are_those_of_each_example_alone(architecture):
    model = build(architecture, layers=2).eval()
    group = [one for kind in ("heads", "neurons") for one in find_groups(model, kind)]
    data = batch(4, 8)
    found = mask_gradients(model, group, [data])
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in data.items()}
        labels = one.pop("labels")
        for index, block in enumerate(group):
            change = 1e-2
            losses = []
            for sign in (1, -1):
                mask = torch.ones(block.count)
                mask[0] += sign * change
                with torch.no_grad(), masked(model, [(block, mask)]):
                    losses.append(float(cross_entropy(model(**one).logits, labels)))
            assert (losses[0] - losses[1]) / (2 * change) == pytest.approx(float(found[index][row, 0]), abs=2e-3)


def test_gradients_are_those_of_the_loss_of_the_problem():
    """Regression and several labels: the gradient of their own loss, by finite differences."""
    for settings, labels, loss in (
        ({"num_labels": 1}, [[0.5], [3.7]], lambda x, y: (x - y).square().mean(-1)),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
            lambda x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none").mean(-1),
        ),
    ):
        model = build("bert", **settings).eval()
        data = batch(2, 8) | {"labels": torch.tensor(labels)}
        group = find_groups(model, "heads")
        found = mask_gradients(model, group, [data])
        assert found[0].abs().min() > 0
        inputs = {name: data[name] for name in ("input_ids", "attention_mask")}
        losses = []
        for sign in (1, -1):
            mask = torch.ones(group[0].count)
            mask[0] += sign * 1e-2
            with torch.no_grad(), masked(model, [(group[0], mask)]):
                losses.append(loss(model(**inputs).logits, data["labels"]))
        torch.testing.assert_close((losses[0] - losses[1]) / 0.02, found[0][:, 0], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([{"input_ids": [5], "labels": 2}], "label 2 is none of the 2 classes"),
        ([{"input_ids": [5], "labels": -100}], "label -100"),
        ([{"input_ids": [5], "labels": None}], "'labels' of dataset holds no numbers"),
        ([{"input_ids": [5] * 70, "labels": 1}], "70 tokens, and Bert.* reads 1 to 64"),
        (LABELLED, "batch_size=0"),
    ],
)
def test_data_that_do_not_fit_are_refused(dataset, message):
    size = 0 if "batch_size" in message else 16
    refused(build("bert"), message, heads=0.5, importance="fisher", dataset=dataset, batch_size=size)


def test_data_may_be_one_batch_or_have_no_padding_token():
    reports = [
        prune_structured(build("llama", layers=3, **more), heads=0.5, importance="fisher", dataset=data)
        for more, data in (({}, batch(16, 10)), ({}, LABELLED), ({"pad_token_id": None}, LABELLED[:4]))
    ]
    assert reports[0] == reports[1]
