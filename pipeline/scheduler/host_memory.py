"""Received rows in a process's own memory, as bytes per token and buffer."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator._core import Mapping, copy
from embridge.allocator.buffers import Pool, pools
from embridge.allocator.geometry import AUX_WORDS, Geometry
from embridge.pipeline.scheduler.rows import Bytes, Rows


class HostRows(Rows):
    """Room for the rows of one request.

    It is one array of `size_of` bytes or more, with `aux_datas` and a section for each buffer.
    """

    def __init__(self, geometry: Geometry, capacity_tokens: int, memory: Bytes) -> None:
        sections: dict[str, tuple[Pool, Bytes]] = {}
        at = 4 * AUX_WORDS
        for pool in pools(geometry):
            end = at + capacity_tokens * pool.row_bytes
            sections[pool.name] = (pool, memory[at:end])
            at = end
        super().__init__(geometry)
        self._sections = sections
        self.capacity_tokens = capacity_tokens
        self.memory = memory

    @property
    def aux(self) -> npt.NDArray[np.int32]:
        return self.memory[: 4 * AUX_WORDS].view(np.int32)

    def _view(self, name: str, first: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        pool, section = self._sections[name]
        return torch.from_numpy(section[first * pool.row_bytes : end * pool.row_bytes]).view(dtype)

    @staticmethod
    def size_of(geometry: Geometry, capacity_tokens: int) -> int:
        """Bytes of memory for `capacity_tokens` rows."""
        return 4 * AUX_WORDS + capacity_tokens * geometry.token_bytes

    def drain(self, payload: Mapping, parts: list[tuple[int, int, int]]) -> None:
        """Copy landed rows out of destination blocks.

        Each part is (block, first row, end row), within one block of the request.
        """
        bs = self.geometry.block_size
        for pool, section in self._sections.values():
            moves: list[list[int]] = []
            for block, first, end in parts:
                size = (end - first) * pool.row_bytes
                source = pool.offset + (block * bs + first % bs) * pool.row_bytes
                target = first * pool.row_bytes
                if moves and moves[-1][0] + moves[-1][2] == target and moves[-1][1] + moves[-1][2] == source:
                    moves[-1][2] += size
                else:
                    moves.append([target, source, size])
            array = np.array(moves, np.int64)
            copy(section, payload, array, len(array))

    def take_over(self, other: HostRows, num_tokens: int) -> None:
        """Copy the first `num_tokens` rows of a smaller one."""
        for name, (pool, section) in self._sections.items():
            size = num_tokens * pool.row_bytes
            section[:size] = other._sections[name][1][:size]
        self.aux[:] = other.aux


class HostMemory:
    """Warm, recycled host memory for received requests, up to a limit in bytes.

    Fresh memory costs a page fault every 4 KiB (six times a warm copy). So memory that is given back is kept, by size
    class, within the limit. The oldest request (of this node, and of all nodes that receive it) may exceed the limit by
    its own need; then no two half-received requests wait for each other. The library thread calls all methods, except
    `give_back_later`, which any thread may call.
    """

    def __init__(self, geometry: Geometry, limit_bytes: int) -> None:
        self._geometry = geometry
        self._token_bytes = geometry.token_bytes
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        self._kept: dict[int, list[Bytes]] = {}
        self._kept_bytes = 0
        self._returned: deque[tuple[HostRows | None, int]] = deque()

    def give_back_later(self, rows: HostRows | None, reserved_tokens: int) -> None:
        """Give the memory and the reservation of a request that is over back, with the next `collect` (any thread)."""
        if rows is not None or reserved_tokens:
            self._returned.append((rows, reserved_tokens))

    def end(self) -> None:
        """Keep nothing and take nothing back any more: memory that is given back from now on is free at once."""
        self._kept.clear()
        self._returned = deque(maxlen=0)

    def collect(self) -> None:
        """Take back the memory that was given to `give_back_later`."""
        while self._returned:
            rows, tokens = self._returned.popleft()
            self.reserved_bytes -= tokens * self._token_bytes
            if rows is not None:
                self.give_back(rows)

    def bytes_for(self, tokens: int) -> int:
        return tokens * self._token_bytes

    @property
    def admits(self) -> bool:
        """Whether a request that has no memory yet may exceed the limit, if it is the oldest."""
        return True

    def reserve(self, tokens: int, *, may_exceed: bool) -> bool:
        """Count these tokens in, if they fit or `may_exceed`. True if they were counted."""
        size = self.bytes_for(tokens)
        if self.reserved_bytes + size > self.limit_bytes and not may_exceed:
            return False
        self.reserved_bytes += size
        return True

    def take(self, tokens: int) -> HostRows:
        """Room for this many reserved tokens."""
        size = _size_class(HostRows.size_of(self._geometry, tokens))
        kept = self._kept.get(size)
        if kept:
            memory = kept.pop()
            self._kept_bytes -= size
        else:
            memory = np.empty(size, np.uint8)
        return HostRows(self._geometry, tokens, memory)

    def give_back(self, rows: HostRows) -> None:
        """Keep the memory of these rows for the next request, as far as the limit allows."""
        size = rows.memory.nbytes
        if self._kept_bytes + size <= self.limit_bytes // 2:
            self._kept.setdefault(size, []).append(rows.memory)
            self._kept_bytes += size


def _size_class(size: int) -> int:
    """Round up to a quarter of a power of two, at least 64 KiB: few classes, at most a quarter wasted."""
    step = 1 << max(size - 1, 1 << 16).bit_length() - 3
    return -(-size // step) * step
