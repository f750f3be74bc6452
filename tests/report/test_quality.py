"""Quality of multi-label and regression models in measure and compare, against scikit-learn and SciPy."""

import json

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, arguments, batch, build, rows, same_bits, state_of, word_tokenizer
from datasets import Dataset
from matplotlib import pyplot as plt
from scipy import stats
from sklearn import metrics
from test_comparison import Page, row
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hfcompress import (
    Comparison,
    CompressionError,
    DistillationArguments,
    DistillationTrainer,
    compare,
    measure,
    save_compressed,
)
from hfcompress.report.intervals import SignFlip, wilson_interval

MULTI, REGRESSION = "multi_label_classification", "regression"
COUNT, LABELS = 24, 4
DATA = batch(COUNT)
INPUTS = {key: value for key, value in DATA.items() if key != "labels"}
QUICK = {"batch_size": 8, "repeats": 1}


def several(architecture="bert", seed=0, labels=LABELS):
    return build(architecture, labels, seed=seed, problem_type=MULTI)


def number(architecture="bert", seed=0, outputs=1):
    more = {"problem_type": REGRESSION} if outputs > 1 else {}  # one output is one by transformers' own rule
    return build(architecture, outputs, seed=seed, **more)


def outputs_of(model):
    """The logits of each example alone."""
    with torch.no_grad():
        parts = [model.eval()(**{k: v[i : i + 1] for k, v in INPUTS.items()}).logits for i in range(COUNT)]
    return torch.cat(parts).double()


def some_labels(model):
    noise = torch.randn(COUNT, LABELS, generator=torch.Generator().manual_seed(1)).double()
    logits = outputs_of(model)
    return ((logits - logits.mean(0)) / logits.std(0) + 0.5 * noise > 0).float()


def some_numbers(model, outputs=1):
    noise = torch.randn(COUNT, outputs, generator=torch.Generator().manual_seed(1)).double()
    return (outputs_of(model) + 0.3 * noise).float().squeeze(-1)


def with_labels(labels):
    return INPUTS | {"labels": labels}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_figures_of_several_labels_are_scikit_learns(architecture):
    model = several(architecture)
    labels, logits = some_labels(model), outputs_of(model)
    found = measure(model, with_labels(labels), **QUICK)
    predictions = (logits > 0).numpy()
    assert (found.examples, found.problem_type) == (COUNT, MULTI)
    assert found.accuracy == pytest.approx(1 - metrics.hamming_loss(labels, predictions))
    assert found.exact_match == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert found.exact_match_interval == wilson_interval(round(found.exact_match * COUNT), COUNT)
    for average in ("micro", "macro"):
        wanted = metrics.f1_score(labels, predictions, average=average, zero_division=np.nan)
        low, high = getattr(found, f"f1_{average}_interval")
        assert getattr(found, f"f1_{average}") == pytest.approx(wanted)
        assert low < wanted < high
    wanted = binary_cross_entropy_with_logits(logits, labels.double())
    assert found.cross_entropy == pytest.approx(float(wanted), rel=1e-5)
    assert (found.f1, found.calibration_error, found.mse, found.mcnemar) == (None,) * 4
    assert found.undefined == ()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_figures_of_a_regression_are_scipys(architecture, outputs):
    model = number(architecture, outputs=outputs)
    labels, logits = some_numbers(model, outputs), outputs_of(model)
    found = measure(model, with_labels(labels), **QUICK)
    columns = list(zip(logits.T.numpy(), labels.reshape(COUNT, -1).T.double().numpy(), strict=True))
    assert (found.examples, found.problem_type, found.undefined) == (COUNT, REGRESSION, ())
    assert found.mse == pytest.approx(metrics.mean_squared_error(labels.reshape(COUNT, -1), logits), rel=1e-5)
    assert found.pearson == pytest.approx(np.mean([stats.pearsonr(*pair)[0] for pair in columns]), rel=1e-5)
    assert found.spearman == pytest.approx(np.mean([stats.spearmanr(*pair)[0] for pair in columns]))
    for name in ("mse", "pearson", "spearman"):
        low, high = getattr(found, f"{name}_interval")
        assert low < getattr(found, name) < high
    assert (found.accuracy, found.f1, found.cross_entropy, found.agreement) == (None,) * 4


