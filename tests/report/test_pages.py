"""The frame that all pages share: each cell is there once, with the head of its column for a narrow screen."""

import re
from xml.etree import ElementTree

from hfcompress.report.tables import Table, render

RUNGS = Table(
    [("rung", "ms", "recipe"), ("original", "4.5", ""), ("2x <b>", "2.1", "4 epochs")], "<><", ["A note & more."]
)
LEFT = Table([("rung", "heads, by layer"), ("2x <b>", "12 11")], "<<")


def test_the_page_of_a_ladder_fits_a_narrow_and_a_dark_screen():
    text = render("ladder.html.j2", title="A & B", table=RUNGS, left=LEFT, pictures=["<svg></svg>"])
    assert "<title>A &amp; B</title>" in text
    assert "prefers-color-scheme: dark" in text
    assert '<p class="note">A note &amp; more.</p>' in text
    tables = map(ElementTree.fromstring, re.findall("<table.*?</table>", text, re.DOTALL))
    for made, table in zip((RUNGS, LEFT), tables, strict=True):
        head, *rows = table.iter("tr")
        assert [cell.text for cell in head] == list(made.rows[0])
        for row, cells in zip(rows, made.rows[1:], strict=True):
            assert ["".join(cell.itertext()) for cell in row] == list(cells)
            assert [cell.get("data-head") for cell in row.iter("td")] == list(made.rows[0][1:])
    assert text.count('class="text"') == 5 + 2  # heads of columns of words, and their cells but for the first


def test_a_ladder_without_pictures_has_no_empty_frame():
    assert "<figure>" not in render("ladder.html.j2", title="A", table=RUNGS, left=LEFT, pictures=[])
