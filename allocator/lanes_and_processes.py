"""The node's processes, the clients' lanes and the pages of slots that they lease, the payload's foreign writers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Words
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    LANE_WORDS,
    MAX_WRITERS,
    PROCESS_WORDS,
    WRITER_WORDS,
    Lane,
    LaneState,
    Process,
    Writer,
)


class ProcessTable:
    """One entry a process of the node. A process that is READY writes its own beat; the launcher writes the rest."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.names = lay.process_names(layout.limits)
        self._words = Words(mapping, layout.processes, len(self.names) * PROCESS_WORDS)

    def get(self, name: str, field: Process) -> int:
        return self._words.load(self.names.index(name) * PROCESS_WORDS + field)

    def set(self, name: str, field: Process, value: int) -> None:
        self._words.store(self.names.index(name) * PROCESS_WORDS + field, value)

    def beat(self, index: int, now_ns: int) -> None:
        """Beat for the process at `index` in `names`, which is the caller."""
        self._words.store(index * PROCESS_WORDS + Process.BEAT_NS, now_ns)

    def beat_for(self, name: str, now_ns: int) -> None:
        """Beat for a process that is being started (launcher only); a later beat of its own stands."""
        self._words.raise_to(self.names.index(name) * PROCESS_WORDS + Process.BEAT_NS, now_ns)


class LaneTable:
    """The clients' lanes, and the pages of 64 slots that each has leased."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_lanes = layout.limits.max_clients
        self.num_pages = layout.limits.num_slots // SLOTS_PER_PAGE
        self._words = Words(mapping, layout.lanes, self.num_lanes * LANE_WORDS)
        self._pages = Words(mapping, layout.pages, self.num_pages)

    def get(self, lane: int, field: Lane) -> int:
        return self._words.load(lane * LANE_WORDS + field)

    def take(self, pid: int, now_ns: int) -> int | None:
        """Give a client a lane (launcher only). Returns it, or None when all are taken."""
        for lane in range(self.num_lanes):
            at = lane * LANE_WORDS
            if self._words.load(at + Lane.STATE) == LaneState.FREE:
                self._words.store(at + Lane.PID, pid)
                self._words.store(at + Lane.ATTACHED_NS, now_ns)
                self._words.store(at + Lane.BEAT_NS, 0)
                for field in (Lane.PINNED, Lane.LEFT, Lane.UNSENT_BYTES, Lane.NUM_EARLY, Lane.NUM_WAITING):
                    self._words.store(at + field, 0)
                self._words.store(at + Lane.STATE, LaneState.ATTACHED)
                return lane
        return None

    def beat(self, lane: int, now_ns: int) -> None:
        """Beat for the lane's client (its library thread only)."""
        self._words.store(lane * LANE_WORDS + Lane.BEAT_NS, now_ns)

    def pin(self, lane: int) -> None:
        """Say that a device may copy for that lane's client from now on (the client, before it lets one)."""
        self._words.store(lane * LANE_WORDS + Lane.PINNED, 1)

    def leave(self, lane: int) -> None:
        """Say that the lane's client leaves of its own accord (the client, before its connection ends)."""
        self._words.store(lane * LANE_WORDS + Lane.LEFT, 1)

    def add_unsent(self, lane: int, size: int) -> None:
        """Count host memory for rows that wait to be sent in, or (less than 0) out (that lane's client only)."""
        self._words.add(lane * LANE_WORDS + Lane.UNSENT_BYTES, size % (1 << 64))

    def unsent_bytes(self) -> int:
        """Host memory with rows that wait to be sent, of all clients that live: a dead one's is gone with it."""
        lanes = range(self.num_lanes)
        return sum(
            self.get(lane, Lane.UNSENT_BYTES) for lane in lanes if self.get(lane, Lane.STATE) == LaneState.ATTACHED
        )

    def bury(self, lane: int) -> bool:
        """Mark the lane of a client that is gone DEAD, for the poller to reap (launcher only). True the first time."""
        return self._words.compare_exchange(lane * LANE_WORDS + Lane.STATE, LaneState.ATTACHED, LaneState.DEAD)

    def free(self, lane: int) -> bool:
        """Free the lane of a dead client of which everything is reaped (poller only)."""
        self._words.store(lane * LANE_WORDS + Lane.NUM_EARLY, 0)
        return self._words.compare_exchange(lane * LANE_WORDS + Lane.STATE, LaneState.DEAD, LaneState.FREE)

    def set_num_waiting(self, lane: int, count: int) -> None:
        """Say how many requests of the lane's client wait for a slot (its library thread only)."""
        self._words.store(lane * LANE_WORDS + Lane.NUM_WAITING, count)

    def num_waiting(self) -> int:
        """Requests of all living clients that wait for a slot."""
        attached = [lane for lane in range(self.num_lanes) if self.get(lane, Lane.STATE) == LaneState.ATTACHED]
        return sum([self.get(lane, Lane.NUM_WAITING) for lane in attached])

    def add_early(self, lane: int, change: int) -> None:
        """Count a page more (1) or less (-1) in which that lane's client opens slots before rooms are asked for."""
        self._words.add(lane * LANE_WORDS + Lane.NUM_EARLY, change & (1 << 64) - 1)

    def num_early(self) -> int:
        """How many such pages the node has."""
        return sum([self._words.load(at) for at in range(Lane.NUM_EARLY, self.num_lanes * LANE_WORDS, LANE_WORDS)])

    def lease_page(self, lane: int) -> int | None:
        """Lease one more page of slots to a lane (that lane's client only). None when all are leased."""
        for page in range(self.num_pages):
            if self._pages.load(page) == 0 and self._pages.compare_exchange(page, 0, lane + 1):
                return page
        return None

    def page_lane(self, page: int) -> int | None:
        """The lane that leases a page, or None."""
        word = self._pages.load(page)
        return word - 1 if word else None

    def pages_of(self, lane: int) -> list[int]:
        return [page for page in range(self.num_pages) if self._pages.load(page) == lane + 1]

    def return_page(self, page: int, lane: int) -> bool:
        """End a lease when no slot of it is in use: a dead lane's (poller only), or one's own that others wait for."""
        return self._pages.compare_exchange(page, lane + 1, 0)


