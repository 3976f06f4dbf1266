"""Log lines about what others do wrong, bounded: so many a peer and so many in all within a minute, whatever they send."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final

from embridge.workers.timing import NS

WINDOW_NS: Final = 60 * NS
LINES_A_PEER: Final = 20
LINES_IN_ALL: Final = 200


class LogLimit:
    """Counts lines a peer within a window of a minute; all counts begin again with each window, so it holds few of them."""

    def __init__(self, lines_a_peer: int = LINES_A_PEER, lines_in_all: int = LINES_IN_ALL) -> None:
        self._most, self._most_in_all = lines_a_peer, lines_in_all
        self._began_ns: int | None = None
        self._lines: dict[Hashable, int] = {}
        self._in_all = 0
        self._held_back = 0

    def log(self, logger: logging.Logger, level: int, peer: Hashable, now_ns: int, text: str, *values: object) -> None:
        """Write a line about one peer, unless it has had its share; the first line of a new window says how many were held back."""
        if not logger.isEnabledFor(level):
            return
        if self._began_ns is None or now_ns - self._began_ns >= WINDOW_NS:
            if self._held_back:
                logger.log(level, "%d lines about refused messages were held back", self._held_back)
            self._began_ns, self._in_all, self._held_back = now_ns, 0, 0
            self._lines.clear()
        lines = self._lines.get(peer, 0)
        if lines >= self._most or self._in_all >= self._most_in_all:
            self._held_back += 1
            return
        self._lines[peer] = lines + 1
        self._in_all += 1
        last = "; no more lines about this peer within a minute" if lines + 1 == self._most else ""
        logger.log(level, text + last, *values)
