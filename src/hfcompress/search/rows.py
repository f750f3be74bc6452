"""The rows of a ladder: which are learned from, which check the training, and which measure."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.label_weights import as_weight
from hfcompress.distill.logits_cache import cache_teacher_logits
from hfcompress.distill.teacher_inputs import choose_teacher_input, longest_text
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import MISSING_LABELS
from hfcompress.models.classifier import count_outputs, get_problem_type, input_names
from hfcompress.models.inputs import LABELS, check_lengths, check_mask
from hfcompress.models.labels import check_class_names, label_order
from hfcompress.models.padding import lacks_pad_id
from hfcompress.models.tokenizers import check_texts, token_limit, truncation

if TYPE_CHECKING:
    from datasets import Dataset

_CHECK_SHARE, _CHECK_MOST = 3, 1000  # a third of the rows that are not learned from check the training
_OTHER_SHARE, _OTHER_MOST = 5, 3000  # a fifth of the rows is not learned from where no others are given
_LEAST = 20  # rows to learn from
_CALIBRATION = 512
_LENGTHS = 5000  # texts whose length is looked at, at least where there are so many


@dataclass(frozen=True)
class HeldOut:
    """Which rows are held out.

    Attributes:
        source: What they are of: ``"eval_dataset"`` or ``"train_dataset"``.
        measure: Positions there of those that measure, ascending.
        check: Positions of those that check the training.
        left_out: How many rows without a label are not learned from, since their texts are held out.
        repeated: How many rows that measure have the text of a row to learn from, all the same.
    """

    source: str
    measure: list[int]
    check: list[int]
    left_out: int
    repeated: int

    @property
    def notes(self) -> list[str]:
        """What is not learned from."""
        if not self.left_out:
            return []
        return [
            f"{self.left_out:,} rows without a label are not learned from, as their texts are among those held out."
        ]


@dataclass(frozen=True)
class Parts:
    """The rows, encoded.

    Attributes:
        train: To learn from; a row without a label has the weight 0 in the label term.
        check: Labelled rows that are in no other part; they say whether a training is kept, and judge int8. Rows that
            the original was trained on would not do: it has learned their labels by heart, and so have its rungs.
        measure: Labelled rows, which decide nothing but which rungs are left out: see ``eval_dataset`` of `compress`.
        measure_original: The same, as the original reads them: other ids, where rungs have a smaller vocabulary.
        labelled: Whether rows to learn from have labels.
        problem: What the labels mean.
        held_out: Which rows check and measure.
    """

    train: Dataset
    check: Dataset
    measure: Dataset
    measure_original: Dataset
    labelled: bool
    problem: Problem
    held_out: HeldOut

    def calibration(self, *, labels: bool) -> list[dict[str, Any]]:
        """Return evenly spaced rows of those to learn from, with or without their labels."""
        data = self.train
        if labels and "hfcompress_unlabelled" in data.column_names:
            data = data.select([n for n, unknown in enumerate(data["hfcompress_unlabelled"]) if not unknown])
        count = min(_CALIBRATION, len(data))
        rows = data.select([n * len(data) // count for n in range(count)])
        left_out = {"teacher_logits", "hfcompress_unlabelled"} | (set() if labels else {"labels"})
        return [{name: row[name] for name in row if name not in left_out} for row in rows]


def read_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Any,
    eval_dataset: Any,
    args: DistillationArguments,
    max_length: int | None,
    seed: int,
) -> Parts:
    """Read the data, encode texts, and hold out what checks the training and what measures.

    A row without a label whose text is held out is not learned from. One with a label is, as data often repeat short
    texts, but it is counted.

    Raises:
        CompressionError: There are too few rows, or no labels to measure by; or they hold neither texts nor ids.
        ImportError: `datasets` is not installed.
    """
    problem = get_problem_type(model, "model")
    train = _with_classes(_read("train_dataset", model, tokenizer, train_dataset, args, max_length), problem)
    missing = [True] * len(train)
    outputs = count_outputs(model.config) or 1
    if "labels" in train.column_names:
        missing = [_is_missing(value, problem) for value in train["labels"]]
        _check_labels("train_dataset", train["labels"], missing, problem, outputs)
    labelled = [n for n, unknown in enumerate(missing) if not unknown]
    if labelled:
        check_class_names("train_dataset", model, train)
    order = random.Random(seed).sample(labelled, len(labelled))
    if eval_dataset is not None:
        others = _with_classes(_read("eval_dataset", model, tokenizer, eval_dataset, args, max_length), problem)
        known = others["labels"] if "labels" in others.column_names else [None] * len(others)
        if len(others) < 2 or any(_is_missing(value, problem) for value in known):
            raise CompressionError(
                "eval_dataset must hold two rows or more that all have a label, by which models are measured; of its "
                f"{len(others)} rows {sum(_is_missing(value, problem) for value in known)} have none."
            )
        _check_labels("eval_dataset", known, [False] * len(others), problem, outputs)
        check_class_names("eval_dataset", model, others)
        order = random.Random(seed).sample(range(len(others)), len(others))
        used: set[int] = set()
    elif len(order) < 2 * _LEAST:
        raise CompressionError(
            f"train_dataset has {len(order)} rows with a label, and without eval_dataset= a fifth of them measures; "
            f"pass eval_dataset=, labelled rows, or at least {2 * _LEAST} labelled rows to learn from."
        )
    else:
        others, order = train, order[: min(_OTHER_MOST, len(order) // _OTHER_SHARE)]
        used = set(order)
    count = min(_CHECK_MOST, len(order) // _CHECK_SHARE)
    positions = [sorted(part) for part in (order[:count], order[count:])]
    check, measure = map(others.select, positions)
    measured = [hash(tokens) for tokens in _tokens(measure)]
    held_out = {*measured, *map(hash, _tokens(check))}
    left, learned, left_out = list[int](), set[int](), 0
    for n, (tokens, unknown_label) in enumerate(zip(_tokens(train), missing, strict=True)):
        if n in used:
            continue
        if (text := hash(tokens)) in held_out:
            if unknown_label:
                left_out += 1
                continue
            learned.add(text)
        left.append(n)
    if len(left) < _LEAST:
        why = f" (the texts of {left_out:,} others are held out)" if left_out else ""
        raise CompressionError(
            f"train_dataset leaves {len(left)} rows to learn from, of {len(train)}{why}; pass at least {_LEAST}."
        )
    rows = train.select(left)
    unknown = [missing[n] for n in left]
    if any(unknown) and not all(unknown):
        rows = _fill_labels(rows, unknown, problem, args)
    elif all(unknown) and "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    source = "train_dataset" if eval_dataset is None else "eval_dataset"
    repeated = sum(text in learned for text in measured)
    drawn = HeldOut(source, positions[1], positions[0], left_out, repeated)
    return Parts(rows, check, measure, measure, not all(unknown), problem, drawn)


def check_teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    parts: Parts,
    args: DistillationArguments,
) -> bool:
    """Return whether a teacher reads the model's ids; otherwise it reads the texts with its own tokenizer.

    Raises:
        CompressionError: It cannot read the ids, and there are no texts, or layers are compared token by token.
    """
    if teacher is None:
        return True
    texts = text_columns(args)
    sources = model, teacher, tokenizer, teacher_tokenizer
    reads_ids = all(choose_teacher_input(*sources, part, texts) == "ids" for part in (parts.train, parts.check))
    if args.compares_layers and not reads_ids:
        raise CompressionError(
            f"hidden_weight={args.hidden_weight}, relation_weight={args.relation_weight} compare layers token by "
            "token, but teacher= reads other tokens than the model; set both to 0, or pass one with its tokenizer."
        )
    return reads_ids


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Parts) -> None:
    """Refuse a tokenizer's padding token that a model without one of its own would take for text, or text for it."""
    if not lacks_pad_id(model):
        return
    index, embeddings = tokenizer.pad_token_id, cast(Any, model.get_input_embeddings())
    count = len(embeddings.weight)
    if index >= count:
        raise CompressionError(
            f"processing_class pads with the id {index}, and {type(model).__name__} has tokens from 0 to {count - 1}; "
            "call model.resize_token_embeddings(len(tokenizer)), or choose another padding token."
        )
    for data in (parts.train, parts.check, parts.measure):
        if any(tokens[-1:] == (index,) for tokens in _tokens(data)):
            raise CompressionError(
                f"A text ends with {tokenizer.pad_token!r}, with which processing_class pads, and the config names no "
                "padding token: the model would read the token before. Add one of its own to tokenizer and model."
            )


