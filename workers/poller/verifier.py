"""Checks that rows have come as they were sent, before the status word says that they are there (R27).

A report tells how many rows are sent, and their running checksum. The poller has the rows since the last ones that were
checked summed by the room's transfer worker, a piece at a time, and compares; what is right stands in one word of the
slot, `VERIFIED`, so a poller that is restarted goes on from there with the next report. The worker keeps nothing: a
piece names its rows and the checksum to go on from, and is done again if nobody answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embridge.allocator.checksums import RowSum
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick, Record
from embridge.workers import messages as msg
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS

PIECE_BYTES = 16 << 20  # for one record: a worker is at it for some milliseconds
ASK_AGAIN_NS = NS  # a piece that nobody has answered: its record, or the answer, may have died with its sender


@dataclass(slots=True)
class Check:
    """Rows of one request that are being checked against a report; `latest` is the newest one."""

    epoch: int
    room: msg.RoomState
    latest: msg.RoomState
    at: RowSum
    asked_ns: int = 0


class Verifier:
    """The poller's part.

    `advance(slot, epoch, report)` is called once its rows are right, `corrupt(slot, epoch, reason)` if not.
    """

    def __init__(
        self,
        ctx: RoleContext,
        advance: Callable[[int, int, msg.RoomState], None],
        corrupt: Callable[[int, int, str], None],
    ) -> None:
        self._ctx = ctx
        self._slots = ctx.slots
        self._advance = advance
        self._corrupt = corrupt
        self._checks: dict[int, Check] = {}  # slot -> what is under way
        row_bytes, bs = ctx.control.geometry.token_bytes, ctx.bs
        self._piece_tokens = max(PIECE_BYTES // (row_bytes * bs), 1) * bs

    def report(self, slot: int, epoch: int, room: msg.RoomState, now_ns: int) -> None:
        """A report of a live request, which has granted as many rows as it tells of."""
        verified = RowSum.of(self._slots.get(slot, Slot.VERIFIED))
        if room.sent_tokens <= verified.tokens:
            self._advance(slot, epoch, room)
            return
        check = self._checks.get(slot)
        if check is None or check.epoch != epoch:
            check = self._checks[slot] = Check(epoch, room, room, verified)
            self._ask(slot, check, now_ns)
            return
        if (room.phase, room.sent_tokens) >= (check.latest.phase, check.latest.sent_tokens):
            check.latest = room
        if now_ns - check.asked_ns >= ASK_AGAIN_NS:
            self._ask(slot, check, now_ns)

    def look(self, now_ns: int) -> None:
        """Have what nobody has answered summed again; a report comes once."""
        for slot, check in self._checks.items():
            if now_ns - check.asked_ns >= ASK_AGAIN_NS and self._ctx.is_live(slot, check.epoch):
                self._ask(slot, check, now_ns)

    def _piece(self, check: Check) -> tuple[int, int]:
        first = check.at.tokens
        return first, min(check.room.sent_tokens, first - first % self._piece_tokens + self._piece_tokens)

    def _ask(self, slot: int, check: Check, now_ns: int) -> None:
        check.asked_ns = now_ns
        first, end = self._piece(check)
        self._ctx.to_worker_of(slot).send(Kick.CHECKSUM, slot, check.epoch, first << 32 | end, check.at.checksum)

    def answered(self, record: Record, now_ns: int) -> None:
        """A worker has summed a piece; one that nobody asked for (any more) has no effect."""
        slot, epoch = record.slot, record.epoch
        check = self._checks.get(slot)
        if check is None or check.epoch != epoch or not self._ctx.is_live(slot, epoch):
            return
        first, end = self._piece(check)
        if record.value != first << 32 | end:
            return
        check.at = RowSum(end, record.extra)
        if end < check.room.sent_tokens:
            self._ask(slot, check, now_ns)
            return
        del self._checks[slot]
        room = check.room
        if check.at.checksum != room.checksum:
            self._corrupt(slot, epoch, self._what_is_wrong(slot, check))
            return
        self._slots.set(slot, Slot.VERIFIED, check.at.pack())  # before the word
        self._advance(slot, epoch, room)
        if check.latest is not room:
            self.report(slot, epoch, check.latest, now_ns)

    def _what_is_wrong(self, slot: int, check: Check) -> str:
        first, bs = RowSum.of(self._slots.get(slot, Slot.VERIFIED)).tokens, self._ctx.bs
        end = check.room.sent_tokens
        low, high = first // bs, (end - 1) // bs
        blocks = f"block {low}" if low == high else f"blocks {low} to {high}"
        sums = f"checksum {check.at.checksum:08x} on receipt, {check.room.checksum:08x} when sent"
        return f"{blocks}, rows {first} to {end - 1}: {sums}"

    def forget(self, slot: int) -> None:
        self._checks.pop(slot, None)
