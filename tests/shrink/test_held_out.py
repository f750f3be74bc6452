"""What a shrink with data ranks by, and what it says of rows held out of that."""

import copy
import functools
import random
import warnings

import numpy as np
import pytest
import torch
from architectures import batch, build, rows, same_bits, state_of
from datasets import ClassLabel, Dataset
from shrinking import refused
from transformers import TapasConfig, TapasForSequenceClassification

from hfcompress import prune_structured
from hfcompress.shrink.structured import L1_SHARE

ROWS = rows(batch(64, 10))
CHOSEN = set(random.Random(0).sample(range(64), 16))
HELD_OUT = [row for n, row in enumerate(ROWS) if n in CHOSEN]
UNLABELLED = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in ROWS]
MULTI = [row | {"labels": [float(n % 2), float(n % 3 == 0), 1.0]} for n, row in enumerate(ROWS)]
NUMBERS = [row | {"labels": float(n % 7)} for n, row in enumerate(ROWS)]


def tensors(part):
    columns = {name: torch.tensor([row[name] for row in part]) for name in part[0]}
    return [{name: column[start : start + 24] for name, column in columns.items()} for start in (0, 24, 48)]


@torch.no_grad()
def outputs(model, part=HELD_OUT):
    """Logits by a plain loop, one text without padding at a time."""
    made = []
    for row in part:
        ids = [one for one, real in zip(row["input_ids"], row["attention_mask"], strict=True) if real]
        made.append(copy.deepcopy(model).eval()(input_ids=torch.tensor([ids])).logits[0])
    return torch.stack(made).double()


@pytest.mark.parametrize(
    "form",
    [list, iter, Dataset.from_list, tensors, lambda part: Dataset.from_list(part).to_iterable_dataset()],
    ids=["rows", "iterator", "dataset", "batches", "stream"],
)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_accuracy_before_and_after_is_of_rows_held_out(architecture, form):
    model = build(architecture, layers=3)
    whole = copy.deepcopy(model)
    settings = {} if architecture == "bert" else {"importance": "obs", "reconstruct": False}
    report = prune_structured(model, flops=0.5, dataset=form(ROWS), **settings)
    assert report.importance == "obs"
    assert report.held_out == 16
    labels = torch.tensor([row["labels"] for row in HELD_OUT])
    predicted = [outputs(one).argmax(-1) for one in (whole, model)]
    assert report.accuracy == tuple(float((one == labels).double().mean()) for one in predicted)
    assert report.agreement == float((predicted[0] == predicted[1]).double().mean())
    assert f"{report.accuracy[1]:.3f}" in str(report)
    assert "16 rows held out" in str(report)


@pytest.mark.parametrize("form", [list, iter, Dataset.from_list, lambda part: tensors(part)[0]])
def test_other_rows_measure_and_all_rows_rank(form):
    train, other = ROWS[:40], ROWS[40:]
    ranked = build("bert", layers=3)
    whole, (shown, expected) = copy.deepcopy(ranked), _shrunken_by(len(train))
    report = prune_structured(ranked, flops=0.5, dataset=iter(train), eval_dataset=form(other))
    assert same_bits(state_of(ranked), state_of(shown))
    assert (expected.held_out, report.held_out) == (40, 24)
    labels = torch.tensor([row["labels"] for row in other])
    predicted = [outputs(one, other).argmax(-1) for one in (whole, ranked)]
    assert report.accuracy == tuple(float((one == labels).double().mean()) for one in predicted)
    assert not same_bits(state_of(ranked), state_of(_shrunken_by(30)[0]))  # so the last rows rank too


@functools.cache
def _shrunken_by(count):
    model = build("bert", layers=3)
    return model, prune_structured(model, flops=0.5, dataset=ROWS[:count], eval_dataset=ROWS[:count])


def test_rows_measure_also_where_none_rank():
    model = build("bert")
    report = prune_structured(model, heads=0.5, importance="l1", eval_dataset=ROWS[:8])
    assert (report.importance, report.held_out) == ("l1", 8)
    assert report.accuracy is not None
    unlabelled = prune_structured(build("bert"), heads=0.5, importance="l1", eval_dataset=UNLABELLED[:8])
    assert (unlabelled.accuracy, unlabelled.held_out) == (None, 8)


