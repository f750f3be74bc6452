"""Signals that ask the command to stop: it removes what it has begun to write, and ends with the status of a shell."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of those that the system has; Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_CLEANING = 10.0  # seconds after a signal in which others are ignored, so that nothing is left behind


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a command that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` at the signals that ask a process to stop, in this process alone: not in those it forks.

    A signal that is ignored when the command starts, as nohup has it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # which cannot set them
        yield
        return
    process, first = os.getpid(), None

    def stop(number: int, frame: Any) -> None:
        nonlocal first
        if os.getpid() != process:  # such as a worker that loads data
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if first is None or time.monotonic() - first > _CLEANING:
            first = time.monotonic()
            raise Stopped(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])
