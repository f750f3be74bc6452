"""Weights of classes and examples in the label term, against scikit-learn, torch and plain loops."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from architectures import WORDS, arguments, build, rows, same_bits, state_of, texts, word_tokenizer
from datasets import ClassLabel, Dataset, Features, List, Value
from plain_distillation import (
    DATA,
    LABELS,
    Gradients,
    assert_same_weights,
    compute_logits,
    make,
    model_inputs,
    name_labels,
    part,
    plain_training,
    student_and_teacher,
)
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from test_exact_mean import WithoutKeywords
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from transformers import DataCollatorWithPadding, HfArgumentParser, default_data_collator

from hfcompress import CompressionError, DistillationArguments
from hfcompress.distill.label_weights import WeightCollator
from hfcompress.losses import label_loss

WEIGHTS = [0.5, 3.0, 1.25]


def with_column(data, name="weight", seed=0):
    """Return the data with a column of weights, every fifth 0."""
    weights = 3 * torch.rand(len(data["labels"]), generator=torch.Generator().manual_seed(seed))
    weights[::5] = 0
    return {**data, name: weights}


def update_loss(logits, targets, data, *, by_class=None, alpha=0.5, label="cross_entropy", smoothing=0.0):
    """The loss of an update, example by example."""
    by_class = torch.ones(logits.shape[-1]) if by_class is None else torch.tensor(by_class)
    total = weights = 0.0
    for row, wanted, given in zip(logits, data["labels"], data.get("weight", [1.0] * len(logits)), strict=True):
        if wanted < 0:
            continue
        weight, classes = given * by_class[wanted], len(row)
        if label == "cross_entropy":  # as torch's: the smoothed part is weighted class by class
            losses = -row.log_softmax(-1)
            total = total + (1 - smoothing) * weight * losses[wanted]
            total = total + given * smoothing / classes * (by_class * losses).sum()
        else:
            target = (1 - smoothing) * one_hot(wanted, classes) + smoothing / classes
            total = total + weight * ((row.softmax(-1) - target) ** 2).mean()
        weights = weights + weight
    from_teacher = ((logits.softmax(-1) - targets.softmax(-1)) ** 2).mean()
    return alpha * from_teacher + (1 - alpha) * (total / weights if weights else 0.0)


def train_plainly(student, targets, data, *, loss=update_loss, size=8, **settings):
    """Train in the order of the data, an update a batch; return the loss and the gradient of every update."""
    optimizer, losses, gradients = torch.optim.SGD(student.parameters(), lr=0.1), [], []
    for start in range(0, len(data["labels"]), size):
        optimizer.zero_grad()
        here = part(data, start, start + size)
        losses.append(loss(student(**model_inputs(here)).logits, targets[start : start + size], here, **settings))
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        optimizer.step()
    return [one.item() for one in losses], gradients


def train(student, teacher, directory, data, accumulated=1, **settings):
    """Train with updates of 8; return the trainer, the loss and the gradient of every update."""
    gradients = Gradients()
    sizes = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    args = {"label_loss": "cross_entropy", "logging_strategy": "steps", "logging_steps": 1} | sizes | settings
    trainer = make(student, teacher, directory, data, args=args, callbacks=[gradients])
    trainer.train()
    return trainer, [one for one in trainer.state.log_history if "loss" in one], gradients.found


def assert_same_updates(found, wanted):
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert torch.linalg.vector_norm(one - other) < 2e-5 * torch.linalg.vector_norm(other)


@pytest.mark.parametrize(
    ("architecture", "accumulated", "alpha"),
    [(name, count, 0.5) for name in ("bert", "gpt2", "without keywords") for count in (1, 2, 8)]
    + [("bert", 2, 0.0), ("bert", 2, 1.0), ("gpt2", 8, 0.0)],
)
def test_updates_weigh_their_examples_however_split(architecture, accumulated, alpha, tmp_path):
    """The last update has 5 of the 21 examples; the weights are those of the classes times the column's."""
    plain = architecture == "without keywords"
    student, teacher = student_and_teacher("bert" if plain else architecture)
    data = with_column(part(DATA, 0, 21))
    expected = copy.deepcopy(student)
    losses, wanted = train_plainly(expected, compute_logits(teacher, data), data, by_class=WEIGHTS, alpha=alpha)
    settings = {"class_weights": WEIGHTS, "alpha": alpha}
    trained = WithoutKeywords(student) if plain else student
    _, logged, found = train(trained, teacher, tmp_path, data, accumulated, **settings)
    assert_same_updates(found, wanted)
    assert [one["loss"] for one in logged] == pytest.approx(losses, abs=1e-4)
    assert_same_weights(student, expected)


