"""JSON files of results, each written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, also where several processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, also where several processes write it."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Result:
    """Read a file, or return nothing where there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def read_or_compute(path: Path, compute: Callable[[], Result]) -> Result:
    """Read a result, or compute and write it."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)
