"""The requests that a client has open, by slot and by room, and how one gets its slot and leaves it."""

from __future__ import annotations

import logging
import weakref
from collections import deque

from embridge.allocator.ends import Counter, Path
from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.client.untold import UntoldRequests
from embridge.pipeline.leaving import refuse

log = logging.getLogger(__name__)


class OpenRequests:
    """One client's open requests.

    The caller's thread opens, the library thread opens and ends; each step on a table is one that the GIL makes atomic.
    `departed` keeps those that have left before the caller had seen their end, as many as `num_departed`.
    """

    def __init__(self, attachment: Attachment, num_departed: int) -> None:
        self._attachment = attachment
        self.lease = SlotLease(attachment.control, attachment.lane)
        self.by_slot: dict[int, TransferHandle] = {}
        self.by_room: dict[int, TransferHandle] = {}
        self.departed: deque[TransferHandle] = deque(maxlen=num_departed)
        self.untold = UntoldRequests(attachment.clock)
        self._asked = None
        if attachment.control.role == Role.ENCODE:
            control = attachment.control
            self._asked, self._untold_rooms, self._finished = control.asked, control.untold, control.finished
        self.known: weakref.WeakSet[TransferHandle] = weakref.WeakSet()  # all that were made, to be told of the end

    def add(self, handle: TransferHandle) -> None:
        """Note a request that has no slot yet."""
        self.known.add(handle)
        self.by_room[handle.room] = handle

    def enter(self, handle: TransferHandle, *, is_early: bool = False, untold: bool = False) -> bool:
        """Give a request its slot. False if there is none for it (either thread).

        `is_early` says that nobody has asked for its room yet; `untold`, that the node's processes
        need not be told of it yet.
        """
        is_untold = untold and self._is_in_time(handle)
        is_counted = is_untold and self._asked is not None
        if self._asked is not None:
            self._finished.forget(handle.room)
        if is_counted:
            self._untold_rooms.add(handle.room, 1)  # before there is a slot: a count may be too high, never too low
        at = self.lease.open(
            handle.room, handle.opened_ns, handle.deadline_ns, handle.prepare, is_early=is_early, is_untold=is_untold
        )
        if at is None:
            if is_counted:
                self._untold_rooms.add(handle.room, -1)
            return False
        handle.entered(*at)
        log.debug("room %d has slot %d.%d%s", handle.room, *at, ", and the node is not told" if is_untold else "")
        self._enter(handle, is_untold=is_untold)
        handle.catch_up()
        return True

    def _is_in_time(self, handle: TransferHandle) -> bool:
        """Whether the deadline of a request is behind the time at which its node will be told of it."""
        return handle.deadline_ns - handle.opened_ns > 2 * self.untold.late_ns

    def _enter(self, handle: TransferHandle, *, is_untold: bool = False) -> None:
        self.known.add(handle)
        self.by_slot[handle.slot] = handle
        self.by_room[handle.room] = handle
        if not is_untold:
            self._attachment.kick_bootstrap(Kick.OPEN, handle.slot, handle.epoch)
            return
        if self.untold.add(handle):
            self._attachment.library_bell.ring()
        if self._asked is not None and self._asked.get(handle.room):
            handle.tell()  # who asks after this look finds it (R80)

    def is_open(self, handle: TransferHandle) -> bool:
        """Whether a request is still in flight, and so has not left its slot."""
        return self.by_slot.get(handle.slot) is handle

    def waiting_for(self, room: int) -> TransferHandle | None:
        """The request of a room, if it waits for a slot."""
        handle = self.by_room.get(room)
        return handle if handle is not None and handle.is_waiting else None

    def leave(self, handle: TransferHandle) -> None:
        """Give a request's slot back, because the client needs nothing of it any more (whoever has the turn)."""
        self.departed.append(handle)
        log.debug("room %d leaves slot %d.%d", handle.room, handle.slot, handle.epoch)
        is_released = handle.release_untold()
        if self.by_slot.get(handle.slot) is handle:
            del self.by_slot[handle.slot]
        self.forget_room(handle)
        if is_released:
            if self._asked is not None:
                self._finished.note(handle.room)
                self._untold_rooms.add(handle.room, -1)
            rounds = self._attachment.control.slots.get(handle.slot, Slot.NUM_ROUNDS)
            self._attachment.control.ends.succeeded(Counter.CLIENTS, handle.slot, handle.epoch, Path.DIRECT, rounds)
            self.lease.released(handle.slot, handle.epoch)
            self._attachment.control.metrics.count_for_client(Metric.SUCCEEDED)
            return
        self._attachment.tell(handle.room, handle.slot, handle.epoch)
        self.lease.leave(handle.slot, handle.epoch)
        self._attachment.tell_left(handle.slot, handle.epoch)

    def end_without_slot(self, handle: TransferHandle) -> None:
        """End a request that was given up, and for which there is no slot (library thread)."""
        self._attachment.control.ends.failed(Counter.CLIENTS, handle.end_without_slot())
        self.departed.append(handle)
        self.forget_room(handle)
        self._attachment.user_bell.ring()

    def forget_room(self, handle: TransferHandle) -> None:
        """Let the room of a request that is over be used again (whoever has the turn)."""
        if self.by_room.get(handle.room) is handle:
            del self.by_room[handle.room]

    def refuse(self, why: str) -> None:
        """Have every use of a slot raise RuntimeError, because the client has left its node."""
        for handle in list(self.known):
            handle.refuse(why)
        for table in (self.by_slot, self.by_room, self.departed):
            table.clear()
        self.untold.clear()
        refuse(self, why, ("lease", "_asked", "_untold_rooms", "_finished"))
