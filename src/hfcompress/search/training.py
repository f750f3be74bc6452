"""One rung is trained: distilled from the original; held-out rows say whether that is kept."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from hfcompress.compat import current_accelerator, mixed_precision
from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.trainer import DistillationTrainer
from hfcompress.losses import Problem
from hfcompress.report.intervals import paired_interval
from hfcompress.search.processes import agree, processes
from hfcompress.search.rows import Parts

_LOOK = 50  # steps between looks of several processes at the clock


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        epochs: How many were done.
        is_kept: Whether the weights are those after them, or those before.
        scores: On the held-out rows, before and after: accuracy, or minus the mean squared error; None without rows.
    """

    epochs: float
    is_kept: bool
    scores: tuple[float, float] | None


def default_arguments(output_dir: str, problem: Problem, *, labelled: bool, seed: int) -> DistillationArguments:
    """Return the arguments that rungs are trained with where none are given."""
    regression = problem == "regression"
    precision, on_cpu = mixed_precision().name, current_accelerator() is None
    settings: dict[str, Any] = {} if precision == "no" else {precision: True}
    args = DistillationArguments(
        output_dir=output_dir,
        num_train_epochs=4,
        learning_rate=5e-5,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        alpha=0.5 if labelled else 1.0,
        teacher_loss="mse" if regression else "kl",
        label_loss="mse" if regression else "cross_entropy",
        temperature=1.0 if regression else 2.0,
        lr_scheduler_type="linear",
        warmup_steps=50,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,  # or bf16 is refused there
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
        **settings,
    )
    args.train_sampling_strategy = "group_by_length"  # before transformers 5.2 an unknown name, without effect
    return args


def train_rung(
    student: PreTrainedModel,
    teacher: nn.Module | None,
    parts: Parts,
    args: DistillationArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    deadline: float | None,
    tick: Callable[[float], None],
) -> Trained:
    """Train a student for the whole schedule, in place, and undo that if it is worse on held-out rows.

    Nothing is chosen between the epochs: on rows as few as are held out, chance decides then.

    Args:
        student: In float32.
        teacher: Where the logits in the rows do not suffice: layers are compared, or its classes have another order.
        parts: With the teacher's logits.
        args: Of each rung.
        tokenizer: Pads.
        deadline: By `time.monotonic`, when to stop; None for no such time.
        tick: Called with what share of the training is done.
    """
    own = copy.copy(args)
    own.disable_tqdm, own.load_best_model_at_end, own.eval_strategy = True, False, "no"
    trainer = DistillationTrainer(
        model=student,
        args=own,
        teacher=teacher,
        train_dataset=parts.train.remove_columns([n for n in ("hfcompress_unlabelled",) if n in parts.train.features]),
        processing_class=tokenizer,
        callbacks=[_Watch(deadline, tick)],
    )
    trainer.remove_callback(PrinterCallback)  # one bar shows how far it is
    state = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
    before = _scores(trainer, parts)
    trainer.train()
    after = _scores(trainer, parts)
    is_kept = not agree(is_worse(after - before, parts.problem))
    if not is_kept:
        student.load_state_dict(state)
    student.eval()
    scores = (float(before.mean()), float(after.mean())) if len(before) else None
    return Trained(round(float(trainer.state.epoch or 0), 2), is_kept, scores)


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
    """Return a score for each held-out row: 1 if it is predicted rightly, the share of its labels, minus an error."""
    if not len(parts.check):
        return torch.zeros(0)
    found: Any = trainer.predict(parts.check)
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    logits, labels = torch.as_tensor(logits).double(), torch.as_tensor(found.label_ids)
    if parts.problem == "single_label_classification":
        return (logits.argmax(-1) == labels.flatten()).double()
    logits = logits.reshape(len(logits), -1)
    labels = labels.reshape(len(labels), -1).double()
    if parts.problem == "regression":
        return -(logits - labels).square().mean(-1)
    return ((logits > 0) == (labels > 0.5)).double().mean(-1)


class _Watch(TrainerCallback):
    """Says how far the training is, and stops it where there is no time left."""

    def __init__(self, deadline: float | None, tick: Callable[[float], None]) -> None:
        self._deadline, self._tick = deadline, tick

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock; several processes do so at the same steps."""
        self._tick(state.global_step / max(1, state.max_steps))
        alone = processes().num_processes == 1
        if self._deadline is not None and (alone or state.global_step % _LOOK == 0):
            control.should_training_stop |= agree(time.monotonic() > self._deadline)
