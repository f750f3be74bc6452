"""Run the notebooks in docs/tutorials and write their output into them: ``python -m docs.run_tutorials``.

A notebook is JSON, and these print text and show reports: no Jupyter is needed to run them. The tests run them in the
same way and compare; of cells tagged "numbers vary" (times, accuracies) they compare all but the numbers.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import html
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
Outputs = list[dict[str, Any]]


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Outputs]]:
    """Run the code cells in order, in the current folder.

    Args:
        notebook: The notebook as JSON.

    Yields:
        Each code cell and its outputs: what it printed, and the report that its last line is, as a notebook shows it.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                value = _run_cell("".join(cell["source"]), cell["id"], names)
            outputs: Outputs = []
            if printed.getvalue():
                lines = printed.getvalue().splitlines(keepends=True)
                outputs.append(
                    {"name": "stdout", "output_type": "stream", "text": lines}
                )
            if hasattr(value, "_repr_html_"):
                table = value._repr_html_().splitlines(keepends=True)
                data = {"text/html": table}
                outputs.append(
                    {
                        "data": data,
                        "metadata": {},
                        "output_type": "display_data",
                    }
                )
            yield cell, outputs


def _run_cell(source: str, name: str, names: dict[str, object]) -> Any:
    """Run a cell, and return the value of its last line if that is an expression."""
    module = ast.parse(source, name)
    last = module.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(module, name, "exec"), names)
        return None
    module.body.pop()
    exec(compile(module, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def as_text(outputs: Outputs) -> str:
    """Return outputs as text: of a table, each row and each note is a line."""
    parts = []
    for output in outputs:
        if output["output_type"] == "stream":
            parts.append("".join(output["text"]))
        else:
            table = " ".join("".join(output["data"]["text/html"]).split())
            rows = re.sub("</tr>|</p>", "\n", table)
            parts.append(html.unescape(re.sub("<[^>]*>", "", rows)))
    return "\n".join(parts)


def comparable(cell: dict[str, Any], text: str) -> list[str]:
    """Return the words of an output; of a cell that varies, those before the first number of each line.

    The words behind it depend on the numbers: whether a difference is noise, and the line that explains this word.
    """
    if "numbers vary" in cell["metadata"].get("tags", []):
        lines = (
            re.split(r"\S*\d", line)[0].strip() for line in text.splitlines()
        )
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
            for count, (cell, outputs) in enumerate(run(notebook), 1):
                cell["outputs"] = outputs
                cell["execution_count"] = count
            os.chdir(here)
        path.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