def with_logits(
    model: PreTrainedModel,
    teacher: nn.Module,
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase | None,
    args: DistillationArguments,
    folder: Path,
) -> Parts:
    """Add the teacher's logits, in the order of the model's classes: computed once, for all rungs."""
    roles = ("model", "teacher")
    problems = [get_problem_type(one, role) for one, role in zip((model, teacher), roles, strict=True)]
    if problems[0] != problems[1]:
        raise CompressionError(f"The model's problem_type is {problems[0]!r}, the teacher's {problems[1]!r}.")
    order = None if teacher is model else label_order(model, teacher, roles, strict=True)
    texts: dict[str, Any] = {}
    if tokenizer is not None:
        longest = longest_text([teacher], tokenizer, args.teacher_max_length)
        texts = {"text_column": args.text_column, "text_pair_column": args.text_pair_column, "max_length": longest}

    def add(data: Any) -> Any:
        if not len(data):
            return data
        found = cache_teacher_logits(
            copy.deepcopy(teacher), data, processing_class=tokenizer, cache_dir=folder / "logits", **texts
        )
        found = found.with_format(None)
        if order is None:
            return found
        return found.map(lambda row: {"teacher_logits": [row["teacher_logits"][n] for n in order]})

    return replace(parts, train=add(parts.train), check=add(parts.check))


def readable(parts: Parts, model: PreTrainedModel, args: DistillationArguments) -> Parts:
    """Leave out the columns that nothing reads."""
    more = ["teacher_logits", "hfcompress_unlabelled", *([args.weight_column] if args.weight_column else [])]
    return replace(
        parts,
        train=_keep_readable(parts.train, model, more),
        check=_keep_readable(parts.check, model, more[:1]),
        measure=_keep_readable(parts.measure, model, []),
        measure_original=_keep_readable(parts.measure_original, model, []),
    )


