"""The node's processes, the clients' lanes and the pages of slots that they lease, and the foreign writers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, Records, Words
from embridge.allocator.claims import MAX_GENERATION, WriterId
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.layout import ControlLayout
from embridge.allocator.plain_enums import Lane, LaneState, Process
from embridge.allocator.records import (
    ADDRESS_BYTES,
    LANE_ADDRESS_OFFSET,
    LANE_WORDS,
    MAX_WRITERS,
    PROCESS_WORDS,
    WRITER_WORDS,
    Writer,
)
from embridge.allocator.texts import packed, unpacked


class ProcessTable:
    """One entry for each process of the node. A READY process writes its own beat; the launcher writes the rest."""

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

    def own_beat(self, index: int) -> Callable[[int], None]:
        """The same, of one process, given the time."""
        return partial(self._words.store, index * PROCESS_WORDS + Process.BEAT_NS)

    def beat_for(self, name: str, now_ns: int) -> None:
        """Beat for a process that is being started (launcher only). A later beat of its own stands."""
        self._words.raise_to(self.names.index(name) * PROCESS_WORDS + Process.BEAT_NS, now_ns)


class LaneTable:
    """The clients' lanes, and the pages of 64 slots that each has leased."""

    get: Callable[[int, Lane], int]
    """get(lane, field)"""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self.num_lanes = layout.limits.max_clients
        self.own_lane = self.num_lanes
        """The lane of the node's own requests, behind those of clients; there is one where it has a shelf."""
        self.num_pages = layout.limits.num_slots // SLOTS_PER_PAGE
        self.words = self._words = Words(mapping, layout.lanes, layout.limits.num_lanes * LANE_WORDS)
        self.pages = self._pages = Words(mapping, layout.pages, self.num_pages)
        self.get = Records(mapping, layout.lanes, layout.limits.num_lanes, LANE_WORDS).get  # native, for its cost

    def take(self, pid: int, now_ns: int) -> int | None:
        """Give a client a lane (launcher only). Returns the lane, or None if all are taken."""
        for lane in range(self.num_lanes):
            at = lane * LANE_WORDS
            if self._words.load(at + Lane.STATE) == LaneState.FREE:
                self._words.store(at + Lane.PID, pid)
                self._words.store(at + Lane.ATTACHED_NS, now_ns)
                self._words.store(at + Lane.BEAT_NS, 0)
                zeroed = (Lane.PINNED, Lane.LEFT, Lane.UNSENT_BYTES, Lane.NUM_EARLY, Lane.NUM_WAITING, Lane.NUM_LENT)
                for field in zeroed:
                    self._words.store(at + field, 0)
                self._words.store(at + Lane.STATE, LaneState.ATTACHED)
                return lane
        return None

    def take_own(self) -> None:
        """Say that the lane of the node's own requests is in use (bootstrap of a node with a shelf only)."""
        self._words.store(self.own_lane * LANE_WORDS + Lane.STATE, LaneState.ATTACHED)

    def beat(self, lane: int, now_ns: int) -> None:
        """Beat for the lane's client (its library thread only)."""
        self._words.store(lane * LANE_WORDS + Lane.BEAT_NS, now_ns)

    def pin(self, lane: int) -> None:
        """Say that from now on a device may copy for that lane's client (that client, before it lets one copy)."""
        self._words.store(lane * LANE_WORDS + Lane.PINNED, 1)

    def leave(self, lane: int) -> None:
        """Say that the lane's client leaves of its own accord (that client, before its connection ends)."""
        self._words.store(lane * LANE_WORDS + Lane.LEFT, 1)

    def add_unsent(self, lane: int, size: int) -> None:
        """Add to the bytes of host memory that hold the lane's unsent rows; below 0 takes away (that client only)."""
        self._words.add(lane * LANE_WORDS + Lane.UNSENT_BYTES, size % (1 << 64))

    def unsent_bytes(self) -> int:
        """Bytes of host memory that hold unsent rows, over all living clients.

        A dead client's memory is gone with it.
        """
        lanes = range(self.num_lanes)
        return sum(
            self.get(lane, Lane.UNSENT_BYTES) for lane in lanes if self.get(lane, Lane.STATE) == LaneState.ATTACHED
        )

    def bury(self, lane: int) -> bool:
        """Mark the client's lane DEAD, so that the poller reaps what the client has left (launcher only).

        True the first time.
        """
        return self._words.compare_exchange(lane * LANE_WORDS + Lane.STATE, LaneState.ATTACHED, LaneState.DEAD)

    def free(self, lane: int) -> bool:
        """Free the lane of a dead client when all that it left is reaped (poller only)."""
        self._words.store(lane * LANE_WORDS + Lane.NUM_EARLY, 0)
        return self._words.compare_exchange(lane * LANE_WORDS + Lane.STATE, LaneState.DEAD, LaneState.FREE)

    def set_num_waiting(self, lane: int, count: int) -> None:
        """Say how many requests of the lane's client wait for a slot (its library thread only)."""
        self._words.store(lane * LANE_WORDS + Lane.NUM_WAITING, count)

    def num_waiting(self) -> int:
        """How many requests of all living clients wait for a slot."""
        attached = [lane for lane in range(self.num_lanes) if self.get(lane, Lane.STATE) == LaneState.ATTACHED]
        return sum([self.get(lane, Lane.NUM_WAITING) for lane in attached])

    def add_early(self, lane: int, change: int) -> None:
        """Count one page more (1) or less (-1) in which that lane's client opens slots before rooms are asked for."""
        self._words.add(lane * LANE_WORDS + Lane.NUM_EARLY, change & (1 << 64) - 1)

    def num_early(self) -> int:
        """How many pages of the node early slots may lie in."""
        return self._words.sum(Lane.NUM_EARLY, self.num_lanes, LANE_WORDS)

    def add_lent(self, lane: int, num_blocks: int) -> None:
        """Add to the blocks that are lent to the lane's scheduler; below 0 takes away (that client only)."""
        self._words.add(lane * LANE_WORDS + Lane.NUM_LENT, num_blocks % (1 << 64))

    def num_lent(self) -> int:
        """Blocks that living clients have lent."""
        words = self._words.load_many(0, self.num_lanes * LANE_WORDS)
        states, lent = words[Lane.STATE :: LANE_WORDS], words[Lane.NUM_LENT :: LANE_WORDS]
        return sum([count for state, count in zip(states, lent, strict=True) if state == LaneState.ATTACHED])

    def lease_page(self, lane: int) -> int | None:
        """Lease one more page of slots to a lane (that lane's client only). None if all are leased."""
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
        """End a lease of which no slot is in use.

        The poller calls it for a dead lane, and a client for a page of its own for which others wait.
        """
        return self._pages.compare_exchange(page, lane + 1, 0)


