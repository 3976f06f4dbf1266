"""What a language node's clients hear of items that are published elsewhere: a ring a client, which the poller writes.

A client says which nodes' items it follows (`Following`); the poller tells it of each as its ring has room, so a client
that stands still holds nothing up and misses nothing: it is told what is, when it reads again (R72).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from struct import pack, unpack
from typing import NamedTuple

from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import (
    FOLLOWED_NODES,
    HEARD_FIRST,
    HEARD_WORDS,
    MAX_KEY_BYTES,
    NOTICE_KEY,
    NOTICE_WORDS,
    NOTICES_A_LANE,
    Heard,
    HeardNotice,
)

PEER_BITS = 16


class NoticeKind(IntEnum):
    """What a notice says."""

    PUBLISHED = 1
    """The item is there."""
    EVICTED = 2
    """It is not there any more, whatever has become of it."""
    RESYNC = 3
    """What was told of this node counts no more: it was lost, or was started again. What is there now follows."""
    ALL_TOLD = 4
    """All that is there has been told; what follows are changes."""


class Notice(NamedTuple):
    """One of them; `followed` is the word of who follows."""

    kind: NoticeKind
    followed: int
    key: bytes = b""
    generation: int = 0
    num_bytes: int = 0


def followed_word(serial: int, peer: int) -> int:
    """What a client writes to follow the items of a peer, for the n-th time that it begins."""
    return serial << PEER_BITS | peer + 1


def peer_of(word: int) -> int:
    """Whose items are followed by such a word."""
    return (word & (1 << PEER_BITS) - 1) - 1


class NoticeTable:
    """The part of one lane."""

    def __init__(self, mapping: Mapping, layout: ControlLayout, lane: int) -> None:
        self._words = Words(mapping, layout.notices + lane * HEARD_WORDS * 8, HEARD_WORDS)

    # ---- which nodes

    def follow(self, place: int, word: int) -> None:
        """Follow a node, or with 0 none, in one of `FOLLOWED_NODES` places (that lane's client)."""
        self._words.store(Heard.FIRST_NODE + place, word)

    def followed(self) -> list[int]:
        """The words of those that are followed."""
        return [word for word in self._words.load_many(Heard.FIRST_NODE, FOLLOWED_NODES) if word]

    def clear(self) -> None:
        """Follow none, and leave nothing to read (the poller, when the client is dead)."""
        for place in range(FOLLOWED_NODES):
            self._words.store(Heard.FIRST_NODE + place, 0)
        self._words.store(Heard.READ, self._words.load(Heard.WRITTEN))

    # ---- what is told

    def room(self) -> int:
        """For how many notices there is room (poller)."""
        return NOTICES_A_LANE - (self._words.load(Heard.WRITTEN) - self._words.load(Heard.READ))

    def num_told(self) -> int:
        """How many were put so far."""
        return self._words.load(Heard.WRITTEN)

    def put(self, notice: Notice) -> None:
        """Tell one, for which there is room (poller)."""
        written = self._words.load(Heard.WRITTEN)
        at = HEARD_FIRST + written % NOTICES_A_LANE * NOTICE_WORDS
        words = array("Q", bytes(8 * NOTICE_WORDS))
        words[HeardNotice.WHAT], words[HeardNotice.FOLLOWED] = notice.kind, notice.followed
        words[HeardNotice.GENERATION], words[HeardNotice.NUM_BYTES] = notice.generation, notice.num_bytes
        words[HeardNotice.KEY_BYTES] = len(notice.key)
        words[NOTICE_KEY:] = array("Q", unpack(f"<{MAX_KEY_BYTES // 8}Q", notice.key.ljust(MAX_KEY_BYTES, b"\0")))
        for i, word in enumerate(words):
            self._words.store(at + i, word)
        self._words.store(Heard.WRITTEN, written + 1)  # last: then the record is whole

    def take(self) -> Iterator[Notice]:
        """Those that were told since the last call (that lane's client)."""
        read, written = self._words.load(Heard.READ), self._words.load(Heard.WRITTEN)
        while read < written:
            words = self._words.load_many(HEARD_FIRST + read % NOTICES_A_LANE * NOTICE_WORDS, NOTICE_WORDS)
            read += 1
            self._words.store(Heard.READ, read)
            raw = pack(f"<{MAX_KEY_BYTES // 8}Q", *words[NOTICE_KEY:])
            yield Notice(
                NoticeKind(words[HeardNotice.WHAT]),
                words[HeardNotice.FOLLOWED],
                raw[: words[HeardNotice.KEY_BYTES]],
                words[HeardNotice.GENERATION],
                words[HeardNotice.NUM_BYTES],
            )
