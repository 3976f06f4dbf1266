"""Goes round the open requests, a share at a time: the slow look at what no mark has named."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

T = TypeVar("T")

LEAST_AT_ONCE: Final = 16
LOOKS_A_ROUND: Final = 640  # at most, however many values there are


class Round(Generic[T]):
    """Every value of a table in turn. A value that is entered during a round comes with the next. One thread's own.

    A mark says which request has changed. It is a hint: its writer may have died before it, or it may have been taken
    before the request was entered here. So each look takes some requests that nobody has named, all of them within
    `LOOKS_A_ROUND` looks.
    """

    def __init__(self, table: Mapping[int, T]) -> None:
        self._table = table
        self._left: deque[T] = deque()
        self._at_once = LEAST_AT_ONCE

    def some(self) -> list[T]:
        """The next values. Values that were removed from the table since the round began may be among them."""
        if not self._left:
            self._left.extend(list(self._table.values()))  # one step, for another thread may enter one meanwhile
            self._at_once = max(LEAST_AT_ONCE, -(-len(self._left) // LOOKS_A_ROUND))
        return [self._left.popleft() for _ in range(min(self._at_once, len(self._left)))]
