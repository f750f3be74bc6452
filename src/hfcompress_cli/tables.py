"""Rows of text files: .csv and .tsv, .jsonl and .json, each also as .gz; what cannot be read for certain is refused."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hfcompress.errors import CompressionError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Row(dict[str, Any]):
    """The wanted cells of a row by column.

    Attributes:
        place: The place of the row, for messages.
        class_names: By column, what its data set calls the classes whose indices the cells are.
        said: What was said of its table on standard error, where it is the first row of that.
    """

    place = "A row"
    class_names: Mapping[str, Sequence[str]] | None = None
    said: set[str] | None = None

    @classmethod
    def make(cls, cells: Iterable[tuple[str, Any]], place: str) -> Row:
        """Make a row of pairs."""
        row = cls(cells)
        row.place = place
        return row


def table_suffix(path: Path | str) -> str:
    """Return the suffix that says how a file is read, without ``.gz``."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def is_table(path: Path | str) -> bool:
    """Whether a file of this name is read here."""
    return has_cells(path) or table_suffix(path) in (".jsonl", ".json")


def has_cells(path: Path | str) -> bool:
    """Whether a file of this name has cells between delimiters."""
    return table_suffix(path) in _DELIMITERS


def read_table(
    path: Path,
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str | None = None,
    quotes: bool = True,
) -> Iterator[Row]:
    """Read the wanted columns of a file, row by row.

    Args:
        path: The file.
        wanted: The columns. A row of JSON may lack some, if not all rows do.
        optional: Columns that are read too where there are any.
        delimiter: What separates the cells of a ``.csv`` or ``.tsv`` file, if not a comma or a tab.
        encoding: If None UTF-8.
        quotes: Whether cells of a ``.csv`` or ``.tsv`` file may be quoted; otherwise quotes are characters like others.

    Raises:
        CompressionError: Something cannot be read for certain; the message names its line.
    """
    kind = table_suffix(path)
    with _open(path, encoding) as lines:
        if kind in _DELIMITERS:
            delimiter = _read_delimiter(delimiter, _DELIMITERS[kind])
            yield from _read_cells(path, lines, wanted, optional, delimiter, quotes)
        else:
            objects = (_read_json_lines if kind == ".jsonl" else _read_json_array)(path, lines)
            yield from _pick_columns(path, objects, wanted, optional)


def check_columns(where: object, wanted: Sequence[str], found: Iterable[Any], hint: str = "") -> None:
    """Refuse data without the wanted columns."""
    found = [str(name) for name in found]
    missing = [name for name in wanted if name not in found]
    if missing:
        lacks, there = " and no ".join(map(repr, missing)), ", ".join(map(repr, found)) or "none"
        raise CompressionError(
            f"{where} has no column {lacks} (found: {there}); name the columns with --text-column and "
            f"--label-column{hint}."
        )


# Lines


@contextmanager
def _open(path: Path, encoding: str | None) -> Iterator[Iterator[str]]:
    """Open a file for reading its lines, with their ends as they are in it."""
    with _open_bytes(path) as file:
        start = file.peek(4)[:4]
        if encoding is None:
            for mark, name in _MARKS.items():
                if start.startswith(mark):
                    raise CompressionError(
                        f"{path} is not UTF-8 but {name}; say so with --encoding {name}{_or_convert(path, name)}."
                    )
        if start.startswith(b"\x1f\x8b"):
            raise CompressionError(f"{path} is compressed by gzip; end its name in .gz.")
        if start.startswith(b"PK\x03\x04"):
            raise CompressionError(f"{path} is a spreadsheet or another zip file; save it as .csv.")
        name = encoding or "utf-8"
        try:
            text = io.TextIOWrapper(file, name, newline="")
        except LookupError as error:
            raise CompressionError(f"--encoding {name} is not known to Python: name another, as utf-8.") from error
        with text:
            yield _decode(path, text, name)


def _open_bytes(path: Path) -> Any:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _decode(path: Path, text: Iterable[str], encoding: str) -> Iterator[str]:
    try:
        for number, line in enumerate(text, start=1):
            if "\0" in line:
                raise CompressionError(f"Line {number} of {path} holds a NUL character; {_explain_nul(path)}.")
            yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        byte = f" (byte 0x{error.object[error.start]:02x})" if isinstance(error, UnicodeDecodeError) else ""
        raise CompressionError(
            f"Line {_undecodable_line(path, encoding)} of {path} is not in {encoding}{byte}; "
            f"{_explain_encoding(path, encoding)}."
        ) from error


