"""The projection of hidden states: trained, clipped, saved and loaded beside the student."""

import copy

import pytest
import torch
from accelerate.state import AcceleratorState
from architectures import (
    arguments,
    build,
    rows,
    same_bits,
    state_of,
)
from plain_distillation import LABELS, assert_same_weights
from plain_layers import BOTH, DATA, WIDER, make, plain_objective, plain_training
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hfcompress import (
    CompressionError,
    DistillationArguments,
    DistillationTrainer,
)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_projection_to_the_teachers_width_learns_too(accumulated, tmp_path):
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    expected = copy.deepcopy(student)
    batches = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = make(student, teacher, tmp_path, args=BOTH | batches)
    start = trainer._projection.weight.detach().clone()
    assert start.shape == (48, 32)
    projection = start.clone().requires_grad_()
    plain_training(expected, teacher, projection, layer_map={0: 0, 1: 1, 2: 2}, heads=2)
    trainer.train()
    assert_same_weights(student, expected)
    assert not torch.equal(projection, start)
    torch.testing.assert_close(trainer._projection.weight, projection, rtol=1e-5, atol=1e-5)


def test_the_projection_is_in_no_saved_model(tmp_path):
    settings = BOTH | {"save_strategy": "steps", "save_steps": 2}
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    names = list(student.state_dict())
    trainer = make(student, teacher, tmp_path, args=settings)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    for folder in ("saved", "checkpoint-2"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            assert sorted(file.keys()) == sorted(names)
    assert not (tmp_path / "saved" / "projection.safetensors").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_a_resumed_training_goes_on_with_its_projection(tmp_path):
    settings = BOTH | {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1, dropout=True)
    full = make(student, teacher, tmp_path, args=settings)
    full.train()
    other = build("bert", LABELS, seed=3, dropout=True)
    resumed = make(other, teacher, tmp_path, args=settings | {"seed": 42})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_bits(other.state_dict(), student.state_dict())
    assert torch.equal(resumed._projection.weight, full._projection.weight)
    assert load_file(tmp_path / "checkpoint-6" / "projection.safetensors")["weight"].equal(full._projection.weight)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("limit", [0.1, 100.0, 0.0])
def test_the_projection_is_clipped_by_its_own_norm(limit, accumulated, tmp_path):
    """One update of SGD with rate 1 is the gradient; that of a plain loop, clipped by the formula."""
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    plain = copy.deepcopy(student)
    batches = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    args = BOTH | batches | {"learning_rate": 1.0, "max_steps": 1, "max_grad_norm": limit}
    trainer = make(student, teacher, tmp_path, args=args)
    start = trainer._projection.weight.detach().clone()
    projection = start.clone().requires_grad_()
    here = {key: value[:8] for key, value in DATA.items()}
    plain_objective(plain, teacher, here, projection=projection, layer_map={0: 0, 1: 1, 2: 2}, heads=2).backward()
    norm = float(projection.grad.norm())
    assert 0.1 < norm < 100
    trainer.train()
    found = start - trainer._projection.weight.detach()
    torch.testing.assert_close(found, projection.grad * (0.1 / norm if limit == 0.1 else 1.0), rtol=1e-4, atol=1e-6)


def test_a_scaled_gradient_is_clipped_after_it_was_unscaled(tmp_path, monkeypatch):
    """As under fp16 on a GPU, with the scaler for CPUs: an update of SGD with rate 1 is as long as the limit."""
    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    args = {"hidden_weight": 10.0, "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 1.0}
    trainer = make(student, teacher, tmp_path, args=args)
    trainer.accelerator.scaler, trainer.accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=1024.0), True
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
    start = trainer._projection.weight.detach().clone()
    trainer.train()
    assert trainer.accelerator.mixed_precision == "fp16"
    assert float((trainer._projection.weight.detach() - start).norm()) == pytest.approx(1.0, rel=1e-4)


def test_callbacks_see_the_projections_clipped_gradient(tmp_path):
    """As they see the student's; of the projection that there is, when a trainer trains again."""
    norms = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.append(float(trainer._projection.weight.grad.norm()))

    teacher, student = build("bert", LABELS, seed=2, **WIDER), build("bert", LABELS, seed=1)
    args = {"hidden_weight": 1000.0, "max_steps": 1, "max_grad_norm": 1.0}
    trainer = make(student, teacher, tmp_path, args=args, callbacks=[Norms()])
    trainer.train()
    first, trainer.args.hidden_weight = trainer._projection, 2000.0
    trainer.train()
    assert trainer._projection is not first
    assert norms == pytest.approx([1.0, 1.0], rel=1e-4)


def test_each_trial_of_a_search_begins_with_the_same_projection(tmp_path):
    states = []
    training = arguments(DistillationArguments, tmp_path, optim="sgd", hidden_weight=1.0)
    trainer = DistillationTrainer(
        model_init=lambda: build("bert", LABELS, seed=1),
        args=training,
        teacher=build("bert", LABELS, seed=2, **WIDER),
        train_dataset=rows(DATA),
    )
    for _ in range(2):
        trainer.train()
        states.append(state_of(trainer.model))
    assert same_bits(*states)


def test_a_checkpoint_without_the_projection_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    wide = build("bert", LABELS, seed=2, **WIDER)
    make(build("bert", LABELS, seed=1), wide, tmp_path / "plain", args=settings).train()
    checkpoint = str(tmp_path / "plain" / "checkpoint-1")
    trainer = make(build("bert", LABELS, seed=1), wide, tmp_path, args={"hidden_weight": 1.0})
    with pytest.raises(CompressionError, match="had no projection of hidden states, this one has one"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_optimizer_needs_no_projection(tmp_path):
    light = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "save_only_model": True, "hidden_weight": 1.0}
    wide = build("bert", LABELS, seed=2, **WIDER)
    make(build("bert", LABELS, seed=1), wide, tmp_path / "light", args=light).train()
    again = make(build("bert", LABELS, seed=1), wide, tmp_path, args={"hidden_weight": 1.0})
    again.train(resume_from_checkpoint=str(tmp_path / "light" / "checkpoint-1"))


def test_an_optimizer_without_the_projection_is_refused(tmp_path):
    student, wide = build("bert", LABELS, seed=1), build("bert", LABELS, seed=2, **WIDER)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(CompressionError, match="optimizers="):
        make(student, wide, tmp_path, args={"hidden_weight": 1.0}, optimizers=(optimizer, None))
