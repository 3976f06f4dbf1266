"""Rows in a process's own memory: what a caller gave, or what was received, as bytes per token and buffer."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator import layout as lay
from embridge.allocator._core import Mapping, copy
from embridge.allocator.buffers import Pool, as_tensor, pools
from embridge.allocator.layout import AUX_WORDS, POSITION_AXES, Geometry

Bytes = npt.NDArray[np.uint8]


class Chunk(NamedTuple):
    """Rows [first, end) as the caller gave them: a flat byte view of each buffer, by pool name. The tensors are kept, not copied."""

    first: int
    end: int
    data: dict[str, Bytes]


def chunk_of(
    geometry: Geometry,
    first: int,
    input_embeddings: torch.Tensor,
    fill_ids: Any,
    mrope_positions: Any,
    deepstack_embeddings: torch.Tensor | None,
) -> Chunk:
    """Check what a caller gave and view it as bytes. A tensor on a GPU is copied to the host here.

    Raises:
        ValueError: a dtype, shape or length is not that of the node's geometry.
    """
    count = num_rows(input_embeddings)
    hidden, layers = geometry.hidden_size, geometry.deepstack_layers
    dtype = getattr(torch, geometry.dtype)
    data = {
        "input_embeddings": _bytes("input_embeddings", input_embeddings, dtype, (count, hidden)),
        "fill_ids": _bytes("fill_ids", fill_ids, torch.int32, (count,)),
        "mrope_positions": _bytes("mrope_positions", mrope_positions, torch.int32, (count, POSITION_AXES)),
    }
    if layers:
        if deepstack_embeddings is None:
            raise ValueError(f"deepstack_embeddings: missing; this node's geometry has {layers} deepstack layers")
        shape = (count, layers, hidden)
        data["deepstack_embeddings"] = _bytes("deepstack_embeddings", deepstack_embeddings, dtype, shape)
    elif deepstack_embeddings is not None:
        raise ValueError("deepstack_embeddings: given, but this node's geometry has no deepstack layers")
    if not count:
        raise ValueError("input_embeddings: 0 rows; give at least one")
    return Chunk(first, first + count, data)


def num_rows(input_embeddings: Any) -> int:
    """How many rows a caller gave. Raises ValueError for what is no tensor of rows."""
    if not isinstance(input_embeddings, torch.Tensor | np.ndarray):
        raise ValueError(f"input_embeddings: {type(input_embeddings).__name__} is no tensor; give (n, hidden)")
    return int(input_embeddings.shape[0]) if input_embeddings.ndim else 0


def _bytes(name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Bytes:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}; give {shape} of {dtype}") from error
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: dtype {tensor.dtype} is not {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not {shape}")
    flat = tensor.detach().to("cpu").contiguous().view(torch.uint8)
    return flat.numpy().reshape(-1)


def stage(payload: Mapping, geometry: Geometry, chunks: list[Chunk], parts: list[tuple[int, int, int]]) -> None:
    """Copy rows into source blocks: each part is (source block, first row, end row), within one block of the request."""
    bs = geometry.block_size
    for pool in pools(geometry):
        for chunk in chunks:
            moves = []
            for block, first, end in parts:
                low, high = max(first, chunk.first), min(end, chunk.end)
                if low < high:
                    at = pool.offset + (block * bs + low % bs) * pool.row_bytes
                    moves.append((at, (low - chunk.first) * pool.row_bytes, (high - low) * pool.row_bytes))
            if moves:
                array = np.array(moves, np.int64)
                copy(payload, chunk.data[pool.name], array, len(array))


class HostRows:
    """Room for the rows of one request: one array of `size_of` bytes or more, with `aux_datas` and a section for each buffer."""

    def __init__(self, geometry: Geometry, capacity_tokens: int, memory: Bytes) -> None:
        self.geometry = geometry
        self.capacity_tokens = capacity_tokens
        self.memory = memory
        self.aux = memory[: 4 * AUX_WORDS].view(np.int32)
        self._sections: dict[str, tuple[Pool, Bytes]] = {}
        at = 4 * AUX_WORDS
        for pool in pools(geometry):
            end = at + capacity_tokens * pool.row_bytes
            self._sections[pool.name] = (pool, memory[at:end])
            at = end

    @staticmethod
    def size_of(geometry: Geometry, capacity_tokens: int) -> int:
        """Bytes of memory for so many rows."""
        return 4 * AUX_WORDS + capacity_tokens * geometry.token_bytes

    def drain(self, payload: Mapping, parts: list[tuple[int, int, int]]) -> None:
        """Copy landed rows out of destination blocks: each part is (block, first row, end row), within one block of the request."""
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
        """Copy the first rows of a smaller one."""
        for name, (pool, section) in self._sections.items():
            size = num_tokens * pool.row_bytes
            section[:size] = other._sections[name][1][:size]
        self.aux[:] = other.aux

    def _view(self, name: str, first: int, end: int) -> Bytes:
        pool, section = self._sections[name]
        return section[first * pool.row_bytes : end * pool.row_bytes]

    def input_embeddings(self, first: int, end: int) -> torch.Tensor:
        """(end - first, hidden), the geometry's dtype."""
        g = self.geometry
        return as_tensor(self._view("input_embeddings", first, end), g.dtype, (end - first, g.hidden_size))

    def deepstack_embeddings(self, first: int, end: int) -> torch.Tensor | None:
        """(end - first, D, hidden), or None."""
        g = self.geometry
        if not g.deepstack_layers:
            return None
        shape = (end - first, g.deepstack_layers, g.hidden_size)
        return as_tensor(self._view("deepstack_embeddings", first, end), g.dtype, shape)

    def fill_ids(self, first: int, end: int) -> torch.Tensor:
        """(end - first,) int32."""
        return torch.from_numpy(self._view("fill_ids", first, end)).view(torch.int32)

    def mrope_positions(self, first: int, end: int) -> torch.Tensor:
        """(end - first, 3) int32."""
        flat = torch.from_numpy(self._view("mrope_positions", first, end)).view(torch.int32)
        return flat.view(end - first, lay.POSITION_AXES)


