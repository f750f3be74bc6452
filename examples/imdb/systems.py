"""Trains and tests one system by the paper's protocol, and resumes where it was stopped."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.metrics import f1_score
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput, get_last_checkpoint

import hfcompress as hfc
from examples.imdb.data import encode
from examples.imdb.environment import current_device, describe_machine, name_machine
from examples.imdb.files import Result
from examples.imdb.jobs import Job
from examples.imdb.models import Pair, Start, load
from examples.imdb.settings import SYSTEMS, Preset, System
from examples.imdb.training import EpochLines, EpochTrainer, SaveSlowEpochs, name_metrics, training_arguments

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
    keep_weights: bool = True  # of all systems, or only of those that others start from or learn from
    encoded: dict[tuple[str, str], Dataset] = field(default_factory=dict)  # by start and part of the reviews
    logits: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)  # by teacher and part

    def result_file(self, key: str) -> Path:
        """Return the file of a system's result."""
        return self.folder / key / "result.json"


def make_job(system: System, run: Run, title: str) -> Job:
    """Return the training and testing of a system, as a job that starts once those are done that it needs."""
    return Job(
        title,
        run.result_file(system.key),
        partial(_compute, system, run),
        [run.result_file(key) for key in system.needs],
    )


def load_system(key: str, run: Run) -> Pair:
    """Load the trained model of a system, and its tokenizer."""
    return load(str(run.folder / key / "model"))


def _compute(system: System, run: Run) -> Result:
    folder = run.folder / system.key
    result = _train_and_test(system, run, folder)
    if system.key in ("bert", "gpt2"):
        _teacher_logits(system.key, run)
    elif not run.keep_weights:
        for file in (folder / "model").glob("*.safetensors"):
            file.unlink()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _train_and_test(system: System, run: Run, folder: Path) -> Result:
    set_seed(run.seed)
    model, tokenizer = _make_model(system, run)
    data = {part: _encode(part, tokenizer, system, run) for part in run.reviews}
    if system.has_teacher:
        for part, logits in _teacher_logits(system.teacher, run).items():
            data[part] = data[part].add_column("teacher_logits", logits)
    trainer = EpochTrainer(
        model=model,
        args=_arguments(system, run, folder / "checkpoints"),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=_tokenizer_of_ids(tokenizer, system, run),
        callbacks=[*_pruning_callbacks(system), SaveSlowEpochs()],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLines)
    sparsity_before = hfc.sparsity_report(model).sparsity
    start = trainer.evaluate(metric_key_prefix="start")
    if system.speedup is None:  # else `compress` has trained it
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))

    predicted = {part: trainer.predict(rows) for part, rows in data.items()}
    metrics: Result = {}
    for part, predictions in predicted.items():
        metrics |= name_metrics(part, predictions)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    validation = predicted["validation"]
    return {
        "history": [{name: entry[name] for name in HISTORY if name in entry} for entry in log],
        "start": {"validation_accuracy": start["start_accuracy"], "validation_cross_entropy": start["start_loss"]},
        **metrics,
        **({"test_correct": _pack_correct(predicted["test"])} if "test" in predicted else {}),
        "f1": float(f1_score(validation.label_ids, validation.predictions.argmax(-1))),
        "sparsity_before_training": sparsity_before,
        "sparsity": hfc.sparsity_report(model).sparsity,
        "layers": model.config.num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes_on_disk": sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors")),
        "padded_tokens": _padded_tokens(data["validation"], run.preset.batch_size),
        "machine": name_machine(describe_machine()),
        "config": {**model.config.to_diff_dict(), "model_type": model.config.model_type},
    }


def _pack_correct(predicted: PredictionOutput) -> str:
    """Return which predictions are correct, a bit each, as hexadecimal digits; the last byte is filled up."""
    correct = predicted.predictions.argmax(-1) == predicted.label_ids
    return np.packbits(correct).tobytes().hex()


