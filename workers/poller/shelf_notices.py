"""What is published on an encode node, told to the language nodes that follow it (R72 to R76).

The poller compares the heads of the shelf with what it has announced, so a publisher that dies owes nothing: changes
between two looks merge, and a notice says what is. Each has a number within a stream, which is one life of this process
(R73). Who follows says so with its heartbeats, and what it was told of; it is told the rest, or all. Nobody who does
not follow costs anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from embridge.allocator.metrics import Metric
from embridge.allocator.records import Peer
from embridge.workers import messages as msg
from embridge.workers.role import Out, RoleContext, Send
from embridge.workers.timing import NS

LOOK_NS: Final = NS // 20
MOST_KEPT: Final = msg.MAX_NOTICES  # changes that are kept for who has missed some
FOLLOWS_FOR: Final = 3  # times as long as a follower is silent at most, it is told


@dataclass(slots=True)
class _Follower:
    """A language node that follows."""

    incarnation: int
    until_ns: int
    beaten_ns: int = 0
    was_told: tuple[int, int] | None = None  # stream and number that it has named, and that is to be answered


class ShelfNotices:
    """Used by the encode poller only."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._shelf = ctx.control.shelf
        self._seen = self._shelf.new_memory()
        self._announced: dict[int, msg.ItemNotice] = {}  # by entry
        self._stream = self._number = 0
        self._kept: deque[msg.ItemNotice] = deque(maxlen=MOST_KEPT)  # the latest changes
        self._followers: dict[int, _Follower] = {}  # by peer
        self._looked_ns = 0

    def take(self, message: msg.Message, peer: int, now_ns: int) -> bool:
        """A message from a living peer. False: it has no business here."""
        if not isinstance(message, msg.Follow):
            return False
        incarnation = message.envelope.incarnation
        until_ns = now_ns + int(FOLLOWS_FOR * self._ctx.timing.idle_heartbeat_s * NS)
        it = self._followers.get(peer)
        if it is None or it.incarnation != incarnation:
            it = self._followers[peer] = _Follower(incarnation, until_ns)
        it.until_ns, it.was_told = until_ns, (message.stream, message.number)
        return True

    def step(self, now_ns: int, out: list[Out]) -> None:
        """Look at the shelf, and tell those that follow."""
        if not self._followers or now_ns - self._looked_ns < LOOK_NS:
            return
        self._looked_ns = now_ns
        self._stream = self._stream or now_ns
        before = self._number
        self._compare()
        for peer, it in list(self._followers.items()):
            is_it = self._control.peers.get(peer, Peer.INCARNATION) == it.incarnation
            if not is_it or not self._control.peers.is_alive(peer) or now_ns >= it.until_ns:
                del self._followers[peer]
            else:
                self._tell(peer, it, before, now_ns, out)

    def next_ns(self) -> int | None:
        """When it wants to look; None: nobody follows."""
        return self._looked_ns + LOOK_NS if self._followers else None

    def _compare(self) -> None:
        """Announce what has changed: its number is there before it is told (R72)."""
        for entry, it in self._shelf.changes(self._seen):
            known = self._announced.pop(entry, None)
            if it is None and known is None:
                continue
            notice = msg.ItemNotice(entry, 0, 0, b"")
            if it is not None:
                notice = self._announced[entry] = msg.ItemNotice(entry, it.number, it.bytes, it.key)
            self._number += 1
            self._kept.append(notice)

    def _tell(self, peer: int, it: _Follower, before: int, now_ns: int, out: list[Out]) -> None:
        """What it has missed, if it has asked; else what is new; else, now and then, the number alone (R74)."""
        asked, it.was_told = it.was_told, None
        first = before if asked is None else asked[1]
        record = self._control.peers.record(peer)
        envelope = self._ctx.envelope(it.incarnation)
        if asked is not None and (asked[0] != self._stream or not 0 <= self._number - first <= len(self._kept)):
            out += [Send(record.poller_addr, piece, record.key) for piece in self._inventory(envelope)]
            self._ctx.count(Metric.INVENTORIES_SENT)
            return
        if self._number - first > len(self._kept):
            first = self._number  # it finds the gap, and asks (R75)
        if first == self._number and now_ns - it.beaten_ns < self._ctx.timing.heartbeat_s * NS:
            return
        it.beaten_ns = now_ns
        changes = list(self._kept)[len(self._kept) - (self._number - first) :]
        out.append(Send(record.poller_addr, msg.Notices(envelope, self._stream, first + 1, changes), record.key))
        self._ctx.count(Metric.NOTICES_SENT, len(changes))

    def _inventory(self, envelope: msg.Envelope) -> list[msg.Inventory]:
        """All that was announced, with the number of the last of it (R76)."""
        count = self._shelf.num_entries
        pieces = []
        for first in range(0, count, msg.MAX_NOTICES):
            end = min(first + msg.MAX_NOTICES, count)
            items = [self._announced[entry] for entry in range(first, end) if entry in self._announced]
            pieces.append(msg.Inventory(envelope, self._stream, self._number, first, end, count, items))
        return pieces
