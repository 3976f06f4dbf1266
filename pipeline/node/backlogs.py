"""Turns away who waits too long at a port of the node, because its process lets nobody in.

A process without descriptors cannot even refuse a connection, and libzmq's thread spins while one waits
(`workers/wire/port.py`). The launcher has the same listening sockets, and descriptors of its own. So it accepts and
closes what has waited for a while; nodes connect again by themselves.
"""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Mapping
from typing import Final

from embridge.workers.timing import NS

log = logging.getLogger(__name__)

LOOK_NS: Final = NS // 4
PATIENCE_NS: Final = 3 * NS // 4  # with a process that is busy, or has just been started again
AT_ONCE: Final = 256


class Backlogs:
    """Those of one node's listening sockets."""

    def __init__(self, listening: Mapping[str, int]) -> None:
        """Their descriptors, by the processes that let in who comes; they stay the caller's."""
        self._names = {fd: name for name, fd in listening.items()}
        self._poll = select.poll()
        for fd in self._names:
            self._poll.register(fd, select.POLLIN)
        self._waiting: dict[int, int] = {}  # descriptor -> since when somebody was there at each look
        self._said: set[int] = set()
        self._looked_ns = -LOOK_NS

    def tick(self, now_ns: int) -> int | None:
        """Look, at most every `LOOK_NS`. Returns when to look again; None: nobody waits, the next turn will do."""
        if now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            found = [fd for fd, events in self._poll.poll(0) if events & select.POLLIN]
            self._waiting = {fd: self._waiting.get(fd, now_ns) for fd in found}
            self._said &= self._waiting.keys()
            for fd, since_ns in self._waiting.items():
                if now_ns - since_ns >= PATIENCE_NS:
                    self._turn_away(fd)
        return self._looked_ns + LOOK_NS if self._waiting else None

    def _turn_away(self, fd: int) -> None:
        num_turned_away = 0
        listening = socket.socket(fileno=fd)
        try:
            listening.setblocking(False)
            while num_turned_away < AT_ONCE:
                listening.accept()[0].close()
                num_turned_away += 1
        except OSError:  # nobody is left; or the launcher has no descriptor either
            pass
        finally:
            listening.detach()
        if num_turned_away and fd not in self._said:
            self._said.add(fd)
            text = "the %s lets nobody in: %d connections that had waited at its port were turned away"
            log.warning(text, self._names[fd], num_turned_away)