def _padded_tokens(rows: Dataset, batch_size: int) -> float:
    """Return the mean over the batches of how long their rows are once padded."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    return statistics.mean(max(lengths[first : first + batch_size]) for first in range(0, len(lengths), batch_size))


def _make_model(system: System, run: Run) -> Pair:
    if not system.starts_from_bert:
        return run.starts["student" if system.student else system.key].make()
    model, tokenizer = load_system("bert", run)
    if system.speedup is not None:
        return _make_fast(model, tokenizer, system, run), tokenizer
    if system.amount is not None and system.pruned == "at once":
        hfc.prune_global_l1(model, system.amount)
    if system.flops is not None:
        rows = _encode("train", tokenizer, system, run)
        rows = rows.take(min(RANKING_REVIEWS, len(rows)))
        model.to(current_device())
        hfc.prune_structured(model, flops=system.flops, importance="fisher", dataset=rows)
    return model, tokenizer


def _make_fast(bert: Any, tokenizer: PreTrainedTokenizerBase, system: System, run: Run) -> Any:
    """Return a model of the ladder that `compress` makes, with its own settings, timed on the processor."""
    ladder = hfc.compress(
        bert,
        run.reviews["train"],
        processing_class=tokenizer,
        eval_dataset=run.reviews["validation"],
        speedup=[one.speedup for one in SYSTEMS if one.speedup is not None],
        device="cpu",
        output_dir=run.folder / "ladder",
        max_length=run.preset.max_length,
        seed=run.seed,
    )
    return ladder[f"{system.speedup:g}x"].model


def _encode(part: str, tokenizer: PreTrainedTokenizerBase, system: System, run: Run) -> Dataset:
    """Return a part of the reviews as the ids that the system reads."""
    other = _tokenizer_of_ids(tokenizer, system, run)
    key = "student" if system.student and other is tokenizer else "gpt2" if system.key == "gpt2" else "bert"
    if (key, part) not in run.encoded:
        run.encoded[key, part] = encode(run.reviews[part], other, run.preset.max_length)
    encoded = run.encoded[key, part]
    if not system.wrong_ids:
        return encoded
    if other is tokenizer:
        words = _other_words(tokenizer, run.seed)
    else:  # ids that the student does not have are its unknown word
        words = np.arange(len(other))
        words[len(tokenizer) :] = tokenizer.unk_token_id
    return encoded.map(lambda row: {"input_ids": words[row["input_ids"]].tolist()})


def _tokenizer_of_ids(tokenizer: PreTrainedTokenizerBase, system: System, run: Run) -> PreTrainedTokenizerBase:
    """Return the tokenizer whose ids the system reads: with wrong ids, that of BERT where it is another."""
    if not system.wrong_ids:
        return tokenizer
    of_bert = load_system("bert", run)[1]
    return tokenizer if of_bert.get_vocab() == tokenizer.get_vocab() else of_bert


def _other_words(tokenizer: PreTrainedTokenizerBase, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each id another, as in a vocabulary of the same size; those of the special tokens are the same."""
    special = set(tokenizer.all_special_ids)
    words = [index for index in range(len(tokenizer)) if index not in special]
    other = np.arange(len(tokenizer))
    other[words] = np.random.default_rng(seed).permutation(words)
    return other


def _teacher_logits(key: str, run: Run) -> dict[str, list[list[float]]]:
    """Return the logits of a fine-tuned model by part of the reviews, computed once for all epochs and systems.

    They are from the ids of its own tokenizer.
    """
    if key not in run.logits:
        teacher, tokenizer = load_system(key, run)
        for part in ("train", "validation"):
            cached = hfc.cache_teacher_logits(
                teacher,
                run.reviews[part],
                processing_class=tokenizer,
                max_length=run.preset.max_length,
                bf16=run.precision == "bf16",
                cache_dir=run.folder / key / "teacher_logits",
            )
            run.logits.setdefault(key, {})[part] = list(cached["teacher_logits"])
    return run.logits[key]


def _pruning_callbacks(system: System) -> list[TrainerCallback]:
    if system.amount is None or not system.keep:
        return []
    if system.pruned == "by quarters":
        # Of five epochs, the first four begin with a pruning.
        return [hfc.GradualPruning(system.amount, schedule="linear", start=0.0, end=0.6, every=0.2)]
    return [hfc.KeepSparsity()]


def _arguments(system: System, run: Run, folder: Path) -> hfc.DistillationArguments:
    preset, student = run.preset, system.student
    epochs = preset.student_epochs if student else preset.further_epochs if system.starts_from_bert else preset.epochs
    learning_rate = preset.learning_rate
    if system.key == "gpt2" and run.starts["gpt2"].is_new:
        epochs, learning_rate = preset.scratch.epochs or epochs, preset.scratch.learning_rate or learning_rate
    return training_arguments(
        folder,
        run.precision,
        alpha=system.alpha if system.has_teacher else 0.0,
        teacher_loss="mse",
        label_loss="mse" if student or system.has_teacher else run.loss,
        num_train_epochs=epochs,
        per_device_train_batch_size=preset.student_batch_size if student else preset.batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        adam_epsilon=1e-8,
        weight_decay=0.01,
        max_grad_norm=0.0,  # the paper names no clipping
        eval_strategy="epoch",
        save_strategy="no",  # see SaveSlowEpochs
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
