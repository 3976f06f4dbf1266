"""The language node's transfer role: it keeps the engine through which others write into this node, for one session.

Where nodes verify, it also sums rows that have come, for the poller to compare (R27). It keeps nothing of them: a
record says all, and stays in its ring until the answer is in the ring back.
"""

from __future__ import annotations

import logging

from embridge.allocator.checksums import RowSum, RowSums
from embridge.allocator.rings import Kick, Record
from embridge.allocator.sessions import LiveSession
from embridge.workers.role import Inbox, Out, Renew, RoleContext
from embridge.workers.timing import NS

log = logging.getLogger(__name__)


class LanguageTransferWorker:
    """One of several transfer workers, each with a session of its own.

    With session number 0 rows come through shared memory only, and there is no engine to keep. `sums` is for this
    node's payload, where nodes verify.
    """

    def __init__(self, ctx: RoleContext, worker: int, session: LiveSession, sums: RowSums | None = None) -> None:
        self._ctx = ctx
        self._worker = worker
        self._session = session
        self._sums = sums
        self._windows = ctx.control.windows
        if session.number:
            ctx.control.sessions.begin(worker, session)
            # quarantined blocks come free, windows are granted anew
            ctx.to("poller").send(Kick.SESSION, worker, session.number)
            log.info("session %d of worker %d has port %d", session.number, worker, session.port)

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        for _, record in inbox.records:
            if record.kick == Kick.FENCE and self._session.number and record.value == self._session.number:
                raise Renew(f"session {self._session.number} of worker {self._worker} ends: it is fenced")
            if record.kick == Kick.CHECKSUM and self._sums is not None:
                with self._ctx.isolated("checksum", record.slot, record.epoch):
                    self._sum(self._sums, record)
        return []

    def _sum(self, sums: RowSums, record: Record) -> None:
        """Sum the rows of one record, and answer the poller.

        If the request has ended meanwhile its blocks may hold other rows; the poller ignores the answer then.
        """
        first, end = record.value >> 32, record.value & 0xFFFF_FFFF
        if self._ctx.is_live(record.slot, record.epoch):
            bs = self._ctx.bs
            blocks = [self._windows.get(record.slot, k) for k in range(first // bs, -(-end // bs))]
            before, fetches = RowSum(first, record.extra), self._ctx.control.fetches
            if fetches.has(record.slot, record.epoch):
                after = sums.extend_item(before, end, blocks, fetches.shape(record.slot).bytes)
            else:
                after = sums.extend(before, end, blocks)
            self._ctx.to("poller").send(Kick.CHECKSUM, record.slot, record.epoch, record.value, after.checksum)

    def next_step_ns(self, now_ns: int) -> int:
        return now_ns + int(self._ctx.timing.beat_s * NS)
