"""What the verbs that train share: the training arguments as options, the rows, and the training itself."""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field as dataclass_field
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from typing_extensions import override

import hfcompress as hfc
from hfcompress.compat import current_accelerator
from hfcompress.metrics import multi_label_figures
from hfcompress.models.classifier import get_problem_type, input_names
from hfcompress.models.labels import label_names
from hfcompress.progress import Listener, listener, stage
from hfcompress_cli import launch, options
from hfcompress_cli.data import encode, read_rows, split_rows, token_limit
from hfcompress_cli.labels import name_classes, read_labels
from hfcompress_cli.outputs import new_folder
from hfcompress_cli.tables import Row

_UPDATES = 500  # at least, where the number of epochs is not given and their number stays below
_EPOCHS = 3, 20  # at least and at most, likewise
TIMED = 16  # rows to measure speed with, where none were held out
_KEPT_BY = "kept_by"  # a figure that is not shown, see class_figures
_HIDDEN = {"total_flos", f"eval_{_KEPT_BY}", "eval_model_preparation_time"}
_OF_LABELS = {"class_weights", "weight_column"}  # the arguments of a distillation that a training on labels has too


def _fixed_arguments() -> list[tuple[str, Any, Any]]:
    """Return the fields of a distillation that are about a teacher, for a training on labels: no options."""
    general = {one.name for one in fields(TrainingArguments)}
    own = [one for one in fields(hfc.DistillationArguments) if one.name not in general | _OF_LABELS]
    values = {one.name: one.default for one in own} | {"alpha": 0.0, "label_loss": "cross_entropy"}
    return [(one.name, Any, dataclass_field(default=values[one.name], init=False)) for one in own]


FineTuningArguments: Any = make_dataclass(
    "FineTuningArguments", _fixed_arguments(), bases=(hfc.DistillationArguments,), namespace={"__module__": __name__}
)


def complete(
    light: argparse.ArgumentParser, kind: type[hfc.DistillationArguments], **defaults: Any
) -> argparse.ArgumentParser:
    """Add the fields of training arguments to a parser, with other defaults for some of them."""
    parser: argparse.ArgumentParser = HfArgumentParser(
        kind,
        prog=light.prog,
        usage=light.format_usage().removeprefix("usage: "),
        description=light.description,
        parents=[light],
        allow_abbrev=False,
        conflict_handler="resolve",  # columns of the text are in both; the fields win
    )
    pin = current_accelerator() is not None  # otherwise pinning memory only brings a warning
    parser.set_defaults(output_dir=None, dataloader_pin_memory=pin, disable_tqdm=True, **defaults)
    return parser


