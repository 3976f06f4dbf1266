"""The requests of a client that wait for a slot, and which of them is next.

A slot of an encode node is held by a call of an encoder, and a scheduler has asked for its room or not. Suppose that
rooms that nobody has asked for could hold every slot of an encode node, and rooms other than these every slot of the
language node. Then the two would wait for each other until their deadlines. So no more than half of an encode node's
pages of slots hold rooms that nobody has asked for. The other half is taken by rooms that have all their destinations,
which end (`tests/model/slots_model.py`). Calls beyond that wait here, without a slot, and hear by a log of rooms that
theirs is wanted. On a language node the slots are taken first come, first served.

Rooms that are asked for with no block yet leave a quarter of a client's slots to rooms whose blocks are there. So no
room holds a block while it waits for a slot whose holders wait for a block.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Final

from embridge.allocator.errors import FailureCode, NodeBusyError
from embridge.allocator.geometry import Role
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.handle import OWN_NODE_GONE, TransferHandle
from embridge.pipeline.client.open_requests import OpenRequests
from embridge.workers.timing import NS

MAX_WAITING: Final = 16384
LEAST_HINT_S, MOST_HINT_S = 0.05, 5.0


def check_room(num_waiting: int, oldest_s: float) -> None:
    """Whether one more may wait.

    The oldest has come through the whole queue, so an eighth of it moves on in an eighth of that time.

    Raises:
        NodeBusyError: none may.
    """
    if num_waiting >= MAX_WAITING:
        hint_s = min(max(oldest_s / 8, LEAST_HINT_S), MOST_HINT_S)
        raise NodeBusyError(f"requests of this client that wait for a slot: {num_waiting} >= {MAX_WAITING}", hint_s)


class SlotQueue:
    """The requests that wait for a slot, in the order of their calls.

    The caller's thread joins and hurries, the library thread serves.
    """

    def __init__(self, attachment: Attachment, requests: OpenRequests) -> None:
        self._attachment = attachment
        self._requests = requests
        self._control = attachment.control
        self._is_encode = attachment.control.role == Role.ENCODE
        self.waiting: OrderedDict[TransferHandle, None] = OrderedDict()
        self._first: OrderedDict[TransferHandle, None] = OrderedDict()  # they take any slot, to end there at once
        self._wanted_ones: OrderedDict[TransferHandle, None] = OrderedDict()  # rooms asked for, with no block yet
        self._is_marked = False
        if self._is_encode:
            self._wanted = attachment.control.wanted
            self._read = self._wanted.end

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def is_wanted(self) -> bool:
        """Whether a request of this client, or another client, waits for a slot (either thread)."""
        return bool(self.waiting) or bool(self._control.slot_waiters.lanes())

    def handles(self) -> list[TransferHandle]:
        """All requests that wait, in their order (either thread)."""
        return list(self.waiting)

    # ---- the caller's thread

    def check_room(self) -> None:
        """Raise NodeBusyError if the queue is full."""
        first = _first(self.waiting)
        check_room(len(self), (self._attachment.clock() - first.opened_ns) / NS if first is not None else 0.0)

    def join(self, handle: TransferHandle) -> None:
        """Have a request wait, behind all others."""
        self.waiting[handle] = None
        if self._is_encode:  # in this order: a room asked for from now on is announced, an earlier one looked up
            self._control.room_waiters.set(self._attachment.lane, True)
            self._attachment.ask(handle.room)
        self._attachment.library_bell.ring()

    def hurry(self, handle: TransferHandle) -> None:
        """Have a request that was given up take any slot and end there, so that others hear of it.

        On a language node it ends without a slot if there is none.
        """
        self._first[handle] = None
        self._attachment.library_bell.ring()

    # ---- the library thread

    def turn(self, now_ns: int, *, is_slow: bool) -> bool:
        """Open what may be opened. True if there was no slot for a request that might have one."""
        if self._attachment.node_gone:
            for handle in self.handles():
                handle.give_up(FailureCode.PEER_LOST, OWN_NODE_GONE)
                self._end(handle)
        # before the look, because what is announced from here on is for requests that join now
        end = self._wanted.end if self._is_encode else 0
        if not self.waiting:
            self._stop_listening(end)
            return False
        late: list[TransferHandle] = []
        if self._is_encode:
            self._look_who_is_wanted()
        if is_slow:
            late = [handle for handle in self.handles() if handle.deadline_ns <= now_ns]
            for handle in late:
                handle.give_up(FailureCode.TIMEOUT, "deadline passed while waiting for a slot")
                self._first[handle] = None
        lacks = self._open(self._first)
        if not self._is_encode:
            late = list(self._first)  # they are given up, and without a slot nobody has been told that they are there
        for handle in late:
            if handle.is_waiting:
                self._end(handle)
        if self._is_encode:
            lacks |= self._open(self._wanted_ones, to_spare=True)
            self._open(self.waiting, is_early=True)  # those behind will be asked for
        else:
            lacks = self._open(self.waiting)
        return lacks

    def _stop_listening(self, end: int) -> None:
        if self._is_encode:
            self._read = end
            if self._is_marked:
                self._is_marked = False
                self._control.room_waiters.set(self._attachment.lane, False)
                # the caller's thread was in between: it may have asked while no mark stood
                for handle in self.handles():
                    self._control.room_waiters.set(self._attachment.lane, True)
                    self._attachment.ask(handle.room)

    def _look_who_is_wanted(self) -> None:
        if not self._is_marked:
            self._is_marked = True
            self._control.room_waiters.set(self._attachment.lane, True)
        rooms, self._read = self._wanted.since(self._read)
        for room, can_end in rooms:
            handle = self._requests.waiting_for(room)
            if handle is not None:
                (self._first if can_end else self._wanted_ones)[handle] = None

    def _open(
        self, queue: OrderedDict[TransferHandle, None], *, is_early: bool = False, to_spare: bool = False
    ) -> bool:
        """Open requests of a queue in order. True if there was no slot for the first of them."""
        while (handle := _first(queue)) is not None:
            if handle.is_waiting:
                if to_spare and not self._requests.lease.has_some_to_spare():
                    return False
                if not self._requests.enter(handle, is_early=is_early):
                    return True
            queue.pop(handle)
            self.waiting.pop(handle, None)
        return False

    def _end(self, handle: TransferHandle) -> None:
        self.waiting.pop(handle, None)
        self._first.pop(handle, None)
        self._wanted_ones.pop(handle, None)
        self._requests.end_without_slot(handle)

    def close(self) -> None:
        """Wait for nothing any more, because the client leaves."""
        for handle in self.handles():
            handle.give_up(FailureCode.ABORTED, "this client was closed")
            self._end(handle)


def _first(queue: OrderedDict[TransferHandle, None]) -> TransferHandle | None:
    while True:
        with contextlib.suppress(RuntimeError):  # the other thread has joined one between the two steps
            return next(iter(queue), None)
