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
    LENGTH = 7
    WHOLE = 8  # say at the destination that all rows are there
    SENT = 9
    MOVED = 10
    COUNT = 11
    OWN_WORD = 12  # raise the encode side's word to this phase
    THEIR_WORD = 13  # raise the destination's word to this phase
    GIVE_BACK = 14
    RING = 15  # the destination's scheduler
    DONE = 16
