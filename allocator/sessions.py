"""Sessions: which engine of this node remote writers write through, and the fence between one and the next.

Each transfer worker of a language node that offers a network engine owns one, in a process that owns nothing else. A
*session* is one life of such an engine: a number that is higher than all before it, a port, and the address at which
the payload lies in that process. No later session of this incarnation has the same port or address, so a write that was
meant for one session finds nothing in another (R10). A fence is the death of that process: a new one begins the next
session, and whatever was still on its way to the old one has no place to land.

A block remembers in its exposure word under which session it was exposed. After a fence the blocks in quarantine of
lesser sessions of that worker are free.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.blocks import QUARANTINED
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import PORT_WORDS, SESSION_WORDS, SegmentHeader, Session

SHM_EXPOSURE: Final = 0
"""Exposed to writers of this host only: their death is their fence (R12)."""

_BASE: Final = 0x2000_0000_0000  # far from where the kernel places mappings by itself
_BASE_END: Final = 0x6000_0000_0000


class LiveSession(NamedTuple):
    """What a writer is told. `number` 0: through shared memory, there is nothing to tell."""

    number: int
    port: int
    base: int


NO_SESSION: Final = LiveSession(0, 0, 0)


def exposure_of(worker: int, number: int) -> int:
    """The exposure word of a block that was granted under this session."""
    return (worker + 1) << 32 | number


class SessionTable:
    """The sessions of one language node."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_workers = layout.limits.num_workers
        self._words = Words(mapping, layout.sessions, self.num_workers * SESSION_WORDS)
        self._ports = Words(mapping, layout.ports, PORT_WORDS)
        self._header = Words(mapping, layout.header, lay.PAGE_BYTES // 8)
        self._cells = np.frombuffer(mapping, np.uint64, layout.num_blocks, layout.cells)
        self._exposure = np.frombuffer(mapping, np.uint64, layout.num_blocks, layout.exposure)

    def next_number(self) -> int:
        """A session number that nobody had."""
        return self._header.add(SegmentHeader.LAST_SESSION, 1) + 1

    @staticmethod
    def base_of(number: int, payload_bytes: int) -> int:
        """Where the payload of one session lies in its process: another place for each number.

        The addresses begin again after as many sessions as fit between 32 and 96 TiB (65 536 of 1 GiB).
        """
        stride = -(-payload_bytes // lay.HUGE_PAGE_BYTES) * lay.HUGE_PAGE_BYTES
        return _BASE + number % ((_BASE_END - _BASE) // stride) * stride

    def take_port(self, port: int) -> bool:
        """Note that a session uses this port. False if an earlier one has."""
        bit = 1 << port % 64
        return not self._ports.set_bits(port // 64, bit) & bit

    def begin(self, worker: int, session: LiveSession) -> None:
        """Tell of a worker's new session; only its process calls this, and the one of the session before it is dead.

        The old number goes first and the new one comes last, so nobody ever sees the one with the port or the address
        of the other.
        """
        at = worker * SESSION_WORDS
        self._words.store(at + Session.NUMBER, 0)
        self._words.store(at + Session.PORT, session.port)
        self._words.store(at + Session.BASE, session.base)
        self._words.store(at + Session.NUMBER, session.number)

    def number(self, worker: int) -> int:
        """The session in which remote writers may write now; 0: none has begun."""
        return self._words.load(worker * SESSION_WORDS + Session.NUMBER)

    def live(self, worker: int) -> LiveSession:
        """A worker's session, its three words belonging together."""
        at = worker * SESSION_WORDS
        while True:
            number = self._words.load(at + Session.NUMBER)
            session = LiveSession(number, self._words.load(at + Session.PORT), self._words.load(at + Session.BASE))
            if self._words.load(at + Session.NUMBER) == number:
                return session

    def quarantined(self) -> dict[int, list[tuple[int, int]]]:
        """List, as a look, the blocks in quarantine by exposure word, with their cells, which differ each time."""
        cells = self._cells.copy()
        blocks = np.flatnonzero(cells & 3 == QUARANTINED)
        found: dict[int, list[tuple[int, int]]] = {}
        for block, cell, word in zip(
            blocks.tolist(), cells[blocks].tolist(), self._exposure[blocks].tolist(), strict=True
        ):
            found.setdefault(word, []).append((block, cell))
        return found
