"""Every Python block of the README runs as pasted, in order, and prints the text block below it."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_blocks_of_the_readme_print_the_text_below_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", README.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        if expected:
            assert printed.getvalue().split() == expected.split()
