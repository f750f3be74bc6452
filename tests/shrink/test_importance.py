"""Scores of heads and neurons: against sums by hand and finite differences."""

import numpy as np
import pytest
import torch
from architectures import SHRINKABLE, batch, build
from shrinking import LABELLED, refused, with_neurons
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from hfcompress import CompressionError, prune_structured
from hfcompress.models.classifier import max_tokens
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.surgery import masked
from hfcompress.models.traced_neurons import find_or_trace
from hfcompress.shrink.importance import l1_scores, labelled_batches, mask_gradients


def weights_of_units(model, group):
    """All weights of each head or neuron, a row of them each."""
    rows = []
    for part in group.slices:
        module = model.get_submodule(part.module)
        weight = module.weight.detach().numpy()
        along = weight if part.outputs != isinstance(module, Conv1D) else weight.T
        along = along.reshape(part.repeats if part.outputs else 1, group.count, -1)
        rows.append(along.transpose(1, 0, 2).reshape(group.count, -1))
    return np.concatenate(rows, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "modernbert"])
def test_the_removed_ones_are_the_least_important(architecture, kind):
    model = build(architecture, layers=3)
    weights = {group.name: weights_of_units(model, group) for group in find_groups(model, kind)}
    sums = {name: np.abs(rows.astype(float)).sum(1) for name, rows in weights.items()}
    for group in find_groups(model, kind):
        np.testing.assert_allclose(l1_scores(model, group), sums[group.name], rtol=1e-6)
    prune_structured(model, **{kind: 0.5}, round_to=1)
    count = sum(map(len, sums.values()))
    ascending = sorted((score, name, unit) for name, scores in sums.items() for unit, score in enumerate(scores))
    may_go = [(name, unit) for score, name, unit in ascending if score < sums[name].max()]
    gone = set(may_go[: count // 2])
    for group in find_groups(model, kind):
        kept = [unit for unit in range(len(sums[group.name])) if (group.name, unit) not in gone]
        np.testing.assert_array_equal(weights_of_units(model, group), weights[group.name][kept])


@with_neurons
def test_mask_gradients_are_those_of_each_example_alone(architecture):
    model = build(architecture).eval()
    kinds = KINDS if architecture in SHRINKABLE else ["neurons"]
    groups = [group for kind in kinds for group in find_or_trace(model, kind)]
    data = batch(6, 6)  # as many examples as tokens, so that none is taken for the other
    found = mask_gradients(model, groups, [data])
    for row in range(6):
        one = {name: value[row : row + 1] for name, value in data.items()}
        labels = one.pop("labels")
        masks = [torch.ones(group.count, requires_grad=True) for group in groups]
        with masked(model, list(zip(groups, masks, strict=True))):
            loss = cross_entropy(model(**one).logits, labels)
        for gradients, alone in zip(found, torch.autograd.grad(loss, masks), strict=True):
            torch.testing.assert_close(gradients[row], alone, rtol=1e-3, atol=1e-5)


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
        ([3], "found 1 rows with nothing"),
        (
            [{"input_ids": [5], "labels": 1}, {"input_ids": [5], "label": 1}],
            "2 rows with input_ids, label, labels",
        ),
        ({"input_ids": torch.tensor([[5]]), "labels": [1]}, "labels of dataset must be tensors"),
        ([{"input_ids": [5] * 70, "labels": 1}], "70 tokens, and Bert.* reads 1 to 64"),
        (LABELLED, "batch_size=0"),
    ],
)
def test_data_that_do_not_fit_are_refused(dataset, message):
    size = 0 if "batch_size" in message else 16
    refused(build("bert"), message, heads=0.5, importance="fisher", dataset=dataset, batch_size=size)


@pytest.mark.parametrize("importance", ["obs", "fisher", "taylor", "l1"])
@pytest.mark.parametrize(
    ("architecture", "ids", "reason"),
    [
        ("bert", [5, 1000], "index out of range"),
        ("t5", [5, 6], "eos|out of"),
        ("bert", [5, -100], "index out of range"),
    ],
)
def test_few_rows_that_the_model_cannot_read_are_refused(architecture, ids, reason, importance):
    data = [{"input_ids": ids, "labels": 1}] * 4
    message = f"does not read texts of 2 tokens.*({reason}).*Leave them out"
    refused(build(architecture), message, neurons=0.5, importance=importance, dataset=data)


