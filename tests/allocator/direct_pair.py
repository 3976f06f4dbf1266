"""A request of an encode node and a language node that has granted it, for the tests of direct writes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
from core_support import SharedMemory
from support.claims import shut

from embridge.allocator.buffers import PayloadBuffers
from embridge.allocator.claims import Claim, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.direct import columns, direct_writer
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.records import Destination, Slot
from embridge.allocator.segment import map_segment
from embridge.allocator.status import split

GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=6, block_size=4)
LIMITS: Final = Limits(num_slots=64, max_clients=4, num_workers=1, ring_records=16, max_peers=1, max_peer_slots=64)
ME: Final = WriterId(1, 7)
SLOT, EPOCH, THERE, TOTAL = 5, 1, 9, 10
BLOCKS: Final = (4, 5, 2)


def control_of(role: Role, geometry: Geometry = GEOMETRY) -> tuple[Control, SharedMemory]:
    memory = SharedMemory(ControlLayout.of(role, geometry, LIMITS).size)
    mapping = memory.map()
    format_control(mapping, role, geometry, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping), memory


class Pair:
    """A request of an encode node, all of which a language node has granted."""

    def __init__(self, clock: Callable[[], int] = lambda: 777, geometry: Geometry = GEOMETRY) -> None:
        self.geometry = geometry
        self.own, _ = control_of(Role.ENCODE, geometry)
        self.language, memory = control_of(Role.LANGUAGE, geometry)
        begin, size = self.language.layout.writers_part
        part = map_segment(memory.fd, size, offset=begin)
        self.payload = SharedMemory(PayloadLayout.of(geometry).size).map()
        self.rows = PayloadBuffers(self.payload, geometry)
        self.writer = direct_writer(self.own, part, self.language.layout, self.payload, geometry, ME, clock)
        self.columns = columns(geometry)
        self.destinations = self.own.destinations
        assert self.own.status.open(SLOT, 1) == EPOCH
        assert self.language.status.open(THERE, 1) == EPOCH
        self.own.slots.aux(SLOT)[:] = np.arange(16, dtype=np.int32)
        self.own.slots.set(SLOT, Slot.REQUIRED, 1)
        self.own.slots.set(SLOT, Slot.NUM_DESTINATIONS, 1)
        shut(self.language.claims, THERE, EPOCH, 3)
        assert self.language.claims.offer(THERE, EPOCH)
        for k, block in enumerate(BLOCKS):
            self.destinations.set(SLOT, 0, Destination.WINDOW, 8)
            self.destinations.set_grant(SLOT, 0, k, block, 3)
        self.set(Destination.REMOTE_SLOT, THERE)
        self.set(Destination.REMOTE_EPOCH, EPOCH)
        self.set(Destination.FIRST_GRANT, TOTAL)
        self.set(Destination.GRANTED_TOKENS, TOTAL)
        self.data = [
            np.arange(TOTAL * row_bytes, dtype=np.uint8) + i for i, row_bytes in enumerate(self.columns[1::2])
        ]

    def set(self, field: Destination, value: int) -> None:
        self.destinations.set(SLOT, 0, field, value)

    def span(self, first: int, end: int) -> list[int]:
        at = [it.ctypes.data + first * size for it, size in zip(self.data, self.columns[1::2], strict=True)]
        return [first, end, *at]

    def write(self, *cuts: int) -> int:
        spans = [word for first, end in pairwise(cuts) for word in self.span(first, end)]
        return self.writer.write(SLOT, EPOCH, TOTAL, self.columns, array("Q", spans))

    def there(self, first: int, end: int) -> bool:
        """Whether rows [first, end) are in their places."""
        at = PayloadLayout.of(self.geometry)
        for data, offset, size in zip(self.data, self.columns[::2], self.columns[1::2], strict=True):
            for row in range(first, end):
                place = offset + (BLOCKS[row // 4] * 4 + row % 4) * size
                if bytes(memoryview(self.payload)[place : place + size]) != data[row * size :][:size].tobytes():
                    return False
        return at.size > 0

    @property
    def words(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """The phase and `sent` of either side's word, and `Destination.SENT`."""
        own, there = split(self.own.status.load(SLOT)), split(self.language.status.load(THERE))
        return (own.phase, own.sent), (there.phase, there.sent), self.destinations.get(SLOT, 0, Destination.SENT)

    @property
    def claim(self) -> Claim:
        return self.language.claims.get(THERE)
