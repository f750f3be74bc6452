"""DistillationTrainer against loops written by hand."""

import copy

import peft
import pytest
import torch
from architectures import CHECKPOINTING, arguments, batch, build, rows, same_bits, state_of
from datasets import Dataset
from plain_distillation import (
    DATA,
    EPSILON,
    LABELS,
    assert_same_weights,
    compute_logits,
    make,
    model_inputs,
    objective,
    part,
    plain_training,
    student_and_teacher,
)
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from hfcompress import CompressionError, DistillationTrainer, GradualPruning, sparsity_report


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_five_steps_end_where_a_plain_loop_ends(architecture, optimizer, tmp_path):
    student, teacher = student_and_teacher(architecture)
    expected = copy.deepcopy(student)
    rate = 0.1 if optimizer == "sgd" else 1e-3
    plain_training(expected, compute_logits(teacher, DATA), DATA, optimizer=optimizer, rate=rate)
    args = {"optim": optimizer, "learning_rate": rate, "weight_decay": 0.0, "adam_epsilon": EPSILON}
    trainer = make(student, teacher, tmp_path, args=args)
    trainer.train()
    assert trainer.state.global_step == 5
    assert_same_weights(student, expected)


@pytest.mark.parametrize(
    "loss",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": 0.3, "teacher": "mse_logits"},
        {"alpha": 0.7, "teacher": "kl", "temperature": 3.0, "label": "cross_entropy"},
    ],
    ids=str,
)
def test_every_kind_of_loss_trains_by_its_formula(loss, tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, steps=3, **loss)
    names = {"alpha": "alpha", "teacher": "teacher_loss", "label": "label_loss", "temperature": "temperature"}
    make(student, teacher, tmp_path, args={"max_steps": 3} | {names[k]: v for k, v in loss.items()}).train()
    assert_same_weights(student, expected)


def test_label_smoothing_reaches_the_label_loss(tmp_path):
    student, _ = student_and_teacher()
    logits = compute_logits(student, DATA)
    expected = cross_entropy(logits, DATA["labels"], label_smoothing=0.2)
    args = {"alpha": 0.0, "label_loss": "cross_entropy", "label_smoothing_factor": 0.2}
    torch.testing.assert_close(make(student, None, tmp_path, args=args).compute_loss(student, dict(DATA)), expected)


PROBLEMS = {
    "multi-label": ({"problem_type": "multi_label_classification", "num_labels": 4}, (4,)),
    "regression": ({"num_labels": 1}, ()),
    "regression of three": ({"problem_type": "regression", "num_labels": 3}, (3,)),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_other_problems_train_and_evaluate_by_their_formulas(name, architecture, tmp_path):
    """The task's loss is the one that the model's own head computes; three steps are those of a plain loop."""
    config, shape = PROBLEMS[name]
    multi = name == "multi-label"
    student, teacher = (build(architecture, seed=seed, **config) for seed in (1, 2))
    data = batch(24)
    generator = torch.Generator().manual_seed(0)
    data["labels"] = torch.randn((24, *shape), generator=generator)
    if multi:
        data["labels"] = (data["labels"] > 0).float()
    plain = copy.deepcopy(student)
    kinds = {"teacher_loss": "kl", "label_loss": "cross_entropy", "temperature": 2.0} if multi else {}
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 3, "alpha": 0.3} | kinds
    trainer = make(student, teacher, tmp_path, data, args=settings)
    trainer.train()

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for start in (0, 8, 16):
        here = {key: value[start : start + 8] for key, value in data.items()}
        labels = here.pop("labels")
        ours, theirs = plain(**here).logits, teacher(**here).logits
        if multi:
            p, q = ours.div(2).sigmoid(), theirs.div(2).sigmoid()
            from_teacher = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
            from_labels = torch.nn.functional.binary_cross_entropy(ours.sigmoid(), labels)
        else:
            from_teacher = (ours - theirs).square().mean()
            from_labels = (ours - labels.view_as(ours)).square().mean()
        (0.3 * from_teacher + 0.7 * from_labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(student.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)

    metrics = trainer.evaluate()
    with torch.no_grad():
        own = student.eval()(**data)
        targets = teacher(**{key: value for key, value in data.items() if key != "labels"}).logits
    assert metrics["eval_loss"] == pytest.approx(own.loss.item(), rel=1e-4)
    if multi:
        right = (own.logits > 0) == (data["labels"] > 0.5)
        assert metrics["eval_accuracy"] == pytest.approx(right.float().mean().item(), abs=1e-6)
        agreed = (own.logits > 0) == (targets > 0)
        assert metrics["eval_agreement"] == pytest.approx(agreed.float().mean().item(), abs=1e-6)
    else:
        assert "eval_accuracy" not in metrics
        assert "eval_agreement" not in metrics


@pytest.mark.parametrize(
    "wrong", [{"teacher_loss": "kl"}, {"label_loss": "cross_entropy"}, {"label_smoothing_factor": 0.1}]
)
def test_losses_about_classes_are_refused_for_a_regression_head(wrong, tmp_path):
    with pytest.raises(CompressionError, match="regression head"):
        make(build(num_labels=1), build(num_labels=1, seed=1), tmp_path, args=wrong)


def test_a_label_outside_the_classes_is_refused_by_value(tmp_path):
    student, teacher = student_and_teacher()
    data = batch(8, num_labels=LABELS)
    data["labels"][3] = -100
    with pytest.raises(CompressionError, match=r"label -100 is none of the 3 classes"):
        make(student, teacher, tmp_path, data).train()


def test_without_alpha_no_teacher_is_needed(tmp_path):
    student, _ = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, torch.zeros(40, LABELS), DATA, alpha=0.0)
    make(student, None, tmp_path, args={"alpha": 0.0}).train()
    assert_same_weights(student, expected)


