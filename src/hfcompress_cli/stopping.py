"""Signals that ask the command to stop: it removes what it has begun to write, and ends with the status of a shell."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of those that the system has; Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_CLEANING = 10.0  # seconds after a signal in which others are ignored, so that nothing is left behind
_AGAIN = 0.05  # seconds after which a process is asked again that could not stop where the signal came


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""


class Signals:
    """What asked this process to stop.

    Attributes:
        received: The number of the first signal, if there was one.
    """

    received: int | None = None

    @property
    def status(self) -> int:
        """The exit status of a command that was stopped: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (signal.SIGINT if self.received is None else self.received)


@contextmanager
def stopped_by_signals() -> Iterator[Signals]:
    """Raise `Stopped` at the signals that ask a process to stop, in this process alone: not in those it forks.

    A signal that is ignored when the command starts, as nohup has it, stays ignored.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # which cannot set them
        yield signals
        return
    process, last = os.getpid(), None

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        if os.getpid() != process:  # such as a worker that loads data
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signals.received = signals.received or number
        if last is None or time.monotonic() - last > _CLEANING:
            last = time.monotonic()
            raise Stopped(number)

    def stop_again(unraisable: Any) -> None:
        """Stop a moment later where Python cannot raise what it was asked to, as in a ``__del__``."""
        nonlocal last
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)
            return
        last = None
        timer = threading.Timer(_AGAIN, _ask, [signals.received])
        timer.daemon = True
        timer.start()

    hook = sys.unraisablehook
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in changed:
        signal.signal(number, stop)
    sys.unraisablehook = stop_again
    try:
        yield signals
    finally:
        sys.unraisablehook = hook
        for number in changed:
            signal.signal(number, before[number])


def _ask(number: int) -> None:
    """Send this process a signal, which wakes its main thread where that waits."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        os.kill(os.getpid(), number)


def end_without_traceback() -> None:
    """Let Ctrl-C end this process at once from here on: its work is done, and Python's own end takes a moment."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
