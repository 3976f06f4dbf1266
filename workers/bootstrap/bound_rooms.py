"""Rooms of an encode node whose encoders have found their grants by themselves, and those of which only clients know.

A client that finds a grant binds its slot to it and notes the destination (`Rendezvous` in
`pipeline/client/rendezvous.py`). When the bootstrap is told of the slot, it takes that destination up (R79). When
somebody asks the node for a room of which only a client knows, the bootstrap tells itself of it (R78, R80). Of a grant
that is sent to the node it looks whether a client other than that of the room's sender has found it (R81).
"""

from __future__ import annotations

from collections.abc import Callable

from embridge.allocator.errors import FailureCode
from embridge.allocator.plain_enums import Destination, JoinedBy, Kick, Peer, Slot
from embridge.workers.bootstrap.ended_rooms import Remote
from embridge.workers.bootstrap.grant_applier import GrantApplier, Open
from embridge.workers.bootstrap.pending_grants import Grant, PendingGrants, RemoteSlot
from embridge.workers.role import RoleContext


class BoundRooms:
    """Used by the encode bootstrap only, which gives it its tables."""

    def __init__(
        self, ctx: RoleContext, held: dict[RemoteSlot, Open], pending: PendingGrants, grants: GrantApplier
    ) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._peers = ctx.control.peers
        self._untold = ctx.control.untold
        self._open = held
        self._pending = pending
        self._grants = grants

    def is_bound(self, slot: int) -> bool:
        """Whether a slot's client has bound it to a grant, or is about to."""
        return self._slots.get(slot, Slot.JOINED_BY) == JoinedBy.CLIENT

    def is_waiting(self, slot: int, d: int) -> bool:
        """Whether a destination of any room has yet to hear how the request ended."""
        peer, incarnation = (self._dsts.get(slot, d, f) for f in (Destination.PEER, Destination.INCARNATION))
        return self._peers.is_it(peer - 1, incarnation) and not self._dsts.get(slot, d, Destination.CLOSED)

    def take_up(self, slot: int, epoch: int, now_ns: int) -> Open | None:
        """Take up the destination to which a client has bound its slot (R79).

        None where it has not, or has yet to note it: it kicks again then.
        """
        if not self.is_bound(slot) or not self._slots.get(slot, Slot.NUM_DESTINATIONS):
            return None
        remote = self.remote(slot, 0)
        key, ours = (remote.peer, remote.slot), Open(remote.epoch, slot, epoch, 0)
        held = self._open.get(key)
        if held is not None and held.remote_epoch > remote.epoch:
            return ours  # it is over there
        self._open[key] = ours
        is_same = self._peers.get(remote.peer, Peer.INCARNATION) == self._dsts.get(slot, 0, Destination.INCARNATION)
        if is_same and self._peers.raise_tombstone(*remote):
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)  # it has waited to tell of it
        waiting = self._pending.of_slot(key)
        if waiting is not None and waiting.grant.key.epoch <= remote.epoch:
            self._pending.drop(key)
            if waiting.grant.key.epoch == remote.epoch:
                self._grants.apply(ours, waiting.grant, now_ns)
        return ours

    def apply(self, held: Open, grant: Grant, peer: int, now_ns: int) -> None:
        """Apply a peer's grant to a destination of the bootstrap's, unless another sender has found it (R81).

        The tombstone is raised here, before the first block is granted: from then on no client binds itself to the
        grant, and who was about to has marked it before.
        """
        slot, epoch, d = held.slot, held.epoch, held.destination
        if not self._dsts.get(slot, d, Destination.FIRST_GRANT):
            remote = Remote(peer, grant.key.slot, grant.key.epoch)
            self._peers.raise_tombstone(*remote)
            if self._is_anothers(slot, remote):
                why = f"room {grant.key.room} is in use by another sender of this node"
                self._ctx.fail(slot, epoch, FailureCode.REFUSED, why)
            if self._slots.get(slot, Slot.FAILURE):
                return  # it ends, and has no block until then
        self._grants.apply(held, grant, now_ns)

    def _is_anothers(self, slot: int, remote: Remote) -> bool:
        """Whether another slot is bound to a request of a language node. One that was about to be is kept from it."""
        finder = self._peers.finder(*remote)
        if finder is None or finder == slot or self._slots.get(finder, Slot.ROOM) != self._slots.get(slot, Slot.ROOM):
            return False
        # the slot may be released: then it is joined for nothing, and is reset when it is opened again
        if self._slots.join(finder, JoinedBy.BOOTSTRAP):
            return False
        return not self._slots.get(finder, Slot.NUM_DESTINATIONS) or self.remote(finder, 0) == remote

    def remote(self, slot: int, d: int) -> Remote:
        """The request of a language node that is a slot's destination."""
        get = self._dsts.get
        peer, remote_slot = get(slot, d, Destination.PEER) - 1, get(slot, d, Destination.REMOTE_SLOT)
        return Remote(peer, remote_slot, get(slot, d, Destination.REMOTE_EPOCH))

    def peers(self) -> set[int]:
        """The entries of the peer table that the slots of clients name, also of those that only their clients know."""
        return {self.remote(slot, 0).peer for slot, _ in self._control.open_slots() if self.is_bound(slot)}

    def look_for(self, room: int, open_room: Callable[[int, int], None]) -> None:
        """Open the room here, if only a client knows of it, because somebody asks for it (R78, R80)."""
        if not self._untold.get(room):
            return
        for slot, epoch in self._control.open_in(room):
            if self._slots.tell(slot, epoch):
                self._untold.add(room, -1)
                open_room(slot, epoch)

    def count_released(self, slot: int, epoch: int, room: int) -> None:
        """Count a slot no more that was released, and of which its client has died before it told (after that)."""
        if self._slots.is_untold(slot, epoch):
            self._untold.add(room, -1)
