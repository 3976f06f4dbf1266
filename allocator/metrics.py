"""Counters in the control segment: 64 bits, only rising, added to by one process each, or by all clients together.

Reading them costs the writer nothing.
"""

from __future__ import annotations

from enum import IntEnum

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import METRIC_WORDS


class Metric(IntEnum):
    """A process's counters; each process has a row of its own, and the clients have one together."""

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
    RESENT = 10  # language: grants and aborts sent again: not answered, or missing by a heartbeat
    RINGS_FULL = 11  # kicks of this process that had to wait for room in a ring
    ERRORS = 12
    WRITES_FAILED = 13
    SESSIONS = 14
    CONNECTIONS_REFUSED = 15  # connections of strangers, whose key is not listed
    MESSAGES_FORGED = 16  # messages in the name of a node that has another key
    CORRUPT = 17  # requests whose rows were not those that were sent
    SNAPSHOTS = 18  # encode: all requests in flight with a peer told anew, for it had missed something
    PUBLISHED = 19  # encode: items that its clients have published
    PUBLISH_DROPPED = 20  # encode: publications that found no room
    ITEMS_EVICTED = 21  # encode: items that were taken away for others
    FETCHED_IN_PLACE = 22  # language: items that its clients have read where they lie
    NOT_PUBLISHED = 23  # language: fetches of what is not published, or not in that generation
    FETCHED_COPIES = 24  # language: items that its clients have fetched by a transfer
    CACHE_HITS = 25  # language: items that were in the cache of a client when a request first wanted them
    CACHE_MISSES = 26  # language: items that had to be fetched then
    CACHE_EVICTIONS = 27  # language: items that have left the cache for others
    FENCES = 28  # language: fences that were asked for, to end the quarantine of blocks
    NOTICES_SENT = 29  # encode: changes of what is published that were told to nodes that follow
    INVENTORIES_SENT = 30  # encode: all that is published told to one of them
    NOTICE_GAPS = 31  # language: that a node that is followed was asked for what was missed


class Metrics:
    """One process's row of counters, to write; or the rows of all processes, to read."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.names = lay.metric_names(layout.limits)
        self._words = Words(mapping, layout.metrics, len(self.names) * METRIC_WORDS)
        self._add = self._words.add
        self._clients = (len(self.names) - 1) * METRIC_WORDS

    def add(self, process: int, metric: Metric, count: int = 1) -> None:
        self._add(process * METRIC_WORDS + metric, count)

    def count_for_client(self, metric: Metric, count: int = 1) -> None:
        self._add(self._clients + metric, count)

    def get(self, process: int, metric: Metric) -> int:
        return self._words.load(process * METRIC_WORDS + metric)

    def row(self, process: int) -> dict[str, int]:
        return {m.name.lower(): self._words.load(process * METRIC_WORDS + m) for m in Metric}

    def total(self, metric: Metric) -> int:
        """What all have counted of one."""
        return self._words.sum(metric, len(self.names), METRIC_WORDS)

    def all(self) -> dict[str, dict[str, int]]:
        return {name: self.row(i) for i, name in enumerate(self.names)}
