"""Train a student on the labels and on the logits of its teacher.

Both are measured on rows that were held out, and the student is saved.
"""

from __future__ import annotations

import argparse

from hfcompress_cli import launch, options

_TRAINING = """\
Every field of hfcompress.DistillationArguments is an option, so all of
transformers.TrainingArguments are; for example --alpha 0.7 --teacher-loss kl
--temperature 2 --label-loss cross_entropy --num-train-epochs 5
--learning-rate 3e-5 --per-device-train-batch-size 16 --seed 1, and --bf16
where the device computes bfloat16 natively.
Checkpoints are made only if asked (--save-strategy epoch), and stay only if
they are given a folder (--output-dir FOLDER)."""


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options; the training arguments are added when it is parsed."""
    parser = options.add_verb(verbs, "distill", run, "train a small student on the logits of its teacher", __doc__)
    parser.complete = _complete
    parser.add_argument("teacher", metavar="TEACHER", help="folder or hub id of a fine-tuned classifier")
    student = parser.add_argument_group("student (one of them)").add_mutually_exclusive_group(required=True)
    student.add_argument("--student", metavar="MODEL", help="folder or hub id; its head may be new")
    help = "make it of the teacher's layers: N of them, evenly spaced, or those with these indices (0: the first)"
    student.add_argument("--student-layers", type=options.layers, metavar="N|I,J", help=help)
    options.add_held_out(options.add_data(parser, "texts to train on", required=True))
    options.add_training(parser, _TRAINING)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the trained student, and measure it beside its teacher."""
    from transformers import set_seed

    import hfcompress as hfc
    from hfcompress.models.classifier import input_names
    from hfcompress.models.tokenizers import same_tokenizer
    from hfcompress.progress import stage
    from hfcompress_cli import training
    from hfcompress_cli.data import check_labels, encode, token_limit
    from hfcompress_cli.held_out import describe_rows, encode_rows, read_split
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import fit, fold, save, seen_before
    from hfcompress_cli.training_arguments import make_arguments

    with training.output_folders(arguments) as (folder, checkpoints):
        given = vars(arguments) | {"output_dir": arguments.output_dir or checkpoints}
        args = make_arguments(hfc.DistillationArguments, given)
        if launch.is_launched():
            args.output_dir = launch.share(args.output_dir)
        set_seed(args.seed)
        columns, label = options.text_columns(arguments), None if args.alpha == 1 else arguments.label_column
        reads_labels = options.labels(arguments)
        drawn_by = arguments.label_column
        args.weight_column = options.weight_column(arguments, args.weight_column)
        split = read_split(arguments, label, args.weight_column, args.seed, drawn_by=drawn_by)
        table, rows, eval_table, held_out = split.table, split.rows, split.eval_table, split.held_out
        with stage(f"loading {arguments.teacher}"):
            teacher, teacher_tokenizer = load(arguments.teacher, trained=True, reads_texts=True)
        if arguments.student is None:
            student, tokenizer = hfc.student_from_teacher(teacher, arguments.student_layers), teacher_tokenizer
        else:
            with stage(f"loading {arguments.student}"):
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
        measured, known_label = (held_out, label) if held_out else (rows[: training.TIMED], None)
        of_both = {"teacher": (teacher, teacher_tokenizer, teacher_length), "student": (student, tokenizer, length)}
        weights = {args.weight_column} if label is not None and args.weight_column is not None else set()
        encoding = {
            "known": input_names(student) | input_names(teacher) | {"labels"},
            "kept": {*(columns if own_ids else []), *weights},  # the texts, which the teacher then reads
            **reads_labels,
        }
        with stage("encoding the texts"):
            inputs = {
                name: encode(measured, columns, known_label, *one, table=eval_table, **reads_labels)
                for name, one in of_both.items()
            }
            train, evaluated = (
                encode_rows(part, whole, columns, label, of_both["student"], **encoding)
                for part, whole in ((rows, table), (held_out, eval_table))
            )
        tokenizers = {"teacher": teacher_tokenizer, "student": tokenizer}
        callbacks = training.kept_zeros(student, "the student")
        trainer = training.make_trainer(
            model=student,
            args=args,
            teacher=teacher,
            teacher_processing_class=teacher_tokenizer,
            train_dataset=train,
            eval_dataset=evaluated or None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        metrics = training.run_training(trainer)
        if folder is None:
            return "", {}
        comparison = hfc.compare({"teacher": teacher, "student": student}, inputs, processing_class=tokenizers)
        save(folder, student, tokenizer)
    text = describe_rows(rows, held_out, columns, args.weight_column)
    if (agreement := metrics.get("eval_agreement")) is not None:
        text += f"; student and teacher agree on {agreement:.1%} of these"
    if held_out and known_label is not None and arguments.eval_data is None:
        text += f" {seen_before('the teacher')}"
    text = f"{fit(comparison.rows)}\n{fold(text)}"
    values = {"models": comparison.to_dict(), "examples": {"train": len(rows), "held_out": len(held_out)}}
    return text, values | {"evaluation": metrics, "output": arguments.output}


def _complete(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from hfcompress import DistillationArguments
    from hfcompress_cli.training_arguments import complete

    return complete(light, DistillationArguments, save_strategy="no")
