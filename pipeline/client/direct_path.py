"""The direct path: the rows of one request, from this client straight into the blocks of its destinations.

Where a destination is on this host and its door is open (`doors`), nobody stands between a write and its arrival. The
caller's thread copies what is granted; what is not granted yet is kept, and the library thread copies it from there
when it is. Whoever copies holds the claim of the destination's slot, so the two exclude each other, and the end of the
request excludes both (R28, R30).

What a write does under the claim is native, one call for both threads (`allocator/native/direct.h`): this node's status
word decides, and if it was raised to Failed before, the destination is not told of a Success. If this process dies
between the two words, the encode node's poller tells the destination what its own says.

Of several destinations each is written by its own grants, and rows are kept until all have them. Those that are not on
this host are the worker's; the rows that it sends are staged for it as ever.
"""

from __future__ import annotations

from array import array

from embridge.allocator._core import BIND_GONE, BIND_TOLD, SENDER_END_SHIFT, SENDER_FAILED
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Destination, Slot, WrittenBy
from embridge.allocator.status import TERMINAL, Phase
from embridge.pipeline.client.doors import Door
from embridge.pipeline.client.given_rows import Given, address_of
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.held import Held, hold_open
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.rendezvous import ONLY, Rendezvous
from embridge.pipeline.client.stock import Stock
from embridge.pipeline.leaving import refuse