def test_several_labels_may_be_written_in_many_ways():
    model = several()
    labels = some_labels(model)
    wanted = measure(model, with_labels(labels), **QUICK)
    plain = rows(with_labels(labels.int()))
    renamed = [{"label" if key == "labels" else key: value for key, value in one.items()} for one in plain]
    data = Dataset.from_list(plain)
    ways = [plain, renamed, data, data.with_format("torch"), data.with_format("numpy")]
    for given in (*ways, with_labels(labels.bool()), with_labels(labels.half())):
        found = measure(model, given, **QUICK)
        assert (found.accuracy, found.f1_macro, found.f1_macro_interval) == (
            wanted.accuracy,
            wanted.f1_macro,
            wanted.f1_macro_interval,
        )


def test_numbers_may_be_written_in_many_ways():
    model = number()
    labels = some_numbers(model)
    wanted = measure(model, with_labels(labels), **QUICK).mse
    data = Dataset.from_list(rows(with_labels(labels)))
    ways = [list(data), data, data.with_format("torch"), data.with_format("numpy")]
    for given in (*ways, with_labels(labels[:, None]), with_labels(labels.double())):
        assert measure(model, given, **QUICK).mse == pytest.approx(wanted)
    stars = torch.arange(COUNT) % 5
    found = measure(model, with_labels(stars), **QUICK).mse
    assert found == pytest.approx(metrics.mean_squared_error(stars, outputs_of(model)[:, 0]), rel=1e-5)


def test_a_model_of_one_label_counts_examples():
    model = several(labels=1)
    labels = torch.arange(COUNT) % 2
    found = measure(model, with_labels(labels), **QUICK)
    predictions = (outputs_of(model)[:, 0] > 0).long()
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert found.exact_match == pytest.approx(found.accuracy)
    assert found.f1_micro == pytest.approx(metrics.f1_score(labels, predictions))


@pytest.mark.parametrize(("kind", "known"), [("several", ("accuracy", "cross_entropy")), ("number", ("mse",))])
def test_the_figures_are_those_that_the_trainer_reports(kind, known, tmp_path):
    model_of, labels_of = (several, some_labels) if kind == "several" else (number, some_numbers)
    student, teacher, labels = paired(model_of, labels_of)
    args = arguments(DistillationArguments, tmp_path, alpha=0.5)
    data = rows(with_labels(labels))
    trainer = DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=data, eval_dataset=data)
    evaluated = trainer.evaluate()
    found = measure(student, with_labels(labels), reference=teacher, **QUICK)
    for name in known:
        reported = evaluated["eval_accuracy" if name == "accuracy" else "eval_loss"]
        assert getattr(found, name) == pytest.approx(reported, rel=1e-5)
    if kind == "several":
        assert found.agreement == pytest.approx(evaluated["eval_agreement"], rel=1e-5)


def test_pairs_of_texts_are_measured_as_they_are_read():
    tokenizer, model = word_tokenizer(marked=True), number()
    words = [("a good film", "good plot"), ("bad", "very bad film"), ("long plot not good", "a film")] * 8
    encoded = [dict(tokenizer(*pair)) for pair in words]
    for one in encoded:
        first = len(one["input_ids"]) // 2
        one["token_type_ids"] = [0] * first + [1] * (len(one["input_ids"]) - first)
    with torch.no_grad():
        alone = [float(model.eval()(**{k: torch.tensor([v]) for k, v in one.items()}).logits) for one in encoded]
    labels = [0.5 * value + 0.1 * (index % 5) for index, value in enumerate(alone)]
    data = [one | {"labels": label} for one, label in zip(encoded, labels, strict=True)]
    found = measure(model, data, processing_class=tokenizer, **QUICK)
    assert found.mse == pytest.approx(metrics.mean_squared_error(labels, alone), rel=1e-4)
    assert found.pearson == pytest.approx(stats.pearsonr(labels, alone)[0], rel=1e-4)
    without = [{key: value for key, value in one.items() if key != "token_type_ids"} for one in data]
    assert measure(model, without, processing_class=tokenizer, **QUICK).mse != pytest.approx(found.mse, rel=1e-2)


# Beside a reference


def permuted(first, other):
    statistic = {"statistic": lambda x, y, axis: (x - y).mean(axis=axis), "permutation_type": "samples"}
    return stats.permutation_test((other, first), **statistic, vectorized=True, rng=np.random.default_rng(0)).pvalue


def paired(model_of, labels_of):
    first, other = model_of(seed=0), model_of(seed=1)
    return first, other, labels_of(first)


