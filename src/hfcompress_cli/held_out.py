"""The rows that are trained on and those held out to measure with, and both encoded."""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.distill.label_weights import WEIGHT_COLUMN, WEIGHT_RANGE, is_weight
from hfcompress.errors import CompressionError
from hfcompress_cli import options
from hfcompress_cli.data import encode, read_rows, split_rows
from hfcompress_cli.tables import Row


@dataclass(frozen=True)
class Split:
    """The rows of the data.

    Attributes:
        table: All rows of the data to train on.
        rows: Those that are trained on.
        eval_table: All rows of the data to measure with; the same table where they were held out of it.
        held_out: Those that are measured with.
    """

    table: list[Row]
    rows: list[Row]
    eval_table: list[Row]
    held_out: list[Row]


def read_split(
    arguments: argparse.Namespace,
    label: str | None,
    weight_column: str | None,
    seed: int,
    *,
    drawn_by: str | None = None,
) -> Split:
    """Read the rows to train on and those to measure with; of each label the same share is held out.

    All verbs hold out the same rows of the same data, by the same fraction and seed, so that none measures with rows
    that the model of another one was trained on.

    Args:
        arguments: Those of the command.
        label: Column of the labels, if they are read.
        weight_column: Column of the examples' weights, if there is one.
        seed: By which rows are drawn.
        drawn_by: Where no labels are read, the column that other verbs read them from; rows without one are trained on.
    """
    split = _read_split(arguments, label, weight_column, seed, drawn_by)
    if label is not None and weight_column is not None:
        _check_weights(split.rows, weight_column, arguments.data)
    return split


def _read_split(
    arguments: argparse.Namespace, label: str | None, weight_column: str | None, seed: int, drawn_by: str | None
) -> Split:
    columns, weights = options.text_columns(arguments), [weight_column] if weight_column is not None else []
    also = weights if label is not None else [drawn_by] if drawn_by is not None else []
    reading = options.reading(arguments) | {"optional": also}
    table = read_rows(arguments.data, columns, label, seed=seed, **reading)
    if arguments.eval_data is not None:
        held_out = read_rows(arguments.eval_data, columns, label, seed=seed, **reading)
        return Split(table, table, held_out, held_out)
    if label is not None or drawn_by is None:
        rows, held_out = hold_out(table, arguments.held_out, seed, label)
        return Split(table, rows, table, held_out)
    keeps_empty = arguments.label_separator is not None  # a cell without a label is one of a text that has none
    labelled = [row for row in table if row.get(drawn_by) is not None and (keeps_empty or str(row[drawn_by]).strip())]
    if not labelled:
        rows, held_out = hold_out(table, arguments.held_out, seed, None)
        return Split(table, rows, table, held_out)
    rows, held_out = hold_out(labelled, arguments.held_out, seed, drawn_by)
    chosen = {id(row) for row in labelled}
    return Split(table, [*rows, *(row for row in table if id(row) not in chosen)], table, held_out)


def _check_weights(rows: Sequence[Row], column: str, source: str) -> None:
    """Refuse data without that column, if it is not the usual one, and cells that are no weights, by their place."""
    if not any(column in row for row in rows):
        if column != WEIGHT_COLUMN:
            raise CompressionError(
                f"{source} has no column {column!r}; name the one with the rows' weights, or leave out --weight-column."
            )
        return
    for row in rows:
        if not is_weight(row.get(column)):
            raise CompressionError(
                f"{row.place} has {row.get(column)!r:.40} in the column {column!r}, which is no weight: "
                f"{WEIGHT_RANGE}. Correct it, name another with --weight-column, or say --weight-column '' to weigh "
                "all rows the same."
            )


def describe_rows(
    rows: Sequence[Row], held_out: Sequence[Row], columns: Sequence[str], weight_column: str | None
) -> str:
    """Say how many rows were trained on, by which weights, and how many others were measured with.

    Of these it says how many have the text of one that was trained on.
    """
    weighed = f", weighed by the column {weight_column!r}" if weight_column in rows[0] else ""
    text = f"trained on {len(rows):,} rows{weighed}"
    if not held_out:
        return text
    learned = {tuple(row[name] for name in columns) for row in rows}
    count = sum(tuple(row[name] for name in columns) in learned for row in held_out)
    repeated = f", {count:,} of which have the text of one that was trained on" if count else ""
    return f"{text}, measured on {len(held_out):,} others{repeated}"


def hold_out(rows: Sequence[Row], held_out: float, seed: int, label: str | None) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the rows; return the others and those. Of each label it is the same, if there are any."""
    return split_rows(rows, held_out, seed) if label is None else split_by_label(rows, held_out, seed, label)


def split_by_label(rows: Sequence[Row], held_out: float, seed: int, label: str) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction of the rows, drawn at random, of each label the same as far as whole rows allow.

    A label of a single row is trained on. Where almost every row has a label of its own, such as a number, they are
    drawn from all.
    """
    _, drawn = split_rows(rows, held_out, seed)  # checks the fraction, and says how many
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[str(row[label]).strip().casefold()].append(index)
    if not drawn or 2 * len(groups) > len(rows):
        return split_rows(rows, held_out, seed)
    generator = random.Random(seed)
    shuffled = {name: generator.sample(group, len(group)) for name, group in groups.items()}
    shares = {name: held_out * len(group) for name, group in groups.items()}
    counts = {name: min(int(share), len(groups[name]) - 1) for name, share in shares.items()}
    for name in sorted(groups, key=lambda one: (counts[one] - shares[one], one)):  # who lacks most of its share first
        if sum(counts.values()) < len(drawn) and counts[name] + 1 < len(groups[name]):
            counts[name] += 1
    chosen = {index for name, group in shuffled.items() for index in group[: counts[name]]}
    order = generator.sample(range(len(rows)), len(rows))
    return [rows[n] for n in order if n not in chosen], [rows[n] for n in order if n in chosen]


def encode_rows(
    part: Sequence[Row],
    table: Sequence[Row],
    columns: Sequence[str],
    label: str | None,
    model: tuple[Any, Any, int | None],
    *,
    known: frozenset[str] | set[str],
    kept: set[str],
    **how: Any,
) -> list[dict[str, Any]]:
    """Encode rows for a training.

    Args:
        part: The rows.
        table: All of the same data.
        columns: Those of the texts.
        label: That of the labels.
        model: Model, tokenizer, and how many tokens of a text are read.
        known: The columns of what the tokenizer makes that are read.
        kept: The columns of the data that stay.
        how: How labels are read.
    """
    encoded = encode(part, columns, label, *model, table=table, **how)
    pairs = zip(encoded, part, strict=True)
    return [{n: row[n] for n in row if n in known} | {n: own[n] for n in kept & own.keys()} for row, own in pairs]