class DirectPath:
    """One sender's."""

    _found: Door | None = None  # of the only destination
    _all: tuple[tuple[int, Door], ...] = ()  # of several, where the worker writes to none
    _meets: Rendezvous | None = None

    def __init__(self, library: Library, handle: TransferHandle, total: int) -> None:
        control = library.attachment.control
        assert library.doors is not None
        self._library = library
        self._attachment = library.attachment
        self._doors = library.doors
        self._deciding = library.doors.deciding
        self._handle = handle
        self._total = total
        self._slots = control.slots
        self._pools = library.doors.pools
        self._dsts = library.destinations
        self._bs = control.geometry.block_size

    @property
    def _rendezvous(self) -> Rendezvous:
        if (meets := self._meets) is None:  # most requests need none
            made = Rendezvous(self._attachment, self._doors, self._handle, self._deciding)
            meets = vars(self).setdefault("_meets", made)
        return meets

    def refuse(self, why: str) -> None:
        """The client has left its node: whatever is asked of the tables from now on is a RuntimeError."""
        refuse(self, why, ("_slots", "_dsts"))
        if self._meets is not None:
            self._meets.refuse(why)
        self.let_go()

    def let_go(self) -> None:
        """The request is over: whoever holds its sender holds nothing of the language nodes."""
        self._found, self._all = None, ()

    def _get(self, field: Destination, d: int = ONLY) -> int:
        return self._dsts.get(self._handle.slot, d, field)

    @property
    def _has_several(self) -> bool:
        return self._found is None and self._slots.get(self._handle.slot, Slot.REQUIRED) > 1

    # ---- who writes

    def decide(self) -> WrittenBy:
        """Say who writes the rows of each destination (either thread); what is said once stays (R28).

        Returns WORKER if the worker writes to one; UNDECIDED if that is not known of one, or not all have come; else
        CLIENT. Then the doors are looked up and kept (`has_found`): the next write need not ask again.
        """
        if self._found is not None:
            return WrittenBy.CLIENT
        said = self._said()
        if WrittenBy.WORKER in said:
            return WrittenBy.WORKER
        if not said or WrittenBy.UNDECIDED in said or len(said) < self._slots.get(self._handle.slot, Slot.REQUIRED):
            return WrittenBy.UNDECIDED
        if len(said) == 1:
            self._door()
        elif not self._all:
            targets = tuple(self._targets())
            self._all = targets if len(targets) == len(said) else ()
        return WrittenBy.CLIENT

    @property
    def is_the_workers(self) -> bool:
        """Whether the worker writes to every destination."""
        said = self._said()
        return {*said} == {WrittenBy.WORKER} and len(said) >= self._slots.get(self._handle.slot, Slot.REQUIRED)

    def _said(self) -> list[WrittenBy]:
        """Who writes, of each destination that has come."""
        slot = self._handle.slot
        count = self._slots.get(slot, Slot.NUM_DESTINATIONS)
        said = [WrittenBy(self._dsts.get(slot, d, Destination.WRITTEN_BY)) for d in range(count)]
        if WrittenBy.UNDECIDED in said:
            with self._deciding:
                return [self._settle(slot, d) for d in range(count)]
        return said

    def is_left_to_worker(self) -> bool:
        """Whether the worker writes the rows, or will, for there is no door to anybody (caller's thread)."""
        decided = self.decide()
        return decided == WrittenBy.WORKER or (decided == WrittenBy.UNDECIDED and not len(self._doors))

    def _settle(self, slot: int, d: int) -> WrittenBy:
        """Say who writes the rows of one destination, if that can be said by now."""
        decided = WrittenBy(self._dsts.get(slot, d, Destination.WRITTEN_BY))
        if decided != WrittenBy.UNDECIDED:
            return decided
        decided = self._path_to(slot, d)
        if decided != WrittenBy.UNDECIDED and not self._rendezvous.is_bound(d):
            said = WrittenBy(self._dsts.get(slot, d, Destination.WRITTEN_BY))
            if said != WrittenBy.UNDECIDED:  # by a signal handler, meanwhile, which is bound
                return said
            reason = f"room {self._handle.room} is in use by another sender of this node"
            self._handle.fail(FailureCode.REFUSED, reason)
            return WrittenBy.UNDECIDED
        if decided != WrittenBy.UNDECIDED:
            decided = WrittenBy(self._dsts.settle(slot, d, Destination.WRITTEN_BY, decided))
        if decided == WrittenBy.WORKER:
            self._attachment.kick_worker(self._handle.room, slot, self._handle.epoch)
        return decided

    def _path_to(self, slot: int, d: int) -> WrittenBy:
        peer = self._dsts.get(slot, d, Destination.PEER) - 1
        path, door = self._doors.find(peer, self._dsts.get(slot, d, Destination.INCARNATION))
        if door is not None:
            length = door.part.claims.length(self._dsts.get(slot, d, Destination.REMOTE_SLOT))
            if length not in (0, self._total):  # the retry of a request of another length fails, and the pollers say so
                return WrittenBy.WORKER
        return path

    def _door(self) -> Door | None:
        door = self._found
        if door is None or door.has_closed:
            door = self._doors.find(self._get(Destination.PEER) - 1, self._get(Destination.INCARNATION))[1]
            self._found = door
        return door

    def _targets(self) -> list[tuple[int, Door]]:
        """The destinations to which this client writes, and their doors."""
        slot, targets = self._handle.slot, []
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            if self._get(Destination.WRITTEN_BY, d) == WrittenBy.CLIENT:
                peer, incarnation = self._get(Destination.PEER, d) - 1, self._get(Destination.INCARNATION, d)
                door = self._doors.find(peer, incarnation)[1]
                if door is not None:
                    targets.append((d, door))
        return targets

    def find(self) -> bool:
        """Bind the slot to a grant of the room, if there is one, and the request has not ended (who has the turn)."""
        if self._handle.progress().phase < TERMINAL:
            self._rendezvous.bind()
        return True

    # ---- the caller's thread

    def may_write(self, first: int) -> bool:
        """Whether rows from `first` on may be written now: all before them are there, and some of them are granted; at
        one destination at least.
        """
        if (door := self._rendezvous.bind()) is not None:  # just now: that says who writes, and that none is there yet
            self._found = door
            return first == 0
        path = self.decide()
        if self._has_several:
            sent_and_granted = [
                (self._get(Destination.SENT, d), self._get(Destination.GRANTED_TOKENS, d)) for d, _ in self._targets()
            ]
            return any(first <= sent < granted for sent, granted in sent_and_granted)
        if path != WrittenBy.CLIENT:
            return False
        return self._get(Destination.SENT) == first < self._get(Destination.GRANTED_TOKENS)

    def write(self, given: Given) -> int:
        """Copy what is granted of these rows. Returns up to which row all destinations have them; `given.first` if
        somebody else writes, or the request has ended.
        """
        if self._has_several:
            return self._write_to_several(given)
        door = self._door()
        if door is None:
            return given.first
        chunk = given.chunk(given.first, min(given.end, self._get(Destination.GRANTED_TOKENS)))
        addresses = [address_of(chunk.data[pool.name]) for pool in self._pools]
        return max(given.first, abs(self._write(door, array("Q", [chunk.first, chunk.end, *addresses]))))

    def _write_to_several(self, given: Given) -> int:
        targets = self._targets()
        granted = [self._get(Destination.GRANTED_TOKENS, d) for d, _ in targets]
        end = min(given.end, max(granted, default=0))
        if end > given.first:
            chunk = given.chunk(given.first, end)
            addresses = [address_of(chunk.data[pool.name]) for pool in self._pools]
            spans = array("Q", [chunk.first, chunk.end, *addresses])
            self._write_each([(d, door, spans) for d, door in targets])
        return max(given.first, min(given.end, self._sent_to_all()))

    @property
    def has_found(self) -> bool:
        """Whether it has been said that they are written directly."""
        return self._found is not None or bool(self._all)

    def follow_up(self, said: int, door: Door) -> int:
        """Tell whom it concerns what `UntoldSender.send` has done. Returns as `DirectWriter.write`; 0, too, where the
        language node is gone.
        """
        handle, attachment = self._handle, self._attachment
        if said & (BIND_TOLD | BIND_GONE):
            self._rendezvous.follow_up(said)
        if said & BIND_GONE:
            return 0
        self._found = door
        end = said >> SENDER_END_SHIFT
        if said & SENDER_FAILED:
            return -end
        if end:
            attachment.user_bell.ring()
            if end < self._total:
                attachment.kick_poller(handle.slot, handle.epoch)
        return end

    @property
    def has_offered(self) -> bool:
        """Whether an offer of the room stands somewhere."""
        return self._meets is not None and self._meets.has_offered

    def leave(self) -> tuple[int, tuple[int, ...]] | None:
        """Release the slot of a request that has succeeded, if no process of either node was told of it (who has the
        turn, R80). Returns its status word, and when it entered each phase; None: it is to be ended as any other.
        """
        door, handle = self._found, self._handle
        if door is None or self.has_offered:
            return None
        return door.untold.leave(handle.room, handle.slot, handle.epoch)

    def write_plain(self, span: list[int]) -> int:
        """Copy what is granted of these rows, where it has been said already that they are written directly. Returns as
        `DirectWriter.write`, of what all destinations have.
        """
        door, spans = self._found, array("Q", span)
        if door is not None:
            return self._write(door, spans)
        if not self._write_each([(d, door, spans) for d, door in self._all]):
            return 0
        sent = min(self._sent_to_all(), span[1])
        return sent if sent > span[0] else 0

    def hold(self, first: int, end: int) -> Held | None:
        """Take the claim, so that rows from `first` on are written in place, at most to `end`. None: not now, or rows
        that several destinations are to have.
        """
        door = None if self._has_several else self._door()
        if door is None:
            return None
        held = Held(door, self._get(Destination.REMOTE_SLOT), self._get(Destination.REMOTE_EPOCH), first)
        hold_open(held)  # first: it does not close from here on
        if door.has_closed or not door.part.claims.take(held.slot, held.epoch, door.writer):
            held.forget()
            return None
        sent, granted = self._get(Destination.SENT), self._get(Destination.GRANTED_TOKENS)  # under the claim (R29)
        limit = min(end, granted) if sent == first else first
        while held.end < limit and held.add(self._dsts.grant(self._handle.slot, ONLY, held.end // self._bs)[0], limit):
            pass
        if held.end == first:
            held.let_go(is_given_back=False)
            return None
        return held

    def commit(self, held: Held, end: int) -> int:
        """Say that the rows before `end` are there. Returns as `DirectWriter.write`: 0, and the claim is held still."""
        return self._write(held.door, array("Q", [held.first, end, *held.addresses()]), is_held=True)

    # ---- the library thread

    def serve(self, ready: int, stock: Stock | None, *, is_wanted_whole: bool) -> bool:
        """Copy what is in stock and granted now, of rows below `ready`. False: the worker writes them, to one
        destination at least.

        `is_wanted_whole`: the caller has announced the length, so that all rows can be granted ahead.
        """
        self._rendezvous.meet(self._total if is_wanted_whole else ready)
        if self._rendezvous.has_offered:
            self._library.requests.untold.look_soon(self._handle, self._look)
        path = self.decide()
        if self._has_several:
            return self._serve_several(ready, stock, path)
        if path != WrittenBy.CLIENT:
            return path == WrittenBy.UNDECIDED
        first, limit = self._get(Destination.SENT), min(ready, self._get(Destination.GRANTED_TOKENS))
        door = self._door()
        if first < limit and door is not None and stock is not None:
            with memoryview(self._attachment.payload):  # rows may lie in it
                if self._write(door, self._spans(stock, first, limit)):
                    self._library.wake(self._handle)  # it may have ended
        self._let_go_below(self._get(Destination.SENT), stock)
        return True

    def _look(self) -> bool:
        """Look for a grant of rows that wait. True: it is found, or there is nothing to look for any more."""
        rendezvous = self._rendezvous
        if rendezvous.has_offered and not rendezvous.is_joined and self._handle.progress().phase < TERMINAL:
            if rendezvous.bind() is None:
                return False
            self._library.wake(self._handle)
        return True

    def _serve_several(self, ready: int, stock: Stock | None, path: WrittenBy) -> bool:
        if stock is not None:
            with memoryview(self._attachment.payload):  # rows may lie in it
                lots = []
                for d, door in self._targets():
                    first, limit = self._get(Destination.SENT, d), self._get(Destination.GRANTED_TOKENS, d)
                    if first < min(ready, limit):
                        lots.append((d, door, self._spans(stock, first, min(ready, limit))))
                if self._write_each(lots):
                    self._library.wake(self._handle)  # it may have ended
        if path == WrittenBy.WORKER:
            return False
        self._let_go_below(self._sent_to_all(), stock)
        return True

    def _let_go_below(self, sent: int, stock: Stock | None) -> None:
        """Drop what is kept of rows that all destinations have."""
        over = sent // self._bs
        if stock is not None:
            stock.kept.let_go(over)
            for k in stock.staged:
                if k < over:
                    stock.staged.drop(k)

    def _spans(self, stock: Stock, first: int, limit: int) -> array[int]:
        """Rows [first, limit) where they lie: in source blocks, where the caller's thread has put them there, else in
        host memory.
        """
        bs, base, spans = self._bs, self._attachment.payload.address, array("Q")
        for k in range(first // bs, -(-limit // bs)):
            low, high = max(first, k * bs), min(limit, (k + 1) * bs)
            entry = stock.staged.get(k)
            if entry is None or stock.kept.has(k):
                spans.extend(stock.kept.spans(low, high))
                continue
            row = entry.source * bs + low % bs
            spans.extend([low, high, *(base + pool.offset + row * pool.row_bytes for pool in self._pools)])
        return spans

    def release_untold(self) -> bool:
        """Release the slot of a request that has ended, if no process of either node was told of it (R80)."""
        self._rendezvous.withdraw()
        return self._rendezvous.may_release() and self._slots.release_untold(self._handle.slot, self._handle.epoch)

    # ---- either thread

    def _write(self, door: Door, spans: array[int], *, is_held: bool = False) -> int:
        """Write what is granted of these rows, and tell whom it concerns. Returns as `DirectWriter.write`."""
        handle, slot = self._handle, self._handle.slot
        end = door.rows.write(slot, handle.epoch, self._total, door.columns, spans, is_held)
        if end > 0:  # else the request has ended as Failed, or somebody else writes
            self._attachment.user_bell.ring()
            if end < self._total:  # else the poller hears of it as the library thread, which wakes, leaves the slot
                self._attachment.kick_poller(slot, handle.epoch)
        return end

    def _write_each(self, lots: list[tuple[int, Door, array[int]]]) -> bool:
        """Write what is granted of these rows to these destinations of several. False: it is nothing.

        Whoever finds that all of them have all rows has decided, in the last of these calls, and has the others follow.
        The poller is told in any case: it may be the only one to find that.
        """
        handle, slot, epoch, written = self._handle, self._handle.slot, self._handle.epoch, False
        for d, door, spans in lots:
            written |= door.rows.write(slot, epoch, self._total, door.columns, spans, False, d) != 0
        if written:
            if handle.poll() == Phase.Success:
                for d, door, _ in lots:
                    door.rows.follow(slot, epoch, self._total, d)
            self._attachment.user_bell.ring()
            self._attachment.kick_poller(slot, epoch)
        return written

    def _sent_to_all(self) -> int:
        """How many rows every destination has; 0 while one has not come."""
        count = self._slots.get(self._handle.slot, Slot.NUM_DESTINATIONS)
        if count < self._slots.get(self._handle.slot, Slot.REQUIRED):
            return 0
        return min((self._get(Destination.SENT, d) for d in range(count)), default=0)
