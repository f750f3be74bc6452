"""KeepSparsity in a stock Trainer: the zeros survive whatever the optimizer does."""

import copy
import warnings

import pytest
import torch
from architectures import CHECKPOINTING, arguments, build, same_bits, state_of
from pruned_training import DATA, Disturber, count_revived, pruned, train, train_with_evaluation, zero_masks
from torch import nn
from torch.nn.utils import prune
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress import CompressionError, GradualPruning, KeepSparsity, prune_global_l1, sparsity_report


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_no_pruned_weight_is_nonzero_after_twenty_steps(architecture, tmp_path):
    model = pruned(architecture)
    zeros = zero_masks(model)
    trainer = train(model, tmp_path, KeepSparsity())
    assert trainer.state.global_step == 20
    assert count_revived(model, zeros) == 0


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_without_the_callback_most_zeros_are_lost(architecture, tmp_path):
    model = pruned(architecture)
    zeros = zero_masks(model)
    train(model, tmp_path)
    assert count_revived(model, zeros) > 0.9 * sum(int(mask.sum()) for mask in zeros.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch", "adafactor", "adagrad", "rmsprop"])
def test_the_optimizer_does_not_matter(optimizer, tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    train(model, tmp_path, KeepSparsity(), optim=optimizer, max_steps=3)
    assert count_revived(model, zeros) == 0


SETTINGS = {  # that change how weights are updated
    "fused": {"optim": "adamw_torch_fused"},
    "plain": {"optim": "adamw_torch", "optim_args": "foreach=False,fused=False"},
    "foreach": {"optim": "adamw_torch", "optim_args": "foreach=True"},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True", "learning_rate": 0.1},
    "bf16 autocast": {"bf16": True},
    "gradient checkpointing": {CHECKPOINTING: True},
    "torch.compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "accumulation with clipping": {"gradient_accumulation_steps": 4, "max_grad_norm": 0.01},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_trainer_setting_revives_a_weight(name, tmp_path):
    model = pruned("gpt2" if name == "torch.compile" else "bert", layers=1)
    zeros = zero_masks(model)
    train(model, tmp_path, KeepSparsity(), max_steps=4, **SETTINGS[name])
    assert count_revived(model, zeros) == 0


def test_accumulation_and_clipping_do_not_revive_weights(tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    trainer = train(
        model, tmp_path, KeepSparsity(), gradient_accumulation_steps=3, max_grad_norm=0.1, learning_rate=0.1
    )
    assert trainer.state.global_step == 7  # 20 batches, the last update has two
    assert count_revived(model, zeros) == 0


def test_the_zeros_hold_after_every_single_step(tmp_path):
    counts = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(sparsity_report(kwargs["model"]).zeros)

    model = pruned()
    zeros = sparsity_report(model).zeros
    train(model, tmp_path, KeepSparsity(), Count(), max_steps=5)
    assert counts == [zeros] * 5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_custom_loop_keeps_the_zeros_like_torchs_masks(momentum):
    """The reference: `torch.nn.utils.prune` masks the forward pass and the gradient."""
    ours = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    prune_global_l1(ours, 0.5)
    theirs = copy.deepcopy(ours)
    for layer in (theirs[0], theirs[2]):
        prune.custom_from_mask(layer, "weight", (layer.weight != 0).float())
    inputs = torch.randn(16, 6)
    keep = KeepSparsity()
    keep.read(ours)
    for model, after_step in ((ours, keep.apply), (theirs, lambda: None)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        for _ in range(5):
            model(inputs).square().sum().backward()
            optimizer.step()
            after_step()
            optimizer.zero_grad()
    assert torch.allclose(ours(inputs), theirs(inputs), atol=1e-6)
    assert sparsity_report(ours).zeros == 36


def test_the_other_weights_are_trained(tmp_path):
    model = pruned()
    before, zeros = state_of(model), zero_masks(model)
    train(model, tmp_path, KeepSparsity(), max_steps=3)
    after = model.state_dict()
    for name, mask in zeros.items():
        weight = f"{name}.weight"
        assert (after[weight] != before[weight])[~mask].float().mean() > 0.9
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_biases_and_the_head_are_trained_freely(tmp_path):
    model = pruned()
    trained = [model.bert.pooler.dense.bias, model.classifier.weight, model.classifier.bias]
    with torch.no_grad():
        model.classifier.weight.zero_()
    train(model, tmp_path, KeepSparsity(), max_steps=3)
    for parameter in trained:
        assert parameter.detach().count_nonzero() == parameter.numel()


def test_patterns_choose_what_is_kept(tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    train(model, tmp_path, KeepSparsity(include="bert.encoder.layer.0", exclude="*attention*"), max_steps=3)
    kept = {name for name, mask in zeros.items() if count_revived(model, {name: mask}) == 0}
    assert kept == {"bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"}


def test_the_head_can_be_kept_by_name(tmp_path):
    model = build()
    prune_global_l1(model, 0.5, include="classifier")
    zeros = zero_masks(model, include="classifier")["classifier"]
    train(model, tmp_path, KeepSparsity(include="classifier"), max_steps=3)
    assert torch.equal(model.classifier.weight == 0, zeros)


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path):
    uninterrupted, first = pruned(), pruned()
    train(uninterrupted, tmp_path / "uninterrupted", KeepSparsity())
    train(first, tmp_path / "parts", KeepSparsity(), max_steps=12, save_strategy="steps", save_steps=12)
    resumed = build(seed=1)  # another model without a zero: everything must come from the checkpoint
    train(resumed, tmp_path / "parts", KeepSparsity(), resume=str(tmp_path / "parts" / "checkpoint-12"))
    assert count_revived(resumed, zero_masks(first)) == 0
    assert same_bits(resumed.state_dict(), uninterrupted.state_dict())


@pytest.mark.parametrize("settings", [{"save_strategy": "steps", "save_steps": 2}, {"save_strategy": "epoch"}], ids=str)
def test_a_checkpoint_has_the_zeros_despite_other_callbacks(settings, tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    settings = settings | {"num_train_epochs": 1, "per_device_train_batch_size": 20}
    train(model, tmp_path, Disturber(), KeepSparsity(), **settings)
    assert count_revived(type(model).from_pretrained(tmp_path / "checkpoint-2"), zeros) == 0


def test_the_best_model_has_the_zeros_too(tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    trainer = train_with_evaluation(model, tmp_path, KeepSparsity())
    assert trainer.state.best_model_checkpoint
    assert count_revived(model, zeros) == 0


def test_nothing_is_added_to_the_model(tmp_path):
    model = pruned()
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    train(model, tmp_path, KeepSparsity(), max_steps=2)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == modules


def test_a_checkpoint_loads_as_a_plain_model_with_the_zeros(tmp_path):
    model = pruned()
    train(model, tmp_path, KeepSparsity(), max_steps=2, save_strategy="steps", save_steps=2)
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-2")
    assert sparsity_report(loaded).zeros == sparsity_report(model).zeros == round(0.5 * sparsity_report(model).weights)


def test_one_callback_serves_two_trainings(tmp_path):
    keep, model = KeepSparsity(), pruned(amount=0.2)
    train(model, tmp_path, keep, max_steps=2)
    prune_global_l1(model, 0.5)
    zeros = zero_masks(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, tmp_path, keep, max_steps=2)
    assert count_revived(model, zeros) == 0


class Reviver(TrainerCallback):
    """Sets pruned weights at the end, as an optimizer does that swaps in averaged weights."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            with torch.no_grad():
                kwargs["model"].bert.pooler.dense.weight.fill_(1.0)


def test_weights_revived_at_the_end_are_zeroed_with_a_warning(tmp_path):
    model = pruned()
    zeros = zero_masks(model)
    count = int(zeros["bert.pooler.dense"].sum())
    with pytest.warns(UserWarning, match=rf"{count} pruned weights were nonzero .* bert\.pooler\.dense"):
        train(model, tmp_path, Reviver(), KeepSparsity(), max_steps=2)
    assert count_revived(model, zeros) == 0


class OutOfMemoryOnce(torch.optim.SGD):
    """Runs out of memory after it has moved the weights."""

    failed = False

    def step(self, closure=None):
        if not self.failed:
            OutOfMemoryOnce.failed = True
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(1.0)  # so that what was zero is not small any more
            raise torch.OutOfMemoryError("CUDA out of memory.")
        super().step(closure)


@pytest.mark.parametrize("callback", [KeepSparsity, lambda: GradualPruning(0.5)], ids=["keep", "gradual"])
def test_a_restart_with_smaller_batches_keeps_the_zeros(callback, tmp_path, monkeypatch):
    monkeypatch.setattr(OutOfMemoryOnce, "failed", False)
    model = pruned()
    zeros = zero_masks(model)
    args = arguments(TrainingArguments, tmp_path, auto_find_batch_size=True, max_steps=3)
    optimizer = OutOfMemoryOnce(model.parameters(), lr=0.1)
    optimizers = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    Trainer(model=model, args=args, train_dataset=DATA, callbacks=[callback()], optimizers=optimizers).train()
    assert OutOfMemoryOnce.failed
    assert count_revived(model, zeros) == 0


class Interrupter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_the_zeros_of_an_interrupted_training_are_forgotten(tmp_path):
    """The next training may begin with other weights."""
    keep, model = KeepSparsity(), pruned()
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, keep, Interrupter(), auto_find_batch_size=True)
    model.load_state_dict(build().state_dict())
    with pytest.warns(UserWarning, match="nothing to keep"):
        train(model, tmp_path, keep, max_steps=1, auto_find_batch_size=True)
    assert sparsity_report(model).zeros == 0


def test_a_model_without_zeros_is_kept_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="KeepSparsity has nothing to keep"):
        train(build(), tmp_path, KeepSparsity(), max_steps=1)


def test_a_model_without_matrices_is_refused_before_training():
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    with pytest.raises(CompressionError, match="has no weight matrix"):
        KeepSparsity().on_train_begin(args, TrainerState(), TrainerControl(), model=nn.LayerNorm(3))


@pytest.mark.parametrize("callback", [KeepSparsity(), GradualPruning(0.5)])
def test_weights_that_zero_3_has_partitioned_are_refused_before_training(callback, tmp_path):
    model = pruned()
    for index, parameter in enumerate(model.parameters()):  # as DeepSpeed leaves them
        parameter.ds_id, parameter.data = index, torch.empty(0)
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True)
    with pytest.raises(CompressionError, match=r"query\.weight .*ZeRO-3"):
        callback.on_train_begin(args, TrainerState(max_steps=10), TrainerControl(), model=model)


@pytest.mark.parametrize("callback", [KeepSparsity, GradualPruning])
def test_every_hook_is_one_that_the_trainer_calls(callback):
    hooks = [name for name in vars(callback) if name.startswith("on_")]
    assert hooks
    for name in hooks:
        assert hasattr(TrainerCallback, name)
        assert vars(callback)[name].__override__


def test_a_pattern_without_a_match_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match="include pattern 'decoder'"):
        train(pruned(), tmp_path, KeepSparsity(include="decoder"), max_steps=1)
