"""The shelves of encode nodes on this host, open to one client of a language node, which reads items where they lie.

A shelf door is a connection to an encode node's run socket. Through it come the tables of its shelf, and the rows, to
be read only; and this client's ledger, which is all that it writes (R42). The node keeps the connection and a pidfd of
this process, so that a death takes its pins away. Whoever has a view of an item keeps the connection: the door of a
client that has left stays open to its views (R63, R64); a forked child lets go of it (`Connection`).

Nothing waits: whoever calls `find` goes on where the last call has stopped, the caller of a fetch or the library
thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import msgspec

from embridge.allocator._core import Pin
from embridge.allocator.connection import Connection
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError, SegmentError
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.rows_at import RowsAt
from embridge.allocator.segment import map_segment
from embridge.allocator.shelf import ShelfPart, key_hasher, raw_key
from embridge.pipeline.client.attachment import Attachment
from embridge.workers import run_socket
from embridge.workers.timing import NS
from embridge.workers.transfer.engines.base import EngineError
from embridge.workers.transfer.engines.shm import knock

MEET_AGAIN_NS: Final = 2 * NS  # the kick to the bootstrap, while it has not registered with the node
MEET_NEXT_NS: Final = NS // 100  # while it has yet to hear of another node
REFUSED_NS: Final = NS  # for which a refusal is remembered
UNASKED_NS: Final = 10 * NS  # after which a door that is closed, and for which nobody has asked, is forgotten


class Elsewhere(Enum):
    """What is found instead of a door."""

    FAR = "the node has a shelf that is not to be read in place: it is on another host, lets nobody in, or is dead"


class Recalled(Protocol):
    """What reads an item in place, and may have its rows elsewhere (R62)."""

    def move_out(self) -> None: ...


class Lends(Protocol):
    """Looks after what reads items in place."""

    def lend(self, item: Recalled) -> None: ...


class Reached(msgspec.Struct):
    """An item that was pinned where it lies."""

    pin: Pin
    where: Callable[[Pin], RowsAt]
    """Says where its rows lie, for other processes of this host."""
    door: weakref.ref[Lends]
    """Through which it was; it closes with its client."""


class ShelfDoor:
    """One encode node's shelf, open to this client."""

    def __init__(self, node: tuple[int, int], connection: Connection, part: ShelfPart) -> None:
        self.node = node
        """Its id and incarnation."""
        self._part = part
        self._hasher, self._pin, self._where = key_hasher(node), part.core.pin, part.where
        self._recalls = part.recalls()
        self._ref: weakref.ref[Lends] = weakref.ref(self)
        self.is_open = connection.is_open
        """Whether its node lives."""
        self._items: weakref.WeakSet[Recalled] = weakref.WeakSet()
        self._lent: deque[weakref.ref[Recalled]] = deque()  # since the last look

    def lend(self, item: Recalled) -> None:
        """Note what reads in place through this door (any thread)."""
        self._lent.append(weakref.ref(item))

    def look_at_recalls(self) -> None:
        """Where the node is short of room, have those at whose rows nobody looks copied out (who has the turn, R62)."""
        while self._lent:
            if (lent := self._lent.popleft()()) is not None:
                self._items.add(lent)
        if (recalls := self._part.recalls()) != self._recalls:
            self._recalls = recalls
            for item in list(self._items):
                item.move_out()

    def pin(self, key: str | bytes, now_ns: int) -> Pin | None:
        """The newest item of a key, pinned; None: it is not published. Raises SegmentError: it cannot be right."""
        try:
            raw = raw_key(key)
            return self._pin(self._hasher(raw).digest(), raw, now_ns)
        except ValueError as error:
            raise SegmentError(str(error)) from None

    def reach(self, key: str | bytes, now_ns: int) -> Reached | None:
        """As `pin`, and where it lies."""
        pin = self.pin(key, now_ns)
        return Reached(pin, self._where, self._ref) if pin is not None else None


