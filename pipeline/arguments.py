"""Numbers as callers give them: Python's own, NumPy's, or one element of a tensor; else a ValueError that names it."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any, TypeGuard


def whole(name: str, value: Any, low: int, high: int, limits: str = "") -> int:
    """`value` as an int from `low` to `high` (said as `limits`), of any type that is an integer. Raises ValueError."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the latter two: a tensor of several elements, or without data
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name}: {value!r} is outside {limits or f'{low} to {high}'}")
    return number


def is_time(value: Any) -> TypeGuard[float]:
    """Whether this is a number of seconds, of Python's or NumPy's types."""
    return isinstance(value, Real)
