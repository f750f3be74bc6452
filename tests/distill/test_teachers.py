"""What a teacher has to be, and its outputs in the order of the student's classes."""

import copy

import pytest
import torch
from architectures import batch, build, rows, same_bits, state_of
from datasets import ClassLabel, Dataset, Features, List, Value
from plain_distillation import (
    DATA,
    LABELS,
    assert_same_weights,
    compute_logits,
    make,
    name_labels,
    objective,
    plain_training,
    student_and_teacher,
)
from safetensors import safe_open
from torch import nn
from transformers import TrainerCallback

from hfcompress import CompressionError
from hfcompress.distill.layer_losses import ForwardRecorder


class WakeTeacher(TrainerCallback):
    """Switches the teacher to training mode before every step, as other code of a user might."""

    def __init__(self, teacher):
        self.teacher = teacher

    def on_step_begin(self, args, state, control, **kwargs):
        self.teacher.train()


def test_a_teacher_switched_to_training_mode_has_no_dropout(tmp_path):
    student, teacher = student_and_teacher(dropout=True)
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, steps=3)
    trainer = make(student, teacher, tmp_path, args={"max_steps": 3}, callbacks=[WakeTeacher(teacher)])
    trainer.train()
    assert_same_weights(student, expected)
    teacher.train()
    metrics = trainer.evaluate()
    wanted = objective(compute_logits(student, DATA), compute_logits(teacher, DATA), DATA["labels"])
    assert metrics["eval_distillation_loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_teacher_is_frozen_and_ends_unchanged(tmp_path):
    student, teacher = student_and_teacher()
    before = state_of(teacher)
    trainer = make(student, teacher, tmp_path)
    trainer.train()
    trainer.evaluate()
    assert same_bits(teacher.state_dict(), before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_the_teacher_is_in_no_model_optimizer_or_checkpoint(tmp_path):
    student, teacher = student_and_teacher()
    keys = set(student.state_dict())
    trainer = make(student, teacher, tmp_path, args={"save_strategy": "steps", "save_steps": 5})
    trainer.train()
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert theirs.isdisjoint(id(p) for p in trainer.model.parameters())
    assert theirs.isdisjoint(id(p) for group in trainer.optimizer.param_groups for p in group["params"])
    folder = tmp_path / "checkpoint-5"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == keys
    state = torch.load(folder / "optimizer.pt")
    assert sum(len(group["params"]) for group in state["param_groups"]) == len(list(student.parameters()))
    assert [path.name for path in folder.iterdir() if "teacher" in path.name] == []


def test_a_teacher_logits_column_trains_and_evaluates_alike(tmp_path):
    online, teacher = student_and_teacher()
    offline = copy.deepcopy(online)
    with_teacher = make(online, teacher, tmp_path)
    with_teacher.train()
    data = DATA | {"teacher_logits": compute_logits(teacher, DATA)}
    with_column = make(offline, None, tmp_path, data)
    with_column.train()
    assert_same_weights(offline, online)
    wanted, found = with_teacher.evaluate(), with_column.evaluate()
    for key in ("eval_loss", "eval_accuracy", "eval_agreement", "eval_distillation_loss"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key


def test_a_teacher_logits_column_takes_the_teachers_place(tmp_path):
    student, teacher = student_and_teacher()
    column = torch.randn(40, LABELS)
    trainer = make(student, teacher, tmp_path, DATA | {"teacher_logits": column})
    wanted = (compute_logits(student, DATA).argmax(-1) == column.argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(wanted))


PERMUTATION = [2, 0, 1]  # not its own inverse, so that a mistaken direction shows


def permuted(teacher):
    """The same teacher with its classes in another order."""
    other = copy.deepcopy(teacher)
    other.classifier.weight.data = teacher.classifier.weight.data[PERMUTATION]
    other.classifier.bias.data = teacher.classifier.bias.data[PERMUTATION]
    return name_labels(other, [f"class {index}" for index in PERMUTATION])


def test_classes_in_another_order_are_put_in_order(tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student, ["class 0", "class 1", "class 2"])
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, steps=3)
    trainer = make(student, permuted(teacher), tmp_path, args={"max_steps": 3})
    trainer.train()
    assert_same_weights(student, expected)
    agreement = (compute_logits(student, DATA).argmax(-1) == compute_logits(teacher, DATA).argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(agreement))


def test_classes_that_the_data_name_and_the_student_does_not_are_those_of_the_teacher(tmp_path):
    student, teacher = student_and_teacher()
    features = Features({"input_ids": List(Value("int64")), "labels": ClassLabel(names=["a", "b", "c"])})
    data = Dataset.from_list([{name: row[name] for name in features} for row in rows(DATA)], features=features)
    make(student, name_labels(copy.deepcopy(teacher), ["a", "b", "c"]), tmp_path, data)
    with pytest.raises(
        CompressionError,
        match="the training data, as the teacher reads them, calls its classes a, b, c, the model c, b, a",
    ):
        make(student, name_labels(teacher, ["c", "b", "a"]), tmp_path, data)


def test_logits_of_several_teachers_are_put_in_order(tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student, ["class 0", "class 1", "class 2"])
    cached = torch.arange(6.0).reshape(2, 3)
    trainer = make(student, [permuted(teacher), permuted(teacher)], tmp_path)
    assert trainer._teachers.reorder(cached).equal(cached[:, torch.tensor(PERMUTATION).argsort()])
    other = name_labels(copy.deepcopy(teacher), ["class 0", "class 1", "class 2"])
    with pytest.raises(CompressionError, match="teachers have their classes in different orders"):
        make(student, [permuted(teacher), other], tmp_path)._teachers.reorder(cached)


def test_a_teacher_that_was_trained_in_bf16_computes_in_its_own_precision(tmp_path):
    student, teacher = student_and_teacher()
    expected = compute_logits(teacher, DATA)
    teacher._original_forward = teacher.forward  # as accelerate leaves it
    teacher.forward = torch.autocast("cpu", torch.bfloat16)(teacher.forward)
    trainer = make(student, teacher, tmp_path)
    inputs = {name: DATA[name] for name in ("input_ids", "attention_mask")}
    assert trainer._teachers.outputs(inputs, ForwardRecorder()).logits.allclose(expected, atol=1e-5)


def test_the_trials_of_a_search_weigh_labels_as_they_ask(tmp_path):
    student, teacher = student_and_teacher()
    trainer = make(student, teacher, tmp_path, args={"label_loss": "cross_entropy"})
    assert trainer._label_weights.by_class is None
    trainer.args.class_weights = [3.0, 1.0, 1.0]  # behind train(), where a Trainer sets what a trial asks
    trainer.create_optimizer()
    assert trainer._label_weights.by_class.tolist() == [3.0, 1.0, 1.0]


def test_classes_named_by_label2id_alone_have_names(tmp_path):
    student, teacher = student_and_teacher()
    student.config.label2id = {"a": 0, "b": 1, "c": 2}
    teacher.config.label2id = {"c": 0, "a": 1, "b": 2}
    trainer = make(student, teacher, tmp_path)
    expected = compute_logits(teacher, DATA)[:, [1, 2, 0]].argmax(-1) == compute_logits(student, DATA).argmax(-1)
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(expected.float().mean()))


def test_classes_of_a_student_from_model_init_are_put_in_order(tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student, ["class 0", "class 1", "class 2"])
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, steps=3)
    trainer = make(None, permuted(teacher), tmp_path, args={"max_steps": 3}, model_init=lambda: copy.deepcopy(student))
    trainer.train()
    assert_same_weights(trainer.model, expected)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("given", ["both", "id2label", "label2id"])
