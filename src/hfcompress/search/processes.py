"""Several processes, as ``accelerate launch`` starts them: what one decides holds for all."""

from __future__ import annotations

from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hfcompress.compat import current_accelerator

Value = TypeVar("Value")
PATIENCE = 7 * 24 * 3600  # seconds that the others wait while the first process searches, exports and measures


def processes() -> PartialState:
    """Return the state of the processes."""
    return PartialState(cpu=current_accelerator() is None)


def agree(value: Value) -> Value:
    """Return the value that the first process has, in all of them."""
    if processes().num_processes == 1:
        return value
    held = [value]
    broadcast_object_list(held)
    return held[0]
