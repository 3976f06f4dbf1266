"""The shape of a node: which side it is, how its blocks look, and how much of everything it holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

from embridge.allocator.settings import check, setting

SLOTS_PER_PAGE: Final = 64  # one word of a dirty bitmap
SHELF_BLOCK_BYTES: Final = 1 << 16
SHELF_WAYS: Final = 16  # entries of a set of the shelf; a key has two sets
AUX_WORDS: Final = 16  # int32 a request: [0] total length, [1] mrope_position_delta
POSITION_AXES: Final = 3
DTYPE_BYTES: Final = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
}
MAX_BLOCK_SIZE: Final = (1 << 14) - 1  # rows in a staging entry
MAX_BLOCKS: Final = (1 << 24) - 1  # block index in a staging entry
MAX_TOKENS: Final = (1 << 32) - 1  # `sent` in a status word


class Role(IntEnum):
    """Which side of the transfer a node is."""

    ENCODE = 0
    LANGUAGE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The shape of one node's blocks. Two nodes that exchange rows agree on all of it, except `num_blocks`.

    With `num_blocks` 0 the launcher chooses a number (`pipeline.node.sizing`) before anything is laid out.
    """

    hidden_size: int = setting(
        3584, "Elements of a token's row.", ge=1, le=1 << 20, is_flag=True, unit="elements", why="that of Qwen2.5-VL-7B"
    )
    block_size: int = setting(
        128, "Tokens a block.", ge=1, le=MAX_BLOCK_SIZE, is_flag=True, unit="tokens",
        why="it is SGLang's, and the last block of a request wastes little",
    )  # fmt: skip
    num_blocks: int = setting(
        0, "Blocks of the pool; 0: 64, or what half of /dev/shm has room for.", ge=0, le=MAX_BLOCKS, is_flag=True,
        why="a container has 64 MB of /dev/shm unless it is given more, and half of it is left to another node",
    )  # fmt: skip
    dtype: str = setting(
        "bfloat16", "Type of a row's elements.", choices=lambda: tuple(DTYPE_BYTES), is_flag=True,
        why="it is what vision towers put out",
    )  # fmt: skip
    deepstack_layers: int = setting(
        0, "Deepstack rows a token; 0: none, Qwen3-VL: 3.", ge=0, le=64, is_flag=True, why="most models have none"
    )
    fill_ids: bool = setting(True, "Whether a row has its token's id.", why="schedulers of Qwen's models need it")
    mrope_positions: bool = setting(
        True, "Whether a row has its token's three positions.", why="schedulers of Qwen's models need them"
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one token's row of `input_embeddings`."""
        return self.hidden_size * DTYPE_BYTES[self.dtype]

    @property
    def deepstack_bytes(self) -> int:
        """Bytes of one token's deepstack rows; 0 where the model has none."""
        return self.embedding_bytes * self.deepstack_layers

    @property
    def id_bytes(self) -> int:
        """Bytes of one token's id; 0 where rows have none."""
        return 4 if self.fill_ids else 0

    @property
    def position_bytes(self) -> int:
        """Bytes of one token's positions; 0 where rows have none."""
        return 4 * POSITION_AXES if self.mrope_positions else 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all per-token buffers together."""
        return self.embedding_bytes + self.deepstack_bytes + self.id_bytes + self.position_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of everything a node holds; fixed when it is launched.

    On an encode node half of the pages of 64 slots, rounded down, are for rooms that nobody has asked for yet. So with
    a single page an encoder's room has a slot only once it was asked for. A full ring costs no kick: its producer keeps
    the kicks that did not fit, and tries again within a millisecond or two.
    """

    num_slots: int = setting(
        2048, "Requests that may be open at one time.", ge=SLOTS_PER_PAGE, le=1 << 16, is_flag=True,
        why="more than a scheduler keeps open, in a control segment of 3 to 7 MiB, most of which grows with it",
    )  # fmt: skip
    max_clients: int = setting(
        16, "Encoder or scheduler processes that may attach.", ge=1, le=64, is_flag=True,
        why="it is one for each of a host's 8 GPUs, twice, for processes that are being replaced",
    )  # fmt: skip
    num_workers: int = setting(
        2, "Transfer workers.", ge=1, le=16, is_flag=True, why="one copies on while the other waits or is restarted"
    )
    max_destinations: int = setting(
        4, "Language nodes that may ask for one room.", ge=1, le=64, why="the tables of every slot grow with it"
    )
    window_blocks: int = setting(
        0, "Blocks that one request may hold at one time, at all its destinations together; 0: half of the pool, from "
        "128 to 256.", ge=0, le=4096, why="half of a pool leaves room to others, and more than 256 are never needed",
    )  # fmt: skip
    max_peers: int = setting(
        32, "Other nodes that may be registered.", ge=1, le=256, why="it is a rack's, and tables grow with it"
    )
    max_peer_slots: int = setting(
        2048, "The most `num_slots` that another node may have.", ge=SLOTS_PER_PAGE, le=1 << 16,
        why="it is the default of `num_slots`",
    )  # fmt: skip
    ring_records: int = setting(
        256, "Kicks on their way from one process to another; a power of two. A consumer takes 256 at a time.",
        ge=16, le=1 << 20, why="it is what a consumer takes at a time",
    )  # fmt: skip
    max_routes: int = setting(
        0, "Nodes of the other role that discovery may tell of; 0: 128 with discovery, none without.", ge=0, le=1024,
        why="discovery alone decides whether there is a table",
    )  # fmt: skip
    shelf_bytes: int = setting(
        0, "Shared memory of an encode node for published items; 0: nothing can be published.",
        ge=0, le=1 << 40, is_flag=True, why="only who publishes items needs the memory",
    )  # fmt: skip
    has_web: int = 0  # no setting: 1 where `metrics_addr` is an address, for the tables have a place for that process

    def __post_init__(self) -> None:
        check(self)
        if self.has_web not in (0, 1):
            raise ValueError(f"has_web: {self.has_web} is neither 0 nor 1")
        if self.num_slots % SLOTS_PER_PAGE:
            raise ValueError(f"num_slots: {self.num_slots} is no multiple of {SLOTS_PER_PAGE}")
        if self.ring_records & (self.ring_records - 1):
            raise ValueError(f"ring_records: {self.ring_records} is no power of two")
        if 0 < self.window_blocks < self.max_destinations:
            raise ValueError(
                f"window_blocks: {self.window_blocks} < max_destinations {self.max_destinations}, which share it"
            )

    @property
    def num_lanes(self) -> int:
        """Those of clients, and behind them one of the node's own, where it has a shelf."""
        return self.max_clients + (self.shelf_bytes > 0)

    @property
    def shelf_blocks(self) -> int:
        """Blocks of the shelf; 0: there is none."""
        return -(-self.shelf_bytes // SHELF_BLOCK_BYTES)

    @property
    def shelf_entries(self) -> int:
        """How many items the shelf can hold: one a quarter of a MiB, in whole sets."""
        wanted = min(max(self.shelf_blocks // 4, LEAST_ENTRIES), MOST_ENTRIES)
        return -(-wanted // SHELF_WAYS) * SHELF_WAYS if self.shelf_blocks else 0

    def window_in(self, num_blocks: int) -> int:
        """How many blocks one request may hold in a pool of so many."""
        return self.window_blocks or min(max(num_blocks // 2, LEAST_WINDOW), MOST_WINDOW)


LEAST_ENTRIES: Final = 64  # four sets
MOST_ENTRIES: Final = 1 << 16
LEAST_WINDOW: Final = 128
MOST_WINDOW: Final = 256  # of 128 tokens: what half of a large pool would take in tables is never needed
GEOMETRY_WORDS: Final = len(fields(Geometry))


def pack(value: Geometry | Limits) -> list[int]:
    """The words that describe a geometry or limits in the header. A dtype is its position in `DTYPE_BYTES`."""
    words = []
    for field in fields(value):
        item = getattr(value, field.name)
        words.append(list(DTYPE_BYTES).index(item) if field.name == "dtype" else item)
    return words


def unpack_geometry(words: list[int]) -> Geometry:
    """The geometry that `pack` wrote. Raises ValueError for words that describe none."""
    hidden, block, blocks, dtype, deepstack, ids, positions = words
    names = list(DTYPE_BYTES)
    for name, word in (("fill_ids", ids), ("mrope_positions", positions)):
        if word > 1:
            raise ValueError(f"{name}: {word} is neither 0 nor 1")
    if dtype >= len(names):
        raise ValueError(f"dtype: code {dtype} is outside 0 to {len(names) - 1}")
    if not blocks:
        raise ValueError("num_blocks: 0 < 1")
    return Geometry(
        hidden_size=hidden,
        block_size=block,
        num_blocks=blocks,
        dtype=names[dtype],
        deepstack_layers=deepstack,
        fill_ids=bool(ids),
        mrope_positions=bool(positions),
    )


def unpack_limits(words: list[int]) -> Limits:
    """The limits that `pack` wrote. Raises ValueError for words that describe none."""
    return Limits(**{field.name: word for field, word in zip(fields(Limits), words, strict=False)})
