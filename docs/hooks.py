"""Adds the pages of the site that are elsewhere in the repository; nothing is copied, so nothing can differ.

Cells of wide tables get the heads of their columns, for screens on which a row is shown as a card (style.css).
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and their pictures."""
    for where, path in PAGES.items():
        text = path.read_text()
        folder = where.rpartition("/")[0]
        if folder == "comparison" and path.name == "results.md":
            name = path.parent.name
            text = re.sub(r"^# Results", f"# Results: {name}", text)
            text = re.sub(r"\]\((\S+\.png)\)", rf"]({name}/\1)", text)
            for picture in sorted(path.parent.glob("*.png")):
                at = f"comparison/{name}/{picture.name}"
                files.append(
                    File.generated(config, at, abs_src_path=str(picture))
                )
        if folder:  # wide tables
            text = "---\nhide:\n  - toc\n---\n\n" + text
        files.append(File.generated(config, where, content=text))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Mark the wide tables of a page."""
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
