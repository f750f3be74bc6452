"""Set the smallest weights of a model to zero, exactly as many as asked.

The zeros make neither the model faster nor its file smaller; `hfcompress pack`
makes the file smaller, `hfcompress shrink` the model.
"""

from __future__ import annotations

import argparse
from contextlib import suppress

from hfcompress_cli import options


def add_parser(verbs: options.Verbs) -> None:
    """Add the verb with its options."""
    parser = options.add_verb(verbs, "prune", run, "set the smallest weights to zero", __doc__)
    parser.add_argument("model", **options.MODEL)
    help = "fraction of the weights to be zero, below 1; or how many (a whole number)"
    parser.add_argument("--amount", type=_amount, required=True, help=help)
    options.add_matrices(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> options.Results:
    """Write the pruned model."""
    import hfcompress as hfc
    from hfcompress_cli.models import load
    from hfcompress_cli.outputs import new_folder, save, to_lines

    with new_folder(arguments.output, arguments.overwrite) as folder:
        model, tokenizer = load(arguments.model)
        report = hfc.prune_global_l1(model, arguments.amount, include=arguments.include, exclude=arguments.exclude)
        save(folder, model, tokenizer)
    return str(report) if arguments.verbose else to_lines(report), report.to_dict()


def _amount(text: str) -> float | int:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction such as 0.2 nor a number of weights")
