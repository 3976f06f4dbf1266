"""A claim that is held while its rows are made in place, and its door, which stays open meanwhile."""

from __future__ import annotations

import os

from embridge.allocator.buffers import pools
from embridge.pipeline.client.doors import Door

_OUT: dict[Held, None] = {}  # of all clients of this process: the memory behind views that are out must stay mapped


def hold_open(held: Held) -> None:
    """Have its door stay open."""
    _OUT[held] = held.door.held[held] = None


class Held:
    """A claim that is held, and the run of rows behind it that may be written in place.

    Its door stays open until it is let go of, whoever drops the client, because views of the rows may be anywhere.
    """

    def __init__(self, door: Door, slot: int, epoch: int, first: int) -> None:
        """`slot` and `epoch` are the destination's."""
        self.door = door
        self.slot = slot
        self.epoch = epoch
        self.first = self.end = first
        self._row = 0  # in the payload
        self._pools = pools(door.geometry)
        self.memory = memoryview(door.payload)  # which stays mapped for as long as somebody has these rows

    def add(self, block: int, limit: int) -> bool:
        """Add the rows before `limit` that lie in this block, the next one of the request. False: it is elsewhere."""
        bs = self.door.geometry.block_size
        row = block * bs + self.end % bs
        if block >= self.door.geometry.num_blocks or (
            self.end > self.first and row != self._row + self.end - self.first
        ):
            return False
        if self.end == self.first:
            self._row = row
        self.end = min(limit, (self.end // bs + 1) * bs)
        return True

    def offset_of(self, name: str) -> int:
        """Where the first row of a buffer lies in the payload."""
        pool = next(pool for pool in self._pools if pool.name == name)
        return pool.offset + self._row * pool.row_bytes

    def addresses(self) -> list[int]:
        """Where the first row lies in each buffer, in `pools`' order."""
        return [self.door.payload.address + self.offset_of(pool.name) for pool in self._pools]

    def let_go(self, *, is_given_back: bool) -> None:
        """Give the claim back, unless that is done, and let the door close."""
        if not is_given_back:
            self.door.part.claims.give_back(self.slot, self.epoch, self.door.writer)
        self.forget()

    def forget(self) -> None:
        """Let the door close."""
        self.door.held.pop(self, None)
        _OUT.pop(self, None)
        if self.door.has_closed:  # its client has left it to us
            self.door.close()


def _hang_up_in_child() -> None:
    for held in list(_OUT):
        held.door.hang_up()  # whoever has its client, which may have left


os.register_at_fork(after_in_child=_hang_up_in_child)
