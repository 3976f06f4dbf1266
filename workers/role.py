"""What all roles have in common: a step from an inbox to an outbox, so that two nodes can run in one thread.

A role does no I/O of its own. A step gets what arrived since the last one (ring records, messages, lost connections),
changes words in shared memory, and returns the messages to be sent. `start.py` puts the sockets and the waiting around
the role.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from embridge.allocator.control import Control
from embridge.allocator.errors import FailureCode
from embridge.allocator.plain_enums import Kick, Lane, Metric, Peer, Slot
from embridge.allocator.records import LIBRARY_VIEW
from embridge.allocator.rings import FULL_RING_WAIT_S, KickSender, Record
from embridge.workers import messages as msg
from embridge.workers.addresses import Found, Names
from embridge.workers.engine_kind import EngineKind
from embridge.workers.run_socket import Question
from embridge.workers.timing import Timing

log = logging.getLogger(__name__)


class _Plain(msgspec.Struct, frozen=True, gc=False):
    """One is made for each message, and the collector need not look at it: nothing in it leads back to it."""


class Arrival(_Plain, frozen=True):
    """A message, and where it came from: a connection to this node, or an address to which this node connected.

    `identity` is the public key that the other end has proved; "" on a plain connection.
    """

    message: msg.Message | msg.Foreign
    connection: bytes | None
    address: str | None
    identity: str = ""


class Denied(_Plain, frozen=True):
    """An address to which there is no connection, and why. With `is_final` trying again is of no use."""

    address: str
    reason: str
    is_final: bool


class Inbox(_Plain, frozen=True):
    """All that came since the last step.

    Nobody listens at the addresses in `refused` (any more); at those in `denied` the handshake fails.
    """

    records: list[tuple[str, Record]]
    arrivals: Sequence[Arrival]
    refused: Sequence[str]
    denied: Sequence[Denied] = ()


class Send(_Plain, frozen=True):
    """A message to an address; the connection is made when there is none.

    `key` is the public key that the node at that address must prove; "" where only the allow-list knows it, and on
    plain connections. The allow-list may have the address in the form in which it was `asked` for, with a name.
    """

    address: str
    message: msg.Message
    key: str = ""
    asked: str = ""


class Reply(_Plain, frozen=True):
    """A message back on a connection that another node has opened."""

    connection: bytes
    message: msg.Message


class Disconnect(_Plain, frozen=True):
    """Send nothing more to this address, and drop what is queued for it."""

    address: str


Out = Send | Reply | Disconnect


class Addresses(NamedTuple):
    """Where this node is reached."""

    bootstrap_addr: str
    poller_addr: str
    run_socket: str


class Renew(Exception):
    """Raised by a role whose process is to end and be born again: only that ends what its engine still does (R8)."""


class Step(Protocol):
    """A role."""

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]: ...

    def next_step_ns(self, now_ns: int) -> int:
        """When the role wants its next step at the latest (monotonic ns)."""
        ...


class Isolated:
    """What `RoleContext.isolated` returns."""

    __slots__ = ("_ctx", "_epoch", "_slot", "_what")

    def __init__(self, ctx: RoleContext, what: str, slot: int | None, epoch: int) -> None:
        self._ctx, self._what, self._slot, self._epoch = ctx, what, slot, epoch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._ctx.broke(self._what, error, self._slot, self._epoch)
        return True


class RoleContext:
    """What every role works with: the control segment, the times, its row of counters, and kicks to the others."""

    def __init__(
        self,
        control: Control,
        name: str,
        timing: Timing,
        addresses: Addresses,
        *,
        engines: Sequence[EngineKind] = (),
        ask_at: Callable[[str, int, int], Question] = Question,
        find: Callable[[str], Found | None] | None = None,
        forget: Callable[[str], None] | None = None,
    ) -> None:
        """`engines` are those that this node offers, in order of preference.

        `ask_at` asks at a run socket whether the node with this id and incarnation listens there. `find` looks the name
        in an address up; `forget` drops what was found to lead to an address.
        """
        self.control = control
        self.name = name
        self.timing = timing
        self.addresses = addresses
        self.engines = engines
        self.has_sessions = any(engine.has_sessions for engine in engines)
        self.ask_at = ask_at
        names = Names()
        self.find, self.forget = find or names.find, forget or names.forget
        self.status = control.status
        self.slots = control.slots
        self.is_current, self.is_live = control.is_current, control.is_live
        self.index = control.processes.names.index(name)
        self._senders: dict[str, KickSender] = {}
        self._workers = [f"worker{worker}" for worker in range(control.limits.num_workers)]
        self._add, self._has_client = control.metrics.add, control.has_client
        self.bs = control.geometry.block_size

    def to(self, process: str) -> KickSender:
        """The ring to another process of this node."""
        sender = self._senders.get(process)
        if sender is None:
            sender = self._senders[process] = self.control.sender(self.name, process)
        return sender

    def to_worker_of(self, slot: int) -> KickSender:
        return self.to(self._workers[self.control.worker_of(self.slots.get(slot, Slot.ROOM))])

    def flush(self) -> None:
        for sender in self._senders.values():
            if sender.is_due:
                if num_full := sender.take_num_full():
                    self.count(Metric.RINGS_FULL, num_full)
                sender.flush()

    def nap_s(self, wait_s: float) -> float:
        """How long this process may wait, in seconds: hardly at all while a kick waits for room in its ring."""
        for sender in self._senders.values():
            if sender.is_due and sender.backlog:
                return min(wait_s, FULL_RING_WAIT_S)
        return wait_s

    def envelope(self, for_incarnation: int) -> msg.Envelope:
        return msg.Envelope(msg.VERSION, self.control.node_id, self.control.incarnation, for_incarnation)

    def count(self, metric: Metric, count: int = 1) -> None:
        if count:
            self._add(self.index, metric, count)

    def engine_of(self, peer: int) -> EngineKind | None:
        """The engine through which rows travel to or from a peer; None if none has been agreed on with it."""
        number = self.control.peers.get(peer, Peer.ENGINE)
        return next((engine for engine in self.engines if engine.number == number), None)

    def is_lane_dead(self, slot: int) -> bool:
        return not self._has_client(slot)

    def why_lane_is_dead(self, slot: int, who: str) -> str:
        """Whether the client of a slot left or died, in words."""
        has_left = self.control.lanes.get(self.slots.get(slot, Slot.LANE), Lane.LEFT)
        return f"the {who} closed its client before the request had ended" if has_left else f"the {who} process died"

    def current_slots(self) -> Iterable[tuple[int, int]]:
        """(slot, epoch) of every request that is not released: for the scan, after a restart and on a timer."""
        return self.control.current_slots()

    def wake_library(self, slot: int) -> None:
        """Have the library thread of the slot's client look at the slot."""
        self.status.mark(slot, LIBRARY_VIEW)
        self.control.ring_library(self.slots.get(slot, Slot.LANE))

    def wake_reaper(self, slot: int) -> None:
        """Have the poller look at a dead client whose slot was released.

        It may now free the client's lane, so that another client can have it (P3).
        """
        if self.is_lane_dead(slot):
            self.to("poller").send(Kick.LOOK, slot, 0)

    def isolated(self, what: str, slot: int | None = None, epoch: int = 0) -> Isolated:
        """Let an exception end one item and not the process (D4): `broke` takes it."""
        return Isolated(self, what, slot, epoch)

    def broke(self, what: str, error: Exception, slot: int | None = None, epoch: int = 0) -> None:
        """Log and count an exception that has ended one item, and fail the item's request, if it has one (D4)."""
        log.error("%s: %s failed", self.name, what, exc_info=error)
        self.count(Metric.ERRORS)
        if slot is not None and self.is_live(slot, epoch):
            self.fail(slot, epoch, FailureCode.INTERNAL, f"{what} in {self.name}: {type(error).__name__}: {error}")

    def fail(self, slot: int, epoch: int, code: int, reason: str) -> None:
        """Claim why a request fails and have the poller end it (for roles that do not write status words)."""
        self.slots.claim_failure(slot, code, reason)
        if self.name != "poller":  # the poller finds its own claim when it next looks at this request
            self.to("poller").send(Kick.FAIL, slot, epoch)
