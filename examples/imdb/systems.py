"""Trains and tests one system by the paper's protocol, and resumes where it was stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.metrics import f1_score
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

import hfcompress as hfc
from examples.imdb.data import encode
from examples.imdb.files import Result, read_or_compute
from examples.imdb.models import Pair, Start, load
from examples.imdb.settings import Preset, System
from examples.imdb.training import EpochLines, EpochTrainer, name_metrics, training_arguments

RANKING_REVIEWS = 256  # by which heads and neurons are ranked
EVALUATED = ("accuracy", "loss", "distillation_loss", "agreement")
HISTORY = ("epoch", "train_accuracy", "train_loss", *(f"eval_{name}" for name in EVALUATED), "seconds")


@dataclass(frozen=True)
class Run:
    """What the systems of one seed share."""

    preset: Preset
    starts: dict[str, Start]
    reviews: DatasetDict
    loss: Literal["cross_entropy", "mse"]
    precision: str
    seed: int
    folder: Path


def train_and_test_system(system: System, run: Run) -> None:
    """Write ``result.json`` and, where reviews are left to test on, ``test.json``; all but GPT-2 need BERT's result."""
    folder = run.folder / system.key
    read_or_compute(folder / "result.json", partial(_train, system, run, folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if "test" in run.reviews:
        read_or_compute(folder / "test.json", partial(_test, system, run, folder))


def load_system(key: str, run: Run) -> Pair:
    """Load the trained model of a system, and its tokenizer."""
    return load(str(run.folder / key / "model"))


def _train(system: System, run: Run, folder: Path) -> Result:
    set_seed(run.seed)
    model, tokenizer = _make_model(system, run)
    data = {part: _encode(run.reviews[part], tokenizer, system, run) for part in ("train", "validation")}
    if system.has_teacher:
        data = {part: _add_teacher_logits(rows, run.reviews[part], run) for part, rows in data.items()}
    trainer = EpochTrainer(
        model=model,
        args=_arguments(system, run, folder / "checkpoints"),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        callbacks=_pruning_callbacks(system),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLines)
    sparsity_before = hfc.sparsity_report(model).sparsity
    start = trainer.evaluate(metric_key_prefix="start")
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))

    train, validation = (trainer.predict(data[part]) for part in ("train", "validation"))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "history": [{name: entry[name] for name in HISTORY if name in entry} for entry in log],
        "start": {"validation_accuracy": start["start_accuracy"], "validation_cross_entropy": start["start_loss"]},
        **name_metrics("train", train),
        **name_metrics("validation", validation),
        "f1": float(f1_score(validation.label_ids, validation.predictions.argmax(-1))),
        "sparsity_before_training": sparsity_before,
        "sparsity": hfc.sparsity_report(model).sparsity,
        "layers": model.config.num_hidden_layers,
        "bytes_on_disk": sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors")),
    }


def _test(system: System, run: Run, folder: Path) -> Result:
    model, tokenizer = load_system(system.key, run)
    arguments = training_arguments(folder / "predictions", run.precision, alpha=0.0, label_loss="cross_entropy")
    trainer = hfc.DistillationTrainer(model=model, args=arguments, processing_class=tokenizer)
    return name_metrics("test", trainer.predict(_encode(run.reviews["test"], tokenizer, system, run)))


def _make_model(system: System, run: Run) -> Pair:
    if not system.starts_from_bert:
        return run.starts["student" if system.student else system.key].make()
    model, tokenizer = load_system("bert", run)
    if system.amount is not None and system.pruned == "at once":
        hfc.prune_global_l1(model, system.amount)
    if system.flops is not None:
        reviews = run.reviews["train"]
        rows = _encode(reviews.take(min(RANKING_REVIEWS, len(reviews))), tokenizer, system, run)
        hfc.prune_structured(model, flops=system.flops, importance="fisher", dataset=rows)
    return model, tokenizer


def _encode(reviews: Dataset, tokenizer: PreTrainedTokenizerBase, system: System, run: Run) -> Dataset:
    encoded = encode(reviews, tokenizer, run.preset.max_length)
    if not system.wrong_ids:
        return encoded
    # A vocabulary of the same size with other words at the ids; that of the special tokens is the same.
    special = set(tokenizer.all_special_ids)
    words = [index for index in range(len(tokenizer)) if index not in special]
    other = np.arange(len(tokenizer))
    other[words] = np.random.default_rng(run.seed).permutation(words)
    return encoded.map(lambda row: {"input_ids": other[row["input_ids"]].tolist()})


def _add_teacher_logits(rows: Dataset, texts: Dataset, run: Run) -> Dataset:
    """Add the fine-tuned BERT's logits, from its own tokenizer's ids, computed once for all epochs and systems."""
    teacher, tokenizer = load_system("bert", run)
    cached = hfc.cache_teacher_logits(
        teacher,
        texts,
        processing_class=tokenizer,
        max_length=run.preset.max_length,
        bf16=run.precision == "bf16",
        cache_dir=run.folder / "bert" / "teacher_logits",
    )
    return rows.add_column("teacher_logits", list(cached["teacher_logits"]))


def _pruning_callbacks(system: System) -> list[TrainerCallback]:
    if system.amount is None or not system.keep:
        return []
    if system.pruned == "by quarters":
        # Of five epochs, the first four begin with a pruning.
        return [hfc.GradualPruning(system.amount, schedule="linear", start=0.0, end=0.6, every=0.2)]
    return [hfc.KeepSparsity()]


def _arguments(system: System, run: Run, folder: Path) -> hfc.DistillationArguments:
    preset, student = run.preset, system.student
    epochs = preset.further_epochs if system.starts_from_bert else preset.epochs
    return training_arguments(
        folder,
        run.precision,
        alpha=system.alpha if system.has_teacher else 0.0,
        teacher_loss="mse",
        label_loss="mse" if student or system.has_teacher else run.loss,
        num_train_epochs=preset.student_epochs if student else epochs,
        per_device_train_batch_size=preset.student_batch_size if student else preset.batch_size,
        learning_rate=preset.learning_rate,
        lr_scheduler_type="constant",
        adam_epsilon=1e-8,
        weight_decay=0.01,
        max_grad_norm=0.0,  # the paper names no clipping
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=False,
        seed=run.seed,
    )


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, and delete the others; the Trainer writes its state last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(folder) if folder.exists() else None
