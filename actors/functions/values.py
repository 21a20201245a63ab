"""Converts what a user's function returned to a number."""

import math
from typing import Any


class ValueRefusedError(ValueError):
    """A function returned something that it may not return."""


def as_number(value: Any) -> float:
    """Converts a number of any type: Python's, NumPy's, a tensor or an array without dimensions, a boolean.

    Raises:
        ValueRefusedError: the value is no number, or not a finite one.
    """
    shape = getattr(value, "shape", ())
    if not hasattr(type(value), "__float__") or tuple(shape) != ():
        raise ValueRefusedError(f"gave {quoted(value)}: it must be a number, not of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueRefusedError(f"gave {quoted(value)}: it must be a finite number")
    return number


def quoted(value: Any) -> str:
    """Returns a value as code on one line, of a long one the beginning."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}…"
