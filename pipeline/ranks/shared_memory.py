"""The memory into which a rank 0 receives: a segment that all ranks of its node map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from embridge.allocator._core import Mapping
from embridge.allocator.geometry import Geometry
from embridge.allocator.ranges import Ranges
from embridge.allocator.ranklog import RankLog, RankState
from embridge.pipeline.leaving import refuse
from embridge.pipeline.scheduler.host_memory import HostMemory, HostRows
from embridge.pipeline.scheduler.rows import Bytes

CLOSED = "rank 0 has left its node"


class SharedRows(HostRows):
    """Rows in the shared segment, at [begin, end)."""

    def __init__(self, geometry: Geometry, capacity_tokens: int, memory: Bytes, begin: int, end: int) -> None:
        super().__init__(geometry, capacity_tokens, memory[begin:end])
        self.begin = begin
        self.end = end


@dataclass(slots=True, eq=False)
class Hold:
    """Shared memory that was handed over, and the ranks that were told of it.

    Rank 0 needs it until `SharedMemory` has it as released.
    """

    rows: SharedRows
    entry: int
    ticket: int
    published: bool = False
    told: list[int] = field(default_factory=list)
    reserved_tokens: int = 0


class SharedMemory(HostMemory):
    """Host memory in a segment that all ranks map; it is used again when the last of them has released it (D14).

    Library thread only, but `give_back_later`.
    """

    def __init__(self, geometry: Geometry, limit_bytes: int, ranks: RankLog, mapping: Mapping) -> None:
        super().__init__(geometry, limit_bytes)
        self._log = ranks
        self._memory: Bytes = np.frombuffer(mapping, np.uint8)
        self._ranges = Ranges(mapping.size)
        self._entries = list(range(ranks.layout.num_entries - 1, -1, -1))
        self._holds: dict[HostRows, Hold] = {}
        self._released: list[Hold] = []  # by rank 0; in the order in which it did
        self._seen: tuple[int, ...] = ()
        self._tickets = 0
        self._wants_room = False
        self._was_refused = False
        self.num_moved = 0
        """Requests whose rows were received in private memory and copied into the segment at their end."""

    @property
    def admits(self) -> bool:
        """Whether the oldest request may exceed the limit.

        It may not while a finished one waits for room, so memory stays bounded.
        """
        return not self._wants_room and bool(self._entries)

    @property
    def num_bytes(self) -> int:
        """The size of the segment."""
        return self._memory.nbytes

    @property
    def num_used_bytes(self) -> int:
        """How many bytes of the segment are received into or held, in whole pages."""
        return self.num_bytes - self._ranges.free_bytes

    @property
    def is_short(self) -> bool:
        """Whether a request waits for what other ranks hold."""
        return self._was_refused and bool(self._released)

    def reserve(self, tokens: int, *, may_exceed: bool) -> bool:
        """Count these tokens in, if they fit."""
        granted = super().reserve(tokens, may_exceed=may_exceed)
        self._was_refused |= not granted
        return granted

    def take(self, tokens: int) -> HostRows:
        """Shared memory, in one piece; private memory where there is none, or where a finished request waits for it."""
        rows = None if self._wants_room else self._take_shared(tokens)
        return rows or super().take(tokens)

    def _take_shared(self, tokens: int) -> SharedRows | None:
        found = self._ranges.take(HostRows.size_of(self._geometry, tokens))
        return None if found is None else SharedRows(self._geometry, tokens, self._memory, *found)

    def give_back(self, rows: HostRows) -> None:
        """Use the memory of these rows again, because nobody looks at it any more."""
        if isinstance(rows, SharedRows):
            self._ranges.give_back(rows.begin, rows.end)
        else:
            super().give_back(rows)

    def place(self, rows: HostRows, total: int) -> Hold | None:
        """Have a finished request's rows in shared memory, and its hold entered; None when there is no room now."""
        if not self._entries:
            return None
        if isinstance(rows, SharedRows):
            shared = rows
        else:
            found = None if self._wants_room else self._take_shared(total)
            if found is None:
                self._wants_room = True
                return None
            found.take_over(rows, total)
            self.give_back(rows)
            self.num_moved += 1
            shared = found
        hold = self._holds[shared] = Hold(shared, self._entries.pop(), self._next_ticket())
        return hold

    def end(self) -> None:
        """Take nothing back any more; any use of the log raises RuntimeError from now on."""
        super().end()
        self._holds.clear()
        self._released.clear()
        self._memory = np.empty(0, np.uint8)
        refuse(self, CLOSED, ("_log",))

    def nobody_waits(self) -> None:
        """Forget that a finished request waits for room; `place` says so again."""
        self._wants_room = False

    def _next_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def collect(self) -> None:
        """Take back what rank 0 has released and no other rank holds."""
        fresh = self._was_refused = False
        while self._returned:
            rows, tokens = self._returned.popleft()
            hold = None if rows is None else self._holds.get(rows)
            if hold is None:
                self.reserved_bytes -= self.bytes_for(tokens)
                if rows is not None:
                    self.give_back(rows)
            else:
                hold.reserved_tokens = tokens
                self._released.append(hold)
                fresh = True
        seen = self._log.releases()
        if self._released and (fresh or seen != self._seen):
            self._seen = seen
            kept = []
            for hold in self._released:
                if not hold.published or self.holders(hold):
                    kept.append(hold)
                else:
                    self._end(hold)
            self._released = kept
            if any(not hold.published for hold in kept):
                self._seen = ()  # to be looked at again, whatever the others do

    def _end(self, hold: Hold) -> None:
        del self._holds[hold.rows]
        self._entries.append(hold.entry)
        self.reserved_bytes -= self.bytes_for(hold.reserved_tokens)
        self.give_back(hold.rows)

    def holders(self, hold: Hold) -> list[int]:
        """The other ranks that still need a hold."""
        return [rank for rank in hold.told if not self._log.has_released(rank, hold.entry, hold.ticket)]

    def in_the_way(self) -> str:
        """Which ranks keep a request from its room, in words."""
        counts = Counter(rank for hold in self._released for rank in self.holders(hold))
        if not counts:
            return f"rank 0 itself holds {len(self._holds)} results and has not released them"
        rank, count = counts.most_common(1)[0]
        remedy = "have it pop and release them, or end it"
        return f"{self.named(rank)} holds {count} results that rank 0 has released; {remedy}"

    def named(self, rank: int) -> str:
        """A rank, for people."""
        state = self._log.state(rank)
        if state == RankState.AWAITED:
            return f"rank {rank}, which has not joined (follow(run_dir, rank={rank}) in its process),"
        return f"rank {rank} (process {self._log.pid(rank)})"