LISTS = {"input_ids": [[5, 6], [7, 8]], "labels": [0, 1]}
ONE_BATCH = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize("importance", ["auto", "fisher"])
@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        (LISTS, 0),
        ([LABELLED[0], LISTS], 1),
        ([{name: np.array(value) for name, value in LISTS.items()}], 0),
        ([{"input_ids": [[5], [7, 8]], "labels": [0, 1]}], 0),
        ([LABELLED[0], ONE_BATCH], 1),
        ([ONE_BATCH, *LABELLED], 1),
        ([{"input_ids": "good", "labels": 1}], 0),
        ([{"input_ids": ["good", "bad"], "labels": 1}], 0),
        ([{"input_ids": None, "labels": 1}], 0),
    ],
)
def test_rows_of_several_texts_are_refused(dataset, row, importance):
    message = rf"and row {row} does not: pass one row a text.*return_tensors='pt'"
    refused(build("bert"), message, heads=0.5, importance=importance, dataset=dataset)


@pytest.mark.parametrize("form", [tuple, np.array, torch.tensor, lambda ids: [torch.tensor(one) for one in ids]])
def test_token_ids_may_come_in_any_form(form):
    data = [row | {"input_ids": form(row["input_ids"])} for row in LABELLED]
    reports = [prune_structured(build("bert"), heads=0.5, dataset=rows) for rows in (LABELLED, data)]
    assert reports[0] == reports[1]


def test_data_may_be_one_batch_or_have_no_padding_token():
    reports = [
        prune_structured(build("llama", layers=3, **more), heads=0.5, importance="fisher", dataset=data)
        for more, data in (({}, batch(16, 10)), ({}, LABELLED), ({"pad_token_id": None}, LABELLED[:4]))
    ]
    assert reports[0] == reports[1]


def test_a_batch_without_a_pad_token_is_read_text_by_text():
    data = batch(4, 10) | {"attention_mask": torch.ones(4, 10, dtype=torch.long)}
    batches = labelled_batches(build("llama", pad_token_id=None), data, 16)
    assert [len(one["labels"]) for one in batches] == [1, 1, 1, 1]


def test_a_block_that_is_not_used_does_not_matter():
    model = build("bert")
    model.bert.encoder.layer[1].forward = lambda states, *_, **__: states
    used, unused = mask_gradients(model, find_groups(model, "heads"), [batch()])
    assert used.abs().min() > 0
    assert not unused.any()


def rows_of(model, tokens):
    ids = dummy_inputs(model, tokens, batch_size=2)["input_ids"]
    if ids.shape[1] < tokens:  # more than the model reads
        ids = torch.cat([ids[:, :1].expand(-1, tokens - ids.shape[1]), ids], dim=1)
    return [{"input_ids": one.tolist(), "labels": index} for index, one in enumerate(ids)]


@with_neurons
def test_rows_up_to_the_token_limit_are_ranked(architecture):
    model = build(architecture)
    limit = max_tokens(model) or 300
    for tokens in (limit - 1, limit):
        batches = labelled_batches(model, rows_of(model, tokens), 2)
        for gradients in mask_gradients(model, find_or_trace(model, "neurons"), batches):
            assert gradients.isfinite().all()
            assert len(gradients) == 2


@with_neurons
def test_rows_over_the_token_limit_are_refused(architecture):
    model = build(architecture)
    limit = max_tokens(model)
    if limit is None:
        assert labelled_batches(model, rows_of(model, 1000), 2)
    else:
        with pytest.raises(CompressionError, match=f"has {limit + 1} tokens, and .* reads 1 to {limit}"):
            labelled_batches(model, rows_of(model, limit + 1), 2)


def test_what_ranks_a_model_in_half_precision_is_computed_in_float32():
    """The surer a model is of the labels, the smaller its gradients are: in float16 most would be 0."""
    model = build("bert").half().eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 12.0]))
        model.classifier.weight[1, 0] = 0.1
    data = batch() | {"labels": torch.ones(len(batch()["input_ids"]), dtype=torch.long)}
    groups = find_groups(model, "neurons")
    halves = mask_gradients(model, groups, [data])
    whole = mask_gradients(model.float(), groups, [data])
    for half, full in zip(halves, whole, strict=True):
        assert half.abs().max() > 0
        torch.testing.assert_close(half, full)


def test_labels_may_be_true_and_false():
    rows = [{"input_ids": [2, 5 + n % 7, 3], "labels": n % 2 == 1} for n in range(64)]
    numbers = [row | {"labels": int(row["labels"])} for row in rows]
    first, second = (prune_structured(build("bert"), heads=0.5, dataset=data) for data in (rows, numbers))
    assert first.accuracy == second.accuracy is not None
    refused(build("bert"), "pass one class index per example", heads=0.5, importance="fisher", dataset=rows)
