"""The transfer worker: moves what three watermarks allow, and nothing else.

For one destination of one request, rows `[sent, min(ready, granted))` may move, from the source blocks in which the encoder's
library thread has staged them, to the blocks that this destination has granted (B10). A kick says "look"; repeating one does
nothing, a lost one is repaired by the slow scan, and resume, streaming and redoing after a crash are all this one path. A worker
is the only one who submits for its rooms, so it alone can say that nothing is under way any more (R9).

A source block is read between two CAS on its staging entry (STAGED -> READING -> STAGED), so the stager never takes it away
meanwhile (R8).
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.errors import FailureCode, SegmentError
from embridge.allocator.layout import AUX_WORDS, Destination, Peer, Slot
from embridge.allocator.metrics import Metric
from embridge.allocator.requests import STAGE_READING, STAGE_STAGED, StageEntry
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, split
from embridge.workers.engines.base import EngineError, Moves, Outcome, TransferEngine
from embridge.workers.roles import Desk, Inbox, Out
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

BATCH_BYTES = 8 << 20  # one attempt; small enough that requests take turns and progress is told early
STEP_ATTEMPTS = 16  # in one step, before kicks are looked at again


@dataclass(slots=True)
class Attempt:
    """One submitted write: rows [first, end) of a request to one destination, from blocks held in READING."""

    slot: int
    epoch: int
    destination: int
    peer: int
    first: int
    end: int
    blocks: list[int]
    ticket: int
    num_bytes: int


class TransferWorker:
    """The encode node's transfer role: one of several, each with the rooms of its shard."""

    def __init__(self, desk: Desk, shard: int, engine: TransferEngine) -> None:
        self._desk = desk
        self._control = desk.control
        self._slots = desk.slots
        self._dsts = desk.control.destinations
        self._staging = desk.control.staging
        self._shard = shard
        self._engine = engine
        self._pools = pools(desk.control.geometry)
        self._queue: deque[int] = deque()
        self._queued: dict[int, int] = {}
        self._attempts: dict[tuple[int, int], Attempt] = {}  # (slot, destination)
        self._opening: dict[int, int] = {}  # slots whose peer's door is not open yet
        self._scanned_ns = 0
        self._batch_blocks = max(1, BATCH_BYTES // (desk.bs * desk.control.geometry.token_bytes))
        for slot, _ in self._mine():
            self._end_reading(slot)
            if engine.late_writes:
                self._taint_unfinished(slot)

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        for _, record in inbox.records:
            self._enqueue(record.slot, record.epoch)
        if now_ns - self._scanned_ns >= self._desk.timing.scan_s * NS:
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
        return []

    def next_step_ns(self, now_ns: int) -> int:
        if self._queue or self._attempts:
            return now_ns
        if self._opening:
            return now_ns + NS // 1000
        return self._scanned_ns + int(self._desk.timing.scan_s * NS)

    def _mine(self) -> list[tuple[int, int]]:
        """What is current and in this worker's shard."""
        worker_of, get = self._control.worker_of, self._slots.get
        return [(s, e) for s, e in self._desk.current_slots() if worker_of(get(s, Slot.ROOM)) == self._shard]

    def _scan(self) -> None:
        """R25: a kick may be lost with the process that was to send it."""
        for slot, epoch in self._mine():
            self._enqueue(slot, epoch)
        for peer in range(self._control.peers.num_peers):
            if not self._control.peers.is_alive(peer):
                self._engine.close(peer)

    def _enqueue(self, slot: int, epoch: int) -> None:
        if slot not in self._queued:
            self._queue.append(slot)
        self._queued[slot] = max(epoch, self._queued.get(slot, 0))

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> int:
        """Submit what is allowed now. Returns how many attempts."""
        if not self._desk.is_current(slot, epoch):
            return 0
        if split(self._desk.status.load(slot)).phase >= TERMINAL:
            self._quiesce(slot, epoch)
            return 0
        submitted = 0
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            if (slot, d) in self._attempts:
                continue
            with self._desk.isolated("transfer", slot, epoch):
                try:
                    submitted += self._submit(slot, epoch, d)
                except (EngineError, SegmentError) as error:
                    log.warning("room %d: %s", self._slots.get(slot, Slot.ROOM), error)
                    self._desk.fail(slot, epoch, FailureCode.UNREACHABLE, str(error))
        self._finish_attempts()
        return submitted

    def _submit(self, slot: int, epoch: int, d: int) -> int:
        get, bs = self._dsts.get, self._desk.bs
        sent = get(slot, d, Destination.SENT)
        ready = self._slots.get(slot, Slot.READY)
        limit = min(ready, get(slot, d, Destination.GRANTED_TOKENS))
        if sent >= limit:
            if ready > limit:
                self._desk.to("poller").send(Kick.LOOK, slot, epoch)  # the destination may want to know that rows wait
            return 0
        peer = get(slot, d, Destination.PEER) - 1
        record = self._control.peers.record(peer)
        if not self._is_granted_by(peer, slot, d):
            return 0  # the poller fails the request
        if not self._engine.open(peer, record):
            self._opening[slot] = epoch
            return 0
        if not self._is_granted_by(peer, slot, d):  # once more: its door may have opened for what it granted since
            return 0
        blocks, end = self._hold(slot, sent, limit)
        if not blocks:
            self._desk.wake_library(slot)
            return 0
        moves = self._moves(slot, d, sent, end, blocks, self._control.peers.get(peer, Peer.NUM_BLOCKS))
        session = max(self._dsts.grant(slot, d, k)[1] for k in range(sent // bs, -(-end // bs)))
        self._dsts.set(slot, d, Destination.ATTEMPT_SESSION, session)
        self._dsts.raise_to(slot, d, Destination.ISSUED, end)  # before it is submitted (R6)
        ticket = self._engine.submit(peer, moves)
        num_bytes = int(moves[:, 2].sum())
        held = [k for k, _ in blocks]
        self._attempts[slot, d] = Attempt(slot, epoch, d, peer, sent, end, held, ticket, num_bytes)
        return 1

    def _is_granted_by(self, peer: int, slot: int, d: int) -> bool:
        """Whether that node is there and still holds what it granted: it has not taken us for dead meanwhile (R14)."""
        peers, get = self._control.peers, self._dsts.get
        return (
            peers.is_alive(peer)
            and peers.get(peer, Peer.INCARNATION) == get(slot, d, Destination.INCARNATION)
            and peers.get(peer, Peer.REGISTRATION) == get(slot, d, Destination.REGISTRATION)
        )

    def _hold(self, slot: int, sent: int, limit: int) -> tuple[list[tuple[int, int]], int]:
        """Hold the staged blocks from `sent` on for reading: ((request block, source block)...), and the row they reach."""
        bs, end, held = self._desk.bs, sent, []
        for k in range(sent // bs, min(-(-limit // bs), sent // bs + self._batch_blocks)):
            word = self._staging.load(slot, k)
            entry = StageEntry.of(word)
            while entry.state == STAGE_STAGED and entry.block == k and k * bs + entry.rows > end:
                if self._staging.replace(slot, k, word, entry._replace(state=STAGE_READING).pack()):
                    break
                word = self._staging.load(slot, k)
                entry = StageEntry.of(word)
            else:
                break
            held.append((k, entry.source))
            end = min(limit, k * bs + entry.rows)
            if entry.rows < bs:
                break
        return held, end

    def _release(self, slot: int, block: int) -> None:
        """Let the stager have a source block back, with the rows it may have added meanwhile."""
        while True:
            word = self._staging.load(slot, block)
            entry = StageEntry.of(word)
            if entry.block != block or entry.state != STAGE_READING:
                return
            if self._staging.replace(slot, block, word, entry._replace(state=STAGE_STAGED).pack()):
                return

    def _end_reading(self, slot: int) -> None:
        """After a restart: what the dead worker was reading it reads no more."""
        for k in range(self._staging.window):
            word = self._staging.load(slot, k)
            if word & 3 == STAGE_READING:
                self._release(slot, StageEntry.of(word).block)

    def _taint_unfinished(self, slot: int) -> None:
        """After a restart: what the dead worker was writing may still land (R6)."""
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            if self._dsts.get(slot, d, Destination.ISSUED) > self._dsts.get(slot, d, Destination.SENT):
                session = self._dsts.get(slot, d, Destination.ATTEMPT_SESSION)
                self._dsts.raise_to(slot, d, Destination.TAINTED, session + 1)

    def _moves(
        self, slot: int, d: int, first: int, end: int, blocks: list[tuple[int, int]], num_blocks: int
    ) -> Moves:
        """The copies of rows [first, end); neighbours on both sides move as one. Indices are checked once, before use."""
        bs = self._desk.bs
        runs: list[list[int]] = []
        for k, source in blocks:
            target, _ = self._dsts.grant(slot, d, k)
            if target >= num_blocks or source >= self._control.geometry.num_blocks:
                raise EngineError(f"block {target} of {num_blocks} there, {source} here: out of range")
            low, high = max(first, k * bs), min(end, (k + 1) * bs)
            to, start, rows = target * bs + low - k * bs, source * bs + low - k * bs, high - low
            if runs and runs[-1][0] + runs[-1][2] == to and runs[-1][1] + runs[-1][2] == start:
                runs[-1][2] += rows
            else:
                runs.append([to, start, rows])
        moves = []
        there_geometry = replace(self._control.geometry, num_blocks=num_blocks)
        there = {pool.name: pool for pool in pools(there_geometry)}
        for pool in self._pools:
            base = there[pool.name].offset
            moves += [
                (base + to * pool.row_bytes, pool.offset + start * pool.row_bytes, rows * pool.row_bytes)
                for to, start, rows in runs
            ]
        if first == 0:
            k, source = blocks[0]
            target, _ = self._dsts.grant(slot, d, k)
            moves.append(
                (
                    aux_offset(there_geometry, target),
                    aux_offset(self._control.geometry, source),
                    4 * AUX_WORDS,
                )
            )
        return np.array(moves, np.int64)

    # ---- attempts

    def _finish_attempts(self) -> None:
        for at, attempt in list(self._attempts.items()):
            outcome = self._engine.poll(attempt.ticket)
            if outcome is Outcome.PENDING:
                continue
            del self._attempts[at]
            for block in attempt.blocks:
                self._release(attempt.slot, block)
            slot, d = attempt.slot, attempt.destination
            if outcome is Outcome.DONE:
                self._dsts.raise_to(slot, d, Destination.SENT, attempt.end)
                self._desk.count(Metric.WRITES)
                self._desk.count(Metric.BYTES_WRITTEN, attempt.num_bytes)
                self._desk.count(Metric.TOKENS_WRITTEN, attempt.end - attempt.first)
            elif self._engine.late_writes:
                session = self._dsts.get(slot, d, Destination.ATTEMPT_SESSION)
                self._dsts.raise_to(slot, d, Destination.TAINTED, session + 1)
            self._desk.to("poller").send(Kick.LOOK, slot, attempt.epoch)
            self._desk.wake_library(slot)
            self._enqueue(slot, attempt.epoch)

    def _quiesce(self, slot: int, epoch: int) -> None:
        """The request has ended; once nothing of it is under way, say so (R9)."""
        if any(key[0] == slot for key in self._attempts):
            self._enqueue(slot, epoch)
            return
        if self._slots.get(slot, Slot.QUIESCED_EPOCH) != epoch:
            self._slots.set(slot, Slot.QUIESCED_EPOCH, epoch)
            self._desk.wake_library(slot)
        self._desk.to("poller").send(Kick.LOOK, slot, epoch)


class TargetWorker:
    """The language node's transfer role: rows are written into its payload by others, so it only keeps its engine's registration."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        return []

    def next_step_ns(self, now_ns: int) -> int:
        return now_ns + int(self._desk.timing.beat_s * NS)
