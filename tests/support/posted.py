"""Which grants stand in a language node's table of posts, and the steps of an encoder that binds itself to one."""

from __future__ import annotations

from enum import IntEnum

from embridge.allocator._core import MAX_EPOCH
from embridge.allocator.posts import PostTable


class BindStep(IntEnum):
    """What `GrantBinder.bind` is about to change, as `native/bind.h` numbers it."""

    GRANT = 0  # the grant is this encoder's
    JOIN = 1  # the slot has its destination
    UNBIND = 2  # for it has another one
    REQUIRED = 3
    BLOCKS = 4
    RECORD = 5
    COUNT = 6  # from now on the destination is there
    TAKE_OFF = 7


def grants_in(posts: PostTable, room: int) -> list[tuple[int, int]]:
    """(slot, epoch) of the grants that may be for this room."""
    tag, first = posts._place(room)
    return [(word >> MAX_EPOCH.bit_length() & 0xFFFF, word & MAX_EPOCH) for word in posts._found(first, tag)]
