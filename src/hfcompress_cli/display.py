"""Progress on standard error: a line that is drawn again on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

_PATIENCE = 2.0  # seconds before the first drawing on a terminal
_REDRAWN = 0.5  # seconds from one drawing to the next
_EVERY = 30.0  # seconds from one line to the next where there is no terminal
_WRAP: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


@dataclass
class _Stage:
    what: str
    total: int | None
    done: int = 0
    begun: float = field(default_factory=time.monotonic)


class Display:
    """Listens to the library (see `hfcompress.progress`), and says from a thread of its own what is being done.

    So a long step that reports nothing is seen too. What else is written to standard error is passed through `write`,
    which removes the line before, and breaks long lines between words.
    """

    def __init__(self, what: str, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._stages, self._drawn = [_Stage(what, None)], False
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Display:
        """Begin to show."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was drawn."""
        self._closed.set()
        with self._lock:
            self._clear()

    def begin(self, what: str, total: int | None) -> None:
        """Show a stage."""
        with self._lock:
            self._stages.append(_Stage(what, total))

    def advance(self) -> None:
        """Count a step of the innermost stage."""
        self._stages[-1].done += 1

    def set_done(self, done: int) -> None:
        """Set how many steps of the innermost stage are done."""
        self._stages[-1].done = done

    def rename(self, what: str) -> None:
        """Say what the innermost stage does now."""
        self._stages[-1].what = what

    def end(self) -> None:
        """Show the stage around the innermost one again."""
        with self._lock:
            self._stages.pop()

    def write(self, text: str) -> int:
        """Write to standard error, in place of what was drawn."""
        columns = self._columns()
        lines = [textwrap.fill(line, columns, **_WRAP) if len(line) > columns else line for line in text.split("\n")]
        with self._lock:
            self._clear()
            self._stream.write("\n".join(lines))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def _run(self) -> None:
        wait = _PATIENCE if self._terminal else _EVERY
        while not self._closed.wait(wait):
            wait = _REDRAWN if self._terminal else _EVERY
            columns = self._columns() - 1 if self._terminal else 80
            line = describe(self._stages[-1], time.monotonic(), columns)  # imports, which must not wait for the lock
            with self._lock:
                if not self._closed.is_set():
                    self._show(line)

    def _columns(self) -> int:
        """Return how wide this terminal is: standard output may be a file, or another one."""
        columns = shutil.get_terminal_size().columns  # COLUMNS, or of standard output, or 80
        if not os.environ.get("COLUMNS"):
            with suppress(OSError, ValueError):  # a stream without a terminal
                columns = os.get_terminal_size(self._stream.fileno()).columns or columns
        return columns

    def _show(self, line: str) -> None:
        try:
            self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
            self._drawn = self._terminal
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self._closed.set()

    def _clear(self) -> None:
        if self._drawn:
            self._drawn = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def describe(shown: _Stage, now: float, columns: int) -> str:
    """Return a line about a stage: what is done, how much of it, for how long, and how long it will take."""
    from tqdm import tqdm

    elapsed = now - shown.begun
    if shown.total is None:
        return f"{shown.what[: columns - 12]} [{tqdm.format_interval(elapsed)}]"
    line: str = tqdm.format_meter(shown.done, shown.total, elapsed, ncols=columns, prefix=shown.what, ascii=True)
    return line[:columns]


@contextmanager
def showing(what: str) -> Iterator[Display]:
    """Show the progress of a verb on standard error while the context lasts."""
    with Display(what, sys.stderr) as display:
        if not display.isatty():
            yield display
            return
        with redirect_stderr(display):  # which has what a stream has
            yield display
