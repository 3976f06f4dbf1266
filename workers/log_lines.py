"""What a line of a process's log looks like, as text for people or as JSON for programs; each says who speaks.

    2026-11-30 15:04:05,678 WARNING embridge[encode 1f0c poller] room 7 failed, TIMEOUT: ...
    {"time":"2026-11-30T15:04:05.678Z","level":"WARNING","role":"encode","node":"1f0c","process":"poller", ...}
"""

from __future__ import annotations

import logging
import time
from typing import Final

import msgspec

from embridge.allocator.texts import one_line

FORMATS: Final = ("text", "json")


class Lines(logging.Formatter):
    """Lines of text. `node` may be set when it is known."""

    def __init__(self, process: str, role: str = "", node: str = "") -> None:
        super().__init__()
        self.process = process
        self.role = role
        self.node = node

    def format(self, record: logging.LogRecord) -> str:
        who = " ".join(filter(None, (self.role, self.node, self.process)))
        return f"{self.formatTime(record)} {record.levelname} embridge[{who}] {super().format(record)}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """What is logged, on one line whoever has written parts of it; a traceback stands behind it."""
        return one_line(super().formatMessage(record))

    def note(self, text: str) -> str:
        """A line of what is no record: what a library or a crash has printed, or what this module says itself."""
        return text


class JsonLines(Lines):
    """An object a line. Text that is no record becomes one, with the level ERROR."""

    def format(self, record: logging.LogRecord) -> str:
        written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{written}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "role": self.role,
            "node": self.node,
            "process": self.process,
            "pid": record.process,
            "logger": record.name,
            "message": _whole(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = _whole(self.formatException(record.exc_info))
        return msgspec.json.encode(fields).decode()

    def note(self, text: str) -> str:
        record = logging.LogRecord("embridge", logging.ERROR, "", 0, text, (), None)
        return self.format(record)


def _whole(text: str) -> str:
    """The text as UTF-8 has it: a path may hold other bytes."""
    return text.encode(errors="backslashreplace").decode()


def lines(kind: str, process: str, role: str = "", node: str = "") -> Lines:
    """The lines of a process in one of `FORMATS`."""
    return (JsonLines if kind == "json" else Lines)(process, role, node)
