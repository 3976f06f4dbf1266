"""Rank 0 of a language node's ranks: what it receives lies in memory that all of them see, and what it hands over is logged for them.

One copy comes to the node, whatever the number of ranks (D16). Rank 0 alone grants, resumes and admits; the others learn what its
`pop_transferred` returned, batch for batch, from a log in shared memory, so no collective is needed to agree (B8). See
`allocator/ranklog.py` for the log and `pipeline/ranks/follower.py` for the other end.

    library thread                                          caller's thread
    request ended ─▶ placed in shared memory, if it         pop_transferred: one batch into each rank's log,
                     is not there already                   then to the caller
                  ─▶ room claimed in every rank's log ────▶
    memory free again  ◀── released by rank 0, and by every rank that was told of it and lives

A rank that is slow, or never comes, holds nobody up but by what it occupies, and that is bounded. A request that finds no room, in memory
or in a log, waits until its own deadline. Then it fails and names the rank that holds the memory; a rank whose log is still full is cut
off: its log ends there, always at a whole batch, and the others go on. Waiting comes first, because a step of the model needs all ranks
anyhow; and as a rank is cut off rather than passed over, what it has seen is always what rank 0 did, up to some point.

Requests are received straight into shared memory, each in one piece. Where no piece is large enough (the space is in fragments, or the
oldest request exceeds the limit so that it need not wait), the rows land in private memory and are copied once more at the end.
"""

from __future__ import annotations

import logging
import os
import select
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embridge.allocator import ranklog
from embridge.allocator._core import Mapping, Producer
from embridge.allocator.errors import AttachError, FailureCode, failure
from embridge.allocator.geometry import Geometry
from embridge.allocator.layout import PAGE_BYTES
from embridge.allocator.ranges import Ranges
from embridge.allocator.ranklog import Item, RankLog, RankLogLayout, RankState, format_log, pack_batch
from embridge.allocator.segment import create_segment, map_segment
from embridge.pipeline.arguments import is_time
from embridge.pipeline.leaving import let_go, refuse
from embridge.pipeline.scheduler.host_memory import Bytes, HostMemory, HostRows
from embridge.workers import run_socket
from embridge.workers.run_socket import Accepted, Lead
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client
    from embridge.pipeline.scheduler.request import EmbeddingRequest

log = logging.getLogger(__name__)

LEAD_TIMEOUT_S = 10.0
CLOSED = "rank 0 has left its node"


class SharedRows(HostRows):
    """Rows in the shared segment, at [begin, end)."""

    def __init__(self, geometry: Geometry, capacity_tokens: int, memory: Bytes, begin: int, end: int) -> None:
        super().__init__(geometry, capacity_tokens, memory[begin:end])
        self.begin = begin
        self.end = end


@dataclass(slots=True, eq=False)
class Hold:
    """Shared memory that was handed over: who was told of it. Rank 0 itself needs it until it is in `released`."""

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
        """Not while a finished request waits for room: memory stays bounded when a rank is slow."""
        return not self._wants_room and bool(self._entries)

    @property
    def num_bytes(self) -> int:
        """The size of the segment."""
        return self._memory.nbytes

    @property
    def num_used_bytes(self) -> int:
        """Of the segment, in whole pages: what is being received into, and what somebody holds."""
        return self.num_bytes - self._ranges.free_bytes

    @property
    def is_short(self) -> bool:
        """Whether a request waits for what other ranks hold."""
        return self._was_refused and bool(self._released)

    def reserve(self, tokens: int, *, may_exceed: bool) -> bool:
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
        super().end()
        self._holds.clear()
        self._released.clear()
        self._memory = np.empty(0, np.uint8)
        refuse(self, CLOSED, ("_log",))

    def nobody_waits(self) -> None:
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
        """The other ranks that need it still."""
        return [rank for rank in hold.told if not self._log.has_released(rank, hold.entry, hold.ticket)]

    def in_the_way(self) -> str:
        """Who keeps a request from its room, in words."""
        counts = Counter(rank for hold in self._released for rank in self.holders(hold))
        if not counts:
            return f"rank 0 itself holds {len(self._holds)} results and has not released them"
        rank, count = counts.most_common(1)[0]
        return f"{self.named(rank)} holds {count} results that rank 0 has released; have it pop and release them, or end it"

    def named(self, rank: int) -> str:
        """A rank, for people."""
        state = self._log.state(rank)
        if state == RankState.AWAITED:
            return f"rank {rank}, which has not joined (follow(run_dir, rank={rank}) in its process),"
        return f"rank {rank} (process {self._log.pid(rank)})"


