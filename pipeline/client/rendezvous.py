"""The encoder's side of the rendezvous: its client finds the grant of a room by itself, and binds its slot to it.

`bind` looks through the tables of all nodes whose doors are open for a grant of the sender's room (R37). What it finds
is a hint: the claim must have the grant's epoch, the meeting record must name the room and this encode node, and the
claim must have that epoch still. Then the grant is bound to this encoder, and the slot to the grant (R38, R79), each by
one compare-and-swap, and the destination is noted in the slot, as the bootstrap notes one whose init has come.
"""

from __future__ import annotations

from array import array
from threading import RLock
from typing import Final

from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.posts import Granted
from embridge.allocator.records import DESTINATION_WORDS, Destination, JoinedBy, Peer, Slot, WrittenBy
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.doors import Door, Doors
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.leaving import refuse

_NO_ROWS: Final = RowSum(0, 0).pack()
_NO_DESTINATION: Final = bytes(8 * DESTINATION_WORDS)
ONLY: Final = 0  # the destination: a request with several goes through the worker


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
        self._peers = control.peers
        self._node = (control.node_id, control.incarnation)
        self._window = control.limits.window_blocks
        self._bs = control.geometry.block_size
        self._offered: list[Door] = []

    def refuse(self, why: str) -> None:
        """The client has left its node: whatever is asked of the tables from now on is a RuntimeError."""
        refuse(self, why, ("_slots", "_dsts", "_peers"))
        self._offered.clear()

    @property
    def is_joined(self) -> bool:
        """Whether the slot has its destination, or somebody is about to enter it."""
        return self._slots.get(self._handle.slot, Slot.JOINED_BY) != JoinedBy.NOBODY

    # ---- before

    def offer(self) -> None:
        """Say, once, at every node that may ask for it that rows of the room wait here (library thread)."""
        if self._offered:
            return
        for _, door in self._doors.open_ones():
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

    def bind(self) -> bool:
        """Look for a grant of the room, and bind the slot to it. False: there is none, or the slot has one."""
        if self.is_joined:
            return False
        with self._deciding:
            return not self.is_joined and any(
                self._bind(peer, door, slot, epoch)
                for peer, door in self._doors.open_ones()
                for slot, epoch in door.part.posts.grants(self._handle.room)
            )

    def is_bound(self) -> bool:
        """Whether the grant of the destination is bound to this sender.

        Where the node has joined the destination, the grant is bound here and now, unless another sender has it (R81).

        A grant that was not posted needs no binding, for nobody else finds it.
        """
        own = self._handle.slot
        if self._slots.get(own, Slot.JOINED_BY) == JoinedBy.CLIENT:
            return True
        peer, incarnation, slot, epoch, *_ = self._dsts.get_all(own, ONLY)
        _, door = self._doors.find(peer - 1, incarnation)
        if door is None or door.part.posts.granted(slot, epoch) is None:
            return True
        is_bound = door.part.posts.bind(slot, epoch)
        door.part.posts.take_off_grant(self._handle.room, slot, epoch)
        return is_bound

    def _bind(self, peer: int, door: Door, slot: int, epoch: int) -> bool:
        part, own = door.part, self._handle.slot
        is_open = part.claims.is_open(slot, epoch)
        granted = part.posts.granted(slot, epoch)
        if granted is None or not is_open:
            return False
        if (granted.room, granted.node) != (self._handle.room, self._node):
            return False
        blocks = part.windows.get_first(slot, granted.num_blocks)
        if part.claims.epoch(slot) != epoch or not self._holds(granted, blocks, door):
            return False
        if not self._is_there(peer, door) or self._peers.tombstone(peer, slot) >= epoch:
            return False  # else its node has joined another sender to it, or has heard that it is over
        if not part.posts.bind(slot, epoch):
            return False
        if not self._slots.join(own, JoinedBy.CLIENT):
            part.posts.unbind(slot, epoch)
            return False
        self._note(peer, door, (slot, epoch), granted, blocks)
        part.posts.take_off_grant(self._handle.room, slot, epoch)
        if not self._slots.is_untold(own, self._handle.epoch):
            self._attachment.kick_bootstrap(Kick.OPEN, own, self._handle.epoch)  # it takes the destination up (R79)
        if not self._is_there(peer, door):  # its entry in the peer table may be another's by now
            self._handle.fail(FailureCode.PEER_LOST, "the language node that had granted it is gone")
        return True

    def _holds(self, granted: Granted, blocks: list[int], door: Door) -> bool:
        """Whether a grant can be true, judged by the geometry of its node."""
        count, tokens = granted.num_blocks, granted.num_tokens
        return (
            0 < count <= min(self._window, door.part.windows.window)
            and (count - 1) * self._bs < tokens <= min(count * self._bs, MAX_TOKENS)
            and max(blocks) < door.geometry.num_blocks
            and len(set(blocks)) == count
        )

    def _is_there(self, peer: int, door: Door) -> bool:
        return self._peers.is_here(peer, door.node)

    def _note(self, peer: int, door: Door, remote: tuple[int, int], granted: Granted, blocks: list[int]) -> None:
        """Enter the destination, which is there once `NUM_DESTINATIONS` says so."""
        own, words = self._handle.slot, array("Q", _NO_DESTINATION)
        words[Destination.PEER], words[Destination.INCARNATION] = peer + 1, door.node[1]
        words[Destination.REMOTE_SLOT], words[Destination.REMOTE_EPOCH] = remote
        words[Destination.GRANTED_TOKENS], words[Destination.GRANTED_BLOCKS] = granted.num_tokens, granted.num_blocks
        words[Destination.FIRST_GRANT], words[Destination.SUMMED] = granted.num_tokens, _NO_ROWS
        words[Destination.REGISTRATION] = self._peers.get(peer, Peer.REGISTRATION)
        words[Destination.WINDOW], words[Destination.WRITTEN_BY] = self._window, WrittenBy.CLIENT
        self._slots.set(own, Slot.REQUIRED, 1)
        self._dsts.write(own, ONLY, words, blocks)
        self._slots.set(own, Slot.NUM_DESTINATIONS, 1)

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
