"""Log lines about what others do wrong, bounded within each minute by peer and by cause, whatever the peers send."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final

from embridge.workers.timing import NS

WINDOW_NS: Final = 60 * NS
LINES_A_PEER: Final = 20
LINES_IN_ALL: Final = 200
LINES_A_CAUSE: Final = 100
MAX_CAUSES: Final = 256
MOST_LINES: Final = "most_lines"
"""The name under which a record may have a limit of its own (`extra`)."""


class LogLimit:
    """Counts the log lines about each peer within a window of a minute.

    All counts begin again with each window, so few of them are held.
    """

    def __init__(self, lines_a_peer: int = LINES_A_PEER, lines_in_all: int = LINES_IN_ALL) -> None:
        self._most, self._most_in_all = lines_a_peer, lines_in_all
        self._began_ns: int | None = None
        self._lines: dict[Hashable, int] = {}
        self._in_all = 0
        self._held_back = 0

    def log(
        self,
        logger: logging.Logger,
        level: int,
        peer: Hashable,
        now_ns: int,
        text: str,
        *values: object,
        exc_info: bool = False,
    ) -> None:
        """Write a line about one peer, unless the peer has had its share of this window.

        The first line of a new window says how many were held back.
        """
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
        logger.log(level, text + last, *values, exc_info=exc_info)


class CauseLimit:
    """Counts the log records of each cause within a window of a minute.

    A cause is a logger, a text before its values are put in, and the type of an error. All lines of a process pass
    through this count, so every line that somebody else can cause has a limit.
    """

    def __init__(self, lines_a_cause: int = LINES_A_CAUSE) -> None:
        self._most = lines_a_cause
        self._began_ns: int | None = None
        self._lines: dict[tuple[str, str, str], int] = {}
        self._held_back: dict[tuple[str, str, str], int] = {}

    def take(self, record: logging.LogRecord, now_ns: int) -> tuple[bool, bool, str]:
        """Count one record. Returns (passes, is last, held back).

        The record passes; it is the last one of its cause that passes within this window; lines about what was held
        back in the window before.
        """
        told = ""
        if self._began_ns is None or now_ns - self._began_ns >= WINDOW_NS:
            told = "".join(
                f"{count} lines like {cause[1]!r} were held back\n" for cause, count in self._held_back.items()
            )
            self._began_ns = now_ns
            self._lines.clear()
            self._held_back.clear()
        cause = _cause(record)
        if cause not in self._lines and len(self._lines) >= MAX_CAUSES:
            cause = ("", "any other text", "")
        most = getattr(record, MOST_LINES, self._most)
        lines = self._lines[cause] = self._lines.get(cause, 0) + 1
        if lines > most:
            self._held_back[cause] = self._held_back.get(cause, 0) + 1
        return lines <= most, lines == most, told


def _cause(record: logging.LogRecord) -> tuple[str, str, str]:
    text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] is not None else ""
    return record.name, text[:200], error