@pytest.mark.parametrize("accumulated", [1, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_an_update_is_one_batch_of_cross_entropy_loss(smoothing, accumulated, tmp_path):
    def loss(logits, targets, data):
        return torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)(logits, data["labels"])

    student, _ = student_and_teacher()
    _, wanted = train_plainly(copy.deepcopy(student), torch.zeros(40, LABELS), DATA, loss=loss)
    settings = {"class_weights": WEIGHTS, "alpha": 0.0, "label_smoothing_factor": smoothing}
    assert_same_updates(train(student, None, tmp_path, DATA, accumulated, **settings)[2], wanted)


def test_the_mean_of_the_batches_weighted_means_is_another(tmp_path):
    """What the tests above would not find if the two were the same."""
    student, _ = student_and_teacher()
    data, values = part(DATA, 0, 8), []
    for size in (8, 1):
        weighted = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS))
        logits = compute_logits(student, data).split(size)
        means = [weighted(*pair) for pair in zip(logits, data["labels"].split(size), strict=True)]
        values.append(float(torch.stack(means).mean()))
        _, logged, _ = train(copy.deepcopy(student), None, tmp_path, data, 8 // size, alpha=0.0, class_weights=WEIGHTS)
        assert logged[0]["label_term"] == pytest.approx(values[0], rel=1e-5)
    assert abs(values[0] - values[1]) > 0.02


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("label", ["mse", "cross_entropy"])
def test_both_label_losses_are_weighted_in_the_same_way(label, smoothing, tmp_path):
    student, teacher = student_and_teacher()
    data, settings = with_column(part(DATA, 0, 19)), {"label": label, "smoothing": smoothing, "by_class": WEIGHTS}
    _, wanted = train_plainly(copy.deepcopy(student), compute_logits(teacher, data), data, **settings)
    settings = {"label_loss": label, "label_smoothing_factor": smoothing, "class_weights": WEIGHTS}
    assert_same_updates(train(student, teacher, tmp_path, data, 4, **settings)[2], wanted)


def test_the_log_shows_weighted_label_term_and_plain_teacher_term(tmp_path):
    student, teacher = student_and_teacher()
    data = with_column(part(DATA, 0, 21))
    targets, plain = compute_logits(teacher, data), copy.deepcopy(student)
    label_terms, _ = train_plainly(copy.deepcopy(student), targets, data, by_class=WEIGHTS, alpha=0.0)
    _, logged, _ = train(student, teacher, tmp_path, data, 4, class_weights=WEIGHTS, alpha=0.3)
    first = part(data, 0, 8)
    logits = compute_logits(plain, first)
    assert logged[0]["label_term"] == pytest.approx(label_terms[0], rel=1e-5)
    wanted = (logits.softmax(-1) - targets[:8].softmax(-1)).square().mean()
    assert logged[0]["teacher_term"] == pytest.approx(float(wanted), rel=1e-5)
    for one in logged:
        assert 0.3 * one["teacher_term"] + 0.7 * one["label_term"] == pytest.approx(one["loss"], abs=1e-4)


def test_the_evaluation_is_unweighted(tmp_path):
    student, teacher = student_and_teacher()
    metrics = []
    for data, settings in ((DATA, {}), (with_column(DATA), {"class_weights": WEIGHTS})):
        trainer = make(student, teacher, tmp_path, data, args={"label_loss": "cross_entropy", **settings})
        metrics.append({name: value for name, value in trainer.evaluate().items() if "second" not in name})
        metrics[-1].pop("eval_runtime"), metrics[-1].pop("eval_model_preparation_time", None)
    assert metrics[0] == metrics[1]
    loss = float(cross_entropy(compute_logits(student, DATA), DATA["labels"]))
    assert metrics[0]["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_data_to_evaluate_on_may_have_any_column_of_that_name(tmp_path):
    student, teacher = student_and_teacher()
    evaluated = [{**row, "weight": "heavy"} for row in rows(DATA)]
    trainer = make(student, teacher, tmp_path, eval_dataset=evaluated, args={"class_weights": WEIGHTS})
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    assert trainer.predict(evaluated).predictions.shape == (40, LABELS)


@pytest.mark.parametrize("settings", [{"class_weights": [1, 1, 1]}, {}])
def test_equal_weights_change_nothing(settings, tmp_path):
    states = []
    for data, given in ((DATA, {}), ({**DATA, "weight": torch.full((40,), 2.0)}, settings)):
        student, teacher = student_and_teacher()
        train(student, teacher, tmp_path, data, 2, **given)
        states.append(student)
    assert_same_weights(*states, tolerance=1e-6)


def test_another_name_or_none_leaves_the_column_out(tmp_path):
    states = []
    for data, column in ((DATA, "weight"), (with_column(DATA), None), (with_column(DATA), "")):
        student, teacher = student_and_teacher()
        train(student, teacher, tmp_path, data, weight_column=column)
        states.append(state_of(student))
    assert same_bits(*states[:2])
    assert same_bits(states[0], states[2])


def test_the_column_may_have_another_name(tmp_path):
    states = []
    for name in ("weight", "importance"):
        student, teacher = student_and_teacher()
        train(student, teacher, tmp_path, Dataset.from_list(rows(with_column(DATA, name))), weight_column=name)
        states.append(state_of(student))
    assert same_bits(*states)


class Rows(torch.utils.data.Dataset):
    """Rows whose columns are not known before they are read."""

    def __init__(self, data):
        self.rows = rows(data)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def transformed(data):
    return Dataset.from_list(rows(data)).with_transform(lambda columns: columns)


def streamed(data):
    return Dataset.from_list(rows(data)).to_iterable_dataset()


FORMS = {
    "list": rows,
    "dataset": lambda data: Dataset.from_list(rows(data)),
    "tensors": lambda data: Dataset.from_list(rows(data)).with_format("torch"),
    "transformed": transformed,
    "map-style": Rows,
}


@pytest.mark.parametrize("form", [*FORMS, "streamed"])
def test_weights_are_read_from_every_form_of_data(form, tmp_path):
    data = with_column(part(DATA, 0, 24))
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    train_plainly(expected, compute_logits(teacher, data), data, by_class=WEIGHTS)
    made = (FORMS | {"streamed": streamed})[form](data)
    train(student, teacher, tmp_path, made, 2, class_weights=WEIGHTS, max_steps=3)
    assert_same_weights(student, expected)


def test_weights_may_be_written_as_text(tmp_path):
    """As a csv gives them; a collator of a tokenizer could not read text."""
    data = with_column(part(DATA, 0, 16))
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    train_plainly(expected, compute_logits(teacher, data), data)
    written = [{**row, "weight": str(row["weight"])} for row in rows(data)]
    args = arguments(
        DistillationArguments, tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, label_loss="cross_entropy"
    )
    collator = DataCollatorWithPadding(word_tokenizer())
    trainer = type(make(student, teacher, tmp_path))(
        student, args, teacher=teacher, train_dataset=written, data_collator=collator
    )
    trainer.train()
    assert_same_weights(student, expected)
    trainer.save_model(str(tmp_path / "saved"))  # with the collator's tokenizer, where there is no other
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


@pytest.mark.parametrize("form", FORMS)
def test_balanced_is_scikit_learns(form, tmp_path):
    student, teacher = student_and_teacher()
    wanted = compute_class_weight("balanced", classes=np.arange(LABELS), y=DATA["labels"].numpy())
    states = []
    for given in ("balanced", wanted):
        one = copy.deepcopy(student)
        train(one, teacher, tmp_path, FORMS[form](DATA), class_weights=given)
        states.append(state_of(one))
    assert same_bits(*states)
    assert wanted.max() > 1.1 * wanted.min()


def test_balanced_is_a_column_of_scikit_learns_sample_weights(tmp_path):
    student, teacher = student_and_teacher()
    other = copy.deepcopy(student)
    train(student, teacher, tmp_path, DATA, 2, class_weights="balanced")
    column = torch.from_numpy(compute_sample_weight("balanced", DATA["labels"].numpy())).float()
    train(other, teacher, tmp_path, {**DATA, "weight": column}, 2)
    assert_same_weights(student, other, tolerance=1e-6)


def test_balanced_counts_the_data_that_are_trained_on(tmp_path):
    """Those of the trainer when training begins, under the name that the collator reads, examples without label not."""
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    data = part(DATA, 0, 24)
    data["labels"] = data["labels"].clone()
    data["labels"][[2, 9]] = torch.tensor([-1, -100])
    known = data["labels"][data["labels"] >= 0].numpy()
    by_class = compute_class_weight("balanced", classes=np.arange(LABELS), y=known).tolist()
    train_plainly(expected, compute_logits(teacher, data), data, by_class=by_class)
    trainer = make(student, teacher, tmp_path, args={"class_weights": "balanced", "label_loss": "cross_entropy"})
    columns = {"input_ids": List(Value("int64")), "attention_mask": List(Value("int64")), "label": ClassLabel(LABELS)}
    named = [{"label": row["labels"], **{name: row[name] for name in model_inputs(row)}} for row in rows(data)]
    trainer.train_dataset = Dataset.from_list(
        [{**row, "label": max(row["label"], -1)} for row in named], features=Features(columns)
    )
    trainer.train()
    assert_same_weights(student, expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (streamed(DATA), "counts the labels of the training data, which is not possible where they are streamed"),
        ({**DATA, "labels": DATA["labels"].clamp(max=1)}, r"none has the class 2 \(the classes have \[\d+, \d+, 0\]"),
        ({**DATA, "labels": DATA["labels"].float()}, r"row 0 \(from 0\) has the label \d\.0, which is not the index"),
        ({**DATA, "labels": DATA["labels"] * 2}, r"has the label 4, which is not the index of one of 3 classes"),
        ({**DATA, "label": DATA["labels"].flip(0)}, "columns labels and label differ"),
        (model_inputs(DATA), "have no labels"),
    ],
)
def test_labels_that_balanced_cannot_count_are_refused(data, message, tmp_path):
    student, teacher = student_and_teacher()
    args = {"class_weights": "balanced", "max_steps": 1}
    with pytest.raises(CompressionError, match=f"^class_weights='balanced' .*{message}"):
        make(student, teacher, tmp_path, data, args=args, eval_dataset=None)
    assert all(p.requires_grad for p in teacher.parameters())  # refused before the teacher was frozen


@pytest.mark.parametrize("accumulated", [1, 4])
def test_examples_without_a_label_count_for_the_teacher_alone(accumulated, tmp_path):
    student, teacher = student_and_teacher()
    data = part(DATA, 0, 19)
    data["labels"] = data["labels"].clone()
    data["labels"][[1, 8, 9, 17]] = torch.tensor([-1, -100, -1, -100])
    _, wanted = train_plainly(copy.deepcopy(student), compute_logits(teacher, data), data, by_class=WEIGHTS)
    assert_same_updates(train(student, teacher, tmp_path, data, accumulated, class_weights=WEIGHTS)[2], wanted)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_an_update_without_weight_has_no_label_term(accumulated, tmp_path):
    student, teacher = student_and_teacher()
    data = with_column(part(DATA, 0, 24))
    data["weight"][8:16] = 0
    losses, wanted = train_plainly(copy.deepcopy(student), compute_logits(teacher, data), data)
    _, logged, found = train(student, teacher, tmp_path, data, accumulated)
    assert_same_updates(found, wanted)
    assert logged[1]["label_term"] == 0
    assert [one["loss"] for one in logged] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("label", [-2, LABELS])
def test_a_label_of_no_class_is_refused_with_weights_too(label, tmp_path):
    student, teacher = student_and_teacher()
    data = with_column(part(DATA, 0, 8))
    data["labels"] = data["labels"].clone()
    data["labels"][3] = label
    with pytest.raises(CompressionError, match=f"label {label} is none of the 3 classes"):
        train(student, teacher, tmp_path, data, class_weights=WEIGHTS)


def test_weights_are_in_the_students_order_of_classes(tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student, ["a", "b", "c"])
    name_labels(teacher, ["c", "a", "b"])
    targets = compute_logits(teacher, DATA)[:, [1, 2, 0]]
    _, wanted = train_plainly(copy.deepcopy(student), targets, DATA, by_class=WEIGHTS)
    assert_same_updates(train(student, teacher, tmp_path, DATA, class_weights=WEIGHTS)[2], wanted)


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("label", ["mse", "cross_entropy"])
def test_each_of_several_labels_has_a_weight(label, accumulated, tmp_path):
    """Over all examples and labels: sum of w_i v_c l_ic / sum of w_i v_c, w the column's and v the labels' weights."""
    by_label, settings = torch.tensor([0.5, 2.0, 0.0, 1.0]), {"problem_type": "multi_label_classification"}
    student, teacher = (build(num_labels=4, seed=seed, **settings) for seed in (1, 2))
    data = with_column(part(DATA, 0, 21))
    data["labels"] = (torch.rand((21, 4), generator=torch.Generator().manual_seed(0)) > 0.6).float()

    def loss(logits, targets, data):
        total = weights = 0.0
        for row, wanted, given in zip(logits, data["labels"], data["weight"], strict=True):
            for logit, target, weight in zip(row, wanted, by_label, strict=True):
                squared = (logit.sigmoid() - target) ** 2
                value = binary_cross_entropy_with_logits(logit, target) if label == "cross_entropy" else squared
                total, weights = total + given * weight * value, weights + given * weight
        return 0.5 * total / weights + 0.5 * (logits.sigmoid() - targets.sigmoid()).square().mean()

    _, wanted = train_plainly(copy.deepcopy(student), compute_logits(teacher, data), data, loss=loss)
    given = {"class_weights": by_label.tolist(), "label_loss": label}
    assert_same_updates(train(student, teacher, tmp_path, data, accumulated, **given)[2], wanted)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_regression_weighs_its_examples_by_the_column(accumulated, tmp_path):
    student, teacher = build(num_labels=1, seed=1), build(num_labels=1, seed=2)
    data = with_column(part(DATA, 0, 21))
    data["labels"] = torch.randn(21, generator=torch.Generator().manual_seed(0))

    def loss(logits, targets, data):
        squared = (logits.squeeze(1) - data["labels"]) ** 2
        return 0.5 * (data["weight"] @ squared) / data["weight"].sum() + 0.5 * (logits - targets).square().mean()

    _, wanted = train_plainly(copy.deepcopy(student), compute_logits(teacher, data), data, loss=loss)
    assert_same_updates(train(student, teacher, tmp_path, data, accumulated, label_loss="mse")[2], wanted)


def test_class_weights_without_classes_are_refused(tmp_path):
    with pytest.raises(CompressionError, match=r"class_weights=\[2\.0\] need classes, and a regression head"):
        make(build(num_labels=1), build(num_labels=1, seed=1), tmp_path, args={"class_weights": [2.0]})
    several = build(num_labels=4, problem_type="multi_label_classification")
    data = {**DATA, "labels": torch.ones(40, 4)}
    with pytest.raises(CompressionError, match="'balanced' is defined for one label an example"):
        make(several, None, tmp_path, data, args={"class_weights": "balanced", "alpha": 0.0})


@pytest.mark.parametrize(
    "given",
    [
        [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0], [0, 0, 0], [], ["1", "2", "3"], "[1, NaN, 1]",
        [True, False, True], "even", "3", 2.0, {"a": 1.0}, '{"0": 1}', [[1.0, 2.0]], [1e30, 1.0, 1.0],
        torch.tensor(1.0),
    ],
)  # fmt: skip
def test_class_weights_that_are_no_weights_are_refused(given, tmp_path):
    with pytest.raises(CompressionError, match="must be 'balanced' or a list with the weight of each class"):
        DistillationArguments(output_dir=str(tmp_path), class_weights=given)


@pytest.mark.parametrize("given", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_another_number_of_class_weights_is_refused(given, tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match=f"are {len(given)} weights; the student has 3 classes, so list 3"):
        make(student, teacher, tmp_path, args={"class_weights": given})
    plain = torch.nn.Module()  # a model without a config has as many classes as logits
    plain.body, plain.forward = student, lambda input_ids, attention_mask: student(input_ids, attention_mask)
    with pytest.raises(CompressionError, match="list 3, one for each class"):
        train(plain, None, tmp_path, part(DATA, 0, 8), alpha=0.0, class_weights=given)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, None, "much", [1.0], 1e-40])
