"""Trains and tests a classifier, with the accuracy and loss of every epoch as the paper reports them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import PredictionOutput

import hfcompress as hfc


def training_arguments(folder: Path, precision: str, **settings: Any) -> hfc.DistillationArguments:
    """Return the arguments that all trainings here share, on a GPU if there is one, and these settings.

    The precision is ``"bf16"`` or ``"fp16"``, which are mixed with float32, ``"tf32"``, in which GPUs since Ampere
    multiply float32 matrices, or ``"float32"``.
    """
    gpu = torch.accelerator.is_available()
    return hfc.DistillationArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=128 if gpu else 32,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # which would wait for the GPU at every step
        report_to="none",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        tf32=True if precision == "tf32" else None,
        **settings,
    )


class EpochLines(ProgressCallback):
    """The Trainer's progress bar, with one line an epoch instead of the whole log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print the epoch's accuracies and losses."""
        if logs and self.training_bar is not None and "train_accuracy" in logs:
            self.training_bar.write(
                f"  epoch {round(logs['epoch'])}: accuracy train {logs['train_accuracy']:.3f}, validation "
                f"{logs['eval_accuracy']:.3f}; loss train {logs['train_loss']:.3f}, validation "
                f"{logs['eval_distillation_loss']:.3f}"
            )


class SaveSlowEpochs(TrainerCallback):
    """Saves a checkpoint after an epoch, where the last is long ago: with an optimizer, it is three times the model."""

    seconds = 30.0

    def __init__(self) -> None:
        self._saved = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if time.perf_counter() - self._saved >= self.seconds:
            control.should_save = True
            self._saved = time.perf_counter()


class EpochTrainer(hfc.DistillationTrainer):
    """Logs, beside each epoch's evaluation, the mean accuracy and loss over that epoch's training batches.

    That is how the paper's training curves were drawn: with dropout, while the weights were still changing.
    """

    _seen = 0

    def _start_epoch(self) -> None:
        # Sums stay on the device: reading them at each step would make the CPU wait for it.
        self._correct: Tensor | int = 0
        self._loss: Tensor | int = 0
        self._seen, self._started = 0, time.perf_counter()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Count and time from the first epoch on."""
        self._start_epoch()
        return super().train(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Count correct predictions on the way."""
        loss, outputs = super().compute_loss(model, inputs, True, *args, **kwargs)
        labels = inputs["labels"]
        self._correct = self._correct + (outputs["logits"].detach().argmax(-1) == labels).sum()
        self._loss = self._loss + loss.detach().double() * len(labels)
        self._seen += len(labels)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the epoch's training accuracy, loss and time to the log of its evaluation."""
        if "eval_loss" in logs and self._seen:
            logs["train_accuracy"] = float(self._correct) / self._seen
            logs["train_loss"] = float(self._loss) / self._seen
            logs["seconds"] = time.perf_counter() - self._started
            self._start_epoch()
        super().log(logs, start_time)


def name_metrics(part: str, predicted: PredictionOutput) -> dict[str, Any]:
    """Name accuracy, cross-entropy and number of examples of the predictions on a part of the texts."""
    return {
        f"{part}_accuracy": predicted.metrics["test_accuracy"],
        f"{part}_cross_entropy": predicted.metrics["test_loss"],
        f"{part}_examples": len(predicted.predictions),
    }
