"""Which grants stand in a language node's table of posts, and the steps of an encoder that binds itself to one."""

from __future__ import annotations

from array import array
from enum import IntEnum

from embridge.allocator._core import EPOCH_BITS, MAX_EPOCH
from embridge.allocator.claims import GENERATION_BITS, MAX_GENERATION, WriterId
from embridge.allocator.posts import PostTable
from embridge.allocator.records import BUCKET_POSTS, MEETING_WORDS

TAG_BITS = 17
KEY_BITS = 16 + EPOCH_BITS



class BindStep(IntEnum):
    """What `GrantBinder.bind` is about to change, as `native/bind.h` numbers it."""

    MARK = 0  # its node can read who has found the grant
    GRANT = 1  # the grant is this encoder's
    JOIN = 2  # the slot has its destination
    UNBIND = 3  # for it has another one
    REQUIRED = 4
    BLOCKS = 5
    RECORD = 6
    COUNT = 7  # from now on the destination is there
    TAKE_OFF = 8


def grants_in(posts: PostTable, room: int) -> list[tuple[int, int]]:
    """(slot, epoch) of the grants that may be for this room."""
    tag, words = posts_of(posts, room)
    return [(word >> EPOCH_BITS & 0xFFFF, word & MAX_EPOCH) for word in words if word and word >> KEY_BITS == tag]


def offers_in(posts: PostTable, room: int) -> list[WriterId]:
    """The writers that may wait for a grant of this room."""
    tag, words = posts_of(posts, room)
    found = [word for word in words if word >> KEY_BITS == 1 << TAG_BITS | tag]
    return [WriterId(word >> GENERATION_BITS & 0xFF, word & MAX_GENERATION) for word in found]


def posts_of(posts: PostTable, room: int) -> tuple[int, list[int]]:
    """The room's tag, and all that stands in its bucket."""
    tag, first = posts._place(room)
    return tag, posts._posts.load_many(first, BUCKET_POSTS)


def post_grant(posts: PostTable, room: int, slot: int, epoch: int) -> bool:
    """What `GrantPoster.post` enters for encoders to find. False where the bucket is full."""
    tag, first = posts._place(room)
    return posts._enter(first, tag << KEY_BITS | slot << EPOCH_BITS | epoch)


def write_down(
    posts: PostTable, slot: int, epoch: int, room: int, node: tuple[int, int], num_blocks: int, num_tokens: int
) -> None:
    """What `GrantPoster.post` writes into a slot's meeting record."""
    at = slot * MEETING_WORDS
    posts._meetings.store_many(at, array("Q", (0, room, *node, num_blocks << 32 | num_tokens, epoch << 1)))
    posts._meetings.store(at, epoch)
