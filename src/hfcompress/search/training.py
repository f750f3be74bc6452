"""One rung is trained: distilled from the original; held-out rows say how long, and which weights are kept."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from hfcompress.compat import current_accelerator, mixed_precision
from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.trainer import DistillationTrainer
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.report.intervals import paired_interval
from hfcompress.search.deadline import Deadline
from hfcompress.search.processes import PATIENCE, agree, processes
from hfcompress.search.progress import is_watched
from hfcompress.search.reading import UNLABELLED
from hfcompress.search.rows import Parts
from hfcompress.search.structure import Structure

_WARM_UP = 50  # steps
_LOOK = 50  # steps between looks of several processes at the clock
_PATIENCE = 2  # epochs in a row that do harm, after which a training is stopped


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        epochs: How many were done.
        kept: After how many of them the weights are those that the student has; 0 before the training.
        scores: On the held-out rows, before and after: accuracy, or minus the mean squared error; None without rows.
        is_stopped: Whether there was no time for the rest.
    """

    epochs: float
    kept: float
    scores: tuple[float, float] | None
    is_stopped: bool


def default_arguments(
    output_dir: str, problem: Problem, *, labelled: bool, seed: int, rows: int, **given: Any
) -> DistillationArguments:
    """Return the arguments that rungs are trained with where none are given.

    Args:
        output_dir: A folder that the Trainer wants.
        problem: What the labels mean.
        labelled: Whether rows have labels.
        seed: Of the training.
        rows: How many rows there are to learn from.
        given: Arguments that are given all the same.
    """
    regression = problem == "regression"
    precision, on_cpu = mixed_precision().name, current_accelerator() is None
    settings: dict[str, Any] = {"num_train_epochs": 4, "learning_rate": 5e-5, "per_device_train_batch_size": 16}
    settings |= {} if precision == "no" else {precision: True}
    args = DistillationArguments(
        output_dir=output_dir,
        per_device_eval_batch_size=64,
        alpha=0.5 if labelled else 1.0,
        teacher_loss="mse" if regression else "kl",
        label_loss="mse" if regression else "cross_entropy",
        temperature=1.0 if regression else 2.0,
        lr_scheduler_type="linear",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,  # or bf16 is refused there
        disable_tqdm=not is_watched(),
        ddp_timeout=PATIENCE,
        seed=seed,
        **settings | given,
    )
    updates = args.num_train_epochs * rows / (args.per_device_train_batch_size * args.world_size)
    args.warmup_steps = min(_WARM_UP, int(updates / 10))  # of few rows 50 would be the whole training
    args.train_sampling_strategy = "group_by_length"  # before transformers 5.2 an unknown name, without effect
    return args


