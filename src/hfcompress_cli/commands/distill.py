"""Train a student on the labels and on the logits of its teacher.

Both are measured on rows that were held out, and the student is saved.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hfcompress_cli import launch, options

_TRAINING = """\
Every field of hfcompress.DistillationArguments is an option, so all of
transformers.TrainingArguments are; for example --alpha 0.7 --teacher-loss kl
--temperature 2 --label-loss cross_entropy --num-train-epochs 5
--learning-rate 3e-5 --per-device-train-batch-size 16 --seed 1, and --bf16
where the device computes bfloat16 natively.
Checkpoints are made only if asked (--save-strategy epoch), and stay only if
they are given a folder (--output-dir FOLDER)."""

_TIMED = 16  # rows to measure speed with, where none were held out


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options; the training arguments are added when it is parsed."""
    parser = options.add_verb(verbs, "distill", run, "train a small student on the logits of its teacher", __doc__)
    parser.complete = _add_training_arguments
    parser.add_argument("teacher", metavar="TEACHER", help="folder or hub id of a fine-tuned classifier")
    student = parser.add_argument_group("student (one of them)").add_mutually_exclusive_group(required=True)
    student.add_argument("--student", metavar="MODEL", help="folder or hub id; its head may be new")
    help = "make it of the teacher's layers: N of them, evenly spaced, or those with these indices (0: the first)"
    student.add_argument("--student-layers", type=options.layers, metavar="N|I,J", help=help)
    data = options.add_data(parser, "texts to train on", required=True)
    measured = data.add_mutually_exclusive_group()
    measured.add_argument("--eval-data", metavar="DATA", help="texts to measure with, instead of held-out ones")
    help = "fraction of the rows kept out of the training, to measure with (default: %(default)s)"
    measured.add_argument("--held-out", type=float, default=0.2, metavar="F", help=help)
    training = parser.add_argument_group("training arguments", _TRAINING)
    training.add_argument("--help-all", action="help", help="list all of them, with their defaults, and exit")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the trained student, and measure it beside its teacher."""
    from transformers import set_seed

    import hfcompress as hfc
    from hfcompress.models.classifier import input_names
    from hfcompress.models.tokenizers import same_tokenizer
    from hfcompress_cli.data import check_labels, encode, read_rows, split_rows, token_limit
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import new_folder, save

    main = launch.is_main()
    with ExitStack() as written:
        if main:
            folder = written.enter_context(new_folder(arguments.output, arguments.overwrite))
            training = written.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="training-"))
        args = _make_training_arguments(arguments, training if main else ".")
        if launch.is_launched():
            args.output_dir = launch.share(args.output_dir)
        set_seed(args.seed)
        columns, label = options.text_columns(arguments), None if args.alpha == 1 else arguments.label_column
        weights = [] if label is None or args.weight_column is None else [args.weight_column]
        reading, reads_labels = options.reading(arguments) | {"optional": weights}, options.labels(arguments)
        rows = read_rows(arguments.data, columns, label, seed=args.seed, **reading)
        if arguments.eval_data is None:
            table = eval_table = rows
            rows, held_out = split_rows(table, arguments.held_out, args.seed)
        else:
            table, held_out = rows, read_rows(arguments.eval_data, columns, label, seed=args.seed, **reading)
            eval_table = held_out
        teacher, teacher_tokenizer = load(arguments.teacher, trained=True, reads_texts=True)
        if arguments.student is None:
            student, tokenizer = hfc.student_from_teacher(teacher, arguments.student_layers), teacher_tokenizer
        else:
            student, tokenizer = load(arguments.student, reads_texts=True, labels_from=teacher)
        student.float()  # half precision is for autocast, not for the weights that learn
        own_ids = not same_tokenizer(tokenizer, teacher_tokenizer)
        length = token_limit(student, tokenizer, arguments.max_length)
        if own_ids:
            teacher_length = token_limit(teacher, teacher_tokenizer, args.teacher_max_length, "--teacher-max-length")
            args.teacher_max_length = teacher_length
        else:  # the teacher reads the student's ids
            teacher_length = token_limit(teacher, teacher_tokenizer, arguments.max_length)
            length = teacher_length = min((one for one in (length, teacher_length) if one is not None), default=None)
        for part in (table, *([eval_table] if eval_table is not table else [])):
            check_labels(part, label, {"the teacher": teacher, "the student": student}, **reads_labels)
        # Encoded before the training, so that labels which the teacher does not have are refused before it.
        measured, known_label = (held_out, label) if held_out else (rows[:_TIMED], None)
        of_both = {"teacher": (teacher, teacher_tokenizer, teacher_length), "student": (student, tokenizer, length)}
        inputs = {
            name: encode(measured, columns, known_label, *one, table=eval_table, **reads_labels)
            for name, one in of_both.items()
        }
        tokenizers = {"teacher": teacher_tokenizer, "student": tokenizer}
        known = input_names(student) | input_names(teacher) | {"labels"}
        kept = {*(columns if own_ids else []), *weights}  # the texts, which the teacher then reads

        def encode_rows(part: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            encoded = encode(part, columns, label, *of_both["student"], table=table, **reads_labels)
            pairs = zip(encoded, part, strict=True)
            return [
                {n: row[n] for n in row if n in known} | {n: own[n] for n in kept & own.keys()} for row, own in pairs
            ]

        try:
            trainer = hfc.DistillationTrainer(
                model=student,
                args=args,
                teacher=teacher,
                teacher_processing_class=teacher_tokenizer,
                train_dataset=encode_rows(rows, table),
                eval_dataset=encode_rows(held_out, eval_table) or None,
                processing_class=tokenizer,
            )
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise hfc.CompressionError(
                    "distill does not shard models (FSDP, DeepSpeed); launch it without, or use DistillationTrainer."
                )
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
            metrics = trainer.evaluate() if held_out else {}
        except ValueError as error:  # transformers', about arguments that exclude each other
            raise hfc.CompressionError(str(error)) from error
        if not main:
            return "", {}
        comparison = hfc.compare({"teacher": teacher, "student": student}, inputs, processing_class=tokenizers)
        save(folder, student, tokenizer)
    text = f"{comparison}\ntrained on {len(rows):,} rows, measured on {len(held_out):,} others"
    if (agreement := metrics.get("eval_agreement")) is not None:
        text += f"; student and teacher agree on {agreement:.1%} of these"
    values = {"models": comparison.to_dict(), "examples": {"train": len(rows), "held_out": len(held_out)}}
    return text, values | {"evaluation": metrics, "output": arguments.output}


def _add_training_arguments(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    from hfcompress import DistillationArguments
    from hfcompress.compat import current_accelerator

    parser: argparse.ArgumentParser = HfArgumentParser(
        DistillationArguments,
        prog=light.prog,
        usage=light.format_usage().removeprefix("usage: "),
        description=light.description,
        parents=[light],
        allow_abbrev=False,
        conflict_handler="resolve",  # columns of the text are in both; the fields win
    )
    pin = current_accelerator() is not None  # otherwise pinning memory only brings a warning
    bars = sys.stderr.isatty()
    parser.set_defaults(output_dir=None, save_strategy="no", dataloader_pin_memory=pin, disable_tqdm=not bars)
    return parser


def _make_training_arguments(arguments: argparse.Namespace, folder: str) -> Any:
    from transformers import HfArgumentParser

    from hfcompress import CompressionError, DistillationArguments

    given = vars(arguments) | {"output_dir": arguments.output_dir or folder}
    try:
        return HfArgumentParser(DistillationArguments).parse_dict(given, allow_extra_keys=True)[0]
    except CompressionError:
        raise
    except (ValueError, TypeError) as error:
        raise CompressionError(f"These training arguments do not go together: {error}") from error
