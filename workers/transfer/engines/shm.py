"""Rows to a peer on this host: its payload segment, mapped here, and a copy without the GIL.

A peer is on this host if connecting to its run socket works. Its launcher keeps the connection and a pidfd of this
process: when the process is dead it cannot write any more, so for this engine a death is a fence, and no attempt lands
late (R12).
"""

from __future__ import annotations

import logging
import os
import socket
from array import array
from dataclasses import dataclass
from itertools import chain

from embridge.allocator._core import Mapping, copy
from embridge.allocator.errors import AttachError, SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.segment import map_segment
from embridge.allocator.sessions import LiveSession
from embridge.workers import descriptors, run_socket
from embridge.workers.transfer.engines.base import Engine, EngineError, Moves, Outcome, OwnShortage

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Door:
    """A peer's run socket, and its payload once the answer is there."""

    sock: socket.socket
    node: tuple[int, int]  # its id and incarnation: another one may have its entry by now
    payload: Mapping | None = None


def knock(record: PeerRecord, hello: run_socket.PeerHello | run_socket.ReaderHello) -> socket.socket:
    """Ask a peer on this host for its payload, at its run socket. Returns the connection, which does not block.

    Raises:
        BlockingIOError: its backlog is full; knock again.
        OwnShortage: there is no socket to be had.
        EngineError: it cannot be reached; the text says why.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise OwnShortage(f"no socket for {record}: {descriptors.shortage(error) or error}") from error
    try:
        sock.connect(record.offer)
        _, uid = run_socket.peer_credentials(sock)
        if uid != os.geteuid():
            raise PermissionError(f"it belongs to user {uid}, this process to {os.geteuid()}")
        run_socket.send_frame(sock, hello)
    except BlockingIOError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise EngineError(
            f"{record} is not reachable through shared memory: {record.offer or 'no run socket'}: {error}"
        ) from error
    return sock


class ShmEngine:
    """The engine for peers on this host."""

    name = "shm"
    late_writes = False

    def __init__(self, payload: Mapping, shelf: Mapping | None, node_id: int, incarnation: int) -> None:
        self._payload = payload
        self._shelf = shelf
        self._node_id = node_id
        self._incarnation = incarnation
        self._doors: dict[int, _Door] = {}
        self._done: set[int] = set()
        self._ticket = 0

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        door = self._doors.get(peer)
        if door is not None and door.node != (record.node_id, record.incarnation):
            self.close(peer)
            door = None
        if door is None:
            try:
                door = self._doors[peer] = self._knock(record)
            except BlockingIOError:  # the door's backlog is full; the next look knocks again
                return False
        if door.payload is None:
            try:
                self._answer(door, record)
            except (EngineError, SegmentError):
                self.close(peer)
                raise
        return door.payload is not None

    def _knock(self, record: PeerRecord) -> _Door:
        hello = run_socket.PeerHello(
            run_socket.PROTOCOL_VERSION, self._node_id, self._incarnation, record.incarnation
        )
        return _Door(knock(record, hello), (record.node_id, record.incarnation))

    def _answer(self, door: _Door, record: PeerRecord) -> None:
        try:
            welcome, fds = run_socket.receive_welcome(door.sock)
        except BlockingIOError:
            return
        except (OSError, AttachError) as error:
            raise EngineError(f"{record} did not hand over its payload: {error}") from error
        try:
            door.payload = map_segment(fds["payload"], welcome.payload_bytes, alignment=HUGE_PAGE_BYTES)
        finally:
            for fd in fds.values():
                os.close(fd)
        log.info("mapped the payload of %s: %d bytes", record, welcome.payload_bytes)

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        payload = self._doors[peer].payload
        assert payload is not None
        source, behind = self._payload, self._payload.size
        if self._shelf is not None and moves[0][1] >= behind:
            source, moves = self._shelf, [(there, here - behind, size) for there, here, size in moves]
        copy(payload, source, array("q", chain.from_iterable(moves)), len(moves))
        self._ticket += 1
        self._done.add(self._ticket)
        return self._ticket

    def poll(self, ticket: int) -> Outcome:
        self._done.remove(ticket)
        return Outcome.DONE

    def close(self, peer: int) -> None:
        door = self._doors.pop(peer, None)
        if door is not None:
            door.payload = None
            door.sock.close()

    def wear(self) -> str:
        return ""


class SharedMemory(Engine):
    """Offered with the path of the run socket; an encode node takes it where that answers."""

    name = "shm"
    number = 1
    title = "shared memory"
    is_local = True
    is_automatic = True
    has_sessions = False
    writes_to_stderr = False

    def why_unavailable(self) -> str:
        return ""

    def offer(self, run_socket: str) -> str:
        return run_socket

    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        return "" if offer else "it has no run socket"

    def make_writer(
        self, payload: Mapping, shelf: Mapping | None, *, node_id: int, incarnation: int, host: str, settings: object
    ) -> ShmEngine:
        return ShmEngine(payload, shelf, node_id, incarnation)


SHARED_MEMORY = SharedMemory()
