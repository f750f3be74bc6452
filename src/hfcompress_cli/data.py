"""Texts and labels: read from files and data sets, split, and encoded for a model."""

from __future__ import annotations

import glob
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models import tokenizers as limits
from hfcompress.models.classifier import max_tokens
from hfcompress.validation import check_count, check_fraction
from hfcompress_cli.labels import Say, check_same_classes, name_classes, read_labels
from hfcompress_cli.models import first_sentence
from hfcompress_cli.tables import Row, check_columns, is_table, read_table


def read_rows(
    source: str,
    columns: Sequence[str],
    label: str | None,
    *,
    rows: int | None,
    seed: int,
    optional: Sequence[str] = (),
    keep_unlabelled: bool = False,
    label_if_any: bool = False,
    **table: Any,
) -> list[Row]:
    """Read texts, and labels if there is a column of them, from a file or a data set (``NAME`` or ``NAME:SPLIT``).

    Rows that lack either are left out, with a note on standard error. If there are more, ``rows`` are drawn at random.

    Args:
        source: The file or data set.
        columns: Those of the texts.
        label: That of the labels.
        rows: How many to draw.
        seed: For drawing them.
        optional: Columns that are read too where there are any.
        keep_unlabelled: Whether a cell without a label means that the text has none.
        label_if_any: Whether the data may have no labels at all: all texts are returned then, without labels.
        table: How files are read; see `read_table`.
    """
    if rows is not None:
        check_count("--rows", rows)
    wanted = list(dict.fromkeys([*columns, *([] if label is None or label_if_any else [label])]))
    optional = [*optional, *([label] if label is not None and label_if_any else [])]
    path = Path(os.path.expanduser(source))
    is_file = is_table(path) or path.suffix.lower() == ".parquet"
    if not is_file and path.exists():
        raise CompressionError(
            f"The data {source} are neither a .csv nor a .jsonl nor a .parquet nor a .tsv nor a .json file; all but "
            ".parquet may end in .gz."
        )
    if not path.is_file() and (is_file or source.startswith((".", "/", "~"))):
        raise CompressionError(f"The file {source} does not exist.")
    complete: list[Row] = []
    unlabelled: list[Row] = []
    count = 0
    try:
        if is_table(path):
            found = read_table(path, wanted, optional=optional, **table)
        else:
            found = _read_parquet(path, wanted, optional) if is_file else _read_data_set(source, wanted, optional)
        for row in found:
            count += 1
            has_label = label is None or _has_label(row.get(label), keep_unlabelled)
            if (has_label or label_if_any) and all(_has_text(row, name) for name in columns):
                (complete if has_label else unlabelled).append(row)
    except CompressionError:
        raise
    except Exception as error:  # of gzip, json, or datasets and the libraries under it
        kind = "file" if is_file else "data set"
        raise CompressionError(f"The {kind} {source} cannot be read: {first_sentence(error)}") from error
    if not complete:
        complete = [Row.make(((n, row[n]) for n in row if n != label), row.place) for row in unlabelled]
    if not complete:
        raise CompressionError(f"The data {source} hold no row with {' and '.join(wanted)}; {count} were read.")
    if len(complete) < count:
        print(f"{source}: {count - len(complete)} of {count} rows have no text or no label.", file=sys.stderr)
    return draw(complete, rows, seed)


def draw(rows: list[Row], most: int | None, seed: int) -> list[Row]:
    """Return so many rows at most, drawn at random."""
    if most is not None:
        check_count("--rows", most)
    return random.Random(seed).sample(rows, most) if most is not None and most < len(rows) else rows


def read_texts(sources: Sequence[str], columns: Sequence[str], **table: Any) -> list[Any]:
    """Return the texts of all rows of several files or data sets, as tuples if they are pairs; see `read_rows`."""
    found = (read_rows(source, columns, None, rows=None, seed=0, **table) for source in sources)
    texts = [tuple(row[name] for name in columns) for rows in found for row in rows]
    return texts if len(columns) > 1 else [text for (text,) in texts]