@pytest.mark.parametrize("wrong", [[], "imdb", [{"labels": 1}], [{"input_ids": [10_000], "labels": 1}]])
def test_rows_to_measure_with_are_refused_by_name(wrong):
    refused(build("bert"), "eval_dataset", heads=0.5, dataset=ROWS, eval_dataset=wrong)


@pytest.mark.parametrize("which", ["dataset", "eval_dataset"])
def test_classes_in_another_order_are_refused(which):
    model = build("bert")
    model.config.id2label, model.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    data = Dataset.from_list([row | {"labels": n % 2} for n, row in enumerate(ROWS)])
    turned = data.cast_column("labels", ClassLabel(names=["good", "bad"]))
    settings = {"dataset": data, "eval_dataset": data, which: turned}
    refused(model, f"of {which} calls its classes good, bad", neurons=0.5, importance="fisher", **settings)


def test_of_several_labels_the_labels_are_counted():
    model = build("bert", num_labels=3, problem_type="multi_label_classification")
    before = outputs(model) > 0
    report = prune_structured(model, flops=0.5, dataset=MULTI)
    labels = torch.tensor([row["labels"] for n, row in enumerate(MULTI) if n in CHOSEN]) > 0
    after = outputs(model) > 0
    assert report.accuracy == pytest.approx([float((one == labels).double().mean()) for one in (before, after)])
    assert report.agreement == pytest.approx(float((before == after).double().mean()))
    assert report.mse is None


def test_of_a_regression_the_error_is_measured():
    model = build("bert", num_labels=1)
    before = outputs(model)[:, 0]
    report = prune_structured(model, flops=0.5, dataset=NUMBERS)
    labels = torch.tensor([row["labels"] for n, row in enumerate(NUMBERS) if n in CHOSEN])
    after = outputs(model)[:, 0]
    expected = [float((one - labels).square().mean()) for one in (before, after)]
    assert report.mse == pytest.approx(expected, rel=1e-4)
    assert report.reference_difference == pytest.approx(float((after - before).abs().mean()), rel=1e-4)
    assert report.accuracy is report.agreement is None


def test_rows_held_out_change_nothing():
    other = [row | {"labels": 1 - row["labels"]} if n in CHOSEN else row for n, row in enumerate(ROWS)]
    models = [build("bert", layers=3) for _ in range(3)]
    found = [prune_structured(m, flops=0.5, dataset=d) for m, d in zip(models, (ROWS, other, ROWS), strict=True)]
    assert same_bits(models[0].state_dict(), models[1].state_dict())
    assert found[1].accuracy == pytest.approx([1 - one for one in found[0].accuracy])
    assert found[2] == found[0]


