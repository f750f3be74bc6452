"""Progress over all, with the time left, and a line a rung: reported to the listener, or else shown as a bar."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

from hfcompress.progress import listener

_PERCENT = 100
_FORM = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def is_watched() -> bool:
    """Whether standard error is a terminal or a notebook, whose kernel gives it no terminal."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Progress:
    """Shows how much of the work is done.

    Args:
        shown: Whether the bar is shown.
        speaks: Whether lines are written.
        total: The work, in any unit.
    """

    def __init__(self, shown: bool, speaks: bool, total: float) -> None:
        self._speaks, self._done, self._total = speaks, 0.0, total
        self._listener = listener()
        shown = shown and self._listener is None
        self._bar = tqdm(total=total, desc="compress", disable=not shown, bar_format=_FORM, file=sys.stderr)
        if self._listener is not None:
            self._listener.begin("compress", _PERCENT)

    def at(self, what: str, done: float) -> None:
        """Say what is being done, and how much is done by now; it never goes back."""
        self._bar.set_description(what, refresh=False)
        if done > self._done:
            self._bar.update(done - self._done)
            self._done = done
        if self._listener is not None:
            self._listener.rename(what)
            self._listener.set_done(int(_PERCENT * self._done / self._total))

    def say(self, line: str) -> None:
        """Write a line to standard error, above the bar."""
        if self._speaks:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
        if self._listener is not None:
            self._listener.end()
