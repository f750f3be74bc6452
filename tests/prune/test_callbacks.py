"""KeepSparsity in a stock Trainer: the zeros survive whatever the optimizer does."""

import copy
import warnings
from itertools import pairwise

import peft
import pytest
import torch
from architectures import CHECKPOINTING, arguments, batch, build, rows, same_bits, state_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress import CompressionError, GradualPruning, KeepSparsity, prune_global_l1, sparsity_report
from hfcompress.models.weights import select_matrices

DATA = rows(batch(40))


def pruned(architecture="bert", amount=0.5, **sizes):
    model = build(architecture, **sizes)
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
        KeepSparsity().on_train_begin(args, TrainerState(), TrainerControl(), model=nn.LayerNorm(3))


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


def settings_that_move_weights():
    """Trainer arguments that change how an optimizer step comes about."""
    return {
        "fused": {"optim": "adamw_torch_fused"},
        "plain": {"optim": "adamw_torch", "optim_args": "foreach=False,fused=False"},
        "foreach": {"optim": "adamw_torch", "optim_args": "foreach=True"},
        "momentum": {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True", "learning_rate": 0.1},
        "bf16 autocast": {"bf16": True},
        "gradient checkpointing": {CHECKPOINTING: True},
        "torch.compile": {"torch_compile": True, "torch_compile_backend": "eager"},
        "accumulation with clipping": {"gradient_accumulation_steps": 4, "max_grad_norm": 0.01},
    }


@pytest.mark.parametrize("name", settings_that_move_weights())
def test_no_setting_brings_a_weight_back(name, tmp_path):
    model = pruned("gpt2" if name == "torch.compile" else "bert", layers=1)
    zeros = zeros_of(model)
    train(model, tmp_path, KeepSparsity(), max_steps=4, **settings_that_move_weights()[name])
    assert come_back(model, zeros) == 0


def test_the_best_model_has_the_zeros_too(tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    trainer = train_with_evaluation(model, tmp_path, KeepSparsity())
    assert trainer.state.best_model_checkpoint
    assert come_back(model, zeros) == 0


def train_with_evaluation(model, directory, *callbacks, compute_metrics=None, **overrides):
    settings = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "logging_steps": 1,
        "load_best_model_at_end": True,
        "per_device_train_batch_size": 4,
    } | overrides
    args = arguments(TrainingArguments, directory, **settings)
    data = {"train_dataset": DATA, "eval_dataset": DATA[:8]}
    trainer = Trainer(model=model, args=args, callbacks=list(callbacks), compute_metrics=compute_metrics, **data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_loop_of_ones_own_keeps_the_zeros_like_torchs_masks(momentum):
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


def test_adapters_are_not_frozen_at_the_zero_they_start_from(tmp_path):
    """LoRA's second matrix is zero before training; held at zero, it would learn nothing."""
    model = pruned()
    zeros = zeros_of(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    second = [parameter for name, parameter in tuned.named_parameters() if "lora_B" in name]
    assert all(parameter.detach().count_nonzero() == 0 for parameter in second)
    train(tuned, tmp_path, KeepSparsity(), max_steps=3)
    assert all(parameter.detach().count_nonzero() == parameter.numel() for parameter in second)
    merged = tuned.merge_and_unload()
    back = {name: int((merged.get_submodule(name).weight[mask] != 0).sum()) for name, mask in zeros.items()}
    assert back["bert.encoder.layer.0.attention.self.query"] > 0  # what the documentation says of merging
    assert back["bert.encoder.layer.0.attention.self.key"] == 0


def test_a_module_that_an_adapter_trains_in_full_is_kept_and_counted(tmp_path):
    """PEFT trains a copy of it; the original, which is not in use any more, says nothing."""
    model = pruned()
    zeros = zeros_of(model)["bert.pooler.dense"]
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler"])
    tuned = peft.get_peft_model(model, config)
    train(tuned, tmp_path, KeepSparsity(), max_steps=3)
    report = sparsity_report(tuned)
    assert [one.name for one in report.layers if "pooler" in one.name] == [
        "base_model.model.bert.pooler.modules_to_save.default.dense"
    ]
    pooler = tuned.merge_and_unload().bert.pooler.dense.weight
    assert torch.equal(pooler == 0, zeros)
    # Pruned after wrapping, it is the copy in use that is pruned: of two adapters the active one's, without any the
    # original.
    tuned = peft.get_peft_model(build(), config)
    prune_global_l1(tuned, 0.5)
    wrapper = tuned.base_model.model.bert.pooler
    copies = {"default": wrapper.modules_to_save["default"], "original": wrapper.original_module}
    assert [name for name, one in copies.items() if not one.dense.weight.all()] == ["default"]
    tuned.add_adapter("other", config)
    tuned.set_adapter("other")
    assert [one.name.split(".")[-2] for one in sparsity_report(tuned).layers if "pooler" in one.name] == ["other"]
    with tuned.disable_adapter():
        names = [one.name.split(".")[-2] for one in sparsity_report(tuned).layers if "pooler" in one.name]
    assert names == ["original_module"]


def test_the_encoder_of_a_prompt_is_an_adapter():
    config = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=16)
    tuned = peft.get_peft_model(build(), config)
    assert not any("prompt" in one.name for one in sparsity_report(tuned, include="*").layers)


@pytest.mark.parametrize("name", ["VBLoRAConfig", "RandLoraConfig"])
def test_adapters_that_stand_in_for_a_linear_layer_are_looked_through(name):
    settings = {"VBLoRAConfig": {"num_vectors": 4, "vector_length": 8, "topk": 2}, "RandLoraConfig": {"r": 4}}[name]
    model = pruned()
    expected = sparsity_report(model)
    tuned = peft.get_peft_model(model, getattr(peft, name)(task_type="SEQ_CLS", target_modules=["query"], **settings))
    assert (sparsity_report(tuned).zeros, sparsity_report(tuned).weights) == (expected.zeros, expected.weights)


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
def test_a_training_that_begins_again_with_smaller_batches_still_knows_the_zeros(callback, tmp_path, monkeypatch):
    monkeypatch.setattr(OutOfMemoryOnce, "failed", False)
    model = pruned()
    zeros = zeros_of(model)
    args = arguments(TrainingArguments, tmp_path, auto_find_batch_size=True, max_steps=3)
    optimizer = OutOfMemoryOnce(model.parameters(), lr=0.1)
    optimizers = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    Trainer(model=model, args=args, train_dataset=DATA, callbacks=[callback()], optimizers=optimizers).train()
    assert OutOfMemoryOnce.failed
    assert come_back(model, zeros) == 0


class Disturber(TrainerCallback):
    """Moves every weight after every step, so that what was zero is not small any more."""

    def on_step_end(self, args, state, control, **kwargs):
        with torch.no_grad():
            for parameter in kwargs["model"].parameters():
                parameter.add_(1.0)


class Interrupter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_the_zeros_of_an_interrupted_training_are_not_those_of_the_next(tmp_path):
    """The next one may begin with other weights."""
    keep, model = KeepSparsity(), pruned()
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, keep, Interrupter(), auto_find_batch_size=True)
    model.load_state_dict(build().state_dict())
    with pytest.warns(UserWarning, match="nothing to keep"):
        train(model, tmp_path, keep, max_steps=1, auto_find_batch_size=True)
    assert sparsity_report(model).zeros == 0


@pytest.mark.parametrize("settings", [{"save_strategy": "steps", "save_steps": 2}, {"save_strategy": "epoch"}], ids=str)
def test_a_checkpoint_has_the_zeros_whatever_a_callback_before_did(settings, tmp_path):
    model = pruned()
    zeros = zeros_of(model)
    settings = settings | {"num_train_epochs": 1, "per_device_train_batch_size": 20}
    train(model, tmp_path, Disturber(), KeepSparsity(), **settings)
    assert come_back(type(model).from_pretrained(tmp_path / "checkpoint-2"), zeros) == 0


# GradualPruning


def ideal(schedule, amount, k, n):
    return amount * {"cubic": 1 - (1 - k / n) ** 3, "linear": k / n, "one-shot": 1}[schedule]


STEPS, EPOCHS = {"max_steps": 10}, {"num_train_epochs": 2, "per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("schedule", "lasting", "amount"),
    [("cubic", STEPS, 0.6), ("cubic", EPOCHS, 1000), ("linear", EPOCHS, 0.6), ("one-shot", STEPS, 1000)],
)
def test_the_sparsity_follows_the_schedule_and_ends_at_the_amount(schedule, lasting, amount, tmp_path):
    model = build()
    weights = sparsity_report(model).weights
    seen = Watch()
    gradual = GradualPruning(amount, start=0.2, end=0.8, every=0.2, schedule=schedule)
    trainer = train(model, tmp_path, gradual, seen, logging_strategy="steps", logging_steps=1, **lasting)
    assert trainer.state.max_steps == 10
    count = amount if isinstance(amount, int) else round(amount * weights)
    times = [2] if schedule == "one-shot" else [2, 4, 6, 8]
    for step, zeros in enumerate(seen.zeros):
        done = sum(time <= step for time in times)
        assert zeros == pytest.approx(ideal(schedule, count, done, len(times)) if done else 0, abs=1)
    assert sparsity_report(model).zeros == seen.zeros[-1] == count
    logged = {
        entry["step"]: entry["sparsity"]
        for entry in trainer.state.log_history
        if "loss" in entry and "sparsity" in entry
    }
    assert logged == {step: seen.zeros[step - 1] / weights for step in range(3, 11)}
    pruned_at = [entry["step"] for entry in trainer.state.log_history if set(entry) == {"sparsity", "epoch", "step"}]
    assert pruned_at == times


class Watch(TrainerCallback):
    """Counts zeros after each optimizer step, and checks that none of them comes back."""

    def __init__(self):
        self.zeros = []
        self.masks = {}

    def on_step_end(self, args, state, control, **kwargs):
        model = kwargs["model"]
        assert come_back(model, self.masks) == 0
        self.masks = zeros_of(model)
        self.zeros.append(sum(int(mask.sum()) for mask in self.masks.values()))


@given(
    st.sampled_from(["cubic", "linear", "one-shot"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(1, 50), st.floats(0.001, 0.999)),
    st.integers(1, 3000),
    st.one_of(st.floats(0, 0.99), st.integers(0, 10**9)),
)
def test_every_plan_ascends_to_the_amount_within_the_training(schedule, one, other, every, max_steps, amount):
    start, end = sorted((one, other))
    plan = GradualPruning(amount, start=start, end=end, every=every, schedule=schedule).plan(max_steps)
    steps, amounts = zip(*plan, strict=True)
    assert amounts[-1] == amount
    assert all(type(part) is type(amount) for part in amounts)
    assert list(amounts) == sorted(amounts)
    assert list(steps) == sorted(set(steps))
    assert 0 <= steps[0] <= steps[-1] <= max_steps - 1
    assert steps[-1] <= max(round(end * max_steps), 0)
    if every is None:
        assert len(plan) <= 100


def test_a_resumed_training_goes_on_with_the_same_schedule(tmp_path):
    chosen = {"start": 0.1, "end": 0.9, "every": 0.2, "schedule": "linear"}
    saving = {"save_strategy": "steps", "save_steps": 6}
    whole, first, resumed = build(), build(), build(seed=1)
    train(whole, tmp_path / "whole", GradualPruning(0.5, **chosen), max_steps=10)
    with pytest.warns(UserWarning, match="only after training had ended"):
        stopped = train(first, tmp_path / "parts", GradualPruning(0.5, **chosen), Stop(6), max_steps=10, **saving)
    assert stopped.state.global_step == 6
    trainer = train(
        resumed,
        tmp_path / "parts",
        GradualPruning(0.5, **chosen),
        max_steps=10,
        resume=str(tmp_path / "parts" / "checkpoint-6"),
        **saving,
    )
    assert same_bits(resumed.state_dict(), whole.state_dict())
    assert [entry["step"] for entry in trainer.state.log_history if set(entry) == {"sparsity", "epoch", "step"}] == [
        1,
        3,
        5,
        7,
        9,
    ]


class Stop(TrainerCallback):
    """Ends the training early."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_training_that_stops_early_ends_at_the_amount_with_a_warning(tmp_path):
    model = build()
    with pytest.warns(UserWarning, match=r"pruned only after training had ended.* step 3 of 10.* planned for step 7"):
        train(model, tmp_path, GradualPruning(0.5), Stop(3), max_steps=10)
    report = sparsity_report(model)
    assert report.zeros == round(0.5 * report.weights)


def test_the_best_model_is_one_of_the_final_sparsity(tmp_path):
    """By a metric that falls with each evaluation, the first model of all would be the best."""
    model, scores = build(), iter(range(0, -100, -1))
    trainer = train_with_evaluation(
        model,
        tmp_path,
        GradualPruning(0.8, start=0.0, end=0.6, every=1, schedule="linear"),
        compute_metrics=lambda _: {"score": next(scores)},
        metric_for_best_model="score",
        greater_is_better=True,
        max_steps=10,
    )
    assert trainer.state.best_global_step == 7  # the last pruning is before the seventh step
    assert "checkpoint-7" in trainer.state.best_model_checkpoint
    report = sparsity_report(model)
    assert report.zeros == round(0.8 * report.weights)
    assert same_bits(type(model).from_pretrained(trainer.state.best_model_checkpoint).state_dict(), model.state_dict())


def test_no_pruned_weight_comes_back_at_the_next_pruning_whatever_a_callback_did(tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.zeros = []

        def on_optimizer_step(self, args, state, control, **kwargs):
            self.zeros.append(zeros_of(kwargs["model"]))

    watch = Watch()
    pruning = GradualPruning(0.5, schedule="linear", every=2, end=0.8)
    with pytest.warns(UserWarning, match="pruned weights had come back"):
        train(build(), tmp_path, pruning, watch, Disturber(), max_steps=10)
    for before, after in pairwise(watch.zeros):
        assert all(after[name][mask].all() for name, mask in before.items())


def test_weights_that_were_zero_before_stay_zero_and_count(tmp_path):
    model = pruned(amount=0.3)
    zeros = zeros_of(model)
    seen = Watch()
    train(model, tmp_path, GradualPruning(0.5, schedule="linear", every=1, end=0.8), seen, max_steps=5)
    weights = sparsity_report(model).weights
    assert seen.zeros == [round(part * weights) for part in (0.3, 0.3, 0.3, 0.4, 0.5)]
    assert come_back(model, zeros) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amount": 1.5}, r"amount=1\.5 must be a float in \[0, 1\)"),
        ({"start": -0.1}, r"start=-0\.1 and end=0\.7 must be fractions"),
        ({"start": 0.8}, r"start=0\.8 and end=0\.7"),
        ({"end": "all"}, r"end='all'"),
        ({"every": 0}, r"every=0 must be a number of optimizer steps"),
        ({"every": 1.0}, r"every=1\.0"),
        ({"every": True}, r"every=True"),
        ({"schedule": "quadratic"}, r"schedule='quadratic' must be one of cubic, linear, one-shot"),
    ],
)
def test_wrong_arguments_of_a_schedule_are_refused(wrong, message):
    with pytest.raises(CompressionError, match=message):
        GradualPruning(**({"amount": 0.5} | wrong))


def test_a_schedule_for_a_model_with_nothing_to_prune_is_refused_before_training(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(CompressionError, match="has no weight matrix"):
        GradualPruning(0.5).on_train_begin(args, TrainerState(), TrainerControl(), model=nn.LayerNorm(3))
