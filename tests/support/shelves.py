"""A shelf without a node: its tables and its rows, and readers of it."""

from __future__ import annotations

import os
import socket
from enum import IntEnum
from typing import Final

from embridge.allocator._core import Mapping, Pin
from embridge.allocator.connection import Connection
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import SHELF_BLOCK_BYTES, Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.segment import map_segment
from embridge.allocator.shelf import Answer, ItemKey, ShelfPart

NODE: Final = (7, 3)
GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=1, block_size=4)
BLOCK: Final = SHELF_BLOCK_BYTES


class ShelfStep(IntEnum):
    """What a call is about to change, as `native/shelf.h` numbers it."""

    TAKE = 0  # an entry
    RECORD = 1
    BLOCK = 2
    SHOW = 3
    NUMBER = 4
    READY = 5
    RETIRE = 6
    FREE = 7  # a block
    OVER = 8
    FLOOR = 9
    PIN = 10
    GIVE_BACK = 11


def key(text: str) -> ItemKey:
    return ItemKey.of(text, NODE)


class OneShelf:
    """The tables and rows of a shelf of so many blocks, in memory of this test's own."""

    def __init__(self, num_blocks: int) -> None:
        limits = Limits(
            num_slots=64, max_clients=4, num_workers=1, ring_records=16, max_peers=1, max_peer_slots=64,
            shelf_bytes=num_blocks * BLOCK,
        )  # fmt: skip
        layout = ControlLayout.of(Role.ENCODE, GEOMETRY, limits)
        self.control_fd, self.rows_fd = (os.memfd_create("embridge-test") for _ in range(2))
        os.ftruncate(self.control_fd, layout.size)
        os.ftruncate(self.rows_fd, num_blocks * BLOCK)
        format_control(
            map_segment(self.control_fd, layout.size), Role.ENCODE, GEOMETRY, limits,
            node_id=NODE[0], incarnation=NODE[1], now_ns=1,
        )  # fmt: skip
        self.control = self.attach()
        self.table = self.control.shelf
        self.core = self.table.core
        self.rows = map_segment(self.rows_fd, num_blocks * BLOCK)
        self.now_ns = 1

    def attach(self) -> Control:
        """The tables as another process has them."""
        size = os.fstat(self.control_fd).st_size
        return Control(map_segment(self.control_fd, size))

    def close(self) -> None:
        self.rows.discard()
        os.close(self.control_fd)
        os.close(self.rows_fd)

    def begin(
        self, text: str, num_bytes: int = BLOCK, *, lane: int = 0, replaces: bool = False, expires_ns: int = 0
    ) -> tuple[Answer, int, int, int]:
        """(answer, entry, generation, first block)."""
        self.now_ns += 1
        answer, entry, generation, first, _, _ = self.core.begin(
            *key(text), lane, max(1, -(-num_bytes // BLOCK)), num_bytes, 1, num_bytes, 11, expires_ns, self.now_ns,
            replaces,
        )  # fmt: skip
        return Answer(answer), entry, generation, first

    def write(self, text: str, version: int, first: int, num_bytes: int) -> None:
        """The rows of a version of a key: each byte says which."""
        at = first * BLOCK
        memoryview(self.rows)[at : at + num_bytes] = content(text, version, num_bytes)

    def publish(
        self, text: str, version: int = 1, num_bytes: int = BLOCK, *, lane: int = 0, replaces: bool = True
    ) -> int:
        """The number of the item; 0: it was not published."""
        answer, entry, generation, first = self.begin(text, num_bytes, lane=lane, replaces=replaces)
        if answer != Answer.BEGUN:
            return 0
        self.write(text, version, first, num_bytes)
        return self.core.show(entry, generation, lane)

    def find(self, text: str) -> int:
        return self.core.find(*key(text), self.now_ns)

    def reader(self, pid: int = 1) -> ShelfReaderOf:
        return ShelfReaderOf(self, pid)


class ShelfReaderOf:
    """A reader that is listed."""

    def __init__(self, shelf: OneShelf, pid: int) -> None:
        number = shelf.table.add_reader((8, 1), pid)
        assert number is not None
        self.number = number
        self._shelf = shelf
        size = os.fstat(shelf.control_fd).st_size
        self.look: Mapping = map_segment(shelf.control_fd, size, writable=False)
        self.connection = Connection(socket.socket())
        self.part = ShelfPart(
            shelf.control_fd, shelf.rows_fd, self.look, shelf.control.layout, number, self.connection
        )

    def pin(self, text: str) -> Pin | None:
        self._shelf.now_ns += 1
        return self.part.core.pin(*key(text), self._shelf.now_ns)


def content(text: str, version: int, num_bytes: int) -> bytes:
    return bytes([sum(text.encode()) + 31 * version & 0xFF]) * num_bytes
