"""The mean over an update, however its examples are split into batches, against plain loops."""

import copy

import pytest
import torch
from architectures import arguments, batch, build, rows, same_bits, state_of
from datasets import Dataset
from plain_distillation import (
    DATA,
    LABELS,
    Gradients,
    assert_same_weights,
    compute_logits,
    make,
    objective,
    part,
    plain_training,
    student_and_teacher,
)
from torch import nn

from hfcompress import CompressionError, DistillationArguments, DistillationTrainer


@pytest.mark.parametrize(
    ("accumulated", "examples"), [(1, 17), (1, 19), (2, 16), (2, 17), (2, 21), (4, 16), (4, 17), (4, 19), (4, 21)]
)
def test_accumulated_gradients_are_those_of_full_updates(examples, accumulated, tmp_path):
    data = part(DATA, 0, examples)
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    reference = plain_training(expected, compute_logits(teacher, data), data)
    gradients = Gradients()
    args = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    make(student, teacher, tmp_path, data, args=args, callbacks=[gradients]).train()
    assert len(gradients.found) == len(reference)
    for found, wanted in zip(gradients.found, reference, strict=True):
        assert torch.linalg.vector_norm(found - wanted) < 1e-5 * torch.linalg.vector_norm(wanted)
    assert_same_weights(student, expected)


class WithoutKeywords(nn.Module):
    """A BERT whose forward takes nothing beside its inputs, not even the labels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.model(input_ids, attention_mask).logits}


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "deberta-v2", "without keywords"])
def test_no_student_gets_gradients_times_the_accumulated(architecture, accumulated, tmp_path):
    """The full gradients are those of a plain loop, whatever keywords forward takes and whoever asks for them.

    The last update has 3 examples: one batch, or one of 2 and one of 1.
    """
    plain = architecture == "without keywords"
    data = part(DATA, 0, 19)
    student, teacher = student_and_teacher("bert" if plain else architecture)
    reference = plain_training(copy.deepcopy(student), compute_logits(teacher, data), data)
    gradients = Gradients()
    args = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    make(
        WithoutKeywords(student) if plain else student, teacher, tmp_path, data, args=args, callbacks=[gradients]
    ).train()
    assert len(gradients.found) == len(reference) == 3
    for found, wanted in zip(gradients.found, reference, strict=True):
        assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, rel=1e-5)
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_a_trainer_made_in_between_does_not_divide(tmp_path):
    """The accumulated batches that accelerate divides by are a state that all trainers of a process share."""
    student, teacher = student_and_teacher()
    reference = plain_training(copy.deepcopy(student), compute_logits(teacher, DATA), DATA, steps=1)
    gradients, args = Gradients(), {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = make(student, teacher, tmp_path, args=args, callbacks=[gradients])
    make(*student_and_teacher(), tmp_path, args={"gradient_accumulation_steps": 8})
    trainer.train()
    assert (gradients.found[0] - reference[0]).norm() < 1e-5 * reference[0].norm()


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_epoch_ends_with_its_short_update(step, tmp_path):
    """The last of 17 examples is an update of its own: one batch, where two are accumulated."""
    data = part(DATA, 0, 17)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    plain_training(expected, compute_logits(teacher, data), data)
    make(student, teacher, tmp_path, data, args=settings | {"save_steps": 1, "max_steps": step}).train()
    trainer = make(build("bert", LABELS, seed=3), teacher, tmp_path, data, args=settings | {"save_steps": 9})
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same_weights(trainer.model, expected)


def test_every_example_counts_where_the_sampler_draws_fewer(tmp_path):
    class Drawing(DistillationTrainer):
        def _get_train_sampler(self, *args):
            return range(13)

    student, teacher = student_and_teacher()
    expected, data = copy.deepcopy(student), part(DATA, 0, 13)
    plain_training(expected, compute_logits(teacher, data), data)
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
    first = part(DATA, 0, 8)
    wanted = objective(compute_logits(student, first), compute_logits(teacher, first), first["labels"])
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    result = make(student, teacher, tmp_path, args=args).train()
    assert result.training_loss == pytest.approx(float(wanted), rel=1e-5)


def test_every_example_counts_where_the_last_batch_is_dropped(tmp_path):
    student, teacher = student_and_teacher()
    expected, data, gradients = copy.deepcopy(student), batch(22, num_labels=LABELS), Gradients()
    wanted = plain_training(expected, compute_logits(teacher, data), part(data, 0, 20), size=4)
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 4}
    make(student, teacher, tmp_path, data, args=settings, callbacks=[gradients]).train()
    assert len(gradients.found) == len(wanted) == 5
    assert_same_weights(student, expected)


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
    expected, targets = copy.deepcopy(student), compute_logits(teacher, data)
    for rows_of_update in (range(8), range(8, 16), [16, 17, 18, 0, 1, 2, 3], range(4, 12)):
        chosen = torch.tensor(list(rows_of_update))
        plain_training(expected, targets[chosen], {key: value[chosen] for key, value in data.items()})
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    stream = Dataset.from_list(rows(data)).to_iterable_dataset()
    make(student, teacher, tmp_path, stream, args={"max_steps": 4, **sizes}, eval_dataset=None).train()
    assert_same_weights(student, expected)
