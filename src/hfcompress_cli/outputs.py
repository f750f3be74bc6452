"""What the command writes: folders and files, never over what is there unless that was asked, and lines of text."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress import SparsityReport
from hfcompress.atomic_folder import put_back, replacing
from hfcompress.errors import CompressionError
from hfcompress.models.heads_and_neurons import KINDS
from hfcompress.models.new_head import update_mark
from hfcompress.progress import stage
from hfcompress.report.measurements import Measurement, make_table
from hfcompress.storage.layout import check_not_exported, is_weight_file, read_config
from hfcompress.storage.model_card import CARD, is_our_card, write_card
from hfcompress_cli.models import TOKENIZER_FILES

_OLD_WEIGHTS = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")
# What else belongs to a model that is replaced, and must not be taken for a part of the new one.
_COMPANIONS = {"merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_COMPANIONS |= {"generation_config.json"}


@contextmanager
def new_folder(name: str, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes the one of that name at the end, as a whole; before that, nothing is there."""
    output = Path(name).expanduser()
    check_folder(output, overwrite)
    check_not_exported(output)
    own_card = is_our_card(output / CARD)
    with replacing(output, lambda file: _belongs_to_a_model(file) or (file == CARD and own_card)) as folder:
        try:
            yield folder
        except OSError as error:  # not always about the output
            raise CompressionError(str(error)) from error
        check_folder(output, overwrite)  # it may have been made since
        if (output / CARD).exists() and not own_card:
            (folder / CARD).unlink(missing_ok=True)  # the user's own card stays
    say_written(name)


def seen_before(model: str) -> str:
    """Return what is to be said of figures on held-out rows, as nobody knows what a model was trained on before."""
    return f"(if {model} was trained on these before, its accuracy on others is lower)"


def say_written(name: str) -> None:
    """Say on one line where a model was written, and whether it loads without hfcompress."""
    try:
        config = read_config(Path(name).expanduser())
    except CompressionError:  # such as a model that is quantized by another method, or in old files
        print(f"Written to {name}.", file=sys.stderr)
        return
    plan = config.get("quantization_config")
    if plan is None:
        print(f"Written to {name}; it loads without hfcompress.", file=sys.stderr)
        return
    uneven = " and ".join(kind for kind in KINDS if kind in plan)
    why, remedy = "its weights are packed", f"write a plain one with: hfcompress unpack {shlex.quote(name)} OUT"
    if uneven:
        why, remedy = f"no plain config states its {uneven}", "shrink the original model with --plain"
    needs = f"it does not load without hfcompress, because {why}: import hfcompress before, or {remedy}"
    print(f"Written to {name}; {needs}.", file=sys.stderr)


def fit(rows: Mapping[str, Measurement], *, verbose: bool = False) -> str:
    """Return measurements as a table that fits the terminal, or 80 columns.

    If needed, it has a column for each model, and if that is too wide too, parts below each other.
    """
    width = terminal_width()
    table = make_table(rows, verbose=verbose)
    turned = replace(table, rows=list(zip(*table.rows, strict=True)), alignment="<" + ">" * (len(table.rows) - 1))
    for one in (table, turned):
        if _width(replace(one, notes=()).text()) <= width:
            return one.text(width)
    return min(
        (one.text(width) for one in (table, turned)), key=lambda text: (max(_width(text), width), text.count("\n"))
    )


def fold(text: str) -> str:
    """Return a text of which no line is wider than the terminal, or 80 columns."""
    return "\n".join(textwrap.fill(line, terminal_width()) for line in text.splitlines())


def terminal_width() -> int:
    """Return the columns of the terminal, 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def next_command(verb: str, *words: Sequence[str]) -> str:
    """Return a command of this program, quoted as a shell reads it, in lines of at most 80 columns where it can be.

    Args:
        verb: Its verb.
        words: Its arguments; those of one sequence, such as an option and its value, stay in one line.
    """
    lines, end = [f"  hfcompress {verb}"], " \\"
    for part in map(shlex.join, words):
        if len(lines[-1]) + 1 + len(part) + len(end) > 80:
            lines[-1] += end
            lines.append("     ")
        lines[-1] += f" {part}"
    return "\n".join(lines)


def free_name(name: str, suffix: str) -> str:
    """Return the name of a folder beside another, which does not exist yet, such as ``half-distilled/``."""
    name = os.path.normpath(name)
    if Path(name).name in ("", ".."):  # the working directory, or another whose name is not in its path
        name = os.path.abspath(name)
    base = f"{name}-{suffix}"
    names = (base, *(f"{base}-{number}" for number in range(2, 100)))
    return next((one for one in names if not Path(one).expanduser().exists()), base) + "/"


def check_folder(output: Path, overwrite: bool) -> None:
    """Refuse to replace a folder unless that was asked and it holds a model. A file is refused when it is written."""
    put_back(output)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise CompressionError(f"{output} exists already; name another folder, or replace it with --overwrite.")
    if not (output / "config.json").is_file():
        raise CompressionError(f"{output} holds no model, so --overwrite does not replace it; name another folder.")


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Save a model, with its tokenizer if it has one, and with a card that says so if its head is new."""
    with stage("writing the model"):
        head = update_mark(model)
        model.save_pretrained(folder)
        if head:
            write_card(model, folder, name=type(model).__name__, results=None, notes={})
        if tokenizer is None:
            print("The model has no tokenizer, so none was saved with it.", file=sys.stderr)
        else:
            tokenizer.save_pretrained(folder)


def check_file(file: Path, overwrite: bool) -> None:
    """Refuse to write a file that cannot be written, or over one that is not to be replaced."""
    if file.is_dir():
        raise CompressionError(f"{file} is a directory; name a file.")
    if not os.access(file.parent, os.W_OK):
        raise CompressionError(f"{file} cannot be written: there is no directory {file.parent}, or it is read-only.")
    if file.exists() and not (overwrite and file.is_file()):
        raise CompressionError(f"{file} exists already; name another file, or replace it with --overwrite.")


def write_file(file: Path, text: str, overwrite: bool) -> None:
    """Write a file, whole or not at all."""
    check_file(file, overwrite)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def stored_bytes(folder: Path) -> int:
    """Return the bytes of the files of weights in a folder."""
    files = [file for file in folder.iterdir() if is_weight_file(file.name) or _OLD_WEIGHTS.fullmatch(file.name)]
    return sum(file.stat().st_size for file in files)


def to_lines(report: SparsityReport, **values: str) -> str:
    """Return values and the totals of a report as lines, each behind its name."""
    values["prunable"] = f"{report.weights:,} weights, {report.zeros:,} of them zero ({report.sparsity:.2%})"
    if report.not_covered:
        values["not covered"] = ", ".join(report.not_covered)
    return as_lines(values)


def as_lines(values: Mapping[str, str]) -> str:
    """Return values as lines that fit the terminal, each behind its name."""
    width, indent = terminal_width(), " " * 13
    how: dict[str, Any] = {"subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(f"{name:<11}  {value}", width, **how) for name, value in values.items())


def _belongs_to_a_model(name: str) -> bool:
    return is_weight_file(name) or name in TOKENIZER_FILES | _COMPANIONS
