"""Encode nodes with which a language node cannot work, and why: told at once to whoever wants to know them (P24).

A request of such a node fails with the reason. A client that has none, and only wants the node to be registered with,
looks here.
"""

from __future__ import annotations

from embridge.allocator._core import Mapping
from embridge.allocator.guarded_records import GuardedRecords, put_text, text_of
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    ADDRESS_BYTES,
    NUM_REFUSED,
    REFUSED_ADDRESS,
    REFUSED_REASON,
    REFUSED_REASON_BYTES,
    REFUSED_WORDS,
    RefusedNode,
)


class RefusedNodes:
    """The latest of them. Any process reads; the bootstrap alone writes."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._records = GuardedRecords(mapping, layout.refused, NUM_REFUSED, REFUSED_WORDS)

    def put(self, address: str, reason: str, now_ns: int) -> None:
        """Say why a node cannot be worked with (bootstrap only), in the place of what was said longest ago."""
        found = [self._records.read(index) for index in range(NUM_REFUSED)]  # None: one before this one died
        oldest = min(range(NUM_REFUSED), key=lambda at: ((it := found[at]) and it[RefusedNode.REFUSED_NS]) or 0)
        words = [0] * REFUSED_WORDS
        words[RefusedNode.REFUSED_NS] = now_ns
        put_text(words, REFUSED_ADDRESS, ADDRESS_BYTES, address)
        put_text(words, REFUSED_REASON, REFUSED_REASON_BYTES, reason)
        self._records.write(oldest, words)

    def why(self, address: str, since_ns: int) -> str:
        """Why the node at a numeric address cannot be worked with, if that was found since then; empty: it was not."""
        for index in range(NUM_REFUSED):
            words = self._records.read(index) if self._records.generation(index) else None
            if words is None or words[RefusedNode.REFUSED_NS] < since_ns:
                continue
            if text_of(words, REFUSED_ADDRESS, ADDRESS_BYTES) == address:
                return text_of(words, REFUSED_REASON, REFUSED_REASON_BYTES)
        return ""