def _undecodable_line(path: Path, encoding: str) -> int | str:
    with _open_bytes(path) as file, io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="") as text:
        try:
            found = (number for number, line in enumerate(text, start=1) if re.search("[\udc80-\udcff]", line))
            return next(found, "1 or another")
        except UnicodeError:  # UTF-16 and UTF-32 know no such escapes
            return "1 or another"


def _explain_encoding(path: Path, encoding: str) -> str:
    """Say which encoding a file that is not in UTF-8 may be in, how it reads in that, and what to do."""
    other = "name the encoding of the file with --encoding, as cp1252"
    if codecs.lookup(encoding).name != "utf-8":
        return other
    if (utf16 := _unmarked_utf16(path)) is not None:
        return _say_utf16(path, utf16)
    with _open_bytes(path) as file:
        is_utf8 = False  # whether a line before has other characters than ASCII
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                start = error.start
                break
            is_utf8 |= not line.isascii()
        else:
            return other
    if is_utf8:
        return f"lines before it are UTF-8, so correct that line; or {other}"
    for name, called in (("cp1252", "Latin-1 or cp1252 of Windows"), ("latin-1", "Latin-1")):
        with suppress(UnicodeDecodeError):
            shown = line.decode(name)[max(0, start - 15) :][:30].strip()
            reads = f"if it is in {called}, where it reads {shown!r}, say so with --encoding {name}"
            return reads + _or_convert(path, name)
    return other


def _explain_nul(path: Path) -> str:
    """Say what to do with NUL characters."""
    if (utf16 := _unmarked_utf16(path)) is not None:
        return _say_utf16(path, utf16)
    return "remove it; if the file is in UTF-16, say so with --encoding utf-16-le or utf-16-be"


def _unmarked_utf16(path: Path) -> str | None:
    """Return the encoding of a file in UTF-16 without a mark: every other byte of most languages' is 0, or nearly."""
    with _open_bytes(path) as file:
        start = file.read(1000)
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        high, low = start[first::2], start[1 - first :: 2]
        if high.count(0) > 0.5 * len(high) and low.count(0) == 0:
            return name
    return None


def _say_utf16(path: Path, encoding: str) -> str:
    return f"the file is in UTF-16: say so with --encoding {encoding}{_or_convert(path, encoding)}"


def _or_convert(path: Path, encoding: str) -> str:
    names = {"latin-1": "ISO-8859-1", "cp1252": "WINDOWS-1252"}
    called = names.get(encoding, re.sub(r"-(?=[BL]E$)", "", encoding.upper()))
    if path.suffix.lower() == ".gz":
        return ""
    return f", or convert it: iconv -f {called} -t UTF-8 {shlex.quote(str(path))} > NEW{path.suffix}"


# Cells


def _read_delimiter(given: str | None, default: str) -> str:
    delimiter = {None: default, "\\t": "\t", "tab": "\t"}.get(given, given or "")
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise CompressionError(f"--delimiter {given!r} must be one character, such as ';', or \\t for a tab.")
    return delimiter


def _read_cells(
    path: Path, lines: Iterator[str], wanted: Sequence[str], optional: Sequence[str], delimiter: str, quotes: bool
) -> Iterator[Row]:
    header: list[str] | None = None
    places: list[tuple[str, int]] = []
    named, swallowing, first_swallowing = 0, 0, 0
    for number, cells in _read_records(path, lines, delimiter, quotes):
        if header is None:
            header = cells
            named = _check_header(path, number, header, wanted, delimiter)
            also = [name for name in optional if name in header]
            places = [(name, header.index(name)) for name in dict.fromkeys([*wanted, *also])]
            continue
        if len(cells) != len(header) or any(cell.strip() for cell in cells[named:]):
            _refuse_cells(path, number, cells, header, delimiter)
        if any(("\n" in cell or "\r" in cell) and cell.count(delimiter) >= len(header) - 1 for cell in cells):
            swallowing, first_swallowing = swallowing + 1, first_swallowing or number
        yield Row.make(((name, cells[place]) for name, place in places), f"Line {number} of {path}")
    if header is None:
        check_columns(path, wanted, [])
    if swallowing:
        print(
            f"{path}: {swallowing} rows, the first at line {first_swallowing}, have a cell with line breaks and as "
            "many delimiters as a row has; see that no quote is left open there, which makes one cell of several rows.",
            file=sys.stderr,
        )


