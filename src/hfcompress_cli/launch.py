"""Several processes, as ``accelerate launch`` and ``torchrun`` start them: the first prints and writes for all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

_PATIENCE = 10  # seconds


def is_launched() -> bool:
    """Whether this is one of several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return not is_launched() or os.environ["RANK"] == "0"


def run(command: Callable[[], int]) -> int:
    """Run the command of this process; return its exit status. Only the first process says why it failed.

    A launcher ends the others as soon as one fails. So the others, which most often fail for the same reason, leave the
    first one the time to say that.
    """
    if is_main():
        return command()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            status = command()
        except SystemExit as stopped:
            status = 0 if stopped.code in (None, 0) else 2
    if status:
        time.sleep(_PATIENCE)
        print(f"hfcompress: process {os.environ['RANK']} failed, and the first one did not.", file=sys.stderr)
    return status


def share(text: str) -> str:
    """Return the text that the first process has, in all of them. Their group must have been set up."""
    from accelerate.utils import broadcast_object_list

    return str(broadcast_object_list([text])[0])
