"""The source blocks of an attempt: held while an engine reads them, so that the stager does not take them away (R8).

A transfer worker takes a block by a CAS on its staging entry, STAGED -> READING, and gives it back by another, READING
-> STAGED. The stager, a client's library thread, takes back only what is STAGED.
"""

from __future__ import annotations

from embridge.allocator.request_tables import STAGE_READING, STAGE_STAGED, stage_entry
from embridge.workers.role import RoleContext


class StagedBlocks:
    """The staging entries of this node, as a transfer worker uses those of its rooms."""

    def __init__(self, ctx: RoleContext) -> None:
        self._staging = ctx.control.staging
        self._bs = ctx.bs

    def hold(self, slot: int, sent: int, limit: int, most_blocks: int) -> tuple[list[tuple[int, int]], int]:
        """Hold the staged blocks from the row `sent` on, for one attempt; none that another one holds.

        Returns [(block of the request, source block)...], and the row to which they reach, `limit` at most.
        """
        bs, end, held = self._bs, sent, []
        for k in range(sent // bs, min(-(-limit // bs), sent // bs + most_blocks)):
            word = self._staging.load(slot, k)
            block, source, rows, state = stage_entry(word)
            while state == STAGE_STAGED and block == k and k * bs + rows > end:
                if self._staging.replace(slot, k, word, word ^ STAGE_STAGED ^ STAGE_READING):
                    break
                word = self._staging.load(slot, k)
                block, source, rows, state = stage_entry(word)
            else:
                break
            held.append((k, source))
            end = min(limit, k * bs + rows)
            if rows < bs:
                break
        return held, end

    def release(self, slot: int, block: int) -> None:
        """Let the stager have a source block back, with the rows that it may have added meanwhile."""
        while True:
            word = self._staging.load(slot, block)
            held, _, _, state = stage_entry(word)
            if held != block or state != STAGE_READING:
                return
            if self._staging.replace(slot, block, word, word ^ STAGE_READING ^ STAGE_STAGED):
                return

    def release_all(self, slot: int) -> None:
        """Release all that is held of a slot, by whichever process."""
        for k in range(self._staging.window):
            word = self._staging.load(slot, k)
            if word & 3 == STAGE_READING:
                self.release(slot, stage_entry(word)[0])
