"""Converts the value that a user's function returned to a number."""

import math
import re
from typing import Any

# The types of numbers, by the names of NumPy, PyTorch and others; texts, dates and complex numbers have other names.
NUMERIC = re.compile("float|int|bool")


class ValueRefusedError(ValueError):
    """A function returned something that it may not return."""


def as_number(value: Any) -> float:
    """Converts a number of any type: Python's, NumPy's, a tensor or an array without dimensions, a boolean.

    Raises:
        ValueRefusedError: the value is no number, or not a finite one.
    """
    kind, element = type(value), getattr(value, "dtype", None)
    # NumPy converts text, and of a complex number the real part.
    numeric = hasattr(kind, "__float__") and (element is None or NUMERIC.search(str(element)))
    if not numeric or tuple(getattr(value, "shape", ())) != ():
        what = kind.__name__ if element is None else f"{kind.__name__} of {element}"
        raise ValueRefusedError(f"gave {quoted(value)}: it must be a number, not of type {what}")
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
