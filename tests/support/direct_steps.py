"""The steps of a direct write, as `native/direct.h` numbers them."""

from __future__ import annotations

from enum import IntEnum


class DirectStep(IntEnum):
    """What a direct write is about to do, as `DirectWriter.watch` says it; some with up to three numbers."""

    TOTAL = 0  # say of how many rows the request is
    TAKE = 1
    LOOK = 2  # how far rows are sent and granted
    READY = 3
    AUX = 4  # write the auxiliary words, of this block
    COPY = 5  # into this block, this row to that row of the request
    COPIED = 6  # it has done that
    SENT = 7
    MOVED = 8
    COUNT = 9
    LENGTH = 10
    OWN_WORD = 11  # raise the encode side's word to this phase
    THEIR_WORD = 12  # raise the destination's word to this phase
    GIVE_BACK = 13
    RING = 14  # the destination's scheduler
    DONE = 15