def complete_fine_tuning(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the training arguments of a training on labels; what is None is set when the data are known."""
    unset = ["num_train_epochs", "eval_strategy", "save_strategy", "load_best_model_at_end", "save_steps"]
    unset += ["save_total_limit", "save_only_model", "metric_for_best_model"]
    defaults: dict[str, Any] = dict.fromkeys(unset) | {"per_device_train_batch_size": 16, "warmup_steps": 0.1}
    return complete(light, FineTuningArguments, **defaults)


def make_arguments(kind: type[hfc.DistillationArguments], given: dict[str, Any]) -> Any:
    """Make training arguments of options; those that are None are as by default."""
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return HfArgumentParser(kind).parse_dict(given, allow_extra_keys=True)[0]
    except hfc.CompressionError:
        raise
    except (ValueError, TypeError) as error:
        raise hfc.CompressionError(f"These training arguments do not go together: {error}") from error


def make_fine_tuning_arguments(arguments: argparse.Namespace, folder: str, *, measures: bool) -> Any:
    """Make the training arguments of a training on labels, which keeps its best epoch.

    Args:
        arguments: Those of the command.
        folder: Of the checkpoints, unless another is named.
        measures: Whether there are rows to measure epochs with.
    """
    given = vars(arguments) | {"output_dir": arguments.output_dir or folder}
    asked = [
        given["eval_strategy"],
        *([given["save_strategy"]] if given["save_strategy"] in ("steps", "epoch") else []),
    ]
    strategy = next((one for one in asked if one is not None), "epoch" if measures else "no")
    given["eval_strategy"] = strategy
    given["save_strategy"] = given["save_strategy"] or strategy
    if given["load_best_model_at_end"] is None:
        given["load_best_model_at_end"] = measures and strategy != "no" and given["save_strategy"] in (strategy, "best")
    if given["save_steps"] is None and strategy == "steps":
        given["save_steps"] = given["eval_steps"] or given["logging_steps"]
    if arguments.output_dir is None:  # nobody can go on from these checkpoints
        given |= {"save_total_limit": given["save_total_limit"] or 1, "save_only_model": True}
    return make_arguments(FineTuningArguments, given)


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


def read_parts(
    arguments: argparse.Namespace, label: str | None, weight_column: str | None, seed: int, *, stratified: bool = False
) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
    """Read the rows to train on and those to measure with.

    Args:
        arguments: Those of the command.
        label: Column of the labels, if they are read.
        weight_column: Column of the examples' weights, if there is one.
        seed: By which rows are drawn.
        stratified: Whether each label is held out in the same share.

    Returns:
        All rows of the data that the first are in, those to train on, the same of those to measure with, and these.
    """
    columns, weights = options.text_columns(arguments), [weight_column] if weight_column is not None else []
    reading = options.reading(arguments) | {"optional": weights if label is not None else []}
    table = read_rows(arguments.data, columns, label, seed=seed, **reading)
    if arguments.eval_data is not None:
        held_out = read_rows(arguments.eval_data, columns, label, seed=seed, **reading)
        return table, table, held_out, held_out
    if stratified and label is not None:
        rows, held_out = split_by_label(table, arguments.held_out, seed, label)
    else:
        rows, held_out = split_rows(table, arguments.held_out, seed)
    return table, rows, table, held_out


def split_by_label(rows: Sequence[Row], held_out: float, seed: int, label: str) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the rows, drawn at random, of each label the same as far as whole rows allow.

    A label of a single row is trained on. Where almost every row has a label of its own, such as a number, they are
    drawn from all.
    """
    _, drawn = split_rows(rows, held_out, seed)  # checks the fraction, and says how many
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[str(row[label]).strip().casefold()].append(index)
    if not drawn or 2 * len(groups) > len(rows):
        return split_rows(rows, held_out, seed)
    generator = random.Random(seed)
    shuffled = {name: generator.sample(group, len(group)) for name, group in groups.items()}
    shares = {name: held_out * len(group) for name, group in groups.items()}
    counts = {name: min(int(share), len(groups[name]) - 1) for name, share in shares.items()}
    for name in sorted(groups, key=lambda one: (counts[one] - shares[one], one)):  # who lacks most of its share first
        if sum(counts.values()) < len(drawn) and counts[name] + 1 < len(groups[name]):
            counts[name] += 1
    chosen = {index for name, group in shuffled.items() for index in group[: counts[name]]}
    order = generator.sample(range(len(rows)), len(rows))
    return [rows[n] for n in order if n not in chosen], [rows[n] for n in order if n in chosen]


def encode_rows(
    part: Sequence[Row],
    table: Sequence[Row],
    columns: Sequence[str],
    label: str | None,
    model: tuple[Any, Any, int | None],
    *,
    known: frozenset[str] | set[str],
    kept: set[str],
    **how: Any,
) -> list[dict[str, Any]]:
    """Encode rows for a training.

    Args:
        part: The rows.
        table: All of the same data.
        columns: Those of the texts.
        label: That of the labels.
        model: Model, tokenizer, and how many tokens of a text are read.
        known: The columns of what the tokenizer makes that are read.
        kept: The columns of the data that stay.
        how: How labels are read.
    """
    encoded = encode(part, columns, label, *model, table=table, **how)
    pairs = zip(encoded, part, strict=True)
    return [{n: row[n] for n in row if n in known} | {n: own[n] for n in kept & own.keys()} for row, own in pairs]


def choose_epochs(args: Any, rows: int) -> None:
    """Set the number of epochs, where none was given: more where the data are few, as an epoch is few updates then."""
    each = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    updates = max(1, math.ceil(rows / each))
    args.num_train_epochs = float(min(max(_EPOCHS[0], math.ceil(_UPDATES / updates)), _EPOCHS[1]))
    if args.num_train_epochs > _EPOCHS[0] and args.max_steps <= 0:
        print(
            f"An epoch of {rows:,} rows has {updates} updates, so there are {args.num_train_epochs:.0f} epochs; "
            "--epochs sets others.",
            file=sys.stderr,
        )


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
        self._kept_by = f"eval_{str(arguments.metric_for_best_model).removeprefix('eval_')}"
        parts = read_parts(arguments, self._label, self.args.weight_column, self.args.seed, stratified=True)
        self.table, self.rows, self._eval_table, self.held_out = parts

    def read_names(self) -> None:
        """Read labels as the names of a head that was made for them, not as indices."""
        self._how["read_as"] = self._how["read_as"] or "names"

    def check(self, model: Any) -> None:
        """Refuse a model whose labels are not those of the data."""
        for part in [self.table, *([self._eval_table] if self._eval_table is not self.table else [])]:
            self._read(part, model)

    def largest_class(self, model: Any) -> str:
        """Say how often it would be right to answer always the same; nothing where that has no meaning."""
        if not self.held_out or get_problem_type(model, "model") != "single_label_classification":
            return ""
        held_out = {id(row) for row in self.held_out}
        read = zip(self._eval_table, self._read(self._eval_table, model), strict=True)
        ((label, count),) = Counter(one for row, one in read if id(row) in held_out).most_common(1)
        share = f"{count / len(self.held_out):.1%}"
        return f"\nalways answering {label_names(model)[label]!r:.40} is right for {share} of these"

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
            args.metric_for_best_model = _KEPT_BY if with_classes else "loss"
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

    def summary(self, trainer: hfc.DistillationTrainer) -> tuple[str, dict[str, Any]]:
        """Return what was trained, as text and as values: how many rows, and which epoch was kept."""
        state, best = trainer.state, self._kept_by
        counts = {"train": len(self.rows), "held_out": len(self.held_out)}
        text = f"trained on {len(self.rows):,} rows"
        text += f", measured on {len(self.held_out):,} others" if self.held_out else ""
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
    return {name: value for name, value in found.items() if name not in _HIDDEN}


def as_compression_error(error: ValueError) -> hfc.CompressionError:
    """Return an error of transformers, about arguments that exclude each other, as one of ours."""
    return error if isinstance(error, hfc.CompressionError) else hfc.CompressionError(str(error))


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
            hidden = _HIDDEN | ({"eval_distillation_loss"} if args.alpha == 0 else set())  # eval_loss, smoothed
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
        return figures | {_KEPT_BY: best - 1e-6 * math.tanh(loss)}

    return compute


def kept_zeros(model: Any, what: str) -> list[TrainerCallback]:
    """Return what keeps the zeros of a pruned model in a training, and say so; nothing for one that is not pruned."""
    sparsity = hfc.sparsity_report(model).sparsity
    if sparsity < 0.01:
        return []
    print(f"{sparsity:.1%} of the weights of {what} are zero, and stay zero in the training.", file=sys.stderr)
    return [hfc.KeepSparsity()]
