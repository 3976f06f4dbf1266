"""The library: what a client does behind its public face, for its handles and for the queues and ranks over it.

A client has two threads. The caller's reads words, appends to queues, rings bells and ends what has landed
(`callers_view.py`): it never waits, holds nothing that is waited for, and does no I/O. The library thread stages,
drains, grants and frees; it sleeps on its own doorbell, without the GIL.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable

import numpy as np

from embridge.allocator._core import TurnTaker
from embridge.allocator.errors import FailureCode, NodeBusyError, NodeGoneError, NodeUnhealthyError
from embridge.allocator.geometry import Role
from embridge.allocator.records import LIBRARY_VIEW, NodeState, SegmentHeader
from embridge.allocator.rings import FULL_RING_WAIT_S
from embridge.allocator.slot_changes import SlotChanges
from embridge.allocator.untold import untold_receiver
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.attachment import CLOSED, FORKED, Attachment
from embridge.pipeline.client.callers_view import SLOW_LOOK_NS, CallersView
from embridge.pipeline.client.doors import Doors
from embridge.pipeline.client.handle import MAX_ROOM, TransferHandle
from embridge.pipeline.client.leading_ranks import LeadingRanks
from embridge.pipeline.client.neighbours import Neighbours
from embridge.pipeline.client.open_requests import OpenRequests
from embridge.pipeline.client.posting import Posting
from embridge.pipeline.client.rounds import Round
from embridge.pipeline.client.slot_queue import MAX_WAITING, SlotQueue
from embridge.pipeline.client.unsent_memory import UnsentMemory
from embridge.pipeline.client.untold import LIBRARY_WAIT_S
from embridge.pipeline.leaving import refuse
from embridge.workers.health import why_refusing
from embridge.workers.log_limit import LogLimit
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

STARVING_WAIT_S = 0.005
MAX_TIMEOUT_S = 1e9
END_WAIT_S = 5.0  # for the library thread to finish what it copies
LED_TO_MEMORY = (
    *("control", "slots", "status", "destinations", "staging", "windows", "sessions", "claims", "posting", "unsent"),
    *("fetches", "slot_queue", "_changes", "neighbours", "untold"),
)

_libraries: weakref.WeakSet[Library] = weakref.WeakSet()  # libraries that have threads, to be told of a fork


class Library:
    """One client's handles, and the turns of the thread that serves them.

    Without `start` there is no such thread, and whoever made the library calls `turn`.
    """

    ranks: LeadingRanks | None = None
    arrivals: object = None  # of `receive`, in the scheduler's room
    doors: Doors | None = None
    """Where this client may write rows straight into a destination's blocks; None where it does not."""

    def __init__(self, attachment: Attachment) -> None:
        control = self.control = attachment.control
        self.slots, self.status = control.slots, control.status
        num_slots = control.limits.num_slots
        self.attachment = attachment
        self.requests = OpenRequests(attachment, num_slots + MAX_WAITING)
        self.slot_queue = SlotQueue(attachment, self.requests)
        self.view = CallersView(attachment, self.requests)
        if control.role == Role.ENCODE:
            self.destinations, self.staging = control.destinations, control.staging
            self.unsent = UnsentMemory(control, attachment.lane)
            if attachment.settings.get("direct") and not control.verify:
                self.doors = Doors(attachment)
        else:
            self.windows, self.sessions, self.fetches = control.windows, control.sessions, control.fetches
            self.claims, self.posting = control.claims, Posting(attachment)
            self.neighbours = Neighbours(control)
            self.untold = untold_receiver(control, attachment.lane)
        self._limit = LogLimit()
        self._stop = threading.Event()
        self._has_ended = True  # until it begins
        self._leaves_late = False
        self._end_lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []
        self._turns: list[Callable[[], bool]] = []
        self._out = np.empty(num_slots, np.uint32)
        self._words = np.zeros(num_slots, np.uint64)
        self._slow_ns = 0
        self._round = Round(self.requests.by_slot)
        self._changes = SlotChanges(control)
        self._starving: OrderedDict[TransferHandle, None] = OrderedDict()
        self._to_serve: deque[TransferHandle] = deque()
        self.num_waiting = 0  # requests that wait for a slot, as the lane says (either thread)
        self._num_lacking = 0  # how many of them wait in a transfer queue
        self._is_slot_waiter = self._is_block_waiter = self._is_spared = False
        self.drained_ns = -NS  # when rows were copied out last (whoever has the turn)

    def start(self) -> None:
        """Start the library thread. Raises RuntimeError: no thread can be started."""
        thread = threading.Thread(target=self._live, name="embridge-library", daemon=True)
        witness = threading.Thread(target=self._stop.wait, name="embridge-witness", daemon=True)  # see `death_watch`
        self.attachment.threads = (thread, witness)
        self._has_ended = False
        try:
            witness.start()
            thread.start()
        except BaseException:
            self._stop.set()
            raise
        _libraries.add(self)

    # ---- the caller's thread

    def check_open(self, room: int, role: Role, what: str, instead_of: TransferHandle | None = None) -> int:
        """The room as an int, if a request of it may be opened here now; raises as `Client.sender` does.

        `instead_of`: a request of the same room, which has failed.
        """
        attachment, control = self.attachment, self.attachment.control
        if attachment.is_closed or attachment.node_gone or attachment.is_forked:
            attachment.check_usable()
        if control.role != role:
            ours, theirs = control.role.name.lower(), role.name.lower()
            raise ValueError(f"{what}: this client is attached to a {ours} node; attach to the {theirs} node")
        if type(room) is not int or not 0 <= room <= MAX_ROOM:
            room = whole("room", room, 0, MAX_ROOM, "0 to 2**63 - 1")
        if self.requests.by_room.get(room, instead_of) is not instead_of:
            raise ValueError(f"room: {room} is in use; a room is one request, use a new number")
        if not control.is_sound:
            if control.state != NodeState.READY:
                raise NodeGoneError(f"the node is {control.state.name}; it takes no new requests")
            if why := why_refusing(control):
                raise NodeUnhealthyError(f"the node is unhealthy; it takes no new requests: {why}")
        return room

    def open(
        self, handle: TransferHandle, timeout_s: float | None, *, may_wait: bool = True, may_be_untold: bool = False
    ) -> None:
        """Give a request a slot, or have it wait for one. `timeout_s` counts from now; None is the node's. The node is
        told of it when it is late, if it `may_be_untold` (R78).

        Raises:
            ValueError: `timeout_s` is out of range.
            NodeBusyError: there is no slot, and it may not wait, or as many requests as may wait do.
        """
        attachment = self.attachment
        if timeout_s is None:
            timeout_s = attachment.request_timeout_s
        elif not is_time(timeout_s) or not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s: {said(timeout_s)} s must be positive, and at most {MAX_TIMEOUT_S:g} s")
        handle.opened_ns = attachment.clock()
        handle.deadline_ns = handle.opened_ns + int(float(timeout_s) * NS)
        is_early = attachment.control.role == Role.ENCODE
        if not len(self.slot_queue) and self.requests.enter(handle, is_early=is_early, untold=may_be_untold):
            return
        if not may_wait:
            raise NodeBusyError(f"all {attachment.control.limits.num_slots} slots are in use", LIBRARY_WAIT_S)
        self.slot_queue.check_room()
        self.requests.add(handle)
        self.slot_queue.join(handle)

    def hurry(self, handle: TransferHandle) -> None:
        """Have a request that waits for a slot, and was given up, end soon (either thread)."""
        self.slot_queue.hurry(handle)

    def wake(self, handle: TransferHandle | None = None) -> None:
        """Have the library thread take a turn, and serve one request in it (either thread)."""
        if handle is not None:
            self._to_serve.append(handle)
        self.attachment.library_bell.ring()

    # ---- for handles and queues, on the library thread

    def add_turn(self, turn: Callable[[], bool], end: Callable[[], None]) -> None:
        """Have `turn` called once a turn; it says whether it waits for a block.

        `end` is called once, when the client leaves.
        """
        self._turns.append(turn)
        self._ends.append(end)

    def lack_slots(self, count: int) -> None:
        """Count requests that wait for a slot in a transfer queue; it does so in each of its turns."""
        self._num_lacking += count

    def leave(self, handle: TransferHandle) -> None:
        """Give a request's slot back, because the client needs nothing of it any more."""
        self._starving.pop(handle, None)
        self.requests.leave(handle)

    def left(self, handle: TransferHandle, word: int) -> None:
        """As `OpenRequests.left`."""
        self._starving.pop(handle, None)
        self.requests.left(handle, word)

    @property
    def is_starving(self) -> bool:
        """Whether a request of this client waits for a block (either thread)."""
        return bool(self._starving)

    def spare_blocks(self) -> int:
        """How many blocks are free beyond a quarter of the pool, and may be filled ahead of a grant (either thread)."""
        blocks = self.attachment.control.blocks
        return blocks.cells.num_free(blocks.num_blocks) - (blocks.num_blocks // 4 + 1)

    def blocks_are_short(self) -> bool:
        """Whether less than a quarter of the pool is free, so that nothing is staged ahead of a grant."""
        blocks = self.attachment.control.blocks
        quarter = blocks.num_blocks // 4 + 1
        return bool(self._starving) or blocks.cells.num_free(quarter) < quarter

    def evict(self, needy: TransferHandle) -> bool:
        """Have this client's other requests drop blocks that no destination can take now. True if a block came free."""
        others = [handle for handle in list(self.requests.by_slot.values()) if handle is not needy]
        return sum(other.evict() for other in others) > 0 or any(other.evict(copying=True) for other in others)

    def blocks_freed(self) -> None:
        """Wake the library threads that wait for a block (either thread).

        They are those of other clients, and this client's own, for one more turn.
        """
        control = self.attachment.control
        if control.header.load(SegmentHeader.BLOCK_WAITERS):
            control.ring_block_waiters()
        if self._starving:
            self.attachment.library_bell.ring()

    # ---- the library thread

    def _live(self) -> None:
        try:
            self._take_turns()
        finally:
            with self._end_lock:
                self._has_ended = True
            if self._leaves_late:
                self._leave_node()

    def _take_turns(self) -> None:
        attachment, bell = self.attachment, self.attachment.library_bell
        while not self._stop.is_set():
            seen = bell.sequence()
            starving = self._take_turn()
            if not self._stop.is_set():
                wait_s = self.requests.untold.wait_s(STARVING_WAIT_S if starving else LIBRARY_WAIT_S)
                bell.wait(seen, FULL_RING_WAIT_S if attachment.has_kicks_left else wait_s)

    def _take_turn(self) -> bool:
        self.view.library_waits = True  # first: a caller who gives it back from now on rings
        with TurnTaker(self.view.turn) as has_turn:
            if not has_turn:
                return False
            self.view.library_waits = False
            try:
                return self.turn()
            except Exception:
                now = self.attachment.clock()
                self._limit.log(log, logging.ERROR, "turn", now, "library thread: a turn failed", exc_info=True)
                return True

    def turn(self) -> bool:
        """Serve the requests that changed, those that were named, and those that wait for a block, in that order.

        True if some wait.
        """
        attachment, control, requests = self.attachment, self.attachment.control, self.requests
        now = attachment.clock()
        control.lanes.beat(attachment.lane, now)
        status, pages, out = control.status, requests.lease.pages, self._out
        count = status.changed(LIBRARY_VIEW, pages, len(pages), out)
        changed = out[:count].tolist()
        # by handle and not by slot: a request that was woken may have left, and its slot be another's
        todo: dict[TransferHandle, None] = {}
        if is_slow := now >= self._slow_ns:
            self._slow_ns = now + SLOW_LOOK_NS
            self._look_at_node()
            count = status.compare(pages, len(pages), self._words, out)
            changed += out[:count].tolist()
            changed += self._changes.take_some(memoryview(pages))
            todo.update(dict.fromkeys(self._round.some()))
        is_by_hand = False
        for slot in changed:
            if (handle := requests.by_slot.get(slot)) is not None:
                todo[handle] = None
                is_by_hand |= handle.is_by_hand
        if is_by_hand:
            attachment.user_bell.ring()  # who wrote directly has rung this thread alone
        if self._wants_doors(is_slow=is_slow):
            assert self.doors is not None
            self.doors.turn()
            if self.doors.take_news():
                todo.update(dict.fromkeys(list(requests.by_slot.values())))
        while self._to_serve:
            todo[self._to_serve.popleft()] = None
        for handle in list(self._starving):
            if not control.blocks.cells.num_free(1):
                break  # first come, first served: the requests behind wait, too
            if handle not in todo and requests.is_open(handle):
                self._serve(handle)
        for handle in todo:
            if requests.is_open(handle):
                self._serve(handle)
        requests.lease.collect()
        requests.untold.turn(now)
        self._num_lacking = 0
        lacks = self.slot_queue.turn(now, is_slow=is_slow)
        starving = any([bool(self._starving), *[turn() for turn in self._turns]])
        control.blocks.set_waiting(attachment.lane, starving)
        if starving and not self._is_block_waiter and control.role == Role.LANGUAGE:
            control.ring_libraries()  # others may have kept in blocks what can be drained
        self._is_block_waiter = starving
        waits = self._say_who_waits(lacks or self._num_lacking > 0)
        attachment.flush()
        if attachment.node_gone:
            self._let_go_of_payload()
        self._say_whether_spared(starving or waits)
        return starving or waits or self._wants_doors(is_slow=False)

    def _say_whether_spared(self, has_waiters: bool) -> None:
        """Say whether a success may be left to a caller who is awake, for nothing waits for what it gives free."""
        control = self.attachment.control
        waits = has_waiters or self.ranks is not None or control.blocks.waiters() or control.slot_waiters.lanes()
        copies = self.attachment.clock() - self.drained_ns < NS  # so it may have to do it again
        if (is_spared := not waits and not copies and not self.blocks_are_short()) != self._is_spared:
            self._is_spared = is_spared
            self.attachment.library_bell.spare(is_spared)

    def _wants_doors(self, *, is_slow: bool) -> bool:
        """Whether doors are to be looked after: never after the end of this client's own node, which closes them."""
        return self.doors is not None and not self.attachment.node_gone and (is_slow or self.doors.is_wanted)

    def _say_who_waits(self, lacks_slot: bool) -> bool:
        """While there is no slot for a request of this client, have other clients give pages back.

        True while requests wait for a slot.
        """
        control, lane = self.attachment.control, self.attachment.lane
        count = len(self.slot_queue) + self._num_lacking
        if count or self.num_waiting:
            self.num_waiting = count
            control.lanes.set_num_waiting(lane, count)
        if lacks_slot != self._is_slot_waiter:
            self._is_slot_waiter = lacks_slot
            control.slot_waiters.set(lane, lacks_slot)
            if lacks_slot:
                control.ring_libraries()
        self.requests.lease.share(is_needy=lacks_slot)
        return count > 0

    def _serve(self, handle: TransferHandle) -> None:
        try:
            handle.service()
        except Exception as error:
            text = "room %d: the library thread failed"
            self._limit.log(log, logging.ERROR, "serve", self.attachment.clock(), text, handle.room, exc_info=True)
            handle.fail(FailureCode.INTERNAL, f"{type(error).__name__}: {error}")
        if handle.wants_block and self.requests.is_open(handle):
            self._starving.setdefault(handle)
        else:
            self._starving.pop(handle, None)

    def _look_at_node(self) -> None:
        """Look whether the node is gone; once it is, whoever polls finds Failed."""
        if self.attachment.node_gone and self.doors is not None:
            self.doors.close()
        if self.attachment.control.role == Role.LANGUAGE and not self.attachment.node_gone:
            self.neighbours.look()
        if self.attachment.has_lost_node():
            for handle in list(self.requests.by_slot.values()):
                handle.let_go()  # rows that were lent are the caller's again
            self.attachment.user_bell.ring()

    def _let_go_of_payload(self) -> None:
        """Unmap the payload of a node that is gone: all requests have ended, and nobody needs it."""
        if not self.attachment.has_payload:
            return
        for handle in list(self.requests.by_slot.values()):
            handle.progress()
        self.attachment.let_go_of_payload()

    # ---- the end

    def close(self) -> None:
        """Leave the node, as `Client.close` says."""
        attachment = self.attachment
        if attachment.is_closed or attachment.is_forked:
            attachment.is_closed = True
            return
        attachment.is_closed = True
        self._stop.set()
        attachment.library_bell.ring()
        for thread in attachment.threads:
            if thread is not threading.current_thread():
                thread.join(END_WAIT_S)
        with self._end_lock:
            late = self._leaves_late = not self._has_ended
        if not late:
            self._leave_node()
        elif threading.current_thread() not in attachment.threads:  # in a callback nobody has waited for this thread
            text = "client of %s: its library thread has not ended in %g s; it keeps its lane until then"
            log.warning(text, attachment.run_dir, END_WAIT_S)

    def _leave_node(self) -> None:
        """Give up the lane and all that came with it, because no thread copies any more."""
        for handle in self.requests.handles():
            handle.let_go()
            handle.keep_outcome()
        if self.doors is not None:
            self.doors.close()
        self.attachment.unpin()
        self.slot_queue.close()
        for end in self._ends:
            end()
        self.attachment.leave()
        if self.ranks is not None:
            self.ranks.close()
        _libraries.discard(self)
        self._let_go(CLOSED)

    def _let_go(self, why: str) -> None:
        """Free the memory and the descriptors, and cut off whatever leads there."""
        self.requests.refuse(why)
        for held in (self._turns, self._ends, self._starving, self._to_serve):
            held.clear()
        refuse(self, why, LED_TO_MEMORY)
        self.attachment.let_go()

    def end_in_child(self) -> None:
        """Keep nothing in a forked child, and give nothing up: the lane is the parent's."""
        self.attachment.hang_up()
        if self.doors is not None:
            self.doors.hang_up()
        if self.ranks is not None:
            self.ranks.close()
        self._let_go(FORKED)


def _mark_forked() -> None:
    for library in list(_libraries):
        library.end_in_child()


os.register_at_fork(after_in_child=_mark_forked)
