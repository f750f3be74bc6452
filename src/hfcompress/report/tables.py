"""Tables in plain text, Markdown and HTML, and the base class of all reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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

    def text(self) -> str:
        """Return the table for a terminal, with padded cells."""
        rows = [[_one_line(cell) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        pads = [f"{side}{width}" for side, width in zip(self.alignment, widths, strict=True)]
        lines = ["  ".join(f"{cell:{pad}}" for cell, pad in zip(row, pads, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = ["| " + " | ".join(_one_line(cell).replace("|", r"\|") for cell in row) + " |" for row in self.rows]
        rule = "".join("|---:" if side == ">" else "|---" for side in self.alignment) + "|"
        return "\n".join([lines[0], rule, *lines[1:], *(line for note in self.notes for line in ("", note))])

    def html(self) -> str:
        """Return the table in HTML, its styles inline: a notebook has styles of its own."""
        return render("table.html.j2", table=self)


class Report:
    """Base class of the reports: a subclass defines ``to_dict`` and ``_table``."""

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return all figures as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return a table for a terminal."""
        return self._table().text()

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