def _has_text(row: Row, name: str) -> bool:
    """Whether there is a text in a column; refuse anything else in its place."""
    text = row[name]
    if text is None or text != text:  # NaN is not equal to itself
        return False
    if not isinstance(text, str):
        raise CompressionError(f"{row.place} has {text!r:.40} in the column {name!r}, which is not a text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CompressionError(
            f"{row.place} has half a surrogate pair in the column {name!r}, which is no character."
        ) from error
    return bool(text.strip())


def _has_label(label: Any, keep_unlabelled: bool) -> bool:
    if isinstance(label, str):
        return keep_unlabelled or bool(label.strip())
    return label is not None and bool(label == label)


def _read_parquet(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    # Streamed, so that no copy stays in a cache; in batches of one size, because a group of rows may be empty.
    settings = {"data_files": glob.escape(str(path)), "streaming": True, "batch_size": 1000}
    return _load(str(path), wanted, optional, "parquet", split="train", **settings)


def _read_data_set(source: str, wanted: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    name, _, split = source.partition(":")
    return _load(source, wanted, optional, name, split=split or "train")


def _load(source: str, wanted: Sequence[str], optional: Sequence[str], name: str, **settings: Any) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        needs = "is not a .csv or .jsonl file; reading it needs the package datasets: pip install 'hfcompress[cli]'"
        raise CompressionError(f"{source} {needs}") from error
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs the errors that it raises
    try:
        data = datasets.load_dataset(name, **settings)
        check_columns(source, wanted, data.column_names)
        chosen = [*wanted, *(one for one in optional if one in data.column_names and one not in wanted)]
        class_names = _class_names(data.features or {})
        for number, row in enumerate(data.select_columns(chosen), start=1):
            made = Row.make(row.items(), f"Row {number} of {source}")
            made.class_names = class_names
            yield made
    finally:
        datasets.logging.set_verbosity(verbosity)


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by column the names of a ``ClassLabel``, or of a list of them."""
    found = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: list(kind.names) for column, kind in found.items() if getattr(kind, "names", None)}


def split_rows(rows: Sequence[Any], held_out: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold out a fraction of the rows, drawn at random; return the others and those, at least one if any are asked."""
    check_fraction("--held-out", held_out, "the fraction of the rows to measure with")
    count = round(held_out * len(rows)) or int(held_out > 0)
    if count >= len(rows):
        raise CompressionError(f"Of {len(rows)} rows none would be left to train on with --held-out {held_out}.")
    drawn = random.Random(seed).sample(list(rows), len(rows))
    return drawn[count:], drawn[:count]


def encode(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    label: str | None,
    model: Any,
    tokenizer: Any,
    max_length: int | None,
    *,
    table: Sequence[dict[str, Any]] | None = None,
    separator: str | None = None,
    read_as: str | None = None,
) -> list[dict[str, Any]]:
    """Turn texts into ids, and labels into those of the model under ``labels``.

    Args:
        rows: What to encode.
        columns: Those of the texts.
        label: That of the labels.
        model: Whose labels they are.
        tokenizer: Of the model.
        max_length: See `token_limit`.
        table: All rows of the same data, because how a label is read depends on the others; ``rows`` if None.
        separator: See `read_labels`.
        read_as: See `read_labels`.
    """
    if not rows:
        return []
    length = token_limit(model, tokenizer, max_length, pair=len(columns) > 1)
    texts = ([row[name] for row in rows] for name in columns)
    encoded = tokenizer(*texts, **limits.truncation(length))
    made = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    _check_ids(encoded["input_ids"], model, tokenizer)
    table = rows if table is None else table
    if length is not None and (cut := _count_truncated(rows, columns, encoded, tokenizer, length)):
        most = token_limit(model, tokenizer, None)
        more = "that is all that the model reads" if length == most else "--max-length N reads more"
        more += f", up to {most:,}" if most is not None and length != most else ""
        note = f"{cut:,} of {len(rows):,} texts are longer than {length:,} tokens and were truncated; {more}."
        say_once(table, note)
    if label is not None:
        places = [getattr(row, "place", f"row {number}") for number, row in enumerate(table, start=1)]
        cells = _label_cells(table, label, model, read_as, lambda note: say_once(table, note))
        how: dict[str, Any] = {"separator": separator, "read_as": read_as, "say": lambda note: say_once(table, note)}
        read = read_labels(cells, model, places.__getitem__, **how)
        meaning = {id(row): one for row, one in zip(table, read, strict=True)}
        for row, one in zip(rows, made, strict=True):
            one["labels"] = meaning[id(row)]
    return made


def _check_ids(texts: Sequence[Sequence[int]], model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that has tokens which the model lacks."""
    table: Any = None
    with suppress(NotImplementedError, AttributeError):  # of what has no table of tokens, or is exported
        table = model.get_input_embeddings()
    count = getattr(table, "num_embeddings", None)
    largest = max([*(max(ids, default=0) for ids in texts), tokenizer.pad_token_id or 0])
    if count is not None and largest >= count:
        raise CompressionError(
            f"The tokenizer gives the token {largest}, and {type(model).__name__} has those from 0 to {count - 1}; "
            "save its own tokenizer beside the model, or call model.resize_token_embeddings(len(tokenizer))."
        )


def say_once(table: Sequence[Any], note: str) -> None:
    """Print a note about a table to standard error, unless that was done: several models may read it."""
    first = table[0]
    said = (first.said or set()) if isinstance(first, Row) else set()
    if note not in said:
        print(note, file=sys.stderr)
    if isinstance(first, Row):
        first.said = said | {note}


def _count_truncated(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], encoded: Any, tokenizer: Any, length: int
) -> int:
    """Count the texts that were truncated to a length: a fast tokenizer knows, another one encodes them again."""
    if (encodings := getattr(encoded, "encodings", None)) is not None:
        return sum(bool(one.overflowing) for one in encodings)
    full = [row for row, ids in zip(rows, encoded["input_ids"], strict=True) if len(ids) >= length]
    again = [tokenizer(*(row[name] for name in columns), **limits.truncation(None)) for row in full]
    return sum(len(one["input_ids"]) > length for one in again)


def check_labels(rows: Sequence[Row], label: str | None, models: Mapping[str, nn.Module], **how: Any) -> None:
    """Refuse rows whose labels mean other classes to one model than to another; see `check_same_classes`."""
    if label is not None:
        cells = {name: _label_cells(rows, label, model, how["read_as"], None) for name, model in models.items()}
        check_same_classes(cells, models, lambda index: rows[index].place, **how)


def _label_cells(
    rows: Sequence[Any], label: str, model: nn.Module, read_as: str | None, say: Say | None
) -> Sequence[Any]:
    class_names = getattr(rows[0], "class_names", None) or {}
    return name_classes([row[label] for row in rows], class_names.get(label, []), model, read_as, say=say)


def token_limit(
    model: nn.Module, tokenizer: Any, asked: int | None, option: str = "--max-length", *, pair: bool = False
) -> int | None:
    """Return how many tokens of a text, or pair, to read: as asked, or as model and tokenizer take; None for all."""
    of_tokenizer, of_model = limits.token_limit(tokenizer), max_tokens(model)
    if asked is None:
        return limits.token_limit(tokenizer, model)
    least = tokenizer.num_special_tokens_to_add(pair=pair) + 1
    most = of_tokenizer if of_model is None else of_model
    if asked < least or (most is not None and asked > most):
        reads = f"at least {least}" if most is None else f"between {least} and the {most} tokens that the model reads"
        raise CompressionError(f"{option} {asked} must be {reads}.")
    return asked
