"""The rows of a request, computed from (room, row), so that every process knows what every other one must have sent."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator.geometry import POSITION_AXES, Geometry

DELTA = -7  # mrope_position_delta of every request


class Rows(NamedTuple):
    """Arguments of `EmbeddingSender.write`, after `start`."""

    input_embeddings: torch.Tensor
    fill_ids: torch.Tensor
    mrope_positions: torch.Tensor
    deepstack_embeddings: torch.Tensor | None

    def cut(self, end: int) -> Rows:
        """The first `end` of them, in the same memory."""
        embeddings, ids, positions, deepstack = self
        return Rows(embeddings[:end], ids[:end], positions[:end], None if deepstack is None else deepstack[:end])


class Arrived(Protocol):
    """A result, or a chunk of one."""

    @property
    def input_embeddings(self) -> torch.Tensor: ...
    @property
    def fill_ids(self) -> torch.Tensor | None: ...
    @property
    def mrope_positions(self) -> torch.Tensor | None: ...
    @property
    def deepstack_embeddings(self) -> torch.Tensor | None: ...


def arrived(it: Arrived) -> Rows:
    """What has arrived, of nodes whose rows have ids and positions."""
    assert it.fill_ids is not None
    assert it.mrope_positions is not None
    return Rows(it.input_embeddings, it.fill_ids, it.mrope_positions, it.deepstack_embeddings)


def _keys(room: int, first: int, end: int) -> npt.NDArray[np.uint64]:
    """One number a row that depends on the room and the row."""
    row = np.arange(first, end, dtype=np.uint64)
    salt = np.uint64((room + 1) * 0xC2B2AE3D27D4EB4F & 0xFFFF_FFFF_FFFF_FFFF)
    key = (row + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ salt
    return key ^ key >> np.uint64(29)


def _bits(keys: npt.NDArray[np.uint64], width: int, salt: int) -> torch.Tensor:
    """(rows, width) bfloat16 with any bit pattern, NaN among them: compare bytes, not numbers."""
    column = np.arange(width, dtype=np.uint16) * np.uint16(40503) + np.uint16(salt)
    mixed = (keys >> np.uint64(13)).astype(np.uint16)[:, None] + column
    mixed ^= (keys >> np.uint64(31)).astype(np.uint16)[:, None]
    return torch.from_numpy(mixed.view(np.int16)).view(torch.bfloat16)


def rows_of(geometry: Geometry, room: int, first: int, end: int) -> Rows:
    """Rows [first, end) of a room."""
    keys, hidden, layers = _keys(room, first, end), geometry.hidden_size, geometry.deepstack_layers
    positions = (keys[:, None] >> np.array([3, 17, 40], np.uint64)[:POSITION_AXES]).astype(np.uint32).view(np.int32)
    deepstack = _bits(keys, layers * hidden, 777).view(end - first, layers, hidden) if layers else None
    return Rows(
        _bits(keys, hidden, 0),
        torch.from_numpy((keys >> np.uint64(7)).astype(np.uint32).view(np.int32)),
        torch.from_numpy(positions),
        deepstack,
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def difference(geometry: Geometry, room: int, first: int, got: Rows) -> str:
    """Where rows that arrived differ from those that were sent; empty when every byte is right."""
    want = rows_of(geometry, room, first, first + len(got.fill_ids))
    for name, expected, actual in zip(Rows._fields, want, got, strict=True):
        if (expected is None) != (actual is None):
            return f"{name}: {actual} instead of {expected}"
        if expected is None or actual is None:
            continue
        if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
            return f"{name}: {actual.shape} {actual.dtype} instead of {expected.shape} {expected.dtype}"
        if raw(expected) != raw(actual):
            flat = [t.contiguous().view(torch.uint8).view(len(t), -1) for t in (expected, actual)]
            wrong = (flat[0] != flat[1]).any(dim=1).nonzero().flatten()
            at = first + int(wrong[0])
            return f"{name}: {len(wrong)} of {len(expected)} rows of room {room} differ, the first is {at}"
    return ""
