"""The language node's transfer role: it keeps the engine through which others write into this node's payload, for one session."""

from __future__ import annotations

import logging

from embridge.allocator.rings import Kick
from embridge.allocator.sessions import LiveSession
from embridge.workers.roles import Desk, Inbox, Out, Renew
from embridge.workers.timing import NS

log = logging.getLogger(__name__)


class TargetWorker:
    """One of several, each with a session of its own; number 0: rows come through shared memory only, and there is nothing to keep."""

    def __init__(self, desk: Desk, worker: int, session: LiveSession) -> None:
        self._desk = desk
        self._worker = worker
        self._session = session
        if session.number:
            desk.control.sessions.begin(worker, session)
            desk.to("poller").send(Kick.SESSION, worker, session.number)  # quarantined blocks come free, windows are granted anew
            log.info("session %d of worker %d has port %d", session.number, worker, session.port)

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        for _, record in inbox.records:
            if record.kick == Kick.FENCE and self._session.number and record.value == self._session.number:
                raise Renew(f"session {self._session.number} of worker {self._worker} ends: it is fenced")
        return []

    def next_step_ns(self, now_ns: int) -> int:
        return now_ns + int(self._desk.timing.beat_s * NS)