def test_classes_numbered_by_text_are_put_in_order(given, who, tmp_path):
    """Twelve, so that "10" comes before "2"; a plain loop over the names finds what the teacher says of each."""
    names = [f"class {index}" for index in range(12)]
    student, teacher = (name_labels(build(num_labels=12, seed=seed), names) for seed in (1, 2))
    name_labels(teacher, names[5:] + names[:5])
    data = batch(16, num_labels=12)
    theirs = compute_logits(teacher, data)
    expected = torch.stack([theirs[:, teacher.config.label2id[name]] for name in names], -1)
    config = (student if who == "student" else teacher).config
    labels = config.id2label
    config.id2label = {str(index): labels[index] for index in sorted(labels, key=str)} if given != "label2id" else None
    config.label2id = {name: str(index) for index, name in labels.items()} if given != "id2label" else None
    trainer = make(student, teacher, tmp_path, eval_dataset=rows(data))
    agreement = (compute_logits(student, data).argmax(-1) == expected.argmax(-1)).float().mean()
    metrics = trainer.evaluate()
    assert metrics["eval_agreement"] == pytest.approx(float(agreement))
    wanted = objective(compute_logits(student, data), expected, data["labels"])
    assert metrics["eval_distillation_loss"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_labels_that_contradict_each_other_are_refused(who, tmp_path):
    models = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    for model in models.values():
        name_labels(model, ["good", "fair", "bad"])
    models[who].config.label2id = {"good": 2, "fair": 1, "bad": 0}
    with pytest.raises(CompressionError, match=rf"labels of the {who} have no plain meaning.*'good'.*'good': 2"):
        make(models["student"], models["teacher"], tmp_path)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_default_label_names_fit_any_others(who, tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student if who == "teacher" else teacher, ["good", "fair", "bad"])
    make(student, teacher, tmp_path, args={"max_steps": 1}).train()


def test_label_sets_that_differ_are_refused_with_both(tmp_path):
    student, teacher = student_and_teacher()
    name_labels(student, ["good", "fair", "bad"])
    name_labels(teacher, ["good", "fair", "poor"])
    with pytest.raises(CompressionError, match=r"poor.*the student.*bad"):
        make(student, teacher, tmp_path)


def test_label_counts_that_differ_are_refused_with_both(tmp_path):
    student, _ = student_and_teacher()
    with pytest.raises(CompressionError, match=r"teacher has 5 labels.*student 3"):
        make(student, build("bert", 5), tmp_path)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
    "config",
    [{"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}],
    ids=str,
)
def test_models_with_different_problem_types_are_refused(config, who, tmp_path):
    models = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    models[who] = build(**({"num_labels": LABELS} | config), seed=3)
    with pytest.raises(CompressionError, match=r"problem_type is .*single_label_classification"):
        make(models["student"], models["teacher"], tmp_path)


def test_a_teacher_may_compute_in_a_dtype_of_its_own(tmp_path):
    student, teacher = student_and_teacher()
    reference = copy.deepcopy(teacher)
    trainer = make(student, teacher, tmp_path, args={"teacher_dtype": "bfloat16"})
    assert {parameter.dtype for parameter in trainer.teacher.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    trainer.train()
    exact = make(student, reference, tmp_path).evaluate()["eval_distillation_loss"]
    assert trainer.evaluate()["eval_distillation_loss"] == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_several_teachers_give_the_mean_of_their_probabilities(weights, tmp_path):
    """One of them has its classes in another order."""
    student, first = student_and_teacher()
    second = build(num_labels=LABELS, seed=5)
    names = ["good", "bad", "neither"]
    for model, order in ((student, [0, 1, 2]), (first, [0, 1, 2]), (second, [2, 0, 1])):
        model.config.id2label = {place: names[index] for place, index in enumerate(order)}
        model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    share = 0.5 if weights is None else 0.75
    expected = (
        share * compute_logits(first, DATA).softmax(-1)
        + (1 - share) * compute_logits(second, DATA).softmax(-1)[:, [1, 2, 0]]
    )
    trainer = make(student, [first, second], tmp_path, args={"alpha": 1.0}, teacher_weights=weights)
    metrics = trainer.evaluate()
    loss = (compute_logits(student, DATA).softmax(-1) - expected).square().mean().item()
    assert metrics["eval_distillation_loss"] == pytest.approx(loss, rel=1e-4)
    assert not any(parameter.requires_grad for model in (first, second) for parameter in model.parameters())
    trainer.train()


def test_two_equal_teachers_are_as_one(tmp_path):
    """Also in their logits, which their probabilities leave open."""
    student, teacher = student_and_teacher()
    one = make(student, teacher, tmp_path, args={"teacher_loss": "mse_logits"}).evaluate()
    two = make(student, [teacher, copy.deepcopy(teacher)], tmp_path, args={"teacher_loss": "mse_logits"}).evaluate()
    assert two["eval_distillation_loss"] == pytest.approx(one["eval_distillation_loss"], rel=1e-5)


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], ["a", "b"]])
def test_teacher_weights_that_do_not_fit_are_refused(weights, tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="must list 2 numbers above 0, one per teacher"):
        make(student, [teacher, copy.deepcopy(teacher)], tmp_path, teacher_weights=weights)