class ClosedDoor:
    """The shelf of an encode node, on its way to be opened."""

    def __init__(self, attachment: Attachment, address: str) -> None:
        """`address` is numeric."""
        self._attachment = attachment
        self._peers = attachment.control.peers
        self._address = address
        self._sock: socket.socket | None = None
        self._node = (0, 0)
        self._refused_nodes = attachment.control.refused_nodes
        self._made_ns = attachment.clock()
        self._meet_ns = 0  # when it is to be said next
        self.refused = ""
        """Why the node does not open it; empty: it may yet do so."""
        self.is_far = False
        """Whether its items are to be had, though not in place."""
        self.refused_ns = 0
        self.asked_ns = 0
        """When somebody has asked for it last."""

    def look(self) -> ShelfDoor | None:
        """Go on; the door, once it is open."""
        record = self._record()
        if record is None:
            self._meet()
            if why := self._refused_nodes.why(self._address, self._made_ns):
                self._refuse(why)
            return None
        node = (record.node_id, record.incarnation)
        if not record.offer:
            self._refuse("its node publishes nothing: set shelf_bytes there")
            return None
        if self._node != node:
            self.close()
            self._node = node
        try:
            if self._sock is None:
                own = self._attachment.control
                version = run_socket.PROTOCOL_VERSION
                self._sock = knock(
                    record, run_socket.ReaderHello(version, own.node_id, own.incarnation, record.incarnation)
                )
            return self._opened(self._sock)
        except BlockingIOError:
            return None
        except run_socket.NotYet:  # it has registered, and has yet to hear that it is
            self.close()
        except (EngineError, AttachError) as error:
            self._refuse(str(error))
            self.is_far = True
        except (OSError, SegmentError, ValueError) as error:
            self._refuse(str(error))
        return None

    def _record(self) -> PeerRecord | None:
        for peer in self._peers.alive():
            record = self._peers.record(peer)
            if record.bootstrap_addr == self._address:
                return record
        return None

    def _meet(self) -> None:
        now_ns = self._attachment.clock()
        if now_ns >= self._meet_ns:
            is_said = self._attachment.meet(self._address)
            self._meet_ns = now_ns + (MEET_AGAIN_NS if is_said else MEET_NEXT_NS)

    def _opened(self, sock: socket.socket) -> ShelfDoor:
        welcome, fds = run_socket.receive_welcome(sock)
        try:
            look = map_segment(fds["control"], welcome.control_bytes, writable=False)
            control = Control(look)
            if (control.node_id, control.incarnation) != self._node:
                raise AttachError("another node answers at its run socket here")
            connection = Connection(sock)
            part = ShelfPart(
                fds["control"], fds["shelf to read"], look, control.layout, welcome.reader, connection
            )
            self._sock = None  # it is the connection's
            return ShelfDoor(self._node, connection, part)
        except KeyError as error:
            raise AttachError(f"it handed over no {error}; it is a node of another version") from None
        finally:
            for fd in fds.values():
                os.close(fd)

    def _refuse(self, why: str) -> None:
        self.close()
        self.refused, self.refused_ns = why, self._attachment.clock()

    def close(self) -> None:
        """Stop asking."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


class ShelfDoors:
    """One client's doors to shelves, by the numeric address of their nodes. Who calls a method has the turn."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._doors: dict[str, ShelfDoor | ClosedDoor] = {}

    def find(self, address: str) -> ShelfDoor | Elsewhere | str | None:
        """The door of an encode node; or that it is far; or why it does not open, in words; or None: it is about to be
        opened.
        """
        door = self._doors.get(address)
        if isinstance(door, ShelfDoor):
            if door.is_open():
                return door
            door = None
        now_ns = self._attachment.clock()
        if door is not None and now_ns - (door.refused_ns or door.asked_ns) >= REFUSED_NS:  # it may be as it was not
            door.close()
            door = None
        if door is None:
            door = self._doors[address] = ClosedDoor(self._attachment, address)
        door.asked_ns = now_ns
        if not door.refused and (opened := door.look()) is not None:
            self._doors[address] = opened
            return opened
        return Elsewhere.FAR if door.is_far else door.refused or None

    def opened(self, address: str) -> ShelfDoor | None:
        """The door of an encode node, if it is open now; without going on."""
        door = self._doors.get(address)
        return door if isinstance(door, ShelfDoor) and door.is_open() else None

    def drop_dead(self) -> None:
        """Let go of those whose node is gone, though nobody fetches from it any more: the node that takes its place may
        need the room. Views keep theirs (R64). Those that did not open are forgotten, too (P23).
        """
        long_ago_ns = self._attachment.clock() - UNASKED_NS
        for address, door in list(self._doors.items()):
            if isinstance(door, ShelfDoor):
                if door.is_open():
                    door.look_at_recalls()
                else:
                    del self._doors[address]
            elif door.asked_ns <= long_ago_ns:
                del self._doors[address]
                door.close()

    def close(self) -> None:
        """Let go of all of them; views keep theirs."""
        for door in self._doors.values():
            if isinstance(door, ClosedDoor):
                door.close()
        self._doors.clear()
