"""Rooms that have ended at an encode node: whoever still comes to one is told at once, and for no longer than that is
needed.

A room number is used once. A room that failed before all came who belong to it is *barred*: its encoder, if it is still
to come, and each destination that comes late are told why (D11, R15). It is barred until the encoder has been told, and
as many destinations as belong to it know: those that were refused say so with their aborts, which their nodes repeat
until they are acknowledged (R23). An init that comes once more after that abort is below its tombstone. Where nobody
knows how many belong to it, it is barred for `keep_s`; then, too, as long as one that was refused, and whose node
lives, has not aborted. After that the number is as good as new.

A destination that comes to a room that succeeded waits for its encoder for `PATIENCE_NS`, for some use a number again,
and is then told (P24); that is so for `keep_s`, or until an encoder opens the room again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
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
    """What is said to who comes too late."""

    code: int
    reason: str


@dataclass(slots=True)
class _Failed:
    code: int
    reason: str
    until_ns: int
    required: int = 0  # destinations that belong to it; 0: nobody has said
    is_encoder_told: bool = False
    has_been_open: bool = False  # an encoder has had it
    told: set[Remote] = field(default_factory=set)
    refused: set[Remote] = field(default_factory=set)  # and have not said that they know

    def is_over(self, now_ns: int) -> bool:
        if self.refused:
            return False
        all_know = self.is_encoder_told and 0 < self.required <= len(self.told)
        return all_know or now_ns >= self.until_ns


class EndedRooms:
    """The rooms that have ended, as far as somebody may still come to them; the oldest are forgotten where there are
    too many.
    """

    def __init__(self, keep_s: float, max_destinations: int) -> None:
        self._keep_ns = int(keep_s * NS)
        self._max_destinations = max_destinations  # of one room that are noted, and no more, whatever its peers send
        self._failed: OrderedDict[int, _Failed] = OrderedDict()
        self._succeeded: OrderedDict[int, tuple[int, int]] = OrderedDict()  # room -> (destinations, until)

    def __len__(self) -> int:
        return len(self._failed) + len(self._succeeded)

    def fail(
        self, room: int, code: int, reason: str, now_ns: int, *, required: int = 0, told: Iterable[Remote] = ()
    ) -> Refusal:
        """It has failed before all came.

        What it failed of first stands, and how long it is barred. Returns what an encoder is told.
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
        """Its encoder's request is over on this node: it has failed, or succeeded. Who had joined knows, or is dead."""
        joined = set(joined)
        if failure is None:
            self._succeeded.pop(room, None)  # in the order in which they run out
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
        """An encoder opens a room: why it cannot have it, None when it can."""
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
        """Whether an encoder that opens it now might be told that it has failed."""
        return room in self._failed

    def came(self, room: int, remote: Remote, required: int, now_ns: int) -> Refusal | None:
        """A destination comes to a room, or comes again: what it is told, None where the room has not failed."""
        entry = self._failed.get(room)
        if entry is not None and not self._end_if_over(room, entry, now_ns):
            entry.required = max(entry.required, required)
            if len(entry.refused) < self._max_destinations:
                entry.refused.add(remote)
            return _before(room, entry)
        return None

    def finished(self, room: int, now_ns: int) -> Refusal | None:
        """What a destination is told that comes to a room that has succeeded; None where nothing is known of that."""
        count, until_ns = self._succeeded.get(room, (0, 0))
        if now_ns >= until_ns:
            return None
        have = f"{count} of {count} destinations have its rows"
        what = f"room {room} was finished here before: {have}; a room number is used once"
        return Refusal(FailureCode.REFUSED, what)

    def aborted(self, room: int, remote: Remote, now_ns: int) -> bool:
        """A destination has given up: True where that was for what it was told here."""
        entry = self._failed.get(room)
        if entry is None or remote not in entry.refused:
            return False
        entry.refused.discard(remote)
        entry.told.add(remote)
        self._end_if_over(room, entry, now_ns)
        return True

    def peer_gone(self, peer: int, now_ns: int) -> None:
        """That node has no request any more: those that were refused need to be told nothing."""
        for room, entry in list(self._failed.items()):
            gone = {remote for remote in entry.refused if remote.peer == peer}
            entry.refused -= gone
            entry.told |= gone
            self._end_if_over(room, entry, now_ns)

    def forget_old(self, now_ns: int) -> None:
        """On a slow timer: what nobody asks about goes, too."""
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
