"""The command ``hfcompress`` as a whole: which verbs there are, what is printed, and the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from hfcompress_cli import launch, options
from hfcompress_cli.commands import compare, compress, distill, export, pack, prune, report, shrink

_EXAMPLES = """\
MODEL is a folder that save_pretrained wrote, or the id of a model on the hub.

examples:
  hfcompress report bert/
  hfcompress prune bert/ --amount 0.2 -o pruned/
  hfcompress shrink bert/ --flops 0.5 --data reviews.csv -o shrunken/
  hfcompress shrink e5/ --vocabulary reviews.csv -o english/
  hfcompress distill bert/ --student-layers 2 --data reviews.csv -o small/
  hfcompress compress bert/ --data reviews.csv --speedup 2,4,10 -o ladder/
  hfcompress compare bert/ pruned/ small/ --data test.csv
  hfcompress export small/ -o onnx/

Results go to standard output, progress and messages to standard error. The exit
status is 0, 2 if the input cannot be used, or 130 if it was interrupted; then
nothing was written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        argv: Its arguments; those of this process if None.

    Raises:
        SystemExit: For ``--help``, ``--help-all``, ``--version`` and arguments that are not understood.
    """
    return launch.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    try:
        return _run(_parser().parse_args(argv))
    except KeyboardInterrupt:
        print("\nhfcompress: interrupted; nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    description = "Make a Hugging Face text classifier smaller, and measure what that costs."
    parser = argparse.ArgumentParser("hfcompress", description=description, epilog=_EXAMPLES, **options.STYLE)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    kind = options.VerbParser
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, parser_class=kind)
    for command in (report, prune, shrink, distill, compress, compare, pack, export):
        command.add_parser(verbs)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if launch.is_launched() and arguments.verb not in ("distill", "compress"):
        message = "runs in one process; start it without accelerate launch or torchrun"
        print(f"hfcompress {arguments.verb}: {message}.", file=sys.stderr)
        return 2
    from hfcompress.errors import CompressionError

    try:
        with _quiet(), redirect_stdout(sys.stderr):  # the Trainer prints its log
            text, values = arguments.run(arguments)
    except (CompressionError, OSError, ImportError) as error:
        print(f"hfcompress {arguments.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(values, indent=2) if arguments.json else text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        if isinstance(error, BrokenPipeError):  # the reader, such as head, has enough
            return 0
        print(f"hfcompress {arguments.verb}: the results cannot be printed: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the screen to progress and to the command's own messages."""
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    form, warnings.formatwarning = warnings.formatwarning, _format_warning
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        warnings.formatwarning = form
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """Return a warning as a line, without the place in the code that gave it."""
    return f"warning: {' '.join(str(message).split())}\n"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"hfcompress {version('hfcompress')}")
        parser.exit()
