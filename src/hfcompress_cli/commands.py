"""The verbs of the command ``hfcompress``; what it understands is in `hfcompress_cli`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase, logging, set_seed

import hfcompress as hfc
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import input_names
from hfcompress.models.tokenizers import same_tokenizer
from hfcompress.report.plots import pyplot
from hfcompress.storage.convert import pack_folder, unpack_folder
from hfcompress.storage.load import model_folder
from hfcompress_cli.data import Row, encode, longest_text, read_rows, split_rows
from hfcompress_cli.models import device_of, load, needed, set_padding, source_of
from hfcompress_cli.outputs import check_file, check_folder, new_folder, save, stored_bytes, write_file

_HELD_OUT = 0.2
_TIMED = 16  # rows to measure speed with, where none were held out


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked: results on standard output, everything else on standard error.

    Args:
        arguments: As `hfcompress_cli` understood them.

    Returns:
        The exit status: 2 for input that cannot be used, told in one sentence.
    """
    verbs: dict[str, Callable[[argparse.Namespace], tuple[str, dict[str, Any]]]] = {
        "report": _report,
        "prune": _prune,
        "shrink": _shrink,
        "distill": _distill,
        "compare": _compare,
        "pack": _pack,
        "unpack": _pack,
    }
    try:
        with _quiet(), redirect_stdout(sys.stderr):  # the Trainer prints its log
            text, values = verbs[arguments.verb](arguments)
    except (CompressionError, OSError, ImportError) as error:
        print(f"hfcompress {arguments.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(values, indent=2) if arguments.json else text, flush=True)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"hfcompress {arguments.verb}: the results cannot be printed: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def training_parser(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Make the parser of ``distill``, every field of `DistillationArguments` included.

    Args:
        light: The parser without them.
    """
    # Columns of the text are in both; the fields win.
    options: dict[str, Any] = {"allow_abbrev": False, "conflict_handler": "resolve", "usage": light.format_usage()[7:]}
    parser: argparse.ArgumentParser = HfArgumentParser(
        hfc.DistillationArguments, prog=light.prog, description=light.description, parents=[light], **options
    )
    # To pin memory where there is no accelerator only brings a warning.
    pin = torch.accelerator.is_available()
    parser.set_defaults(verb="distill", output_dir=None, save_strategy="no", dataloader_pin_memory=pin)
    return parser


def _report(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    model, _ = load(arguments.model)
    sparsity = hfc.sparsity_report(model, include=arguments.include, exclude=arguments.exclude)
    size = hfc.measure(model)
    folder = Path(arguments.model).expanduser()
    stored = stored_bytes(folder) if folder.is_dir() else None
    lines = {
        "model": arguments.model,
        "class": type(model).__name__,
        "parameters": f"{size.parameters:,}",
        "weights": f"{size.bytes / 1e6:,.1f} MB" + ("" if stored is None else f", in files {stored / 1e6:,.1f} MB"),
    }
    text = _lines(lines | _zeros(sparsity))
    values = {"model": arguments.model, "class": type(model).__name__, "parameters": size.parameters}
    values |= {"bytes": size.bytes, "bytes_in_files": stored, "sparsity": sparsity.to_dict()}
    return f"{text}\n\n{sparsity}" if arguments.verbose else text, values


def _prune(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    with new_folder(arguments.output, arguments.overwrite) as folder:
        model, tokenizer = load(arguments.model)
        report = hfc.prune_global_l1(model, arguments.amount, include=arguments.include, exclude=arguments.exclude)
        save(folder, model, tokenizer)
    return str(report) if arguments.verbose else _lines(_zeros(report)), report.to_dict()


def _shrink(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if arguments.importance != "l1" and arguments.data is None:
        raise CompressionError(f"--importance {arguments.importance} needs labelled texts: name them with --data.")
    with new_folder(arguments.output, arguments.overwrite) as folder:
        model, tokenizer = load(arguments.model, trained=arguments.importance != "l1")
        rows = None
        if arguments.importance != "l1":
            model.to(device_of(arguments.device))
            read = read_rows(arguments.data, _columns(arguments), arguments.label_column, rows=arguments.rows, seed=0)
            rows = _encoded(read, arguments, model, needed(tokenizer, arguments.model), arguments.label_column)
        report = hfc.prune_structured(
            model,
            heads=arguments.heads,
            neurons=arguments.neurons,
            flops=arguments.flops,
            parameters=arguments.parameters,
            latency=arguments.latency,
            drop_layers=arguments.drop_layers,
            importance=arguments.importance,
            scope=arguments.scope,
            dataset=rows,
            round_to=arguments.round_to,
        )
        save(folder, model, tokenizer)
    return str(report), report.to_dict()


def _distill(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CompressionError(
            "distill runs in one process; for several, use hfcompress.DistillationTrainer in Python."
        )
    if arguments.eval_data is not None and arguments.held_out:
        raise CompressionError("--eval-data and --held-out exclude each other: both say what to measure with.")
    with (
        new_folder(arguments.output, arguments.overwrite) as folder,
        tempfile.TemporaryDirectory(dir=folder, prefix="training-") as training,
    ):
        args = _training_arguments(arguments, training)
        set_seed(args.seed)
        label = None if args.alpha == 1 else arguments.label_column
        rows, held_out = _rows_to_learn(arguments, label, args.seed)

        teacher, teacher_tokenizer = load(arguments.teacher, trained=True)
        teacher_tokenizer = needed(teacher_tokenizer, arguments.teacher)
        student, tokenizer = _student(arguments, teacher, teacher_tokenizer)
        own_ids = not same_tokenizer(tokenizer, teacher_tokenizer)
        limit = longest_text(teacher, teacher_tokenizer, None)
        if own_ids:
            args.teacher_max_length = args.teacher_max_length or limit
        elif arguments.max_length is None:
            arguments.max_length = min(limit, longest_text(student, tokenizer, None))
        known = input_names(student) | input_names(teacher) | {"labels"}
        texts = _columns(arguments) if own_ids else []  # which the teacher then reads

        def prepared(part: Sequence[Row]) -> list[Row]:
            encoded = _encoded(part, arguments, student, tokenizer, label) if part else []
            return [
                {name: value for name, value in row.items() if name in known} | {name: own[name] for name in texts}
                for row, own in zip(encoded, part, strict=True)
            ]

        try:
            trainer = hfc.DistillationTrainer(
                model=student,
                args=args,
                teacher=teacher,
                teacher_processing_class=teacher_tokenizer,
                train_dataset=prepared(rows),
                eval_dataset=prepared(held_out) or None,
                processing_class=tokenizer,
            )
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
            metrics = trainer.evaluate() if held_out else {}
        except CompressionError:
            raise
        except ValueError as error:  # transformers', about arguments that do not go together
            raise CompressionError(str(error)) from error
        measured, known_label = (held_out, label) if held_out else (rows[:_TIMED], None)
        comparison = hfc.compare(
            {"teacher": teacher, "student": student},
            {
                "teacher": _encoded(
                    measured, arguments, teacher, teacher_tokenizer, known_label, args.teacher_max_length
                ),
                "student": _encoded(measured, arguments, student, tokenizer, known_label),
            },
            processing_class={"teacher": teacher_tokenizer, "student": tokenizer},
        )
        save(folder, student, tokenizer)
    agreement = metrics.get("eval_agreement")
    text = f"{comparison}\ntrained on {len(rows):,} rows, measured on {len(held_out):,} others"
    if agreement is not None:
        text += f"; there the student answers like its teacher {agreement:.1%} of the time"
    values = {"models": comparison.to_dict(), "examples": {"train": len(rows), "held_out": len(held_out)}}
    return text, values | {"evaluation": metrics, "output": arguments.output}


def _training_arguments(arguments: argparse.Namespace, folder: str) -> hfc.DistillationArguments:
    names = [field.name for field in dataclasses.fields(hfc.DistillationArguments) if field.init]
    given = {name: getattr(arguments, name) for name in names}
    given["output_dir"] = given["output_dir"] or folder
    if given["disable_tqdm"] is None:
        given["disable_tqdm"] = not sys.stderr.isatty()
    try:
        return hfc.DistillationArguments(**given)
    except CompressionError:
        raise
    except (ValueError, TypeError) as error:
        raise CompressionError(f"These training arguments do not go together: {error}") from error


def _rows_to_learn(arguments: argparse.Namespace, label: str | None, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and those to measure with."""
    rows = read_rows(arguments.data, _columns(arguments), label, rows=arguments.rows, seed=seed)
    if arguments.eval_data is not None:
        return rows, read_rows(arguments.eval_data, _columns(arguments), label, rows=arguments.rows, seed=seed)
    return split_rows(rows, _HELD_OUT if arguments.held_out is None else arguments.held_out, seed)


def _student(
    arguments: argparse.Namespace, teacher: PreTrainedModel, teacher_tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if arguments.student is None:
        student, tokenizer = hfc.student_from_teacher(teacher, arguments.student_layers), teacher_tokenizer
    else:
        student, own = load(arguments.student, labels_of=teacher)
        tokenizer = needed(own, arguments.student)
        names, taught = student.config.id2label, teacher.config.id2label
        if len(names) == len(taught) and all(name == f"LABEL_{index}" for index, name in names.items()):
            student.config.id2label, student.config.label2id = dict(taught), dict(teacher.config.label2id)
    set_padding(student, tokenizer)
    return student.float(), tokenizer  # half precision is for autocast, not for the weights that learn


def _compare(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    names = arguments.models
    if len(set(names)) < len(names):
        raise CompressionError(f"{', '.join(names)} name a model twice; name each once.")
    page = None if arguments.html is None else Path(arguments.html).expanduser()
    if page is not None:
        check_file(page, arguments.overwrite)
        pyplot()  # that it is not there is told at once
    rows = None
    if arguments.data is not None:
        rows = read_rows(arguments.data, _columns(arguments), arguments.label_column, rows=arguments.rows, seed=0)
    models: dict[str, PreTrainedModel] = {}
    inputs: dict[str, list[Row]] = {}
    tokenizers: dict[str, PreTrainedTokenizerBase] = {}
    for name in names:
        model, tokenizer = load(name, trained=rows is not None)
        models[name] = model.to(device_of(arguments.device))
        if tokenizer is not None:
            set_padding(model, tokenizer)
        if rows is not None:
            tokenizers[name] = needed(tokenizer, name)
            inputs[name] = _encoded(rows, arguments, model, tokenizers[name], arguments.label_column)
    timing = {"batch_size": arguments.batch_size, "length": arguments.length, "repeats": arguments.repeats}
    found = hfc.compare(models, inputs or None, processing_class=tokenizers or None, **timing)
    if page is not None:
        html: Any = found
        write_file(page, html.to_html(), arguments.overwrite)
    several = any(len(one.passes) > 1 for one in found.rows.values())  # the short table tells of one batch alone
    text = found.to_markdown(verbose=several) if arguments.markdown else found.to_text(verbose=several)
    return text, found.to_dict()


def _pack(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    output = Path(arguments.output).expanduser()
    check_folder(output, arguments.overwrite)
    source = model_folder(source_of(arguments.model))
    if not (source / "config.json").is_file():
        raise CompressionError(f"{arguments.model} is no model: there is no config.json in it.")
    (pack_folder if arguments.verb == "pack" else unpack_folder)(source, output)
    print(f"Written to {arguments.output}.", file=sys.stderr)
    before, after = stored_bytes(source), stored_bytes(output)
    values = {"bytes_in_files": {"before": before, "after": after}, "output": arguments.output}
    return f"files of weights: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after", values


def _columns(arguments: argparse.Namespace) -> list[str]:
    return [name for name in (arguments.text_column, arguments.text_pair_column) if name is not None]


def _encoded(
    rows: Sequence[Row],
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label: str | None,
    max_length: int | None = None,
) -> list[Row]:
    set_padding(model, tokenizer)
    length = longest_text(model, tokenizer, max_length or arguments.max_length)
    return encode(rows, _columns(arguments), label, model, tokenizer, length)


def _zeros(report: hfc.SparsityReport) -> dict[str, str]:
    lines = {"prunable": f"{report.weights:,} weights, {report.zeros:,} of them zero ({report.sparsity:.2%})"}
    return lines | ({"not covered": ", ".join(report.not_covered)} if report.not_covered else {})


def _lines(values: dict[str, str]) -> str:
    return "\n".join(f"{name:<11}  {value}" for name, value in values.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the screen to progress and to what this program says."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