def check_training(
    original: PreTrainedModel,
    teacher: nn.Module | None,
    parts: Parts,
    args: DistillationArguments,
    tokenizer: PreTrainedTokenizerBase,
    structure: Structure,
) -> None:
    """Refuse arguments by which no rung can be trained, before anything is searched for or written.

    Args:
        original: The original.
        teacher: Where layers are compared; it is left as it was.
        parts: The rows.
        args: Of each rung.
        tokenizer: Pads.
        structure: The blocks of the original.

    Raises:
        CompressionError: They fit no rung, or only rungs that have a number of layers or heads that is not known yet.
    """
    if args.alpha < 1 and not parts.labelled:
        raise CompressionError(f"alpha={args.alpha:g} needs labels, and train_dataset has none; set alpha=1 in args.")
    if args.hidden_weight and args.layer_map is not None and any(structure.removable):
        raise CompressionError(
            f"layer_map={args.layer_map!r} is of a student with a known number of layers, but the search decides which "
            "are left out; leave layer_map=None, by which they are compared at even spaces."
        )
    widths = {part.size for group in structure.groups if group.kind == "heads" for part in group.consumers}
    if args.relation_weight and args.relation_heads and any(width % args.relation_heads for width in widths):
        raise CompressionError(
            f"relation_heads={args.relation_heads} must divide the width of a head, {max(widths)}, so that it divides "
            "that of any number of them; leave relation_heads=None."
        )
    if args.max_steps <= 0 and not 0 < args.num_train_epochs < math.inf:
        raise CompressionError(f"num_train_epochs={args.num_train_epochs:g} must be a finite number above 0.")
    own = copy.copy(args)
    own.train_sampling_strategy, own.group_by_length = "random", False  # not to read the length of every row for this
    with tempfile.TemporaryDirectory() as own.output_dir:  # which a Trainer makes
        trainer = _make_trainer(original, copy.deepcopy(teacher), parts, own, tokenizer)
        try:  # what a Trainer makes as late as in train()
            batches = len(trainer.get_train_dataloader())
            trainer.create_optimizer_and_scheduler(num_training_steps=100)
        except (ImportError, TypeError, ValueError, RuntimeError) as error:
            raise CompressionError(
                f"No model can be trained with these args: {error}".rstrip(".") + "; change them (optim, "
                "lr_scheduler_type and their arguments)."
            ) from error
    if not batches:
        raise CompressionError(
            f"per_device_train_batch_size={args.per_device_train_batch_size} with dataloader_drop_last=True leaves no "
            f"batch of the {len(parts.train)} rows to learn from; set one of them lower, or to False."
        )


def train_rung(
    student: PreTrainedModel,
    teacher: nn.Module | None,
    parts: Parts,
    args: DistillationArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    deadline: Deadline,
    tick: Callable[[float], None],
) -> Trained:
    """Train a student, in place; held-out rows, predicted before and after each epoch, say which weights it keeps.

    Those at the end, unless an epoch's before are better by more than chance: on rows as few as are held out, chance
    decides which epoch looks best. The training is stopped early where it does harm, or diverged.

    Args:
        student: In float32.
        teacher: Where the logits in the rows do not suffice: layers are compared, or its classes have another order.
        parts: With the teacher's logits.
        args: Of each rung.
        tokenizer: Pads.
        deadline: When to stop.
        tick: Called with what share of the training is done.
    """
    trainer = _make_trainer(student, teacher, parts, args, tokenizer)
    watch = _Watch(trainer, student, parts, deadline, tick)
    trainer.add_callback(watch)
    try:
        with _unchanged_forward(student):
            trainer.train()
    finally:
        trainer.remove_callback(watch)  # each refers to the other, and would hold what both do
    epochs = float(trainer.state.epoch or 0)
    kept = watch.restore_best() if watch.is_harmed else epochs
    student.eval()
    return Trained(epochs, kept, watch.scores, watch.is_late)


@contextmanager
def _unchanged_forward(model: PreTrainedModel) -> Iterator[None]:
    """Take off a model what accelerate puts on it, and otherwise leaves there.

    Under autocast, which replaces ``forward``, a model would be timed and exported in another precision than it is
    saved in. And what is marked as prepared is not wrapped to be trained by several processes: each would train alone.
    """
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    held = {name: vars(model)[name] for name in names if name in vars(model)}
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(held)