def test_with_alpha_a_missing_teacher_is_refused_by_value(tmp_path):
    student, _ = student_and_teacher()
    before = state_of(student)
    with pytest.raises(CompressionError, match=r"alpha=0\.5 needs a teacher"):
        make(student, None, tmp_path).train()
    assert same_bits(student.state_dict(), before)


def test_with_alpha_one_no_labels_are_needed(tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, DATA), DATA, alpha=1.0)
    trainer = make(student, teacher, tmp_path, model_inputs(DATA), args={"alpha": 1.0})
    trainer.train()
    assert_same_weights(student, expected)
    metrics = trainer.evaluate()
    wanted = objective(compute_logits(student, DATA), compute_logits(teacher, DATA), DATA["labels"], alpha=1.0)
    assert metrics["eval_distillation_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert metrics["eval_loss"] == metrics["eval_distillation_loss"]
    assert "eval_accuracy" not in metrics


def test_labels_that_are_needed_and_missing_are_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match=r"alpha=0\.5 needs labels"):
        make(student, teacher, tmp_path, model_inputs(DATA)).train()


class WithoutConfig(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.model(input_ids, attention_mask).logits}


@pytest.mark.parametrize("wrap", [WithoutConfig, lambda model: torch.compile(model, backend="eager")])
def test_models_without_config_or_compiled_are_trained_too(wrap, tmp_path):
    states = []
    for around in (lambda model: model, wrap):
        student, teacher = student_and_teacher()
        data = Dataset.from_list(rows(DATA))
        trainer = make(around(student), around(teacher), tmp_path, data, eval_dataset=None)
        trainer.train()
        states.append(state_of(student))
    assert same_bits(*states)


def test_a_student_that_was_frozen_as_a_teacher_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    trainer = make(student.requires_grad_(False), teacher, tmp_path)
    with pytest.raises(CompressionError, match=r"requires_grad_\(True\)"):
        trainer.train()
    trainer.evaluate()


def test_plain_training_arguments_are_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="DistillationArguments, not TrainingArguments"):
        DistillationTrainer(model=student, teacher=teacher, args=arguments(TrainingArguments, tmp_path))


def test_a_loss_function_beside_the_trainers_own_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="compute_loss_func cannot be used"):
        make(student, teacher, tmp_path, compute_loss_func=lambda *_, **__: 0)


COMPOSED = {
    "gradual pruning": ({}, lambda: [GradualPruning(0.5)]),
    "gradient checkpointing": ({CHECKPOINTING: True}, list),
    "length-grouped sampling": ({"train_sampling_strategy": "group_by_length"}, list),
    "bf16": ({"bf16": True}, list),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_it_composes_with(name, tmp_path):
    settings, callbacks = COMPOSED[name]
    student, teacher = build("bert", LABELS, layers=1, seed=1), build("bert", LABELS, seed=2)
    before = state_of(student)
    trainer = make(student, teacher, tmp_path, args=settings, callbacks=callbacks())
    trainer.train()
    after = student.state_dict()
    assert not same_bits(before, after)
    assert all(value.isfinite().all() for value in after.values())
    assert {"eval_loss", "eval_accuracy", "eval_agreement"} <= trainer.evaluate().keys()
    if name == "gradual pruning":
        report = sparsity_report(student)
        assert report.zeros == round(0.5 * report.weights)


def test_a_student_with_an_adapter_trains_the_adapter_alone(tmp_path):
    student, teacher = student_and_teacher()
    before = state_of(student)
    tuned = peft.get_peft_model(student, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    make(tuned, teacher, tmp_path).train()
    changed = [name for name, parameter in tuned.named_parameters() if "lora_B" in name and parameter.any()]
    assert len(changed) == 4
    for name, value in tuned.get_base_model().state_dict().items():
        original = name.replace(".base_layer", "").replace("classifier.original_module", "classifier")
        if "lora" not in name and "modules_to_save" not in name:
            assert torch.equal(value, before[original]), name


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path):
    settings = {
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    data = part(DATA, 0, 19)
    student, teacher = build("bert", LABELS, seed=1, dropout=True), build("bert", LABELS, seed=2)
    full = make(student, teacher, tmp_path, data, args=settings)
    full.train()
    assert full.state.global_step == 6
    for step in (2, 4):
        other = build("bert", LABELS, seed=3, dropout=True)
        trainer = make(other, teacher, tmp_path, data, args=settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same_bits(other.state_dict(), student.state_dict()), step