def test_several_labels_are_compared_with_the_reference():
    first, other, labels = paired(several, some_labels)
    predictions = [(outputs_of(model) > 0).float() for model in (first, other)]
    scores = [(one == labels).double().mean(-1).numpy() for one in predictions]
    result = compare({"first": first, "other": other}, with_labels(labels), **QUICK).rows
    assert (result["first"].sign_flip, result["first"].agreement) == (None, None)
    for found in (result["other"], measure(other, with_labels(labels), reference=first, **QUICK)):
        assert found.agreement == pytest.approx(1 - metrics.hamming_loss(*predictions))
        assert found.sign_flip.difference == pytest.approx((scores[1] - scores[0]).mean())
        assert found.sign_flip.p_value == pytest.approx(permuted(*scores), abs=0.02)
        assert (found.sign_flip.score, found.sign_flip.lower_is_better) == ("label accuracy", False)
        assert (found.mcnemar, found.reference_difference) == (None, None)


def test_numbers_are_compared_with_the_reference():
    first, other, labels = paired(number, some_numbers)
    outputs = [outputs_of(model)[:, 0] for model in (first, other)]
    errors = [(one - labels.double()).square().numpy() for one in outputs]
    result = compare({"first": first, "other": other}, with_labels(labels), **QUICK).rows
    for found in (result["other"], measure(other, with_labels(labels), reference=first, **QUICK)):
        assert found.reference_difference == pytest.approx(float((outputs[0] - outputs[1]).abs().mean()), rel=1e-4)
        assert found.sign_flip.difference == pytest.approx((errors[1] - errors[0]).mean(), rel=1e-4)
        assert found.sign_flip.p_value == pytest.approx(permuted(*errors), abs=0.02)
        assert found.agreement is None
    assert result["other"].sign_flip.verdict == "worse"  # the labels are those of the first, with noise
    back = compare({"other": other, "first": first}, with_labels(labels), **QUICK).rows["first"].sign_flip
    assert (back.verdict, back.p_value) == ("better", result["other"].sign_flip.p_value)


def test_labels_in_another_order_are_compared_by_name():
    model, other = several(), several()
    order, names = [2, 0, 3, 1], ["red", "green", "blue", "grey"]
    head, new = model.classifier, other.classifier
    new.weight.data, new.bias.data = head.weight.data[order].clone(), head.bias.data[order].clone()
    for one, its in ((model, names), (other, [names[index] for index in order])):
        one.config.id2label = dict(enumerate(its))
        one.config.label2id = {name: index for index, name in enumerate(its)}
    labels = some_labels(model)
    own = {"one": with_labels(labels), "other": with_labels(labels[:, order])}
    found = compare({"one": model, "other": other}, own, **QUICK).rows
    assert found["other"].agreement == 1
    assert found["other"].f1_macro == pytest.approx(found["one"].f1_macro)
    assert found["other"].sign_flip.p_value == 1
    assert measure(model, with_labels(labels), reference=other, **QUICK).agreement == 1
    with pytest.raises(CompressionError, match="'one' and 'other' have their classes in different orders"):
        compare({"one": model, "other": other}, with_labels(labels), **QUICK)


def test_predictions_for_other_labels_are_not_compared():
    first, other, labels = paired(number, some_numbers)
    own = {"first": with_labels(labels), "other": with_labels(labels + 1)}
    found = compare({"first": first, "other": other}, own, **QUICK).rows["other"]
    assert (found.sign_flip, found.reference_difference) == (None, None)
    assert found.mse is not None


# What has no value


def short_table(found):
    """The cells of the main table by model and column."""
    lines = [line.split("|")[1:-1] for line in found.to_markdown().splitlines() if line.startswith("| ")]
    head, *models = [[cell.strip() for cell in line] for line in lines]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in models}


def long_table(found):
    """The cells of the verbose table by figure, a list with one a model."""
    lines = [line.split("|")[1:-1] for line in found.to_markdown(verbose=True).splitlines() if line.startswith("| ")]
    return {label.strip(): [cell.strip() for cell in cells] for label, *cells in lines}


def test_constant_outputs_have_no_correlation():
    model = number()
    labels = some_numbers(model)
    nn.init.zeros_(model.classifier.weight)
    found = compare({"good": number(), "constant": model}, with_labels(labels), **QUICK)
    constant = found.rows["constant"]
    assert (constant.pearson, constant.spearman, constant.pearson_interval) == (None, None, None)
    assert set(constant.undefined) == {"pearson", "spearman", "pearson_interval", "spearman_interval"}
    assert constant.mse == pytest.approx(metrics.mean_squared_error(labels, outputs_of(model)[:, 0]), rel=1e-5)
    cells = short_table(found)
    assert (cells["constant"]["Pearson"], cells["constant"]["Spearman"]) == ("undefined", "undefined")
    assert float(cells["good"]["Pearson"]) > 0
    assert "undefined: there is no correlation" in str(found)
    written = json.loads(found.to_json())["constant"]
    assert (written["pearson"], written["undefined"]) == (None, list(constant.undefined))


