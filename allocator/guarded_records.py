"""Records of several words with one writer, which any process reads at any time, without a lock and without holding the
writer up. Each is guarded by a generation word, its first, which is odd while the record is being written:

    writer   generation odd -- the other words -- generation even, and greater
    reader   generation -- the other words -- generation again: the same, and even, or what was read is thrown away

A reader never takes a record that is half old and half new. Every word is stored with release and loaded with acquire.
If a reader has loaded any word of a newer writing, its second look sees the odd generation that was stored before that
word, or a later one, so the two looks differ. If its first look saw the even generation at the end of a writing, it
sees all words of that writing, or newer ones, and for the newer ones the first argument holds. Generations only rise,
so "the same" means that nothing was written in between.

A writer that is killed half way leaves an odd generation, and the record is not readable until the next one has written
it. That goes on from the odd generation, because a step to an even one would declare the half-written record whole.
`tests/model/test_route_table_model.py` explores every interleaving, with kills.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import Final

from embridge.allocator._core import Mapping, Words
from embridge.allocator.records import Guarded
from embridge.allocator.texts import packed, unpacked

READ_TRIES: Final = 64  # a writing takes some 10 µs, so these many looks do not all find the same one


class GuardedRecords:
    """So many records of so many words, each behind its generation."""

    def __init__(self, mapping: Mapping, offset: int, count: int, num_words: int) -> None:
        self.count, self.num_words = count, num_words
        self._words = Words(mapping, offset, count * num_words)

    def generation(self, index: int) -> int:
        """Which writing of a record this is; odd: it is being written, or a writer was killed."""
        return self._words.load(index * self.num_words + Guarded.GENERATION)

    def write(self, index: int, words: list[int]) -> None:
        """Replace a record. The generation in `words` is ignored."""
        at = index * self.num_words
        generation = self._words.load(at + Guarded.GENERATION) | 1  # it is odd already if a writer was killed
        self._words.store(at + Guarded.GENERATION, generation)
        for i in range(1, self.num_words):
            self._words.store(at + i, words[i])
        self._words.store(at + Guarded.GENERATION, generation + 1)

    def read(self, index: int) -> list[int] | None:
        """A record as it was at one moment, its generation first; None if every look found it being written."""
        at, load = index * self.num_words, self._words.load
        for _ in range(READ_TRIES):
            generation = load(at + Guarded.GENERATION)
            if generation & 1:
                continue
            words = [generation, *(load(at + i) for i in range(1, self.num_words))]
            if load(at + Guarded.GENERATION) == generation:
                return words
        return None


def put_text(words: list[int], first: int, size_bytes: int, text: str) -> None:
    """Write a text into words, cut to what they hold."""
    words[first : first + size_bytes // 8] = unpack(f"<{size_bytes // 8}Q", packed(text, size_bytes))


def text_of(words: list[int], first: int, size_bytes: int) -> str:
    """The text that `put_text` has written."""
    return unpacked(pack(f"<{size_bytes // 8}Q", *words[first : first + size_bytes // 8]))
