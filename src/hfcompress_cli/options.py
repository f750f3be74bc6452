"""The parser of a verb, and the options that several verbs share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

STYLE: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
MODEL: dict[str, Any] = {"metavar": "MODEL", "help": "folder or hub id"}
DEVICE: dict[str, Any] = {"help": "such as cpu or cuda:1 (default: an accelerator if there is one)"}
OVERWRITE: dict[str, Any] = {"action": "store_true", "help": "replace the model in OUT, if there is one"}
SEED = 42  # by which rows are held out, unless another is given
LABEL_COLUMN = "label"  # of the data, unless another is named
# Options that say how a file is read and which rows of it measure, and what they are unless they are given; the next
# command to type needs them too, or it would measure with rows that this one trained on.
_HELD_OUT = 0.2
_READING: dict[str, Any] = {"text_column": "text", "text_pair_column": None, "label_column": LABEL_COLUMN}
_READING |= {"max_length": None, "label_separator": None, "labels_are": None, "delimiter": None, "encoding": None}
_READING |= {"eval_data": None, "held_out": _HELD_OUT}
_OF_FILES = ("delimiter", "encoding", "eval_data", "held_out")  # of those, what says nothing of rows
Results = tuple[str, dict[str, Any]]  # what a verb returns: text, and values for JSON


class VerbParser(argparse.ArgumentParser):
    """A parser that may leave all but ``--help`` to one that ``complete`` makes of it, which takes longer.

    Only a parser that knows all options can tell the value of one from an argument.
    """

    complete: Callable[[argparse.ArgumentParser], argparse.ArgumentParser] | None = None
    completed_for: frozenset[str] = frozenset()  # options that need the others; any command does if there are none

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        read_percentages(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse with all options, unless only the help is asked for."""
        given = {one.partition("=")[0] for one in args}
        is_light = bool(self.completed_for) and not given & {*self.completed_for, "--help-all"}
        if self.complete is None or given & {"-h", "--help"} or is_light:
            return super().parse_known_args(args, namespace)
        return self.complete(self).parse_known_args(args, namespace)


