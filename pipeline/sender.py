"""`EmbeddingSender`: the encoder's side of one request.

The sender is told once and knows nothing of resumes: it keeps the caller's rows until the request has ended, and the library
thread copies them into source blocks as destinations grant room. Source blocks are a cache, not a place to wait in: a row that
nobody can take yet, or that was written already, is staged only in blocks above the reserve, and the reserve holds a row only
while a write needs it. So any length passes through any pool of at least one block a side (R21, D8).
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.blocks import RESERVE_BLOCK
from embridge.allocator.layout import AUX_WORDS, MAX_TOKENS, Destination, Slot
from embridge.allocator.requests import STAGE_STAGED, StageEntry
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, split
from embridge.pipeline.arguments import whole
from embridge.pipeline.given import Chunk, given_rows, num_rows, stage
from embridge.pipeline.handle import TransferHandle

if TYPE_CHECKING:
    from embridge.pipeline.client import Client

AHEAD_BLOCKS: Final = 32  # staged beyond what is sent, for each destination
INT32 = np.iinfo(np.int32)


class EmbeddingSender(TransferHandle):
    """Made by `Client.sender(room, total_tokens)`. All methods return at once."""

    def __init__(self, client: Client, slot: int, epoch: int, room: int, total_tokens: int) -> None:
        super().__init__(client, slot, epoch, room)
        self.total_tokens = total_tokens
        self._dsts = client.destinations
        self._staging = client.staging
        self._bs = client.geometry.block_size
        self._chunks: list[Chunk] = []
        self._ready = 0
        self._staged: dict[int, StageEntry] = {}  # request block -> its entry, as staged by us
        self._hungry = False
        self._told_ready = 0

    @staticmethod
    def aux_words(aux_datas: Any, total_tokens: int, mrope_position_delta: int) -> npt.NDArray[np.int32]:
        """The 16 auxiliary words: [0] total length, [1] mrope_position_delta, the rest the caller's. Raises ValueError."""
        words = np.zeros(AUX_WORDS, np.int32)
        if aux_datas is not None:
            try:
                given = np.asarray(aux_datas)
            except ValueError as error:
                raise ValueError(f"aux_datas: {error}") from error
            if given.shape != (AUX_WORDS,) or given.dtype.kind not in "iu":
                raise ValueError(f"aux_datas: shape {given.shape} dtype {given.dtype} is not ({AUX_WORDS},) of integers")
            if given.min() < INT32.min or given.max() > INT32.max:
                raise ValueError(f"aux_datas: {given.min()} to {given.max()} is outside int32")
            words[:] = given
        delta = whole("mrope_position_delta", mrope_position_delta, INT32.min, INT32.max)
        words[0], words[1] = min(total_tokens, INT32.max), delta
        return words

    # ---- the caller's thread

    def announce(self) -> None:
        """Send the length ahead of the rows: the language side can then grant all of it, and most requests need one round."""
        if self._slots.get(self.slot, Slot.TOTAL) == 0:
            self._slots.set(self.slot, Slot.TOTAL, self.total_tokens)
            self._client.kick_bootstrap(Kick.LOOK, self.slot, self.epoch)

    def write(
        self,
        start: int,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32],
        mrope_positions: torch.Tensor | npt.NDArray[np.int32],
        deepstack_embeddings: torch.Tensor | None = None,
    ) -> bool:
        """Give rows [start, start + n), as the encoder makes them.

        `input_embeddings` (n, hidden) and `deepstack_embeddings` (n, D, hidden) in the node's dtype, `fill_ids` (n,) and
        `mrope_positions` (n, 3), or (3, n), integers within int32. Rows come in order: `start` is the number of rows given so far.
        CPU tensors are not copied; they must not be changed until the request has ended.

        Returns:
            False, with no effect, when the request has already ended (see `failure_exception`).

        Raises:
            ValueError: a shape or dtype is not the geometry's, rows are out of order, or exceed the total.
        """
        self._client.check_usable()
        start = whole("start", start, 0, MAX_TOKENS)
        given = given_rows(self._client.geometry, start, input_embeddings, fill_ids, mrope_positions, deepstack_embeddings)
        chunk = given.chunk(start, given.end)
        if chunk.end > self.total_tokens:
            raise ValueError(f"rows: {chunk.end} > {self.total_tokens} tokens that this request was opened with")
        if self.poll() >= Phase.Success:
            return False  # before the look at `start`: who streams on into a request that has failed did nothing wrong
        if start != self._ready:
            raise ValueError(f"start: {start} is not {self._ready}, the number of rows given so far")
        self._chunks.append(chunk)
        self.announce()
        self._slots.set(self.slot, Slot.READY, chunk.end)
        self._slots.raise_to(self.slot, Slot.MOVED_NS, self._client.clock())
        self._ready = chunk.end  # after the word: the library thread tells the worker once of what it finds here
        self._client.wake(self)
        return True

    def send_embedding(
        self,
        input_embeddings: torch.Tensor,
        fill_ids: torch.Tensor | npt.NDArray[np.int32],
        mrope_positions: torch.Tensor | npt.NDArray[np.int32],
        deepstack_embeddings: torch.Tensor | None = None,
    ) -> bool:
        """Give all rows at once; to be called once. A second call, or one after the end, has no effect and returns False.

        Raises:
            ValueError: as `write`, or the rows are not as many as the request was opened with.
        """
        if self._ready:
            return False
        count = num_rows(self._client.geometry, input_embeddings)
        if count != self.total_tokens:
            raise ValueError(f"input_embeddings: {count} rows, the request was opened with {self.total_tokens} tokens")
        return self.write(0, input_embeddings, fill_ids, mrope_positions, deepstack_embeddings)

    def clear(self) -> None:
        """Let go of the rows once the request has ended; does nothing before (a sender clears itself then)."""
        if self.poll() >= Phase.Success:
            self._client.wake(self)

    # ---- the library thread

    @property
    def wants_block(self) -> bool:
        return self._hungry

    def service(self) -> None:
        if self._final is not None:
            return
        if split(self._status.load(self.slot)).phase >= TERMINAL:
            self._end()
            return
        self._stage()
        if self._ready != self._told_ready:
            self._told_ready = self._ready
            self._client.kick_worker(self.room, self.slot, self.epoch)

    def _end(self) -> None:
        """Give the source blocks back, except those that a worker is still reading (R8); it wakes us when it is done."""
        self._hungry = False
        for k in list(self._staged):
            self._drop(k)
        if not self._staged:
            self._chunks.clear()
            self._settle()
            self._client.leave(self)

    def _demand(self) -> tuple[dict[int, int], list[tuple[int, int]], int]:
        """What destinations can take now.

        Returns:
            heads: the block each destination needs next, and to which row; ranges of blocks behind them; the least block that
            some destination has yet to get.
        """
        get, bs = self._dsts.get, self._bs
        count = self._slots.get(self.slot, Slot.NUM_DESTINATIONS)
        heads: dict[int, int] = {}
        ranges = []
        least = self.total_tokens
        for d in range(count):
            sent = get(self.slot, d, Destination.SENT)
            limit = min(self._ready, get(self.slot, d, Destination.GRANTED_TOKENS))
            least = min(least, sent)
            if sent < limit:
                k = sent // bs
                heads[k] = max(heads.get(k, 0), min(limit, (k + 1) * bs))
                ranges.append((k, min(-(-limit // bs), k + AHEAD_BLOCKS)))
        if count < max(self._slots.get(self.slot, Slot.REQUIRED), 1):
            least = 0
        return heads, ranges, least // bs

    def _stage(self) -> None:
        heads, ranges, least = self._demand()
        wanted = {k for first, end in ranges for k in range(first, end)}
        for k, entry in list(self._staged.items()):
            if k < least or (entry.source == RESERVE_BLOCK and k not in heads):
                self._drop(k)
        if not wanted and least * self._bs < self._ready and not self._client.blocks_are_short():
            end = min(-(-self._ready // self._bs), least + AHEAD_BLOCKS)
            wanted = set(range(least, end))  # nobody has granted yet: ahead of time, from what others do not need
        parts: list[tuple[int, int, int]] = []
        fresh: dict[int, StageEntry] = {}
        missing = []
        places: set[int] = set()  # entries that are given away in this turn
        for k in sorted(wanted, key=lambda k: (k not in heads, k)):
            held = self._staged.get(k)
            rows = min(self._ready - k * self._bs, self._bs)
            if held is None:
                if k % self._staging.window not in places and self._make_place(k, heads if k in heads else wanted):
                    places.add(k % self._staging.window)
                    missing.append(k)
            elif held.rows < rows:
                parts.append((held.source, k * self._bs + held.rows, k * self._bs + rows))
                fresh[k] = held._replace(rows=rows)
        self._hungry = False
        if missing:
            blocks = self._acquire(missing, heads)
            for k, block in zip(missing, blocks, strict=False):
                rows = min(self._ready - k * self._bs, self._bs)
                parts.append((block, k * self._bs, k * self._bs + rows))
                fresh[k] = StageEntry(k, block, rows, STAGE_STAGED)
            self._hungry = any(k in heads for k in missing[len(blocks) :])
        if parts:
            self._copy(parts, fresh)
            self._client.kick_worker(self.room, self.slot, self.epoch)

    def _acquire(self, missing: list[int], heads: dict[int, int]) -> list[int]:
        """Blocks for these; the reserve only for one that a destination needs next, when there is no other."""
        pool = self._control.blocks
        blocks: list[int] = pool.acquire(self.slot, self.epoch, len(missing), may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads and self._client.evict(self):
            blocks = pool.acquire(self.slot, self.epoch, 1, may_take_reserve=False).tolist()
        if not blocks and missing[0] in heads:
            blocks = pool.acquire(self.slot, self.epoch, 1, may_take_reserve=True).tolist()
        return blocks

    def _copy(self, parts: list[tuple[int, int, int]], fresh: dict[int, StageEntry]) -> None:
        stage(self._client.payload, self._client.geometry, self._chunks, parts)
        if 0 in fresh and 0 not in self._staged:
            self._client.buffers.aux_datas[fresh[0].source] = self._slots.aux(self.slot)
        for k, entry in fresh.items():
            self._publish(k, entry)
            self._staged[k] = entry

    def _publish(self, k: int, entry: StageEntry) -> None:
        """Show the worker the entry; if it is reading the block meanwhile, only the number of rows rises."""
        while True:
            word = self._staging.load(self.slot, k)
            now = StageEntry.of(word)
            same = now.block == k and now.state != 0
            assert same or now.state == 0, f"the entry of block {k} holds block {now.block}"
            if self._staging.replace(self.slot, k, word, (entry._replace(state=now.state) if same else entry).pack()):
                return

    def _make_place(self, k: int, keep: Container[int]) -> bool:
        """The entry of block k is free, or can be freed: entries repeat after one window, and destinations may be further apart."""
        for other in self._staged:
            if other != k and (other - k) % self._staging.window == 0:
                return other not in keep and self._drop(other)
        return True

    def _drop(self, k: int) -> bool:
        """Take a block out of the cache, unless the worker is reading it."""
        entry = self._staged[k]
        word = self._staging.load(self.slot, k)
        if StageEntry.of(word).state != STAGE_STAGED or not self._staging.replace(self.slot, k, word, 0):
            return False
        del self._staged[k]
        self._control.blocks.release(np.array([entry.source], np.uint32), self.slot, self.epoch)
        self._client.blocks_freed()
        return True

    def evict(self) -> int:
        """Drop what no destination can take now: somebody else needs a block. Returns how many were dropped."""
        _, ranges, _ = self._demand()
        wanted = {k for first, end in ranges for k in range(first, end)}
        return sum(self._drop(k) for k in list(self._staged) if k not in wanted)
