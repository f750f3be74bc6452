"""DistillationTrainer against loops written by hand."""

import copy

import numpy as np
import peft
import pytest
import torch
from architectures import CHECKPOINTING, arguments, batch, build, rows, same_bits, state_of, word_tokenizer
from datasets import Dataset
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, one_hot
from transformers import BertJapaneseTokenizer, TrainerCallback, TrainingArguments

from hfcompress import CompressionError, DistillationArguments, DistillationTrainer, GradualPruning, sparsity_report
from hfcompress.models.tokenizers import same_tokenizer

LABELS = 3
DATA = batch(40, num_labels=LABELS)
EPSILON = (
    1e-3  # of AdamW: keeps it from turning the rounding errors of gradients that are truly 0 (key biases) to steps
)


def student_and_teacher(architecture="bert", **teacher):
    return build(architecture, LABELS, seed=1), build(architecture, LABELS, seed=2, **({"layers": 3} | teacher))


def make(student, teacher, directory, data=DATA, *, args=None, **kwargs):
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0} | (args or {})
    training = arguments(DistillationArguments, directory, **settings)
    data = rows(data) if isinstance(data, dict) else data
    kwargs = {"train_dataset": data, "eval_dataset": data} | kwargs
    return DistillationTrainer(model=student, args=training, teacher=teacher, **kwargs)


def inputs_of(tensors):
    return {key: tensors[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def answers(model, tensors):
    model = copy.deepcopy(model).eval()
    return model(**inputs_of(tensors)).logits


def part(tensors, start, stop):
    return {key: value[start:stop] for key, value in tensors.items()}


def objective(logits, taught, labels, alpha=0.5, teacher="mse", label="mse", temperature=1.0):
    """The loss, written from its formula."""
    p, q = logits.softmax(-1), taught.softmax(-1)
    from_teacher = {
        "mse": lambda: ((p - q) ** 2).mean(),
        "mse_logits": lambda: ((logits - taught) ** 2).mean(),
        "kl": lambda: (
            temperature**2
            * kl_div((logits / temperature).log_softmax(-1), (taught / temperature).softmax(-1), reduction="batchmean")
        ),
    }
    from_labels = {
        "mse": lambda: ((p - one_hot(labels, logits.shape[-1])) ** 2).mean(),
        "cross_entropy": lambda: cross_entropy(logits, labels),
    }
    return alpha * from_teacher[teacher]() + (1 - alpha) * from_labels[label]()


def plain_training(student, taught, data, *, size=8, optimizer="sgd", rate=0.1, steps=None, **loss):
    """Train in the order of the data, an update a batch, and return the gradients of every update as one vector."""
    kind = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optimizer]
    settings = {"weight_decay": 0.0, "eps": EPSILON} if optimizer == "adamw_torch" else {}
    update, gradients = kind(student.parameters(), lr=rate, **settings), []
    for start in range(0, len(data["labels"]), size)[:steps]:
        here = part(data, start, start + size)
        update.zero_grad()
        objective(student(**inputs_of(here)).logits, taught[start : start + size], here["labels"], **loss).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        update.step()
    return gradients


def assert_same_weights(one, other, tolerance=1e-5):
    for key, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=tolerance, atol=tolerance, msg=key)