@pytest.mark.parametrize("form", ["list", "dataset"])
def test_weights_in_the_data_are_refused_before_training(form, wrong, tmp_path):
    student, teacher = student_and_teacher()
    made = rows(with_column(part(DATA, 0, 8)))
    for row in made:
        row["weight"] = str(row["weight"]) if isinstance(wrong, str) else row["weight"]
        row["weight"] = [row["weight"]] if isinstance(wrong, list) and form == "dataset" else row["weight"]
    made[5]["weight"] = wrong
    made = Dataset.from_list(made) if form == "dataset" else made
    with pytest.raises(
        CompressionError, match=r"Row [05] \(from 0\) of the training data has .* in the column 'weight'"
    ):
        make(student, teacher, tmp_path, made)


@pytest.mark.parametrize("form", [streamed, Rows, transformed])
def test_weights_in_other_data_are_refused_when_they_are_read(form, tmp_path):
    student, teacher = student_and_teacher()
    data = with_column(part(DATA, 0, 8))
    data["weight"][5] = -1
    trainer = make(student, teacher, tmp_path, form(data), args={"max_steps": 1}, eval_dataset=None)
    with pytest.raises(CompressionError, match=r"Row 5 of a batch has .* in the column 'weight', which is no weight"):
        trainer.train()