def _read_records(path: Path, lines: Iterator[str], delimiter: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, with the number of its first line."""
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the 128 kB that are the default
    read: list[str] = []  # the lines of the row

    def note() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    style: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE}
    reader = csv.reader(note(), strict=True, delimiter=delimiter, **style)
    first = 1
    remedy = "double the quotes within a quoted cell, or read all quotes as characters like others with --no-quotes"
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote is opened and not closed" if "end of data" in str(error) else f"a quote is amiss ({error})"
            raise CompressionError(f"Line {first} of {path} cannot be read: {what}; {remedy}.") from error
        line = "".join(read)
        read.clear()
        if line.strip() or len(cells) > 1:
            if quotes and '"' in line and _has_stray_quote(line, cells):
                what = "a quote stands in a cell that does not begin with one"
                raise CompressionError(f"Line {first} of {path} cannot be read: {what}; {remedy}.")
            yield first, cells
        first = reader.line_num + 1


def _has_stray_quote(line: str, cells: Sequence[str]) -> bool:
    """Whether a cell that was not quoted holds a quote."""
    start = 0
    for cell in cells:
        if line.startswith('"', start):
            start += 2 + cell.count('"')
        elif '"' in cell:
            return True
        start += len(cell) + 1
    return False


def _check_header(path: Path, number: int, header: list[str], wanted: Sequence[str], delimiter: str) -> int:
    """Refuse a header with missing or doubled columns; return how many there are before those without a name."""
    names = [name.strip() for name in header]
    if len(line := delimiter.join(names)) <= 5 and line.lower().startswith("sep="):
        raise CompressionError(
            f"Line {number} of {path} is no header, but says to a spreadsheet what separates the cells; remove that "
            f"line, and name the same with --delimiter {line[4:]!r}."
        )
    named = max((place + 1 for place, name in enumerate(names) if name), default=0)
    for place, name in enumerate(names[:named]):
        if name in names[:place]:
            raise CompressionError(
                f"Line {number} of {path} names the column {name!r} twice; give each column a name of its own."
            )
    other = next((one for one in ",;\t|" if len(header) == 1 and one != delimiter and one in header[0]), None)
    hint = "" if other is None else f", or what separates the cells with --delimiter {other!r}"
    check_columns(path, wanted, header, hint)
    return named


def _refuse_cells(path: Path, number: int, cells: list[str], header: list[str], delimiter: str) -> NoReturn:
    where = f"Line {number} of {path}"
    if len(cells) == len(header):
        raise CompressionError(f"{where} has a cell in a column that has no name in the header; name it or empty it.")
    raise CompressionError(
        f"{where} has {len(cells)} cells and the header {len(header)}; put cells that hold {delimiter!r} in quotes."
    )


# JSON


def _read_json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"Line {number} of {path}"
            try:
                row = json.loads(line, object_pairs_hook=_check_keys(where))
            except json.JSONDecodeError as error:
                raise CompressionError(f"{where} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise CompressionError(f"{where} is not a JSON object, but {line.strip()[:40]!r}.")
            yield where, row


def _read_json_array(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of an array one by one, because the line of each is wanted."""
    text = "".join(lines)
    position, number, counted = _skip_space(text, 0), 1, 0
    if not text.startswith("[", position):
        raise CompressionError(
            f"{path} is not a JSON array of objects; if each line is an object, end its name in .jsonl."
        )
    position = _skip_space(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        number, counted = number + text.count("\n", counted, position), position
        where = f"Line {number} of {path}"
        try:
            row, position = json.JSONDecoder(object_pairs_hook=_check_keys(where)).raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise CompressionError(f"{path} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise CompressionError(f"{where} is not a JSON object, but {json.dumps(row)[:40]!r}.")
        yield where, row
        position = _skip_space(text, position)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            raise CompressionError(f"{where} is not JSON: behind its object there is neither a comma nor a bracket.")
        if not closed:
            position = _skip_space(text, position + 1)
    if text[position + 1 :].strip():
        raise CompressionError(f"{path} is not JSON: it goes on behind the end of its array.")


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def _check_keys(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            raise CompressionError(f"{where} has the key {doubled!r} twice; which is meant is not known.")
        return found

    return check


def _pick_columns(
    path: Path, objects: Iterable[tuple[str, dict[str, Any]]], wanted: Sequence[str], optional: Sequence[str]
) -> Iterator[Row]:
    found: dict[str, None] = {}
    place = ""
    for place, row in objects:
        found.update(dict.fromkeys(row))
        names = [*wanted, *(name for name in optional if name in row)]
        yield Row.make(((name, row.get(name)) for name in names), place)
    if place:
        check_columns(path, wanted, found)