def test_one_of_several_teachers_that_does_not_fit_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="teacher has 5 labels"):
        make(student, [teacher, build(num_labels=5)], tmp_path)


def test_a_teacher_that_is_the_student_is_refused(tmp_path):
    student, _ = student_and_teacher()
    with pytest.raises(CompressionError, match=r"share parameters.*copy\.deepcopy"):
        make(student, student, tmp_path)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_teacher_that_shares_its_embeddings_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    teacher.bert.embeddings.word_embeddings = student.bert.embeddings.word_embeddings
    with pytest.raises(CompressionError, match="share parameters"):
        make(student, teacher, tmp_path)


def test_a_teacher_on_the_students_memory_is_refused(tmp_path):
    student, teacher = student_and_teacher(layers=2)
    student.load_state_dict(teacher.state_dict(), assign=True)  # other parameters, the same numbers
    with pytest.raises(CompressionError, match="share parameters"):
        make(student, teacher, tmp_path)


def partitioned():
    """A teacher as DeepSpeed leaves it where transformers loads it under ZeRO-3: each parameter is marked."""
    teacher = build("bert", LABELS, seed=2)
    for index, parameter in enumerate(teacher.parameters()):
        parameter.ds_id = index
    return teacher


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (partitioned, {}, "partitioned by DeepSpeed"),
        (lambda: "some/teacher", {}, "teacher must be a model or a list of models, not str"),
        (lambda: build("bert", LABELS, seed=2).to("meta"), {}, "teacher's bert.* is on the meta device"),
        (
            lambda: build("bert", LABELS, seed=2),
            {"teacher_weights": 1.0},
            "teacher_weights=1.0 must list 1 numbers above 0",
        ),
        (lambda: build("bert", LABELS, seed=2), {"args": {"hidden_weight": 1.0, "layer_map": {0: 9}}}, "layer_map"),
    ],
    ids=["partitioned", "name", "meta", "weights", "layers"],
)
def test_a_refused_teacher_stays_as_it_was(teacher, settings, message, tmp_path):
    model = teacher()
    with pytest.raises(CompressionError, match=message):
        make(build("bert", LABELS, seed=1), model, tmp_path, **settings)
    if isinstance(model, nn.Module):
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_student_from_model_init_is_held_to_the_same_rules(tmp_path):
    _, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="share parameters"):
        make(None, teacher, tmp_path, model_init=lambda: teacher)
    with pytest.raises(CompressionError, match="teacher has 3 labels"):
        make(None, teacher, tmp_path, model_init=lambda: build("bert", 2))
