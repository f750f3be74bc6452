"""GradualPruning in a stock Trainer: the sparsity follows the schedule, and no pruned weight is ever revived."""

from itertools import pairwise

import pytest
from architectures import build, same_bits
from hypothesis import given
from hypothesis import strategies as st
from pruned_training import Disturber, count_revived, pruned, train, train_with_evaluation, zero_masks
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress import CompressionError, GradualPruning, sparsity_report

STEPS, EPOCHS = {"max_steps": 10}, {"num_train_epochs": 2, "per_device_train_batch_size": 8}  # ten either way
RUNS = [("cubic", STEPS, 0.6), ("cubic", EPOCHS, 1000), ("linear", EPOCHS, 0.6), ("one-shot", STEPS, 1000)]


def scheduled(schedule, amount, k, n):
    """The formulas of the documentation."""
    return amount * {"cubic": 1 - (1 - k / n) ** 3, "linear": k / n, "one-shot": 1}[schedule]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0]}-{run[2]}")
def trained(request, tmp_path_factory):
    """The schedule and the amount of a training, its trainer, and the zeros after each of its steps."""
    schedule, lasting, amount = request.param
    counter = ZeroCounter()
    gradual = GradualPruning(amount, start=0.2, end=0.8, every=0.2, schedule=schedule)
    logging = {"logging_strategy": "steps", "logging_steps": 1}
    trainer = train(build(), tmp_path_factory.mktemp("trained"), gradual, counter, **logging, **lasting)
    return schedule, amount, trainer, counter.zeros


def test_the_sparsity_follows_the_schedule(trained):
    schedule, amount, trainer, found = trained
    weights = sparsity_report(trainer.model).weights
    assert trainer.state.max_steps == 10
    count = amount if isinstance(amount, int) else round(amount * weights)
    times = [2] if schedule == "one-shot" else [2, 4, 6, 8]
    for step, zeros in enumerate(found):
        done = sum(time <= step for time in times)
        assert zeros == pytest.approx(scheduled(schedule, count, done, len(times)) if done else 0, abs=1)
    assert sparsity_report(trainer.model).zeros == found[-1] == count
    assert pruning_steps(trainer) == times


def pruning_steps(trainer):
    """The steps of the prunings, by the trainer's log."""
    return [entry["step"] for entry in trainer.state.log_history if set(entry) == {"sparsity", "epoch", "step"}]


def test_the_sparsity_is_logged_with_the_loss(trained):
    _, _, trainer, zeros = trained
    entries = [entry for entry in trainer.state.log_history if "loss" in entry and "sparsity" in entry]
    weights = sparsity_report(trainer.model).weights
    assert {entry["step"]: entry["sparsity"] for entry in entries} == {
        step: zeros[step - 1] / weights for step in range(3, 11)
    }


class ZeroCounter(TrainerCallback):
    """Counts zeros after each optimizer step, and checks that none of them is revived."""

    def __init__(self):
        self.zeros = []
        self.masks = {}

    def on_step_end(self, args, state, control, **kwargs):
        model = kwargs["model"]
        assert count_revived(model, self.masks) == 0
        self.masks = zero_masks(model)
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


def test_a_resumed_training_continues_the_schedule(tmp_path):
    chosen = {"start": 0.1, "end": 0.9, "every": 0.2, "schedule": "linear"}
    saving = {"save_strategy": "steps", "save_steps": 6}
    uninterrupted, first, resumed = build(), build(), build(seed=1)
    train(uninterrupted, tmp_path / "uninterrupted", GradualPruning(0.5, **chosen), max_steps=10)
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
    assert same_bits(resumed.state_dict(), uninterrupted.state_dict())
    assert pruning_steps(trainer) == [1, 3, 5, 7, 9]


class Stop(TrainerCallback):
    """Ends the training early."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_stopped_training_ends_at_the_amount_with_a_warning(tmp_path):
    model = build()
    with pytest.warns(UserWarning, match=r"pruned only after training had ended.* step 3 of 10.* planned for step 7"):
        train(model, tmp_path, GradualPruning(0.5), Stop(3), max_steps=10)
    report = sparsity_report(model)
    assert report.zeros == round(0.5 * report.weights)


def test_the_best_model_has_the_final_sparsity(tmp_path):
    """The metric falls with each evaluation, so that the best of all models would be the first."""
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


def test_the_next_pruning_keeps_zeros_despite_other_callbacks(tmp_path):
    masks = []

    class Recorder(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            masks.append(zero_masks(kwargs["model"]))

    pruning = GradualPruning(0.5, schedule="linear", every=2, end=0.8)
    with pytest.warns(UserWarning, match="pruned weights were nonzero at the end"):
        train(build(), tmp_path, pruning, Recorder(), Disturber(), max_steps=10)
    assert len(masks) == 10
    for before, after in pairwise(masks):
        assert all(after[name][mask].all() for name, mask in before.items())


def test_weights_that_were_zero_before_stay_zero_and_count(tmp_path):
    model = pruned(amount=0.3)
    zeros = zero_masks(model)
    counter = ZeroCounter()
    train(model, tmp_path, GradualPruning(0.5, schedule="linear", every=1, end=0.8), counter, max_steps=5)
    weights = sparsity_report(model).weights
    assert counter.zeros == [round(part * weights) for part in (0.3, 0.3, 0.3, 0.4, 0.5)]
    assert count_revived(model, zeros) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amount": 1.5}, r"amount=1\.5 must be in \[0, 1\)"),
        ({"amount": -1}, r"amount=-1 must be a whole number of at least 0"),
        ({"start": -0.1}, r"start=-0\.1 must be in \[0, 1\]: a fraction of the training"),
        ({"start": 0.8}, r"start=0\.8 must not be above end=0\.7"),
        ({"end": "all"}, r"end='all' must be in \[0, 1\]"),
        ({"end": float("nan")}, r"end=nan must be in \[0, 1\]"),
        ({"every": 0}, r"every=0 must be a whole number of at least 1"),
        ({"every": 0.0}, r"every=0\.0 must be in \(0, 1\).* an int counts optimizer steps"),
        ({"every": 1.0}, r"every=1\.0 must be in \(0, 1\)"),
        ({"every": True}, r"every=True must be in \(0, 1\)"),
        ({"schedule": "quadratic"}, r"schedule='quadratic' is unknown; choose one of cubic, linear, one-shot"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(CompressionError, match=message):
        GradualPruning(**({"amount": 0.5} | wrong))


def test_more_weights_than_there_are_are_refused_before_training(tmp_path):
    model = build()
    with pytest.raises(CompressionError, match=r"amount=1000000000 is more than the \d+ prunable weights"):
        train(model, tmp_path, GradualPruning(10**9), max_steps=1)
    assert sparsity_report(model).zeros == 0


def test_a_model_without_matrices_is_refused_by_the_schedule(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(CompressionError, match="has no weight matrix"):
        GradualPruning(0.5).on_train_begin(args, TrainerState(), TrainerControl(), model=nn.LayerNorm(3))
