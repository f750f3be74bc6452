"""The command ``hfcompress``: what it understands. What it does is in `hfcompress.cli`, imported when a verb runs.

This is no module of the package, because importing any of these imports transformers, which takes seconds; ``--help``
and a mistyped option are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_EXAMPLES = """\
MODEL is a folder that save_pretrained wrote, or the id of a model on the hub.

examples:
  hfcompress report bert/
  hfcompress prune bert/ --amount 0.2 -o pruned/
  hfcompress shrink bert/ --flops 0.5 -o shrunken/
  hfcompress distill bert/ --student-layers 2 --data reviews.csv -o small/
  hfcompress compare bert/ pruned/ small/ --data test.csv

Results go to standard output, progress and messages to standard error. The exit
status is 0, 2 if the input cannot be used, or 130 if it was interrupted; then
nothing was written."""

_PRUNE = """\
Set the smallest weights of the whole model to zero, exactly as many as asked.
The zeros make the model neither faster nor its file smaller; `hfcompress pack`
makes the file smaller, `hfcompress shrink` the model."""

_SHRINK = """\
Remove the least important attention heads, intermediate neurons and layers: a
smaller and faster dense model. Ask for fractions, or for one budget."""

_DISTILL = """\
Train a student on the labels and on the answers of its teacher, measure both on
rows that were held out, and save the student."""

_TRAINING = """\
Every field of hfcompress.DistillationArguments is an option, so all of
transformers.TrainingArguments are; for example --alpha 0.7 --teacher-loss kl
--temperature 2 --label-loss cross_entropy --num-train-epochs 5
--learning-rate 3e-5 --per-device-train-batch-size 16 --bf16 --seed 1.
Checkpoints are made only if asked (--save-strategy epoch), and stay only if
they are given a folder (--output-dir FOLDER)."""

_COMPARE = """\
Measure several models side by side, in turn: parameters, size and, with data,
speed and accuracy with its 95 % interval. Ratios are to the first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        argv: Its arguments; those of this process if None.

    Raises:
        SystemExit: For ``--help``, ``--version`` and arguments that are not understood.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, distill = _parsers()
    training = argv[:1] == ["distill"] and not {"-h", "--help"} & set(argv)
    try:
        arguments = None if training else parser.parse_args(argv)
        from hfcompress_cli import commands as cli

        if training:
            # Whether a word is an option's value or the teacher, only the parser that knows all options can tell.
            parser = cli.training_parser(distill)
            if "--help-all" in argv:
                parser.print_help()
                return 0
            arguments = parser.parse_args(argv[1:])
        assert arguments is not None
        return cli.run(arguments)
    except KeyboardInterrupt:
        print("\nhfcompress: interrupted; nothing was written.", file=sys.stderr)
        return 130


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser, and that of ``distill`` in it, which lacks the training arguments."""
    style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="hfcompress",
        description="Make a Hugging Face text classifier smaller, and know what that cost.",
        epilog=_EXAMPLES,
        **style,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)

    def verb(name: str, summary: str, description: str = "") -> argparse.ArgumentParser:
        one = verbs.add_parser(
            name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}.", **style
        )
        one.add_argument("--json", action="store_true", help="print the results as JSON")
        return one

    report = verb("report", "tell a model's size, and how many of its weights are zero")
    report.add_argument("model", metavar="MODEL", help="folder or hub id")
    report.add_argument("--verbose", action="store_true", help="every weight matrix by itself")
    _patterns(report)

    prune = verb("prune", "set the smallest weights to zero", _PRUNE)
    prune.add_argument("model", metavar="MODEL", help="folder or hub id")
    prune.add_argument(
        "--amount",
        type=_amount,
        required=True,
        help="fraction of the weights to be zero, below 1; or how many (a whole number)",
    )
    prune.add_argument("--verbose", action="store_true", help="tell every weight matrix by itself")
    _patterns(prune)
    _output(prune)

    shrink = verb("shrink", "remove heads, neurons and layers", _SHRINK)
    shrink.add_argument("model", metavar="MODEL", help="folder or hub id")
    how_much = shrink.add_argument_group("how much")
    how_much.add_argument("--heads", type=float, default=0.0, metavar="F", help="fraction of the heads to remove")
    how_much.add_argument("--neurons", type=float, default=0.0, metavar="F", help="fraction of the neurons to remove")
    how_much.add_argument("--flops", type=float, metavar="F", help="share of the FLOPs to keep at most")
    how_much.add_argument("--parameters", type=float, metavar="F", help="share of the parameters to keep at most")
    how_much.add_argument("--latency", type=float, metavar="F", help="share of the time to keep at most, measured here")
    how_much.add_argument(
        "--drop-layers",
        type=_layers,
        default=0,
        metavar="N|I,J",
        help="layers to remove first: the N least important, or those with these indices (3, with a comma: layer 3)",
    )
    which = shrink.add_argument_group("which ones")
    which.add_argument(
        "--importance",
        choices=("l1", "taylor", "fisher"),
        default="l1",
        help="how heads and neurons are ranked: by their weights (l1, the default), or by the loss on --data",
    )
    which.add_argument(
        "--scope", choices=("global", "layer"), default="global", help="rank over all layers (default), or in each"
    )
    which.add_argument(
        "--round-to", type=int, default=8, metavar="N", help="neurons stay in multiples of N (default: 8)"
    )
    _data(shrink, "labelled texts, for --importance taylor and fisher", rows=512)
    _device(shrink)
    _output(shrink)

    distill = verb("distill", "train a small student on its teacher's answers", _DISTILL)
    distill.add_argument("teacher", metavar="TEACHER", help="folder or hub id of a fine-tuned classifier")
    student = distill.add_argument_group("student (one of them)").add_mutually_exclusive_group(required=True)
    student.add_argument("--student", metavar="MODEL", help="folder or hub id; its head may be new")
    student.add_argument(
        "--student-layers",
        type=_layers,
        metavar="N|I,J",
        help="make it of the teacher's layers: N of them, evenly spaced, or those with these indices (0: the first)",
    )
    data = _data(distill, "texts to learn from", required=True)
    data.add_argument("--eval-data", metavar="DATA", help="texts to measure with, instead of held-out ones")
    data.add_argument(
        "--held-out",
        type=float,
        metavar="F",
        help="fraction of the rows kept out of the training, to measure with (default: 0.2)",
    )
    training = distill.add_argument_group("training arguments", _TRAINING)
    training.add_argument("--help-all", action="store_true", help="list all of them, with their defaults, and exit")
    _output(distill)

    compare = verb("compare", "measure several models side by side", _COMPARE)
    compare.add_argument("models", nargs="+", metavar="MODEL", help="folders or hub ids")
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    compare.add_argument("--html", metavar="FILE", help="also write a page with pictures")
    compare.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    compare.add_argument(
        "--batch-size", type=_numbers, default=16, metavar="N[,N]", help="texts timed together (default: 16)"
    )
    compare.add_argument(
        "--length", type=_numbers, metavar="N[,N]", help="tokens of made-up texts that are timed instead of --data"
    )
    compare.add_argument("--repeats", type=int, default=20, metavar="N", help="rounds of timing (default: 20)")
    _data(compare, "labelled texts, for accuracy and speed")
    _device(compare)

    pack = verb(
        "pack",
        "write a folder whose weights take less room",
        "Write the model of a folder so that its zeros take no room.",
    )
    unpack = verb(
        "unpack",
        "write a packed folder as a plain one",
        "Write a packed folder as one that needs no hfcompress to load.",
    )
    for one in (pack, unpack):
        one.add_argument("model", metavar="MODEL", help="folder or hub id")
        one.add_argument("output", metavar="OUT", help="folder to write")
        one.add_argument("--overwrite", action="store_true", help="replace the model in OUT, if there is one")
    return parser, distill


def _patterns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--include",
        action="append",
        metavar="PATTERN",
        help="only modules with such names, like '*attention*'; may be repeated",
    )
    parser.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="no modules with such names; may be repeated"
    )


def _data(
    parser: argparse.ArgumentParser, help: str, *, rows: int | None = None, required: bool = False
) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(
        "data", "DATA is a .csv, .jsonl or .parquet file, or the NAME of a data set on the hub,\nor NAME:SPLIT."
    )
    group.add_argument("--data", metavar="DATA", required=required, help=help)
    group.add_argument("--text-column", default="text", metavar="NAME", help="column of the text (default: text)")
    group.add_argument("--text-pair-column", metavar="NAME", help="column of the second text of a pair")
    group.add_argument("--label-column", default="label", metavar="NAME", help="column of the label (default: label)")
    group.add_argument(
        "--rows",
        type=int,
        default=rows,
        metavar="N",
        help=f"use N rows at most, drawn at random (default: {rows or 'all'})",
    )
    group.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a text at most (default: what the model can read)"
    )
    return group


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: an accelerator if there is one)")


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="OUT", required=True, help="folder to write, tokenizer included")
    group.add_argument("--overwrite", action="store_true", help="replace the model in OUT, if there is one")


def _amount(text: str) -> float | int:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction such as 0.2 nor a number of weights")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor numbers such as 64,128") from None


def _layers(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
        return numbers if "," in text else numbers[0]
    except (ValueError, IndexError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor indices such as 0,5") from None


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"hfcompress {version('hfcompress')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
