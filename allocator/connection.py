"""A reader's connection to the node whose shelf it reads, and what ends with it."""

from __future__ import annotations

import os
import socket
from weakref import WeakSet

from embridge.allocator._core import Mapping, has_hung_up
from embridge.allocator.rows_at import MemoryName


class Connection:
    """A socket that is closed with its last reference, the memory that is written to while it is open, and descriptors
    that stay open with it; it does not block.

    A forked child lets go of it by itself, whoever has the views that keep it: pins and connection are the parent's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._written_to: tuple[Mapping, ...] = ()
        self._kept: list[int] = []
        _connections.add(self)

    def open_to(self, *written_to: Mapping) -> None:
        """Say what is written to while it is open."""
        self._written_to = written_to

    def keep(self, fd: int) -> MemoryName:
        """Keep a descriptor of memory open with it, for other processes of this host to find. Raises OSError."""
        own = os.dup(fd)
        self._kept.append(own)
        return MemoryName.of(own)

    def hang_up(self) -> None:
        """Write nothing more into the node's memory, and close it, in a forked child."""
        for mapping in self._written_to:
            mapping.discard()
        self._close()

    def _close(self) -> None:
        self._sock.close()
        while self._kept:
            os.close(self._kept.pop())

    def is_open(self) -> bool:
        """Whether the other end has not hung up."""
        fd = self._sock.fileno()
        return fd >= 0 and not has_hung_up(fd)

    def __del__(self) -> None:
        self._close()


_connections: WeakSet[Connection] = WeakSet()


def _hang_up_in_child() -> None:
    for connection in list(_connections):
        connection.hang_up()


os.register_at_fork(after_in_child=_hang_up_in_child)
