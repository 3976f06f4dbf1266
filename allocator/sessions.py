"""Sessions: through which engine of this node remote writers write, and the fence between one session and the next.

Each transfer worker of a language node that offers a network engine owns one engine, in a process that owns nothing
else. A *session* is one life of that engine: a number that is higher than all before it, a port, and the address at
which the payload lies in that process. No later session of this incarnation has the same port or address, so a write
that was meant for one session finds nothing in another (R10). A fence is the death of that process. A new process
begins the next session, and whatever was still on its way to the old one has no place to land.

The exposure word of a block remembers under which session the block was exposed. After a fence the blocks that are
quarantined under lesser sessions of that worker are free.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.blocks import QUARANTINED
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import PORT_WORDS, SESSION_WORDS, SegmentHeader, Session

SHM_EXPOSURE: Final = 0
"""The exposure word of blocks that only writers of this host may write; their death is their fence (R12)."""

SESSION_MASK: Final = (1 << 32) - 1
"""Of an exposure word: the session."""

_LOW_BYTE: Final = 0 if sys.byteorder == "little" else 7  # of a cell: its state is in there
_IS_QUARANTINED: Final = bytes(byte & 3 == QUARANTINED for byte in range(256))

_BASE: Final = 0x2000_0000_0000  # far from where the kernel places mappings by itself
_BASE_END: Final = 0x6000_0000_0000


class LiveSession(NamedTuple):
    """What a writer is told of a session. `number` 0 means shared memory, where there is nothing to tell."""

    number: int
    port: int
    base: int


NO_SESSION: Final = LiveSession(0, 0, 0)


def exposure_of(worker: int, number: int) -> int:
    """The exposure word of a block that was granted under this session."""
    return (worker + 1) << 32 | number


def of_exposure(word: int) -> tuple[int, int]:
    """(worker, session) of such a word; (-1, 0) of `SHM_EXPOSURE`."""
    return (word >> 32) - 1, word & SESSION_MASK


class SessionTable:
    """The sessions of one language node."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_workers = layout.limits.num_workers
        self._words = Words(mapping, layout.sessions, self.num_workers * SESSION_WORDS)
        self._ports = Words(mapping, layout.ports, PORT_WORDS)
        self._header = Words(mapping, layout.header, lay.PAGE_BYTES // 8)
        memory, size = memoryview(mapping), 8 * layout.num_blocks
        self._cells = memory[layout.cells : layout.cells + size]
        self._exposure = memory[layout.exposure : layout.exposure + size].cast("Q")

    def next_number(self) -> int:
        """A session number that no session has had."""
        return self._header.add(SegmentHeader.LAST_SESSION, 1) + 1

    @staticmethod
    def base_of(number: int, payload_bytes: int) -> int:
        """The address of the payload in the process of one session: another place for each number.

        The addresses begin again after as many sessions as fit between 32 and 96 TiB (65 536 of 1 GiB).
        """
        stride = -(-payload_bytes // lay.HUGE_PAGE_BYTES) * lay.HUGE_PAGE_BYTES
        return _BASE + number % ((_BASE_END - _BASE) // stride) * stride

    def take_port(self, port: int) -> bool:
        """Note that a session uses this port. False if an earlier session has used it."""
        bit = 1 << port % 64
        return not self._ports.set_bits(port // 64, bit) & bit

    def begin(self, worker: int, session: LiveSession) -> None:
        """Publish a worker's new session (only its own process calls this; the process of the session before is dead).

        The old number is cleared first and the new one is stored last. So nobody ever sees one session's number with
        the port or the address of the other.
        """
        at = worker * SESSION_WORDS
        self._words.store(at + Session.NUMBER, 0)
        self._words.store(at + Session.PORT, session.port)
        self._words.store(at + Session.BASE, session.base)
        self._words.store(at + Session.NUMBER, session.number)

    def number(self, worker: int) -> int:
        """The number of the session in which remote writers may write now; 0 if none has begun."""
        return self._words.load(worker * SESSION_WORDS + Session.NUMBER)

    def live(self, worker: int) -> LiveSession:
        """A worker's session, with three words that belong together."""
        at = worker * SESSION_WORDS
        while True:
            number = self._words.load(at + Session.NUMBER)
            session = LiveSession(number, self._words.load(at + Session.PORT), self._words.load(at + Session.BASE))
            if self._words.load(at + Session.NUMBER) == number:
                return session

    def quarantined(self) -> dict[int, list[tuple[int, int]]]:
        """The quarantined blocks by exposure word, with their cells, which differ each time. A look only."""
        raw = bytes(self._cells)
        cells, marks = memoryview(raw).cast("Q"), raw[_LOW_BYTE::8].translate(_IS_QUARANTINED)
        found: dict[int, list[tuple[int, int]]] = {}
        block = marks.find(1)
        while block >= 0:
            found.setdefault(self._exposure[block], []).append((block, cells[block]))
            block = marks.find(1, block + 1)
        return found
