"""The requests that a client has open, by slot and by room, and how one gets its slot and leaves it."""

from __future__ import annotations

import weakref
from collections import deque

from embridge.allocator.rings import Kick
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.leaving import refuse


class OpenRequests:
    """One client's.

    The caller's thread opens, the library thread opens and ends; each step on a table is one that the GIL makes atomic.

    `departed` keeps those that have left before the caller had seen their end, as many as `num_departed`.
    """

    def __init__(self, attachment: Attachment, num_departed: int) -> None:
        self._attachment = attachment
        self.lease = SlotLease(attachment.control, attachment.lane)
        self.by_slot: dict[int, TransferHandle] = {}
        self.by_room: dict[int, TransferHandle] = {}
        self.departed: deque[TransferHandle] = deque(maxlen=num_departed)
        self.known: weakref.WeakSet[TransferHandle] = weakref.WeakSet()  # all that were made, to be told of the end

    def add(self, handle: TransferHandle) -> None:
        """Note a request that has no slot yet."""
        self.known.add(handle)
        self.by_room[handle.room] = handle

    def enter(self, handle: TransferHandle, *, is_early: bool = False) -> bool:
        """Give a request its slot.

        False if there is none for it. `is_early`: nobody has asked for its room yet (either thread).
        """
        at = self.lease.open(handle.room, handle.opened_ns, handle.deadline_ns, handle.prepare, is_early=is_early)
        if at is None:
            return False
        handle.entered(*at)
        self._enter(handle)
        handle.catch_up()
        return True

    def _enter(self, handle: TransferHandle) -> None:
        self.known.add(handle)
        self.by_slot[handle.slot] = handle
        self.by_room[handle.room] = handle
        self._attachment.kick_bootstrap(Kick.OPEN, handle.slot, handle.epoch)

    def is_open(self, handle: TransferHandle) -> bool:
        """Whether a request is in flight still: it has not left its slot."""
        return self.by_slot.get(handle.slot) is handle

    def waiting_for(self, room: int) -> TransferHandle | None:
        """The request of a room, if it waits for a slot."""
        handle = self.by_room.get(room)
        return handle if handle is not None and handle.is_waiting else None

    def leave(self, handle: TransferHandle) -> None:
        """Give a request's slot back: the client needs nothing of it any more (library thread)."""
        self.departed.append(handle)
        if self.by_slot.get(handle.slot) is handle:
            del self.by_slot[handle.slot]
        self._forget_room(handle)
        self.lease.leave(handle.slot, handle.epoch)
        self._attachment.tell_left(handle.slot, handle.epoch)

    def end_without_slot(self, handle: TransferHandle) -> None:
        """End a request that was given up, and for which there is no slot (library thread)."""
        handle.end_without_slot()
        self.departed.append(handle)
        self._forget_room(handle)
        self._attachment.user_bell.ring()

    def _forget_room(self, handle: TransferHandle) -> None:
        if self.by_room.get(handle.room) is handle:
            del self.by_room[handle.room]

    def refuse(self, why: str) -> None:
        """The client has left its node: nothing is open any more, and whatever is asked of a slot is a RuntimeError."""
        for handle in list(self.known):
            handle.refuse(why)
        for table in (self.by_slot, self.by_room, self.departed):
            table.clear()
        refuse(self, why, ("lease",))
