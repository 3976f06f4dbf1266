"""The listening end of a ROUTER: a borrowed socket, which lets nobody in while few descriptors are left.

libzmq leaves a connection for which it has no descriptor in the backlog. The kernel reports that connection to libzmq
again and again, and libzmq's thread takes most of a core for nothing. Taking the port from libzmq would end all its
connections. So, when few descriptors are left, `Port` accepts new connections itself, with descriptors that it has kept
for this, and closes them at once; nodes connect again by themselves. Nodes that are connected are served meanwhile.

libzmq may be faster and accept a connection with one of the kept descriptors, once `Port` has closed it to use it. When
all kept descriptors are gone in this way, libzmq's thread spins until one of its connections ends; a connection whose
handshake is not done does so within seconds.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from typing import Final

import zmq

from embridge.workers.timing import NS

LOOK_NS: Final = NS // 2
SPARE: Final = 8  # free descriptors, for files that this process opens
KEPT: Final = 8  # descriptors that are kept, to accept connections that are turned away
TURN_AWAY_EVERY_S: Final = 0.01  # while few descriptors are left
TURNED_AWAY_AT_ONCE: Final = 256


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
        return before != self.is_short

    def _are_few_left(self) -> bool:
        try:
            while len(self._kept) < KEPT:
                self._kept.append(os.dup(self._listening.fileno()))
            least = os.dup(self._listening.fileno())  # the least number that is free: all below are taken
            os.close(least)
        except OSError:
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return limit != resource.RLIM_INFINITY and least >= limit - SPARE

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
