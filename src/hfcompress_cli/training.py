"""What the verbs that train share: the training itself, from the folder of its checkpoints to what it came to."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

import hfcompress as hfc
from hfcompress.metrics import multi_label_figures
from hfcompress.models.classifier import get_problem_type, input_names
from hfcompress.models.labels import label_names
from hfcompress.progress import stage
from hfcompress_cli import launch, options
from hfcompress_cli.data import encode, token_limit
from hfcompress_cli.held_out import describe_rows, encode_rows, read_split
from hfcompress_cli.labels import name_classes, read_labels
from hfcompress_cli.outputs import new_folder, seen_before
from hfcompress_cli.tables import Row
from hfcompress_cli.training_arguments import choose_epochs, make_fine_tuning_arguments
from hfcompress_cli.training_log import HIDDEN, KEPT_BY, NotePrecision, TrainingLog

TIMED = 16  # rows to measure speed with, where none were held out


@contextmanager
def output_folders(arguments: argparse.Namespace) -> Iterator[tuple[Path | None, str]]:
    """The folder that becomes the output, in the first process alone, and one for checkpoints that do not stay."""
    if not launch.is_main():
        yield None, "."
        return
    with (
        new_folder(arguments.output, arguments.overwrite) as folder,
        tempfile.TemporaryDirectory(dir=folder, prefix="training-") as training,
    ):
        yield folder, training


class FineTuning:
    """A training on labels alone, which keeps its best epoch: what ``finetune`` and ``prune --data`` do.

    Args:
        arguments: Those of the command.
        checkpoints: Folder of the checkpoints, unless the arguments name another.

    Attributes:
        args: The training arguments.
        table: All rows of the data to train on.
        rows: Those that are trained on.
        held_out: Those that are measured with.
    """

    def __init__(self, arguments: argparse.Namespace, checkpoints: str) -> None:
        measures = arguments.eval_data is not None or arguments.held_out > 0
        self.args = make_fine_tuning_arguments(arguments, checkpoints, measures=measures)
        if launch.is_launched():
            self.args.output_dir = launch.share(self.args.output_dir)
        set_seed(self.args.seed)
        self._arguments, self._columns = arguments, options.text_columns(arguments)
        self._label, self._how = arguments.label_column, options.labels(arguments)
        self.args.weight_column = options.weight_column(arguments, self.args.weight_column)
        self._kept_by = f"eval_{str(arguments.metric_for_best_model).removeprefix('eval_')}"
        split = read_split(arguments, self._label, self.args.weight_column, self.args.seed)
        self.table, self.rows, self.held_out = split.table, split.rows, split.held_out
        self._eval_table = split.eval_table

    def read_names(self) -> None:
        """Read labels as the names of a head that was made for them, not as indices."""
        self._how["read_as"] = self._how["read_as"] or "names"

    def check(self, model: Any) -> None:
        """Refuse a model whose labels are not those of the data."""
        for part in [self.table, *([self._eval_table] if self._eval_table is not self.table else [])]:
            self._read(part, model)

    def start_at_mean(self, model: Any) -> None:
        """Let a new head that predicts numbers begin with the mean of those to train on, in place.

        Its last layer may have no bias to hold it (Llama, GPT-2), and stays as it is then.
        """
        body = set(model.base_model.modules())
        head = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one not in body]
        if get_problem_type(model, "model") == "regression" and head and head[-1].bias is not None:
            with torch.no_grad():
                head[-1].bias.fill_(fmean(self._labels(self.rows, self.table, model)))

    def best_constant(self, model: Any) -> str:
        """Say how good it would be to answer always the same; nothing where a text has several labels."""
        problem = get_problem_type(model, "model")
        if not self.held_out or problem == "multi_label_classification":
            return ""
        labels = self._labels(self.held_out, self._eval_table, model)
        if problem == "regression":
            error = f"{pvariance(labels):,.4g}"
            return f"\nalways answering the mean, {fmean(labels):,.4g}, has a mean squared error of {error} on these"
        ((label, count),) = Counter(labels).most_common(1)
        share = f"{count / len(self.held_out):.1%}"
        return f"\nalways answering {label_names(model)[label]!r:.40} is right for {share} of these"

    def _labels(self, part: Sequence[Row], table: Sequence[Row], model: Any) -> list[Any]:
        """Return the labels of some rows of a table, which is read in one way."""
        chosen = {id(row) for row in part}
        return [one for row, one in zip(table, self._read(table, model), strict=True) if id(row) in chosen]

    def _read(self, rows: Sequence[Row], model: Any) -> list[Any]:
        names = (getattr(rows[0], "class_names", None) or {}).get(self._label, [])
        read_as = self._how["read_as"]
        cells = name_classes([row[self._label] for row in rows], names, model, read_as, say=None)
        return read_labels(cells, model, lambda index: rows[index].place, **self._how)

    def trainer(
        self, model: Any, tokenizer: Any, callbacks: Sequence[TrainerCallback]
    ) -> tuple[hfc.DistillationTrainer, list[dict[str, Any]]]:
        """Return a trainer, and the rows to measure the model with, encoded; without labels if none were held out."""
        arguments, args, problem = self._arguments, self.args, get_problem_type(model, "model")
        whole = model, tokenizer, token_limit(model, tokenizer, arguments.max_length)
        kept = {args.weight_column} if args.weight_column is not None else set()
        known = input_names(model) | {"labels"}
        with stage("encoding the texts"):
            train, evaluated = (
                encode_rows(part, table, self._columns, self._label, whole, known=known, kept=kept, **self._how)
                for part, table in ((self.rows, self.table), (self.held_out, self._eval_table))
            )
            timed = evaluated or encode(self.rows[:TIMED], self._columns, None, *whole)
        if problem == "regression":
            args.label_loss = "mse"
        if arguments.num_train_epochs is None:
            choose_epochs(args, len(train))
        with_classes = problem == "single_label_classification"
        kept_by = ("f1_macro" if args.class_weights else "accuracy") if with_classes else "loss"
        if args.load_best_model_at_end and arguments.metric_for_best_model is None:
            args.metric_for_best_model = KEPT_BY if with_classes else "loss"
            args.greater_is_better, self._kept_by = with_classes, f"eval_{kept_by}"
        self._check_metric(problem)
        trainer = make_trainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluated or None,
            processing_class=tokenizer,
            compute_metrics=class_figures(kept_by) if with_classes else None,
            callbacks=list(callbacks),
        )
        return trainer, [{name: row[name] for name in row if name in known} for row in timed]

    def _check_metric(self, problem: str) -> None:
        """Refuse a figure to keep the best epoch by that is not in the log."""
        figures = ["loss", *(["accuracy"] if problem != "regression" else [])]
        figures += ["f1_macro"] if problem == "single_label_classification" else []
        asked = self._arguments.metric_for_best_model
        if self.args.load_best_model_at_end and asked is not None and asked.removeprefix("eval_") not in figures:
            raise hfc.CompressionError(
                f"--metric-for-best-model {asked} is none of the figures that are measured; choose one of "
                f"{', '.join(figures)}."
            )

    def summary(self, trainer: hfc.DistillationTrainer, *, was_trained: bool) -> tuple[str, dict[str, Any]]:
        """Return what was trained, as text and as values: how many rows, and which epoch was kept.

        Args:
            trainer: After the training.
            was_trained: Whether the model was a trained classifier before, perhaps trained on these rows.
        """
        state, best = trainer.state, self._kept_by
        counts = {"train": len(self.rows), "held_out": len(self.held_out)}
        text = describe_rows(self.rows, self.held_out, self._columns, self.args.weight_column)
        if was_trained and self._eval_table is self.table and self.held_out:
            text += f"\n{seen_before('the model')}"
        epochs = round(state.epoch or 0.0, 3)
        values: dict[str, Any] = {"examples": counts, "epochs": epochs}
        logs = [log for log in state.log_history if log.get("step") == state.best_global_step and best in log]
        if self.args.load_best_model_at_end and logs:
            kept = logs[-1]
            values |= {"best_epoch": kept["epoch"], best: kept[best]}
            text += f"\nkept: epoch {kept['epoch']:.4g} of {epochs:.4g}, with the best {best} ({kept[best]:.4g})"
        return text, values


def make_trainer(**settings: Any) -> hfc.DistillationTrainer:
    """Make a trainer that shows its progress as the command does."""
    try:
        trainer = hfc.DistillationTrainer(**settings)
    except ValueError as error:
        raise as_compression_error(error) from error
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise hfc.CompressionError(
            "The command does not shard models (FSDP, DeepSpeed); launch it without, or use DistillationTrainer."
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingLog())
    trainer.add_callback(NotePrecision())
    return trainer


def run_training(trainer: hfc.DistillationTrainer) -> dict[str, float]:
    """Train, and return the figures of the rows that are measured with; none without any."""
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
        return measure(trainer)
    except ValueError as error:  # transformers', about arguments that exclude each other
        raise as_compression_error(error) from error


def measure(trainer: hfc.DistillationTrainer) -> dict[str, float]:
    """Return the figures of the rows that are measured with; none without any."""
    if trainer.eval_dataset is None:
        return {}
    with stage("measuring"):
        found = trainer.evaluate()
    return {name: value for name, value in found.items() if name not in HIDDEN}


def as_compression_error(error: ValueError) -> hfc.CompressionError:
    """Return an error of transformers, about arguments that exclude each other, as one of ours."""
    return error if isinstance(error, hfc.CompressionError) else hfc.CompressionError(str(error))


def class_figures(kept_by: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return what computes figures of a choice of classes beside the Trainer's.

    These are ``f1_macro``, the mean of the classes' F1 scores, in which a class that is neither among labels nor
    predictions is left out; and what the best epoch has the most of: ``kept_by``, ``accuracy`` or ``f1_macro``, and of
    equals the smaller cross-entropy, as few rows often have equal accuracies.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = (torch.as_tensor(one) for one in (prediction.predictions, prediction.label_ids))
        hits, classes = logits.argmax(-1), logits.shape[-1]
        one_hot = [torch.nn.functional.one_hot(one.long(), classes) for one in (hits, labels)]
        figures = {"f1_macro": float(multi_label_figures(one_hot[0] - 0.5, one_hot[1])["f1_macro"])}
        loss = float(torch.nn.functional.cross_entropy(logits.double(), labels.long()))
        best = {**figures, "accuracy": float((hits == labels).double().mean())}[kept_by]
        return figures | {KEPT_BY: best - 1e-6 * math.tanh(loss)}

    return compute


def kept_zeros(model: Any, what: str) -> list[TrainerCallback]:
    """Return what keeps the zeros of a pruned model in a training, and say so; nothing for one that is not pruned."""
    sparsity = hfc.sparsity_report(model).sparsity
    if sparsity < 0.01:
        return []
    print(f"{sparsity:.1%} of the weights of {what} are zero, and stay zero in the training.", file=sys.stderr)
    return [hfc.KeepSparsity()]
