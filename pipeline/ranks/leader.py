"""Rank 0 of a language node's ranks: it receives into memory that all of them see, and logs what it hands over.

One copy comes to the node, whatever the number of ranks (D16). Rank 0 alone grants, resumes and admits; the others
learn what its `pop_transferred` returned, batch for batch, from a log in shared memory, so no collective is needed to
agree (B8). See `allocator/ranklog.py` for the log and `pipeline/ranks/follower.py` for the other end.

    library thread                                          caller's thread
    request ended -> placed in shared memory, if it         pop_transferred: one batch into each rank's log,
                     is not there already                   then to the caller
                  -> room claimed in every rank's log ---->
    memory free again  <-- released by rank 0, and by every rank that was told of it and lives

A rank that is slow, or never comes, holds nobody up but by what it occupies, and that is bounded. A request that finds
no room, in memory or in a log, waits until its own deadline. Then it fails and names the rank that holds the memory; a
rank whose log is still full is cut off: its log ends there, always at a whole batch, and the others go on. Waiting
comes first, because a step of the model needs all ranks anyhow; and as a rank is cut off rather than passed over, what
it has seen is always what rank 0 did, up to some point.

Requests are received straight into shared memory, each in one piece. Where no piece is large enough (the space is in
fragments, or the oldest request exceeds the limit so that it need not wait), the rows land in private memory and are
copied once more at the end.
"""

from __future__ import annotations

import logging
import math
import os
import select
from collections import deque
from collections.abc import Callable

from embridge.allocator import ranklog
from embridge.allocator._core import Mapping, Producer
from embridge.allocator.errors import AttachError, FailureCode, failure
from embridge.allocator.layout import PAGE_BYTES
from embridge.allocator.ranklog import Item, RankLog, RankLogLayout, RankState, format_log, pack_batch
from embridge.allocator.segment import create_segment, map_segment
from embridge.pipeline.arguments import is_time
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.leaving import let_go, refuse
from embridge.pipeline.ranks.shared_memory import CLOSED, Hold, SharedMemory
from embridge.pipeline.scheduler.delivery import Delivery
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.workers import run_socket
from embridge.workers.run_socket import Accepted, Lead
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

LEAD_TIMEOUT_S = 10.0


class Ranks(Delivery):
    """The other ranks of a client that was attached with `num_ranks`. `memory` is where its requests are received."""

    memory: SharedMemory

    def __init__(self, attachment: Attachment, num_ranks: int, group: str) -> None:
        """Make the segments, and leave them with the node for the other ranks.

        Raises:
            AttachError: the node refuses, or descriptors are short; this group has a rank 0 already.
            SegmentError: /dev/shm has no room.
        """
        self._attachment = attachment
        self._layout = RankLogLayout(
            num_ranks=num_ranks, num_entries=ranklog.NUM_ENTRIES, ring_records=ranklog.RING_RECORDS
        )
        self.group = group
        self.log: RankLog
        self._fds: list[int] = []
        self._taken = False
        self._rows: Mapping | None = None
        try:
            self._make(attachment)
            self._announce(attachment)
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
        """Batches that rank 0 has popped.

        Followers count the same way: where ranks act in step, rank 0 says which one a step is about.
        """

    def _make(self, attachment: Attachment) -> None:
        remedy = "lower host_buffer_bytes"
        limit_bytes = attachment.settings["host_buffer_bytes"]
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
        format_log(mapping, self._layout, attachment.geometry, rows_bytes, os.getpid())
        self.log = RankLog(mapping, bells)
        self._rows = map_segment(rows_fd.fd, rows_bytes)
        self.memory = SharedMemory(attachment.geometry, limit_bytes, self.log, self._rows)

    def _announce(self, attachment: Attachment) -> None:
        """Leave the descriptors with the run socket's server, where the others find them."""
        sock = attachment.connection
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
            raise AttachError(f"node in {attachment.run_dir}: refused this process as rank 0: {error}") from error

    @property
    def num_ranks(self) -> int:
        """How many ranks there are, with this one."""
        return self.log.num_ranks

    def states(self) -> dict[int, str]:
        """What has become of each other rank: awaited, joined, left, or cut off.

        Raises RuntimeError once the client is closed.
        """
        return {
            rank: "cut off" if self.log.is_cut(rank) else self.log.state(rank).name.lower()
            for rank in self.log.followers
        }

    def take(self) -> None:
        """Note that a transfer queue hands over what it receives through these ranks.

        Raises:
            ValueError: another queue does; there is one order, so there is one queue.
        """
        if self._taken:
            raise ValueError(
                "TransferQueue: this client's ranks follow another one already; use one queue a client with ranks"
            )
        self._taken = True

    def __len__(self) -> int:
        return len(self._waiting)

    # ---- the library thread

    def enter(self, request: EmbeddingRequest) -> None:
        """Take in a request that has ended, one way or the other; `turn` passes it on."""
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
        """Whether a request has its memory and its room in the logs.

        At its deadline it has to go, and this says how.
        """
        expired = self._attachment.clock() >= self._deadline_ns(request)
        num_records = Item(room=0, ticket=0, reason=request.failure.reason if request.failure else "").num_records
        full = [rank for rank in self._open() if self._room(rank) < num_records]
        if full and not expired:
            return False
        hold = None
        if request.failure is None:
            assert request.record.rows is not None
            hold = self.memory.place(request.record.rows, request.total_embedding_length)
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
                request.record.rows = hold.rows
        for rank in full:
            self._cut_off(rank)
        self._holds[request] = hold
        self._claimed_records += num_records
        return True

    def _deadline_ns(self, request: EmbeddingRequest) -> int:
        timeout_s = request.timeout_s
        # it was refused for that, and is still to be passed on
        if not is_time(timeout_s) or not math.isfinite(timeout_s):
            timeout_s = self._attachment.request_timeout_s
        return int((request.record.added_s + float(timeout_s)) * NS)

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
        log.warning(
            "%s left its log full until a request's deadline; nothing more is logged for it", self.memory.named(rank)
        )

    # ---- the caller's thread

    def publish(self, finished: list[EmbeddingRequest], failed: list[EmbeddingRequest]) -> None:
        """Log what `pop_transferred` is about to return, as one batch."""
        items, holds = [], []
        for request in (*finished, *failed):
            hold = self._holds.pop(request)
            items.append(_item(request, hold))
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

    # ---- the end

    def close(self) -> None:
        """Let go of memory and descriptors.

        The run socket's server tells the others when the client's connection has ended.
        """
        while self._fds:
            os.close(self._fds.pop())
        if "memory" in vars(self):
            self.memory.end()
        if isinstance(vars(self).get("log"), RankLog):
            self.log.close()
        rows, self._rows = self._rows, None
        if rows is not None and self._attachment.is_forked:
            rows.close()
        elif rows is not None:
            let_go(rows, "results of all ranks", f"rank 0 of {self._attachment.run_dir}")
        refuse(self, CLOSED, ("log", "_producers"))

    def abandon(self) -> list[EmbeddingRequest]:
        """Give up the requests that wait for the other ranks, because the client leaves. Returns them."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._holds.clear()
        return waiting


def _item(request: EmbeddingRequest, hold: Hold | None) -> Item:
    """What the others read of a request that is handed over."""
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
