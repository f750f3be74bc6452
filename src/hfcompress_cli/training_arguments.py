"""The training arguments of the verbs that train, as options and made of them."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import field as dataclass_field
from dataclasses import fields, make_dataclass
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

import hfcompress as hfc
from hfcompress.compat import current_accelerator
from hfcompress_cli.options import read_percentages

_UPDATES = 500  # at least, where the number of epochs is not given and their number stays below
_EPOCHS = 3, 20  # at least and at most, likewise
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
    read_percentages(parser)
    pin = current_accelerator() is not None  # otherwise pinning memory only brings a warning
    unset = dict.fromkeys(("output_dir", "logging_strategy", "logging_steps"))
    parser.set_defaults(dataloader_pin_memory=pin, disable_tqdm=True, **unset, **defaults)
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
    if given.get("bf16") and current_accelerator() is None:
        given["use_cpu"] = True  # as transformers asks for, though there is nothing else
    if kind is not FineTuningArguments and "logging_steps" not in given:
        given.setdefault("logging_strategy", "epoch")  # the others log an evaluation then
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