class ForeignWriter(NamedTuple):
    """A process of another node that has our payload mapped."""

    node_id: int
    incarnation: int
    pid: int


class WriterTable:
    """Processes of other nodes that can write into our payload through shared memory. The launcher watches them.

    As long as one of an incarnation is listed, a block that was exposed to that incarnation is not free to be used
    again (R12).
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._words = Words(mapping, layout.writers, MAX_WRITERS * WRITER_WORDS)

    def add(self, writer: ForeignWriter) -> int | None:
        """List a writer (launcher only). Returns its entry, or None when the table is full."""
        for entry in range(MAX_WRITERS):
            at = entry * WRITER_WORDS
            if self._words.load(at + Writer.NODE_ID) == 0:
                self._words.store(at + Writer.PID, writer.pid)
                self._words.store(at + Writer.INCARNATION, writer.incarnation)
                self._words.store(at + Writer.NODE_ID, writer.node_id)
                return entry
        return None

    def remove(self, entry: int) -> None:
        """Remove a process that is dead or has unmapped our payload (launcher only)."""
        self._words.store(entry * WRITER_WORDS + Writer.NODE_ID, 0)

    def has(self, node_id: int, incarnation: int) -> bool:
        """Whether a process of that incarnation of that node can still write here."""
        return any(True for _ in self._entries(node_id, incarnation))

    def pids(self, node_id: int, incarnation: int) -> list[int]:
        """The processes of that incarnation that can write here, by the pids that the launcher sees."""
        return [self._words.load(at + Writer.PID) for at in self._entries(node_id, incarnation)]

    def _entries(self, node_id: int, incarnation: int) -> Iterator[int]:
        for entry in range(MAX_WRITERS):
            at = entry * WRITER_WORDS
            if (
                self._words.load(at + Writer.NODE_ID) == node_id
                and self._words.load(at + Writer.INCARNATION) == incarnation
            ):
                yield at