def _make_trainer(
    student: PreTrainedModel,
    teacher: nn.Module | None,
    parts: Parts,
    args: DistillationArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> DistillationTrainer:
    own = copy.copy(args)
    own.disable_tqdm, own.load_best_model_at_end, own.eval_strategy = True, False, "no"
    own.save_strategy = "no"  # a rung that is interrupted is made again
    # Rows are predicted before and after, as whole logits, by weights that stay in float32.
    own.bf16_full_eval = own.fp16_full_eval = own.eval_on_start = own.prediction_loss_only = False
    own.eval_do_concat_batches = True
    own.dataloader_persistent_workers = False  # those of each prediction would stay
    trainer = DistillationTrainer(
        model=student,
        args=own,
        teacher=teacher,
        train_dataset=parts.train.remove_columns([n for n in (UNLABELLED,) if n in parts.train.features]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # one bar shows how far it is
    return trainer


def is_worse(differences: Tensor, problem: Problem) -> bool:
    """Whether paired differences of scores, shape (rows,), are below 0 by more than chance: their 95 % interval is.

    Example:
        >>> losses = torch.tensor([-1.0, -1, 0, 0])
        >>> [is_worse(losses.repeat(times), "single_label_classification") for times in (1, 5)]
        [False, True]
    """
    largest = None if problem == "regression" else 1.0
    return len(differences) > 1 and paired_interval(differences, largest=largest)[1] < 0


def _scores(trainer: DistillationTrainer, parts: Parts) -> Tensor:
    """Return a score for each held-out row: 1 if it is predicted rightly, the share of its labels, minus an error.

    It is NaN where logits are not finite: the training diverged.
    """
    if not len(parts.check):
        return torch.zeros(0)
    found: Any = trainer.predict(parts.check)
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    logits, labels = torch.as_tensor(logits).double(), torch.as_tensor(found.label_ids)
    if parts.problem == "single_label_classification":
        scores = (logits.argmax(-1) == labels.flatten()).double()
    else:
        logits = logits.reshape(len(logits), -1)
        labels = labels.reshape(len(labels), -1).double()
        if parts.problem == "regression":
            scores = -(logits - labels).square().mean(-1)
        else:
            scores = ((logits > 0) == (labels > 0.5)).double().mean(-1)
    return scores.masked_fill(~logits.isfinite().all(-1), math.nan)


class _Watch(TrainerCallback):
    """Says how far a training is, scores its epochs, and stops it where there is no time left or it does harm."""

    def __init__(
        self,
        trainer: DistillationTrainer,
        student: PreTrainedModel,
        parts: Parts,
        deadline: Deadline,
        tick: Callable[[float], None],
    ) -> None:
        self._trainer, self._student, self._parts = trainer, student, parts
        self._deadline, self._tick = deadline, tick
        self._state = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
        self.is_late = False

    @property
    def is_harmed(self) -> bool:
        """Whether the last epoch is worse than the best so far, or than the student was before."""
        return self._harmful > 0

    @property
    def scores(self) -> tuple[float, float] | None:
        """On the held-out rows, before and after; None without rows."""
        return (float(self._first.mean()), float(self._last.mean())) if len(self._first) else None

    def restore_best(self) -> float:
        """Give the student the weights of its best epoch; return which that is."""
        self._student.load_state_dict(self._state)
        return self._best_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the student as it is; auto_find_batch_size comes here again, from the middle of a training."""
        self._student.load_state_dict(self._state)
        self._best_epoch, self._harmful = 0.0, 0
        self._first = self._last = self._best = self._score()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock; several processes do so at the same steps."""
        self._tick(state.global_step / max(1, state.max_steps))
        alone = processes().num_processes == 1
        if alone or state.global_step % _LOOK == 0:
            self.is_late = state.global_step < state.max_steps and self._deadline.is_over
            control.should_training_stop |= self.is_late

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score an epoch, or what there was time for."""
        self._last = self._score()
        has_diverged = not self._last.isfinite().all()
        before = (self._first, self._best)
        is_harmful = has_diverged or any(is_worse(self._last - one, self._parts.problem) for one in before)
        self._harmful = self._harmful + 1 if agree(is_harmful) else 0
        if agree(not has_diverged and not self._last.mean() <= self._best.mean()):  # which may be NaN at first
            self._best, self._best_epoch = self._last, float(state.epoch)
            for name, value in self._student.state_dict().items():
                self._state[name].copy_(value)
        control.should_training_stop |= agree(has_diverged or self._harmful == _PATIENCE)

    def _score(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # from which the rows' loader draws; not to change the training
            return _scores(self._trainer, self._parts)
