"""Tables as text: for a terminal, in Markdown, in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[str]


def align(rows: Iterable[Row], alignment: str) -> list[str]:
    """Pad the cells of a table for a terminal; one ``<`` or ``>`` a column says to which side."""
    rows = [[_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = list(zip(alignment, widths, strict=True))
    return ["  ".join(f"{c:{a}{w}}" for c, (a, w) in zip(row, pairs, strict=True)).rstrip() for row in rows]


def markdown(rows: Iterable[Row], alignment: str) -> list[str]:
    """Write a table in Markdown, the first row as its head; aligned as for `align`."""
    lines = ["| " + " | ".join(_line(cell).replace("|", r"\|") for cell in row) + " |" for row in rows]
    rule = "".join("|---:" if side == ">" else "|---" for side in alignment) + "|"
    return [lines[0], rule, *lines[1:]]


def html(rows: Iterable[Row], alignment: str, totals: int = 0) -> str:
    """Write a table in HTML, the first row as its head; aligned as for `align`, whatever styles are around it.

    Args:
        rows: Cells as plain text.
        alignment: One ``<`` or ``>`` a column.
        totals: How many rows at the end are totals, set apart by a line and bold.
    """
    head, *body = (list(row) for row in rows)
    sides = ["right" if side == ">" else "left" for side in alignment]
    lines = [
        '<table style="border-collapse: collapse">',
        f"<thead>{_html_row(head, sides, 'th', '')}</thead>",
        "<tbody>",
    ]
    for index, row in enumerate(body):
        style = "font-weight: bold; " if index >= len(body) - totals else ""
        style += "border-top: 1px solid #888; " if index == len(body) - totals else ""
        lines.append(_html_row(row, sides, "td", style))
    return "\n".join([*lines, "</tbody>", "</table>"])


def _line(cell: str) -> str:
    """A name may have line breaks in it; the row of a table may not."""
    return " ".join(cell.splitlines())


def _html_row(row: Row, sides: list[str], tag: str, style: str) -> str:
    cells = (
        f'<{tag} style="{style}text-align: {side}; padding: 2px 10px">{escape(cell)}</{tag}>'
        for cell, side in zip(row, sides, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
