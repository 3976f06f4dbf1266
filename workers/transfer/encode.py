"""The transfer worker: moves what three watermarks allow, and nothing else.

For one destination of one request, rows `[sent, min(ready, granted))` may move, from the source blocks in which the
encoder's library thread has staged them, to the blocks that this destination has granted (B10). A kick says "look";
repeating one does nothing, a lost one is repaired by the slow scan, and resume, streaming and redoing after a crash are
all this one path. A worker is the only one who submits for its rooms, so it alone can say that nothing is under way any
more (R9).

A source block is read between two CAS on its staging entry (STAGED -> READING -> STAGED), so the stager never takes it
away meanwhile (R8).

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

from embridge.allocator.checksums import RowSum, RowSums
from embridge.allocator.errors import FailureCode, SegmentError
from embridge.allocator.metrics import Metric
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination, Peer, Slot
from embridge.allocator.rings import Kick
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import TERMINAL, split
from embridge.workers.role import Inbox, Out, Renew, RoleContext
from embridge.workers.timing import NS
from embridge.workers.transfer.attempt import Attempt
from embridge.workers.transfer.engines.base import EngineError, NoAnswer, Outcome, OwnShortage, TransferEngine
from embridge.workers.transfer.moves import MovePlan
from embridge.workers.transfer.pace import Pace
from embridge.workers.transfer.staged_blocks import StagedBlocks

log = logging.getLogger(__name__)

# one attempt; small enough that requests take turns, and that rows are copied out while others come
BATCH_BYTES = 16 << 20
STEP_ATTEMPTS = 16  # in one step, before kicks are looked at again
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
        self._attempts: dict[tuple[int, int], Attempt] = {}  # (slot, destination)
        # (slot, destination) -> (epoch, since when it waits for contact)
        self._knocking: dict[tuple[int, int], tuple[int, int]] = {}
        self._opening: dict[int, int] = {}  # slots whose peer's door is not open yet, or whose next attempt is not due
        self._scanned_ns = 0
        self._now_ns = 0
        self._born_ns = 0
        self._worn_ns = 0  # since when this process had better end
        self._why_worn = ""
        self._renewing_ns = 0  # since when it wants to end
        # slots whose source blocks this process may still read though their attempt failed (R8)
        self._may_read: set[int] = set()
        self._batch_blocks = max(1, BATCH_BYTES // (ctx.bs * ctx.control.geometry.token_bytes))
        self._staged = StagedBlocks(ctx, self._batch_blocks)
        self._moves = MovePlan(ctx)
        self._pace = Pace()
        for slot, _ in self._mine():
            self._end_reading(slot)
            self._take_what_is_done(slot)
            self._taint_unfinished(slot)

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
        budget = STEP_ATTEMPTS
        for _ in range(len(self._queue)):
            if budget <= 0:
                break
            slot = self._queue.popleft()
            epoch = self._queued.pop(slot)
            budget -= self._serve(slot, epoch)
        if self._worn_ns or self._renewing_ns:
            self._renew_if_due(now_ns)
        return []

    def _renew_if_due(self, now_ns: int) -> None:
        """Raises Renew when nothing healthy is under way, or it has had its time."""
        is_busy = self._is_network_busy()
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
        """This process had better end. False if that would not help."""
        if self._now_ns - self._born_ns < YOUNG_NS:
            return False
        if not self._worn_ns:
            log.warning("%s: it begins anew", why)
            self._worn_ns, self._why_worn = self._now_ns, why
        return True

    def next_step_ns(self, now_ns: int) -> int:
        if self._queue:
            return now_ns
        due = self._scanned_ns + int(self._ctx.timing.scan_s * NS)
        if self._opening or self._renewing_ns:
            due = min(due, now_ns + NS // 1000)
        for attempt in self._attempts.values():
            if not attempt.engine.late_writes:
                return now_ns
            due = min(due, max(attempt.look_ns, now_ns + self._pace.nap_ns(attempt.queued_bytes)))
        return due

    def _is_network_busy(self) -> bool:
        return any(attempt.engine.late_writes for attempt in self._attempts.values())

    def _mine(self) -> list[tuple[int, int]]:
        """What is current and in this worker's shard."""
        worker_of, get = self._control.worker_of, self._slots.get
        return [(s, e) for s, e in self._ctx.current_slots() if worker_of(get(s, Slot.ROOM)) == self._shard]

    def _scan(self) -> None:
        """R25: a kick may be lost with the process that was to send it."""
        for slot, epoch in self._mine():
            self._enqueue(slot, epoch)
        for engine in self._engines.values():
            if why := engine.wear():
                self._wear_out(why)
        for peer in range(self._control.peers.num_peers):
            if not self._control.peers.is_alive(peer):
                for engine in self._engines.values():
                    engine.close(peer)

    def _enqueue(self, slot: int, epoch: int) -> None:
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
            if (slot, d) in self._attempts:
                continue
            with self._ctx.isolated("transfer", slot, epoch):
                try:
                    submitted += self._submit(slot, epoch, d)
                except OwnShortage as error:
                    if not self._wear_out(str(error)):
                        self._fail(slot, epoch, str(error))
                except (EngineError, SegmentError) as error:
                    self._fail(slot, epoch, str(error))
        self._finish_attempts()
        return submitted

    def _submit(self, slot: int, epoch: int, d: int) -> int:
        get = self._dsts.get
        sent = get(slot, d, Destination.SENT)
        ready = self._slots.get(slot, Slot.READY)
        limit = min(ready, get(slot, d, Destination.GRANTED_TOKENS))
        if sent >= limit:
            if ready > limit:
                self._ctx.to("poller").send(Kick.LOOK, slot, epoch)  # the destination may want to know that rows wait
            return 0
        peer = get(slot, d, Destination.PEER) - 1
        if not self._is_granted_by(peer, slot, d):
            return 0  # the poller fails the request
        if get(slot, d, Destination.RETRY_NS) > self._now_ns:
            self._opening[slot] = epoch
            return 0
        record, session = self._control.peers.record(peer), self._session_of(slot, d)
        engine = self._engines[record.engine]
        if engine.late_writes:
            if self._renewing_ns:
                return 0
            limit = self._within(session, slot, d, sent, limit)
            if sent >= limit:
                return 0  # it was fenced, and the window under the new session is on its way (R10)
        if not self._open(engine, slot, d, record, session):
            self._opening[slot] = epoch
            return 0
        if not self._is_granted_by(peer, slot, d):  # once more: its door may have opened for what it granted since
            return 0
        blocks, end = self._staged.hold(slot, sent, limit)
        if not blocks:
            self._ctx.wake_library(slot)
            return 0
        try:
            moves = self._moves.of(slot, d, sent, end, blocks, self._control.peers.get(peer, Peer.NUM_BLOCKS))
            after = None
            if self._sums is not None:
                after = self._sums.extend(
                    RowSum.of(get(slot, d, Destination.SUMMED)), end, [source for _, source in blocks]
                )
            self._dsts.set(slot, d, Destination.ATTEMPT_SESSION, session.number)
            self._dsts.raise_to(slot, d, Destination.ISSUED, end)  # before it is submitted (R6)
            ticket = engine.submit(peer, session, moves)
        except Exception:  # nothing is under way: an engine that has begun does not raise
            for k, _ in blocks:
                self._staged.release(slot, k)
            raise
        num_bytes = int(moves[:, 2].sum())
        held = [k for k, _ in blocks]
        queued_bytes = num_bytes + sum(other.num_bytes for other in self._attempts.values())
        look_ns = self._now_ns + self._pace.first_look_ns(queued_bytes)
        self._attempts[slot, d] = Attempt(
            slot=slot,
            epoch=epoch,
            destination=d,
            peer=peer,
            first=sent,
            end=end,
            blocks=held,
            sum=after,
            ticket=ticket,
            num_bytes=num_bytes,
            engine=engine,
            submitted_ns=self._now_ns,
            queued_bytes=queued_bytes,
            look_ns=look_ns,
        )
        return 1

    def _open(self, engine: TransferEngine, slot: int, d: int, record: PeerRecord, session: LiveSession) -> bool:
        """Whether that session can be written to.

        One that does not answer is tried for longer where rows have been written before: its worker is being restarted,
        perhaps, which fails no request (P11).
        """
        peer = self._dsts.get(slot, d, Destination.PEER) - 1
        try:
            is_open = engine.open(peer, record, session)
            if is_open:
                self._knocking.pop((slot, d), None)
            else:
                self._knocks_since(slot, d)
            return is_open
        except OwnShortage:
            raise
        except EngineError as error:
            if isinstance(error, NoAnswer) and self._now_ns - self._knocks_since(slot, d) <= error.patience_ns:
                return False
            since = self._dsts.get(slot, d, Destination.FAILING_NS) or self._now_ns
            self._dsts.set(slot, d, Destination.FAILING_NS, since)
            if (
                not self._control.peers.get(peer, Peer.REACHED)
                or self._now_ns - since > self._ctx.timing.peer_timeout_s * NS
            ):
                raise
            return False

    def _knocks_since(self, slot: int, d: int) -> int:
        """Since when this request waits for contact with its destination: others may have for longer."""
        epoch = self._slots.get(slot, Slot.EPOCH)
        known, since_ns = self._knocking.get((slot, d), (0, 0))
        if known != epoch:
            since_ns = self._now_ns
            self._knocking[slot, d] = epoch, since_ns
        return since_ns

    def _session_of(self, slot: int, d: int) -> LiveSession:
        """The latest session of a destination's grants; its three words belong together: each number is used once."""
        get = self._dsts.get
        while True:
            number = get(slot, d, Destination.SESSION)
            session = LiveSession(number, get(slot, d, Destination.PORT), get(slot, d, Destination.BASE))
            if get(slot, d, Destination.SESSION) == number:
                return session

    def _within(self, session: LiveSession, slot: int, d: int, sent: int, limit: int) -> int:
        """How far the rows from `sent` on are granted under one session: a batch is written under it or not at all
        (R10).
        """
        bs = self._ctx.bs
        for k in range(sent // bs, min(-(-limit // bs), sent // bs + self._batch_blocks)):
            if self._dsts.grant(slot, d, k)[1] != session.number:
                return max(sent, k * bs)
        return limit

    def _is_granted_by(self, peer: int, slot: int, d: int) -> bool:
        """Whether that node is there and still holds what it granted: it has not taken us for dead meanwhile (R14)."""
        peers, get = self._control.peers, self._dsts.get
        return (
            peers.is_alive(peer)
            and peers.get(peer, Peer.INCARNATION) == get(slot, d, Destination.INCARNATION)
            and peers.get(peer, Peer.REGISTRATION) == get(slot, d, Destination.REGISTRATION)
        )

    def _end_reading(self, slot: int) -> None:
        """After a restart: release what the dead worker was reading, for it reads it no more."""
        self._staged.release_all(slot)

    def _take_what_is_done(self, slot: int) -> None:
        """After a restart: rows that the dead worker has summed when they were there, and not yet counted (R27)."""
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            self._dsts.raise_to(
                slot, d, Destination.SENT, RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)).tokens
            )

    def _taint_unfinished(self, slot: int) -> None:
        """After a restart: what the dead worker was writing over a network may still land (R6)."""
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            engine = self._engine_of(self._dsts.get(slot, d, Destination.PEER) - 1)
            if engine is not None and not engine.late_writes:
                continue
            if self._dsts.get(slot, d, Destination.ISSUED) > self._dsts.get(slot, d, Destination.SENT):
                self._taint(slot, d)

    def _engine_of(self, peer: int) -> TransferEngine | None:
        """None for a peer whose entry another one has taken since."""
        return self._engines.get(self._control.peers.get(peer, Peer.ENGINE))

    def _taint(self, slot: int, d: int) -> None:
        """The last attempt for this destination ended other than done; so for its peer, should the request be forgotten
        (R7).
        """
        tainted = self._dsts.get(slot, d, Destination.ATTEMPT_SESSION) + 1
        self._dsts.raise_to(slot, d, Destination.TAINTED, tainted)
        self._control.peers.raise_to(self._dsts.get(slot, d, Destination.PEER) - 1, Peer.TAINTED, tainted)

    # ---- attempts

    def _finish_attempts(self) -> None:
        for at, attempt in list(self._attempts.items()):
            outcome = Outcome.FAILED
            with self._ctx.isolated("attempt"):
                outcome = attempt.engine.poll(attempt.ticket)
            if outcome is Outcome.PENDING:
                continue
            del self._attempts[at]
            slot, d = attempt.slot, attempt.destination
            if outcome is Outcome.DONE:
                self._pace.learn(attempt.queued_bytes, self._now_ns - attempt.submitted_ns)
                if attempt.sum is not None:
                    self._dsts.set(slot, d, Destination.SUMMED, attempt.sum.pack())
                self._dsts.raise_to(slot, d, Destination.SENT, attempt.end)
                self._dsts.set(slot, d, Destination.FAILING_NS, 0)
                self._control.peers.put(attempt.peer, Peer.REACHED, 1)
                self._slots.raise_to(slot, Slot.MOVED_NS, self._now_ns)
                self._ctx.count(Metric.WRITES)
                self._ctx.count(Metric.BYTES_WRITTEN, attempt.num_bytes)
                self._ctx.count(Metric.TOKENS_WRITTEN, attempt.end - attempt.first)
            else:
                self._failed(attempt)
            if outcome is Outcome.DONE or not attempt.engine.late_writes:
                for block in attempt.blocks:
                    self._staged.release(slot, block)
            self._ctx.to("poller").send(Kick.LOOK, slot, attempt.epoch)
            self._ctx.wake_library(slot)
            self._enqueue(slot, attempt.epoch)

    def _failed(self, attempt: Attempt) -> None:
        """An attempt ended other than done.

        Taint before retry (R6); a request whose attempts all fail for `peer_timeout_s` fails.
        """
        slot, d = attempt.slot, attempt.destination
        self._ctx.count(Metric.WRITES_FAILED)
        if attempt.engine.late_writes:
            self._taint(slot, d)
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
        """The request has ended; once nothing of it is under way, say so (R9)."""
        if slot in self._may_read or any(key[0] == slot for key in self._attempts):
            self._enqueue(slot, epoch)
            return
        if self._slots.get(slot, Slot.QUIESCED_EPOCH) != epoch:
            self._slots.set(slot, Slot.QUIESCED_EPOCH, epoch)
            self._ctx.wake_library(slot)
        self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
