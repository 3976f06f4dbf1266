"""What a transfer worker asks of an engine.

An engine moves bytes from this node's payload segment into a peer's. It decides nothing: which rows, into which blocks,
and what a failure means is the worker's. *Done* means applied at the destination (R13).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from embridge.allocator._core import Mapping
from embridge.allocator.errors import EmbridgeError
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.sessions import LiveSession
from embridge.workers.engine_kind import EngineKind

Moves = list[tuple[int, int, int]]
"""Copies, each as (offset in the peer's payload, offset in our memory, bytes).

Our memory is our payload, and behind its last byte the shelf, where this node has one; each attempt is of one of them.
"""


class EngineError(EmbridgeError):
    """A peer cannot be reached with this engine, or a write was refused; the text says why and what to do."""


class OwnShortage(EngineError):
    """This process has run out of something: no peer is to blame, and a new process in its place has it again."""


class NoAnswer(EngineError):
    """A peer does not answer yet. Who has asked for `patience_ns` need wait no longer; who came later has as long."""

    def __init__(self, reason: str, patience_ns: int) -> None:
        super().__init__(reason)
        self.patience_ns = patience_ns


class Outcome(Enum):
    """How an attempt stands. After FAILED it may still land, unless the engine says that its writes end with it."""

    PENDING = 0
    DONE = 1
    FAILED = 2


class TransferEngine(Protocol):
    """One per transfer worker; not shared."""

    name: str
    late_writes: bool
    """Whether an attempt that ended other than done may still read and write.

    Then grants name the session that they are for, what it may have written is quarantined until that session is
    fenced, and what it may still read is kept until this engine has ended (R8).
    """

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        """Make a peer's session writable; True when it is. Never blocks: False means ask again.

        Raises:
            EngineError: it cannot be reached this way. A later call tries again (D3).
            NoAnswer: it does not answer, and has not for so long; each call tries again.
            OwnShortage: that is this process's own trouble.
        """
        ...

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        """Start one attempt; returns its ticket.

        Only to a session that is open. What it raises says that nothing was begun.
        """
        ...

    def poll(self, ticket: int) -> Outcome:
        """How an attempt stands.

        A terminal answer is given once, and given at latest when the engine's own deadline has passed.
        """
        ...

    def close(self, peer: int) -> None:
        """The peer is gone; what it had mapped or opened is let go."""
        ...

    def wear(self) -> str:
        """Why the process had better begin anew, though all goes well; empty while it need not. Asked once a second."""
        ...


class SessionEngine(Protocol):
    """The language side of an engine with sessions: peers write through it.

    It ends with its process, and its session with it.
    """

    port: int
    """At which peers reach it, on the host that this node binds."""


class Engine(EngineKind):
    """An engine that transfer workers can run. Their `settings` are a `settings_class`, None for an engine without."""

    @abstractmethod
    def make_writer(
        self, payload: Mapping, shelf: Mapping | None, *, node_id: int, incarnation: int, host: str, settings: object
    ) -> TransferEngine:
        """The engine of one transfer worker of an encode node, which has this payload, perhaps a shelf, and binds this
        host.

        Raises:
            LaunchError: it does not start; the text says what to do.
        """

    def make_session_engine(
        self, payload: Mapping, *, host: str, settings: object, take_port: Callable[[int], bool]
    ) -> SessionEngine:
        """The engine of one transfer worker of a language node (`has_sessions` only).

        Peers may write through it into this payload at once. `take_port(port)` is False for a port that an earlier
        session had; this one must have another.

        Raises:
            LaunchError: it does not start; the text says what to do.
        """
        raise NotImplementedError(f"{self.name} has no sessions")
