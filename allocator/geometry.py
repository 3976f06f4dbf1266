"""The shape of a node: whose side it is, how its blocks look, and how much of everything it holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

SLOTS_PER_PAGE: Final = 64  # one word of a dirty bitmap
AUX_WORDS: Final = 16  # int32 a request: [0] total length, [1] mrope_position_delta
POSITION_AXES: Final = 3
DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_BLOCK_SIZE: Final = (1 << 14) - 1  # rows in a staging entry
MAX_BLOCKS: Final = (1 << 24) - 1  # block index in a staging entry
MAX_TOKENS: Final = (1 << 32) - 1  # `sent` in a status word


class Role(IntEnum):
    """Which side of the transfer a node is."""

    ENCODE = 0
    LANGUAGE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The shape of one node's blocks. Two nodes that exchange rows agree on all of it but `num_blocks`.

    `hidden_size` elements of `dtype` a token; `deepstack_layers` more rows of that size a token (0: none; Qwen3-VL: 3).
    `num_blocks`: 0 leaves it to the launcher (`pipeline.sizing`), which chooses one before anything is laid out.
    """

    hidden_size: int = 3584
    block_size: int = 128
    num_blocks: int = 0
    dtype: str = "bfloat16"
    deepstack_layers: int = 0

    def __post_init__(self) -> None:
        limits = {
            "hidden_size": (1, 1 << 20),
            "block_size": (1, MAX_BLOCK_SIZE),
            "num_blocks": (0, MAX_BLOCKS),
            "deepstack_layers": (0, 64),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is outside {low} to {high}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype: {self.dtype!r} is unknown; use one of {', '.join(DTYPE_BYTES)}")

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one token's row of `input_embeddings`."""
        return self.hidden_size * DTYPE_BYTES[self.dtype]

    @property
    def deepstack_bytes(self) -> int:
        """Bytes of one token's deepstack rows; 0 where the model has none."""
        return self.embedding_bytes * self.deepstack_layers

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all per-token buffers together."""
        return self.embedding_bytes + self.deepstack_bytes + 4 + 4 * POSITION_AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of everything a node holds; fixed when it is launched.

    `num_slots`: requests in flight; others wait. In pages of 64: half of the pages of an encode node, rounded down, are for rooms that
    nobody has asked for yet, so with a single page an encoder's room has a slot only once it was asked for.
    `window_blocks`: the most blocks that one request may hold at one time, at all its destinations together.
    `ring_records`: what is on its way from one process to another. A full ring costs no kick: its producer keeps what
    did not fit, and looks again within a millisecond or two; 256 are what a consumer takes at a time.
    `max_routes`: nodes of the other role that discovery may tell of; 0: no discovery, so no route table and no registrar.
    """

    num_slots: int = 2048
    max_clients: int = 16
    num_workers: int = 2
    max_destinations: int = 4
    window_blocks: int = 128
    max_peers: int = 32
    max_peer_slots: int = 2048
    ring_records: int = 256
    max_routes: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "num_slots": (SLOTS_PER_PAGE, 1 << 16),
            "max_clients": (1, 64),
            "num_workers": (1, 16),
            "max_destinations": (1, 64),
            "window_blocks": (1, 4096),
            "max_peers": (1, 256),
            "max_peer_slots": (SLOTS_PER_PAGE, 1 << 16),
            "ring_records": (16, 1 << 20),
            "max_routes": (0, 1024),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is outside {low} to {high}")
        if self.num_slots % SLOTS_PER_PAGE:
            raise ValueError(f"num_slots: {self.num_slots} is no multiple of {SLOTS_PER_PAGE}")
        if self.ring_records & (self.ring_records - 1):
            raise ValueError(f"ring_records: {self.ring_records} is no power of two")
        if self.window_blocks < self.max_destinations:
            raise ValueError(
                f"window_blocks: {self.window_blocks} < max_destinations {self.max_destinations}, which share it"
            )


def pack(value: Geometry | Limits) -> list[int]:
    """The words that describe a geometry or limits in the header; a dtype is its position in `DTYPE_BYTES`."""
    words = []
    for field in fields(value):
        item = getattr(value, field.name)
        words.append(list(DTYPE_BYTES).index(item) if field.name == "dtype" else item)
    return words


def unpack_geometry(words: list[int]) -> Geometry:
    """The geometry that `pack` wrote. Raises ValueError for words that describe none."""
    hidden, block, blocks, dtype, deepstack = words[:5]
    names = list(DTYPE_BYTES)
    if dtype >= len(names):
        raise ValueError(f"dtype: code {dtype} is outside 0 to {len(names) - 1}")
    if not blocks:
        raise ValueError("num_blocks: 0 < 1")
    return Geometry(
        hidden_size=hidden, block_size=block, num_blocks=blocks, dtype=names[dtype], deepstack_layers=deepstack
    )


def unpack_limits(words: list[int]) -> Limits:
    """The limits that `pack` wrote. Raises ValueError for words that describe none."""
    return Limits(**{field.name: word for field, word in zip(fields(Limits), words, strict=False)})
