"""KeepSparsity in a stock Trainer: the zeros survive whatever the optimizer does."""

import warnings

import pytest
import torch
from architectures import arguments, batch, build, rows, same_bits, state_of
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfcompress import CompressionError, KeepSparsity, prune_global_l1, sparsity_report
from hfcompress.layers import select_matrices

DATA = rows(batch(40))


def pruned(architecture="bert", amount=0.5):
    model = build(architecture)
    prune_global_l1(model, amount)
    return model


def zeros_of(model, **patterns):
    return {matrix.name: matrix.weight.detach() == 0 for matrix in select_matrices(model, **patterns).matrices}


def train(model, directory, *callbacks, resume=None, **overrides):
    settings = {"optim": "adamw_torch", "weight_decay": 0.1, "per_device_train_batch_size": 2} | overrides
    args = arguments(TrainingArguments, directory, **settings)
    trainer = Trainer(model=model, args=args, train_dataset=DATA, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def come_back(model, zeros):
    """How many weights that were zero are zero no more."""
    weights = {matrix.name: matrix.weight for matrix in select_matrices(model).matrices}
    return sum(int(weights[name].detach()[mask].count_nonzero()) for name, mask in zeros.items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_after_twenty_steps_no_pruned_weight_is_back_and_without_the_callback_they_are(architecture, tmp_path):
    kept, lost = pruned(architecture), pruned(architecture)
    zeros = zeros_of(kept)
    trainer = train(kept, tmp_path, KeepSparsity())
    train(lost, tmp_path)
    assert trainer.state.global_step == 20
    assert come_back(kept, zeros) == 0
    assert come_back(lost, zeros) > 0.9 * sum(int(mask.sum()) for mask in zeros.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch", "adafactor", "adagrad", "rmsprop"])
def test_the_optimizer_does_not_matter(optimizer, tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    train(model, tmp_path, KeepSparsity(), optim=optimizer, max_steps=3)
    assert come_back(model, zeros) == 0


def test_the_other_weights_are_trained(tmp_path):
    model = pruned()
    before, zeros = state_of(model), zeros_of(model)
    train(model, tmp_path, KeepSparsity(), max_steps=3)
    after = model.state_dict()
    for name, mask in zeros.items():
        weight = f"{name}.weight"
        assert (after[weight] != before[weight])[~mask].float().mean() > 0.9
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_nothing_is_held_in_biases_norms_and_the_head(tmp_path):
    model = pruned()
    held_nowhere = [model.bert.pooler.dense.bias, model.classifier.weight, model.classifier.bias]
    with torch.no_grad():
        model.classifier.weight.zero_()
    train(model, tmp_path, KeepSparsity(), max_steps=3)
    for parameter in held_nowhere:
        assert parameter.detach().count_nonzero() == parameter.numel()


def test_accumulation_and_clipping_do_not_bring_weights_back(tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    trainer = train(
        model, tmp_path, KeepSparsity(), gradient_accumulation_steps=3, max_grad_norm=0.1, learning_rate=0.1
    )
    assert trainer.state.global_step == 7  # 20 batches, the last update has two
    assert come_back(model, zeros) == 0


def test_the_zeros_hold_after_every_single_step(tmp_path):
    counts = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(sparsity_report(kwargs["model"]).zeros)

    model = pruned()
    zeros = sparsity_report(model).zeros
    train(model, tmp_path, KeepSparsity(), Count(), max_steps=5)
    assert counts == [zeros] * 5


def test_patterns_choose_what_is_kept(tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    train(model, tmp_path, KeepSparsity(include="bert.encoder.layer.0", exclude="*attention*"), max_steps=3)
    kept = {name for name, mask in zeros.items() if come_back(model, {name: mask}) == 0}
    assert kept == {"bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"}


def test_the_head_can_be_kept_by_name(tmp_path):
    model = build()
    prune_global_l1(model, 0.5, include="classifier")
    zeros = zeros_of(model, include="classifier")["classifier"]
    train(model, tmp_path, KeepSparsity(include="classifier"), max_steps=3)
    assert torch.equal(model.classifier.weight == 0, zeros)


def test_a_resumed_training_keeps_the_zeros_of_the_checkpoint_and_ends_like_an_uninterrupted_one(tmp_path):
    whole, first = pruned(), pruned()
    train(whole, tmp_path / "whole", KeepSparsity())
    train(first, tmp_path / "parts", KeepSparsity(), max_steps=12, save_strategy="steps", save_steps=12)
    resumed = build(seed=1)  # another model without a zero: everything must come from the checkpoint
    train(resumed, tmp_path / "parts", KeepSparsity(), resume=str(tmp_path / "parts" / "checkpoint-12"))
    assert come_back(resumed, zeros_of(first)) == 0
    assert same_bits(resumed.state_dict(), whole.state_dict())


def test_nothing_to_keep_is_told(tmp_path):
    with pytest.warns(UserWarning, match="KeepSparsity has nothing to keep"):
        train(build(), tmp_path, KeepSparsity(), max_steps=1)


def test_a_model_without_matrices_is_refused_when_training_begins():
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    with pytest.raises(CompressionError, match="has no weight matrix"):
        KeepSparsity().on_train_begin(args, None, None, model=nn.LayerNorm(3))


def test_a_pattern_that_matches_nothing_is_refused_when_training_begins(tmp_path):
    with pytest.raises(CompressionError, match="include pattern 'decoder'"):
        train(pruned(), tmp_path, KeepSparsity(include="decoder"), max_steps=1)


class Revive(TrainerCallback):
    """Brings pruned weights back at the end, as an optimizer does that swaps in averaged weights."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            with torch.no_grad():
                kwargs["model"].bert.pooler.dense.weight.fill_(1.0)


def test_zeros_revived_at_the_end_are_reported_and_repaired(tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    count = int(zeros["bert.pooler.dense"].sum())
    with pytest.warns(UserWarning, match=rf"{count} pruned weights had come back .* bert\.pooler\.dense"):
        train(model, tmp_path, Revive(), KeepSparsity(), max_steps=2)
    assert come_back(model, zeros) == 0


def test_one_callback_serves_two_trainings(tmp_path):
    keep, model = KeepSparsity(), pruned(amount=0.2)
    train(model, tmp_path, keep, max_steps=2)
    prune_global_l1(model, 0.5)
    zeros = zeros_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, tmp_path, keep, max_steps=2)
    assert come_back(model, zeros) == 0


def test_nothing_is_added_to_the_model_or_its_files(tmp_path):
    model = pruned()
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    train(model, tmp_path, KeepSparsity(), max_steps=2, save_strategy="steps", save_steps=2)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == modules
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-2")
    assert sparsity_report(loaded).zeros == sparsity_report(model).zeros == round(0.5 * sparsity_report(model).weights)
