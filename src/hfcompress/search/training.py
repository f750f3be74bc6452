"""One rung is trained: distilled from the original, and stopped where held-out rows say so."""

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
from hfcompress.search.processes import agree, processes
from hfcompress.search.rows import Parts

_PATIENCE = 4  # evaluations without a better one
_EVALUATIONS = 2  # in an epoch


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        epochs: How many were done.
        best: After how many epochs the weights are that were kept; 0 for those before the training.
        losses: On the rows that stop it, of the weights before and of those that were kept.
    """

    epochs: float
    best: float
    losses: tuple[float, float]


def default_arguments(output_dir: str, problem: Problem, *, labelled: bool, seed: int) -> DistillationArguments:
    """Return the arguments that rungs are trained with where none are given."""
    regression = problem == "regression"
    precision = mixed_precision()
    accelerator = current_accelerator() is not None
    settings: dict[str, Any] = {"bf16": True} if precision.name == "bf16" and accelerator else {}
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
        dataloader_pin_memory=accelerator,
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
    """Train a student, in place; the weights that do best on the rows that stop it are kept, at worst those it had.

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
    own.disable_tqdm, own.load_best_model_at_end = True, False
    has_stop = len(parts.stop) > 0
    own.eval_strategy, own.eval_steps = ("steps", 1.0) if has_stop else ("no", None)
    keep = _KeepBest(deadline, tick)
    trainer = DistillationTrainer(
        model=student,
        args=own,
        teacher=teacher,
        train_dataset=parts.train.remove_columns([n for n in ("hfcompress_unlabelled",) if n in parts.train.features]),
        eval_dataset=parts.stop if has_stop else None,
        processing_class=tokenizer,
        callbacks=[keep],
    )
    trainer.remove_callback(PrinterCallback)  # one bar shows how far it is
    if has_stop:
        steps = len(trainer.get_train_dataloader()) // max(1, own.gradient_accumulation_steps)
        own.eval_steps = max(1, steps // _EVALUATIONS)
        trainer.evaluate()
    trainer.train()
    keep.restore(student)
    student.eval()
    first, best = keep.losses
    return Trained(round(float(trainer.state.epoch or 0), 2), round(keep.best_epoch, 2), (first, best))


class _KeepBest(TrainerCallback):
    """Keeps the weights with the least loss on held-out rows, and stops where there is no better one, or no time."""

    def __init__(self, deadline: float | None, tick: Callable[[float], None]) -> None:
        self._deadline, self._tick = deadline, tick
        self._state: dict[str, Tensor] = {}
        self._first, self._least, self._waited = float("nan"), float("inf"), 0
        self.best_epoch = 0.0

    @property
    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def losses(self) -> tuple[float, float]:
        """The loss before the training, and the least."""
        return self._first, self._least

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the weights if they are better."""
        metrics, model = kwargs["metrics"], kwargs["model"]
        if agree(self._is_late):  # at the same step in all processes
            control.should_training_stop = True
        loss = metrics.get("eval_distillation_loss", metrics.get("eval_loss", float("inf")))
        if self._first != self._first:
            self._first = loss
        if loss < self._least:
            self._least, self._waited, self.best_epoch = loss, 0, float(state.epoch or 0)
            inner = model.module if hasattr(model, "module") else model
            self._state = {name: value.detach().cpu().clone() for name, value in inner.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= _PATIENCE:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how far it is, and stop at the deadline; of several processes at the next evaluation."""
        self._tick(state.global_step / max(1, state.max_steps))
        if self._is_late and processes().num_processes == 1:
            control.should_training_stop = True
            control.should_evaluate = bool(self._state)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give a model the weights that were kept, in place."""
        if self._state:
            model.load_state_dict(self._state)
