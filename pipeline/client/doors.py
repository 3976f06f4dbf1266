"""Doors: the language nodes on this host into whose blocks an encoder's client may write itself.

A door is one connection to a node's run socket. Through it come the node's payload, and of its control segment the
writers' part: bells, claims, what encoders read of grants, and status words. The node's launcher keeps the connection
and a pidfd of this process, so that a death ends the claims of this process (R33). As long as the connection stands,
the node waits for this process where it holds a claim: so a door is closed only while nobody writes through it.

The library thread knocks ahead of time, as soon as a node has registered. It never waits for an answer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Event, RLock
from typing import Final, NamedTuple, Protocol

from embridge.allocator._core import DirectWriter, GrantBinder, Mapping, StatusTable, UntoldSender
from embridge.allocator.buffers import pools
from embridge.allocator.claims import ClaimTable, WriterId
from embridge.allocator.control import Control
from embridge.allocator.direct import columns, direct_writer, grant_binder
from embridge.allocator.errors import AttachError, SegmentError
from embridge.allocator.layout import HUGE_PAGE_BYTES, ControlLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.posts import PostTable
from embridge.allocator.records import NUM_VIEWS, Peer, WrittenBy
from embridge.allocator.segment import map_segment
from embridge.allocator.untold import untold_sender
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.given_rows import plain_rows
from embridge.workers import run_socket
from embridge.workers.timing import NS
from embridge.workers.transfer import engines
from embridge.workers.transfer.engines.base import EngineError
from embridge.workers.transfer.engines.shm import knock

log = logging.getLogger(__name__)

KNOCK_AGAIN_NS: Final = NS // 10  # at a node that has refused; twice as long after each time
MOST_AGAIN_NS: Final = 60 * NS
FEW_BYTES: Final = 1 << 20
PATIENCE_NS: Final = NS  # with a node that does not answer; requests to it go through the worker then


class WritersPart:
    """What a writer maps of a language node's control segment."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        begin, _ = layout.writers_part
        num_slots = layout.limits.num_slots
        self.claims = ClaimTable(mapping, layout.claims - begin, num_slots)
        self.posts = PostTable(mapping, layout.posts - begin, layout.meetings - begin, num_slots)
        self.status = StatusTable(
            mapping, layout.words - begin, layout.stamps - begin, layout.dirty - begin, num_slots, NUM_VIEWS
        )


class Connection(Protocol):
    """What a node keeps a door open by."""

    def close(self) -> None: ...


class Door:
    """One language node, open to this client."""

    def __init__(
        self,
        connection: Connection,
        node: tuple[int, int],
        payload: Mapping,
        control: Control,
        part: Mapping,
        writer: WriterId,
        attachment: Attachment,
    ) -> None:
        self.node = node
        """Its id and incarnation."""
        self.payload = payload
        self.geometry = control.geometry
        self.part = WritersPart(part, control.layout)
        self._mapped_part = part
        self.writer = writer
        """What this client's claims there name it by."""
        self.rows: DirectWriter = direct_writer(
            attachment.control, part, control.layout, payload, control.geometry, writer, attachment.clock
        )
        """Writes rows there; either thread, both at the same time, too."""
        self.columns = columns(control.geometry)
        self.grants: GrantBinder = grant_binder(attachment.control, part, control.layout, control.geometry, node)
        """Finds what is granted there, and binds requests to it; either thread."""
        self.untold: UntoldSender = untold_sender(attachment.control, self.rows, self.grants, self.columns)
        """Does both in one call, and releases requests of which nobody else need know."""
        self.has_closed = False
        """Whether nobody begins to write through it any more."""
        self.held: dict[object, None] = {}
        """Rows behind it that are out: their writers hold claims (either thread)."""
        self._connection = connection

    def close(self) -> bool:
        """Let go of the node, unless somebody is writing; nobody begins to any more (library thread)."""
        self.has_closed = True
        if not self.rows.close() or self.held:
            return False
        self._connection.close()
        return True

    def hang_up(self) -> None:
        """Close a forked child's copy of the connection, and let go of the memory: the door is the parent's. Through
        rows that are out the child writes into memory of its own from now on, and gives no claim back.
        """
        self.has_closed = True
        self.rows.close()
        self._connection.close()
        self.payload.discard()
        self._mapped_part.discard()


