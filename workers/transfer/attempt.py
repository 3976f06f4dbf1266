"""Attempts: writes that a transfer worker has submitted to an engine, and how much of them is under way to each peer.

The attempts of one destination are in the order of their rows, under one session, and each begins where the one before
it ends. They end in any order. `sent` rises over those at the front that are done. Behind one that has failed none
counts, because its rows are missing: those that are under way are *void*, and no other is submitted until they have
ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from embridge.allocator.checksums import RowSum
from embridge.workers.transfer.engines.base import Outcome, TransferEngine

WINDOW_BYTES: Final = 16 << 20  # under way to one peer: enough for its connections never to be idle
# Of all requests to one peer. Beyond some 2000 copies Mooncake's connections to it may stop for good.
WINDOW_COPIES: Final = 256
GLANCED_AT: Final = 4  # requests; all are looked at in a step


@dataclass(slots=True)
class Attempt:
    """One submitted write: rows [first, end) of a request to one destination, from blocks held in READING."""

    slot: int
    epoch: int
    destination: int
    peer: int
    session: int
    first: int
    end: int
    blocks: list[int]
    sum: RowSum | None
    ticket: int
    num_bytes: int
    num_copies: int
    engine: TransferEngine
    submitted_ns: int
    queued_bytes: int  # under way with it, its own among them
    outcome: Outcome = Outcome.PENDING
    seen: Outcome = Outcome.PENDING
    """How it has ended, if that was seen at a glance."""
    is_void: bool = False
    """Whether its rows do not count, for one before it has failed."""


class OpenAttempts:
    """The attempts of one transfer worker that have not been accounted for."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, int], list[Attempt]] = {}  # (slot, destination) -> in the order of the rows
        self._bytes: Counter[int] = Counter()  # peer -> under way to it
        self._copies: Counter[int] = Counter()
        self.num_bytes = 0
        """Under way, to all peers."""
        self.num_late = 0
        """How many are under way through engines whose writes may land late."""
        self.num_others = 0
        """How many are under way through other engines."""

    def of(self, slot: int, d: int) -> list[Attempt]:
        """Those of one destination, in the order of their rows."""
        return self._of.get((slot, d), [])

    def any_of(self, slot: int) -> bool:
        """Whether anything of a request is under way."""
        return any(key[0] == slot for key in self._of)

    def admits(self, peer: int, num_copies: int) -> bool:
        """Whether another attempt of so many copies may be under way to a peer; one alone always may."""
        num_bytes, total = self._bytes[peer], self._copies[peer] + num_copies
        return total == num_copies or (num_bytes < WINDOW_BYTES and total <= WINDOW_COPIES)

    def add(self, attempt: Attempt) -> None:
        self._of.setdefault((attempt.slot, attempt.destination), []).append(attempt)
        self._count(attempt, 1)

    def take_ended(self, broke: Callable[[str, Exception], None]) -> list[tuple[Attempt, Outcome]]:
        """Look at all that are under way; those that have ended, the oldest of a destination first, are under way no
        more. An engine that raises has failed, and `broke` is told.
        """
        pending = Outcome.PENDING
        ended = []
        for held in self._of.values():
            for attempt in held:
                if attempt.outcome is not pending:
                    continue
                outcome = attempt.seen
                if outcome is pending:
                    try:
                        outcome = attempt.engine.poll(attempt.ticket)
                    except Exception as error:
                        outcome = Outcome.FAILED
                        broke("attempt", error)
                if outcome is not pending:
                    ended.append((attempt, outcome))
        for attempt, outcome in ended:
            self.end(attempt, outcome)
        return ended

    def glance(self) -> bool:
        """Whether one of the oldest has ended; it is `seen` then."""
        for held in islice(self._of.values(), GLANCED_AT):
            for attempt in held:
                if attempt.outcome is Outcome.PENDING:
                    attempt.seen = attempt.engine.poll(attempt.ticket)
                    if attempt.seen is not Outcome.PENDING:
                        return True
                    break
        return False

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """An attempt has ended. One that has failed makes void what is behind it."""
        attempt.outcome = outcome
        self._count(attempt, -1)
        if outcome is Outcome.FAILED:
            for other in self.of(attempt.slot, attempt.destination):
                other.is_void |= other.first >= attempt.first

    def take_landed(self, slot: int, d: int) -> Attempt | None:
        """Drop what has ended, and return the last of those that are done with no row missing before them."""
        landed = None
        rest: list[Attempt] = []
        for attempt in self.of(slot, d):
            if attempt.outcome is Outcome.PENDING or (not attempt.is_void and rest):
                rest.append(attempt)
            elif not attempt.is_void:
                landed = attempt
        if rest:
            self._of[slot, d] = rest
        else:
            self._of.pop((slot, d), None)
        return landed

    def _count(self, attempt: Attempt, sign: int) -> None:
        self._bytes[attempt.peer] += sign * attempt.num_bytes
        self._copies[attempt.peer] += sign * attempt.num_copies
        self.num_bytes += sign * attempt.num_bytes
        if attempt.engine.late_writes:
            self.num_late += sign
        else:
            self.num_others += sign
