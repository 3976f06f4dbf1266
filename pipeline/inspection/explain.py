"""Why a request does not move: who owes its next step, what that step is, and since when it is owed.

`explain` is a function of what is seen of one request in its node's control segment (`EncodeView`, `LanguageView`), and of nothing else.
It is two tables, one a side, of lines that are tried from the top; the first that applies is the answer. A line says who owes the step,
and through which processes of this node it has to go: if one of them is in trouble (stopped, silent, being restarted), that one is
named, with its trouble first.

Nothing here decides anything in a node: it is for people, who see words that others are changing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from embridge.allocator.status import TERMINAL, Phase


class Actor(NamedTuple):
    """Somebody who may owe a step: a process of this node, its client, or another node.

    `trouble`: why it cannot take one, as far as that can be seen, since `trouble_ns`; empty where it seems well.
    """

    name: str
    pid: int = 0
    trouble: str = ""
    trouble_ns: int = 0

    def __str__(self) -> str:
        return f"{self.name} pid {self.pid}" if self.pid else self.name


class Explanation(NamedTuple):
    """Who owes the next step of a request, which one it is, and since when (monotonic ns). `line`: the table's name for it."""

    process: Actor
    reason: str
    since_ns: int
    line: str


NOBODY: Final = Actor("nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationView:
    """Encode side: one destination of a request. Rows are counted from 0, times are monotonic ns."""

    node: Actor
    is_lost: bool = False  # dead, or it has registered anew since
    sent: int = 0
    granted: int = 0
    issued: int = 0
    staged: int = 0  # the row to which source blocks hold what it needs next
    is_fenced: bool = False  # the block it needs next was granted under a session that is over
    failing_ns: int = 0
    is_closed: bool = False


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
    has_failure: bool = False  # somebody has claimed the reason
    failure: str = ""
    is_cleared: bool = False
    is_client_gone: bool = False
    waits_for_block: bool = False  # some request of this client does
    free_blocks: int = 0
    held: str = "no other request holds any"  # who holds most of the blocks
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
    is_quiet: bool = False  # its worker has said that nothing of it is under way

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
        """Those that have not acknowledged the end."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageView(RequestView):
    """A request on the language side. `other` is its encode node."""

    required: int = 1
    other: Actor = NOBODY
    has_peer: bool = False  # the handshake is done
    is_peer_lost: bool = False
    has_asked: bool = False  # its client has granted, if only no blocks
    has_engine: bool = True  # there is a session to grant under, or none is needed
    is_contacted: bool = False
    is_heard: bool = False
    is_acked: bool = False  # nobody will write into its blocks any more
    block_size: int = 1
    granted_blocks: int = 0
    known_blocks: int = 0  # of these the encode side has said that it knows
    drained_blocks: int = 0
    quarantined_blocks: int = 0  # of the node
    fence: str = ""  # under which sessions
    fencing: Actor = NOBODY  # whose end frees most of them
    holder: Actor = NOBODY  # the client that holds most of the blocks
    launcher: Actor = NOBODY

    @property
    def drained(self) -> int:
        """Rows whose blocks were given back."""
        return min(self.drained_blocks * self.block_size, self.sent)

    @property
    def wanted_blocks(self) -> str:
        """How many blocks it lacks."""
        return f"{-(-self.total // self.block_size) - self.granted_blocks}" if self.total else "more"


class Line(NamedTuple):
    """One line of a table. `who`, `since` and `through` name attributes of the view, `why` is formatted with it as `v`."""

    name: str
    applies: Callable[[Any], bool]
    who: str
    why: str
    since: str = "moved_ns"
    through: tuple[str, ...] = ()


_BOTH: Final = (
    Line(
        "client gone",
        lambda v: not v.has_ended and v.is_client_gone,
        "poller",
        "the client that opened it is gone; the request has to be ended as Failed",
    ),
    Line("failed", lambda v: not v.has_ended and v.has_failure, "poller", "the failure has to be published: {v.failure}"),
    Line("late", lambda v: not v.has_ended and v.is_late, "poller", "its deadline has passed; it has to be ended", "deadline_ns"),
)

_RELEASE: Final = Line(
    "release",
    lambda v: True,
    "bootstrap",
    "the request has ended for everybody; its slot has to be released",
    "ended_ns",
    ("poller",),
)

ENCODE: Final = (
    *_BOTH,
    Line(
        "no init",
        lambda v: not v.has_ended and not v.destinations,
        "absent",
        "no init came; its scheduler has not asked this node for the room ({v.ready} of {v.length} rows are ready)",
        "opened_ns",
        ("bootstrap",),
    ),
    Line(
        "inits missing",
        lambda v: not v.has_ended and v.num_inits < v.required,
        "absent",
        "{v.num_inits} of {v.required} inits came",
        through=("bootstrap",),
    ),
    Line(
        "destination lost",
        lambda v: not v.has_ended and any(d.is_lost for d in v.destinations),
        "poller",
        "a destination is lost; the request has to be ended as Failed",
    ),
    Line(
        "delivered",
        lambda v: not v.has_ended and v.total and v.slowest.sent >= v.total,
        "poller",
        "every row is delivered; Success has to be published",
    ),
    Line(
        "encode",
        lambda v: not v.has_ended and v.slowest.sent >= v.ready,
        "client",
        "it has to embed more: {v.ready} of {v.length} rows are ready, all sent",
    ),
    Line(
        "grant",
        lambda v: not v.has_ended and v.slowest.sent >= v.slowest.granted,
        "other",
        "it has to grant more: {v.slowest.granted} rows are granted, all sent, {v.ready} are ready (its pool: unknown here)",
        through=("bootstrap",),
    ),
    Line(
        "writes fail",
        lambda v: not v.has_ended and v.slowest.failing_ns,
        "worker",
        "every write to {v.other} fails; it tries again",
        "failing_ns",
    ),
    Line(
        "fenced",
        lambda v: not v.has_ended and v.slowest.is_fenced,
        "other",
        "the session of its grant is fenced; it has to grant its window anew",
        through=("bootstrap",),
    ),
    Line(
        "writing",
        lambda v: not v.has_ended and v.slowest.issued > v.slowest.sent,
        "worker",
        "its write of rows [{v.slowest.sent}, {v.slowest.issued}) to {v.other} is under way",
    ),
    Line(
        "write",
        lambda v: not v.has_ended and v.slowest.staged > v.slowest.sent,
        "worker",
        "it has to write rows [{v.slowest.sent}, {v.slowest.staged}): they are staged and granted",
    ),
    Line(
        "source blocks",
        lambda v: not v.has_ended and v.waits_for_block and v.free_blocks == 0,
        "client",
        "its library thread waits for a source block: none is free, {v.held}",
    ),
    Line(
        "stage",
        lambda v: not v.has_ended,
        "client",
        "its library thread has to stage rows [{v.slowest.sent}, {v.movable}), which are ready and granted",
    ),
    Line(
        "under way",
        lambda v: not v.is_quiet,
        "worker",
        "the request has ended; it has to say that nothing of it is under way",
        "ended_ns",
    ),
    Line(
        "rows kept",
        lambda v: not v.is_cleared and not v.is_client_gone,
        "client",
        "the request has ended; its library thread has to let go of the rows",
        "ended_ns",
    ),
    Line("close", lambda v: v.waiting, "not_closed", "the request has ended; that node has to close it", "ended_ns", ("poller",)),
    _RELEASE,
)

LANGUAGE: Final = (
    *_BOTH,
    Line(
        "handshake",
        lambda v: not v.has_ended and not v.has_peer,
        "other",
        "the handshake is pending: it has not answered the registration",
        "opened_ns",
        ("bootstrap",),
    ),
    Line(
        "peer lost",
        lambda v: not v.has_ended and v.is_peer_lost,
        "poller",
        "{v.other} is lost; the request has to be ended as Failed",
    ),
    Line("init", lambda v: not v.has_ended and not v.has_asked, "client", "it has to grant the first blocks (init)"),
    Line(
        "engine",
        lambda v: not v.has_ended and not v.has_engine,
        "worker",
        "its engine has to begin a session, under which blocks can be granted",
    ),
    Line("send grant", lambda v: not v.has_ended and not v.is_contacted, "bootstrap", "it has to send the grant"),
    Line(
        "no answer",
        lambda v: not v.has_ended and not v.is_heard,
        "other",
        "it has not answered the init: its encoder has not opened room {v.room}",
        through=("bootstrap", "poller"),
    ),
    Line(
        "inits missing",
        lambda v: not v.has_ended and v.phase == Phase.Bootstrapping,
        "other",
        "it waits for the inits of all {v.required} destinations",
        through=("poller",),
    ),
    Line(
        "drain",
        lambda v: not v.has_ended and v.sent // v.block_size > v.drained_blocks,
        "client",
        "its library thread has to copy out rows [{v.drained}, {v.sent}), which have landed",
    ),
    Line(
        "delivered",
        lambda v: not v.has_ended and v.total and v.sent >= v.total,
        "other",
        "every row has landed; it has to tell of Success",
        through=("poller",),
    ),
    Line(
        "grant unknown",
        lambda v: not v.has_ended and v.sent < v.granted and v.known_blocks < v.granted_blocks,
        "other",
        "it knows {v.known_blocks} of {v.granted_blocks} blocks granted; the grant is sent again",
        through=("bootstrap", "poller"),
    ),
    Line(
        "encode",
        lambda v: not v.has_ended and v.ready <= v.sent,
        "other",
        "its encoder has to embed more: {v.ready} of {v.length} rows are ready, all sent",
        through=("poller",),
    ),
    Line(
        "write",
        lambda v: not v.has_ended and v.sent < v.granted,
        "other",
        "it has to write rows [{v.sent}, {v.granted}) as far as they are ready ({v.ready})",
        through=("poller",),
    ),
    Line(
        "quarantine",
        lambda v: not v.has_ended and v.free_blocks == 0 and v.quarantined_blocks,
        "fencing",
        "wants {v.wanted_blocks} blocks, none is free; {v.quarantined_blocks} are in quarantine under {v.fence}",
        through=("poller",),
    ),
    Line(
        "blocks",
        lambda v: not v.has_ended and v.free_blocks == 0,
        "holder",
        "wants {v.wanted_blocks} blocks, none is free, none in quarantine; {v.held}",
    ),
    Line(
        "grant",
        lambda v: not v.has_ended,
        "client",
        "it has to grant more: {v.granted} rows are granted, all sent, {v.ready} are ready; {v.free_blocks} blocks are free, so others "
        "come first, or its host memory is full (results not released)",
    ),
    Line(
        "no encode node",
        lambda v: v.phase == Phase.Failed and not v.is_acked and not v.has_peer,
        "bootstrap",
        "the request has failed; it looks for the encode node, to tell it",
        "ended_ns",
    ),
    Line(
        "writers",
        lambda v: v.phase == Phase.Failed and not v.is_acked and v.is_peer_lost,
        "launcher",
        "{v.other} is lost, and a process of it still maps the payload; it has to see that one end",
        "ended_ns",
        ("poller",),
    ),
    Line(
        "abort",
        lambda v: v.phase == Phase.Failed and not v.is_acked,
        "other",
        "the request has failed; that node has to acknowledge the abort, for it may still write",
        "ended_ns",
        ("bootstrap", "poller"),
    ),
    Line(
        "clear",
        lambda v: not v.is_cleared and not v.is_client_gone,
        "client",
        "the request has ended; it has to call clear(), which its queue does",
        "ended_ns",
    ),
    _RELEASE,
)


def explain(view: EncodeView | LanguageView) -> Explanation:
    """Who owes the next step of this request, which one, and since when."""
    line = next(line for line in (ENCODE if isinstance(view, EncodeView) else LANGUAGE) if line.applies(view))
    owes: Actor = getattr(view, line.who)
    why = line.why.format(v=view)
    for name in line.through:
        between: Actor = getattr(view, name)
        if between.trouble:
            return Explanation(between, f"{between.trouble}; behind it, {owes}: {why}", between.trouble_ns, line.name)
    since_ns: int = getattr(view, line.since) or view.opened_ns
    if owes.trouble:
        return Explanation(owes, f"{owes.trouble}; {why}", owes.trouble_ns or since_ns, line.name)
    return Explanation(owes, why, since_ns, line.name)
