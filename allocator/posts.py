"""How a scheduler and an encoder of one host find each other, with nobody in between: posts, and what was granted.

    posts    [bucket][8]  grant  0:1 | tag:17 | slot:16 | epoch:28
                          offer  1:1 | tag:17 | entry:8 | generation:24
    meetings [slot]       a record of eight words: what a writer needs to know of a grant

Both stand in a language node's writers' part. The scheduler's client enters its grant, and then looks for an offer; an
encoder's client enters its offer, and then looks for a grant (R37). What the first does, and how a grant is found and
bound, is native (`native/grant.h`, `native/bind.h`). A post is one word, entered and taken off by
compare-and-swap. It is a hint: the tag is a part of the room's hash, and a full bucket takes no more, which costs time
and nothing else. What holds is said by the slot's claim and by its meeting record.

The record of a slot is written for one epoch, before the epoch's claim is offered, and not again until the next. So who
reads it between two looks at the claim has it whole. Two of its words change after that: which encoder is bound to the
grant, by compare-and-swap from the epoch's first value, so that it is one; and whether the language node is told of the
request, which only rises (R80).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from embridge.allocator._core import MAX_EPOCH, Mapping, Words
from embridge.allocator.claims import GENERATION_BITS, MAX_GENERATION, WriterId
from embridge.allocator.records import BUCKET_POSTS, MEETING_WORDS, POSTS_A_SLOT

_EPOCH_BITS: Final = MAX_EPOCH.bit_length()
_SLOT_BITS: Final = 16
_TAG_BITS: Final = 17
_KEY_BITS: Final = _SLOT_BITS + _EPOCH_BITS
_OFFER: Final = 1 << _TAG_BITS
_SPREAD: Final = 0x9E37_79B9_7F4A_7C15
_WORD: Final = (1 << 64) - 1
_LOW: Final = (1 << 32) - 1


POSTED_LATE: Final = 2  # of `GrantPoster.post`: an encoder waits for the grant already


class Meeting(IntEnum):
    """Words of a slot's meeting record; its client writes them, except where a comment says otherwise."""

    EPOCH = 0  # the epoch that the others are about, written last; 0 while they are being written
    ROOM = 1
    NODE_ID = 2  # of the encode node that may write
    INCARNATION = 3
    GRANTED = 4  # `blocks:32 | tokens:32`; the blocks themselves stand in the slot's window
    BOUND = 5  # encoders, CAS: the epoch, and 1 where an encoder is bound to the grant
    TOLD = 6  # the highest epoch of which the language node was told; its bootstrap raises it


class Granted(NamedTuple):
    """What a meeting record says of a grant."""

    room: int
    node: tuple[int, int]
    """Id and incarnation of the encode node that may write."""
    num_blocks: int
    num_tokens: int


class PostTable:
    """The posts and the meeting records. Any thread of any process that maps them."""

    def __init__(self, mapping: Mapping, posts: int, meetings: int, num_slots: int) -> None:
        """`posts` and `meetings` are where the two tables begin in this mapping."""
        count = num_slots * POSTS_A_SLOT
        self._posts = Words(mapping, posts, count)
        self._num_buckets = count // BUCKET_POSTS
        self._meetings = Words(mapping, meetings, num_slots * MEETING_WORDS)

    # ---- posts

    def _place(self, room: int) -> tuple[int, int]:
        """The room's tag, and where its bucket begins."""
        spread = room * _SPREAD & _WORD
        return spread >> 64 - _TAG_BITS, (spread & _LOW) % self._num_buckets * BUCKET_POSTS

    def _enter(self, first: int, word: int) -> bool:
        words = self._posts.load_many(first, BUCKET_POSTS)
        free = (first + k for k, other in enumerate(words) if other == 0)
        return any(self._posts.compare_exchange(at, 0, word) for at in free)

    def _take_off(self, first: int, word: int) -> None:
        words = self._posts.load_many(first, BUCKET_POSTS)
        for _ in range(words.count(word)):
            at = words.index(word)
            words[at] = 0
            self._posts.compare_exchange(first + at, word, 0)

    def take_off_grant(self, room: int, slot: int, epoch: int) -> None:
        tag, first = self._place(room)
        self._take_off(first, tag << _KEY_BITS | slot << _EPOCH_BITS | epoch)

    def post_offer(self, room: int, writer: WriterId) -> bool:
        """False where the bucket is full."""
        tag, first = self._place(room)
        return self._enter(first, _offer(tag, writer))

    def has_offer(self, room: int) -> bool:
        """Whether an encoder may have rows of this room, and no grant."""
        tag, first = self._place(room)
        return any(word >> _KEY_BITS == _OFFER | tag for word in self._posts.load_many(first, BUCKET_POSTS))

    def take_off_offer(self, room: int, writer: WriterId) -> None:
        tag, first = self._place(room)
        self._take_off(first, _offer(tag, writer))

    def take_off_offers_of(self, writer: WriterId) -> None:
        """Take off what a writer has left that can write no more (R37)."""
        for at in range(len(self._posts)):
            word = self._posts.load(at)
            if word >> _KEY_BITS & _OFFER and _writer_of(word) == writer:
                self._posts.compare_exchange(at, word, 0)

    # ---- meeting records

    def granted(self, slot: int, epoch: int) -> Granted | None:
        """What was granted in this epoch; None where the record is about another one."""
        at = slot * MEETING_WORDS
        begun, room, node, incarnation, granted = self._meetings.load_many(at, Meeting.BOUND)
        if begun != epoch or self._meetings.load(at) != epoch:
            return None
        return Granted(room, (node, incarnation), granted >> 32, granted & _LOW)

    def bind(self, slot: int, epoch: int) -> bool:
        """Bind the one encoder to a grant (R38). False where one is, or the record is about another epoch."""
        return self._meetings.compare_exchange(slot * MEETING_WORDS + Meeting.BOUND, epoch << 1, epoch << 1 | 1)

    def show_told(self, slot: int, epoch: int) -> None:
        """Say that the language node is told of a request, before its status word is looked at and its init leaves
        (R80).
        """
        self._meetings.raise_to(slot * MEETING_WORDS + Meeting.TOLD, epoch)

    def is_told(self, slot: int, epoch: int) -> bool:
        """Whether the language node was told of this request, or of a later one of the slot. An encoder looks after it
        has raised the request's word (R80).
        """
        return self._meetings.add(slot * MEETING_WORDS + Meeting.TOLD, 0) >= epoch  # a step that no other step passes


def _offer(tag: int, writer: WriterId) -> int:
    return (_OFFER | tag) << _KEY_BITS | writer.entry << GENERATION_BITS | writer.generation


def _writer_of(word: int) -> WriterId:
    return WriterId(word >> GENERATION_BITS & 0xFF, word & MAX_GENERATION)
