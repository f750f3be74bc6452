"""When a ladder is to be done."""

from __future__ import annotations

import time

from hfcompress.search.processes import agree, processes


class TimeUpError(Exception):
    """The time is over; what is done by then is returned."""


class Deadline:
    """The end of the time that a call has.

    Args:
        minutes: From now on; None for as long as it takes.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._reserved = 0.0

    def reserve(self, seconds: float) -> None:
        """Be over so much earlier: that long takes what must be done after a training, as it took the last time."""
        self._reserved = seconds

    @property
    def is_over(self) -> bool:
        """Whether the time is over; all processes must ask, and have the answer of the first."""
        return self._end is not None and bool(agree(time.monotonic() > self._end - self._reserved))

    def check(self) -> None:
        """End the call if the time is over; all processes must come here.

        Raises:
            TimeUpError: It is.
        """
        if self.is_over:
            raise TimeUpError

    def check_alone(self) -> None:
        """End the call if the time is over and there is one process: several could not stop at the same place."""
        if processes().num_processes == 1:
            self.check()
