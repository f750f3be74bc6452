"""Messages of the library in the words of the command: options in place of Python's arguments.

The library says ``flops=1.5 must be in (0, 1)`` and ``pass dataset=``; whoever typed ``--flops 1.5`` reads that.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Arguments of functions that an option of another name stands for.
_RENAMED: dict[str, str] = {
    "dataset": "--data",
    "train_dataset": "--data",
    "eval_dataset": "--eval-data",
    "inputs": "--data",
    "output_dir": "--output",
    "layers": "--student-layers",
}
_TOKENIZERS = ("processing_class", "teacher_processing_class", "tokenizer")
_PHRASES = {"dtype='int8'": "--int8"}
_PHRASES["zero afterwards; an int is their number"] = "zero afterwards, as 0.2 or 20%; a whole number is how many"
_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\)|[+-]?(?:[\w.][\w.+-]*)?\w)?"""
_PATTERN = r"(?<![\w.\-/='\"])(?P<name>[a-z][a-z0-9_]*)=" + _VALUE


def name_options(text: str, arguments: argparse.Namespace) -> str:
    """Return a text that names the options of a verb where it named arguments of functions.

    Args:
        text: The message of an error or a warning, or a report.
        arguments: What was parsed: its names are those of the options, and what was typed stays as it is.

    Example:
        >>> given = argparse.Namespace(verb="shrink", flops=1.5, drop_layers=0, data=None, importance="l1", model="b")
        >>> name_options("flops=1.5 must be in (0, 1); pass dataset=, or drop_layers=, or importance='obs'.", given)
        '--flops 1.5 must be in (0, 1); pass --data, or --drop-layers, or --importance obs.'
    """
    known = vars(arguments)
    words = "|".join(re.escape(name) for name in [*known, *_RENAMED] if "_" in name or name == "dataset")
    typed = sorted(_texts(known, words), key=len, reverse=True)
    kept = "|".join(map(re.escape, typed))
    parts = [f"(?P<typed>{kept})"] if kept else []
    parts += [
        _PATTERN,
        rf"(?<![\w.\-/'])`?(?P<word>{words})`?(?![\w=(/']|\.\w)",
        "(?P<filter>include|exclude)(?= pattern)",
    ]

    def replace(found: re.Match[str]) -> str:
        groups = found.groupdict()
        if groups.get("typed") is not None:
            return found[0]
        if groups["filter"] is not None:
            return f"--{groups['filter']}"
        if groups["word"] is not None:
            return _option(groups["word"], known) or found[0]
        return _assignment(found[0], groups["name"], groups["value"], known)

    for phrase, other in _PHRASES.items():
        text = text.replace(phrase, other)
    return re.sub("|".join(parts), replace, text)


def _assignment(whole: str, name: str, value: str | None, known: Mapping[str, Any]) -> str:
    """Return ``name=value`` as it is typed."""
    if name in _TOKENIZERS:
        return "the tokenizer"
    option = _option(name, known)
    if option is None:
        return whole
    if value is None or value == "True":
        return option
    if value == "False":
        return f"--no-{option.removeprefix('--')}"
    quoted = re.fullmatch("'([^' ]+)'", value)
    return f"{option} {quoted[1] if quoted else value}"


def _option(name: str, known: Mapping[str, Any]) -> str | None:
    renamed = _RENAMED.get(name)
    if name not in known and renamed is not None and renamed.removeprefix("--").replace("-", "_") in known:
        return renamed
    if name not in known or name in ("run", "verb", "model", "models", "teacher", "json"):
        return None
    return f"--{name.replace('_', '-')}"


def _texts(known: Mapping[str, Any], words: str) -> Iterator[str]:
    """Yield what was typed as the values of options and could be taken for an argument, with a value or in a text."""
    for value in known.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and ("=" in one or (re.search(words, one) and not re.fullmatch(words, one))):
                yield one