def test_without_any_label_there_is_no_f1():
    model = several()
    model.classifier.bias.data.fill_(-1e3)
    found = compare({"model": model}, with_labels(torch.zeros(COUNT, LABELS)), **QUICK)
    one, cells, figures = found.rows["model"], short_table(found)["model"], long_table(found)
    assert (one.f1_micro, one.f1_macro, one.accuracy, one.exact_match) == (None, None, 1.0, 1.0)
    assert one.exact_match_interval == wilson_interval(COUNT, COUNT)
    assert (cells["micro F1"], cells["macro F1"], cells["95 % interval"]) == ("undefined",) * 3
    assert figures["macro F1, 95 % interval"] == ["undefined"]
    assert figures["exact match, 95 % interval"][0].endswith(" to 1.000")


def test_a_label_of_few_examples_leaves_no_macro_interval():
    model, labels = several(), torch.ones(COUNT, LABELS)
    model.classifier.bias.data[0] = -1e3
    model.classifier.bias.data[1:] = 1e3
    labels[:, 0] = 0
    labels[0, 0], labels[1, 1] = 1, 0  # a third of the resamples have nothing of label 0
    found = compare({"model": model}, with_labels(labels), **QUICK)
    one = found.rows["model"]
    assert one.f1_macro == pytest.approx((0 + 46 / 47 + 1 + 1) / 4)
    assert one.undefined == ("f1_macro_interval",)
    assert "undefined" not in str(found)  # where it is not shown
    assert "undefined: there is" in found.to_text(verbose=True)


@pytest.mark.parametrize("kind", ["several", "number"])
def test_a_single_example_is_measured(kind):
    model, label = (several(), torch.ones(1, LABELS)) if kind == "several" else (number(), torch.ones(1))
    data = {key: value[:1] for key, value in INPUTS.items()} | {"labels": label}
    found = compare({"a": model, "b": model}, data, **QUICK)
    assert (found.rows["a"].examples, found.rows["b"].sign_flip.p_value) == (1, 1)
    assert "undefined" in found.to_text(verbose=True)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert "<svg" in found.to_html()


# Tables, pictures and JSON


@pytest.fixture(scope="module")
def tables():
    first, other, labels = paired(several, some_labels)
    of_labels = compare({"first": first, "other": other}, with_labels(labels), **QUICK)
    first, other, labels = paired(number, some_numbers)
    of_numbers = compare({"first": first, "other": other}, with_labels(labels), **QUICK)
    return {"labels": of_labels, "numbers": of_numbers}


COLUMNS = {
    "labels": ["label accuracy", "95 % interval", "exact match", "micro F1", "macro F1", "against first"],
    "numbers": ["mean squared error", "95 % interval", "Pearson", "Spearman", "against first"],
}
SCORES = {"labels": "label accuracy", "numbers": "squared error"}


@pytest.mark.parametrize("kind", COLUMNS)
def test_tables_show_the_figures_and_name_the_test(tables, kind):
    found, score = tables[kind], SCORES[kind]
    test, cells = found.rows["other"].sign_flip, short_table(found)
    assert list(cells["other"])[-len(COLUMNS[kind]) :] == COLUMNS[kind]
    assert "accuracy" not in cells["other"]
    assert cells["other"]["against first"].startswith(f"{test.verdict} (p ")
    assert long_table(found)[f"permutation test of the {score}"][1].startswith(f"{test.verdict}, p ")
    assert f"Against first: paired permutation test (sign flips) of the {score} of the same examples" in str(found)
    for text in (str(found), found.to_text(verbose=True), found.to_html()):
        assert "McNemar" not in text
        assert "undefined" not in text
        assert " nan" not in text


@pytest.mark.parametrize("kind", COLUMNS)
def test_json_has_the_figures_of_every_kind(tables, kind):
    found = tables[kind]
    values, other = json.loads(json.dumps(found.to_dict(), allow_nan=False))["other"], found.rows["other"]
    assert values["sign_flip"]["verdict"] == other.sign_flip.verdict
    assert values["problem_type"] == other.problem_type
    names = ("f1_micro", "f1_macro", "exact_match") if kind == "labels" else ("mse", "pearson", "spearman")
    for name in names:
        assert values[name] == getattr(other, name)
        assert values[f"{name}_interval"] == list(getattr(other, f"{name}_interval"))
    assert values["ratios"][names[0]] == getattr(other, names[0]) / getattr(found.first, names[0])


