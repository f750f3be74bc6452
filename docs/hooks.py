"""Adds the pages of the site that are elsewhere in the repository; nothing is copied, so nothing can differ.

Pages link to these files where they are, so that the links hold in the repository too; on the site they are those of
the pages.

Cells of wide tables get the heads of their columns, for screens on which a row is shown as a card (style.css).
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "imdb" / "results"
WIDE = 6  # columns that do not fit a telephone
PAGES = (
    {
        "contributing.md": ROOT / "CONTRIBUTING.md",
        "security.md": ROOT / "SECURITY.md",
        "changelog.md": ROOT / "CHANGELOG.md",
        "comparison/protocol.md": ROOT / "examples" / "imdb" / "README.md",
    }
    | {
        f"comparison/{path.parent.name}.md": path
        for path in sorted(RESULTS.glob("*/results.md"))
    }
    | {
        f"benchmarks/{path.name}": path
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    }
)
PICTURES = {
    f"comparison/{path.parent.name}/{path.name}": path
    for path in sorted(RESULTS.glob("*/*.png"))
}
WHERE = {path: where for where, path in (PAGES | PICTURES).items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and their pictures."""
    for where, path in PAGES.items():
        text = path.read_text()
        folder = where.rpartition("/")[0]
        if folder == "comparison" and path.name == "results.md":
            name = path.parent.name
            text = re.sub(r"^# Results", f"# Results: {name}", text)
            text = re.sub(r"\]\((\S+\.png)\)", rf"]({name}/\1)", text)
        if folder:  # wide tables
            text = "---\nhide:\n  - toc\n---\n\n" + text
        files.append(File.generated(config, where, content=text))
    for where, path in PICTURES.items():
        files.append(File.generated(config, where, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links to files outside docs/ into links to their pages."""
    here = Path(page.file.src_uri).parent

    def turn(found: re.Match[str]) -> str:
        where = WHERE.get((ROOT / "docs" / here / found[1]).resolve())
        return f"]({os.path.relpath(where, here)}" if where else found[0]

    return re.sub(r"\]\((\.\./[^)#\s]+)", turn, markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Turn a notebook's links to files into links to their pages, and mark the wide tables of a page."""
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(
            r'href="([^":#]+)\.(?:ipynb|md)([#"])', r'href="../\1/\2', html
        )
    return mark_wide_tables(html)


def mark_wide_tables(html: str) -> str:
    """Give the cells of wide tables the heads of their columns."""
    return re.sub("<table>.*?</table>", _mark_wide, html, flags=re.DOTALL)


def _mark_wide(found: re.Match[str]) -> str:
    table = found[0]
    heads = re.findall("<th(?: [^>]*)?>(.*?)</th>", table, re.DOTALL)
    if len(heads) < WIDE:
        return table
    plain = [re.sub("<[^>]+>", "", one).replace('"', "&quot;") for one in heads]
    rows = [row.split("<td") for row in table.split("<tr>")]
    marked = (
        before
        + "".join(
            f'<td data-head="{name}"{cell}'
            for name, cell in zip(plain, cells, strict=False)
        )
        for before, *cells in rows  # the row of heads has none
    )
    return "<tr>".join(marked).replace("<table>", "<table data-wide>", 1)