class Gradients(TrainerCallback):
    """Notes the gradient of every update as one vector."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found.append(torch.cat([p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]))


# The loss of an update


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_five_steps_end_where_a_plain_loop_ends(architecture, optimizer, tmp_path):
    student, teacher = student_and_teacher(architecture)
    expected = copy.deepcopy(student)
    rate = 0.1 if optimizer == "sgd" else 1e-3
    plain_training(expected, answers(teacher, DATA), DATA, optimizer=optimizer, rate=rate)
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
def test_every_kind_of_loss_trains_as_its_formula_says(loss, tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, answers(teacher, DATA), DATA, steps=3, **loss)
    names = {"alpha": "alpha", "teacher": "teacher_loss", "label": "label_loss", "temperature": "temperature"}
    make(student, teacher, tmp_path, args={"max_steps": 3} | {names[k]: v for k, v in loss.items()}).train()
    assert_same_weights(student, expected)


def test_label_smoothing_reaches_the_label_loss(tmp_path):
    student, _ = student_and_teacher()
    logits = answers(student, DATA)
    expected = cross_entropy(logits, DATA["labels"], label_smoothing=0.2)
    args = {"alpha": 0.0, "label_loss": "cross_entropy", "label_smoothing_factor": 0.2}
    torch.testing.assert_close(make(student, None, tmp_path, args=args).compute_loss(student, dict(DATA)), expected)


@pytest.mark.parametrize(
    ("accumulated", "examples"), [(1, 17), (1, 19), (2, 16), (2, 17), (2, 21), (4, 16), (4, 17), (4, 19), (4, 21)]
)
def test_gradients_are_those_of_whole_updates_however_they_are_accumulated(examples, accumulated, tmp_path):
    data = part(DATA, 0, examples)
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    reference = plain_training(expected, answers(teacher, data), data)
    gradients = Gradients()
    args = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    make(student, teacher, tmp_path, data, args=args, callbacks=[gradients]).train()
    assert len(gradients.found) == len(reference)
    for found, wanted in zip(gradients.found, reference, strict=True):
        assert torch.linalg.vector_norm(found - wanted) < 1e-5 * torch.linalg.vector_norm(wanted)
    assert_same_weights(student, expected)


def test_every_example_counts_where_fewer_are_drawn_than_there_are(tmp_path):
    class Drawing(DistillationTrainer):
        def _get_train_sampler(self, *args):
            return range(13)

    student, teacher = student_and_teacher()
    expected, data = copy.deepcopy(student), part(DATA, 0, 13)
    plain_training(expected, answers(teacher, data), data)
    args = arguments(DistillationArguments, tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
    Drawing(model=student, args=args, teacher=teacher, train_dataset=rows(part(DATA, 0, 17))).train()
    assert_same_weights(student, expected)


def test_what_was_tried_with_larger_batches_is_not_in_the_log(tmp_path):
    class Failing(DistillationTrainer):
        failed = False

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

    student, teacher = student_and_teacher()
    settings = {"auto_find_batch_size": True, "logging_strategy": "steps", "logging_steps": 1, "optim": "sgd"}
    args = arguments(DistillationArguments, tmp_path, **settings)
    trainer = Failing(model=student, args=args, teacher=teacher, train_dataset=rows(DATA))
    trainer.train()
    logged = [one for one in trainer.state.log_history if "loss" in one]
    assert trainer.failed
    assert len(logged) > 5
    for one in logged:
        assert (one["teacher_term"] + one["label_term"]) / 2 == pytest.approx(one["loss"], abs=1e-6)


def test_the_logged_loss_is_the_mean_of_the_objective(tmp_path):
    student, teacher = student_and_teacher()
    wanted = objective(answers(student, part(DATA, 0, 8)), answers(teacher, part(DATA, 0, 8)), DATA["labels"][:8])
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    result = make(student, teacher, tmp_path, args=args).train()
    assert result.training_loss == pytest.approx(float(wanted), rel=1e-5)


# The teacher


class WakeTeacher(TrainerCallback):
    """Switches the teacher to training mode before every step, as other code of a user might."""

    def __init__(self, teacher):
        self.teacher = teacher

    def on_step_begin(self, args, state, control, **kwargs):
        self.teacher.train()


def test_a_teacher_that_was_switched_to_training_mode_still_answers_without_dropout(tmp_path):
    student, teacher = student_and_teacher(dropout=True)
    expected = copy.deepcopy(student)
    plain_training(expected, answers(teacher, DATA), DATA, steps=3)
    trainer = make(student, teacher, tmp_path, args={"max_steps": 3}, callbacks=[WakeTeacher(teacher)])
    trainer.train()
    assert_same_weights(student, expected)
    teacher.train()
    metrics = trainer.evaluate()
    wanted = objective(answers(student, DATA), answers(teacher, DATA), DATA["labels"])
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


def test_the_teacher_is_in_neither_the_model_nor_the_optimizer_nor_a_checkpoint(tmp_path):
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


def test_a_column_of_teacher_logits_trains_and_evaluates_like_the_teacher(tmp_path):
    online, teacher = student_and_teacher()
    offline = copy.deepcopy(online)
    with_teacher = make(online, teacher, tmp_path)
    with_teacher.train()
    data = DATA | {"teacher_logits": answers(teacher, DATA)}
    with_column = make(offline, None, tmp_path, data)
    with_column.train()
    assert_same_weights(offline, online)
    wanted, found = with_teacher.evaluate(), with_column.evaluate()
    for key in ("eval_loss", "eval_accuracy", "eval_agreement", "eval_distillation_loss"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key


def test_a_column_of_teacher_logits_takes_the_place_of_the_teacher(tmp_path):
    student, teacher = student_and_teacher()
    column = torch.randn(40, LABELS)
    trainer = make(student, teacher, tmp_path, DATA | {"teacher_logits": column})
    wanted = (answers(student, DATA).argmax(-1) == column.argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(wanted))


def test_a_column_of_teacher_logits_in_a_dataset_survives_the_removal_of_unused_columns(tmp_path):
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    taught = answers(teacher, DATA)
    plain_training(expected, taught, DATA, steps=2)
    data = Dataset.from_list(rows(DATA | {"teacher_logits": taught, "row": torch.arange(40)}))
    make(student, None, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


def test_with_teacher_logits_the_vocabularies_may_differ(tmp_path):
    student, _ = student_and_teacher()
    teacher = build("bert", LABELS, vocab_size=50)
    data = Dataset.from_list(rows(DATA | {"teacher_logits": torch.randn(40, LABELS)}))
    make(student, teacher, tmp_path, data, args={"max_steps": 1}).train()


def test_a_teacher_of_another_architecture_gets_the_inputs_it_knows(tmp_path):
    student, teacher = build("bert", LABELS, seed=1), build("distilbert", LABELS, seed=2)
    taught = answers(teacher, DATA)
    expected = copy.deepcopy(student)
    plain_training(expected, taught, DATA, steps=2)
    data = DATA | {"token_type_ids": torch.zeros_like(DATA["input_ids"])}
    make(student, teacher, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


def test_a_teacher_gets_inputs_that_the_student_does_not_take(tmp_path):
    student, teacher = build("distilbert", LABELS, seed=1), build("bert", LABELS, seed=2)
    segments = torch.arange(6).expand(40, 6) % 2
    with torch.no_grad():
        taught = copy.deepcopy(teacher).eval()(**inputs_of(DATA), token_type_ids=segments).logits
    assert not torch.allclose(taught, answers(teacher, DATA), atol=1e-3)
    expected = copy.deepcopy(student)
    plain_training(expected, taught, DATA, steps=2)
    data = Dataset.from_list(rows(DATA | {"token_type_ids": segments}))
    make(student, teacher, tmp_path, data, args={"max_steps": 2}).train()
    assert_same_weights(student, expected)


def test_every_example_counts_where_the_last_batch_is_dropped(tmp_path):
    student, teacher = student_and_teacher()
    expected, data, gradients = copy.deepcopy(student), batch(22, num_labels=LABELS), Gradients()
    wanted = plain_training(expected, answers(teacher, data), part(data, 0, 20), size=4)
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 4}
    make(student, teacher, tmp_path, data, args=settings, callbacks=[gradients]).train()
    assert len(gradients.found) == len(wanted) == 5
    assert_same_weights(student, expected)


# Labels


PERMUTATION = [2, 0, 1]  # not its own inverse, so that a mistaken direction shows


def permuted(teacher):
    """The same teacher with its classes in another order."""
    other = copy.deepcopy(teacher)
    other.classifier.weight.data = teacher.classifier.weight.data[PERMUTATION]
    other.classifier.bias.data = teacher.classifier.bias.data[PERMUTATION]
    return named(other, [f"class {index}" for index in PERMUTATION])


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(tmp_path):
    student, teacher = student_and_teacher()
    named(student, ["class 0", "class 1", "class 2"])
    expected = copy.deepcopy(student)
    plain_training(expected, answers(teacher, DATA), DATA, steps=3)
    trainer = make(student, permuted(teacher), tmp_path, args={"max_steps": 3})
    trainer.train()
    assert_same_weights(student, expected)
    agreement = (answers(student, DATA).argmax(-1) == answers(teacher, DATA).argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(agreement))


def test_classes_named_by_label2id_alone_have_names(tmp_path):
    student, teacher = student_and_teacher()
    student.config.label2id = {"a": 0, "b": 1, "c": 2}
    teacher.config.label2id = {"c": 0, "a": 1, "b": 2}
    trainer = make(student, teacher, tmp_path)
    expected = answers(teacher, DATA)[:, [1, 2, 0]].argmax(-1) == answers(student, DATA).argmax(-1)
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(expected.float().mean()))


def test_a_student_made_by_model_init_is_held_to_the_same_labels(tmp_path):
    student, teacher = student_and_teacher()
    named(student, ["class 0", "class 1", "class 2"])
    expected = copy.deepcopy(student)
    plain_training(expected, answers(teacher, DATA), DATA, steps=3)
    trainer = make(None, permuted(teacher), tmp_path, args={"max_steps": 3}, model_init=lambda: copy.deepcopy(student))
    trainer.train()
    assert_same_weights(trainer.model, expected)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_names_that_transformers_made_up_are_no_hindrance(who, tmp_path):
    student, teacher = student_and_teacher()
    named(student if who == "teacher" else teacher, ["good", "fair", "bad"])
    make(student, teacher, tmp_path, args={"max_steps": 1}).train()


def test_label_sets_that_differ_are_refused_with_both(tmp_path):
    student, teacher = student_and_teacher()
    named(student, ["good", "fair", "bad"])
    named(teacher, ["good", "fair", "poor"])
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
def test_models_that_answer_different_questions_are_refused(config, who, tmp_path):
    models = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    models[who] = build(**({"num_labels": LABELS} | config), seed=3)
    with pytest.raises(CompressionError, match=r"problem_type is .*single_label_classification"):
        make(models["student"], models["teacher"], tmp_path)


PROBLEMS = {
    "multi-label": ({"problem_type": "multi_label_classification", "num_labels": 4}, (4,)),
    "regression": ({"num_labels": 1}, ()),
    "regression of three": ({"problem_type": "regression", "num_labels": 3}, (3,)),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_other_problems_train_and_evaluate_as_their_formulas_say(name, architecture, tmp_path):
    """The task's loss is the one that the model's own head computes; five steps are those of a plain loop."""
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
        part = {key: value[start : start + 8] for key, value in data.items()}
        labels = part.pop("labels")
        ours, theirs = plain(**part).logits, teacher(**part).logits
        if multi:
            p, q = ours.div(2).sigmoid(), theirs.div(2).sigmoid()
            taught = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
            labelled = torch.nn.functional.binary_cross_entropy(ours.sigmoid(), labels)
        else:
            taught = (ours - theirs).square().mean()
            labelled = (ours - labels.view_as(ours)).square().mean()
        (0.3 * taught + 0.7 * labelled).backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(student.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)

    metrics = trainer.evaluate()
    with torch.no_grad():
        own = student.eval()(**data)
        taught = teacher(**{key: value for key, value in data.items() if key != "labels"}).logits
    assert metrics["eval_loss"] == pytest.approx(own.loss.item(), rel=1e-4)
    if multi:
        right = (own.logits > 0) == (data["labels"] > 0.5)
        assert metrics["eval_accuracy"] == pytest.approx(right.float().mean().item(), abs=1e-6)
        agreed = (own.logits > 0) == (taught > 0)
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


def test_the_log_shows_both_terms(tmp_path):
    """Means over the examples since the last log; together they are the logged loss."""
    student, teacher = student_and_teacher()
    settings = {"logging_strategy": "steps", "logging_steps": 2, "alpha": 0.3, "label_loss": "cross_entropy"}
    trainer = make(student, teacher, tmp_path, args=settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        total = 0.3 * entry["teacher_term"] + 0.7 * entry["label_term"]
        assert total == pytest.approx(entry["loss"], abs=1e-4)
        assert entry["label_term"] > 0.5
        assert 0 < entry["teacher_term"] < 0.5


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
def test_several_teachers_teach_the_mean_of_their_probabilities(weights, tmp_path):
    """One of them has its classes in another order."""
    student, first = student_and_teacher()
    second = build(num_labels=LABELS, seed=5)
    names = ["good", "bad", "neither"]
    for model, order in ((student, [0, 1, 2]), (first, [0, 1, 2]), (second, [2, 0, 1])):
        model.config.id2label = {place: names[index] for place, index in enumerate(order)}
        model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    share = 0.5 if weights is None else 0.75
    expected = share * answers(first, DATA).softmax(-1) + (1 - share) * answers(second, DATA).softmax(-1)[:, [1, 2, 0]]
    trainer = make(student, [first, second], tmp_path, args={"alpha": 1.0}, teacher_weights=weights)
    metrics = trainer.evaluate()
    loss = (answers(student, DATA).softmax(-1) - expected).square().mean().item()
    assert metrics["eval_distillation_loss"] == pytest.approx(loss, rel=1e-4)
    assert not any(parameter.requires_grad for model in (first, second) for parameter in model.parameters())
    trainer.train()


def test_two_teachers_that_say_the_same_are_one(tmp_path):
    """Also in their logits, which their probabilities leave open."""
    student, teacher = student_and_teacher()
    one = make(student, teacher, tmp_path, args={"teacher_loss": "mse_logits"}).evaluate()
    two = make(student, [teacher, copy.deepcopy(teacher)], tmp_path, args={"teacher_loss": "mse_logits"}).evaluate()
    assert two["eval_distillation_loss"] == pytest.approx(one["eval_distillation_loss"], rel=1e-5)


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], ["a", "b"]])
def test_teacher_weights_that_do_not_fit_are_refused(weights, tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="one positive number for each teacher, of which there are 2"):
        make(student, [teacher, copy.deepcopy(teacher)], tmp_path, teacher_weights=weights)


def test_one_of_several_teachers_that_does_not_fit_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="teacher has 5 labels"):
        make(student, [teacher, build(num_labels=5)], tmp_path)


def test_a_label_outside_the_classes_is_refused_by_value(tmp_path):
    student, teacher = student_and_teacher()
    data = batch(8, num_labels=LABELS)
    data["labels"][3] = -100
    with pytest.raises(CompressionError, match=r"label -100 is none of the 3 classes"):
        make(student, teacher, tmp_path, data).train()


# Without teacher, without labels


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
    plain_training(expected, answers(teacher, DATA), DATA, alpha=1.0)
    trainer = make(student, teacher, tmp_path, inputs_of(DATA), args={"alpha": 1.0})
    trainer.train()
    assert_same_weights(student, expected)
    metrics = trainer.evaluate()
    wanted = objective(answers(student, DATA), answers(teacher, DATA), DATA["labels"], alpha=1.0)
    assert metrics["eval_distillation_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert metrics["eval_loss"] == metrics["eval_distillation_loss"]
    assert "eval_accuracy" not in metrics


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
    whole = trainer.evaluate(rows(DATA))
    for name in ("eval_distillation_loss", "eval_agreement"):
        assert found[name] == pytest.approx(whole[name])
    none = dict(DATA, labels=torch.full_like(DATA["labels"], missing))
    found = trainer.evaluate(rows(none))
    assert found["eval_loss"] == found["eval_distillation_loss"] == pytest.approx(whole["eval_distillation_loss"])
    assert "eval_accuracy" not in found
    assert trainer.predict(rows(none)).predictions.shape == (40, LABELS)


def test_whatever_is_missing_in_some_batches_the_means_are_of_the_rest(tmp_path):
    student, teacher = student_and_teacher()
    examples = rows(DATA)
    for one in examples[16:]:  # two batches have labels, three have none
        del one["labels"]
    trainer = make(student, teacher, tmp_path, args={"alpha": 1.0})
    found, whole = trainer.evaluate(examples), trainer.evaluate(rows(DATA))
    assert found["eval_accuracy"] == pytest.approx(trainer.evaluate(rows(part(DATA, 0, 16)))["eval_accuracy"])
    assert found["eval_agreement"] == pytest.approx(whole["eval_agreement"])
    assert found["eval_distillation_loss"] == pytest.approx(whole["eval_distillation_loss"])


def test_labels_that_are_needed_and_missing_are_refused(tmp_path):
    student, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match=r"alpha=0\.5 needs labels"):
        make(student, teacher, tmp_path, inputs_of(DATA)).train()


# Evaluation


@pytest.mark.parametrize("examples", [16, 19])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_evaluation_gives_the_means_over_the_examples(architecture, examples, tmp_path):
    data = part(DATA, 0, examples)
    student, teacher = student_and_teacher(architecture)
    metrics = make(student, teacher, tmp_path, data, args={"teacher_loss": "kl", "temperature": 2.0}).evaluate()
    logits, taught, labels = answers(student, data), answers(teacher, data), data["labels"]
    wanted = {
        "eval_loss": cross_entropy(logits, labels),
        "eval_accuracy": (logits.argmax(-1) == labels).float().mean(),
        "eval_agreement": (logits.argmax(-1) == taught.argmax(-1)).float().mean(),
        "eval_distillation_loss": objective(logits, taught, labels, teacher="kl", temperature=2.0),
    }
    for key, value in wanted.items():
        assert metrics[key] == pytest.approx(float(value), rel=1e-5), key


def test_evaluation_needs_no_teacher(tmp_path):
    student, _ = student_and_teacher()
    metrics = make(student, None, tmp_path).evaluate()
    wanted = cross_entropy(answers(student, DATA), DATA["labels"])
    assert metrics["eval_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert "eval_accuracy" in metrics
    assert "eval_agreement" not in metrics
    assert "eval_distillation_loss" not in metrics


def test_a_metric_of_the_user_wins(tmp_path):
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
    wanted = cross_entropy(answers(student, part(DATA, 5, 19)), DATA["labels"][5:19])
    assert metrics["eval_second_loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert "eval_first_agreement" in metrics


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_predict_returns_the_logits_alone(architecture, tmp_path):
    student, teacher = student_and_teacher(architecture)
    output = make(student, teacher, tmp_path).predict(rows(part(DATA, 0, 19)))
    assert isinstance(output.predictions, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(output.predictions), answers(student, part(DATA, 0, 19)))
    assert output.label_ids.tolist() == DATA["labels"][:19].tolist()
    assert "test_accuracy" in output.metrics
    assert "test_distillation_loss" in output.metrics


def test_predict_needs_neither_labels_nor_teacher(tmp_path):
    student, _ = student_and_teacher()
    output = make(student, None, tmp_path).predict(rows(inputs_of(part(DATA, 0, 19))))
    torch.testing.assert_close(torch.from_numpy(output.predictions), answers(student, part(DATA, 0, 19)))


# A teacher with a tokenizer of its own


TEXTS = ["a b c d", "b", "D c", "e a a", "C b e", "a", "d d e b", "B a"] * 2


STUDENT_TOKENIZER = word_tokenizer(["a", "b", "c", "d", "e"])
TEXT_LABELS = torch.arange(len(TEXTS)) % LABELS


def text_dataset(column="text", **columns):
    encoded = STUDENT_TOKENIZER(TEXTS)
    return Dataset.from_dict(
        {column: TEXTS, "input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        | {"labels": TEXT_LABELS.tolist()}
        | columns
    )


def assert_teacher_reads_its_own_ids(own, directory, data, args=None, pairs=()):
    """Train two updates; compare with a loop in which the teacher reads what its own tokenizer makes of the texts."""
    student, teacher = student_and_teacher()
    limit = (args or {}).get("teacher_max_length")
    read = own(TEXTS, *pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    mine = STUDENT_TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    expected = copy.deepcopy(student)
    taught = answers(teacher, read)
    plain_training(expected, taught, {**inputs_of(mine), "labels": TEXT_LABELS})
    trainer = make(
        student,
        teacher,
        directory,
        data,
        args=args,
        processing_class=STUDENT_TOKENIZER,
        teacher_processing_class=own,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert_same_weights(student, expected)
    agreement = (answers(student, mine).argmax(-1) == taught.argmax(-1)).float().mean()
    assert trainer.evaluate()["eval_agreement"] == pytest.approx(float(agreement))


OTHER_TOKENIZERS = {
    "other vocabulary": {"words": ["e", "d", "c", "b", "a", "D"]},
    "same vocabulary in lower case": {"words": ["a", "b", "c", "d", "e"], "lowercase": True},
    "same vocabulary with a mark in front": {"words": ["a", "b", "c", "d", "e"], "marked": True},
}


@pytest.mark.parametrize("kind", OTHER_TOKENIZERS)
def test_a_teacher_with_its_own_tokenizer_reads_its_own_ids(kind, tmp_path):
    assert_teacher_reads_its_own_ids(word_tokenizer(**OTHER_TOKENIZERS[kind]), tmp_path, text_dataset())


def test_a_list_of_examples_serves_a_teacher_with_its_own_tokenizer_too(tmp_path):
    assert_teacher_reads_its_own_ids(word_tokenizer(["e", "d", "c"]), tmp_path, text_dataset().to_list())


def test_the_text_may_be_in_another_column(tmp_path):
    own = word_tokenizer(["e", "d", "c"])
    assert_teacher_reads_its_own_ids(own, tmp_path, text_dataset("review"), {"text_column": "review"})


def test_the_teachers_texts_can_be_cut(tmp_path):
    assert_teacher_reads_its_own_ids(
        word_tokenizer(["e", "d", "c"]), tmp_path, text_dataset(), {"teacher_max_length": 2}
    )


def test_the_teacher_reads_pairs_of_texts_with_its_own_tokenizer(tmp_path):
    own, second = word_tokenizer(["e", "d", "c", "b", "a"]), TEXTS[::-1]
    data = text_dataset(second=second)
    assert_teacher_reads_its_own_ids(own, tmp_path, data, {"text_pair_column": "second"}, pairs=[second])
    with pytest.raises(CompressionError, match=r"no column 'other'.*text_pair_column"):
        assert_teacher_reads_its_own_ids(own, tmp_path, data, {"text_pair_column": "other"}, pairs=[second])


def test_the_same_tokenizer_needs_no_text(tmp_path):
    student, teacher = student_and_teacher()
    twin = word_tokenizer(["a", "b", "c", "d", "e"])
    data = text_dataset().remove_columns("text")
    args = {"max_steps": 1}
    make(
        student, teacher, tmp_path, data, args=args, processing_class=STUDENT_TOKENIZER, teacher_processing_class=twin
    ).train()


def test_a_missing_text_column_is_refused_by_name(tmp_path):
    student, teacher = student_and_teacher()
    own, data = word_tokenizer(["e", "d"]), text_dataset("review")
    with pytest.raises(CompressionError, match=r"no column 'text' \(they have review"):
        make(student, teacher, tmp_path, data, processing_class=STUDENT_TOKENIZER, teacher_processing_class=own)
    tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": own}
    with pytest.raises(CompressionError, match=r"no column 'text' \(they have review"):
        make(student, teacher, tmp_path, data.to_list(), **tokenizers)
    unknown = data.with_transform(lambda columns: columns)  # which may have made the text
    with pytest.raises(CompressionError, match=r"keep the column 'text', or name it with text_column="):
        make(student, teacher, tmp_path, unknown, **tokenizers).train()


def test_evaluation_without_the_text_is_one_without_the_teacher(tmp_path):
    student, teacher = student_and_teacher()
    own, data = word_tokenizer(["e", "d"]), text_dataset()
    tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": own}
    trainer = make(student, teacher, tmp_path, data, **tokenizers)
    assert "eval_agreement" in trainer.evaluate()
    without = data.remove_columns("text")
    found = trainer.evaluate(without)
    assert found["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert not {"eval_agreement", "eval_distillation_loss"} & found.keys()
    assert trainer.predict(without).predictions.shape == (len(TEXTS), LABELS)


def test_a_collator_may_encode_the_text_itself(tmp_path):
    def collate(features):
        encoded = STUDENT_TOKENIZER([one["text"] for one in features], padding=True, return_tensors="pt")
        return dict(encoded) | {"labels": torch.tensor([one["labels"] for one in features])}

    states = []
    for data, extra in (
        (text_dataset(), {}),
        (text_dataset().select_columns(["text", "labels"]), {"data_collator": collate}),
    ):
        student, teacher = student_and_teacher()
        tokenizers = {"processing_class": STUDENT_TOKENIZER, "teacher_processing_class": word_tokenizer(["e", "d"])}
        args = {"remove_unused_columns": not extra}
        make(student, teacher, tmp_path, data, args=args, **tokenizers, **extra).train()
        states.append(state_of(student))
    assert same_bits(*states)


def test_a_teacher_is_not_asked_where_it_would_read_the_ids_of_another_vocabulary(tmp_path):
    """The data to train on have its answers, those to evaluate on do not."""
    student, teacher = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, vocab_size=200)
    trainer = make(
        student, teacher, tmp_path, DATA | {"teacher_logits": torch.randn(40, LABELS)}, eval_dataset=rows(DATA)
    )
    trainer.train()
    assert not {"eval_agreement", "eval_distillation_loss"} & trainer.evaluate().keys()


def test_tokenizers_written_in_python_are_told_apart_by_what_they_do(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "Good"]))
    kinds = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    one, same, other = (
        BertJapaneseTokenizer(str(vocabulary), do_lower_case=lower, padding_side=side, **kinds)
        for lower, side in ((False, "right"), (False, "left"), (True, "right"))
    )
    assert same_tokenizer(one, same)
    assert not same_tokenizer(one, other)
    one.save_pretrained(tmp_path / "saved")
    assert same_tokenizer(one, BertJapaneseTokenizer.from_pretrained(tmp_path / "saved"))


def test_vocabularies_that_differ_are_refused_with_both_sizes(tmp_path):
    student, _ = student_and_teacher()
    with pytest.raises(CompressionError, match=r"vocabulary has 100 tokens, the teacher's 50"):
        make(student, build("bert", LABELS, vocab_size=50), tmp_path)


# Refusals


def test_a_teacher_that_is_the_student_is_refused_and_stays_trainable(tmp_path):
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
        (lambda: build("bert", LABELS, seed=2), {"teacher_weights": 1.0}, "teacher_weights=1.0 must be a list"),
        (lambda: build("bert", LABELS, seed=2), {"args": {"hidden_weight": 1.0, "layer_map": {0: 9}}}, "layer_map"),
    ],
    ids=["partitioned", "name", "meta", "weights", "layers"],
)
def test_what_is_refused_leaves_the_teacher_as_it_was(teacher, settings, message, tmp_path):
    model = teacher()
    with pytest.raises(CompressionError, match=message):
        make(build("bert", LABELS, seed=1), model, tmp_path, **settings)
    if isinstance(model, nn.Module):
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())


class WithoutConfig(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.model(input_ids, attention_mask).logits}


@pytest.mark.parametrize("wrap", [WithoutConfig, lambda model: torch.compile(model, backend="eager")])
def test_models_that_tell_less_of_themselves_are_trained_too(wrap, tmp_path):
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


def test_a_student_made_by_model_init_is_held_to_the_same_rules(tmp_path):
    _, teacher = student_and_teacher()
    with pytest.raises(CompressionError, match="share parameters"):
        make(None, teacher, tmp_path, model_init=lambda: teacher)
    with pytest.raises(CompressionError, match="teacher has 3 labels"):
        make(None, teacher, tmp_path, model_init=lambda: build("bert", 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("alpha", value) for value in (-0.1, 1.1, float("nan"))),
        *(("temperature", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        ("teacher_loss", "cosine"),
        ("label_loss", "kl"),
        ("teacher_dtype", "int8"),
    ],
)
def test_arguments_out_of_range_are_refused_by_value(name, value, tmp_path):
    with pytest.raises(CompressionError, match=f"{name}={value!r}"):
        arguments(DistillationArguments, tmp_path, **{name: value})


# Composition; with torch.compile in test_intermediate, where hooks are in its way


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


def test_streamed_data_train_as_data_in_memory(tmp_path):
    states = []
    for data in (Dataset.from_list(rows(DATA)), Dataset.from_list(rows(DATA)).to_iterable_dataset()):
        student, teacher = student_and_teacher()
        make(student, teacher, tmp_path, data, args={"max_steps": 5}, eval_dataset=None).train()
        states.append(state_of(student))
    assert same_bits(*states)


def test_a_stream_that_is_shorter_than_an_update_is_refused(tmp_path):
    student, teacher = student_and_teacher()
    stream = Dataset.from_list(rows(part(DATA, 0, 7))).to_iterable_dataset()
    args = {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    with pytest.raises(CompressionError, match=r"end after 2 batches, .* gradient_accumulation_steps=4"):
        make(student, teacher, tmp_path, stream, args=args, eval_dataset=None).train()


@pytest.mark.parametrize("size", [2, 4])
def test_a_stream_that_ends_within_an_update_goes_on_with_it(size, tmp_path):
    """Two updates take 8 examples each; the last 3 of 19 begin the third, which the first 4 of the next pass end."""
    data = part(DATA, 0, 19)
    student, teacher = student_and_teacher()
    expected, taught = copy.deepcopy(student), answers(teacher, data)
    for rows_of_update in (range(8), range(8, 16), [16, 17, 18, 0, 1, 2, 3], range(4, 12)):
        chosen = torch.tensor(list(rows_of_update))
        plain_training(expected, taught[chosen], {key: value[chosen] for key, value in data.items()})
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    stream = Dataset.from_list(rows(data)).to_iterable_dataset()
    make(student, teacher, tmp_path, stream, args={"max_steps": 4, **sizes}, eval_dataset=None).train()
    assert_same_weights(student, expected)


# Resuming


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
    whole = make(student, teacher, tmp_path, data, args=settings)
    whole.train()
    assert whole.state.global_step == 6
    for step in (2, 4):
        other = build("bert", LABELS, seed=3, dropout=True)
        trainer = make(other, teacher, tmp_path, data, args=settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same_bits(other.state_dict(), student.state_dict()), step
