"""The rooms that have ended at an encode node, so that whoever still comes to one is told at once.

A room number is used once. A room is *barred* if it failed before all who belong to it had come. An encoder that still
comes to it, and each destination that comes late, are told why it failed (D11, R15). It stays barred until its encoder
has been told and as many destinations as belong to it know. A destination that was refused says that it knows with its
abort, which its node repeats until it is acknowledged (R23); an init that comes once more after that abort is below the
tombstone. If nobody knows how many destinations belong to the room, it stays barred for `keep_s`, and longer while a
destination that was refused, and whose node lives, has not aborted. After that the number may be used as if it were
new.

A destination that comes to a room that has succeeded waits for an encoder for `PATIENCE_NS`, because some callers use a
number again; then it is told that the room was finished (P24). The room is remembered for `keep_s`, or until an encoder
opens it again; one of which only clients have known, until another room takes its place where they note it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple

from embridge.allocator.errors import FailureCode
from embridge.workers.timing import NS

MAX_ROOMS: Final = 65536
PATIENCE_NS: Final = 8 * NS // 10


class Remote(NamedTuple):
    """A request of a language node."""

    peer: int
    slot: int
    epoch: int


class Refusal(NamedTuple):
    """The failure code and the reason that are told to an encoder or a destination that comes too late."""

    code: int
    reason: str


@dataclass(slots=True)
class _Failed:
    code: int
    reason: str
    until_ns: int
    required: int = 0  # destinations that belong to the room; 0: nobody has said
    is_encoder_told: bool = False
    has_been_open: bool = False  # an encoder has opened it
    told: set[Remote] = field(default_factory=set)
    refused: set[Remote] = field(default_factory=set)  # were refused, and have not said that they know

    def is_over(self, now_ns: int) -> bool:
        if self.refused:
            return False
        all_know = self.is_encoder_told and 0 < self.required <= len(self.told)
        return all_know or now_ns >= self.until_ns


class EndedRooms:
    """The rooms that have ended, while somebody may still come to them.

    There are at most `MAX_ROOMS` that have failed and as many that have succeeded; beyond that the oldest are
    forgotten.
    """

    def __init__(
        self, keep_s: float, max_destinations: int, is_noted: Callable[[int], bool] = lambda room: False
    ) -> None:
        """`is_noted`: whether a client has noted of a room that it is finished, of which this node was not told."""
        self._keep_ns = int(keep_s * NS)
        self._is_noted = is_noted
        self._max_destinations = max_destinations  # noted for one room at most, whatever its peers send
        self._failed: OrderedDict[int, _Failed] = OrderedDict()
        self._succeeded: OrderedDict[int, tuple[int, int]] = OrderedDict()  # room -> (destinations, until)

    def __len__(self) -> int:
        return len(self._failed) + len(self._succeeded)

    def fail(
        self, room: int, code: int, reason: str, now_ns: int, *, required: int = 0, told: Iterable[Remote] = ()
    ) -> Refusal:
        """Note that a room has failed before all who belong to it had come.

        The first failure of a room stands, and so does the time for which it is barred. Returns what an encoder is
        told.
        """
        entry = self._failed.get(room)
        if entry is None:
            entry = self._failed[room] = _Failed(code, reason, now_ns + self._keep_ns)
            if len(self._failed) > MAX_ROOMS:
                self._failed.popitem(last=False)
        entry.required = max(entry.required, required)
        for remote in told:
            if len(entry.told) < self._max_destinations:
                entry.told.add(remote)
        self._end_if_over(room, entry, now_ns)
        return Refusal(entry.code, entry.reason)

    def released(
        self, room: int, failure: Refusal | None, now_ns: int, *, required: int, joined: Iterable[Remote]
    ) -> None:
        """The request of the room's encoder is over on this node: it has failed, or it has succeeded (`failure` None).

        The destinations that had `joined` know the outcome, or are dead.
        """
        joined = set(joined)
        if failure is None:
            self._succeeded.pop(room, None)  # entered anew at the end: entries stand in the order in which they run out
            self._succeeded[room] = (len(joined), now_ns + self._keep_ns)
            if len(self._succeeded) > MAX_ROOMS:
                self._succeeded.popitem(last=False)
            return
        if len(joined) < max(required, 1) or room in self._failed:
            self.fail(room, *failure, now_ns, required=required, told=joined)
            if (entry := self._failed.get(room)) is not None:
                entry.is_encoder_told = True
                self._end_if_over(room, entry, now_ns)

    def opened(self, room: int, now_ns: int) -> Refusal | None:
        """An encoder opens a room. Returns why it cannot have it, or None if it can."""
        self._succeeded.pop(room, None)
        entry = self._failed.get(room)
        if entry is None or self._end_if_over(room, entry, now_ns):
            return None
        refusal = (
            _before(room, entry) if entry.has_been_open or entry.is_encoder_told else Refusal(entry.code, entry.reason)
        )
        entry.has_been_open = True
        return refusal

    def bars(self, room: int) -> bool:
        """Whether an encoder that opens the room now might be told that it has failed."""
        return room in self._failed

    def came(self, room: int, remote: Remote, required: int, now_ns: int) -> Refusal | None:
        """A destination comes to a room, or comes again.

        Returns what it is told, or None if the room has not failed.
        """
        entry = self._failed.get(room)
        if entry is not None and not self._end_if_over(room, entry, now_ns):
            entry.required = max(entry.required, required)
            if len(entry.refused) < self._max_destinations:
                entry.refused.add(remote)
            return _before(room, entry)
        return None

    def finished(self, room: int, now_ns: int) -> Refusal | None:
        """What a destination is told that comes to a room that has succeeded; None if nothing is known of the room."""
        count, until_ns = self._succeeded.get(room, (0, 0))
        if now_ns >= until_ns:
            if not self._is_noted(room):
                return None
            count = 1  # a request with several is told from its start
        have = f"{count} of {count} destinations have its rows"
        what = f"room {room} was finished here before: {have}; a room number is used once"
        return Refusal(FailureCode.REFUSED, what)

    def aborted(self, room: int, remote: Remote, now_ns: int) -> bool:
        """A destination has given up. Returns True if it did so because it was refused here."""
        entry = self._failed.get(room)
        if entry is None or remote not in entry.refused:
            return False
        entry.refused.discard(remote)
        entry.told.add(remote)
        self._end_if_over(room, entry, now_ns)
        return True

    def peer_gone(self, peer: int, now_ns: int) -> None:
        """A node is gone. Its requests that were refused are gone with it and need not be told."""
        for room, entry in list(self._failed.items()):
            gone = {remote for remote in entry.refused if remote.peer == peer}
            entry.refused -= gone
            entry.told |= gone
            self._end_if_over(room, entry, now_ns)

    def forget_old(self, now_ns: int) -> None:
        """Forget the rooms whose time is over and about which nobody asks (slow timer)."""
        # they run out in the order of their failures
        due = list(takewhile(lambda item: item[1].until_ns <= now_ns, self._failed.items()))
        for room, entry in due:
            self._end_if_over(room, entry, now_ns)
        while self._succeeded and next(iter(self._succeeded.values()))[1] <= now_ns:
            self._succeeded.popitem(last=False)

    def _end_if_over(self, room: int, entry: _Failed, now_ns: int) -> bool:
        if entry.is_over(now_ns):
            self._failed.pop(room, None)
            return True
        return False


def _before(room: int, entry: _Failed) -> Refusal:
    return Refusal(entry.code, f"room {room} failed here before: {entry.reason}; a room number is used once")