def read_percentages(parser: argparse.ArgumentParser) -> None:
    """Take ``-5%`` for the value of an option, as from Python 3.14 on, so that it is refused with its reason."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")


Verbs: TypeAlias = "argparse._SubParsersAction[VerbParser]"


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], Results], summary: str, description: str | None
) -> VerbParser:
    """Add a verb with the options that all have."""
    parser = verbs.add_parser(name, help=summary, description=description, **STYLE)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run)
    return parser


def add_matrices(parser: argparse.ArgumentParser) -> None:
    """Add which weight matrices are meant, and whether to list them."""
    patterns: dict[str, Any] = {"action": "append", "metavar": "PATTERN"}
    parser.add_argument("--verbose", action="store_true", help="list every weight matrix")
    help = "only modules with such names, like '*attention*'; may be repeated"
    parser.add_argument("--include", **patterns, help=help)
    parser.add_argument("--exclude", **patterns, help="no modules with such names; may be repeated")


def add_data(parser: VerbParser, help: str, *, rows: int | None = None, **data: Any) -> argparse._ArgumentGroup:
    """Add where texts and labels come from."""
    kinds = (
        "DATA is a .csv, .tsv, .jsonl or .json file (each also as .gz), a .parquet\n"
        "file, or the NAME of a data set on the hub, or NAME:SPLIT."
    )
    group = parser.add_argument_group("data", kinds)
    add = group.add_argument
    add("--data", metavar="DATA", help=help, **data)
    add("--text-column", default="text", metavar="NAME", help="column of the text (default: %(default)s)")
    add("--text-pair-column", metavar="NAME", help="column of the second text of a pair")
    add("--label-column", default=LABEL_COLUMN, metavar="NAME", help="column of the label (default: %(default)s)")
    help = f"use N rows at most, drawn at random (default: {rows or 'all'})"
    add("--rows", type=int, default=rows, metavar="N", help=help)
    add("--max-length", type=int, metavar="N", help="tokens of a text at most (default: what the model can read)")
    help = "what is between the labels of a cell, such as ';', where a text has several; an empty cell has none"
    add("--label-separator", type=_separator, metavar="S", help=help)
    help = "how labels are read where they could be both names of classes and indices"
    add("--labels-are", choices=("names", "indices"), help=help)
    add("--delimiter", metavar="C", help="what is between cells (default: a comma in .csv, a tab in .tsv)")
    add("--encoding", metavar="NAME", help="of the file, such as cp1252 or utf-16 (default: utf-8)")
    add("--no-quotes", action="store_true", help="read quotes in .csv and .tsv as characters like others")
    return group


def add_training(parser: VerbParser, about: str) -> argparse._ArgumentGroup:
    """Add what is common to trainings; the training arguments themselves are added when the command is parsed."""
    training = parser.add_argument_group("training arguments", about)
    help = "how often all rows are trained on, as --num-train-epochs"
    training.add_argument("--epochs", dest="num_train_epochs", type=float, metavar="N", help=help)
    training.add_argument("--help-all", action="help", help="list all of them, with their defaults, and exit")
    return training


def add_held_out(data: argparse._ArgumentGroup) -> None:
    """Add which rows a training is measured with."""
    measured = data.add_mutually_exclusive_group()
    help = "texts to measure with, instead of held-out ones"
    measured.add_argument("--eval-data", "--validation", metavar="DATA", help=help)
    help = "share of the rows kept out of the training, to measure with (default: 0.2)"
    measured.add_argument("--held-out", type=fraction, default=_HELD_OUT, metavar="F", help=help)


def check_measured(arguments: argparse.Namespace) -> None:
    """Refuse to hold out nothing where something is always measured."""
    from hfcompress.errors import CompressionError

    if arguments.eval_data is None and not arguments.held_out > 0:
        raise CompressionError(
            f"{arguments.verb} measures with rows that it does not learn from, so --held-out must be above 0; or name "
            "others with --eval-data."
        )


def data_options(arguments: argparse.Namespace, rows: str | None = None) -> list[list[str]]:
    """Return the options by which another verb reads the same data, for the next command to type.

    Args:
        arguments: Of this verb.
        rows: A file that it wrote, with rows of the data as they were read.
    """
    words = [["--data", rows or arguments.data or "FILE.csv"]]
    for name, default in _READING.items():
        if (value := getattr(arguments, name)) != default and not (rows and name in _OF_FILES):
            words.append([f"--{name.replace('_', '-')}", str(value)])
    return [*words, ["--no-quotes"]] if arguments.no_quotes and not rows else words


def text_columns(arguments: argparse.Namespace, *, labelled: bool = True) -> list[str]:
    """Return the column of the text, or those of the two texts of a pair.

    Args:
        arguments: Of a verb that reads data.
        labelled: Whether labels are read too.

    Raises:
        CompressionError: One of them holds the labels, which a model would read then; or both are one.
    """
    from hfcompress.errors import CompressionError

    columns = [name for name in (arguments.text_column, arguments.text_pair_column) if name is not None]
    if len({*columns}) < len(columns):
        raise CompressionError(f"--text-column and --text-pair-column are both {columns[0]!r}; name two columns.")
    if labelled and arguments.label_column in columns:
        raise CompressionError(
            f"{arguments.label_column!r} is the column of a text and that of the labels, of which the default is "
            f"{LABEL_COLUMN!r}; name two with --text-column and --label-column."
        )
    return columns


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how rows are read from --data."""
    kept = arguments.label_separator is not None
    return table(arguments) | {"rows": arguments.rows, "keep_unlabelled": kept}


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how tables are read.

    Raises:
        CompressionError: Something is said of cells or encodings, and none of the files has any.
    """
    from hfcompress.errors import CompressionError
    from hfcompress_cli.tables import has_cells, is_table

    names = ("data", "eval_data", "vocabulary", "unlabelled")
    given = [one for name in names if isinstance(one := getattr(arguments, name, None), str | list)]
    sources = [source for one in given for source in (one if isinstance(one, list) else [one])]
    asked = {"--delimiter": arguments.delimiter, "--no-quotes": arguments.no_quotes or None}
    for option, value in asked.items():
        if value is not None and sources and not any(map(has_cells, sources)):
            raise CompressionError(f"{option} is about .csv and .tsv files, and {sources[0]} is none; leave it out.")
    if arguments.encoding is not None and sources and not any(map(is_table, sources)):
        raise CompressionError(f"--encoding is about text files, and {sources[0]} is none; leave it out.")
    return {"delimiter": arguments.delimiter, "encoding": arguments.encoding, "quotes": not arguments.no_quotes}


def weight_column(arguments: argparse.Namespace, name: str | None) -> str | None:
    """Return the column of the rows' weights; none where the usual one holds the labels or texts.

    Raises:
        CompressionError: Another one holds them.
    """
    from hfcompress.distill.label_weights import WEIGHT_COLUMN
    from hfcompress.errors import CompressionError

    read = {arguments.label_column: "labels"} | dict.fromkeys(text_columns(arguments), "texts")
    if name not in read:
        return name
    if name != WEIGHT_COLUMN:
        raise CompressionError(
            f"--weight-column {name} is the column of the {read[name]}; name another, or '' for none."
        )
    return None


def labels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how the labels of rows are read."""
    return {"separator": arguments.label_separator, "read_as": arguments.labels_are}


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the folder that is written."""
    group = parser.add_argument_group("output")
    help = "folder to write, tokenizer included"
    group.add_argument("-o", "--output", metavar="OUT", required=True, type=output_name, help=help)
    group.add_argument("--overwrite", **OVERWRITE)


def output_name(text: str) -> str:
    """Return the name of what is written; refuse an empty one, such as of a variable that the shell does not know."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name what is to be written, '.' for the working directory")
    return text


def _separator(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; name at least one character")
    return text


def fraction(text: str) -> float:
    """Read a fraction, such as 0.2 or 20%.

    Example:
        >>> fraction("0.2"), fraction("20%"), fraction("12.5 %")
        (0.2, 0.2, 0.125)
    """
    number, percent, rest = text.strip().partition("%")
    try:
        if rest:
            raise ValueError
        return round(float(number) / 100, 15) if percent else float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a fraction such as 0.2 nor a percentage such as 20%"
        ) from None


def amount(text: str) -> float | int:
    """Read a fraction, a percentage, or a whole number.

    Example:
        >>> amount("0.2"), amount("20%"), amount("20")
        (0.2, 0.2, 20)
    """
    with suppress(ValueError):
        return int(text)
    try:
        return fraction(text)
    except argparse.ArgumentTypeError:
        message = f"{text!r} is neither a fraction such as 0.2 or 20% nor a number of weights"
        raise argparse.ArgumentTypeError(message) from None


def layers(text: str) -> int | list[int]:
    """Read a number of layers, or their indices where there is a comma."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
        return numbers if "," in text else numbers[0]
    except (ValueError, IndexError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor indices such as 0,5") from None
