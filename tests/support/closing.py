"""What a test makes anywhere and closes nowhere: it is closed at the test's end, after all of its fixtures."""

from __future__ import annotations

from collections.abc import Callable

_made: list[Callable[[], None]] = []


def at_end(close: Callable[[], None]) -> None:
    _made.append(close)


def close_all() -> None:
    """By `conftest.py`, after each test: the last that was made comes first."""
    while _made:
        _made.pop()()