@pytest.mark.parametrize("which", [slice(0, 3), slice(0, 8), slice(8, 16)])
@pytest.mark.parametrize("form", [rows, lambda data: Rows(data)])
def test_rows_without_the_column_of_the_others_are_refused(form, which, tmp_path):
    student, teacher = student_and_teacher()
    made = form(with_column(part(DATA, 0, 16)))
    for row in (made if isinstance(made, list) else made.rows)[which]:
        del row["weight"]
    with pytest.raises(CompressionError, match="weight_column="):
        make(student, teacher, tmp_path, made, eval_dataset=None).train()


def test_a_column_hidden_by_the_format_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    made = Dataset.from_list(rows(with_column(DATA))).with_format("torch", columns=list(DATA))
    with pytest.raises(CompressionError, match="a batch has no column 'weight'"):
        make(student, teacher, tmp_path, made, eval_dataset=None).train()


@pytest.mark.parametrize("form", [rows, streamed])
def test_a_column_that_was_named_and_is_missing_is_refused(form, tmp_path):
    student, teacher = student_and_teacher()
    args = {"weight_column": "wieght", "max_steps": 1}
    with pytest.raises(CompressionError, match="no column 'wieght'"):
        make(student, teacher, tmp_path, form(with_column(DATA)), args=args, eval_dataset=None).train()


