"""The encoder's side of the rendezvous: its client finds the grant of a room by itself, and binds its slot to it.

`bind` looks through the tables of all nodes whose doors are open for a grant of the sender's room (R37). What is done
about one is native (`allocator/native/bind.h`): a post is a hint, so claim and meeting record are compared; then the
grant is bound to this encoder, and the slot to the grant (R38, R79), and the destination is noted in the slot, as the
bootstrap notes one whose init has come.
"""

from __future__ import annotations

from threading import RLock
from typing import Final

from embridge.allocator._core import BIND_GONE, BIND_TOLD
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Destination, JoinedBy, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.doors import Door, Doors
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.leaving import refuse

ONLY: Final = 0  # the destination that a client finds by itself: a request with several is told (R78)


class Rendezvous:
    """One sender's. Either thread."""

    def __init__(self, attachment: Attachment, doors: Doors, handle: TransferHandle, deciding: RLock) -> None:
        """`deciding` is held by the one thread that binds the sender, or looks whether it is bound."""
        control = attachment.control
        self._attachment = attachment
        self._doors = doors
        self._handle = handle
        self._deciding = deciding
        self._slots = control.slots
        self._dsts = control.destinations
        self._offered: list[Door] = []

    def refuse(self, why: str) -> None:
        """The client has left its node: whatever is asked of the tables from now on is a RuntimeError."""
        refuse(self, why, ("_slots", "_dsts"))
        self._offered.clear()

    @property
    def is_joined(self) -> bool:
        """Whether the slot has its destination, or somebody is about to enter it."""
        return self._slots.get(self._handle.slot, Slot.JOINED_BY) != JoinedBy.NOBODY

    @property
    def has_offered(self) -> bool:
        """Whether an offer of the room stands somewhere."""
        return bool(self._offered)

    # ---- before

    def offer(self) -> None:
        """Say, once, at every node that may ask for it that rows of the room wait here (library thread)."""
        if self._offered:
            return
        for _, door in self._doors.open_ones:
            if door.part.posts.post_offer(self._handle.room, door.writer):
                self._offered.append(door)

    def withdraw(self) -> None:
        """Take the offers off, for the room has its destination, or is over (whoever has the turn)."""
        for door in self._offered:
            door.part.posts.take_off_offer(self._handle.room, door.writer)
        self._offered.clear()

    def meet(self, wanted: int) -> None:
        """Find the grant, if rows below `wanted` wait, or are announced; tell the node if fewer are granted (library
        thread).
        """
        if wanted and not self.is_joined:
            self.offer()  # first: of two who cross, one sees the other (R37)
            self.bind()
        if self.is_joined:
            self.withdraw()
            if wanted > self._dsts.get(self._handle.slot, ONLY, Destination.GRANTED_TOKENS):
                self._handle.tell()  # what is granted from now on comes by messages

    def bind(self) -> Door | None:
        """Look for a grant of the room, and bind the slot to it. Returns the door of the node that has granted it.

        None: there is no grant, or that node is gone, or the slot has a destination.
        """
        if self.is_joined:
            return None
        handle = self._handle
        with self._deciding:
            for peer, door in self._doors.open_ones:
                if bound := door.grants.bind(peer, handle.room, handle.slot, handle.epoch):
                    self.follow_up(bound)
                    return None if bound & BIND_GONE else door
        return None

    def follow_up(self, bound: int) -> None:
        """Tell whom it concerns that the slot is bound."""
        handle = self._handle
        if bound & BIND_TOLD:
            self._attachment.kick_bootstrap(Kick.OPEN, handle.slot, handle.epoch)  # it takes the destination up (R79)
        if bound & BIND_GONE:  # its entry in the peer table may be another's by now
            handle.fail(FailureCode.PEER_LOST, "the language node that had granted it is gone")

    def is_bound(self, d: int = ONLY) -> bool:
        """Whether the grant of a destination is bound to this sender.

        Where the node has joined the destination, the grant is bound here and now, unless another sender has it (R81).

        A grant that was not posted needs no binding, for nobody else finds it.
        """
        own = self._handle.slot
        if self._slots.get(own, Slot.JOINED_BY) == JoinedBy.CLIENT:
            return True
        peer, incarnation, slot, epoch, *_ = self._dsts.get_all(own, d)
        _, door = self._doors.find(peer - 1, incarnation)
        if door is None or door.part.posts.granted(slot, epoch) is None:
            return True
        is_bound = door.part.posts.bind(slot, epoch)
        door.part.posts.take_off_grant(self._handle.room, slot, epoch)
        return is_bound

    # ---- after

    def may_release(self) -> bool:
        """Whether the destination has ended, and its node was not told of it, so that nobody waits for ours (R80)."""
        own = self._handle.slot
        has_succeeded = self._handle.progress().phase == Phase.Success
        if not has_succeeded or self._slots.get(own, Slot.JOINED_BY) != JoinedBy.CLIENT:
            return False
        peer, incarnation, slot, epoch, *_ = self._dsts.get_all(own, ONLY)
        _, door = self._doors.find(peer - 1, incarnation)
        if door is None:
            return False
        word = split(door.part.status.load(slot))
        has_ended = word.epoch != epoch or word.phase >= TERMINAL
        return has_ended and not door.part.posts.is_told(slot, epoch)
