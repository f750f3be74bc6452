"""Texts and labels: read from files and data sets, split, and encoded for a model."""

from __future__ import annotations

import csv
import glob
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models import tokenizers as limits
from hfcompress.models.classifier import get_problem_type, label_names, max_tokens
from hfcompress.validation import check_count, check_fraction
from hfcompress_cli.models import first_sentence

Row = dict[str, Any]


def read_rows(source: str, columns: Sequence[str], label: str | None, *, rows: int | None, seed: int) -> list[Row]:
    """Read texts, and labels if there is a column of them, from a file or a data set (``NAME`` or ``NAME:SPLIT``).

    Rows that lack either are left out, with a note on standard error. If there are more, ``rows`` are drawn at random.
    """
    if rows is not None:
        check_count("--rows", rows)
    wanted = [*columns, *([] if label is None else [label])]
    path = Path(source).expanduser()
    reader = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(path.suffix.lower())
    if reader is None and path.exists():
        raise CompressionError(f"The data {source} are neither a .csv nor a .jsonl nor a .parquet file.")
    if not path.is_file() and (reader or source.startswith((".", "/", "~"))):
        raise CompressionError(f"The file {source} does not exist.")
    try:
        found = list(reader(path, wanted) if reader else _read_data_set(source, wanted))
    except CompressionError:
        raise
    except Exception as error:  # of csv, json, or datasets and the libraries under it
        kind = "file" if reader else "data set"
        raise CompressionError(f"The {kind} {source} cannot be read: {first_sentence(error)}") from error
    complete = [row for row in found if all(isinstance(row[name], str) and row[name].strip() for name in columns)]
    if label is not None:  # NaN is not equal to itself
        complete = [row for row in complete if row[label] not in (None, "") and row[label] == row[label]]
    if not complete:
        raise CompressionError(f"The data {source} hold no row with {' and '.join(wanted)}; {len(found)} were read.")
    if len(complete) < len(found):
        print(f"{source}: {len(found) - len(complete)} of {len(found)} rows have no text or no label.", file=sys.stderr)
    if rows is not None and rows < len(complete):
        complete = random.Random(seed).sample(complete, rows)
    return complete


def _read_csv(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the 128 kB that are the default
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_columns(path, wanted, reader.fieldnames or [])
        for row in reader:
            yield {name: row[name] for name in wanted}


def _read_jsonl(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CompressionError(f"Line {number} of {path} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise CompressionError(f"Line {number} of {path} is not a JSON object, but {line.strip()[:40]!r}.")
            _check_columns(f"Line {number} of {path}", wanted, row)
            yield {name: row[name] for name in wanted}


def _read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    # Streamed, so that no copy stays in a cache; in batches of one size, because a group of rows may be empty.
    settings = {"data_files": glob.escape(str(path)), "streaming": True, "batch_size": 1000}
    return _load(str(path), wanted, "parquet", split="train", **settings)


def _read_data_set(source: str, wanted: Sequence[str]) -> Iterator[Row]:
    name, _, split = source.partition(":")
    return _load(source, wanted, name, split=split or "train")


def _load(source: str, wanted: Sequence[str], name: str, **settings: Any) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        needs = "is not a .csv or .jsonl file; reading it needs the package datasets: pip install 'hfcompress[cli]'"
        raise CompressionError(f"{source} {needs}") from error
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs the errors that it raises
    try:
        data = datasets.load_dataset(name, **settings)
        _check_columns(source, wanted, data.column_names)
        yield from data.select_columns(list(wanted))
    finally:
        datasets.logging.set_verbosity(verbosity)


def _check_columns(where: object, wanted: Sequence[str], found: Iterable[Any]) -> None:
    found = [str(name) for name in found]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CompressionError(
            f"{where} has no column {' and no '.join(map(repr, missing))} (found: {', '.join(found) or 'none'}); name "
            "the columns with --text-column and --label-column."
        )


def split_rows(rows: Sequence[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the rows, drawn at random; return the others and those, at least one if any are asked."""
    check_fraction("--held-out", held_out, "the fraction of the rows to measure with")
    count = round(held_out * len(rows)) or int(held_out > 0)
    if count >= len(rows):
        raise CompressionError(f"Of {len(rows)} rows none would be left to train on with --held-out {held_out}.")
    drawn = random.Random(seed).sample(list(rows), len(rows))
    return drawn[count:], drawn[:count]


def encode(
    rows: Sequence[Row], columns: Sequence[str], label: str | None, model: Any, tokenizer: Any, max_length: int | None
) -> list[Row]:
    """Turn texts into ids, and labels into the model's class indices under ``labels``; see `token_limit`."""
    if not rows:
        return []
    length = token_limit(model, tokenizer, max_length)
    texts = ([row[name] for row in rows] for name in columns)
    encoded = tokenizer(*texts, **limits.truncation(length))
    made = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    if label is not None:
        problem = get_problem_type(model, "model")
        if problem != "single_label_classification":
            raise CompressionError(
                f"The model has problem_type={problem!r}; the command line takes one class for each text. Use the "
                "Python functions for other labels."
            )
        classes = {name: index for index, name in label_names(model).items()}
        for one, index in zip(made, class_indices([row[label] for row in rows], classes), strict=True):
            one["labels"] = index
    return made


def class_indices(labels: Sequence[Any], classes: dict[str, int]) -> list[int]:
    """Return the class that each label of a column means: all are names of classes, or all are indices.

    Example:
        >>> class_indices(["POSITIVE", "NEGATIVE"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 0]
        >>> class_indices(["1", 1, 1.0, True, "true"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 1, 1, 1, 1]
    """
    named = [label for label in labels if str(label) in classes]
    others = [label for label in labels if str(label) not in classes]
    if not others:
        return [classes[str(label)] for label in labels]
    known = ", ".join(f"{name!r} ({index})" for name, index in classes.items())
    for label in others:
        if _as_number(label) not in classes.values():
            raise CompressionError(f"The label {label!r} of the data is not one of the model's, which are {known}.")
    if named:
        raise CompressionError(
            f"The labels of the data are names of the model's, such as {named[0]!r}, and indices, such as "
            f"{others[0]!r}; write all of them in one way. The model has {known}."
        )
    return [int(_as_number(label)) for label in labels]


def _as_number(label: Any) -> float:
    word = str(label).lower()
    try:
        return float(word == "true") if word in ("true", "false") else float(label)
    except (TypeError, ValueError):
        return -1.0


def token_limit(model: nn.Module, tokenizer: Any, asked: int | None, option: str = "--max-length") -> int | None:
    """Return how many tokens of a text to read: as asked, or as model and tokenizer can take; None for all."""
    of_tokenizer, of_model = limits.token_limit(tokenizer), max_tokens(model)
    if asked is None:
        return limits.token_limit(tokenizer, model)
    least, most = tokenizer.num_special_tokens_to_add() + 1, of_tokenizer if of_model is None else of_model
    if asked < least or (most is not None and asked > most):
        reads = f"at least {least}" if most is None else f"between {least} and the {most} tokens that the model reads"
        raise CompressionError(f"{option} {asked} must be {reads}.")
    return asked