class Ranks:
    """The other ranks of a client that was attached with `num_ranks`. `memory` is where its requests are received."""

    def __init__(self, client: Client, num_ranks: int, group: str) -> None:
        self._client = client
        self._layout = RankLogLayout(
            num_ranks=num_ranks, num_entries=ranklog.NUM_ENTRIES, ring_records=ranklog.RING_RECORDS
        )
        self.group = group
        self.log: RankLog
        self._fds: list[int] = []
        self._taken = False
        self._rows: Mapping | None = None
        try:
            self._make(client)
            self._announce(client)
        except BaseException:
            self.close()
            raise
        self._producers: dict[int, Producer] = {rank: self.log.producer(rank) for rank in self.log.followers}
        self._cut: set[int] = set()
        self._waiting: deque[EmbeddingRequest] = deque()
        self._holds: dict[EmbeddingRequest, Hold | None] = {}  # passed on, not popped yet
        self._claimed_records = 0
        self._published_records = 0
        self.num_batches = 0
        """Batches that rank 0 has popped. Followers count the same way: where ranks act in step, rank 0 says which one a step is about."""

    def _make(self, client: Client) -> None:
        remedy = "lower host_buffer_bytes"
        limit_bytes = client.settings["host_buffer_bytes"]
        rows_bytes = (-(-limit_bytes // PAGE_BYTES) + 1) * PAGE_BYTES  # the largest request brings its aux_datas, too
        log_fd = create_segment("ranks", self._layout.size, remedy=remedy)
        self._fds.append(log_fd.fd)
        rows_fd = create_segment("rows", rows_bytes, remedy=remedy)
        self._fds.append(rows_fd.fd)
        bells = {}
        for rank in range(1, self._layout.num_ranks):
            try:
                bells[rank] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            except OSError as error:
                raise AttachError(f"eventfd of rank {rank}: {error.strerror}; raise `ulimit -n`") from error
            self._fds.append(bells[rank])
        mapping = map_segment(log_fd.fd, self._layout.size)
        format_log(mapping, self._layout, client.geometry, rows_bytes, os.getpid())
        self.log = RankLog(mapping, bells)
        self._rows = map_segment(rows_fd.fd, rows_bytes)
        self.memory = SharedMemory(client.geometry, limit_bytes, self.log, self._rows)

    def _announce(self, client: Client) -> None:
        """Leave the descriptors at the node's door, where the others find them."""
        sock = client.connection
        try:
            run_socket.send_frame(sock, Lead(self.group, self._layout.size), self._fds)
            if not select.select([sock], [], [], LEAD_TIMEOUT_S)[0]:
                raise AttachError(f"no answer within {LEAD_TIMEOUT_S:g} s")
            answer = run_socket.receive_frame(sock)
            if answer is None:
                raise AttachError("it hung up")
            if not isinstance(answer[0], Accepted):
                raise run_socket.refusal(answer[0])
        except (OSError, AttachError) as error:
            raise AttachError(f"node in {client.run_dir}: refused this process as rank 0: {error}") from error

    @property
    def num_ranks(self) -> int:
        return self.log.num_ranks

    def states(self) -> dict[int, str]:
        """What has become of each other rank: awaited, joined, left, or cut off. Raises RuntimeError once the client is closed."""
        return {
            rank: "cut off" if self.log.is_cut(rank) else self.log.state(rank).name.lower() for rank in self.log.followers
        }

    def take(self) -> None:
        """A transfer queue hands over what it receives through these ranks; there is one order, so there is one queue."""
        if self._taken:
            raise ValueError("TransferQueue: this client's ranks follow another one already; use one queue a client with ranks")
        self._taken = True

    def __len__(self) -> int:
        """Requests that have ended and wait until all ranks can have them."""
        return len(self._waiting)

    # ---- the library thread

    def enter(self, request: EmbeddingRequest) -> None:
        """A request has ended, one way or the other; `turn` passes it on."""
        self._waiting.append(request)

    def turn(self, pass_on: Callable[[EmbeddingRequest], None]) -> bool:
        """Pass on every request that all ranks can have now. True while somebody waits for what others hold."""
        self.memory.nobody_waits()
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            if self._may_go(request):
                pass_on(request)
            else:
                self._waiting.append(request)
        return self.memory.is_short or bool(self._waiting)

    def _may_go(self, request: EmbeddingRequest) -> bool:
        """Whether it has its memory and its room in the logs; at its deadline it has to go, and this says how."""
        expired = self._client.clock() >= self._deadline_ns(request)
        num_records = Item(room=0, ticket=0, reason=request.failure.reason if request.failure else "").num_records
        full = [rank for rank in self._open() if self._room(rank) < num_records]
        if full and not expired:
            return False
        hold = None
        if request.failure is None:
            assert request._rows is not None
            hold = self.memory.place(request._rows, request.total_embedding_length)
            if hold is None and not expired:
                return False
            if hold is None:
                used = f"{self.memory.num_used_bytes} of {self.memory.num_bytes} bytes are in use"
                reason = f"received, but no shared memory until its deadline: {used}; {self.memory.in_the_way()}"
                request.failure = failure(FailureCode.TIMEOUT, reason, request.room)
                request.release()
                num_records = Item(room=0, ticket=0, reason=reason).num_records
                full = [rank for rank in self._open() if self._room(rank) < num_records]
            else:
                request._rows = hold.rows
        for rank in full:
            self._cut_off(rank)
        self._holds[request] = hold
        self._claimed_records += num_records
        return True

    def _deadline_ns(self, request: EmbeddingRequest) -> int:
        timeout_s = request.timeout_s
        if not is_time(timeout_s):
            timeout_s = self._client.request_timeout_s
        return int((request._added + float(timeout_s)) * NS)

    def _open(self) -> list[int]:
        """The ranks for which something is still logged."""
        return [rank for rank in self.log.followers if rank not in self._cut and self.log.state(rank) != RankState.LEFT]

    def _room(self, rank: int) -> int:
        """Records that fit into its log, beside those that are promised to requests which were passed on."""
        return self._producers[rank].room() - (self._claimed_records - self._published_records)

    def _cut_off(self, rank: int) -> None:
        if rank in self._cut:
            return
        self._cut.add(rank)
        self.log.cut(rank)
        log.warning("%s left its log full until a request's deadline; nothing more is logged for it", self.memory.named(rank))

    # ---- the caller's thread

    def publish(self, finished: list[EmbeddingRequest], failed: list[EmbeddingRequest]) -> None:
        """Log what `pop_transferred` is about to return, as one batch."""
        items, holds = [], []
        for request in (*finished, *failed):
            hold = self._holds.pop(request)
            items.append(self._item(request, hold))
            holds += [hold] if hold is not None else []
        records = pack_batch(items)
        num_records = sum(item.num_records for item in items)
        for rank in self._open():
            if self._producers[rank].room() < num_records:  # it was claimed, so this ring is damaged
                self._cut_off(rank)
                continue
            for hold in holds:
                hold.told.append(rank)  # first: from the push on, it may be reading
            self._producers[rank].push_bytes(records)
            self.log.bell(rank).ring()
        for hold in holds:
            hold.published = True
        self._published_records += num_records
        self.num_batches += 1

    def _item(self, request: EmbeddingRequest, hold: Hold | None) -> Item:
        total = request.total_embedding_length
        if hold is None:
            assert request.failure is not None
            code, reason = int(request.failure.code), request.failure.reason
            return Item(room=request.room, ticket=0, code=code, reason=reason, total_tokens=total)
        rows = hold.rows
        return Item(
            room=request.room,
            ticket=hold.ticket,
            entry=hold.entry,
            offset=rows.begin,
            capacity_tokens=rows.capacity_tokens,
            total_tokens=total,
        )

    # ---- the end

    def close(self) -> None:
        """Let go of memory and descriptors; the door tells the others as soon as the client's connection has ended."""
        while self._fds:
            os.close(self._fds.pop())
        if "memory" in vars(self):
            self.memory.end()
        if isinstance(vars(self).get("log"), RankLog):
            self.log.close()
        rows, self._rows = self._rows, None
        if rows is not None and self._client.is_forked:
            rows.close()
        elif rows is not None:
            let_go(rows, "results of all ranks", f"rank 0 of {self._client.run_dir}")
        refuse(self, CLOSED, ("log", "_producers"))

    def abandon(self) -> list[EmbeddingRequest]:
        """The client leaves: what waits for the other ranks, and is nobody's any more."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._holds.clear()
        return waiting
