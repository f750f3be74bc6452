"""The command ``hfcompress`` as a whole: which verbs there are, what is printed, and the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from hfcompress_cli import launch, options
from hfcompress_cli.commands import compare, compress, distill, export, finetune, pack, prune, report, shrink
from hfcompress_cli.display import Display, showing
from hfcompress_cli.messages import name_options
from hfcompress_cli.stopping import Signals, end_without_traceback, stopped_by_signals

_EXAMPLES = """\
MODEL is a folder that save_pretrained wrote, or the id of a model on the hub.

examples:
  hfcompress finetune bert-base/ --data reviews.csv -o bert/
  hfcompress report bert/
  hfcompress prune bert/ --amount 20% --data reviews.csv --epochs 2 -o pruned/
  hfcompress shrink bert/ --flops 0.5 --data reviews.csv -o half/
  hfcompress shrink e5/ --vocabulary reviews.csv -o english/
  hfcompress distill bert/ --student half/ --data reviews.csv -o small/
  hfcompress compress bert/ --data reviews.csv --speedup 2,4,10 -o ladder/
  hfcompress compare bert/ half/ small/ --data test.csv
  hfcompress export small/ -o onnx/

Results go to standard output, progress and messages to standard error. The exit
status is 0, 2 if the input cannot be used, or 130 or 143 if it was interrupted
or terminated; then nothing was written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        argv: Its arguments; those of this process if None.

    Raises:
        SystemExit: For ``--help``, ``--help-all``, ``--version`` and arguments that are not understood.
    """
    return launch.run(lambda: _main(argv))


def program() -> NoReturn:
    """Run the command as a program, which ends with its exit status."""
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that has no such letter gets its code, as on standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    status = main()
    end_without_traceback()
    raise SystemExit(status)


def _main(argv: Sequence[str] | None) -> int:
    arguments = argparse.Namespace()
    before: int | None = None
    with stopped_by_signals() if launch.is_main() else nullcontext(Signals()) as signals:
        try:
            with showing("importing torch and transformers") as display:
                arguments = _parser().parse_args(argv)
                before = _identity(arguments)
                results = _run(arguments, display)
            if not isinstance(results, int):
                return _print(arguments, *results)
            if signals.received is None:
                return results
        except KeyboardInterrupt:
            pass
        except Exception:  # such as a library makes of the signal
            if signals.received is None:
                raise
        print(f"\nhfcompress: interrupted; {_what_was_written(arguments, before)}.", file=sys.stderr)
        return signals.status


def _parser() -> argparse.ArgumentParser:
    description = "Make a Hugging Face text classifier smaller, and measure what that costs."
    parser = argparse.ArgumentParser("hfcompress", description=description, epilog=_EXAMPLES, **options.STYLE)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    kind = options.VerbParser
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, parser_class=kind)
    for command in (finetune, report, prune, shrink, distill, compress, compare, pack, export):
        command.add_parser(verbs)
    return parser


def _run(arguments: argparse.Namespace, display: Display) -> options.Results | int:
    """Run a verb; return its results, or the exit status of one that failed."""
    verb = f"hfcompress {arguments.verb}"
    if launch.is_launched() and arguments.verb not in ("distill", "finetune", "compress"):
        print(f"{verb}: runs in one process; start it without accelerate launch or torchrun.", file=sys.stderr)
        return 2
    from hfcompress.errors import CompressionError
    from hfcompress.progress import listening, stage

    try:
        with _quiet(arguments), redirect_stdout(sys.stderr), listening(display), stage(verb):
            results: options.Results = arguments.run(arguments)
            return results
    except (CompressionError, OSError, ImportError) as error:
        print(f"{verb}: {name_options(' '.join(str(error).split()), arguments)}", file=sys.stderr)
        return 2


def _print(arguments: argparse.Namespace, text: str, values: dict[str, Any]) -> int:
    """Print the results of a verb; return the exit status."""
    try:
        print(json.dumps(values, indent=2) if arguments.json else text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        if isinstance(error, BrokenPipeError):  # the reader, such as head, has enough
            return 0
        print(f"hfcompress {arguments.verb}: the results cannot be printed: {error}", file=sys.stderr)
        return 1
    return 0


def _what_was_written(arguments: argparse.Namespace, before: int | None) -> str:
    """Say what an interrupted verb has written, if anything."""
    name = _output(arguments)
    same = _identity(arguments) == before
    begun = () if name is None or arguments.verb != "compress" else ("ladder.json", ".work")
    if begun and arguments.overwrite and before is not None and same:
        return f"the ladder in {name} is as it was"
    if any((Path(str(name)).expanduser() / one).exists() for one in begun):
        without = " without --overwrite" if arguments.overwrite else ""
        return f"what is done of the ladder is in {name}, and the same command{without} goes on from there"
    return "nothing was written" if same else f"{name} was written"


def _identity(arguments: argparse.Namespace) -> int | None:
    """Return what tells the folder or file that is written from the one that was there before."""
    name = _output(arguments)
    file = "ladder.json" if arguments.verb == "compress" else ""  # the folder stays
    try:
        return None if name is None else (Path(name).expanduser() / file).stat().st_ino
    except OSError:  # there is none
        return None


def _output(arguments: argparse.Namespace) -> str | None:
    """Return the name of the folder or file that a verb writes; None if it writes none."""
    name: str | None = getattr(arguments, "output", None) or getattr(arguments, "html", None)
    return name


@contextmanager
def _quiet(arguments: argparse.Namespace) -> Iterator[None]:
    """Leave the screen to progress and to the command's own messages."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers import logging

    def format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
        """Return a warning as a line, without the place in the code that gave it."""
        return f"warning: {name_options(' '.join(str(message).split()), arguments)}\n"

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    form, warnings.formatwarning = warnings.formatwarning, format_warning
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty():  # downloads have bars of their own
        enable_progress_bars()
    try:
        yield
    finally:
        warnings.formatwarning = form
        logging.set_verbosity(verbosity)
        (enable_progress_bars if bars else disable_progress_bars)()
        if bars:
            logging.enable_progress_bar()


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("hfcompress")  # without the seconds that importing it takes
        except PackageNotFoundError:  # it is run from its source
            import hfcompress

            found = hfcompress.__version__
        print(f"hfcompress {found}")
        parser.exit()
