"""The transfer worker: moves what three watermarks allow, and nothing else.

For one destination of one request, rows `[sent, min(ready, granted))` may move, from the source blocks in which the
encoder's library thread has staged them, to the blocks that this destination has granted (B10). A kick says "look";
repeating one does nothing, a lost one is repaired by the slow scan, and resume, streaming and redoing after a crash are
all this one path. A worker is the only one who submits for its rooms, so it alone can say that nothing is under way any
more (R9).

A source block is read between two CAS on its staging entry (STAGED -> READING -> STAGED), so the stager never takes it
away meanwhile (R8).

Over a network a destination's rows go in pieces, several at a time: while some are under way others are staged, and
requests take turns. How much is under way to one peer is bounded (`attempt.py`). Destinations are told of several
pieces together.

An attempt that fails over a network may go on reading and writing. What it may have written is *tainted* before
anything else (R6). Its source blocks stay in READING, and the worker *renews* itself: it submits nothing more over the
network, lets what is under way there end, for `RENEW_WAIT_NS` at most, and ends its process. The one that is born in
its place redoes the rows. So one failure taints no healthy transfer, and does not spread from node to node. A process
that is *worn*, for its engine keeps something of every peer that has gone, renews itself as well, between two attempts.

Where nodes verify, an attempt's rows are summed in the source blocks before it is submitted. When it is done, the
running checksum and how far it goes are stored in one word, then `sent`; a worker that is born between the two brings
`sent` up to it (R27).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from embridge.allocator.checksums import RowSum, RowSums
from embridge.allocator.errors import FailureCode, SegmentError
from embridge.allocator.plain_enums import Destination, Kick, Metric, Peer, Slot, WrittenBy
from embridge.allocator.slot_changes import SlotChanges
from embridge.allocator.status import TERMINAL, split
from embridge.workers.role import Inbox, Out, Renew, RoleContext
from embridge.workers.timing import NS
from embridge.workers.transfer.attempt import Attempt, OpenAttempts
from embridge.workers.transfer.contact import Contact
from embridge.workers.transfer.engines.base import EngineError, Outcome, OwnShortage, TransferEngine
from embridge.workers.transfer.moves import MovePlan
from embridge.workers.transfer.pace import Pace
from embridge.workers.transfer.staged_blocks import StagedBlocks
from embridge.workers.transfer.success import Success
from embridge.workers.transfer.taints import Taints

log = logging.getLogger(__name__)

# one attempt; small enough that requests take turns, and that rows are copied out while others come
BATCH_BYTES = 16 << 20
PIECE_BYTES = 2 << 20  # one attempt over a network
PIECE_COPIES = 64  # of its blocks at most, wherever they lie
TELL_BYTES = 8 << 20  # sent, and more under way, before the destination is told
STEP_ATTEMPTS = 16  # in one step, before kicks are looked at again
GLANCES_NS = NS // 1000  # of glances, until the next step
LEAST_RETRY_NS = NS // 100  # after an attempt that failed; then half of the time for which all have, to `MOST_RETRY_NS`
MOST_RETRY_NS = NS // 2
RENEW_WAIT_NS = NS // 5  # for healthy attempts to end before this process does
WORN_WAIT_NS = 10 * NS  # for a moment in which no attempt is under way; then no more are submitted until there is one
YOUNG_NS = 5 * NS  # a process that runs out of something so soon would not do better the next time


class TransferWorker:
    """The encode node's transfer role: one of several, each with the rooms of its shard."""

    def __init__(
        self, ctx: RoleContext, shard: int, engines: dict[int, TransferEngine], sums: RowSums | None = None
    ) -> None:
        """`engines`: by number. `sums`: of this node's payload, where nodes verify."""
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._shard = shard
        self._engines = engines
        self._sums = sums
        self._queue: deque[int] = deque()
        self._queued: dict[int, int] = {}
        self._attempts = OpenAttempts()
        self._told: dict[tuple[int, int], int] = {}  # (slot, destination) -> the `sent` of which the poller was told
        self._starved: set[tuple[int, int]] = set()  # those that wait for the stager, not for a completion
        self._held_back: dict[int, dict[int, int]] = {}  # peer -> slot -> epoch of what waits for others to end
        self._contact = Contact(ctx)
        self._success = Success(ctx, self._contact)
        self._succeeded: dict[int, int] = {}  # slot -> epoch of those that this worker has raised to Success
        self._out: list[Out] = []
        self._changes = SlotChanges(ctx.control)
        self._unsent: dict[int, int] = {}  # slots of which rows could move when they were looked at last
        self._opening: dict[int, int] = {}  # slots whose peer's door is not open yet, or whose next attempt is not due
        self._scanned_ns = 0
        self._now_ns = 0
        self._born_ns = 0
        self._due_ns = 0  # of the next step, if nothing ends before
        self._worn_ns = 0  # since when this process had better end
        self._why_worn = ""
        self._renewing_ns = 0  # since when it wants to end
        # slots whose source blocks this process may still read though their attempt failed (R8)
        self._may_read: set[int] = set()
        self._moves = MovePlan(ctx)
        block_bytes = ctx.bs * ctx.control.geometry.token_bytes
        self._tell_tokens = TELL_BYTES // ctx.control.geometry.token_bytes
        self._batch_blocks = max(1, BATCH_BYTES // block_bytes)
        self._piece_blocks = max(1, min(PIECE_BYTES // block_bytes, PIECE_COPIES // self._moves.most_copies(1)))
        self._piece_copies = self._moves.most_copies(self._piece_blocks)
        self._staged = StagedBlocks(ctx)
        self._taints = Taints(ctx, engines)
        self._pace = Pace()
        for slot, _ in self._mine(ctx.current_slots()):
            self._staged.release_all(slot)  # the source blocks that the dead worker was reading
            self._taints.take_what_is_done(slot)
            self._taints.taint_unfinished(slot)

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        self._now_ns = now_ns
        self._born_ns = self._born_ns or now_ns
        for _, record in inbox.records:
            self._enqueue(record.slot, record.epoch)
        if now_ns - self._scanned_ns >= self._ctx.timing.scan_s * NS:
            self._scanned_ns = now_ns
            self._scan()
        for slot, epoch in self._opening.items():
            self._enqueue(slot, epoch)
        self._opening.clear()
        self._finish_attempts()
        if self._out:  # what has landed is not kept from its destination by what is next
            out, self._out = self._out, []
            return out
        budget = STEP_ATTEMPTS
        while (self._queue or self._take_held_back()) and budget > 0:
            slot = self._queue.popleft()
            epoch = self._queued.pop(slot)
            budget -= self._serve(slot, epoch)
        if budget < STEP_ATTEMPTS:
            self._finish_attempts()
        if self._worn_ns or self._renewing_ns:
            self._renew_if_due(now_ns)
        out, self._out = self._out, []
        return out

    def _renew_if_due(self, now_ns: int) -> None:
        """Raise Renew when no healthy attempt is under way, or has had its time."""
        is_busy = self._attempts.num_late > 0
        if self._worn_ns and (not is_busy or now_ns - self._worn_ns > WORN_WAIT_NS):
            self._renewing_ns = self._renewing_ns or now_ns
        if not self._renewing_ns:
            return
        if self._may_read and (not is_busy or now_ns - self._renewing_ns > RENEW_WAIT_NS):
            raise Renew(
                "a write over the network has failed and may still be under way: this process ends, another redoes it"
            )
        if not is_busy:
            raise Renew(f"this process ends, and another begins in its place: {self._why_worn}")

    def _wear_out(self, why: str) -> bool:
        """Note that this process had better end. False if that would not help."""
        if self._now_ns - self._born_ns < YOUNG_NS:
            return False
        if not self._worn_ns:
            log.warning("%s: it begins anew", why)
            self._worn_ns, self._why_worn = self._now_ns, why
        return True

    def glance(self, now_ns: int) -> bool:
        """Whether a step would find something, as far as can be seen at little cost, if nobody has kicked meanwhile.

        Called between two steps while something is under way over a network: a step takes much of a core from the
        engine's own threads, and mostly nothing has ended yet.
        """
        try:
            return now_ns >= self._due_ns or self._attempts.glance()
        except Exception as error:
            self._ctx.broke("glance", error)
            return True

    def next_step_ns(self, now_ns: int) -> int:
        self._due_ns = now_ns
        if self._queue:
            return now_ns
        due = self._scanned_ns + int(self._ctx.timing.scan_s * NS)
        if self._opening or self._renewing_ns:
            due = min(due, now_ns + NS // 1000)
        if self._attempts.num_others:
            return now_ns
        if self._attempts.num_late:
            self._due_ns = min(due, now_ns + GLANCES_NS)
            due = min(due, now_ns + self._pace.nap_ns(self._attempts.num_bytes))
        return due

    def _mine(self, current: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that are of this worker's shard."""
        worker_of, get = self._control.worker_of, self._slots.get
        return [(s, e) for s, e in current if worker_of(get(s, Slot.ROOM)) == self._shard]

    def _scan(self) -> None:
        """Look at what has changed, or could move: a kick may be lost with the process that was to send it (R25)."""
        unsent, self._unsent = self._unsent, {}
        for slot, epoch in (*self._mine(self._changes.take().items()), *unsent.items()):
            self._enqueue(slot, epoch)
        for engine in self._engines.values():
            if why := engine.wear():
                self._wear_out(why)
        for peer in range(self._control.peers.num_peers):
            if not self._control.peers.is_alive(peer):
                for engine in self._engines.values():
                    engine.close(peer)
        self._out += self._success.hang_up()

    def _enqueue(self, slot: int, epoch: int) -> None:
        if slot >= self._slots.num_slots:
            return  # a kick is a hint, from a client's memory; one that names no slot ends nobody's process (D4)
        if slot not in self._queued:
            self._queue.append(slot)
        self._queued[slot] = max(epoch, self._queued.get(slot, 0))

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> int:
        """Submit what is allowed now. Returns how many attempts."""
        word = split(self._ctx.status.load(slot))
        if word.epoch != epoch or not self._ctx.is_current(slot, epoch):
            return 0
        if word.phase >= TERMINAL:
            self._quiesce(slot, epoch)
            return 0
        submitted = 0
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            try:
                submitted += self._submit(slot, epoch, d)
            except OwnShortage as error:
                if not self._wear_out(str(error)):
                    self._fail(slot, epoch, str(error))
            except (EngineError, SegmentError) as error:
                self._fail(slot, epoch, str(error))
            except Exception as error:
                self._ctx.broke("transfer", error, slot, epoch)
        if self._attempts.num_others:
            self._finish_attempts()
        return submitted

    def _submit(self, slot: int, epoch: int, d: int) -> int:
        if not self._is_mine_to_write(slot, d):
            return 0
        before = self._attempts.of(slot, d)
        if before and (before[-1].is_void or not before[0].engine.late_writes):
            return 0
        there = self._dsts.get_all(slot, d)
        sent = before[-1].end if before else there[Destination.SENT]
        ready = self._slots.get(slot, Slot.READY)
        limit = movable = min(ready, there[Destination.GRANTED_TOKENS])
        if sent >= limit:
            if ready > limit and not before:
                self._ctx.to("poller").send(Kick.LOOK, slot, epoch)  # the destination may want to know that rows wait
            return 0
        self._unsent[slot] = epoch
        if not self._contact.is_granted_by(there):
            return 0  # the poller fails the request
        if there[Destination.RETRY_NS] > self._now_ns:
            self._opening[slot] = epoch
            return 0
        peer = there[Destination.PEER] - 1
        record, session = self._contact.record_of(peer), self._contact.session_of(slot, d, there)
        engine = self._engines[record.engine]
        most_blocks = self._batch_blocks
        if engine.late_writes:
            if self._renewing_ns or (before and before[0].session != session.number):
                return 0
            most_blocks = self._piece_blocks
            limit = self._contact.within(session, slot, d, sent, limit, most_blocks)
            if sent >= limit:
                return 0  # it was fenced, and the window under the new session is on its way (R10)
            if not self._attempts.admits(peer, self._piece_copies):
                self._held_back.setdefault(peer, {})[slot] = epoch
                return 0
        if not self._contact.open(engine, slot, d, record, session, self._now_ns):
            self._opening[slot] = epoch
            return 0
        if not self._contact.is_granted_by(self._dsts.get_all(slot, d)):  # once more: its door may have opened
            return 0
        is_fetch, blocks = self._control.is_fetch(slot, epoch), list[tuple[int, int]]()
        if is_fetch:  # its rows lie on the shelf, and stay there (R52)
            end = min(limit, (sent // self._ctx.bs + most_blocks) * self._ctx.bs)
        else:
            blocks, end = self._staged.hold(slot, sent, limit, most_blocks)
        if not blocks and not is_fetch:
            if not before or (slot, d) not in self._starved:
                self._ctx.wake_library(slot)
            self._starved.add((slot, d))
            return 0
        self._starved.discard((slot, d))
        try:
            num_blocks = self._control.peers.get(peer, Peer.NUM_BLOCKS)
            if is_fetch:
                moves = self._moves.of_item(slot, d, sent, end, num_blocks)
            else:
                moves = self._moves.of(slot, d, sent, end, blocks, num_blocks)
            after = None
            if self._sums is not None:
                summed = before[-1].sum if before else None
                summed = summed or RowSum.of(self._dsts.get(slot, d, Destination.SUMMED))
                if is_fetch:
                    after = self._sums.extend_on_shelf(summed, end, *self._moves.where(slot))
                else:
                    after = self._sums.extend(summed, end, [source for _, source in blocks])
            self._dsts.set(slot, d, Destination.ATTEMPT_SESSION, session.number)
            self._dsts.raise_to(slot, d, Destination.ISSUED, end)  # before it is submitted (R6)
            ticket = engine.submit(peer, session, moves)
        except Exception:  # nothing is under way: an engine that has begun does not raise
            for k, _ in blocks:
                self._staged.release(slot, k)
            raise
        num_bytes = sum(size for _, _, size in moves)
        self._told.setdefault((slot, d), sent)
        self._attempts.add(
            Attempt(
                slot=slot, epoch=epoch, destination=d, peer=peer, session=session.number, first=sent, end=end,
                blocks=[k for k, _ in blocks], sum=after, ticket=ticket, num_bytes=num_bytes, num_copies=len(moves),
                engine=engine, submitted_ns=self._now_ns, queued_bytes=num_bytes + self._attempts.num_bytes,
            )
        )
        if end < movable:
            self._enqueue(slot, epoch)  # for its next piece, behind the others
        return 1

    def _take_held_back(self) -> bool:
        """Enter a request that had to wait until less was under way to its peer. False if there is none that may go."""
        for peer, slots in self._held_back.items():
            if slots and self._attempts.admits(peer, self._piece_copies):
                slot = next(iter(slots))
                self._enqueue(slot, slots.pop(slot))
                return True
        return False

    def _is_mine_to_write(self, slot: int, d: int) -> bool:
        """Whether this worker writes the rows of a destination, and not the client (R28); the client says so."""
        if not self._slots.get(slot, Slot.MAY_WRITE):
            return True
        writer = self._dsts.get(slot, d, Destination.WRITTEN_BY)
        if writer == WrittenBy.UNDECIDED:
            self._ctx.wake_library(slot)
        return writer == WrittenBy.WORKER

    # ---- attempts

    def _finish_attempts(self) -> None:
        ended: dict[tuple[int, int], int] = {}
        for attempt, outcome in self._attempts.take_ended(self._ctx.broke):
            ended[attempt.slot, attempt.destination] = attempt.epoch
            if log.isEnabledFor(logging.DEBUG):
                at = attempt.slot, attempt.epoch, attempt.destination, attempt.first, attempt.end, outcome.name
                log.debug("slot %d.%d, destination %d: rows [%d, %d) are %s", *at)
            if outcome is Outcome.DONE:
                self._pace.learn(attempt.queued_bytes, self._now_ns - attempt.submitted_ns)
                self._ctx.count(Metric.WRITES)
                self._ctx.count(Metric.BYTES_WRITTEN, attempt.num_bytes)
                self._ctx.count(Metric.TOKENS_WRITTEN, attempt.end - attempt.first)
            else:
                self._failed(attempt)
            if outcome is Outcome.DONE or not attempt.engine.late_writes:
                for block in attempt.blocks:
                    self._staged.release(attempt.slot, block)
        for (slot, d), epoch in ended.items():
            self._account_for(slot, d, epoch)
        if ended:
            self._ctx.to("poller").flush()  # what has landed is not kept from its destination by what is next

    def _account_for(self, slot: int, d: int, epoch: int) -> None:
        """Raise `sent` over what is done, in the order of the rows, and tell who waits for that."""
        landed = self._attempts.take_landed(slot, d)
        if landed is not None:
            if landed.sum is not None:
                self._dsts.set(slot, d, Destination.SUMMED, landed.sum.pack())
            self._dsts.raise_to(slot, d, Destination.SENT, landed.end)
            self._dsts.set(slot, d, Destination.FAILING_NS, 0)
            self._control.peers.put(landed.peer, Peer.REACHED, 1)
            self._slots.raise_to(slot, Slot.MOVED_NS, self._now_ns)
        is_idle = not self._attempts.of(slot, d)
        # then the poller wakes the library, as it raises the word
        is_last = landed is not None and landed.end >= self._slots.get(slot, Slot.TOTAL) > 0
        is_told = is_idle or (landed is not None and landed.end - self._told[slot, d] >= self._tell_tokens)
        if landed is not None and is_told:
            self._told[slot, d] = landed.end
        told = None
        if landed is not None and is_last and is_idle and landed.engine.late_writes:
            told = self._success.tell(slot, epoch, self._now_ns)
        if told is not None:
            self._out.append(told)
            self._succeeded[slot] = epoch
        elif is_told:
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
        if (is_told and not is_last) or (slot, d) in self._starved:
            self._ctx.wake_library(slot)
        if is_idle:
            self._told.pop((slot, d), None)
            self._starved.discard((slot, d))
        self._enqueue(slot, epoch)

    def _failed(self, attempt: Attempt) -> None:
        """Handle an attempt that ended other than done: taint before any retry (R6).

        A request whose attempts all fail for `peer_timeout_s` fails.
        """
        slot, d = attempt.slot, attempt.destination
        self._ctx.count(Metric.WRITES_FAILED)
        self._ctx.to("poller").send(Kick.LOOK, slot, attempt.epoch)
        self._ctx.wake_library(slot)
        if attempt.engine.late_writes:
            self._taints.taint(slot, d)
            self._may_read.add(slot)
            self._renewing_ns = self._renewing_ns or self._now_ns
        since = self._dsts.get(slot, d, Destination.FAILING_NS) or self._now_ns
        self._dsts.set(slot, d, Destination.FAILING_NS, since)
        pause_ns = min(max((self._now_ns - since) // 2, LEAST_RETRY_NS), MOST_RETRY_NS)
        self._dsts.set(slot, d, Destination.RETRY_NS, self._now_ns + pause_ns)
        if self._now_ns - since > self._ctx.timing.peer_timeout_s * NS:
            record = self._control.peers.record(attempt.peer)
            lasted_s = (self._now_ns - since) / NS
            self._fail(
                slot,
                attempt.epoch,
                f"every write to {record} through {attempt.engine.name} has failed for {lasted_s:.1f} s",
            )

    def _fail(self, slot: int, epoch: int, reason: str) -> None:
        log.warning("room %d: %s", self._slots.get(slot, Slot.ROOM), reason)
        self._ctx.fail(slot, epoch, FailureCode.UNREACHABLE, reason)

    def _quiesce(self, slot: int, epoch: int) -> None:
        """Say that nothing of a request that has ended is under way any more, once that is so (R9)."""
        if slot in self._may_read or self._attempts.any_of(slot):
            return  # it is looked at when they have ended
        is_news = self._slots.get(slot, Slot.QUIESCED_EPOCH) != epoch
        if is_news:
            self._slots.set(slot, Slot.QUIESCED_EPOCH, epoch)
        if self._succeeded.get(slot) == epoch:  # its destination closes it, which wakes the poller; or a heartbeat does
            del self._succeeded[slot]
            self._control.ring_lane(self._slots.get(slot, Slot.LANE))
            self._ctx.to("poller").leave(Kick.LOOK, slot, epoch)
            return
        if is_news:
            self._ctx.wake_library(slot)
        self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