class WantedNodes:
    """The encode node that each lane's client wants to know, by its address (language side).

    There is one address a lane. So the next one is put there when the bootstrap has taken the last: else of two that
    are wanted at a time one would be lost each time, or what is read be half of each. That holds over the lane's
    clients, too: what a dead one has left there is taken first.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._words = Words(mapping, layout.lanes, layout.limits.max_clients * LANE_WORDS)
        self._bytes = memoryview(mapping)[layout.lanes : layout.lanes + layout.limits.max_clients * LANE_WORDS * 8]

    def put(self, lane: int, address: str) -> bool:
        """Say which (that lane's client, before it kicks its bootstrap). False: another one stands there still."""
        if self._words.load(lane * LANE_WORDS + Lane.WANTS_NODE):
            return False
        self._at(lane)[:] = packed(address, ADDRESS_BYTES)
        self._words.store(lane * LANE_WORDS + Lane.WANTS_NODE, 1)
        return True

    def take(self, lane: int) -> str | None:
        """The address that stands there, which it does no more then; None: there is none (bootstrap only)."""
        if not self._words.load(lane * LANE_WORDS + Lane.WANTS_NODE):
            return None
        address = unpacked(bytes(self._at(lane)))
        self._words.store(lane * LANE_WORDS + Lane.WANTS_NODE, 0)
        return address

    def _at(self, lane: int) -> memoryview[int]:
        first = lane * LANE_WORDS * 8 + LANE_ADDRESS_OFFSET
        return self._bytes[first : first + ADDRESS_BYTES]


class ForeignWriter(NamedTuple):
    """A process of another node that has our payload mapped. `has_claims`: it writes only under claims."""

    node_id: int
    incarnation: int
    pid: int
    has_claims: bool = False


class WriterTable:
    """Processes of other nodes that can write into our payload through shared memory. The launcher watches them.

    As long as a transfer worker of an incarnation is listed, a block that was exposed to that incarnation is not free
    to be used again (R12). A client of another node is listed for its claims, which say what it may write.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._words = Words(mapping, layout.writers, MAX_WRITERS * WRITER_WORDS)
        num_workers = layout.limits.max_peers * layout.limits.num_workers
        self._first_for_clients = min(num_workers, MAX_WRITERS // 2)  # without a worker, no row would come at all

    def add(self, writer: ForeignWriter) -> WriterId | None:
        """List a writer (launcher only). Returns what names it, or None when there is no entry for it.

        An entry that has had all its generations retires: a claim of its first owner would be the next one's, too
        (R33).
        """
        for entry in range(self._first_for_clients if writer.has_claims else 0, MAX_WRITERS):
            at = entry * WRITER_WORDS
            generation = self._words.load(at + Writer.GENERATION) + 1
            if self._words.load(at + Writer.NODE_ID) == 0 and generation <= MAX_GENERATION:
                self._words.store(at + Writer.PID, writer.pid)
                self._words.store(at + Writer.INCARNATION, writer.incarnation)
                self._words.store(at + Writer.HAS_CLAIMS, writer.has_claims)
                self._words.store(at + Writer.GENERATION, generation)
                self._words.store(at + Writer.NODE_ID, writer.node_id)
                return WriterId(entry, generation)
        return None

    def remove(self, entry: int) -> None:
        """Remove a process that is dead or has unmapped our payload (launcher only), after its claims were ended."""
        self._words.store(entry * WRITER_WORDS + Writer.NODE_ID, 0)

    def has(self, node_id: int, incarnation: int) -> bool:
        """Whether a transfer worker of that incarnation of that node can still write here."""
        return any(not self._words.load(at + Writer.HAS_CLAIMS) for at in self._entries(node_id, incarnation))

    def pid_of(self, writer: WriterId) -> int | None:
        """The process that a claim names, by the pid that the launcher sees; None when it is not listed any more."""
        at = writer.entry * WRITER_WORDS
        is_it = self._words.load(at + Writer.NODE_ID) and self._words.load(at + Writer.GENERATION) == writer.generation
        return self._words.load(at + Writer.PID) if is_it else None

    def pids(self, node_id: int, incarnation: int, *, has_claims: bool = False) -> list[int]:
        """The transfer workers of that incarnation that can write here, or with `has_claims` its clients that can, by
        the pids that the launcher sees.
        """
        load = self._words.load
        entries = self._entries(node_id, incarnation)
        return [load(at + Writer.PID) for at in entries if bool(load(at + Writer.HAS_CLAIMS)) == has_claims]

    def _entries(self, node_id: int, incarnation: int) -> Iterator[int]:
        for entry in range(MAX_WRITERS):
            at = entry * WRITER_WORDS
            if (
                self._words.load(at + Writer.NODE_ID) == node_id
                and self._words.load(at + Writer.INCARNATION) == incarnation
            ):
                yield at
