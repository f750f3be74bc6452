"""What evaluate and predict report, against formulas."""

import copy
import math

import numpy as np
import pytest
import torch
from architectures import rows, same_bits
from datasets import ClassLabel, Dataset
from plain_distillation import (
    DATA,
    LABELS,
    compute_logits,
    make,
    model_inputs,
    objective,
    part,
    student_and_teacher,
)
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hfcompress import CompressionError
from hfcompress.metrics import per_example_metrics


@pytest.mark.parametrize("missing", [-1, -100])
def test_examples_without_a_label_count_where_none_is_needed(missing, tmp_path):
    student, teacher = student_and_teacher()
    some = dict(DATA, labels=DATA["labels"].clone())
    some["labels"][::2] = missing
    trainer = make(student, teacher, tmp_path, some, args={"alpha": 1.0})
    trainer.train()
    found, labelled = trainer.evaluate(), trainer.evaluate(rows({key: value[1::2] for key, value in DATA.items()}))
    for name in ("eval_loss", "eval_accuracy"):
        assert found[name] == pytest.approx(labelled[name])
    full = trainer.evaluate(rows(DATA))
    for name in ("eval_distillation_loss", "eval_agreement"):
        assert found[name] == pytest.approx(full[name])
    none = dict(DATA, labels=torch.full_like(DATA["labels"], missing))
    found = trainer.evaluate(rows(none))
    assert found["eval_loss"] == found["eval_distillation_loss"] == pytest.approx(full["eval_distillation_loss"])
    assert "eval_accuracy" not in found
    assert trainer.predict(rows(none)).predictions.shape == (40, LABELS)


def test_metrics_are_means_of_the_examples_that_have_labels(tmp_path):
    student, teacher = student_and_teacher()
    examples = rows(DATA)
    for one in examples[16:]:  # two batches have labels, three have none
        del one["labels"]
    trainer = make(student, teacher, tmp_path, args={"alpha": 1.0})
    found, full = trainer.evaluate(examples), trainer.evaluate(rows(DATA))
    assert found["eval_accuracy"] == pytest.approx(trainer.evaluate(rows(part(DATA, 0, 16)))["eval_accuracy"])
    assert found["eval_agreement"] == pytest.approx(full["eval_agreement"])
    assert found["eval_distillation_loss"] == pytest.approx(full["eval_distillation_loss"])


@pytest.mark.parametrize("examples", [16, 19])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_evaluation_gives_the_means_over_the_examples(architecture, examples, tmp_path):
    data = part(DATA, 0, examples)
    student, teacher = student_and_teacher(architecture)
    metrics = make(student, teacher, tmp_path, data, args={"teacher_loss": "kl", "temperature": 2.0}).evaluate()
    logits, targets, labels = compute_logits(student, data), compute_logits(teacher, data), data["labels"]
    wanted = {
        "eval_loss": cross_entropy(logits, labels),
        "eval_accuracy": (logits.argmax(-1) == labels).float().mean(),
        "eval_agreement": (logits.argmax(-1) == targets.argmax(-1)).float().mean(),
        "eval_distillation_loss": objective(logits, targets, labels, teacher="kl", temperature=2.0),
    }
    for key, value in wanted.items():
        assert metrics[key] == pytest.approx(float(value), rel=1e-5), key


