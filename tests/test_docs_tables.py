"""Wide tables of the site have the heads of their columns in each cell, for screens that show a row as a card."""

import pytest

pytest.importorskip("mkdocs", reason="the site is built with mkdocs")

from docs.hooks import WIDE, mark_wide_tables


def table(columns, attribute=""):
    heads = "".join(f'<th style="text-align: right;">head <code>{n}</code></th>' for n in range(columns))
    cells = "".join(f'<td style="text-align: right;">{n} <a href="#">x</a></td>' for n in range(columns))
    rows = f"<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>\n<tr>{cells}</tr>\n<tr>{cells}</tr>\n</tbody>"
    return f"<table{attribute}>\n{rows}\n</table>"


def test_each_cell_of_a_wide_table_names_its_column():
    made = mark_wide_tables(f"<p>before</p>{table(WIDE)}<p>after</p>")
    assert made.startswith("<p>before</p><table data-wide>")
    assert made.endswith("<p>after</p>")
    for n in range(WIDE):
        assert made.count(f'<td data-head="head {n}" style="text-align: right;">{n} <a') == 2
    assert made.count("data-head") == 2 * WIDE


def test_other_tables_stay_as_they_are():
    html = table(WIDE - 1) + table(WIDE, ' class="highlighttable"')
    assert mark_wide_tables(html) == html
