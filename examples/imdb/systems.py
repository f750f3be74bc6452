"""Trains one system by the paper's protocol, epoch by epoch, and can go on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed

import hfcompress as hfc
from examples.imdb.data import Reviews, encode
from examples.imdb.models import Start, load
from examples.imdb.settings import Preset, System

RANKED = 256  # reviews by which heads and neurons are ranked
HISTORY = (
    "epoch",
    "train_accuracy",
    "train_loss",
    "eval_accuracy",
    "eval_loss",
    "eval_distillation_loss",
    "eval_agreement",
    "seconds",
)


@dataclass(frozen=True)
class Run:
    """All that the systems of one seed have in common."""

    preset: Preset
    starts: dict[str, Start]
    reviews: Reviews
    loss: Literal["cross_entropy", "mse"]
    bf16: bool
    seed: int
    folder: Path


class EpochLines(ProgressCallback):
    """The Trainer's progress bar, with one line an epoch instead of the whole log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print the epoch's accuracies."""
        if logs and self.training_bar is not None and "train_accuracy" in logs:
            self.training_bar.write(
                f"  epoch {round(logs['epoch'])}: accuracy train {logs['train_accuracy']:.3f}, validation "
                f"{logs['eval_accuracy']:.3f}; loss train {logs['train_loss']:.3f}, validation "
                f"{logs['eval_distillation_loss']:.3f}"
            )


class EpochTrainer(hfc.DistillationTrainer):
    """Logs, beside each epoch's evaluation, the mean accuracy and loss over that epoch's training batches.

    That is how the paper's training curves were drawn: with dropout, while the weights were still changing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._correct, self._loss, self._seen, self._started = 0.0, 0.0, 0, time.perf_counter()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to count, and to time, with the first epoch."""
        self._begin_epoch()
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Count correct answers on the way."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        labels = inputs["labels"]
        self._correct += float((outputs["logits"].argmax(-1) == labels).sum())
        self._loss += float(loss.detach()) * len(labels)
        self._seen += len(labels)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the epoch's training figures to the log of its evaluation."""
        if "eval_loss" in logs and self._seen:
            logs["train_accuracy"] = self._correct / self._seen
            logs["train_loss"] = self._loss / self._seen
            logs["seconds"] = time.perf_counter() - self._started
            self._begin_epoch()
        super().log(logs, start_time)


