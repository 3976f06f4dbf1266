"""A client on either side of nodes that bad input is to leave unharmed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embridge import Client
from support.encoding import give, open_sender
from support.nodes import BEAT_S, Station
from support.scheduling import Queues
from support.waiting import wait_until
from support.watched import is_all_watched

_EVENTFD = re.compile(r"^eventfd-id:\s*(\d+)$", re.MULTILINE)
TOTAL = 300  # tokens of a request in these tests: three blocks of the nodes' 128
WATCHED = ("launcher", "bootstrap", "poller")
COPIES_OF_A_DOORBELL = 2  # the eventfd that a process was given, and what `Doorbell` makes of it when it is first rung


class Bench:
    """A client on either side of the shared nodes, and room numbers."""

    def __init__(
        self, encode: Station, language: Station, sending: Client, queues: Queues, rooms: Iterator[int]
    ) -> None:
        self.encode = encode
        self.language = language
        self.sending = sending
        self.queues = queues
        self.rooms = rooms
        self.addr = encode.addr

    @property
    def receiving(self) -> Client:
        return self.queues.client

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """What is done meanwhile takes no block, slot or descriptor for good, ends no process, and the next good
        request arrives.
        """
        nodes = (self.encode, self.language)
        wait_until(
            lambda: all(map(is_all_watched, nodes)), what="two threads watched of each who is connected, no other"
        )
        before, restarts = self._descriptors(), self._restarts()
        yield
        self.good_request()
        assert self._restarts() == restarts
        wait_until(lambda: not self._descriptors() - before, 5.0, lambda: f"{self._descriptors() - before} are left")

    def settle(self) -> None:
        """Until the nodes have opened what they open for a client some time after it has come, at a beat."""
        latest, since_s = self._descriptors(), time.monotonic()
        while time.monotonic() - since_s < 1.2 * BEAT_S:
            time.sleep(BEAT_S / 20)
            if (now := self._descriptors()) != latest:
                latest, since_s = now, time.monotonic()

    def good_request(self) -> None:
        room = next(self.rooms)
        self.queues.add(self.addr, room)
        assert give(open_sender(self.sending, room, TOTAL))
        assert self.queues.take(room, 20).difference == ""
        self.encode.wait_idle()
        self.language.wait_idle()

    def _descriptors(self) -> Counter[str]:
        """What the processes of the nodes have open, by process and kind."""
        found: Counter[str] = Counter()
        for node in (self.encode, self.language):
            for name in WATCHED:
                opened = opened_by(node.pid_of(name))
                found.update({f"{node.control.role.name} {name}: {kind}": num for kind, num in opened.items()})
        return found

    def _restarts(self) -> list[dict[str, int]]:
        return [self.encode.restarts(), self.language.restarts()]


def says(text: str) -> str:
    """A pattern for pytest: the text, with `...` for anything."""
    return ".*".join(re.escape(part) for part in text.split("..."))


def opened_by(pid: int) -> Counter[str]:
    """What a process has open, by kind. An eventfd counts as both copies, whether or not it was rung."""
    found: Counter[str] = Counter()
    eventfds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            kind, _, what = os.readlink(link).partition("[")
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text() if what == "eventfd]" else ""
            if (number := _EVENTFD.search(info)) is None:
                found[kind] += 1
            else:
                eventfds[number[1]] += 1
    found["eventfd"] = sum(max(num, COPIES_OF_A_DOORBELL) for num in eventfds.values())
    return found