class _Refusal(NamedTuple):
    """A node that has not let this client in."""

    node: tuple[int, int]
    why: str
    num_times: int
    again_ns: int  # when it is asked again


class Knock(Protocol):
    """A question at a node whether it lets this client in."""

    def answer(self) -> Door:
        """The door. Raises BlockingIOError while the node has not answered, NotYet where it is too early, and another
        error where the node refuses.
        """

    def close(self) -> None: ...


class RunSocketKnock:
    """At the run socket of a node on this host."""

    def __init__(self, attachment: Attachment, record: PeerRecord) -> None:
        """Raises as `knock` does; BlockingIOError: its backlog is full."""
        own = attachment.control
        hello = run_socket.PeerHello(
            run_socket.PROTOCOL_VERSION, own.node_id, own.incarnation, record.incarnation, wants_claims=True
        )
        self._sock = knock(record, hello)
        self._node = (record.node_id, record.incarnation)
        self._attachment = attachment

    def answer(self) -> Door:
        welcome, fds = run_socket.receive_welcome(self._sock)
        try:
            look = map_segment(fds["control"], welcome.control_bytes, writable=False)
            control = Control(look)
            try:
                begin, size = control.layout.writers_part
                part = map_segment(fds["control"], size, offset=begin)
                payload = map_segment(fds["payload"], welcome.payload_bytes, alignment=HUGE_PAGE_BYTES)
                writer = WriterId(*welcome.writer)
                return Door(self._sock, self._node, payload, control, part, writer, self._attachment)
            finally:
                control.close()
        finally:
            for fd in fds.values():
                os.close(fd)

    def close(self) -> None:
        self._sock.close()


class _Awaited:
    """A door that is not open yet."""

    def __init__(self, node: tuple[int, int], since_ns: int) -> None:
        self.knock: Knock | None = None  # None: nothing is asked, because it is too early, or the backlog is full
        self.node = node
        self.since_ns = since_ns

    def close(self) -> None:
        if self.knock is not None:
            self.knock.close()
            self.knock = None


