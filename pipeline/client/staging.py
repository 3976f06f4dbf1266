"""Staging: which rows of a request stand in source blocks, for its transfer worker to read (library thread).

The library thread copies rows from host memory into source blocks as destinations grant room. Source blocks are a
cache, not a place to wait in. A row that nobody can take yet, or that was written already, is staged only in blocks
above the reserve. The reserve holds a row only while a write needs it. Rows that stand in a source block alone go to
host memory before the block goes to another request. So any length passes through any pool of at least one block a side
(R21, D8).
"""

from __future__ import annotations

from typing import Final

from embridge.allocator.blocks import RESERVE_BLOCK
from embridge.allocator.records import Destination, Slot, WrittenBy
from embridge.allocator.request_tables import STAGE_STAGED, StageEntry
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.kept_rows import KeptRows, Part
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.staged_blocks import StagedBlocks
from embridge.pipeline.leaving import refuse

AHEAD_BLOCKS: Final = 32  # staged beyond what is sent, for each destination


class Staging:
    """One sender's. `wanted` is for either thread, all else is the library thread's."""

    def __init__(
        self, library: Library, handle: TransferHandle, total: int, kept: KeptRows, staged: StagedBlocks
    ) -> None:
        control = library.attachment.control
        self._library = library
        self._attachment = library.attachment
        self._handle = handle
        self._total = total
        self._kept = kept
        self._staged = staged
        self._slots = control.slots
        self._blocks = control.blocks
        self._dsts = library.destinations
        self._bs = control.geometry.block_size
        self.window = library.staging.window
        """Source blocks that one request may have."""
        self.is_hungry = False
        """Whether a destination could take a row for which there is no source block."""

    def refuse(self, why: str) -> None:
        """The client has left its node: whatever is asked of the tables from now on is a RuntimeError."""
        refuse(self, why, ("_slots", "_blocks", "_dsts"))

    def _demand(self, ready: int) -> tuple[dict[int, int], list[tuple[int, int]], int]:
        """What destinations to which the worker writes can take of `ready` rows now.

        Returns:
            heads, the block each of them needs next, and to which row; ranges of blocks behind them; the least block
            that some destination has yet to get.
        """
        get, bs = self._dsts.get, self._bs
        count = self._slots.get(self._handle.slot, Slot.NUM_DESTINATIONS)
        heads: dict[int, int] = {}
        ranges = []
        least = self._total
        for d in range(count):
            sent = get(self._handle.slot, d, Destination.SENT)
            limit = min(ready, get(self._handle.slot, d, Destination.GRANTED_TOKENS))
            least = min(least, sent)
            if sent < limit and get(self._handle.slot, d, Destination.WRITTEN_BY) != WrittenBy.CLIENT:
                k = sent // bs
                heads[k] = max(heads.get(k, 0), min(limit, (k + 1) * bs))
                ranges.append((k, min(-(-limit // bs), k + AHEAD_BLOCKS)))
        if count < max(self._slots.get(self._handle.slot, Slot.REQUIRED), 1):
            least = 0
        return heads, ranges, least // bs

    def is_all_granted(self) -> bool:
        """Whether every destination has come, and has granted all rows; some of them are still to be sent (either
        thread).
        """
        slot, total = self._handle.slot, self._total
        count = self._slots.get(slot, Slot.NUM_DESTINATIONS)
        return 0 < self._slots.get(slot, Slot.REQUIRED) <= count and all(
            self._dsts.get(slot, d, Destination.BEGIN) < total <= self._dsts.get(slot, d, Destination.GRANTED_TOKENS)
            for d in range(count)
        )

    def wanted(self, ready: int) -> tuple[dict[int, int], set[int], int]:
        """`_demand`, with the request blocks that some destination can take, or will next, as a set."""
        heads, ranges, least = self._demand(ready)
        return heads, {k for first, end in ranges for k in range(first, end)}, least

    def stage(self, ready: int) -> None:
        """Copy rows below `ready` into source blocks, as destinations can take them, and tell the worker."""
        heads, wanted, least = self.wanted(ready)
        self._kept.let_go(least)
        for k in self._staged:
            held = self._staged.get(k)
            if k < least or (held is not None and held.source == RESERVE_BLOCK and k not in heads):
                self._staged.drop(k)
        if not wanted and least * self._bs < ready and not self._library.blocks_are_short():
            end = min(-(-ready // self._bs), least + AHEAD_BLOCKS)
            wanted = set(range(least, end))  # nobody has granted yet: ahead of time, from what others do not need
        parts: list[Part] = []
        fresh: dict[int, StageEntry] = {}
        missing = []
        places: set[int] = set()  # entries that are given away in this turn
        for k in sorted(wanted, key=lambda k: (k not in heads, k)):
            held = self._staged.get(k)
            rows = min(ready - k * self._bs, self._bs)
            if held is None:
                if k % self.window not in places and self._staged.make_place(
                    k, heads if k in heads else wanted
                ):
                    places.add(k % self.window)
                    missing.append(k)
            elif held.rows < rows:
                parts.append((held.source, k * self._bs + held.rows, k * self._bs + rows))
                fresh[k] = held._replace(rows=rows)
        self.is_hungry = False
        if missing:
            blocks = self._acquire(missing, heads)
            for k, block in zip(missing, blocks, strict=False):
                rows = min(ready - k * self._bs, self._bs)
                parts.append((block, k * self._bs, k * self._bs + rows))
                fresh[k] = StageEntry(k, block, rows, STAGE_STAGED)
            self.is_hungry = any(k in heads for k in missing[len(blocks) :])
        if parts:
            self._copy(parts, fresh)
            self._attachment.kick_worker(self._handle.room, self._handle.slot, self._handle.epoch)

    def _acquire(self, missing: list[int], heads: dict[int, int]) -> list[int]:
        """Blocks for these; the reserve only for one that a destination needs next, when there is no other."""
        pool = self._blocks
        slot, epoch = self._handle.slot, self._handle.epoch
        blocks: list[int] = pool.acquire(slot, epoch, len(missing), may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads and self._library.evict(self._handle):
            blocks = pool.acquire(slot, epoch, 1, may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads:
            blocks = pool.acquire(slot, epoch, 1, may_take_reserve=True).tolist()
        return blocks

    def _copy(self, parts: list[Part], fresh: dict[int, StageEntry]) -> None:
        self._kept.stage(self._attachment.payload, parts)
        for k, entry in fresh.items():
            self._staged.show(k, entry)

    def evict(self, ready: int, *, copying: bool) -> int:
        """Drop what no destination can take now. Returns how many were dropped.

        `copying`: one that is kept nowhere else, and must be copied to host memory first; else all others.
        """
        _, wanted, _ = self.wanted(ready)
        idle = [k for k in self._staged if k not in wanted and self._kept.has(k) is not copying]
        return sum(self._staged.free(k) for k in (idle[-1:] if copying else idle))
