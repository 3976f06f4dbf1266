"""The shelf of an encode node: items under keys, which anybody may read until room is made for others (R39 to R49).

The rows lie in a segment of their own, each item's in one run of blocks, so that a reader has them as one array.
`native/shelf.h` moves the words; this opens the tables, and says what the words mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, partial
from hashlib import blake2b
from struct import pack
from typing import Final, NamedTuple

from embridge.allocator._core import SHELF_GENERATION_SHIFT, SHELF_STATE_SHIFT, Mapping, Pin, Shelf, ShelfReader, Words
from embridge.allocator.connection import Connection
from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import SHELF_BLOCK_BYTES, Limits
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    ITEM_WORDS,
    MAX_KEY_BYTES,
    MAX_READERS,
    OWN_READER,
    READER_WORDS,
    SHELF_RECORD_WORDS,
    Reader,
)
from embridge.allocator.records import Shelf as Record
from embridge.allocator.rows_at import PinWord, RowsAt
from embridge.allocator.segment import map_segment

DTYPE_BYTES: Final = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "bool": 1,
}
"""The dtypes of rows, in the order of their codes, which count from 1."""
_DTYPES: Final = ("", *DTYPE_BYTES)
_STATE_BITS: Final = SHELF_GENERATION_SHIFT - SHELF_STATE_SHIFT
_STATE_MASK: Final = (1 << _STATE_BITS) - 1
_MAX_FIRST: Final = (1 << 43) - 1
GENERATIONS_AN_INCARNATION: Final = 8


class Answer(IntEnum):
    """What `Shelf.begin` answers."""

    BEGUN = 0
    ALREADY = 1
    OTHERS = 2
    NO_ENTRY = 3
    NO_ROOM = 4


class ItemState(IntEnum):
    """How an entry stands; 0 is OVER, too."""

    FILLING = 1
    SHOWING = 2
    READY = 3
    RETIRED = 4
    OVER = 5


def shelf_size(limits: Limits) -> int:
    """Bytes of the segment of the rows."""
    return limits.shelf_blocks * SHELF_BLOCK_BYTES


def begin_shelf(mapping: Mapping, layout: ControlLayout, incarnation: int) -> None:
    """Have the generations of a fresh shelf begin where none of its node's earlier ones has been (launcher only, R58).

    Incarnations are at least as far apart as the milliseconds between them, and so are their generations, eight times.
    So who asks for one of an earlier incarnation finds none, unless that had drawn 8000 a second all its life. Half of
    all generations are left for this one.
    """
    first = (incarnation * GENERATIONS_AN_INCARNATION) & _MAX_FIRST
    Words(mapping, layout.shelf, SHELF_RECORD_WORDS).store(Record.DRAWN, first)


_UNSEEN: Final = {ItemState.FILLING: "filling", ItemState.SHOWING: "filling", ItemState.RETIRED: "retired"}


def raw_key(key: str | bytes) -> bytes:
    """The bytes of a key. Raises ValueError for what is no key."""
    if not isinstance(key, str | bytes):
        raise ValueError(f"key: {type(key).__name__} is neither str nor bytes")
    try:
        raw = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError as error:
        raise ValueError(f"key: {key!r} is no text: {error}") from None
    if not 0 < len(raw) <= MAX_KEY_BYTES:
        raise ValueError(f"key: {len(raw)} bytes is outside 1 to {MAX_KEY_BYTES} bytes")
    return raw


def key_hasher(node: tuple[int, int]) -> Callable[[bytes], blake2b]:
    """Takes the raw keys of items; the 16 bytes of `digest()` are by what the shelf of one node finds them. `node`: its
    id and incarnation.
    """
    return partial(blake2b, digest_size=16, key=pack("<QQ", *node))


class ItemKey(NamedTuple):
    """A key, as the shelf of one node looks for it."""

    hash: bytes
    key: bytes

    @classmethod
    def of(cls, key: str | bytes, node: tuple[int, int]) -> ItemKey:
        """`node`: id and incarnation of the shelf's node. Raises ValueError for what is no key."""
        raw = raw_key(key)
        return cls(key_hasher(node)(raw).digest(), raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfCounts:
    """What stands on a shelf: items and bytes in each state, those that readers pin, and all that there are."""

    items: int = 0
    bytes: int = 0
    filling: int = 0
    filling_bytes: int = 0
    retired: int = 0
    retired_bytes: int = 0
    pinned: int = 0
    pinned_bytes: int = 0
    readers: int = 0
    entries: int = 0
    size_bytes: int = 0


class ItemRecord(NamedTuple):
    """One item that is READY."""

    key: bytes
    number: int
    rows: int
    width: int
    dtype: str
    bytes: int


class _Item(IntEnum):
    """Words of an item's record that are read here."""

    NUMBER = 0
    BYTES = 5
    ROWS = 6
    WIDTH = 7
    DTYPE = 8
    KEY_BYTES = 10
    KEY = 16


class ShelfTable:
    """The tables of a shelf, for its node's launcher and clients, and for who only looks.

    One thread at a time calls what changes something.
    """

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        limits = layout.limits
        self.num_entries, self.num_blocks = limits.shelf_entries, limits.shelf_blocks
        num_words = layout.ledger_bytes // 8
        self._mapping, self._items_at, self._ledgers_at = mapping, layout.items, layout.ledgers
        self._record = Words(mapping, layout.shelf, SHELF_RECORD_WORDS)
        self._heads = Words(mapping, layout.heads, self.num_entries)
        self._items = Words(mapping, layout.items, self.num_entries * ITEM_WORDS)
        self._readers = Words(mapping, layout.readers, MAX_READERS * READER_WORDS)
        self._cells = Words(mapping, layout.held, self.num_blocks)
        self._uses = Words(mapping, layout.uses, self.num_entries)
        self._ledgers = Words(mapping, layout.ledgers, MAX_READERS * num_words)
        self._ledger_words = num_words

    @cached_property
    def core(self) -> Shelf:
        """What changes the shelf. Raises ValueError in a process that may only look."""
        return Shelf(
            record=self._record,
            heads=self._heads,
            items=self._items,
            cells=self._cells,
            uses=self._uses,
            ledgers=self._ledgers,
            ledger_words=self._ledger_words,
        )

    def recall(self) -> None:
        """Ask those who read in place to copy out what they have pinned and do not look at (a client, R62)."""
        self._record.add(Record.RECALLS, 1)

    # ---- readers

    def add_reader(self, node: tuple[int, int], pid: int) -> int | None:
        """List a process of a node that is about to read the shelf (launcher only). Returns its entry, or None."""
        for reader in range(OWN_READER + 1, MAX_READERS):
            at = reader * READER_WORDS
            if self._readers.load(at + Reader.NODE_ID) == 0:
                self._record.raise_to(Record.READERS, reader + 1)
                self._readers.store(at + Reader.PID, pid)
                self._readers.store(at + Reader.INCARNATION, node[1])
                self._readers.store(at + Reader.NODE_ID, node[0])
                return reader
        return None

    def own_reader(self, rows: Mapping) -> ShelfReader:
        """The node's own reader, whose pins are those of its transfers (its bootstrap only, R85). It has the pins that
        the one before it has left, until `ShelfReader.forget_others`. `rows` is the segment of the rows.
        """
        self._record.raise_to(Record.READERS, OWN_READER + 1)
        return ShelfReader(
            record=self._record,
            heads=self._heads,
            items=self._items,
            cells=self._cells,
            uses=self._uses,
            ledger=Words(self._mapping, self._ledgers_at + OWN_READER * self._ledger_words * 8, self.num_entries),
            rows=rows,
            block_bytes=SHELF_BLOCK_BYTES,
            connection=None,
        )

    def remove_reader(self, reader: int) -> None:
        """Take away all pins of a reader that can read no more, and then its entry (launcher only, R42)."""
        self.core.bury_reader(reader)
        self._readers.store(reader * READER_WORDS + Reader.NODE_ID, 0)
        self.core.sweep()

    def readers(self) -> list[tuple[int, int, int]]:
        """(node id, incarnation, pid) of all who read it."""
        load = self._readers.load
        entries = range(0, MAX_READERS * READER_WORDS, READER_WORDS)
        return [
            (load(at + Reader.NODE_ID), load(at + Reader.INCARNATION), load(at + Reader.PID))
            for at in entries
            if load(at + Reader.NODE_ID)
        ]

    # ---- what is there

    def floor(self) -> int:
        """What has begun before it is visible to nobody."""
        return self._record.load(Record.FLOOR)

    def counts(self) -> ShelfCounts:
        """What stands on the shelf, entry by entry as it is looked at."""
        found = dict.fromkeys(ShelfCounts.__dataclass_fields__, 0)
        for entry, generation, state in self._entries():
            size = self._items.load(entry * ITEM_WORDS + _Item.BYTES)
            if state == ItemState.READY:
                found["items"] += 1
                found["bytes"] += size
            if name := _UNSEEN.get(state):
                found[name] += 1
                found[f"{name}_bytes"] += size
            if self._is_pinned(entry, generation):
                found["pinned"] += 1
                found["pinned_bytes"] += size
        found |= {"readers": len(self.readers()), "entries": self.num_entries}
        return ShelfCounts(**found | {"size_bytes": self.num_blocks * SHELF_BLOCK_BYTES})

    def ready(self) -> tuple[int, int]:
        """How many items are READY, and their bytes; one look at each entry, and no other work."""
        sizes = Words(self._mapping, self._items_at + 8 * _Item.BYTES, self.num_entries, 8 * ITEM_WORDS)
        heads = zip(self._heads.load_many(0, self.num_entries), sizes.load_many(0, self.num_entries), strict=True)
        found = [size for head, size in heads if head >> SHELF_STATE_SHIFT & _STATE_MASK == ItemState.READY]
        return len(found), sum(found)

    def published(self) -> list[ItemRecord]:
        """The items that are READY, and not below the floor."""
        entries = [(entry, generation) for entry, generation, state in self._entries() if state == ItemState.READY]
        return [it for entry, generation in entries if (it := self._item(entry, generation)) is not None]

    def changes(self, seen: list[int]) -> list[tuple[int, ItemRecord | None]]:
        """The entries that stand otherwise than when this was asked last, each with its item, if it has one that may be
        seen. `seen` is its memory, one word an entry, and at first 0.
        """
        heads, floor = self._heads.load_many(0, self.num_entries), self.floor()
        if heads == seen[: self.num_entries] and seen[-1] == floor:
            return []
        changed: list[tuple[int, ItemRecord | None]] = []
        for entry, (head, before) in enumerate(zip(heads, seen, strict=False)):
            generation, state = head >> SHELF_GENERATION_SHIFT, head >> SHELF_STATE_SHIFT & _STATE_MASK
            is_old = seen[-1] <= before >> SHELF_GENERATION_SHIFT < floor
            if head == before and not is_old:
                continue
            it = self._item(entry, generation) if state == ItemState.READY else None
            if it is not None or state != ItemState.READY or generation < floor:  # else it has changed since
                seen[entry] = head
                changed.append((entry, it))
        seen[-1] = floor
        return changed

    def new_memory(self) -> list[int]:
        """What `changes` remembers, before it was asked: a word an entry, and the floor."""
        return [0] * (self.num_entries + 1)

    def _item(self, entry: int, generation: int) -> ItemRecord | None:
        """The item of an entry that was READY; None: it is gone, or below the floor."""
        words = self._items.load_many(entry * ITEM_WORDS, ITEM_WORDS)
        size, dtype = words[_Item.KEY_BYTES], words[_Item.DTYPE]
        raw = pack(f"<{ITEM_WORDS - _Item.KEY}Q", *words[_Item.KEY :])
        is_there = self._heads.load(entry) >> SHELF_STATE_SHIFT == generation << _STATE_BITS | ItemState.READY
        if not is_there or generation < self.floor() or size > MAX_KEY_BYTES or dtype >= len(_DTYPES):
            return None
        shape = words[_Item.ROWS], words[_Item.WIDTH]
        return ItemRecord(raw[:size], words[_Item.NUMBER], *shape, _DTYPES[dtype], words[_Item.BYTES])

    def _is_pinned(self, entry: int, generation: int) -> bool:
        ledgers = range(entry, self._record.load(Record.READERS) * self._ledger_words, self._ledger_words)
        return any(self._ledgers.load(at) == generation for at in ledgers)

    def _entries(self) -> Iterator[tuple[int, int, ItemState]]:
        """(entry, generation, state) of those that are not OVER."""
        for entry, head in enumerate(self._heads.load_many(0, self.num_entries)):
            state = head >> SHELF_STATE_SHIFT & _STATE_MASK
            if ItemState.FILLING <= state < ItemState.OVER:
                yield entry, head >> SHELF_GENERATION_SHIFT, ItemState(state)


def code_of(dtype: str) -> int:
    """The code of a dtype. Raises ValueError."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype: {dtype!r} is unknown; use one of {', '.join(DTYPE_BYTES)}")
    return _DTYPES.index(dtype)


def dtype_of(code: int) -> str:
    """The dtype of a code that stands in an item's record. Raises SegmentError for what is none."""
    if not 0 < code < len(_DTYPES):
        raise SegmentError(f"shelf: dtype code {code} is outside 1 to {len(_DTYPES) - 1}; restart its node")
    return _DTYPES[code]


class ShelfPart:
    """What a reader maps of a node's shelf: its tables read-only, its own ledger and the times of use to write, and the
    rows, read-only.

    Whoever has a view of an item keeps all of it, and the connection by which the node knows the reader (R63, R64).
    """

    def __init__(
        self, control_fd: int, rows_fd: int, look: Mapping, layout: ControlLayout, reader: int, connection: Connection
    ) -> None:
        """`look` is the whole control segment, read-only. Raises SegmentError, ValueError."""
        entries, num_blocks = layout.limits.shelf_entries, layout.limits.shelf_blocks
        if not 0 <= reader < MAX_READERS or not entries:
            raise ValueError(f"reader: {reader} of {MAX_READERS}, of a shelf with {entries} entries")
        size = layout.ledger_bytes
        uses = map_segment(control_fd, size, offset=layout.uses)
        ledger = map_segment(control_fd, size, offset=layout.ledgers + reader * size)
        connection.open_to(uses, ledger)
        self._tables, self._rows = connection.keep(control_fd), connection.keep(rows_fd)
        self._ledger_at, self._reader_at = layout.ledgers + reader * size, layout.readers + reader * READER_WORDS * 8
        self._reader = os.pread(control_fd, READER_WORDS * 8, self._reader_at)
        self._record = Words(look, layout.shelf, SHELF_RECORD_WORDS)
        self.core = ShelfReader(
            record=self._record,
            heads=Words(look, layout.heads, entries),
            items=Words(look, layout.items, entries * ITEM_WORDS),
            cells=Words(look, layout.held, num_blocks),
            uses=Words(uses, 0, entries),
            ledger=Words(ledger, 0, entries),
            rows=map_segment(rows_fd, shelf_size(layout.limits), writable=False),
            block_bytes=SHELF_BLOCK_BYTES,
            connection=connection,
        )

    def where(self, pin: Pin) -> RowsAt:
        """Where the rows of an item lie that is pinned here, for other processes of this host."""
        at = self._ledger_at + 8 * pin.entry
        word = PinWord(self._tables, at, pin.generation, self._reader_at, self._reader)
        shape, offset = (pin.rows, pin.width), pin.first * SHELF_BLOCK_BYTES
        return RowsAt(self._rows, offset, shape, dtype_of(pin.dtype), word)

    def recalls(self) -> int:
        """How often the node has asked for what is pinned here (R62)."""
        return self._record.load(Record.RECALLS)
