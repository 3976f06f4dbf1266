"""The listening end of a ROUTER: a borrowed socket, which lets nobody in while few descriptors are left.

libzmq leaves a connection for which it has no descriptor in the backlog. The kernel reports that connection to libzmq
again and again, and libzmq's thread takes most of a core for nothing. Taking the port from libzmq would end all its
connections. So, when few descriptors are left, `Port` has the kernel drop whatever asks for a connection: nobody else
comes into the backlog, and nodes, which try again by themselves, come in when there are descriptors again. Nodes that
are connected are served meanwhile.

Those who are in the backlog then `Port` accepts itself, with descriptors that it has kept for this, and closes them at
once. libzmq may be faster and accept a connection with one of the kept descriptors, once `Port` has closed it to use
it. When all kept descriptors are gone in this way, libzmq's thread spins until one of its connections ends; a
connection whose handshake is not done does so within seconds, and the backlog only shrinks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import struct
from typing import Final

import zmq

from embridge.workers.timing import NS

LOOK_NS: Final = NS // 2
SPARE: Final = 8  # free descriptors, for files that this process opens
ENOUGH: Final = 4 * SPARE  # so many are free before others are let in again
KEPT: Final = 8  # descriptors that are kept, to accept connections that are turned away
TURN_AWAY_EVERY_S: Final = 0.01  # while few descriptors are left
TURNED_AWAY_AT_ONCE: Final = 256
SO_ATTACH_FILTER: Final = 26  # of Linux; Python has no names for them
SO_DETACH_FILTER: Final = 27
_DROP_ALL: Final = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # a filter that returns 0 bytes


class Port:
    """Binds a ROUTER to a listening socket that the launcher has opened, and keeps open."""

    def __init__(self, router: zmq.Socket[bytes], fd: int, address: str) -> None:
        """`fd` listens at `address`; it is duplicated, and stays the caller's."""
        self.address = address
        self.is_short = False
        self.num_turned_away = 0
        router.setsockopt(zmq.USE_FD, os.dup(fd))
        router.bind(address)
        self._listening = socket.socket(fileno=os.dup(fd))
        self._listening.setblocking(False)
        self._shut(False)  # a process before us may have died while it was shut
        self._kept = [os.dup(fd) for _ in range(KEPT)]
        self._looked_ns = 0

    def look(self, now_ns: int) -> bool:
        """Look how many descriptors are left, at most twice a second.

        True if they have become too few since the last look, or enough again.
        """
        if now_ns - self._looked_ns < LOOK_NS:
            return False
        self._looked_ns = now_ns
        before, self.is_short = self.is_short, self._are_few_left()
        if before != self.is_short:
            self._shut(self.is_short)
        return before != self.is_short

    def _shut(self, is_shut: bool) -> None:
        """Have the kernel drop whatever asks for a connection, or let it in again. Connections that stand go on."""
        program = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
        with contextlib.suppress(OSError):  # there is none to take off, or this kernel has none: then it spins longer
            if is_shut:
                self._listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            else:
                self._listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def _are_few_left(self) -> bool:
        try:
            while len(self._kept) < KEPT:
                self._kept.append(os.dup(self._listening.fileno()))
            least = os.dup(self._listening.fileno())  # the least number that is free: all below are taken
            os.close(least)
        except OSError:
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = ENOUGH if self.is_short else SPARE
        return limit != resource.RLIM_INFINITY and least >= limit - spare

    def turn_away(self) -> None:
        """Accept the connections in the backlog and close them. Called every `TURN_AWAY_EVERY_S` while `is_short`."""
        for _ in range(TURNED_AWAY_AT_ONCE):
            if not self._kept:
                return
            os.close(self._kept.pop())
            try:
                self._listening.accept()[0].close()
                self.num_turned_away += 1
            except BlockingIOError:
                self._keep_one()
                return  # the backlog is empty
            except OSError:
                continue  # libzmq has taken the descriptor, for a connection of its own
            self._keep_one()

    def _keep_one(self) -> None:
        with contextlib.suppress(OSError):
            self._kept.append(os.dup(self._listening.fileno()))

    def close(self) -> None:
        self._listening.close()
        while self._kept:
            os.close(self._kept.pop())
