"""What the cells of a label column mean to a model: classes, several classes, or numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import count_outputs, get_config, get_problem_type
from hfcompress.models.labels import are_default_names, label_names, label_order

Place = Callable[[int], str]  # of a cell, for messages
Say = Callable[[str], None]  # prints a note


def read_labels(
    cells: Sequence[Any],
    model: nn.Module,
    place: Place,
    *,
    separator: str | None,
    read_as: str | None,
    say: Say | None = None,
) -> list[Any]:
    """Return what a label column means to a model: class indices, or as its problem type asks floats or lists of them.

    Args:
        cells: All of the column, because they are read in one way.
        model: Its config has the names of the classes and the problem type.
        place: Where the cell of an index stands.
        separator: What stands between the labels of a cell.
        read_as: ``"names"`` or ``"indices"``, where they could be both.
        say: Prints that names are spelled otherwise than the model's, if they are.
    """
    problem = get_problem_type(model, "model")
    if separator is not None and problem != "multi_label_classification":
        raise CompressionError(
            f"The model has problem_type={problem!r}, so a text has one label; leave out --label-separator, or set the "
            "problem_type in the model's config.json to multi_label_classification."
        )
    if problem == "regression":
        if (outputs := count_outputs(get_config(model))) != 1:
            raise CompressionError(f"The model predicts {outputs} numbers; use the Python functions for such labels.")
        return [_read_number(cell, place(index)) for index, cell in enumerate(cells)]
    classes = {name: index for index, name in label_names(model).items()}
    if problem == "single_label_classification":
        return class_indices(cells, classes, place, read_as=read_as, say=say)
    if separator is not None and (holding := [name for name in classes if separator in name]):
        raise CompressionError(f"--label-separator {separator!r} stands in the label {holding[0]!r}; name another.")
    sets = [_split(cell, separator, len(classes), place(index)) for index, cell in enumerate(cells)]
    owners = [index for index, parts in enumerate(sets) for _ in parts]
    parts = [part for one in sets for part in one]
    found = class_indices(parts, classes, lambda index: place(owners[index]), read_as=read_as, say=say)
    made = [[0.0] * len(classes) for _ in cells]
    for owner, index in zip(owners, found, strict=True):
        made[owner][index] = 1.0
    return made


def name_classes(
    cells: Sequence[Any], names: Sequence[str], model: nn.Module, read_as: str | None, *, say: Say | None
) -> Sequence[Any]:
    """Return a label column with the names of classes in place of indices, where its data set has names for these.

    Indices stay where not all names are the model's, with a note on standard error if both have names of their own.

    Args:
        cells: The column, of indices or lists of them.
        names: Those of the data set; none if it has none.
        model: Its config has the names that the labels are read by.
        read_as: See `read_labels`.
        say: Prints the note; nothing is said if None.

    Raises:
        CompressionError: Some of the names are the model's, of other classes.
    """
    if not names or read_as == "indices" or get_problem_type(model, "model") == "regression":
        return cells
    model_names = label_names(model)
    classes = {name: index for index, name in model_names.items()}
    matched = _match_names(names, classes)
    if read_as == "names" or (len(set(matched.values())) == len(names) > 0):
        return [_name(cell, names) for cell in cells]
    known = f"The data set calls its classes {', '.join(names)}, the model {', '.join(model_names.values())}"
    for index, name in enumerate(names):
        if matched.get(name, index) != index:
            raise CompressionError(
                f"{known}: {name!r} is class {index} of the data and class {matched[name]} of the model. Give both the "
                "same names, or say --labels-are indices if the indices are the model's."
            )
    if say is not None and not are_default_names(model_names):
        say(f"{known}; the labels are read as indices.")
    return cells


def _name(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return [_name(one, names) for one in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def check_same_classes(
    cells: Mapping[str, Sequence[Any]], models: Mapping[str, nn.Module], place: Place, **how: Any
) -> None:
    """Refuse indices as labels where models have their classes in different orders, and read the same from no names.

    Args:
        cells: By model all of the column, as `name_classes` returns it.
        models: Models by what they are called; each two of them are compared.
        place: Where the cell of an index stands.
        how: As for `read_labels`.
    """
    for first, other in combinations(models, 2):
        order = label_order(models[first], models[other], (first, other))
        if order is None or get_problem_type(models[first], first) != get_problem_type(models[other], other):
            continue
        read = [read_labels(cells[name], models[name], place, **how) for name in (first, other)]
        for row, (one, same) in enumerate(zip(*read, strict=True)):
            meant = order[one] if isinstance(one, int) else [one[order.index(index)] for index in range(len(order))]
            if meant != same:
                raise CompressionError(
                    f"The label {cells[first][row]!r} of the data ({place(row)}) is an index, and means different "
                    f"classes to {first} and to {other}: these have theirs in the orders {_listed(models[first])} and "
                    f"{_listed(models[other])}. Write the names of the classes into the data."
                )


def _listed(model: nn.Module) -> str:
    return ", ".join(repr(name) for _, name in sorted(label_names(model).items()))


def class_indices(
    labels: Sequence[Any],
    classes: dict[str, int],
    place: Place | None = None,
    *,
    read_as: str | None = None,
    say: Say | None = None,
) -> list[int]:
    """Return the class that each label of a column means: all are names of classes, or all are indices.

    A label is a name as it is spelled, or but for upper and lower case, or as a whole number ("1.0" is the name "1").
    Indices are not read where the names could be meant by them: "1" and "2" of "1 star", "2 stars", "3 stars".

    Args:
        labels: All labels of the column.
        classes: The class of each name.
        place: Where the label of an index stands.
        read_as: ``"names"`` or ``"indices"``, where they could be both.
        say: Prints that names are spelled otherwise than the model's, if they are.

    Raises:
        CompressionError: A label is neither, or could be several; the message names the place of the first.

    Example:
        >>> class_indices(["POSITIVE", "negative"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 0]
        >>> class_indices(["1", 1, 1.0, True, "true"], {"NEGATIVE": 0, "POSITIVE": 1})
        [1, 1, 1, 1, 1]
        >>> class_indices(["1.0", "2.0"], {"1": 0, "2": 1})
        [0, 1]
        >>> class_indices(["TRUE", "FALSE"], {"True": 0, "False": 1})
        [0, 1]
    """
    texts = {str(label).strip(): index for index, label in reversed(list(enumerate(labels)))}  # where each is first
    texts = dict(sorted(texts.items(), key=lambda item: item[1]))
    known = ", ".join(f"{name!r} ({index})" for name, index in classes.items())
    indices = {float(index): index for index in classes.values()}
    at = {text: "" if place is None else f" ({place(index)})" for text, index in texts.items()}
    named = {} if read_as == "indices" else _match_names(texts, classes, at)
    indexed = {} if read_as == "names" else {text: indices[n] for text in texts if (n := _number(text)) in indices}
    for text, index in texts.items():
        if text not in named and text not in indexed:
            raise CompressionError(
                f"The label {labels[index]!r} of the data is not one of the model's, which are {known}{at[text]}. "
                + _remedy(classes, read_as)
            )
    others = [text for text in texts if text not in named]
    if named and others:
        name = next(iter(named))
        where = "" if place is None else f" ({place(texts[name])} and {place(texts[others[0]])})"
        raise CompressionError(
            f"The labels of the data are names of the model's, such as {name!r}, and indices, such as {others[0]!r}"
            f"{where}; write all of them in one way, or say --labels-are indices if all are. The model has {known}."
        )
    read, other = (indexed, _match_hints(texts, classes)) if others else (named, indexed)
    for text in texts:
        if read_as is None and len(other) == len(texts) and other[text] != read[text] and _is_number(text):
            names = {index: name for name, index in classes.items()}
            by_name, by_index = (other, read) if others else (read, other)
            raise CompressionError(
                f"The labels of the data can be read in two ways: {text!r} as a name is "
                f"{names[by_name[text]]!r}, as an index {names[by_index[text]]!r}{at[text]}. Say which with "
                f"--labels-are names (write them as the model does) or --labels-are indices. The model has {known}."
            )
    if say is not None and read is named:
        _say_spellings(labels, classes, named, say)
    return [read[str(label).strip()] for label in labels]


def _remedy(classes: Mapping[str, int], read_as: str | None) -> str:
    """Return what to do about a label that is none of the model's."""
    forms = {"names": "the name", "indices": "the index"}
    write = f"Write {forms.get(read_as or '', 'the name or the index')} of a class there, or leave the row out"
    if not are_default_names({index: name for name, index in classes.items()}):
        return f"{write}."
    return (
        f"{write}; or, as these names are only those that transformers gives, set id2label and label2id in the model's "
        "config.json to the real ones, in the order in which it has learned them."
    )


def _say_spellings(labels: Sequence[Any], classes: dict[str, int], named: Mapping[str, int], say: Say) -> None:
    """Say which labels were matched with names that are spelled otherwise."""
    names = {index: name for name, index in classes.items()}
    counts = Counter(label for label in map(str, labels) if label not in classes)
    if counts:
        matched = [f"{label!r} as {names[named[label.strip()]]!r}" for label in counts]
        more = f" and {len(matched) - 5} more" if len(matched) > 5 else ""
        say(
            f"{sum(counts.values()):,} of {len(labels):,} labels of the data are spelled otherwise than the model's "
            f"names; they are read as those: {', '.join(matched[:5])}{more}."
        )


def _match_names(
    texts: Sequence[str] | dict[str, int], classes: dict[str, int], at: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return the class of each text that is a name, exactly, but for upper and lower case, or as a whole number."""
    folded: dict[Any, set[int]] = {}
    for name, index in classes.items():
        for key in {_fold(name), *([float(name)] if is_whole(name) else [])}:
            folded.setdefault(key, set()).add(index)
    found = {}
    for text in texts:
        number = float(text) if is_whole(text) else None
        indices = {classes[text]} if text in classes else folded.get(_fold(text)) or folded.get(number) or set()
        if len(indices) > 1:
            names = " and ".join(repr(name) for name, index in classes.items() if index in indices)
            where = "" if at is None else at[text]
            raise CompressionError(
                f"The label {text!r} of the data{where} can be read as {names}; spell it as one of them."
            )
        if indices:
            found[text] = min(indices)
    return found


def _fold(name: str) -> str:
    """Return a name as it is but for upper and lower case, spaces around it, and how its accents are stored."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())


def _match_hints(texts: Sequence[str] | dict[str, int], classes: dict[str, int]) -> dict[str, int]:
    """Return the class of each text that is the only number in a name, such as that of "2 stars"."""
    hints: dict[float, int] = {}
    for name, index in classes.items():
        digits = re.findall(r"\d+", name)
        number = _number(name) if _number(name) is not None or len(digits) != 1 else float(digits[0])
        if number is None:  # such as of "none"
            continue
        if number in hints:
            return {}
        hints[number] = index
    return {text: hints[number] for text in texts if (number := _number(text)) in hints}


def is_whole(text: str) -> bool:
    """Whether a text is a whole number: "1.0" is 1, but "1.10" may be another section than "1.1".

    Example:
        >>> [is_whole(text) for text in ("1", "+1.0", "1.10", "1e2")]
        [True, True, False, False]
    """
    return re.fullmatch(r"[+-]?\d+(\.0*)?", text.strip(), re.ASCII) is not None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text.strip(), re.ASCII | re.IGNORECASE) is not None


def _number(text: str) -> float | None:
    """Read a number; true is 1, false 0."""
    if _is_number(text):
        return float(text)
    return {"true": 1.0, "false": 0.0}.get(text.strip().casefold())


def as_number(cell: Any) -> float | None:
    """Return the number that a cell is; None if it is none. True and False are none here.

    Example:
        >>> as_number(" 3.5 "), as_number(2), as_number("two"), as_number("True")
        (3.5, 2.0, None, None)
    """
    text = str(cell)
    return float(text) if not isinstance(cell, bool) and _is_number(text) else None


def are_other_numbers(names: Mapping[int, str]) -> bool:
    """Whether a class has a number for a name that is not its index, so that some labels could be read as either.

    Example:
        >>> are_other_numbers({0: "1", 1: "2"}), are_other_numbers({0: "0", 1: "1"}), are_other_numbers({0: "bad"})
        (True, False, False)
    """
    return any((number := _number(name)) is not None and number != index for index, name in names.items())


def _read_number(cell: Any, where: str) -> float:
    number = float(str(cell)) if _is_number(str(cell)) else math.nan
    if not math.isfinite(number):
        raise CompressionError(
            f"The label {cell!r} of the data is not a number such as 0.5, which the model predicts ({where})."
        )
    return number


def _split(cell: Any, separator: str | None, outputs: int, where: str) -> list[Any]:
    """Return the labels in a cell; none if it is empty."""
    if isinstance(cell, list):
        if len(cell) == outputs and all(one in (0, 1) for one in cell):
            raise CompressionError(
                f"The labels {cell} can be read as a 0 or 1 for each class, and as indices; write the names of the "
                f"classes ({where})."
            )
        if all(one in (0, 1) for one in cell) and len(set(cell)) < len(cell):
            raise CompressionError(f"The labels {cell} of the data have one of them twice ({where}).")
        return cell
    if not isinstance(cell, str):
        return [cell]
    if not cell.strip():
        return []
    if separator is None:
        raise CompressionError(
            "The model gives a text several labels; say with --label-separator what stands between those of a cell, "
            "such as ';'."
        )
    parts = [part.strip() for part in cell.split(separator)]
    if not all(parts):
        raise CompressionError(
            f"The labels {cell!r} of the data have {separator!r} without a label beside it ({where})."
        )
    return parts
