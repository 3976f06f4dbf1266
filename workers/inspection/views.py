"""Views: what can be seen of one request in its node's control segment, as values. `explain` knows no more of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from embridge.allocator.claims import HELD, ClaimState
from embridge.allocator.records import WrittenBy
from embridge.allocator.status import TERMINAL


class Actor(NamedTuple):
    """Who may owe a step: a process of this node, a client, or another node.

    `trouble` says why the actor cannot take a step, as far as that can be seen, and `trouble_ns` since when; it is
    empty where the actor seems well.
    """

    name: str
    pid: int = 0
    trouble: str = ""
    trouble_ns: int = 0

    def __str__(self) -> str:
        return f"{self.name} pid {self.pid}" if self.pid else self.name


NOBODY: Final = Actor("nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationView:
    """Encode side: one destination of a request. Rows are counted from 0, times are monotonic ns."""

    node: Actor
    is_lost: bool = False  # the node is dead, or has registered anew since
    sent: int = 0
    granted: int = 0
    issued: int = 0
    staged: int = 0  # the row to which source blocks hold what the destination needs next
    is_fenced: bool = False  # the next block of its window was granted under a session that is over
    failing_ns: int = 0
    is_closed: bool = False
    written_by: WrittenBy = WrittenBy.WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """What both sides see of a request. `moved_ns`: when one of its watermarks or its phase moved last."""

    now_ns: int
    room: int
    phase: int = 0
    sent: int = 0
    total: int = 0  # 0: not known yet
    ready: int = 0
    granted: int = 0
    opened_ns: int = 0
    deadline_ns: int = 0
    moved_ns: int = 0
    ended_ns: int = 0
    has_failure: bool = False  # a process has claimed the reason
    failure: str = ""
    is_cleared: bool = False
    is_client_gone: bool = False
    is_untold: bool = False  # only its client knows of it
    waits_for_block: bool = False  # a request of this client waits for one
    free_blocks: int = 0
    held: str = "no other request holds any"  # which request holds most of the blocks, as text
    client: Actor = NOBODY
    bootstrap: Actor = NOBODY
    poller: Actor = NOBODY
    worker: Actor = NOBODY

    @property
    def has_ended(self) -> bool:
        return self.phase >= TERMINAL

    @property
    def is_late(self) -> bool:
        return self.now_ns >= self.deadline_ns

    @property
    def length(self) -> str:
        return f"{self.total}" if self.total else "an unknown number of"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeView(RequestView):
    """A request on the encode side."""

    required: int = 0  # destinations; 0 before the first init
    destinations: tuple[DestinationView, ...] = ()
    is_quiet: bool = False  # its worker has said that no attempt of the request is under way

    @property
    def slowest(self) -> DestinationView:
        """The destination that is furthest behind."""
        return min(self.destinations, key=lambda d: d.sent)

    @property
    def movable(self) -> int:
        """The row to which the slowest destination could be served."""
        return min(self.ready, self.slowest.granted)

    @property
    def num_inits(self) -> int:
        return len(self.destinations)

    @property
    def waiting(self) -> list[DestinationView]:
        """The destinations that have not acknowledged the end."""
        return [d for d in self.destinations if not d.is_closed and not d.is_lost]

    @property
    def absent(self) -> Actor:
        return Actor("language node")

    @property
    def other(self) -> Actor:
        return self.slowest.node

    @property
    def not_closed(self) -> Actor:
        return self.waiting[0].node

    @property
    def failing_ns(self) -> int:
        return self.slowest.failing_ns

    @property
    def written_by(self) -> WrittenBy:
        """Who writes the rows of the slowest destination."""
        return self.slowest.written_by


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageView(RequestView):
    """A request on the language side. `other` is its encode node."""

    required: int = 1
    other: Actor = NOBODY
    has_peer: bool = False  # the handshake is done
    is_peer_lost: bool = False
    has_asked: bool = False  # its client has granted, if only no blocks
    has_engine: bool = True  # there is a session to grant under, or the engine needs none
    is_contacted: bool = False
    is_heard: bool = False
    is_whole: bool = False  # all rows are written, and its encode side decides how it ends (R36)
    is_acked: bool = False  # no other process will write into its blocks any more
    block_size: int = 1
    granted_blocks: int = 0
    known_blocks: int = 0  # how many of the granted blocks the encode side has said that it knows
    drained_blocks: int = 0
    is_lent: bool = False  # its scheduler has views of its blocks
    quarantined_blocks: int = 0  # of the node
    fence: str = ""  # under which sessions the blocks are in quarantine, as text
    fencing: Actor = NOBODY  # the worker whose end frees most of the quarantined blocks
    holder: Actor = NOBODY  # the client that holds most of the blocks
    launcher: Actor = NOBODY
    claim: ClaimState = ClaimState.SHUT
    writer: Actor = NOBODY  # who holds the claim
    is_writer_gone: bool = False  # the holder of the claim is dead
    own_quarantined_blocks: int = 0  # of the request

    @property
    def drained(self) -> int:
        """Rows whose blocks were given back."""
        return min(self.drained_blocks * self.block_size, self.sent)

    @property
    def is_held(self) -> bool:
        """Whether a process of the encode node's host writes the rows itself at this moment."""
        return self.claim in HELD

    @property
    def has_all_blocks(self) -> bool:
        """Whether no row of the request waits for a drain: what has landed may stay in its blocks (R35)."""
        return 0 < self.total <= self.granted

    @property
    def wanted_blocks(self) -> str:
        """How many blocks the request lacks."""
        return f"{-(-self.total // self.block_size) - self.granted_blocks}" if self.total else "more"
