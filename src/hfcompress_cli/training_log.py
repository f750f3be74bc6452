"""What a training reports: its steps, and its log in lines that fit a terminal."""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from typing_extensions import override

from hfcompress.compat import mixed_precision
from hfcompress.progress import Listener, listener

KEPT_BY = "kept_by"  # a figure that the best epoch has the most of, see class_figures
HIDDEN = {"total_flos", f"eval_{KEPT_BY}", "eval_model_preparation_time"}  # what is in the log and not shown


class TrainingLog(TrainerCallback):
    """Reports the steps of a training, and writes its log in lines that fit a terminal."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._stages: list[str] = []
        self._is_training = False  # measuring before and after is logged by what measures

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin the stage."""
        self._listener, self._is_training = listener() if state.is_world_process_zero else None, True
        self._begin("training", state.max_steps)

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an update."""
        self._end("evaluating")
        if self._listener is not None:
            self._listener.set_done(state.global_step)

    @override
    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Count a batch of an evaluation."""
        if self._stages[-1:] == ["training"]:
            with_length = hasattr(eval_dataloader, "__len__")
            self._begin("evaluating", len(eval_dataloader) if with_length else None)
        if self._stages and self._listener is not None:
            self._listener.advance()

    @override
    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the evaluation."""
        self._end("evaluating")

    @override
    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a log: its numbers but for how fast it was."""
        if self._is_training and state.is_world_process_zero and logs:
            hidden = HIDDEN | ({"eval_distillation_loss"} if args.alpha == 0 else set())  # eval_loss, smoothed
            shown = {n: v for n, v in logs.items() if n not in hidden and not n.endswith(("per_second", "runtime"))}
            print(log_lines(shown), file=sys.stderr)

    @override
    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the stage."""
        self._end("evaluating")
        self._end("training")
        self._is_training = False

    def _begin(self, what: str, total: int | None) -> None:
        if self._listener is not None:
            self._stages.append(what)
            self._listener.begin(what, total)

    def _end(self, what: str) -> None:
        if self._listener is not None and self._stages[-1:] == [what]:
            self._stages.pop()
            self._listener.end()


def log_lines(logs: dict[str, Any], columns: int = 80) -> str:
    """Return the numbers of a log with their names, the epoch first, in lines that fit.

    Example:
        >>> log_lines({"loss": 0.51234, "learning_rate": 5e-5, "epoch": 1.5})
        'epoch 1.5: loss 0.5123, learning_rate 5e-05'
    """
    parts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in logs.items()]
    lines = [f"epoch {logs['epoch']:.4g}:" if "epoch" in logs else "log:"]
    parts = [part for name, part in zip(logs, parts, strict=True) if name != "epoch"]
    for number, part in enumerate(parts, start=1):
        part += "," * (number < len(parts))
        if len(lines[-1]) + 1 + len(part) > columns:
            lines.append(" ")
        lines[-1] += f" {part}"
    return "\n".join(lines)


class NotePrecision(TrainerCallback):
    """Says, once a step was done, that the training could take less time: in float32, where bfloat16 is native."""

    _said = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it after the first step of this run."""
        found = mixed_precision(args.device.type)
        if found.name == "bf16" and not (args.bf16 or args.fp16 or args.tf32) and not self._said:
            print(f"Trains in float32; {found.reason}, so --bf16 takes less time.", file=sys.stderr)
        self._said = True
