"""The engine of a simulated transfer worker."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embridge.allocator.claims import NOBODY, WriterId
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.sessions import LiveSession
from embridge.workers.transfer.attempt import WINDOW_COPIES
from embridge.workers.transfer.engines.base import EngineError, Moves, Outcome

if TYPE_CHECKING:
    from support.simulation.node import SimulatedNode

Piece = tuple[int, int, int]  # offset there, offset here, bytes


class Late(NamedTuple):
    """A write that was given up and may land: read from its engine's payload then, or, if that has died, as it was read
    before.
    """

    target: SimulatedNode
    session: int
    to: int
    engine: SimulatedEngine | None
    start: int
    size: int
    data: bytes = b""


class SimulatedEngine:
    """Copies between the payloads of two nodes, in as many polls as the seed says, and checks every block that it
    writes (P7).

    As shared memory it ends with its process, and so do its attempts. As a network (`world.late_writes`) it writes into
    a session of its peer; what an attempt that failed has not written yet it may still read and write for as long as it
    lives, and what a dead one had in its connections may land as long as the session lives.
    """

    name = "simulated"
    worn = ""

    def __init__(self, node: SimulatedNode, *, late_writes: bool = False) -> None:
        self.late_writes = late_writes
        self._node = node
        self._world = node.world
        self._targets: dict[int, tuple[SimulatedNode, WriterId]] = {}  # peer -> (node, what we are there)
        self._attempts: dict[int, tuple[SimulatedNode, int, deque[Piece], bool]] = {}
        self._ticket = 0

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        if peer in self._targets and self._targets[peer][0].control.incarnation == record.incarnation:
            return True
        self.close(peer)
        if self.late_writes:
            return self._open_session(peer, record, session)
        target = self._world.node_at(record.offer)
        if target is None or target.control.incarnation != record.incarnation:
            raise EngineError(f"{record} is not reachable")
        if self._world.chance(0.3):  # its answer is not there yet
            return False
        own = self._node.control
        writer = target.control.writers.add(ForeignWriter(own.node_id, own.incarnation, 1))
        assert writer is not None
        self._targets[peer] = (target, writer)
        return True

    def _open_session(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        role = self._world.role_at(record.bootstrap_addr)
        if role is None or not role.node.is_in_session(session.number) or self._world.chance(0.3):
            return False
        self._targets[peer] = (role.node, NOBODY)
        return True

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        target, _ = self._targets[peer]
        self._ticket += 1
        fails = self._world.chance(self._world.faults.failed_attempt)
        pieces = deque(moves)
        self._attempts[self._ticket] = (target, session.number, pieces, fails)
        under_way = sum(len(held) for there, _, held, _ in self._attempts.values() if there is target)
        assert len(self._attempts) == 1 or under_way <= WINDOW_COPIES, "more is under way to one peer than may be"
        self._world.note(f"{self._node.name} engine: attempt {self._ticket} of {len(pieces)} moves to {target.name}")
        return self._ticket

    def poll(self, ticket: int) -> Outcome:
        target, session, pieces, fails = self._attempts[ticket]
        if self.late_writes and not target.is_in_session(session):
            return self._end(ticket, "its session is gone")
        several = 1 + int(self._world.chance(self._world.faults.slow_attempt)) * 4
        for _ in range(-(-len(pieces) // several)):
            to, start, size = pieces.popleft()
            target.write(to, self.read(start, size))
            if self._world.chance(self._world.faults.damage):
                target.damage(to + self._world.rng.randrange(size))
        if fails and self._world.chance(0.5):
            if self.late_writes:
                self._world.late += [Late(target, session, to, self, start, size) for to, start, size in pieces]
            return self._end(ticket, "it fails")
        if pieces:
            return Outcome.PENDING
        del self._attempts[ticket]
        return Outcome.DONE

    def _end(self, ticket: int, why: str) -> Outcome:
        del self._attempts[ticket]
        self._world.note(f"{self._node.name} engine: attempt {ticket} FAILED: {why}")
        return Outcome.FAILED

    def read(self, start: int, size: int) -> bytes:
        """Of the payload, or of the shelf behind it."""
        node, behind = self._node, start - self._node.payload.size
        if node.shelf is not None and behind >= 0:
            return np.frombuffer(node.shelf, np.uint8, size, behind).tobytes()
        return np.frombuffer(node.payload, np.uint8, size, start).tobytes()

    def close(self, peer: int) -> None:
        if peer in self._targets:
            target, writer = self._targets.pop(peer)
            if writer != NOBODY:
                target.writer_gone(writer)

    def wear(self) -> str:
        return self.worn

    def shutdown(self) -> None:
        """Its process ends: it reads nothing any more; about half of what it had yet to write is in its connections,
        and lands.
        """
        for peer in list(self._targets):
            self.close(peer)
        if not self.late_writes:
            return
        world = self._world
        for target, session, pieces, _ in self._attempts.values():
            world.late += [Late(target, session, to, self, start, size) for to, start, size in pieces]
        self._attempts.clear()
        ours = [late for late in world.late if late.engine is self]
        world.late = [late for late in world.late if late.engine is not self]
        for late in ours:
            if world.chance(0.5):
                world.late.append(late._replace(engine=None, data=self.read(late.start, late.size)))