@pytest.mark.parametrize(
    ("importance", "data", "reconstruct"),
    [
        ("obs", ROWS, "auto"),
        ("obs", UNLABELLED, True),
        ("fisher", ROWS, False),
        ("l1", UNLABELLED, False),
        ("l1", None, "auto"),
    ],
)
def test_the_default_depends_on_the_data(importance, data, reconstruct):
    one, other = build("bert", layers=3), build("bert", layers=3)
    report = prune_structured(one, flops=0.8, dataset=data, reconstruct=reconstruct)
    prune_structured(other, flops=0.8, dataset=data, reconstruct=reconstruct, importance=importance)
    assert report.importance == importance
    assert same_bits(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("missing", [-1, -100, None, np.int64(-1), torch.tensor(-100)], ids=repr)
def test_missing_labels_are_no_labels(missing):
    model = build("bert", layers=3)
    before = outputs(model).argmax(-1)
    report = prune_structured(model, flops=0.8, dataset=[row | {"labels": missing} for row in ROWS], reconstruct=False)
    assert report.importance == "l1"
    assert report.accuracy is None
    assert report.agreement == float((outputs(model).argmax(-1) == before).double().mean())
    some = [row | {"labels": missing} if n < 5 else row for n, row in enumerate(ROWS)]
    refused(build("bert", layers=3), "5 of 64 rows of dataset have no label", flops=0.8, dataset=some)
    all_of_them = [row | {"labels": missing} for row in ROWS]
    refused(
        build("bert"),
        "label -1|'labels' of dataset holds no numbers",
        heads=0.5,
        importance="fisher",
        dataset=all_of_them,
    )


def test_too_few_rows_all_rank_and_the_report_says_so():
    one, other = build("bert", layers=3), build("bert", layers=3)
    report = prune_structured(one, flops=0.5, dataset=ROWS[:31])
    assert (report.held_out, report.accuracy) == (0, None)
    assert "dataset has 31 rows" in str(report)
    prune_structured(other, flops=0.5, dataset=ROWS[:16])  # others rank otherwise
    assert not same_bits(one.state_dict(), other.state_dict())
    assert prune_structured(build("bert"), heads=0.5, dataset=ROWS[:32]).held_out == 8


def test_rows_that_the_model_does_not_read_are_refused():
    beyond = [row | {"input_ids": [1000] * 10} for row in ROWS]
    refused(build("bert"), "does not read the rows of dataset", heads=0.5, importance="l1", dataset=beyond)
    text = [row | {"labels": "good"} for row in ROWS]
    refused(build("bert"), "'labels' of dataset holds no numbers", heads=0.5, dataset=text)
    unknown = [row | {"labels": float("nan")} if n == 3 else row for n, row in enumerate(NUMBERS)]
    refused(build("bert", num_labels=1), "1 of 64 rows of dataset have no label", heads=0.5, dataset=unknown)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("rows", [64, 8])
def test_columns_of_batches_are_not_lost(rows, labelled):
    """A mask that is no tensor would let padding be read as text."""
    one = {name: torch.tensor([row[name] for row in ROWS[:rows]]) for name in ROWS[0]}
    one = one if labelled else {name: value for name, value in one.items() if name != "labels"}
    for wrong in (one["attention_mask"].tolist(), one["attention_mask"][:3], torch.tensor(1)):
        data = one | {"attention_mask": wrong}
        refused(build("bert"), "attention_mask of dataset must be tensors with a row for each", heads=0.5, dataset=data)
    data = one | {"idx": torch.arange(3), "n": torch.tensor(3), "text": ["good"], "token_type_ids": None}
    reports = [prune_structured(build("bert"), heads=0.5, dataset=part) for part in (one, data)]
    assert reports[0] == reports[1]
    if labelled:
        lists = one | {"labels": one["labels"].tolist()}
        refused(build("bert"), "labels of dataset must be tensors", heads=0.5, dataset=lists)


@pytest.mark.parametrize("form", [list, lambda part: [{"input_ids": torch.tensor([row["input_ids"] for row in part])}]])
@pytest.mark.parametrize("importance", ["auto", "l1"])
def test_padding_without_a_mask_is_refused_without_labels(form, importance):
    data = form([{"input_ids": [5 + n, 6, 0]} for n in range(40)])
    refused(
        build("bert"), "padding token, 0, and has no attention_mask", heads=0.5, importance=importance, dataset=data
    )


@pytest.mark.parametrize("dataset", [None, ROWS, ROWS[:4]])
def test_a_batch_size_that_is_none_is_refused(dataset):
    for size in (0, "a", 1.5):
        refused(build("bert"), f"batch_size={size!r}", heads=0.5, importance="l1", dataset=dataset, batch_size=size)


def test_a_dataset_that_has_no_rows_is_refused():
    for wrong in (3, dict, len):
        refused(build("bert"), f"must hold rows with 'input_ids'.*it is {wrong!r}", heads=0.5, dataset=wrong)


@pytest.mark.parametrize("wrong", [None, [1, 1], 1, torch.ones(10, 1)])
def test_masks_that_are_not_as_long_as_the_ids_are_refused(wrong):
    for name in ("attention_mask", "token_type_ids"):
        data = [row | ({name: wrong} if n == 5 else {name: [1] * 10}) for n, row in enumerate(ROWS)]
        refused(build("bert"), f"The {name} of row 5 of dataset must have a number for each", heads=0.5, dataset=data)


@pytest.mark.parametrize("form", [list, tensors, lambda part: Dataset.from_list(part).with_format("torch")])
@pytest.mark.parametrize("settings", [{"importance": "fisher", "reconstruct": False}, {"importance": "obs"}], ids=str)
def test_several_token_types_a_token_are_read_with_it(settings, form):
    """Of TAPAS, against a loop over the texts without padding."""

    def predict(model):
        found = []
        for row in tables:
            real = sum(row["attention_mask"])
            read = {name: torch.tensor([row[name][:real]]) for name in ("input_ids", "token_type_ids")}
            found.append(copy.deepcopy(model).eval()(**read).logits[0].argmax())
        return torch.stack(found)

    generator = torch.Generator().manual_seed(0)
    types = torch.randint(0, 2, (64, 10, 7), generator=generator).tolist()
    tables = [row | {"token_type_ids": own} for row, own in zip(ROWS, types, strict=True)]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = TapasConfig(**sizes, vocab_size=100, max_position_embeddings=64, initializer_range=0.5)
    torch.manual_seed(0)
    model = TapasForSequenceClassification(config)
    with torch.no_grad():
        before = predict(model)
        report = prune_structured(model, heads=0.5, dataset=form(tables[:60]), eval_dataset=form(tables), **settings)
        after = predict(model)
    labels = torch.tensor([row["labels"] for row in ROWS])
    assert report.accuracy == tuple(float((one == labels).double().mean()) for one in (before, after))
    assert report.agreement == float((before == after).double().mean())


@pytest.mark.parametrize("form", [list, tensors, Dataset.from_list])
@pytest.mark.parametrize("column", ["label", "label_ids"])
def test_labels_have_the_names_that_a_trainer_reads(column, form):
    renamed = [{column if name == "labels" else name: value for name, value in row.items()} for row in ROWS]
    models = [build("bert", layers=3) for _ in range(2)]
    reports = [
        prune_structured(model, heads=0.5, importance="fisher", dataset=form(data))
        for model, data in zip(models, (ROWS, renamed), strict=True)
    ]
    assert reports[0].accuracy == reports[1].accuracy is not None
    assert same_bits(models[0].state_dict(), models[1].state_dict())


def test_data_is_never_ignored():
    for importance in ("auto", "l1"):
        refused(build("bert"), "found 1 rows with text", heads=0.5, importance=importance, dataset=[{"text": "a"}])
        refused(build("bert"), "found 0 rows", drop_layers=[0], importance=importance, dataset=[])
    assert prune_structured(build("bert"), heads=0.5, importance="l1", dataset=ROWS).accuracy is not None
    assert prune_structured(build("bert"), drop_layers=[0], dataset=ROWS).held_out == 16


def test_a_model_that_is_broken_by_it_is_restored(monkeypatch):
    model = build("bert")
    monkeypatch.setattr("hfcompress.shrink.structured.write_plan", lambda m: m.classifier.bias.data.fill_(torch.nan))
    with pytest.raises(ValueError, match="NaN or infinity for 16 of 16"):
        prune_structured(model, heads=0.5, dataset=ROWS)
    assert model.config.num_attention_heads == model.bert.encoder.layer[0].attention.self.num_attention_heads


def test_small_models_ranked_without_data_bring_a_warning():
    with pytest.warns(UserWarning, match=r"dataset=.*importance='l1'"):
        report = prune_structured(build("bert", layers=3), flops=0.5)
    assert report.flops[1] < L1_SHARE * report.flops[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_structured(build("bert", layers=3), flops=0.5, importance="l1")
        prune_structured(build("bert", layers=3), flops=0.99)
        prune_structured(build("bert", layers=3), flops=0.5, dataset=ROWS)
        prune_structured(build("bert", layers=3), flops=0.5, dataset=UNLABELLED)
        prune_structured(build("bert", layers=3), drop_layers=[1, 2])
        model = build("bert", layers=3)
        before = state_of(model)
        with pytest.raises(UserWarning):
            prune_structured(model, drop_layers=2)
        assert same_bits(before, model.state_dict())


def test_data_that_ranks_nothing_brings_a_warning_too():
    with pytest.warns(UserWarning, match=r"as the dataset has no labels, and nothing .* leave out reconstruct=False"):
        report = prune_structured(build("bert", layers=3), flops=0.5, dataset=UNLABELLED, reconstruct=False)
    assert report.importance == "l1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_structured(build("bert", layers=3), flops=0.5, dataset=ROWS, reconstruct=False)