@pytest.mark.parametrize("name", ["labels", "input_ids", "text", "teacher_logits"])
def test_another_input_is_not_taken_for_weights(name, tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match=f"weight_column='{name}' names another input"):
        make(student, teacher, tmp_path, args={"weight_column": name})


def test_a_resumed_training_goes_on_with_its_weights(tmp_path):
    data = with_column(part(DATA, 0, 21))
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    train_plainly(expected, compute_logits(teacher, data), data, by_class=WEIGHTS)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    settings |= {"class_weights": WEIGHTS, "label_loss": "cross_entropy"}
    make(student, teacher, tmp_path, data, args=settings | {"save_steps": 1, "max_steps": 1}).train()
    trainer = make(build("bert", LABELS, seed=3), teacher, tmp_path, data, args=settings | {"save_steps": 9})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same_weights(trainer.model, expected)


def test_a_stream_that_ends_within_an_update_keeps_its_weights(tmp_path):
    """Two updates take 8 examples each; the last 3 of 19 and the first 4 of the next pass are the third."""
    data = with_column(part(DATA, 0, 19))
    student, teacher = student_and_teacher()
    expected, targets = copy.deepcopy(student), compute_logits(teacher, data)
    for update in (range(8), range(8, 16), [16, 17, 18, 0, 1, 2, 3], range(4, 12)):
        chosen = torch.tensor(list(update))
        train_plainly(
            expected, targets[chosen], {name: value[chosen] for name, value in data.items()}, by_class=WEIGHTS
        )
    train(student, teacher, tmp_path, streamed(data), 2, max_steps=4, class_weights=WEIGHTS)
    assert_same_weights(student, expected)


