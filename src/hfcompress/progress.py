"""What long work reports to whoever listens: its stages, and how much of each is done.

Nobody listens unless `listening` is entered, as the command does: in Python, the library's work is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Listener(Protocol):
    """Receives reports of stages; they may lie within each other."""

    def begin(self, what: str, total: int | None) -> None:
        """A stage begins, of so many steps if that is known."""

    def advance(self) -> None:
        """A step of the innermost stage is done."""

    def set_done(self, done: int) -> None:
        """So many steps of the innermost stage are done."""

    def rename(self, what: str) -> None:
        """The innermost stage, which goes on, does something else now."""

    def end(self) -> None:
        """The innermost stage ends."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listens: Listener) -> Iterator[None]:
    """Report all stages to a listener while the context lasts."""
    before = _listener.set(listens)
    try:
        yield
    finally:
        _listener.reset(before)


def listener() -> Listener | None:
    """Return who listens; None if nobody does."""
    return _listener.get()


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Report what is done while the context lasts, such as "loading bert/"."""
    active = _listener.get()
    if active is None:
        yield
        return
    active.begin(what, None)
    try:
        yield
    finally:
        active.end()


def track(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """Yield the items of a loop, and report how many of them are done.

    Args:
        items: What the loop is over.
        what: What it does, such as "ranking heads and neurons".
        total: How many items there are; if None, as many as ``items`` says.

    Example:
        >>> [number**2 for number in track(range(3), "squaring")]
        [0, 1, 4]
    """
    active = _listener.get()
    if active is None:
        yield from items
        return
    active.begin(what, len(items) if total is None and isinstance(items, Sized) else total)
    try:
        for item in items:
            yield item
            active.advance()
    finally:
        active.end()
