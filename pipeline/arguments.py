"""Numbers as callers give them: Python's own, NumPy's, or one element of a tensor; else a ValueError that names it."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any, Final, TypeGuard

MAX_SAID: Final = 200


def whole(name: str, value: Any, low: int, high: int, limits: str = "") -> int:
    """`value` as an int from `low` to `high` (said as `limits`), of any type that is an integer. Raises ValueError."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the latter two: a tensor of several elements, or without data
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name}: {said(value)} is outside {limits or f'{low} to {high}'}")
    return number


def said(value: Any) -> str:
    """`value` as an error names it, shortened; its type alone where it has no text, as an int of 5000 digits
    has none.
    """
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}..."


def is_time(value: Any) -> TypeGuard[float]:
    """Whether this is a number of seconds, of Python's or NumPy's types, that a float can hold."""
    if not isinstance(value, Real):
        return False
    try:
        float(value)
    except (OverflowError, ValueError):
        return False
    return True