def text_lengths(data: Dataset) -> list[int]:
    """Return how many tokens texts have, without padding; of many texts those of some thousand, evenly spaced."""
    some = data.select(range(0, len(data), max(1, len(data) // _LENGTHS)))
    if "attention_mask" in some.column_names:
        return [sum(mask) for mask in some["attention_mask"]]
    return [len(ids) for ids in some["input_ids"]]


def _tokens(data: Dataset) -> Iterator[tuple[int, ...]]:
    """The tokens of each text, without padding."""
    ids = data["input_ids"]
    if "attention_mask" not in data.column_names:
        return map(tuple, ids)
    return (tuple(compress(*row)) for row in zip(ids, data["attention_mask"], strict=True))


def _keep_readable(data: Dataset, model: PreTrainedModel, more: Sequence[str]) -> Dataset:
    """Keep the columns that a model reads, and these."""
    known = [name for name in data.column_names if name in input_names(model) or name in (*more, "labels")]
    return data.select_columns(known)


def _read(
    owner: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    given: Any,
    args: DistillationArguments,
    max_length: int | None,
) -> Dataset:
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
        nested = next((n for n, ids in enumerate(data["input_ids"]) if ids and isinstance(ids[0], list)), None)
        if nested is not None:
            raise CompressionError(
                f"input_ids of row {nested} of {owner} are not the tokens of one text: pass one row a text, with a "
                "list of numbers, such as tokenizer(text) returns without return_tensors."
            )
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
        check_texts(f"{owner}[{name!r}]", data[name])
    return _with_known_ids(owner, model, encode(data, model, tokenizer, texts, max_length))


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
    """Encode these columns, truncated to what tokenizer and model take; other columns stay."""
    limit = token_limit(tokenizer, model)
    if max_length is not None:
        least = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1) + 1
        if max_length < least:
            raise CompressionError(f"max_length={max_length} must be at least {least}, special tokens included.")
        limit = max_length if limit is None else min(limit, max_length)
    clash = [name for name in data.column_names if name in tokenizer.model_input_names]
    return data.remove_columns(clash).map(
        lambda batch: dict(tokenizer(*(list(batch[name]) for name in texts), **truncation(limit))), batched=True
    )


def _with_known_ids(owner: str, model: PreTrainedModel, data: Dataset) -> Dataset:
    """Return data whose texts are as long as the model reads, and hold none but its tokens."""
    texts = data["input_ids"]
    check_lengths(owner, model, map(len, texts))
    embeddings: Any = model.get_input_embeddings()
    tokens = len(embeddings.weight)
    wrong = next((index for ids in texts for index in (min(ids), max(ids)) if not 0 <= index < tokens), None)
    if wrong is not None:
        raise CompressionError(
            f"A row of {owner} has the token {wrong}, and {type(model).__name__} has those from 0 to {tokens - 1}; "
            "pass the model's own tokenizer, or rows that it encoded."
        )
    return data


def _with_classes(data: Dataset, problem: Problem) -> Dataset:
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
    labels = [None if value != value else value for value in data["labels"]]
    floats = [value for value in labels if isinstance(value, float)]
    if not floats or not all(value.is_integer() for value in floats):
        return data
    whole = [None if value is None else int(value) for value in labels]
    return data.remove_columns("labels").add_column("labels", whole)


def _check_labels(owner: str, labels: Sequence[Any], missing: Sequence[bool], problem: Problem, outputs: int) -> None:
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


def _fill_labels(rows: Dataset, unknown: Sequence[bool], problem: Problem, args: DistillationArguments) -> Dataset:
    """Give rows without a label one that counts nothing: its weight in the label term is 0.

    With one label a row it is -100, which class weights that are balanced do not count.
    """
    column = args.weight_column
    if column is None:
        raise CompressionError(
            f"{sum(unknown)} of {len(unknown)} rows of train_dataset have no label, which is said by their weight; "
            "leave weight_column as it is, or leave out those rows."
        )
    known = rows["labels"][unknown.index(False)]
    blank: Any = [0.0] * len(known) if isinstance(known, list) else 0.0
    if problem == "single_label_classification":
        blank = -100
    labels = [blank if missing else value for value, missing in zip(rows["labels"], unknown, strict=True)]
    given = rows[column] if column in rows.column_names else [1.0] * len(rows)
    if any(value is None and not missing for value, missing in zip(given, unknown, strict=True)):
        raise CompressionError(f"A row with a label has no {column!r}, and others have it; give it to all or to none.")
    weights = [0.0 if missing else as_weight(value) for value, missing in zip(given, unknown, strict=True)]
    rows = rows.remove_columns([name for name in ("labels", column) if name in rows.column_names])
    rows = rows.add_column("labels", labels).add_column(column, weights)
    return rows.add_column("hfcompress_unlabelled", list(unknown))


def _is_missing(value: Any, problem: Problem) -> bool:
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
