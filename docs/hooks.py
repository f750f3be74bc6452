"""Adds the pages of the site that are elsewhere in the repository; nothing is copied, so nothing can differ."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "imdb" / "results"
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
