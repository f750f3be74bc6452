"""Label maps: ``id2label`` and ``label2id`` of a config, read in every spelling that has one meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import count_outputs, get_config, unwrap

LABELS = ("labels", "label", "label_ids")  # columns from which the collators of transformers read labels


def label_names(model: nn.Module, role: str = "model") -> dict[int, str]:
    """Return the names of a model's classes by index, in their order; none where the config has no maps.

    Args:
        model: A classifier.
        role: What to call it in messages.

    Raises:
        CompressionError: The maps do not give each class one name of its own.
    """
    return read_labels(get_config(model), role, _outputs(model))


def read_labels(config: Any, role: str = "model", outputs: frozenset[int] = frozenset()) -> dict[int, str]:
    """Return the names of the classes by index, 0, 1, 2 and so on, as a config has them.

    Indices may be numbers or text, as JSON has them, a map may be a list, and one of the two may be missing or hold the
    names that transformers gives by default.

    Args:
        config: A config, or None.
        role: Whose it is, for messages.
        outputs: How many classes the model has, if that is known; several numbers where it is not certain.

    Raises:
        CompressionError: The maps contradict each other, or do not give each class one name of its own.
    """
    maps = tuple(getattr(config, name, None) for name in ("id2label", "label2id"))
    try:
        names, indices = _read_id2label(maps[0]), _read_label2id(maps[1])
        if indices and set(map(_fold, indices)).isdisjoint(map(_fold, names.values())):
            if names and _are_default(indices):  # id2label was set alone
                indices = {}
            elif are_default_names(names):  # label2id was set alone, or there is no id2label
                if names and len(names) != len(indices):
                    raise ValueError(f"id2label has {len(names)} classes and label2id {len(indices)}")
                names = _invert(indices)
        _check_names(names, indices, outputs)
    except ValueError as error:
        raise CompressionError(
            f"The labels of the {role} have no plain meaning: {error}. Its config has id2label={_show(maps[0])} and "
            f"label2id={_show(maps[1])}; set both so that they name each class once, such as "
            "id2label={0: 'no', 1: 'yes'} and label2id={'no': 0, 'yes': 1}."
        ) from None
    return dict(sorted(names.items()))


def label_maps(config: Any, role: str = "model") -> dict[str, Any]:
    """Return ``id2label`` and ``label2id`` as transformers spells them, for a config; nothing if it has none."""
    names = read_labels(config, role)
    if not names:
        return {}
    own = {name: index for index, name in names.items()}
    given = _read_label2id(getattr(config, "label2id", None))  # may know a class by another name too
    return {"id2label": names, "label2id": given if own.items() <= given.items() else own}


def readable_maps(config: Any, role: str = "model") -> dict[str, Any]:
    """Return both maps for a config with maps that transformers does not read: lists, names for keys, or one alone.

    Returns:
        As `label_maps`; nothing where transformers reads what the config has.

    Raises:
        CompressionError: They have no plain meaning.
    """
    names, indices = (getattr(config, name, None) for name in ("id2label", "label2id"))
    if isinstance(names, Mapping) and isinstance(indices, Mapping | None):
        if all(isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) for key in names):
            return {}
    elif names is None and not indices:
        return {}
    return label_maps(config, role)


def are_default_names(labels: Mapping[int, str]) -> bool:
    """Whether these are the names that transformers gives to classes without any."""
    return all(name == f"LABEL_{index}" for index, name in labels.items())


def label_order(
    first: nn.Module, other: nn.Module, roles: tuple[str, str] = ("first", "other"), *, strict: bool = False
) -> list[int] | None:
    """Return where the classes of the first model are among those of another.

    Args:
        first: A classifier.
        other: Another one.
        roles: What to call them in messages.
        strict: Refuse models whose classes have other names.

    Returns:
        An index of the other model for each class of the first; None if they are in the same places, or have no names
        in common.

    Raises:
        CompressionError: The names of one have no plain meaning, or differ.
    """
    if _same_maps(first, other) and _outputs(first) == _outputs(other):
        return None
    labels, others = label_names(first, roles[0]), label_names(other, roles[1])
    if not labels or not others or labels == others:
        return None
    index, wanted = ({name: i for i, name in names.items()} for names in (others, labels))
    if set(index) != set(wanted):  # NEGATIVE and negative are one name, unless both are there
        folded = [{_fold(name): i for name, i in names.items()} for names in (index, wanted)]
        if set(folded[0]) == set(folded[1]) and len(folded[0]) == len(others) == len(labels):
            index, wanted = folded
    if set(index) == set(wanted):
        order = [index[name] for name, _ in sorted(wanted.items(), key=lambda item: item[1])]
        return None if order == list(range(len(order))) else order
    unnamed = len(labels) == len(others) and (are_default_names(labels) or are_default_names(others))
    if strict and not unnamed:
        raise CompressionError(
            f"The {roles[1]} has {len(others)} labels ({others}), the {roles[0]} {len(labels)} ({labels}); they must "
            "match. Set id2label and label2id in one of the configs so that both use the same names."
        )
    return None


def check_class_names(owner: str, model: nn.Module, data: Any) -> None:
    """Refuse data whose own names of the classes, of a ``ClassLabel``, say that an index means another class.

    Args:
        owner: Whose labels they are, for messages.
        model: A classifier.
        data: A `datasets.Dataset`; others have no such names.
    """
    features = getattr(data, "features", None)
    known_features = features if isinstance(features, Mapping) else {}
    for column in known_features.keys() & set(LABELS):
        feature = known_features[column]
        names = getattr(getattr(feature, "feature", feature), "names", None) or []
        if not names or count_outputs(get_config(model)) == 1:
            continue
        known = {_fold(name): index for index, name in label_names(model).items()}
        for index, name in enumerate(names):
            if known.get(_fold(name), index) != index:
                raise CompressionError(
                    f"The column {column!r} of {owner} calls its classes {', '.join(names)}, the model "
                    f"{', '.join(label_names(model).values())}: {name!r} is class {index} of the data and class "
                    f"{known[_fold(name)]} of the model. Put them in one order: "
                    f"dataset.align_labels_with_mapping(model.config.label2id, {column!r}), or set id2label and "
                    "label2id in the config."
                )


def _outputs(model: nn.Module) -> frozenset[int]:
    """Return how many classes a model may have: as it was made with, and as its last layer has."""
    made = getattr(unwrap(model), "num_labels", None)
    if not isinstance(made, int):
        return frozenset()
    last = [module.out_features for module in unwrap(model).modules() if isinstance(module, nn.Linear)][-1:]
    return frozenset((made, *last))


def _same_maps(first: nn.Module, other: nn.Module) -> bool:
    """Whether two configs spell their labels alike, so that the order is the same, whatever they mean."""
    one, two = (get_config(model) for model in (first, other))
    if one is None or two is None:
        return False
    return all(getattr(one, name, None) == getattr(two, name, None) for name in ("id2label", "label2id"))


def _read_id2label(given: Any) -> dict[int, str]:
    if given is None:
        return {}
    names: dict[int, str] = {}
    for key, name in _items("id2label", given, listed=True):
        index = _index("id2label", key)
        if names.setdefault(index, _name("id2label", name)) != _name("id2label", name):
            raise ValueError(f"id2label has the class {index} twice")
    return names


def _read_label2id(given: Any) -> dict[str, int]:
    if given is None:
        return {}
    indices: dict[str, int] = {}
    for name, key in _items("label2id", given, listed=False):
        index = _index("label2id", key)
        if indices.setdefault(_name("label2id", name), index) != index:
            raise ValueError(f"label2id has the name {name!r} twice")
    return indices


def _items(map_name: str, given: Any, *, listed: bool) -> list[tuple[Any, Any]]:
    if isinstance(given, Mapping):
        return list(given.items())
    if isinstance(given, list | tuple):
        return [(index, name) if listed else (name, index) for index, name in enumerate(given)]
    raise ValueError(f"{map_name} is neither a mapping nor a list")


def _index(map_name: str, value: Any) -> int:
    """Read the index of a class: a number or a text of one."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, str) and re.fullmatch(r"\s*\d+\s*", number, re.ASCII):
        number = int(number)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{map_name} has {value!r} in the place of a class index")
    return number