@pytest.mark.parametrize(("kind", "caption"), [("labels", "Label accuracy"), ("numbers", "Mean squared error")])
def test_a_page_shows_the_figures_of_every_kind(tables, kind, caption):
    page, text = Page(), tables[kind].to_html()
    page.feed(text)
    assert (page.open, page.tags.count("svg")) == ([], 3)
    assert f"<p>{caption} against " in text


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_card_takes_the_figures_of_every_kind(tables, kind, tmp_path):
    save_compressed(several(), tmp_path / "model", results=tables[kind])
    assert tables[kind].to_markdown() in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def with_error(parameters, mse):
    return row(parameters, problem_type=REGRESSION, mse=mse, mse_interval=(0.9 * mse, 1.1 * mse))


def test_the_pareto_front_of_an_error_is_below():
    found = Comparison({"large": with_error(100, 0.1), "small": with_error(10, 0.5), "waste": with_error(110, 0.3)})
    figure, (axes,) = found.plot()
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert front.get_ydata().tolist() == [0.5, 0.1]
    assert axes.get_ylabel() == "mean squared error, lower is better, 95 % interval"
    plt.close(figure)


def test_a_lower_error_is_better_and_a_lower_accuracy_worse():
    verdicts = {lower: SignFlip("score", -1.0, 0.01, True, lower).verdict for lower in (True, False)}
    assert verdicts == {True: "better", False: "worse"}


# What is refused


def test_models_of_different_problem_types_are_refused():
    single, one, many = build("bert"), number(), several(labels=2)
    data = with_labels(torch.arange(COUNT) % 2)
    for models in ({"a": single, "b": one}, {"a": one, "b": single}, {"a": many, "b": one}, {"a": single, "b": many}):
        with pytest.raises(CompressionError, match=r"different problem types, .* cannot be compared: 'a' '.*', 'b' '"):
            compare(models, data, **QUICK)
    with pytest.raises(CompressionError, match="different problem types"):
        measure(one, data, reference=single, **QUICK)
    assert len(compare({"a": single, "b": one, "c": many}, INPUTS, **QUICK).rows) == 3  # size and speed


def class_model():
    return build("bert", LABELS)


NAN, INFINITE = (torch.tensor([value, *[1.0] * (COUNT - 1)]) for value in (float("nan"), float("inf")))


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (several, torch.arange(COUNT) % LABELS, r"hold 2, .*multi_label_classification', which needs 0 or 1"),
        (several, torch.arange(COUNT) % 2, r"shape \(24,\), .*'multi_label_classification'.*\(24, 4\)"),
        (several, torch.zeros(COUNT, 3), r"shape \(24, 3\), .*shape \(24, 4\): a number for each logit"),
        (several, torch.full((COUNT, LABELS), 0.5), "hold 0.5"),
        (several, torch.full((COUNT, LABELS), -100), "hold -100"),
        (several, torch.full((COUNT, LABELS), float("nan")), "hold nan"),
        (number, torch.zeros(COUNT, 2), r"shape \(24, 2\), .*'regression'.*\(24, 1\)"),
        (number, NAN, "1 of the labels .* NaN or infinite"),
        (number, INFINITE, "1 of the labels .* NaN or infinite"),
        (class_model, torch.zeros(COUNT, LABELS), "class indices.*'multi_label_classification' in its config"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model, labels, message):
    with pytest.raises(CompressionError, match=message):
        measure(model(), with_labels(labels), **QUICK)


@pytest.mark.parametrize("kind", ["several", "number"])
def test_logits_of_nan_have_no_quality(kind):
    model_of, labels_of = (several, some_labels) if kind == "several" else (number, some_numbers)
    model, broken, labels = paired(model_of, labels_of)
    broken.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="'b' returns NaN or infinity for 24 of 24 examples"):
        compare({"a": model, "b": broken}, with_labels(labels), **QUICK)
    with pytest.raises(CompressionError, match=r"The reference returns .* finite logits"):
        measure(model, with_labels(labels), reference=broken, **QUICK)


def test_measuring_changes_neither_model_nor_random_state():
    model = number()
    before, state, own = state_of(model), torch.get_rng_state(), np.random.get_state()[1].copy()
    measure(model, with_labels(some_numbers(model)), reference=model, **QUICK)
    assert same_bits(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == own).all()
