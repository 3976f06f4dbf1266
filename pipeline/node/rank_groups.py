"""The launcher's part in the ranks of a language node: hands rank 0's descriptors to followers, tells deaths.

A group is a rank 0, which is a client with a lane, and the followers that have joined it. The launcher alone sees the
ends of all their processes, whichever dies first: it writes each end into the group's log, and rings the ranks that
sleep.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass

from embridge.allocator.control import Control
from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import Role
from embridge.allocator.ranklog import RankLog, RankState
from embridge.allocator.segment import map_segment
from embridge.workers import run_socket
from embridge.workers.run_socket import Accepted, Follow, Lead, Sorry, Welcome

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Group:
    """A rank 0 and its followers. `fds`: the log, the rows, and an eventfd for each follower, in that order."""

    name: str
    lane: int
    pid: int
    log: RankLog
    log_bytes: int
    fds: list[int]


def descriptors_of(num_ranks: int) -> int:
    """How many descriptors a group takes: log and rows; and for each follower an eventfd, a connection and a pidfd."""
    return 2 + 3 * (num_ranks - 1)


class RankGroups:
    """The groups of one node (launcher only). All groups together may take `descriptors_left` descriptors."""

    def __init__(self, control: Control, descriptors_left: int) -> None:
        self._control = control
        self._descriptors_left = descriptors_left
        self._groups: dict[str, Group] = {}
        self._leaders: dict[socket.socket, Group] = {}
        self._followers: dict[socket.socket, tuple[Group, int]] = {}

    def has(self, sock: socket.socket) -> bool:
        """Whether this connection is a follower's."""
        return sock in self._followers

    def logs(self) -> dict[str, int]:
        """The log of each group, by the group's name, for observers."""
        return {group.name: group.fds[0] for group in self._groups.values()}

    def lead(self, sock: socket.socket, pid: int, lane: int, frame: Lead, fds: list[int]) -> None:
        """Make a client rank 0 of a group; the descriptors stay the caller's.

        Raises OSError where the client cannot be answered.
        """
        reason = self._refusal(sock, frame)
        if not reason:
            try:
                group = self._open(pid, lane, frame, fds)
            except (SegmentError, OSError) as error:
                reason = str(error)
        if reason:
            log.warning("run socket: process %d refused as rank 0: %s", pid, reason)
            run_socket.send_frame(sock, Sorry(reason))
            return
        self._groups[frame.group] = self._leaders[sock] = group
        log.info("process %d is rank 0 of %d (group %r)", pid, group.log.num_ranks, frame.group)
        run_socket.send_frame(sock, Accepted())

    def _refusal(self, sock: socket.socket, frame: Lead) -> str:
        if self._control.role != Role.LANGUAGE:
            return "this is an encode node; ranks receive, so attach them to a language node"
        if sock in self._leaders:
            return f"this client is rank 0 of group {self._leaders[sock].name!r} already"
        if frame.group in self._groups:
            leader = self._groups[frame.group].pid
            return f"process {leader} is rank 0 of group {frame.group!r}; give this group another name"
        return ""

    def _open(self, pid: int, lane: int, frame: Lead, fds: list[int]) -> Group:
        if not fds:
            raise SegmentError("no descriptor came over; raise `ulimit -n` of the node")
        mapping = map_segment(fds[0], frame.log_bytes)
        num_ranks = RankLog(mapping).num_ranks
        if len(fds) != num_ranks + 1:
            raise SegmentError(f"{len(fds)} of {num_ranks + 1} descriptors came over; raise `ulimit -n` of the node")
        taken = sum(descriptors_of(group.log.num_ranks) for group in self._groups.values())
        if taken + descriptors_of(num_ranks) > self._descriptors_left:
            raise SegmentError(
                f"a group of {num_ranks} ranks needs {descriptors_of(num_ranks)} descriptors of the node, "
                f"{max(0, self._descriptors_left - taken)} are left; raise its `ulimit -n`"
            )
        kept: list[int] = []
        try:
            kept += (os.dup(fd) for fd in fds)
        except OSError:
            for fd in kept:
                os.close(fd)
            raise
        bells = dict(zip(range(1, num_ranks), kept[2:], strict=True))
        return Group(frame.group, lane, pid, RankLog(mapping, bells), frame.log_bytes, kept)

    def follow(self, sock: socket.socket, pid: int, frame: Follow) -> None:
        """Let one more rank join. Raises OSError where the process that asks cannot be answered."""
        group = self._groups.get(frame.group)
        if group is None:
            reason = f"no rank 0 leads group {frame.group!r} here; its process calls attach(run_dir, num_ranks=...)"
            run_socket.send_frame(sock, Sorry(reason, later=True))
            return
        ranks = group.log
        if not 1 <= frame.rank < ranks.num_ranks:
            reason = f"rank {frame.rank} is outside 1 to {ranks.num_ranks - 1}"
        elif ranks.state(frame.rank) == RankState.JOINED:
            reason = f"process {ranks.pid(frame.rank)} is rank {frame.rank}"
        elif ranks.state(frame.rank) == RankState.LEFT:
            reason = f"rank {frame.rank} has left, and has missed what came since; start the whole group again"
        elif ranks.is_cut(frame.rank):
            reason = f"rank {frame.rank} came too late: rank 0 has given it up; start the whole group again"
        else:
            self._followers[sock] = (group, frame.rank)
            ranks.join(frame.rank, pid)
            log.info("process %d is rank %d (group %r)", pid, frame.rank, frame.group)
            welcome = Welcome(
                control_bytes=group.log_bytes,
                payload_bytes=ranks.rows_bytes,
                lane=-1,
                descriptors=["log", "rows", "bell"],
                bootstrap_addr="",
                request_timeout_s=0.0,
                settings={},
            )
            run_socket.send_frame(sock, welcome, [*group.fds[:2], group.fds[1 + frame.rank]])
            return
        log.warning("run socket: process %d refused as rank %d: %s", pid, frame.rank, reason)
        run_socket.send_frame(sock, Sorry(reason))

    def gone(self, sock: socket.socket) -> None:
        """A connection has ended: if it was a rank's, say in the log of the group that the rank is gone."""
        if sock in self._followers:
            group, rank = self._followers.pop(sock)
            group.log.leave(rank)
            if self._groups.get(group.name) is group:
                log.info("rank %d (group %r) is gone", rank, group.name)
                self._control.bell(f"library{group.lane}").ring()
        if sock in self._leaders:
            self._end(self._leaders.pop(sock))

    def _end(self, group: Group) -> None:
        log.info("rank 0 (group %r) is gone", group.name)
        del self._groups[group.name]
        group.log.end()
        for fd in group.fds:
            os.close(fd)

    def close(self) -> None:
        """End all groups, as the node stops."""
        for group in self._leaders.values():
            self._end(group)
        self._leaders.clear()
        self._followers.clear()
