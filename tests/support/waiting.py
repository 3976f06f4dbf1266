"""Waiting for a condition, with a deadline. Tests never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.002  # at first
MOST_POLL_S = 0.02
POLLS = 20  # a pause is this part of what has been waited, so that nobody waits 5 % too long


def reaches(read: Callable[[], int], least: int) -> Callable[[], bool]:
    """The condition that `read` returns this much, or more."""
    return lambda: read() >= least


def grows(read: Callable[[], int]) -> Callable[[], bool]:
    """The condition that what `read` returns is more than it returns now."""
    before = read()
    return lambda: read() > before


def changes(read: Callable[[], object]) -> Callable[[], bool]:
    """The condition that `read` returns something else than now."""
    before = read()
    return lambda: read() != before


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, what: str | Callable[[], object] = "") -> T:
    """Poll until the condition is true, and return what it returned.

    Raises:
        AssertionError: it was not true in time; the text says `what` was waited for, or what it returns now.
    """
    begun = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begun
        if waited_s > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what() if callable(what) else what or condition}")
        time.sleep(pause_s(waited_s))
    return value


def pause_s(waited_s: float) -> float:
    """How long until the next look of whoever has waited so long: others need the machine for what is waited for."""
    return min(max(waited_s / POLLS, POLL_S), MOST_POLL_S)