class HostMemory:
    """Warm, recycled host memory for received requests, up to a limit in bytes.

    Fresh memory costs a page fault every 4 KiB (six times a warm copy), so what is given back is kept, by size class, within the
    limit. The oldest request (of this node, and of all nodes that receive it) may exceed the limit by its own need: then no two
    half-received requests wait for each other.
    Library thread only, but `give_back_later`, which any thread may call.
    """

    def __init__(self, geometry: Geometry, limit_bytes: int) -> None:
        self._geometry = geometry
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        self._kept: dict[int, list[Bytes]] = {}
        self._kept_bytes = 0
        self._returned: deque[tuple[HostRows | None, int]] = deque()

    def give_back_later(self, rows: HostRows | None, reserved_tokens: int) -> None:
        """A request is over: its memory and its reservation go back with the next `collect` (any thread)."""
        self._returned.append((rows, reserved_tokens))

    def collect(self) -> None:
        """Take back what was given back."""
        while self._returned:
            rows, tokens = self._returned.popleft()
            self.reserved_bytes -= self.bytes_for(tokens)
            if rows is not None:
                self.give_back(rows)

    def bytes_for(self, tokens: int) -> int:
        return tokens * self._geometry.token_bytes

    @property
    def admits(self) -> bool:
        """Whether a request that has no memory yet may exceed the limit, if it is the oldest."""
        return True

    def reserve(self, tokens: int, *, may_exceed: bool) -> bool:
        """Count these tokens in, if they fit."""
        size = self.bytes_for(tokens)
        if self.reserved_bytes + size > self.limit_bytes and not may_exceed:
            return False
        self.reserved_bytes += size
        return True

    def take(self, tokens: int) -> HostRows:
        """Room for so many reserved tokens."""
        size = _size_class(HostRows.size_of(self._geometry, tokens))
        kept = self._kept.get(size)
        if kept:
            memory = kept.pop()
            self._kept_bytes -= size
        else:
            memory = np.empty(size, np.uint8)
        return HostRows(self._geometry, tokens, memory)

    def give_back(self, rows: HostRows) -> None:
        """Keep its memory for the next one, as far as the limit goes."""
        size = rows.memory.nbytes
        if self._kept_bytes + size <= self.limit_bytes // 2:
            self._kept.setdefault(size, []).append(rows.memory)
            self._kept_bytes += size


def _size_class(size: int) -> int:
    """Round up to a quarter of a power of two, at least 64 KiB: few classes, at most a quarter wasted."""
    step = 1 << max(size - 1, 1 << 16).bit_length() - 3
    return -(-size // step) * step
