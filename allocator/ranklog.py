"""The log of a group of ranks: rank 0 tells the others what it has handed over, and they tell it what they released.

    log segment (all may write)                             rows segment (rank 0 writes)
    +---------------------------------------------+         +--------------------------------------+
    | header    magic, sizes, geometry, rank 0    |         | rows of a request: aux, then a       |
    +---------------------------------------------+    +--->| section for each per-token buffer    |
    | rank 1    state, pid | cut | released       |    |    +--------------------------------------+
    |           doorbell                          |    |    | rows of another                      |
    |           ring of items --------------------+----+    |                                      |
    |           tickets, one word an entry        |         +--------------------------------------+
    +---------------------------------------------+
    | rank 2    ...                               |
    +---------------------------------------------+

Rank 0 writes one batch of items, which is what one `pop_transferred` returned, into one ring after the other, each with
a single store of its tail. So a rank sees a whole batch or nothing of it, and all ranks see the same batches in the
same order. A killed rank 0 leaves a prefix of that order at each rank. An *entry* names the memory of a finished
request; a rank that needs it no more stores the item's ticket there. Tickets only rise, so a release of the entry's
last use says nothing about this one, and repeating it does nothing.

Every word has one writer: the launcher of the node (`STATE`, `PID`, `LEADER`), rank 0 (`CUT`, ring tails), or that rank
(`NUM_RELEASED`, tickets, ring head). The interleavings, with everybody killed anywhere, are explored in
`tests/model/ranks_model.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from embridge.allocator import layout as lay
from embridge.allocator._core import Consumer, Doorbell, Mapping, Producer, Words, format_ring
from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import GEOMETRY_WORDS, Geometry, pack, unpack_geometry
from embridge.allocator.records import DOORBELL_BYTES, LINE_BYTES, RECORD_BYTES, RING_HEAD, RING_HEADER_BYTES, RING_TAIL
from embridge.allocator.texts import cut

MAGIC: Final = 0x31474F4C_4B4E4152  # "RANKLOG1"
MAX_RANKS: Final = 32
NUM_ENTRIES: Final = 1024  # finished requests that ranks may hold at one time
RING_RECORDS: Final = 4096
MAX_REASON_BYTES: Final = 512

_HEADER_WORDS: Final = 32
_RANK_WORDS: Final = 24  # one cache line for each writer
_ITEM = struct.Struct("<8Q")
_FAILED: Final = 1
_LAST: Final = 2  # the last item of its batch


class LogHeader(IntEnum):
    """Words of the header. Rank 0 writes them before anybody else sees the segment; the launcher writes `LEADER`."""

    MAGIC = 0
    NUM_RANKS = 1
    NUM_ENTRIES = 2
    RING_RECORDS = 3
    ROWS_BYTES = 4
    LEADER_PID = 5
    LEADER = 8  # launcher: `LeaderState`
    GEOMETRY = 16


class LeaderState(IntEnum):
    """`LogHeader.LEADER`; only rises."""

    LEADING = 0
    GONE = 1


class Rank(IntEnum):
    """Words of one rank, one cache line for each writer."""

    STATE = 0  # launcher: `RankState`
    PID = 1  # launcher
    CUT = 8  # rank 0: 1 once nothing more is logged for this rank
    NUM_RELEASED = 16  # that rank


class RankState(IntEnum):
    """`Rank.STATE`; it only rises: a rank that has left does not come back, because it has missed items."""

    AWAITED = 0
    JOINED = 1
    LEFT = 2  # its process is dead, or has closed its follower: it holds nothing any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What the log says of one request.

    Finished (`code` 0): its rows begin at byte `offset` of the rows segment, with room for `capacity_tokens`, of which
    `total_tokens` are filled; `entry` and `ticket` name the hold. Failed: `code` and `reason`, and no memory.
    """

    room: int
    ticket: int
    entry: int = 0
    offset: int = 0
    capacity_tokens: int = 0
    total_tokens: int = 0
    code: int = 0
    reason: str = ""

    @property
    def text(self) -> bytes:
        """The reason as it is logged: UTF-8, cut to whole characters within `MAX_REASON_BYTES`."""
        return cut(self.reason, MAX_REASON_BYTES)

    @property
    def num_records(self) -> int:
        """How many ring records the item takes."""
        return 1 + -(-len(self.text) // RECORD_BYTES)


def pack_batch(items: list[Item]) -> bytes:
    """The ring records of one batch."""
    parts = []
    for item in items:
        text = item.text
        flags = (_FAILED if item.code else 0) | (_LAST if item is items[-1] else 0) | len(text) << 8
        third = item.code if item.code else item.entry
        parts.append(
            _ITEM.pack(flags, item.room, item.ticket, third, item.offset, item.capacity_tokens, item.total_tokens, 0)
        )
        if text:
            parts.append(text.ljust((item.num_records - 1) * RECORD_BYTES, b"\0"))
    return b"".join(parts)


def unpack_batch(records: bytes) -> tuple[list[Item], int]:
    """The first batch in these records, and how many records it takes; ([], 0) if its end is not among them."""
    items: list[Item] = []
    at = 0
    while at < len(records):
        flags, room, ticket, third, offset, capacity, total, _ = _ITEM.unpack_from(records, at)
        at += RECORD_BYTES
        size = flags >> 8
        reason = records[at : at + size].decode(errors="replace")
        at += -(-size // RECORD_BYTES) * RECORD_BYTES
        if flags & _FAILED:
            items.append(Item(room=room, ticket=ticket, total_tokens=total, code=third, reason=reason))
        else:
            items.append(
                Item(room=room, ticket=ticket, entry=third, offset=offset, capacity_tokens=capacity, total_tokens=total)
            )
        if flags & _LAST and at <= len(records):
            return items, at // RECORD_BYTES
    return [], 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLogLayout:
    """Byte offsets in a log segment; rank k's part begins at `rank(k)` (k from 1)."""

    num_ranks: int
    num_entries: int
    ring_records: int

    def __post_init__(self) -> None:
        if not 2 <= self.num_ranks <= MAX_RANKS:
            raise ValueError(f"num_ranks: {self.num_ranks} is outside 2 to {MAX_RANKS}")
        if not 1 <= self.num_entries <= 1 << 20:
            raise ValueError(f"num_entries: {self.num_entries} is outside 1 to {1 << 20}")

    @property
    def bell(self) -> int:
        """Offset of the doorbell, from `rank(k)`."""
        return _RANK_WORDS * 8

    @property
    def ring(self) -> int:
        return self.bell + DOORBELL_BYTES

    @property
    def tickets(self) -> int:
        return self.ring + RING_HEADER_BYTES + self.ring_records * RECORD_BYTES

    @property
    def rank_bytes(self) -> int:
        end = self.tickets + self.num_entries * 8
        return -(-end // LINE_BYTES) * LINE_BYTES

    def rank(self, rank: int) -> int:
        return lay.PAGE_BYTES + (rank - 1) * self.rank_bytes

    @property
    def size(self) -> int:
        end = self.rank(self.num_ranks)
        return -(-end // lay.PAGE_BYTES) * lay.PAGE_BYTES


def format_log(mapping: Mapping, layout: RankLogLayout, geometry: Geometry, rows_bytes: int, pid: int) -> None:
    """Write the header and empty rings into a fresh, zeroed log segment (rank 0 only). The magic comes last."""
    for rank in range(1, layout.num_ranks):
        format_ring(mapping, layout.rank(rank) + layout.ring, layout.ring_records)
    header = Words(mapping, 0, _HEADER_WORDS)
    words = {
        LogHeader.NUM_RANKS: layout.num_ranks,
        LogHeader.NUM_ENTRIES: layout.num_entries,
        LogHeader.RING_RECORDS: layout.ring_records,
        LogHeader.ROWS_BYTES: rows_bytes,
        LogHeader.LEADER_PID: pid,
    }
    for field, value in words.items():
        header.store(field, value)
    for i, word in enumerate(pack(geometry)):
        header.store(LogHeader.GEOMETRY + i, word)
    header.store(LogHeader.MAGIC, MAGIC)


class RankLog:
    """A mapped log segment, checked. Rank 0, the launcher and followers each use the methods that are theirs.

    `event_fds` are, by rank, the eventfds of the doorbells that this process rings or arms.

    Raises:
        SegmentError: it is no log, or its header does not fit its size.
    """

    def __init__(self, mapping: Mapping, event_fds: MappingType[int, int] | None = None) -> None:
        if mapping.size < lay.PAGE_BYTES:
            raise SegmentError(f"log of the ranks: {mapping.size} bytes < {lay.PAGE_BYTES} bytes of its header")
        self._mapping = mapping
        self._event_fds = dict(event_fds or {})
        self._header = Words(mapping, 0, _HEADER_WORDS)
        magic = self._header.load(LogHeader.MAGIC)
        if magic != MAGIC:
            raise SegmentError(
                f"log of the ranks: magic {magic:#x} is not {MAGIC:#x}; run the same embridge version in all ranks"
            )
        try:
            self.layout = RankLogLayout(
                num_ranks=self._header.load(LogHeader.NUM_RANKS),
                num_entries=self._header.load(LogHeader.NUM_ENTRIES),
                ring_records=self._header.load(LogHeader.RING_RECORDS),
            )
            self.geometry = unpack_geometry([self._header.load(LogHeader.GEOMETRY + i) for i in range(GEOMETRY_WORDS)])
        except ValueError as error:
            raise SegmentError(f"log of the ranks: {error}") from error
        if self.layout.size > mapping.size:
            raise SegmentError(
                f"log of the ranks: {mapping.size} bytes < {self.layout.size} bytes that its header describes"
            )
        self.num_ranks = self.layout.num_ranks
        self.rows_bytes = self._header.load(LogHeader.ROWS_BYTES)
        self.leader_pid = self._header.load(LogHeader.LEADER_PID)
        self.followers = range(1, self.num_ranks)
        self._words = {rank: Words(mapping, self.layout.rank(rank), _RANK_WORDS) for rank in self.followers}
        self._tickets = {
            rank: Words(mapping, self.layout.rank(rank) + self.layout.tickets, self.layout.num_entries)
            for rank in self.followers
        }
        self._bells: dict[int, Doorbell] = {}

    def close(self) -> None:
        """Let go of the memory, and of the copies of eventfds that its doorbells keep.

        What was taken from here before reads as zeroes from now on.
        """
        self._bells.clear()
        self._mapping.discard()

    # ---- anybody

    @property
    def leader_is_gone(self) -> bool:
        return self._header.load(LogHeader.LEADER) == LeaderState.GONE

    def state(self, rank: int) -> RankState:
        return RankState(min(self._words[rank].load(Rank.STATE), RankState.LEFT))

    def pid(self, rank: int) -> int:
        """The process that has joined as this rank; 0 before that."""
        return self._words[rank].load(Rank.PID)

    def is_cut(self, rank: int) -> bool:
        return self._words[rank].load(Rank.CUT) != 0

    def num_released(self, rank: int) -> int:
        """How many finished requests this rank has released."""
        return self._words[rank].load(Rank.NUM_RELEASED)

    def unread(self, rank: int) -> int:
        """How many records a rank has not taken yet: a look only, which may miss what changes meanwhile."""
        ring = Words(self._mapping, self.layout.rank(rank) + self.layout.ring, RING_HEADER_BYTES // 8)
        head = ring.load(RING_HEAD)
        return max(ring.load(RING_TAIL) - head, 0)

    def bell(self, rank: int) -> Doorbell:
        """That rank's doorbell. Rank 0 and the run socket's server ring it, and the rank waits for it."""
        if rank not in self._bells:
            at = self.layout.rank(rank) + self.layout.bell
            self._bells[rank] = Doorbell(self._mapping, at, self._event_fds.get(rank, -1))
        return self._bells[rank]

    # ---- the launcher

    def join(self, rank: int, pid: int) -> None:
        self._words[rank].store(Rank.PID, pid)
        self._words[rank].raise_to(Rank.STATE, RankState.JOINED)

    def leave(self, rank: int) -> None:
        """Note that a rank's process is dead or has closed its connection, so that it holds nothing any more."""
        self._words[rank].raise_to(Rank.STATE, RankState.LEFT)

    def end(self) -> None:
        """Tell all other ranks that rank 0 is gone."""
        self._header.store(LogHeader.LEADER, LeaderState.GONE)
        for rank in self.followers:
            self.bell(rank).ring()

    # ---- rank 0

    def producer(self, rank: int) -> Producer:
        return Producer(self._mapping, self.layout.rank(rank) + self.layout.ring)

    def cut(self, rank: int) -> None:
        """Log nothing more for a rank. What it holds stays its own until it releases it or leaves."""
        self._words[rank].store(Rank.CUT, 1)
        self.bell(rank).ring()

    def releases(self) -> tuple[int, ...]:
        """How far each rank has released; it changes whenever a rank has released something, or has left."""
        counts = []
        for words in self._words.values():
            counts += [words.load(Rank.NUM_RELEASED), words.load(Rank.STATE)]
        return tuple(counts)

    def has_released(self, rank: int, entry: int, ticket: int) -> bool:
        """Whether a rank that was told of this hold does not need it any more."""
        return self._words[rank].load(Rank.STATE) == RankState.LEFT or self._tickets[rank].load(entry) >= ticket

    # ---- that rank

    def consumer(self, rank: int) -> Consumer:
        return Consumer(self._mapping, self.layout.rank(rank) + self.layout.ring)

    def release(self, rank: int, entry: int, ticket: int) -> None:
        self._tickets[rank].raise_to(entry, ticket)
        self._words[rank].add(Rank.NUM_RELEASED, 1)
