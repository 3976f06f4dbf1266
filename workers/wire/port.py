"""The listening end of a ROUTER: a borrowed socket, at which nobody new is let in while few descriptors are left.

libzmq leaves a connection for which it has no descriptor in the backlog, and is told of it again at once, and again:
its thread then takes most of a core for nothing. Taking the port from it would end the connections that came through
there. So, when few descriptors are left, whoever knocks is taken out of the backlog here, with descriptors that were
kept for this, and turned away; nodes knock again by themselves. Who is connected is served meanwhile. libzmq may be
faster: then it has let somebody in, with one that was kept; where all are gone in this way, it looks again and again
until one of its connections ends, as each does that has not said who it is within some seconds.
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
SPARE: Final = 8  # descriptors that are left for what this process itself opens
KEPT: Final = 8  # with which those are turned away who knock
TURN_AWAY_EVERY_S: Final = 0.01  # while few are left
TURNED_AWAY_AT_ONCE: Final = 256


class Port:
    """Binds a ROUTER to a listening socket that somebody else has opened, and keeps open."""

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
        """Look at the descriptors that are left, twice a second; True where there are too few, or enough, since just
        now.
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
        """Take who knocks out of the backlog and close the connections, each `TURN_AWAY_EVERY_S` while `is_short`."""
        for _ in range(TURNED_AWAY_AT_ONCE):
            if not self._kept:
                return
            os.close(self._kept.pop())
            try:
                self._listening.accept()[0].close()
                self.num_turned_away += 1
            except BlockingIOError:
                self._keep_one()
                return  # nobody knocks
            except OSError:
                continue  # libzmq has taken the descriptor, for whoever it was
            self._keep_one()

    def _keep_one(self) -> None:
        with contextlib.suppress(OSError):
            self._kept.append(os.dup(self._listening.fileno()))

    def close(self) -> None:
        self._listening.close()
        while self._kept:
            os.close(self._kept.pop())