def train_system(system: System, run: Run) -> dict[str, Any]:
    """Train a system, or return its result if that was done before.

    Args:
        system: Which one. All but BERT and GPT-2 need BERT's result.
        run: What the systems of this seed share.

    Returns:
        Its figures, as written to ``result.json`` in its folder.
    """
    folder = run.folder / system.key
    result_file = folder / "result.json"
    if result_file.exists():
        return dict(json.loads(result_file.read_text()))
    set_seed(run.seed)
    model, tokenizer = _starting_point(system, run)
    data = {
        "train": _encode(run.reviews.train, tokenizer, system, run),
        "validation": _encode(run.reviews.validation, tokenizer, system, run),
    }
    if system.taught:
        data = _with_teacher_logits(data, run)
    trainer = EpochTrainer(
        model=model,
        args=_arguments(system, run, folder / "checkpoints"),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        callbacks=_callbacks(system),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLines)
    sparsity_before = hfc.sparsity_report(model).sparsity
    start = trainer.evaluate(metric_key_prefix="start")
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))

    train, validation = (trainer.predict(data[part]) for part in ("train", "validation"))
    save_folder = folder / "model"
    model.save_pretrained(save_folder)
    tokenizer.save_pretrained(save_folder)
    result = {
        "history": [
            {name: entry[name] for name in HISTORY if name in entry}
            for entry in trainer.state.log_history
            if "eval_loss" in entry
        ],
        "start": {"validation_accuracy": start["start_accuracy"], "validation_cross_entropy": start["start_loss"]},
        "train_accuracy": train.metrics["test_accuracy"],
        "train_cross_entropy": train.metrics["test_loss"],
        "train_examples": len(data["train"]),
        "validation_accuracy": validation.metrics["test_accuracy"],
        "validation_cross_entropy": validation.metrics["test_loss"],
        "validation_examples": len(data["validation"]),
        "f1": float(f1_score(validation.label_ids, validation.predictions.argmax(-1))),
        "sparsity_before_training": sparsity_before,
        "sparsity": hfc.sparsity_report(model).sparsity,
        "layers": model.config.num_hidden_layers,
        "bytes_on_disk": sum(file.stat().st_size for file in save_folder.glob("*.safetensors")),
    }
    write_json(result_file, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def test_system(system: System, run: Run) -> dict[str, Any]:
    """Test a trained system on reviews that it was neither trained nor chosen on, or return what was found before.

    Args:
        system: Which one; `train_system` is done with it.
        run: What the systems of this seed share.

    Returns:
        Its figures, as written to ``test.json`` in its folder; none where no reviews are left to test on.
    """
    file = run.folder / system.key / "test.json"
    if run.reviews.test is None or file.exists():
        return dict(json.loads(file.read_text())) if file.exists() else {}
    model, tokenizer = load_system(system, run)
    found = _predictor(model, tokenizer, run, file.parent).predict(_encode(run.reviews.test, tokenizer, system, run))
    result = {
        "test_accuracy": found.metrics["test_accuracy"],
        "test_cross_entropy": found.metrics["test_loss"],
        "test_examples": len(run.reviews.test),
    }
    write_json(file, result)
    return result


def load_system(system: System, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the trained model of a system, and its tokenizer."""
    return load(str(run.folder / system.key / "model"))


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def _starting_point(system: System, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if system.student or system.key in run.starts:
        return run.starts["student" if system.student else system.key].make()
    model, tokenizer = load(str(run.folder / "bert" / "model"))
    if system.amount is not None and system.pruned == "at once":
        hfc.prune_global_l1(model, system.amount)
    if system.flops is not None:
        rows = _encode(run.reviews.train.select(range(min(RANKED, len(run.reviews.train)))), tokenizer, system, run)
        hfc.prune_structured(model, flops=system.flops, importance="fisher", dataset=rows)
    return model, tokenizer


def _encode(data: Dataset, tokenizer: PreTrainedTokenizerBase, system: System, run: Run) -> Dataset:
    encoded = encode(data, tokenizer, run.preset.max_length)
    if not system.wrong_ids:
        return encoded
    # A vocabulary of the same size with other words at the ids; that of the special tokens is the same.
    special = set(tokenizer.all_special_ids)
    words = [index for index in range(len(tokenizer)) if index not in special]
    mixed = np.random.default_rng(run.seed).permutation(words).tolist()
    other = dict(zip(words, mixed, strict=True)) | {index: index for index in special}
    return encoded.map(lambda row: {"input_ids": [other[index] for index in row["input_ids"]]})


def _callbacks(system: System) -> list[TrainerCallback]:
    if system.amount is None or not system.keep:
        return []
    if system.pruned == "by quarters":
        # Of five epochs, the first four begin with a pruning.
        return [hfc.GradualPruning(system.amount, schedule="linear", start=0.0, end=0.6, every=0.2)]
    return [hfc.KeepSparsity()]


def _arguments(system: System, run: Run, folder: Path) -> hfc.DistillationArguments:
    preset, student = run.preset, system.student
    further = not student and system.key not in run.starts
    return hfc.DistillationArguments(
        output_dir=str(folder),
        alpha=system.alpha if system.taught else 0.0,
        teacher_loss="mse",
        label_loss="mse" if student or system.taught else run.loss,
        num_train_epochs=preset.student_epochs if student else preset.further_epochs if further else preset.epochs,
        per_device_train_batch_size=preset.student_batch_size if student else preset.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=preset.learning_rate,
        lr_scheduler_type="constant",
        adam_epsilon=1e-8,
        weight_decay=0.01,
        max_grad_norm=0.0,  # the paper names no clipping
        bf16=run.bf16,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=False,
        seed=run.seed,
        **machine_arguments(),
    )


def machine_arguments() -> dict[str, Any]:
    """Training arguments that depend on whether there is a GPU."""
    gpu = torch.accelerator.is_available()
    return {"use_cpu": not gpu, "dataloader_pin_memory": gpu}


def _with_teacher_logits(data: dict[str, Dataset], run: Run) -> dict[str, Dataset]:
    """Add the fine-tuned BERT's answers, read with its own tokenizer, once for all epochs and systems."""
    teacher, tokenizer = load(str(run.folder / "bert" / "model"))
    for part, texts in {"train": run.reviews.train, "validation": run.reviews.validation}.items():
        answered = hfc.cache_teacher_logits(
            teacher,
            texts,
            processing_class=tokenizer,
            max_length=run.preset.max_length,
            bf16=run.bf16,
            cache_dir=run.folder / "bert" / "answers",
        )
        data[part] = data[part].add_column("teacher_logits", list(answered["teacher_logits"]))
    return data


def _predictor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Run, folder: Path
) -> hfc.DistillationTrainer:
    """A trainer that only predicts."""
    arguments = hfc.DistillationArguments(
        output_dir=str(folder / "predictions"),
        alpha=0.0,
        label_loss="cross_entropy",
        per_device_eval_batch_size=32,
        bf16=run.bf16,
        report_to="none",
        **machine_arguments(),
    )
    return hfc.DistillationTrainer(model=model, args=arguments, processing_class=tokenizer)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; the Trainer writes its state last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for checkpoint in [c for c in checkpoints if not (c / "trainer_state.json").exists()]:
        shutil.rmtree(checkpoint)
    whole = [checkpoint for checkpoint in checkpoints if checkpoint.exists()]
    return str(whole[-1]) if whole else None