class Doors:
    """One client's doors, by peer. The library thread opens and closes them; both threads look for them."""

    def __init__(
        self, attachment: Attachment, ask: Callable[[Attachment, PeerRecord], Knock] = RunSocketKnock
    ) -> None:
        """`ask` knocks at a node."""
        self._attachment = attachment
        self._peers = attachment.control.peers
        self._ask = ask
        self._open: dict[int, Door] = {}
        self._knocks: dict[int, _Awaited] = {}
        self.plain_rows = plain_rows(attachment.geometry)
        self.pools = pools(attachment.geometry)
        self.few_rows = FEW_BYTES // max(attachment.geometry.token_bytes, 1)
        """So many are copied in less time than it takes to hand a lock over."""
        self.deciding = RLock()
        """Held by who binds a sender, or says who writes: either thread; a signal handler may, in the midst of it."""
        self._refused: dict[int, _Refusal] = {}  # by peer
        self.open_ones: tuple[tuple[int, Door], ...] = ()
        """The doors that are open, each with its peer (either thread reads it)."""
        self._closing: list[Door] = []
        self._has_news = False
        self._have_answered = Event()
        self.is_wanted = False
        """Whether another turn is due soon: somebody waits to know how rows go to a peer, or a door is to be closed."""

    def __len__(self) -> int:
        """How many are open."""
        return len(self.open_ones)

    def find(self, peer: int, incarnation: int) -> tuple[WrittenBy, Door | None]:
        """How rows go to an incarnation of a peer: directly, through its door; through the worker; or not known yet
        (either thread). It is not known, either, of a destination that nobody has entered (`peer` is -1).
        """
        if peer < 0:
            return WrittenBy.UNDECIDED, None
        door, node = self._open.get(peer), (self._peers.get(peer, Peer.NODE_ID), incarnation)
        if door is not None and door.node == node:
            return WrittenBy.CLIENT, door
        if not self._is_here(peer):
            return WrittenBy.WORKER, None
        refused = self._refused.get(peer)
        if refused is not None and refused.node == node and self._attachment.clock() < refused.again_ns:
            return WrittenBy.WORKER, None
        self.is_wanted = True
        return WrittenBy.UNDECIDED, None

    def _is_here(self, peer: int) -> bool:
        engine = engines.numbered(self._peers.get(peer, Peer.ENGINE))
        return engine is not None and engine.is_local and self._peers.is_alive(peer)

    def wait_for_answers(self, timeout_s: float) -> None:
        """Until all nodes that were here at first have answered, for so long at most; while another thread takes turns.
        """
        self._have_answered.wait(timeout_s)

    # ---- the library thread

    def turn(self) -> None:
        """Knock at new peers, open the doors of those that have answered, and close those of the dead."""
        self.is_wanted = False
        for peer in range(self._peers.num_peers):
            node = (self._peers.get(peer, Peer.NODE_ID), self._peers.get(peer, Peer.INCARNATION))
            is_here = self._is_here(peer)
            door = self._open.get(peer)
            if door is not None and not (is_here and door.node == node):
                del self._open[peer]
                self._have_opened()
                self._closing.append(door)
                door = None
            waiting = self._knocks.get(peer)
            if waiting is not None and not (is_here and waiting.node == node):
                del self._knocks[peer]
                waiting.close()
            if is_here and door is None:
                self._go_on(peer, node)
        self._closing = [door for door in self._closing if not door.close()]
        self.is_wanted |= bool(self._knocks or self._closing)
        if not self._knocks:
            self._have_answered.set()

    def take_news(self) -> bool:
        """Whether it has become known since the last call how rows go to some peer."""
        has_news, self._has_news = self._has_news, False
        return has_news

    def _have_opened(self) -> None:
        self.open_ones = tuple(self._open.items())

    def _go_on(self, peer: int, node: tuple[int, int]) -> None:
        refused = self._refused.get(peer)
        if refused is not None and refused.node == node and self._attachment.clock() < refused.again_ns:
            return
        record = self._peers.record(peer)
        if (record.node_id, record.incarnation) != node:
            return  # another one has the entry since
        now_ns = self._attachment.clock()
        waiting = self._knocks.setdefault(peer, _Awaited(node, now_ns))
        try:
            if waiting.knock is None:
                waiting.knock = self._ask(self._attachment, record)
            door = waiting.knock.answer()
        except BlockingIOError:
            if now_ns - waiting.since_ns >= PATIENCE_NS:
                self._refuse(peer, node, record, "it does not answer")
        except run_socket.NotYet as error:  # it has registered, and has yet to hear that it is
            waiting.close()
            if now_ns - waiting.since_ns >= PATIENCE_NS:
                self._refuse(peer, node, record, str(error))
        except (OSError, AttachError, SegmentError, EngineError, LookupError, ValueError) as error:
            self._refuse(peer, node, record, str(error))
        else:
            self._refused.pop(peer, None)
            self._knocks.pop(peer)
            self._open[peer] = door
            self._have_opened()
            self._has_news = True
            log.info("rows to %s are written into its blocks", record)

    def _refuse(self, peer: int, node: tuple[int, int], record: PeerRecord, why: str) -> None:
        waiting, before = self._knocks.pop(peer, None), self._refused.get(peer)
        if waiting is not None:
            waiting.close()
        num_times = before.num_times + 1 if before is not None and before.node == node else 0
        again_ns = min(KNOCK_AGAIN_NS << min(num_times, 16), MOST_AGAIN_NS)
        self._refused[peer] = _Refusal(node, why, num_times, self._attachment.clock() + again_ns)
        self._has_news = True
        if before is None or (before.node, before.why) != (node, why):
            log.info("rows to %s go through the transfer workers: %s", record, why)

    # ---- the end

    def close(self) -> None:
        """Let go of all of them, but for those through which somebody still writes: call again for these."""
        for waiting in self._knocks.values():
            waiting.close()
        self._closing = [door for door in (*self._open.values(), *self._closing) if not door.close()]
        self._knocks.clear()
        self._open.clear()
        self._have_opened()

    def hang_up(self) -> None:
        """Let go of them in a forked child."""
        for waiting in self._knocks.values():
            waiting.close()
        for door in (*self._open.values(), *self._closing):
            door.hang_up()
        for held in (self._knocks, self._open, self._closing):
            held.clear()
        self._have_opened()