def _name(map_name: str, value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{map_name} has {value!r} in the place of a name")


def _fold(name: str) -> str:
    return name.strip().casefold()


def _are_default(indices: Mapping[str, int]) -> bool:
    return all(name == f"LABEL_{index}" for name, index in indices.items())


def _invert(indices: Mapping[str, int]) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, index in indices.items():
        if index in names:
            raise ValueError(f"label2id has two names for the class {index}, {names[index]!r} and {name!r}")
        names[index] = name
    return names


def _check_names(names: Mapping[int, str], indices: Mapping[str, int], outputs: frozenset[int]) -> None:
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"the classes are not 0 to {len(names) - 1}, but {sorted(names)}")
    if len(set(names.values())) < len(names):
        double = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ValueError(f"several classes have the name {double!r}")
    folded: dict[str, set[int]] = {}  # the same name in other upper and lower case means the same class
    for name, index in indices.items():
        folded.setdefault(_fold(name), set()).add(index)
    if beyond := set(indices.values()) - set(names):
        raise ValueError(f"label2id has the class {min(beyond)}, which id2label has not")
    for index, name in names.items():
        given = folded.get(_fold(name), set()) if name not in indices else {indices[name]}
        if given - {index}:
            other = max(given - {index})
            raise ValueError(f"the name {name!r} is of class {index} in id2label and of class {other} in label2id")
        if index in indices.values() and not given:
            raise ValueError(f"label2id has no {name!r}, but another name of the class {index}")
    if names and outputs and len(names) not in outputs:
        raise ValueError(f"they name {len(names)} classes, and the model has {min(outputs)}")


def _show(labels: Any) -> str:
    text = repr(labels)
    return text if len(text) <= 600 else f"{text[:600]}..."
