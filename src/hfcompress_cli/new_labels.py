"""The labels of a new classification head, from the label column of a file or data set."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.errors import CompressionError
from hfcompress_cli.labels import as_number, is_whole
from hfcompress_cli.tables import Row

_FEW = 10  # classes that are taken for classes, however few rows there are


@dataclass(frozen=True)
class NewLabels:
    """What a new head predicts.

    Attributes:
        names: Of its classes, in their order; of a regression none.
        problem: As ``problem_type`` of a config.
    """

    names: tuple[str, ...]
    problem: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a config."""
        if not self.names:
            return {"num_labels": 1, "problem_type": self.problem}
        id2label = dict(enumerate(self.names))
        label2id = {name: index for index, name in id2label.items()}
        return {"problem_type": self.problem, "id2label": id2label, "label2id": label2id}


def find_labels(rows: Sequence[Row], column: str, separator: str | None, *, regression: bool) -> NewLabels:
    """Find out what the cells of a label column are: classes, several classes a text, or numbers.

    Cells with a list, or with a separator between labels, have several. Numbers that are not whole are to be
    predicted, whole ones are classes unless ``regression`` is set. Classes are in the order of their numbers, or of
    the alphabet, or where the data set has names for them as there; names that differ but for case are one.

    Args:
        rows: The data.
        column: That of the labels.
        separator: What stands between the labels of a cell.
        regression: Whether the labels are numbers to predict.

    Raises:
        CompressionError: A cell is no label of that kind, or there are fewer than two classes, or too many.
    """
    listed = next((row for row in rows if isinstance(row[column], list)), None)
    several = separator is not None or listed is not None
    if regression and listed is not None:
        raise CompressionError(
            f"--regression is for one number a text, and {listed.place} has the list {listed[column]!r:.40}; leave it "
            "out, or write one number there."
        )
    if regression and several:
        raise CompressionError("--regression is for one number a text; leave it out, or --label-separator.")
    if several:
        _check_no_table([row[column] for row in rows], rows)
    parts = [(row, part) for row in rows for part in _parts(row[column], separator)]
    for row, part in parts:
        if isinstance(part, Mapping | list | tuple | bytes):
            raise CompressionError(
                f"{row.place} has {part!r:.40} in the column {column!r}, which is no label: a text or a number."
            )
    cells = [part for _, part in parts]
    names = (getattr(rows[0], "class_names", None) or {}).get(column, [])
    problem = "multi_label_classification" if several else "single_label_classification"
    if names and not regression:
        return NewLabels(tuple(names), problem)
    numbers = [as_number(cell) for cell in cells]
    if regression or (not several and None not in numbers and any(one % 1 for one in numbers if one is not None)):
        _check_numbers(rows, column)
        if not regression:
            print(f"The labels are numbers such as {_fraction(cells)}: the model predicts numbers.", file=sys.stderr)
        return NewLabels((), "regression")
    return NewLabels(_classes(cells, column, len(rows)), problem)


def _check_no_table(cells: Sequence[Any], rows: Sequence[Row]) -> None:
    """Refuse lists that have a 0 or 1 for each class: the classes have no names there."""
    if all(isinstance(cell, list) and all(one in (0, 1) for one in cell) for cell in cells):
        lengths = {len(cell) for cell in cells}
        if lengths != {1} and len(lengths) == 1:
            raise CompressionError(
                f"The labels {cells[0]} are a 0 or 1 for each class, and do not say what the classes are called; list "
                f'the names of those that a text has, such as ["news", "sports"] ({rows[0].place}).'
            )


def _parts(cell: Any, separator: str | None) -> Iterator[Any]:
    if isinstance(cell, list):
        yield from cell
    elif isinstance(cell, str) and separator is not None:
        yield from (part for part in cell.split(separator) if part.strip())
    elif cell is not None:
        yield cell


def _classes(cells: Sequence[Any], column: str, rows: int) -> tuple[str, ...]:
    """Return the names of the classes in their order."""
    spelled: dict[Any, Counter[str]] = {}
    for cell in cells:
        number = as_number(cell)
        is_name = isinstance(cell, bool) or number is None or not is_whole(str(cell)) or _is_code(cell)
        text = str(cell).strip() if is_name else f"{number:.15g}"
        spelled.setdefault(text.casefold(), Counter())[text] += 1
    for counts in spelled.values():
        if len(counts) > 1:
            listed = " and ".join(f"{name!r} ({count:,})" for name, count in counts.most_common())
            print(f"The labels {listed} are read as one: {counts.most_common(1)[0][0]!r}.", file=sys.stderr)
    names = [counts.most_common(1)[0][0] for counts in spelled.values()]
    if len(names) < 2:
        found = f"the one label {names[0]!r}" if names else "no label"
        raise CompressionError(f"The column {column!r} holds {found}, and a classifier needs two or more.")
    if len(names) > _FEW and 2 * len(names) > rows:
        raise CompressionError(
            f"The column {column!r} holds {len(names):,} different labels in {rows:,} rows, such as {names[0]!r:.40} "
            "and so no classes; name another with --label-column, or say --regression if its numbers are to be "
            "predicted."
        )
    numbers = [as_number(name) for name in names]
    if any(number is None for number in numbers):
        return tuple(sorted(names, key=lambda name: (name.casefold(), name)))
    return tuple(sorted(names, key=lambda name: (as_number(name) or 0.0, name)))


def _is_code(cell: Any) -> bool:
    """Whether digits are no number that others could be equal to: "007", or more of them than a float holds."""
    digits = str(cell).strip().lstrip("+-")
    return len(re.sub(r"\D", "", digits)) > 15 or re.match(r"0\d", digits) is not None


def _check_numbers(rows: Sequence[Row], column: str) -> None:
    for row in rows:
        number = as_number(row[column])
        if number is None or not math.isfinite(number):
            raise CompressionError(f"{row.place} has the label {row[column]!r:.40}, which is not a number to predict.")


def _fraction(cells: Sequence[Any]) -> Any:
    return next(cell for cell in cells if (as_number(cell) or 0.0) % 1)
