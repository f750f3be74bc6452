"""Labels that are no numbers, refused by name where examples are put into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hfcompress.errors import CompressionError

LABEL_COLUMNS = ("labels", "label", "label_ids")  # from which the collators of transformers read labels


@dataclass
class LabelCheckingCollator:
    """Collates examples, and refuses texts and None as labels where the collator raises or drops them."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Raises:
            CompressionError: A label is a text or None, and the collator makes no tensor of it.
        """
        try:
            batch = self.collator(features)
        except Exception:  # whatever a collator raises for what is no number
            _check_labels(features, some=False)
            raise
        if not any(name in batch for name in LABEL_COLUMNS):
            _check_labels(features, some=True)
        return batch

    def __getattr__(self, name: str) -> Any:
        """Return what the collator has: the Trainer asks for its tokenizer."""
        if name.startswith("__") or name == "collator":  # asked for by pickle before there is one
            raise AttributeError(name)
        return getattr(self.collator, name)


def _check_labels(features: list[dict[str, Any]], *, some: bool) -> None:
    """Refuse labels that are no numbers; with ``some`` only if other examples have one."""
    rows = [row for row in features if isinstance(row, Mapping)]
    for column in LABEL_COLUMNS:
        labels = [row.get(column) for row in rows if column in row]
        if some and all(label is None for label in labels):
            continue
        for label in labels:
            for value in _values(label):
                if value is None or isinstance(value, str | bytes):
                    raise CompressionError(
                        f"The label {label!r:.80} in the column {column!r} is no number: give each example its class "
                        "index, model.config.label2id[name] for a name, and leave out those without a label "
                        "(or drop the column to train with alpha=1)."
                    )


def _values(label: Any) -> Iterator[Any]:
    if isinstance(label, list | tuple):
        for one in label:
            yield from _values(one)
    else:
        yield label
