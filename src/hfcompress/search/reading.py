"""Reads the data of a ladder: texts are encoded, and labels are checked and made numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.label_weights import as_weight
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import MISSING_LABELS
from hfcompress.models.classifier import input_names, max_tokens
from hfcompress.models.inputs import check_ids, check_lengths, check_mask
from hfcompress.models.labels import LABELS
from hfcompress.models.tokenizers import check_texts, token_limit, truncation

if TYPE_CHECKING:
    from datasets import Dataset

UNLABELLED = "hfcompress_unlabelled"  # the column that says whether a row has no label


def read_data(
    owner: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    given: Any,
    args: DistillationArguments,
    max_length: int | None,
) -> Dataset:
    """Read rows as a data set whose labels are called ``labels``, with the ids of its texts.

    Args:
        owner: What messages call it.
        model: What reads the ids.
        tokenizer: Encodes texts where there are no ids.
        given: A data set with rows, or a list of dicts.
        args: Name the columns of the texts.
        max_length: Tokens of a text at most; as many as the model reads if None.

    Raises:
        CompressionError: It is neither, or holds neither texts nor ids that the model reads.
        ImportError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("compress needs the package datasets: pip install datasets") from error
    data = given
    has_rows = hasattr(given, "__getitem__") and hasattr(given, "__len__") and getattr(given, "ndim", 1) == 1
    if isinstance(given, Mapping | str) or not has_rows:
        raise CompressionError(
            f"{owner} must be a data set with rows, such as datasets.Dataset or a list of dicts, not "
            f"{type(given).__name__}; of several splits pass one, such as data['train']."
        )
    if not isinstance(given, datasets.Dataset):
        rows = [given[index] for index in range(len(given))]
        wrong = next((index for index, row in enumerate(rows) if not isinstance(row, Mapping)), None)
        if wrong is not None:
            raise CompressionError(
                f"Row {wrong} of {owner} is {rows[wrong]!r:.60}, not a dict such as {{'text': 'good', 'labels': 1}}."
            )
        columns = dict.fromkeys(name for row in rows for name in row)  # of all rows: the first may have no label
        read = [name for name in columns if name in input_names(model) - {"labels"}]
        blank = next(((n, name) for n, row in enumerate(rows) for name in read if row.get(name) is None), None)
        if blank is not None:
            raise CompressionError(
                f"Row {blank[0]} of {owner} has no {blank[1]!r}, and others have it; give it to all or to none."
            )
        try:
            data = datasets.Dataset.from_list([{name: _plain(row.get(name)) for name in columns} for row in rows])
        except (TypeError, ValueError) as error:  # pyarrow's
            raise CompressionError(
                f"The rows of {owner} do not make a table: {error}. Give each column values of one kind, and None "
                "where there is no label."
            ) from error
    if data.format["type"] == "custom":
        raise CompressionError(
            f"{owner} has a transform (set_transform), which compress would leave out; apply it with map, or call "
            "reset_format()."
        )
    data = data.with_format(None)
    label = next((name for name in LABELS if name in data.column_names), None)
    if label is not None and label != "labels":
        data = data.rename_column(label, "labels")
    if "input_ids" in data.column_names:
        nested = next((n for n, ids in enumerate(column(data, "input_ids")) if ids and isinstance(ids[0], list)), None)
        if nested is not None:
            raise CompressionError(
                f"input_ids of row {nested} of {owner} are not the tokens of one text: pass one row a text, with a "
                "list of numbers, such as tokenizer(text) returns without return_tensors."
            )
        if "attention_mask" not in data.column_names:
            check_mask(owner, model, data, tokenizer)
        return _with_known_ids(owner, model, data)
    texts = text_columns(args)
    lacking = [name for name in texts if name not in data.column_names]
    if lacking or not len(data):
        raise CompressionError(
            f"{owner} has {len(data)} rows with the columns {', '.join(data.column_names) or 'none'}, and neither "
            f"'input_ids' nor {' and '.join(map(repr, texts))}: name the columns of the texts, text_column=... and "
            "text_pair_column=... (in args=, if you pass that)."
        )
    for name in texts:
        check_texts(f"{owner}[{name!r}]", column(data, name))
    return _with_known_ids(owner, model, encode(data, model, tokenizer, texts, max_length))


def column(data: Dataset, name: str) -> Iterator[Any]:
    """Yield the values of a column. One at a time takes `datasets` much longer than thousands together."""
    for batch in data.select_columns(name).iter(batch_size=1000):
        yield from batch[name]


def text_columns(args: DistillationArguments) -> list[str]:
    """Return the column of the text, or those of the two texts of a pair."""
    return [name for name in (args.text_column, args.text_pair_column) if name is not None]


