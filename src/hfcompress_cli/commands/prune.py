"""Set the smallest weights of a model to zero, exactly as many as asked.

With --data, the model is then trained on labelled texts while the zeros stay,
which recovers accuracy that they cost; --schedule prunes during that training
instead of before it. The zeros make neither the model faster nor its file
smaller; `hfcompress pack` makes the file smaller, `hfcompress shrink` the
model.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hfcompress_cli import options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hfcompress import SparsityReport

_TRAINING = """\
With --data, every field of transformers.TrainingArguments is an option, for
example --learning-rate 3e-5 --per-device-train-batch-size 32 --seed 1, and
--bf16 where the device computes bfloat16 natively. The best epoch is kept."""


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options; the training arguments are added when it is parsed."""
    parser = options.add_verb(verbs, "prune", run, "set the smallest weights to zero", __doc__)
    parser.complete, parser.completed_for = _complete, frozenset({"--data"})
    parser.add_argument("model", **options.MODEL)
    help = "share of the weights to be zero, such as 0.2 or 20%%; or how many (a whole number)"
    parser.add_argument("--amount", type=options.amount, required=True, help=help)
    options.add_matrices(parser)
    options.add_held_out(options.add_data(parser, "labelled texts to train on, with the zeros kept"))
    help = "prune during the training: at once, in equal steps, or fast at first (default: before the training)"
    choices = ("one-shot", "linear", "cubic")
    options.add_training(parser, _TRAINING).add_argument("--schedule", choices=choices, help=help)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the pruned model."""
    import hfcompress as hfc
    from hfcompress.models.new_head import new_head
    from hfcompress.progress import stage
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import free_name, new_folder, next_command, save, to_lines

    if arguments.data is not None:
        return _prune_and_train(arguments)
    for name in ("num_train_epochs", "schedule", "eval_data"):
        if getattr(arguments, name) is not None:
            option = {"num_train_epochs": "epochs"}.get(name, name.replace("_", "-"))
            raise hfc.CompressionError(f"--{option} is for a training: name the texts to train on with --data.")
    with new_folder(arguments.output, arguments.overwrite) as folder:
        with stage(f"loading {arguments.model}"):
            model, tokenizer = load(arguments.model)
        report = _prune(model, arguments)
        save(folder, model, tokenizer)
    text = str(report) if arguments.verbose else to_lines(report)
    patterns = [[f"--{name}", one] for name in ("include", "exclude") for one in getattr(arguments, name) or ()]
    amount, trained = ["--amount", str(arguments.amount)], ["-o", free_name(arguments.output, "trained")]
    data = [*options.data_options(arguments), ["--epochs", "2"]]
    if new_head(model):
        following = next_command("finetune", [arguments.output], *data, trained)
    else:
        following = next_command("prune", [arguments.output], amount, *patterns, *data, trained)
    return f"{text}\n\nnext, train it with the zeros kept:\n{following}", report.to_dict()


def _prune(model: PreTrainedModel, arguments: argparse.Namespace) -> SparsityReport:
    import hfcompress as hfc

    report = hfc.prune_global_l1(model, arguments.amount, include=arguments.include, exclude=arguments.exclude)
    check_small_number(arguments.amount, report.weights)
    return report


def check_small_number(amount: float | int, weights: int) -> None:
    """Ask back about a number of weights that looks like a percentage, and is a smaller share."""
    if isinstance(amount, int) and 1 <= amount <= 100 < weights:
        print(
            f"warning: --amount {amount} is {amount} of {weights:,} weights. Did you mean {amount} per cent? That is "
            f"--amount {amount}%.",
            file=sys.stderr,
        )


def _prune_and_train(arguments: argparse.Namespace) -> options.Results:
    """Prune, and train the model on labels with the zeros kept; measure it before, between and after."""
    import hfcompress as hfc
    from hfcompress.progress import stage
    from hfcompress_cli import training
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import fold, free_name, next_command, save, to_lines

    chosen = {"include": arguments.include, "exclude": arguments.exclude}
    with training.output_folders(arguments) as (folder, checkpoints):
        assert folder is not None  # it runs in one process
        tuning = training.FineTuning(arguments, checkpoints)
        with stage(f"loading {arguments.model}"):
            model, tokenizer = load(arguments.model, trained=True, reads_texts=True)
        model.float()  # half precision is for autocast, not for the weights that learn
        tuning.check(model)
        keeping: Any = hfc.KeepSparsity(**chosen)
        if arguments.schedule is not None:
            keeping = hfc.GradualPruning(arguments.amount, schedule=arguments.schedule, **chosen)
        trainer, _ = tuning.trainer(model, tokenizer, [keeping])
        found = {"before": training.measure(trainer)}
        if arguments.schedule is None:
            report = _prune(model, arguments)
            found["pruned"] = training.measure(trainer)
        else:  # the model and the amount are checked before the training
            check_small_number(arguments.amount, hfc.sparsity_report(model, **chosen).weights)
        found["trained"] = training.run_training(trainer)
        report = hfc.sparsity_report(model, **chosen)
        save(folder, model, tokenizer)
    text, values = tuning.summary(trainer, was_trained=True)
    lines = [str(report) if arguments.verbose else to_lines(report), "", *_figures(found), fold(text)]
    following = next_command("pack", [arguments.output], [free_name(arguments.output, "packed")])
    values = report.to_dict() | {"evaluation": found, "training": values, "output": arguments.output}
    return "\n".join([*lines, "", "next, make its file smaller:", following]), values


def _figures(found: dict[str, dict[str, float]]) -> list[str]:
    """Return the figures of each state of the model as a table."""
    names = [name for name in ("eval_accuracy", "eval_f1_macro", "eval_loss") if name in found["trained"]]
    rows = [["held-out rows", *(name.removeprefix("eval_") for name in names)]]
    rows += [[state, *(f"{figures[name]:.4f}" for name in names)] for state, figures in found.items() if figures]
    return ["  ".join(f"{cell:<13}" if not n else f"{cell:>8}" for n, cell in enumerate(row)) for row in rows if names]


def _complete(light: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from hfcompress_cli.training_arguments import complete_fine_tuning

    return complete_fine_tuning(light)
