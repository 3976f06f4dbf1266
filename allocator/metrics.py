"""Counters in the control segment: 64 bits, upwards only, one writer each; reading them costs the writer nothing."""

from __future__ import annotations

from enum import IntEnum

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import METRIC_WORDS


class Metric(IntEnum):
    """A process's counters; each process has a row of its own."""

    MESSAGES_IN = 0
    MESSAGES_OUT = 1
    MESSAGES_REFUSED = 2
    MESSAGES_STALE = 3
    RECORDS = 4
    WRITES = 5
    BYTES_WRITTEN = 6
    TOKENS_WRITTEN = 7
    SUCCEEDED = 8
    FAILED = 9
    RESENT = 10  # language: grants and aborts that were not answered, or that a heartbeat showed missing
    RINGS_FULL = 11  # kicks of this process that waited for room in a ring
    ERRORS = 12
    WRITES_FAILED = 13
    SESSIONS = 14
    CONNECTIONS_REFUSED = 15  # of strangers: their key is not listed
    MESSAGES_FORGED = 16  # in the name of a node whose key is another
    CORRUPT = 17  # requests whose rows were not those that were sent


class Metrics:
    """One process's row of counters, to write; or all rows, to read."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.names = lay.process_names(layout.limits)
        self._words = Words(mapping, layout.metrics, len(self.names) * METRIC_WORDS)

    def add(self, process: int, metric: Metric, count: int = 1) -> None:
        self._words.add(process * METRIC_WORDS + metric, count)

    def row(self, process: int) -> dict[str, int]:
        return {m.name.lower(): self._words.load(process * METRIC_WORDS + m) for m in Metric}

    def all(self) -> dict[str, dict[str, int]]:
        return {name: self.row(i) for i, name in enumerate(self.names)}
