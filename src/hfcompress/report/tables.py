"""Tables in plain text, Markdown and HTML, and the base class of all reports."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of plain text with notes below it.

    Attributes:
        rows: The cells, row by row; the first row is the head.
        alignment: One ``<`` (left) or ``>`` (right) a column.
        notes: Sentences below the table.
        totals: Number of rows at the end that are totals; HTML sets them apart.
    """

    rows: Sequence[Row]
    alignment: str
    notes: Sequence[str] = ()
    totals: int = 0

    def text(self, width: int | None = None) -> str:
        """Return the table for a terminal, with padded cells.

        Args:
            width: Characters of a line. Columns beyond it follow below, each time with the first column, and notes
                are wrapped.

        Example:
            >>> table = Table([("model", "accuracy", "ms a batch"), ("BERT", "0.840", "20.0")], "<>>", ["One round."])
            >>> print(table.text())
            model  accuracy  ms a batch
            BERT      0.840        20.0
            One round.
            >>> print(table.text(width=20))
            model  accuracy
            BERT      0.840
            <BLANKLINE>
            model  ms a batch
            BERT         20.0
            <BLANKLINE>
            One round.
        """
        parts = [self] if width is None else self._fold(width)
        blocks = ["\n".join(part._lines()) for part in parts]
        notes = self.notes if width is None else [textwrap.fill(note, width) for note in self.notes]
        if len(blocks) == 1:
            return "\n".join([*blocks, *notes])
        return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = ["| " + " | ".join(_one_line(cell).replace("|", r"\|") for cell in row) + " |" for row in self.rows]
        rule = "".join("|---:" if side == ">" else "|---" for side in self.alignment) + "|"
        return "\n".join([lines[0], rule, *lines[1:], *(line for note in self.notes for line in ("", note))])

    def html(self) -> str:
        """Return the table in HTML, its styles inline: a notebook has styles of its own."""
        return render("table.html.j2", table=self)

    def split(self, columns: int) -> list[Table]:
        """Return tables of at most so many columns beside the first one, which each has, without the notes."""
        others = len(self.alignment) - 1
        parts = max(1, -(-others // columns))
        bounds = [1 + others * part // parts for part in range(parts + 1)]
        return [self._take([0, *range(start, end)]) for start, end in itertools.pairwise(bounds)]

    def _take(self, columns: Sequence[int]) -> Table:
        rows = [[row[column] for column in columns] for row in self.rows]
        return replace(self, rows=rows, alignment="".join(self.alignment[column] for column in columns), notes=())

    def _fold(self, width: int) -> list[Table]:
        """Return tables whose lines have at most this width where that is possible, each with the first column."""
        first, *others = self._widths()
        groups: list[list[int]] = [[0]]
        used = first
        for column, own in enumerate(others, start=1):
            if used + 2 + own > width and len(groups[-1]) > 1:
                groups.append([0])
                used = first
            groups[-1].append(column)
            used += 2 + own
        return [self._take(columns) for columns in groups]

    def _widths(self) -> list[int]:
        return [max(len(_one_line(cell)) for cell in column) for column in zip(*self.rows, strict=True)]

    def _lines(self) -> list[str]:
        pads = [f"{side}{width}" for side, width in zip(self.alignment, self._widths(), strict=True)]
        return [
            "  ".join(f"{_one_line(cell):{pad}}" for cell, pad in zip(row, pads, strict=True)).rstrip()
            for row in self.rows
        ]


class Report:
    """Base class of the reports: a subclass defines ``to_dict`` and ``_table``."""

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return all figures as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self, *, width: int | None = None) -> str:
        """Return a table for a terminal.

        Args:
            width: Characters of a line. Columns beyond it follow below, each time with the first column.
        """
        return self._table().text(width)

    def to_markdown(self) -> str:
        """Return a Markdown table."""
        return self._table().markdown()

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        raise NotImplementedError


def render(template: str, **values: object) -> str:
    """Fill in an HTML template of this package; all text is escaped, except what the template marks as safe."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("hfcompress.report", ""), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(values)


def _one_line(cell: str) -> str:
    """Join the lines of a name: a row of a table has only one."""
    return " ".join(cell.splitlines())
