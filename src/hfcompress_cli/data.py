"""Reads texts and labels from files and data sets, and encodes them for a model; for the command line."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_problem_type

INSTALL = "pip install 'hfcompress[cli]'"

Row = dict[str, Any]


def read_rows(source: str, columns: Sequence[str], label: str | None, *, rows: int | None, seed: int) -> list[Row]:
    """Read texts and labels; rows that lack either are left out, with a note on standard error.

    Args:
        source: A ``.csv``, ``.jsonl`` or ``.parquet`` file, or the name of a data set, of which the split ``train`` is
            read, or that behind a colon.
        columns: Columns of the text, or of the two texts of a pair.
        label: Column of the label; None if there is none.
        rows: How many rows to draw at random, if there are more.
        seed: Of the draw.

    Returns:
        The rows, each with these columns.

    Raises:
        CompressionError: The source cannot be read, lacks a column, or holds nothing.
    """
    if rows is not None and rows < 1:
        raise CompressionError(f"--rows {rows} must be at least 1.")
    wanted = [*columns, *([] if label is None else [label])]
    try:
        found = list(_read(source, wanted))
    except CompressionError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and datasets' errors are such
        raise CompressionError(f"The data {source} cannot be read: {reason_of(error)}") from error
    whole = [row for row in found if all(isinstance(row[name], str) and row[name].strip() for name in columns)]
    whole = [row for row in whole if label is None or not _is_missing(row[label])]
    if not whole:
        raise CompressionError(f"The data {source} hold no row with {' and '.join(wanted)}; {len(found)} were read.")
    if len(whole) < len(found):
        print(f"{source}: {len(found) - len(whole)} of {len(found)} rows have no text or no label.", file=sys.stderr)
    if rows is not None and rows < len(whole):
        whole = random.Random(seed).sample(whole, rows)
    return whole


def reason_of(error: BaseException) -> str:
    r"""Tell the first sentence of an error, which other libraries make long.

    Example:
        >>> reason_of(OSError("No connection. See how to work offline:\nhttps://..."))
        'No connection.'
    """
    line = str(error).strip().partition("\n")[0]
    return f"{line.partition('. ')[0][:300].removesuffix('.')}." if line else f"{type(error).__name__}."


def _read(source: str, wanted: Sequence[str]) -> Iterator[Row]:
    path = Path(source).expanduser()
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        if path.exists():
            raise CompressionError(f"The data {source} are neither a .csv nor a .jsonl nor a .parquet file.")
        yield from _read_hub(source, wanted)
        return
    if not path.is_file():
        raise CompressionError(f"There is no file {source}.")
    yield from readers[path.suffix.lower()](path, wanted)


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
                raise CompressionError(f"Line {number} of {path} is no JSON: {error}.") from error
            if not isinstance(row, dict):
                raise CompressionError(f"Line {number} of {path} is no JSON object, but {line.strip()[:40]!r}.")
            _check_columns(f"Line {number} of {path}", wanted, row)
            yield {name: row[name] for name in wanted}


def _read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise CompressionError(f"Reading {path} needs the package pyarrow: {INSTALL}") from error
    with parquet.ParquetFile(path) as file:
        _check_columns(path, wanted, file.schema_arrow.names)
        for batch in file.iter_batches(columns=list(wanted)):
            yield from batch.to_pylist()


def _read_hub(source: str, wanted: Sequence[str]) -> Iterator[Row]:
    name, _, split = source.partition(":")
    if name.startswith((".", "/", "~")):
        raise CompressionError(f"There is no file {source}.")
    try:
        import datasets
    except ImportError as error:
        raise CompressionError(
            f"{source} is no file; reading a data set by its name needs the package datasets: {INSTALL}"
        ) from error
    try:
        data = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # of several libraries; whatever it is, the data cannot be had
        raise CompressionError(
            f"The data {source} are no file, and cannot be had as a data set of the hub: {reason_of(error)}"
        ) from error
    _check_columns(source, wanted, data.column_names)
    yield from data.select_columns(list(wanted))


def _is_missing(label: Any) -> bool:
    return label is None or label == "" or label != label  # NaN is another one than itself


def _check_columns(where: object, wanted: Sequence[str], found: Iterable[Any]) -> None:
    found = [str(name) for name in found]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CompressionError(
            f"{where} has no column {' and no '.join(map(repr, missing))} (found: {', '.join(found) or 'none'}); name "
            "the columns with --text-column and --label-column."
        )


def encode(
    rows: Sequence[Row],
    columns: Sequence[str],
    label: str | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[Row]:
    """Turn texts into ids, and labels into the model's class indices under ``labels``.

    Args:
        rows: With these columns.
        columns: Of the text, or of the two texts of a pair.
        label: Column of the label; None if there is none.
        model: Whose labels they are.
        tokenizer: Its tokenizer.
        max_length: Tokens of a text at most.

    Returns:
        Rows as a Trainer takes them.

    Raises:
        CompressionError: A label is none of the model's, or the model does not choose among classes.
    """
    texts = ([row[name] for row in rows] for name in columns)
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    made = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    if label is not None:
        if get_problem_type(model, "model") != "single_label_classification":
            raise CompressionError(
                f"The model answers {model.config.problem_type or 'regression'}; the command line takes one class for "
                "each text. Use the Python functions for other labels."
            )
        classes = classes_of([row[label] for row in rows], model.config.label2id)
        for one, index in zip(made, classes, strict=True):
            one["labels"] = index
    return made


def classes_of(labels: Sequence[Any], label2id: dict[str, int]) -> list[int]:
    """Tell which class each label of a column means: all are names of the model's, or all are indices.

    Args:
        labels: Strings, numbers or truth values.
        label2id: Of the model's config.

    Raises:
        CompressionError: One is neither, or the column has both.

    Example:
        >>> classes_of(["POSITIVE", "NEGATIVE"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 0]
        >>> classes_of(["1", 1, 1.0, True, "true"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 1, 1, 1, 1]
    """
    if all(str(label) in label2id for label in labels):
        return [label2id[str(label)] for label in labels]
    indices = [_index_of(label) for label in labels]
    neither = [
        label
        for label, index in zip(labels, indices, strict=True)
        if index not in label2id.values() and str(label) not in label2id
    ]
    named = [label for label in labels if str(label) in label2id]
    names = ", ".join(f"{name!r} ({index})" for name, index in label2id.items())
    if neither:
        raise CompressionError(f"The label {neither[0]!r} of the data is none of the model's, which are {names}.")
    if named:
        other = next(label for label in labels if str(label) not in label2id)
        raise CompressionError(
            f"The labels of the data are names of the model's, such as {named[0]!r}, and indices, such as {other!r}; "
            f"write all of them in one way. The model has {names}."
        )
    return [int(index) for index in indices]


def _index_of(label: Any) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        return words[str(label).lower()] if str(label).lower() in words else float(label)
    except (TypeError, ValueError):
        return -1.0


def longest_text(model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """Tell how many tokens of a text to read.

    Args:
        model: With a config.
        tokenizer: Its tokenizer.
        asked: How many the user wants at most; as many as model and tokenizer can take if None.

    Raises:
        CompressionError: More were asked than the model can read.
    """
    config: Any = model.config
    limits = [tokenizer.model_max_length]
    if getattr(config, "max_position_embeddings", None):
        # RoBERTa and its like count positions from behind that of padding.
        padding = [
            getattr(m, "padding_idx", None) for n, m in model.named_modules() if n.endswith("position_embeddings")
        ]
        limits.append(config.max_position_embeddings - max([0, *(index + 1 for index in padding if index is not None)]))
    least = tokenizer.num_special_tokens_to_add() + 1
    if asked is not None and not least <= asked <= limits[-1]:
        raise CompressionError(
            f"--max-length {asked} must be between {least} and the {limits[-1]} tokens that the model reads."
        )
    return min(limits) if asked is None else asked


def split_rows(rows: Sequence[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the rows, drawn at random.

    Args:
        rows: All of them.
        held_out: The fraction, in [0, 1).
        seed: Of the draw.

    Returns:
        The others, and those held out; at least one of each, unless nothing is to be held out.

    Raises:
        CompressionError: The fraction is out of range, or there are too few rows.
    """
    if not 0 <= held_out < 1:
        raise CompressionError(f"--held-out {held_out} must be in [0, 1): the fraction of the rows to measure with.")
    count = round(held_out * len(rows)) or int(held_out > 0)
    if count >= len(rows):
        raise CompressionError(f"Of {len(rows)} rows none would be left to train on with --held-out {held_out}.")
    drawn = random.Random(seed).sample(list(rows), len(rows))
    return drawn[count:], drawn[:count]
