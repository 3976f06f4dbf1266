"""The requests that a client has open, by slot and by room, and how one gets its slot and leaves it."""

from __future__ import annotations

import logging
from array import array
from collections import deque

from embridge.allocator._core import OPENER_ASKED, OPENER_EPOCH_SHIFT, untrack
from embridge.allocator.ends import Counter, Path
from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.allocator.untold import untold_opener
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import RISEN_MASK, TransferHandle
from embridge.pipeline.client.slot_lease import NO_MORE_EPOCHS, SlotLease
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
        self.untold = UntoldRequests(attachment.clock, lambda: attachment.library_bell.ring())
        self._asked = None
        if attachment.control.role == Role.ENCODE:
            control = attachment.control
            self._asked, self._untold_rooms, self._finished = control.asked, control.untold, control.finished
            self._opener = untold_opener(control, attachment.lane)

    def add(self, handle: TransferHandle) -> None:
        """Note a request that has no slot yet."""
        self.by_room[handle.room] = handle

    def enter(self, handle: TransferHandle, *, is_early: bool = False, untold: bool = False) -> bool:
        """Give a request its slot. False if there is none for it (either thread).

        `is_early` says that nobody has asked for its room yet; `untold`, that the node's processes
        need not be told of it yet.
        """
        is_untold = untold and handle.deadline_ns - handle.opened_ns > 2 * self.untold.late_ns  # it is told in time
        if self._asked is not None:
            if is_untold and handle.aux is not None:
                return self._enter_untold(handle, handle.aux, is_early=is_early)
            self._finished.forget(handle.room)
        at = self.lease.open(
            handle.room, handle.opened_ns, handle.deadline_ns, handle.prepare, is_early=is_early, is_untold=is_untold
        )
        if at is None:
            return False
        if is_untold:
            self.enter_opened(handle, *at)
        else:
            handle.entered(*at)
            log.debug("room %d has slot %d.%d", handle.room, *at)
            self.by_slot[handle.slot] = self.by_room[handle.room] = handle
            self._attachment.kick_bootstrap(Kick.OPEN, *at)
        handle.catch_up()
        return True

    def _enter_untold(self, handle: TransferHandle, aux: array[int], *, is_early: bool) -> bool:
        """Give a sender its slot, of which no process of the node is told (R80). False if there is none for it."""
        lease, room, opened_ns = self.lease, handle.room, handle.opened_ns
        while (slot := lease.take(is_early=is_early)) is not None:
            if said := self._opener.open(slot, room, opened_ns, handle.deadline_ns, aux):
                break
            log.warning(NO_MORE_EPOCHS, slot)
        else:
            return False
        self.enter_opened(handle, slot, said >> OPENER_EPOCH_SHIFT)
        if said & OPENER_ASKED:
            handle.tell()  # somebody has asked
        return True

    def enter_opened(self, handle: TransferHandle, slot: int, epoch: int) -> None:
        """Note the slot that was opened for a request, of which no process of the node is told."""
        handle.entered(slot, epoch)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("room %d has slot %d.%d, and the node is not told", handle.room, slot, epoch)
        self.by_slot[slot] = self.by_room[handle.room] = handle
        if handle.aux is not None:
            untrack(handle.aux)
        self.untold.add(handle)

    def handles(self) -> list[TransferHandle]:
        """All that are open, those that wait for a slot, too (either thread)."""
        return list({*list(self.by_slot.values()), *list(self.by_room.values())})

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
            self._count(handle)
            self.lease.released(handle.slot, handle.epoch)
            self._attachment.control.metrics.count_for_client(Metric.SUCCEEDED)
            return
        self._attachment.tell(handle.room, handle.slot, handle.epoch)
        self.lease.leave(handle.slot, handle.epoch)
        self._attachment.tell_left(handle.slot, handle.epoch)

    def left(self, handle: TransferHandle, word: int) -> None:
        """Take back the slot of a request that its client has released itself, with this status word, and which is
        counted (who has the turn, R78).
        """
        slot, room = handle.slot, handle.room
        if log.isEnabledFor(logging.DEBUG):
            log.debug("room %d leaves slot %d.%d", room, slot, handle.epoch)
        if handle.reported != word & RISEN_MASK:  # else its caller knows
            self.departed.append(handle)
        if self.by_slot.get(slot) is handle:
            del self.by_slot[slot]
        if self.by_room.get(room) is handle:
            del self.by_room[room]
        self.lease.take_back(slot)

    def take_departed(self) -> list[TransferHandle]:
        """Those that have left since this was asked last (caller's thread)."""
        return [self.departed.popleft() for _ in range(len(self.departed))]

    def _count(self, handle: TransferHandle) -> None:
        """Count a request that no process of the node counts, before its slot is another's."""
        control, slot = self._attachment.control, handle.slot
        rounds = control.slots.get(slot, Slot.NUM_ROUNDS)
        control.ends.succeeded(Counter.CLIENTS, slot, handle.epoch, Path.DIRECT, rounds)

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
        for handle in self.handles():
            handle.refuse(why)
        for table in (self.by_slot, self.by_room, self.departed):
            table.clear()
        self.untold.clear()
        refuse(self, why, ("lease", "_asked", "_untold_rooms", "_finished", "_opener"))
