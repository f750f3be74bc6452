"""Run the notebooks in docs/tutorials and write their output into them: ``python -m docs.run_tutorials``.

A notebook is JSON, and these print only text: no Jupyter is needed to run them. The tests run them in the same way and
compare; of cells tagged "numbers vary" (times, accuracies) they compare all but the numbers.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EXPLAINS = re.compile("noise:|few rounds:")
FOLDER = Path(__file__).with_name("tutorials")


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Run the code cells in order, in the current folder.

    Args:
        notebook: The notebook as JSON.

    Yields:
        Each code cell and what it printed.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(
                    compile("".join(cell["source"]), cell["id"], "exec"), names
                )
            yield cell, printed.getvalue()


def stored_output(cell: dict[str, Any]) -> str:
    """Return the output that is stored in a cell."""
    return "".join(
        line for output in cell["outputs"] for line in output["text"]
    )


def comparable(cell: dict[str, Any], text: str) -> list[str]:
    """Return the words of an output; of a cell that varies, those before the first number of each line.

    The words behind it depend on the numbers: whether a difference is noise, and the line that explains this word.
    """
    if "numbers vary" in cell["metadata"].get("tags", []):
        lines = (re.split(r"\S*\d", line)[0] for line in text.splitlines())
        text = "\n".join(line for line in lines if not _EXPLAINS.match(line))
    return text.split()


def main() -> None:
    """Run all notebooks, and write their outputs."""
    gc.freeze()  # every Trainer collects garbage, and searches all that was imported each time
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for count, (cell, printed) in enumerate(run(notebook), 1):
                lines = printed.splitlines(keepends=True)
                cell["outputs"] = (
                    [{"name": "stdout", "output_type": "stream", "text": lines}]
                    if lines
                    else []
                )
                cell["execution_count"] = count
            os.chdir(here)
        path.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
