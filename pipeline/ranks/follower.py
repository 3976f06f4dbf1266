"""`follow()`: be one more rank of a language node, and get what rank 0 gets, without a copy and without asking anybody.

Rank 0 decides. A follower pops the batches that rank 0 popped, in the same order, with the same requests in each, from
a log in shared memory; the rows are views of the memory into which they were received. It has no thread of its own,
opens no request and grants nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from embridge.allocator._core import Mapping
from embridge.allocator.errors import AttachError, NodeGoneError, SegmentError, TransferError, failure
from embridge.allocator.geometry import Geometry
from embridge.allocator.ranklog import MAX_RANKS, Item, RankLog, unpack_batch
from embridge.allocator.segment import map_segment
from embridge.pipeline.arguments import whole
from embridge.pipeline.join import JOIN_TIMEOUT_S, knock, once_up, place_of
from embridge.pipeline.leaving import let_go, refuse
from embridge.pipeline.quiet_torch import quieten_torch
from embridge.pipeline.scheduler.host_memory import HostRows
from embridge.pipeline.scheduler.request import EmbeddingResult
from embridge.workers import run_socket
from embridge.workers.run_socket import Follow
from embridge.workers.timing import NS

FOR_EVER_S: Final = 1e9
SLOW_LOOK_NS = NS // 10
FIRST_LOOK_RECORDS = 64
CLOSED = "this follower is closed"
FORKED = "this follower joined before a fork; follow() again in the child"

_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


@dataclass(eq=False, kw_only=True)
class FollowedRequest:
    """What rank 0 popped. Finished: `result`, whose tensors are views of shared memory; failed: `failure`.

    The tensors are read-only: writing into them is a segmentation fault. They are valid until `release()`; without it,
    this rank holds the memory until the last of them is gone.
    """

    room: int
    total_embedding_length: int = 0
    result: EmbeddingResult | None = None
    failure: TransferError | None = None
    _end: Any = field(default=None, repr=False)

    def release(self) -> None:
        """Give the rows up; `result` is gone after that. A second call does nothing."""
        self.result = None
        if self._end is not None:
            self._end()


def follow(
    run_dir: str | Path | None = None,
    *,
    rank: int,
    group: str = "",
    role: str = "language",
    timeout_s: float | None = 60.0,
) -> Follower:
    """Join the node that runs in `run_dir` as one more rank.

    Rank 0 is the process that called `attach(run_dir, num_ranks=...)` there. Either may come first, and before the
    node: until rank 0 is there, this waits for `timeout_s` seconds, or without a deadline (None).

    Raises:
        AttachError: neither node nor rank 0 has come in time, or the rank is taken, or has left before.
        SegmentError: what was handed over is not of this version.
        ValueError: `rank` or `timeout_s` is out of range, or `role` is none.
    """
    rank = whole("rank", rank, 1, MAX_RANKS - 1, f"1 to {MAX_RANKS - 1}; rank 0 calls attach(run_dir, num_ranks=...)")
    path = place_of(run_dir, role)
    return once_up(lambda: Follower(path, rank, group), FOR_EVER_S if timeout_s is None else timeout_s)


class Follower:
    """One more rank. Close it, or use it as a context manager; what it holds goes back to rank 0 then."""

    def __init__(self, run_dir: Path, rank: int, group: str) -> None:
        self.run_dir = run_dir
        self.rank = rank
        self._closed = ""  # why it is
        self._sock, welcome, fds = knock(run_dir, Follow(run_socket.PROTOCOL_VERSION, group, rank), JOIN_TIMEOUT_S)
        self._sock.setblocking(False)
        self._event_fd = fds.pop("bell")
        try:
            self._log = RankLog(map_segment(fds["log"], welcome.control_bytes), {rank: self._event_fd})
            self._num_ranks, self._geometry = self._log.num_ranks, self._log.geometry
            self._rows: Mapping = _map_read_only(fds["rows"], welcome.payload_bytes)
            self._consumer = self._log.consumer(rank)
            self._wake_fd = select.epoll()
            self._wake_fd.register(self._event_fd, select.EPOLLIN)
            self._wake_fd.register(self._sock, select.EPOLLIN)
        except BaseException as error:
            os.close(self._event_fd)
            self._sock.close()
            self._let_go(CLOSED)
            if isinstance(error, OSError):
                raise AttachError(
                    f"node in {run_dir}: rank {rank} cannot wait for it: {error.strerror}; raise `ulimit -n`"
                ) from error
            raise
        finally:
            for fd in fds.values():
                os.close(fd)
        self._bell = self._log.bell(rank)
        self._seen = -1
        self._slow_ns = 0
        self._gone = ""
        self.num_batches = 0
        """Batches popped so far: as many as rank 0 had popped when it popped the last of these."""
        quieten_torch()
        _followers.add(self)

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    @property
    def geometry(self) -> Geometry:
        """Shapes and dtype of the results."""
        return self._geometry

    # ---- what rank 0 has popped

    def poll(self) -> bool:
        """Whether a batch is there to be popped; never blocks.

        Raises:
            NodeGoneError: none is, and none will come: rank 0 or the node is gone, or this rank was cut off.
            RuntimeError: after `close()`, or in a forked child.
        """
        self._check_usable()
        self._seen = self._bell.sequence()
        if self._consumer.pending():
            return True
        gone = self._gone or self._look_for_the_end()
        if gone and not self._consumer.pending():  # once more: the end may have come after the last of the log
            raise NodeGoneError(gone)
        return bool(gone)

    def pop_transferred(self) -> tuple[list[FollowedRequest], list[FollowedRequest]]:
        """(finished, failed): one batch, exactly what one call of rank 0's `pop_transferred` returned.

        Both lists are empty if no batch is there. Raises as `poll` does.
        """
        if not self.poll():
            return [], []
        items = self._next_batch()
        finished = [self._finished(item) for item in items if not item.code]
        failed = [
            FollowedRequest(
                room=item.room,
                total_embedding_length=item.total_tokens,
                failure=failure(item.code, item.reason, item.room),
            )
            for item in items
            if item.code
        ]
        self.num_batches += 1
        return finished, failed

    def _next_batch(self) -> list[Item]:
        items, count = unpack_batch(self._consumer.peek_bytes(FIRST_LOOK_RECORDS))
        if not count:
            items, count = unpack_batch(self._consumer.peek_bytes(self._consumer.capacity))
        if not count:
            raise SegmentError(
                "log of the ranks: a batch without an end; rank 0 runs another version, or its memory is damaged"
            )
        self._consumer.commit(count)
        return items

    def _finished(self, item: Item) -> FollowedRequest:
        size = HostRows.size_of(self._log.geometry, item.capacity_tokens)
        if item.total_tokens > item.capacity_tokens or item.offset + size > self._rows.size:
            raise SegmentError(
                f"log of the ranks: room {item.room}: rows outside the {self._rows.size} bytes that are shared"
            )
        # One array a request, under all of its tensors: when the last of them is gone, so is the array, and the hold
        # ends.
        memory = np.frombuffer(self._rows, np.uint8, size, item.offset)
        end = weakref.finalize(memory, _release, self._log, os.getpid(), self.rank, item)
        end.atexit = False
        result = EmbeddingResult(HostRows(self._log.geometry, item.capacity_tokens, memory), item.total_tokens)
        return FollowedRequest(room=item.room, total_embedding_length=item.total_tokens, result=result, _end=end)

    # ---- sleeping, and the end

    def fileno(self) -> int:
        """For the caller's own select or epoll: after `arm()` it becomes readable when a batch comes, or the end.

        Raises RuntimeError after `close()`, and in a forked child: the number may be another file's by now.
        """
        self._check_usable()
        return self._wake_fd.fileno()

    def arm(self) -> bool:
        """Before sleeping on `fileno()`: True when nothing has come since the last `poll()`; False: poll first."""
        self._check_usable()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event_fd)
        return self._seen >= 0 and not self._consumer.pending() and self._bell.arm(self._seen)

    def _look_for_the_end(self) -> str:
        """Why nothing more will be logged for this rank; empty while something may."""
        leader_is_gone, is_cut = self._log.leader_is_gone, self._log.is_cut(self.rank)
        now = time.monotonic_ns()
        if leader_is_gone or is_cut or now >= self._slow_ns:
            self._slow_ns = now + SLOW_LOOK_NS
            if self._has_hung_up():
                self._gone = f"the node in {self.run_dir} is gone; start it and the whole group again"
            elif leader_is_gone:
                self._gone = f"rank 0 (process {self._log.leader_pid}) is gone; start the whole group again"
            elif is_cut:
                self._gone = (
                    f"rank {self.rank} was cut off: it left its log full until a request's deadline, and the others "
                    "went on; close it, and start the whole group again"
                )
        return self._gone

    def _has_hung_up(self) -> bool:
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError(self._closed)

    def close(self) -> None:
        """Leave the group: all that this rank holds goes back, so its tensors must not be read any more.

        What this process had mapped is free afterwards; tensors that are still alive are the only exception, and a
        warning says so.
        """
        self._end(CLOSED)

    def _end(self, why: str) -> None:
        if self._closed:
            return
        self._closed = why
        self._wake_fd.close()
        self._sock.close()
        os.close(self._event_fd)
        _followers.discard(self)
        self._let_go(why)

    def _let_go(self, why: str) -> None:
        log, rows = vars(self).get("_log"), vars(self).get("_rows")  # those that there are, where not all could be made
        refuse(self, why, ("_log", "_rows", "_consumer", "_bell", "_sock", "_wake_fd"))
        if log is not None:
            log.close()
        if rows is not None and why == FORKED:
            rows.close()
        elif rows is not None:
            let_go(rows, "results", f"rank {self.rank} of {self.run_dir}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _release(log: RankLog, pid: int, rank: int, item: Item) -> None:
    """The end of a hold. A forked child has copies of the arrays, but the hold is its parent's."""
    if os.getpid() == pid:
        log.release(rank, item.entry, item.ticket)


def _map_read_only(fd: int, size: int) -> Mapping:
    if os.fstat(fd).st_size < size:
        raise SegmentError(f"rows of the ranks: {os.fstat(fd).st_size} bytes < {size} bytes expected")
    try:
        return Mapping(fd, size, writable=False)
    except OSError as error:
        raise SegmentError(f"rows of the ranks: {size} bytes cannot be mapped: {error.strerror}") from error


def _close_in_child() -> None:
    for follower in list(_followers):
        follower._end(FORKED)


os.register_at_fork(after_in_child=_close_in_child)