def test_evaluation_needs_no_teacher(tmp_path):
    student, _ = student_and_teacher()
    metrics = make(student, None, tmp_path).evaluate()
    wanted = cross_entropy(compute_logits(student, DATA), DATA["labels"])
    assert metrics["eval_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert "eval_accuracy" in metrics
    assert "eval_agreement" not in metrics
    assert "eval_distillation_loss" not in metrics


def test_a_metric_of_the_user_replaces_ours(tmp_path):
    student, teacher = student_and_teacher()
    trainer = make(student, teacher, tmp_path, compute_metrics=lambda prediction: {"accuracy": -1.0, "own": 2.0})
    metrics = trainer.evaluate()
    assert (metrics["eval_accuracy"], metrics["eval_own"]) == (-1.0, 2.0)


def test_evaluation_during_training_leaves_the_training_as_it_is(tmp_path):
    quiet, teacher = student_and_teacher()
    watched = copy.deepcopy(quiet)
    data = part(DATA, 0, 19)
    make(quiet, teacher, tmp_path, data).train()
    trainer = make(watched, teacher, tmp_path, data, args={"eval_strategy": "steps", "eval_steps": 1})
    trainer.train()
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 3
    assert same_bits(watched.state_dict(), quiet.state_dict())


def test_several_evaluation_sets_keep_their_names(tmp_path):
    student, teacher = student_and_teacher()
    sets = {"first": rows(part(DATA, 0, 5)), "second": rows(part(DATA, 5, 19))}
    metrics = make(student, teacher, tmp_path, eval_dataset=sets).evaluate()
    wanted = cross_entropy(compute_logits(student, part(DATA, 5, 19)), DATA["labels"][5:19])
    assert metrics["eval_second_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert "eval_first_agreement" in metrics


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_predict_returns_the_logits(architecture, tmp_path):
    student, teacher = student_and_teacher(architecture)
    output = make(student, teacher, tmp_path).predict(rows(part(DATA, 0, 19)))
    assert isinstance(output.predictions, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(output.predictions), compute_logits(student, part(DATA, 0, 19)))
    assert output.label_ids.tolist() == DATA["labels"][:19].tolist()
    assert "test_accuracy" in output.metrics
    assert "test_distillation_loss" in output.metrics


def test_predict_needs_neither_labels_nor_teacher(tmp_path):
    student, _ = student_and_teacher()
    output = make(student, None, tmp_path).predict(rows(model_inputs(part(DATA, 0, 19))))
    torch.testing.assert_close(torch.from_numpy(output.predictions), compute_logits(student, part(DATA, 0, 19)))


def test_a_search_is_by_the_loss_or_by_the_users_metrics(tmp_path, monkeypatch):
    student, teacher = student_and_teacher()
    seen = []

    def search(self, hp_space, compute_objective, *args, **kwargs):
        seen.append(compute_objective(self.evaluate()))

    monkeypatch.setattr(Trainer, "hyperparameter_search", search)
    trainer = make(student, teacher, tmp_path)
    trainer.hyperparameter_search()
    assert seen == [pytest.approx(trainer.evaluate()["eval_loss"])]
    trainer = make(student, teacher, tmp_path, compute_metrics=lambda predicted: {"accuracy": 0.25, "own": 2.0})
    trainer.hyperparameter_search(None, None, 3, "maximize")
    assert seen[1:] == [2.25]


def test_logits_of_nan_predict_nothing():
    logits, teacher = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 3)
    teacher[2] = math.inf
    found = per_example_metrics(
        logits, torch.tensor([1, 0, 0]), teacher, "single_label_classification", None, objective_needs_labels=True
    )
    assert found["accuracy"].tolist() == [[1, 1], [0, 1], [1, 1]]
    assert found["agreement"][:2].tolist() == [[1, 1], [0, 1]]
    assert found["agreement"][2, 1] == 0  # unknown


def test_the_accuracy_of_soft_labels_is_that_of_the_likelier_ones():
    logits, labels = torch.tensor([[2.0, -2.0], [2.0, 2.0]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    found = per_example_metrics(logits, labels, None, "multi_label_classification", None, objective_needs_labels=True)
    assert found["accuracy"][:, 0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("verb", ["evaluate", "predict", "train"])
def test_classes_in_another_order_are_refused_wherever_data_come(verb, tmp_path):
    student, _ = student_and_teacher()
    student.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    student.config.label2id = {name: index for index, name in student.config.id2label.items()}
    trainer = make(student, None, tmp_path, args={"alpha": 0.0})
    names = ClassLabel(names=["good", "fair", "bad"])
    data = Dataset.from_list(rows(DATA)).cast_column("labels", names)
    trainer.train_dataset = data
    given = () if verb == "train" else (data,)
    with pytest.raises(CompressionError, match="calls its classes good, fair, bad"):
        getattr(trainer, verb)(*given)


def test_what_a_search_sets_is_checked_and_read(tmp_path):
    student, teacher = student_and_teacher()
    trainer = make(student, teacher, tmp_path, args={"max_steps": 1})
    trainer.args.alpha = -1.0
    with pytest.raises(CompressionError, match=r"alpha=-1\.0"):
        trainer.train()
    trainer.args.alpha, trainer.args.class_weights = 0.5, "[1.0, 2.0, 3.0]"
    trainer.train()
    assert trainer.args.class_weights == [1.0, 2.0, 3.0]
