"""A data collator around another one, which answers for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class WrappingCollator:
    """A data collator that calls another one, and has its attributes: the Trainer asks for its tokenizer.

    Attributes:
        collator: What makes the batches.
    """

    collator: Callable[[list[Any]], Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "collator":  # asked for by pickle before there is one
            raise AttributeError(name)
        return getattr(self.collator, name)
