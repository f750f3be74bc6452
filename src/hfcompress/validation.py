"""Checks of single arguments, with one wording each; all raise a `CompressionError`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard

from hfcompress.errors import CompressionError


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number, NumPy's included; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is a whole number, NumPy's included; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_fraction(name: str, value: object, meaning: str, *, zero: bool = True, one: bool = False) -> None:
    """Refuse anything but a number between 0 and 1.

    Args:
        name: The argument.
        value: What was passed.
        meaning: What the argument means, for the message.
        zero: Whether 0 is allowed.
        one: Whether 1 is allowed.

    Example:
        >>> check_fraction("heads", 1.5, "the fraction of the heads to remove")
        Traceback (most recent call last):
        hfcompress.errors.CompressionError: heads=1.5 must be in [0, 1): the fraction of the heads to remove.
    """
    inside = is_number(value) and (0 < value < 1 or (zero and value == 0) or (one and value == 1))
    if not inside:
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise CompressionError(f"{name}={value!r} must be in {interval}: {meaning}.")


def check_number(name: str, value: object, *, zero: bool = True) -> None:
    """Refuse anything but a finite number of at least 0, or above 0 where ``zero`` is False."""
    if not is_number(value) or not (0 <= value < math.inf) or (value == 0 and not zero):
        raise CompressionError(f"{name}={value!r} must be a finite number, {'0 or more' if zero else 'above 0'}.")


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if not is_integer(value) or value < least:
        raise CompressionError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not among the choices.

    Args:
        name: The argument.
        value: What was passed.
        choices: All that is allowed.

    Example:
        >>> check_choice("scope", "model", ("global", "layer"))
        Traceback (most recent call last):
        hfcompress.errors.CompressionError: scope='model' is unknown; choose one of global, layer.
    """
    choices = list(choices)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise CompressionError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, choices))}.")


def check_folder_name(directory: object, verb: str) -> None:
    """Refuse what is no path, and an empty one, which Python takes for the working directory.

    Args:
        directory: What was passed.
        verb: What is done with the folder, for the message: read, write.

    Example:
        >>> check_folder_name("", "read")
        Traceback (most recent call last):
        hfcompress.errors.CompressionError: The name of the folder to read is empty; name a folder, '.' for the \
working directory.
    """
    if not isinstance(directory, str | os.PathLike):
        raise CompressionError(f"{directory!r:.100} is not the path of a folder to {verb}; pass a str or a Path.")
    if not os.fspath(directory):
        raise CompressionError(
            f"The name of the folder to {verb} is empty; name a folder, '.' for the working directory."
        )
