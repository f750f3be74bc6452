"""Train a classifier on labelled texts, from a pretrained base model.

The labels are those of the data, and their names go into its config. Some rows
are held out: after each epoch the model is measured on them, and the best epoch
is kept.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from hfcompress_cli import options

_TRAINING = """\
Every field of transformers.TrainingArguments is an option, for example
--learning-rate 3e-5 --per-device-train-batch-size 32 --seed 1, and --bf16
where the device computes bfloat16 natively; --class-weights balanced weighs
rare labels more. The best epoch has the best accuracy (with class weights the
best macro F1; with several labels a text, or numbers, the smallest loss)
unless --metric-for-best-model names another figure of the log. Checkpoints
stay only if they are given a folder (--output-dir FOLDER)."""


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options; the training arguments are added when it is parsed."""
    parser = options.add_verb(verbs, "finetune", run, "train a classifier on labelled texts", __doc__)
    parser.complete = _complete
    parser.add_argument("base", metavar="BASE", help="folder or hub id of a pretrained model")
    help = "give it a new head, for the labels of the data, though it has a trained one"
    parser.add_argument("--new-head", action="store_true", help=help)
    help = "train a head that predicts numbers, as it is where the labels are numbers such as 3.5"
    parser.add_argument("--regression", action="store_true", help=help)
    options.add_held_out(options.add_data(parser, "labelled texts to train on", required=True))
    options.add_training(parser, _TRAINING)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the trained classifier, and measure it."""
    import hfcompress as hfc
    from hfcompress.models.classifier import get_problem_type
    from hfcompress.models.labels import label_names
    from hfcompress.progress import stage
    from hfcompress_cli import training
    from hfcompress_cli.labels import are_other_numbers
    from hfcompress_cli.models import load_for_labels
    from hfcompress_cli.new_labels import NewLabels, find_labels
    from hfcompress_cli.outputs import fit, fold, free_name, next_command, save

    with training.output_folders(arguments) as (folder, checkpoints):
        tuning = training.FineTuning(arguments, checkpoints)

        def find() -> NewLabels:
            how = arguments.label_column, arguments.label_separator
            return find_labels(tuning.table, *how, regression=arguments.regression)

        with stage(f"loading {arguments.base}"):
            model, tokenizer, is_new = load_for_labels(
                arguments.base, find, tuning.check, replace_head=arguments.new_head
            )
        if is_new:
            tuning.read_names()
            tuning.check(model)
            tuning.start_at_mean(model)
        elif arguments.regression and get_problem_type(model, "model") != "regression":
            raise hfc.CompressionError(
                f"--regression, but {arguments.base} keeps its head, which was trained for classes; add --new-head."
            )
        callbacks = training.kept_zeros(model, arguments.base)
        trainer, inputs = tuning.trainer(model, tokenizer, callbacks)
        metrics = training.run_training(trainer)
        if folder is None:
            return "", {}
        name = Path(os.path.abspath(arguments.output)).name
        comparison = hfc.compare({name: model}, inputs, processing_class={name: tokenizer})
        save(folder, model, tokenizer)
    text, values = tuning.summary(trainer, was_trained=not is_new)
    text = f"{fit(comparison.rows)}\n{fold(text + tuning.best_constant(model))}"
    values |= {"model": comparison.to_dict()[name], "evaluation": metrics, "output": arguments.output}
    if is_new and arguments.labels_are is None and are_other_numbers(label_names(model)):  # as this training read them
        arguments.labels_are = "names"
    data, drawn = options.data_options(arguments), _words_of_training(arguments, tuning.args)
    if arguments.eval_data is None and not arguments.held_out:  # no row is left that was not trained on
        data = [["--eval-data", "FILE.csv"] if words[0] == "--held-out" else words for words in data]
    ladder, half = (["-o", free_name(arguments.output, suffix)] for suffix in ("ladder", "half"))
    compress = next_command("compress", [arguments.output], *data, *drawn, ladder)
    following = f"next, let faster models learn from it:\n{compress}"
    if not drawn or arguments.eval_data is not None:  # else shrink would measure with rows that were trained on
        shrink = next_command("shrink", [arguments.output], ["--flops", "0.5"], *data, half)
        following += f"\nor only make it smaller:\n{shrink}"
    return f"{text}\n\n{following}", values


def _words_of_training(arguments: argparse.Namespace, args: Any) -> list[list[str]]:
    """Return the options by which ``compress`` draws the same rows and weighs them as this training did."""
    from hfcompress.distill.label_weights import WEIGHT_COLUMN

    values = {"rows": arguments.rows, "seed": args.seed, "class_weights": args.class_weights}
    values["weight_column"] = args.weight_column or ""
    usual = {"rows": None, "seed": options.SEED, "class_weights": None, "weight_column": WEIGHT_COLUMN}
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [[f"--{name.replace('_', '-')}", words[name]] for name in values if values[name] != usual[name]]


def _complete(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from hfcompress_cli.training_arguments import complete_fine_tuning

    return complete_fine_tuning(light)
