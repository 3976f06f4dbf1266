"""What the requests fetch that are fetches of published items: a record a slot, about the epoch that it names.

On a language node its client writes the question, before it opens the slot; its poller writes what the encode node
answers. On an encode node its bootstrap writes which item the request reads, and where that lies (R52).
"""

from __future__ import annotations

from array import array
from struct import pack, unpack
from typing import NamedTuple

from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import FETCHED_KEY, FETCHED_WORDS, MAX_KEY_BYTES, Fetched


class ItemShape(NamedTuple):
    """What an item is: its number among those of its key, its rows, their width, their dtype's code, and its bytes."""

    number: int
    rows: int
    width: int
    dtype: int
    bytes: int


class HeldItem(NamedTuple):
    """Which item a request reads, on the shelf of its node: entry and generation, and the block where it begins."""

    entry: int
    generation: int
    first: int


class FetchTable:
    """The records of all slots. A record is read while its request is current."""

    def __init__(self, mapping: Mapping, layout: ControlLayout) -> None:
        self._words = Words(mapping, layout.fetches, layout.limits.num_slots * FETCHED_WORDS)

    def has(self, slot: int, epoch: int) -> bool:
        """Whether the request of this epoch fetches an item."""
        return self._words.load(slot * FETCHED_WORDS + Fetched.EPOCH) == epoch

    # ---- language side

    def ask(self, slot: int, epoch: int, key: bytes, wanted: int) -> None:
        """Write what a request asks for, before its epoch is opened (its client). `wanted`: the number; 0: any."""
        words = array("Q", bytes(8 * FETCHED_WORDS))
        padded = key.ljust(MAX_KEY_BYTES, b"\0")
        words[FETCHED_KEY:] = array("Q", unpack(f"<{MAX_KEY_BYTES // 8}Q", padded))
        words[Fetched.EPOCH], words[Fetched.WANTED], words[Fetched.KEY_BYTES] = epoch, wanted, len(key)
        self._put(slot, words)

    def ask_nothing(self, slot: int) -> None:
        """Say that a request fetches nothing, before its epoch is opened (its client; bootstrap of an encode node).

        Who was to open that epoch before, and has died, may have asked for something.
        """
        self._words.store(slot * FETCHED_WORDS + Fetched.EPOCH, 0)

    def question(self, slot: int) -> tuple[bytes, int]:
        """(key, wanted number) of a request."""
        words = self._words.load_many(slot * FETCHED_WORDS, FETCHED_WORDS)
        raw = pack(f"<{MAX_KEY_BYTES // 8}Q", *words[FETCHED_KEY:])
        return raw[: words[Fetched.KEY_BYTES]], words[Fetched.WANTED]

    def answer(self, slot: int, shape: ItemShape) -> None:
        """Write what the encode node answers, its bytes last, before its length is known to the client (poller)."""
        at = slot * FETCHED_WORDS
        for field, value in zip(_SHAPE, shape, strict=True):
            self._words.store(at + field, value)

    # ---- encode side

    def hold(self, slot: int, epoch: int, held: HeldItem, shape: ItemShape) -> None:
        """Write which item a request reads, before its epoch is opened (bootstrap)."""
        words = array("Q", bytes(8 * FETCHED_WORDS))
        words[Fetched.EPOCH] = epoch
        words[Fetched.ENTRY], words[Fetched.GENERATION], words[Fetched.FIRST] = held
        for field, value in zip(_SHAPE, shape, strict=True):
            words[field] = value
        self._put(slot, words)

    def held(self, slot: int) -> HeldItem:
        """Which item a request reads."""
        at = slot * FETCHED_WORDS
        fields = (Fetched.ENTRY, Fetched.GENERATION, Fetched.FIRST)
        return HeldItem(*(self._words.load(at + field) for field in fields))

    # ---- both

    def shape(self, slot: int) -> ItemShape:
        """What the item is; of 0 bytes: not answered yet. Its bytes are written last, and read first."""
        at = slot * FETCHED_WORDS
        size = self._words.load(at + Fetched.BYTES)
        return ItemShape(*[self._words.load(at + field) for field in _SHAPE])._replace(bytes=size)

    def _put(self, slot: int, words: array[int]) -> None:
        at = slot * FETCHED_WORDS
        for i, word in enumerate(words):
            if i != Fetched.EPOCH:
                self._words.store(at + i, word)
        self._words.store(at + Fetched.EPOCH, words[Fetched.EPOCH])


_SHAPE = (Fetched.NUMBER, Fetched.ROWS, Fetched.WIDTH, Fetched.DTYPE, Fetched.BYTES)