def test_a_loss_computed_by_itself_is_that_of_an_update(tmp_path):
    student, teacher = student_and_teacher()
    data, targets = with_column(part(DATA, 0, 8)), None
    targets = compute_logits(teacher, data)
    trainer = make(student, teacher, tmp_path, args={"class_weights": WEIGHTS, "label_loss": "cross_entropy"})
    wanted = update_loss(compute_logits(student, data), targets, data, by_class=WEIGHTS)
    torch.testing.assert_close(trainer.compute_loss(student.eval(), dict(data)), wanted)


def test_with_alpha_1_neither_weights_nor_labels_are_needed(tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, alpha=1.0)
    data = {**model_inputs(DATA), "weight": torch.full((40,), -1.0)}
    train(student, teacher, tmp_path, data, alpha=1.0, class_weights="balanced")
    assert_same_weights(student, expected)


def test_hidden_states_and_relations_are_not_weighted(tmp_path):
    terms, settings = [], {"hidden_weight": 0.5, "relation_weight": 0.5}
    for data, given in ((DATA, {}), (with_column(DATA), {"class_weights": WEIGHTS})):
        _, logged, _ = train(*student_and_teacher(), tmp_path, data, 2, max_steps=1, **settings, **given)
        terms.append(logged[0])
    for name in ("hidden_term", "relation_term", "teacher_term"):
        assert terms[0][name] == terms[1][name]
    assert terms[0]["label_term"] != pytest.approx(terms[1]["label_term"], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("balanced", "balanced"), ('"balanced"', "balanced"), ("[1.0, 3.0]", [1.0, 3.0]), ("[1,3]", [1.0, 3.0])],
)
@pytest.mark.parametrize("option", ["--class_weights", "--class-weights"])
def test_weights_are_read_from_a_command_line_and_json(option, text, wanted, tmp_path):
    (args,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), option, text, "--weight-column", "importance"]
    )
    assert args.class_weights == wanted
    assert args.weight_column == "importance"
    assert json.loads(args.to_json_string())["class_weights"] == wanted