def encode(
    data: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None,
) -> Dataset:
    """Encode these columns, truncated to ``max_length``, or to what tokenizer and model take; other columns stay."""
    limit = token_limit(tokenizer, model)
    if max_length is not None:
        least = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1) + 1
        if max_length < least:
            raise CompressionError(f"max_length={max_length} must be at least {least}, special tokens included.")
        read = max_tokens(model)  # a tokenizer's limit is a default
        most = token_limit(tokenizer) if read is None else read
        limit = max_length if most is None else min(most, max_length)
    clash = [name for name in data.column_names if name in tokenizer.model_input_names]
    return data.remove_columns(clash).map(
        lambda batch: dict(tokenizer(*(list(batch[name]) for name in texts), **truncation(limit))), batched=True
    )


def _with_known_ids(owner: str, model: PreTrainedModel, data: Dataset) -> Dataset:
    """Return data whose texts are as long as the model reads, and hold none but its tokens."""
    check_lengths(owner, model, map(len, column(data, "input_ids")))
    check_ids(f"A row of {owner}", model, column(data, "input_ids"))
    return data


def with_classes(data: Dataset, problem: Problem) -> Dataset:
    """Turn True and False, and classes that are floats, as pandas makes them where some are missing, into numbers."""
    if "labels" not in data.column_names:
        return data
    feature: Any = data.features["labels"]
    inner = getattr(feature, "feature", feature)
    if getattr(inner, "dtype", None) == "bool":
        number = type(inner)("int64")
        return data.cast_column("labels", number if inner is feature else replace(feature, feature=number))
    if problem != "single_label_classification":
        return data
    labels = [None if value != value else value for value in column(data, "labels")]
    floats = [value for value in labels if isinstance(value, float)]
    if not floats or not all(value.is_integer() for value in floats):
        return data
    whole = [None if value is None else int(value) for value in labels]
    return data.remove_columns("labels").add_column("labels", whole)


def check_labels(owner: str, labels: Sequence[Any], missing: Sequence[bool], problem: Problem, outputs: int) -> None:
    """Refuse labels that are not of the kind that the model has."""

    def fits(value: Any) -> bool:
        if problem == "single_label_classification":
            return isinstance(value, int) and 0 <= value < outputs
        numbers = value if isinstance(value, list) else [value]
        if problem == "regression":
            return len(numbers) == outputs and all(isinstance(one, int | float) and isfinite(one) for one in numbers)
        return len(numbers) == outputs and all(one in (0, 1) for one in numbers)

    pairs = enumerate(zip(labels, missing, strict=True))
    wrong = next((n for n, (value, unknown) in pairs if not unknown and not fits(value)), None)
    if wrong is not None:
        needed = {
            "single_label_classification": f"a class index from 0 to {outputs - 1}, or None, -1 or -100 for no label",
            "multi_label_classification": f"a list of {outputs} numbers, 1 or 0 for each label",
            "regression": "a finite number" if outputs == 1 else f"a list of {outputs} finite numbers",
        }
        raise CompressionError(
            f"Row {wrong} of {owner} has the label {labels[wrong]!r:.80}, but the model's problem_type is {problem!r}: "
            f"give each row {needed[problem]}."
        )


def fill_labels(rows: Dataset, unknown: Sequence[bool], problem: Problem, args: DistillationArguments) -> Dataset:
    """Give rows without a label one that counts nothing: its weight in the label term is 0.

    With one label a row it is -100, which class weights that are balanced do not count.
    """
    weight = args.weight_column
    if weight is None:
        raise CompressionError(
            f"{sum(unknown)} of {len(unknown)} rows of train_dataset have no label, which is said by their weight; "
            "leave weight_column as it is, or leave out those rows."
        )
    known = rows["labels"][unknown.index(False)]
    blank: Any = [0.0] * len(known) if isinstance(known, list) else 0.0
    if problem == "single_label_classification":
        blank = -100
    labels = [blank if missing else value for value, missing in zip(column(rows, "labels"), unknown, strict=True)]
    given = list(column(rows, weight)) if weight in rows.column_names else [1.0] * len(rows)
    if any(value is None and not missing for value, missing in zip(given, unknown, strict=True)):
        raise CompressionError(f"A row with a label has no {weight!r}, and others have it; give it to all or to none.")
    weights = [0.0 if missing else as_weight(value) for value, missing in zip(given, unknown, strict=True)]
    rows = rows.remove_columns([name for name in ("labels", weight) if name in rows.column_names])
    rows = rows.add_column("labels", labels).add_column(weight, weights)
    return rows.add_column(UNLABELLED, list(unknown))


def is_missing(value: Any, problem: Problem) -> bool:
    """Whether a label is none: None, NaN, and where there is one class a row, -1 and -100."""
    if value is None:
        return True
    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompressionError(
            f"The label {value!r:.80} is no number: give each row its class index, model.config.label2id[name] for a "
            "name."
        ) from error
    if numbers.is_floating_point():
        return bool(numbers.isnan().any())
    single = problem == "single_label_classification"
    return single and bool(torch.isin(numbers, torch.tensor(MISSING_LABELS)).all())


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, Tensor) or hasattr(value, "tolist") else value
    return None if isinstance(value, float) and value != value else value  # NaN is how pandas writes a missing value
