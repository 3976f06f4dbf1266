"""Blocks of a language node that a late write may still hit, and the fence that ends that (R10, R11)."""

from __future__ import annotations

import logging

from embridge.allocator.metrics import Metric
from embridge.allocator.rings import Kick
from embridge.allocator.sessions import SESSION_MASK, SHM_EXPOSURE, exposure_of, of_exposure
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

FENCE_AGAIN_NS = 5 * NS  # until a fence that was asked for and has not come is asked for again


class Quarantine:
    """Looks for how long blocks have been in quarantine, and has the session fenced under which they are (poller)."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._blocks = ctx.control.blocks
        self._sessions = ctx.control.sessions
        self._since_ns: dict[tuple[int, int], int] = {}  # (block, cell) -> since when it was seen in quarantine
        self._fenced_ns: dict[int, int] = {}  # worker -> when it was told to fence its session

    @property
    def is_empty(self) -> bool:
        """Whether the last look has found no block."""
        return not self._since_ns

    def session_began(self, worker: int, number: int) -> None:
        """A transfer worker is in a new session."""
        self._fenced_ns.pop(worker, None)
        self._free_fenced(worker, number)

    def _free_fenced(self, worker: int, number: int) -> None:
        """Free what was quarantined under a lesser session of this transfer worker.

        The engine through which others could have written there is dead (R10).
        """
        if self._blocks.cells.end_exposure(~SESSION_MASK & (1 << 64) - 1, exposure_of(worker, 0), number):
            self._ctx.control.ring_block_waiters()

    def look(self, now_ns: int) -> None:
        """Free the blocks that a fence has passed, and ask for a fence where blocks are quarantined for too long (R11).
        """
        held = self._sessions.quarantined() if self._blocks.counts().quarantined else {}
        held.pop(SHM_EXPOSURE, None)
        since = self._since_ns = {
            block: self._since_ns.get(block, now_ns) for blocks in held.values() for block in blocks
        }
        patience_s = self._ctx.timing.fence_wait_s if self._blocks.waiters() else self._ctx.timing.fence_after_s
        for word, blocks in held.items():
            worker, number = of_exposure(word)
            current = self._sessions.number(worker)
            if number < current:
                self._free_fenced(worker, current)
            elif now_ns - min(since[block] for block in blocks) >= patience_s * NS and (
                now_ns - self._fenced_ns.get(worker, -FENCE_AGAIN_NS) >= FENCE_AGAIN_NS
            ):
                self._fenced_ns[worker] = now_ns
                self._ctx.count(Metric.FENCES)
                log.info("session %d is fenced: %d blocks are in quarantine under it", number, len(blocks))
                self._ctx.to(f"worker{worker}").send(Kick.FENCE, worker, 0, number)