def test_the_loss_itself_refuses_weights_that_do_not_fit():
    logits = torch.zeros(2, 3)
    with pytest.raises(CompressionError, match=r"shape \(2,\) do not fit logits of shape \(2, 3\); list 3"):
        label_loss(logits, torch.tensor([0, 1]), class_weights=torch.ones(2))
    with pytest.raises(CompressionError, match="a regression head has none"):
        label_loss(logits, torch.zeros(2, 3), problem="regression", class_weights=torch.ones(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_each_example_is_that_of_torch(smoothing):
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor(WEIGHTS)
    found = label_loss(logits, labels, "cross_entropy", smoothing, class_weights=weights)
    assert torch.equal(found, cross_entropy(logits, labels, weights, reduction="none", label_smoothing=smoothing))


def test_a_teacher_with_its_own_tokenizer_leaves_the_weights(tmp_path):
    data, states = texts(16), []
    own, other = word_tokenizer(), word_tokenizer(WORDS[::-1])
    data = data.add_column("weight", [n % 3 for n in range(16)])
    data = data.map(lambda row: own(row["text"]))
    for tokenizer, column in ((other, None), (other, "teacher_logits")):
        student, teacher = student_and_teacher()
        cached = data
        if column is not None:
            ids = other(list(data["text"]), padding=True, return_tensors="pt")
            cached = data.add_column(column, compute_logits(teacher, ids).tolist())
        settings = {"class_weights": WEIGHTS, "per_device_train_batch_size": 8}
        trainer = make(
            student, teacher, tmp_path, cached, args=settings, processing_class=own, teacher_processing_class=tokenizer
        )
        trainer.train()
        states.append(student)
    assert_same_weights(*states)


def test_the_collator_can_be_sent_to_workers():
    collator = pickle.loads(pickle.dumps(WeightCollator(default_data_collator, "weight")))
    found = collator([{"labels": 1, "weight": "0.5"}, {"labels": 0, "weight": 2}])
    assert found["weight"].tolist() == [0.5, 2.0]
    assert found["labels"].tolist() == [1, 0]
