"""Rings between the processes of a node, what their records say, and a sender that keeps what did not fit.

A record is a *kick*: it names a slot and its epoch and says "look there". What to do stands in the slot's words. So a
repeated kick does nothing, a stale one does nothing (its epoch has passed), and the slow scan makes up for a lost one
(R16, R25).
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

from embridge.allocator._core import Consumer, Doorbell, Producer, pending_rings

FULL_RING_WAIT_S: Final = 0.001  # until a producer tries again; the consumer does not tell it that there is room


class Kick(IntEnum):
    """What a record asks for."""

    LOOK = 1  # at this slot
    OPEN = 2  # a client opened this slot
    GRANT = 3  # language: blocks were granted, or the encode side seems not to know of them
    FAIL = 4  # this request failed; `FAILURE` and the reason are in its record
    ABORTED = 5  # encode: destination `value` asked for an abort, and wants an answer
    SEND_ABORT = 6  # poller to bootstrap: send the encode side the abort
    ABORT_ACK = 7  # language bootstrap to poller: an answer came; `value` is what is tainted
    RELEASE = 8  # poller to bootstrap: forget this epoch, then mark it released
    LANE_DEAD = 10  # launcher to poller; slot is the lane
    PEER_DEAD = 11  # this peer (slot) is gone
    WRITER_GONE = 12  # launcher to poller: a foreign writer of our payload is dead
    SESSION = 13  # language: worker `slot` is in a new session, the engine of the old one is dead
    FENCE = 14  # language: poller to worker, end the engine of session `value` and begin another
    # language: poller to worker, rows `value` (first:32 | end:32), going on from `extra`; and the answer, in `extra`
    CHECKSUM = 15
    # encode: a client's call waits for a slot; announce room `value`, if anybody has asked for it (slot is the lane)
    ASK = 16
    MEET = 17  # language: a client (slot is the lane) wants to know the encode node at the address of its lane


class Record(NamedTuple):
    """The eight words of a ring record; `value` and `extra` depend on the kick."""

    kick: int
    slot: int
    epoch: int
    value: int = 0
    extra: int = 0
    a: int = 0
    b: int = 0
    c: int = 0


_new: Final = tuple.__new__  # a NamedTuple's own goes through one more function


class KickSender:
    """The writing end to one process. Kicks that do not fit are kept, each once, and go with the next flush."""

    def __init__(self, ring: Producer, doorbell: Doorbell) -> None:
        self._ring = ring
        self._doorbell = doorbell
        self._backlog: deque[tuple[int, ...]] = deque()
        self._queued: set[tuple[int, ...]] = set()
        self._rang = True
        self._num_full = 0
        self.is_due = False
        """Whether `flush` has something to do: a kick has gone out since the last one, or waits for room."""

    def send(self, kick: int, slot: int, epoch: int, value: int = 0, extra: int = 0) -> None:
        """Queue one kick; the consumer is woken by `flush`."""
        self.is_due = True
        if not self._backlog and self._ring.push(kick, slot, epoch, value, extra):
            self._rang = False  # behind the push: `send_now` of another thread may have rung for it, not have missed it
            return
        self._num_full += 1
        record = (kick, slot, epoch, value, extra)
        if record not in self._queued:
            self._queued.add(record)
            self._backlog.append(record)

    def leave(self, kick: int, slot: int, epoch: int) -> None:
        """Leave one kick for when the consumer wakes up, whatever wakes it."""
        if self._backlog or not self._ring.push(kick, slot, epoch, 0, 0):
            self.send(kick, slot, epoch)

    def take_num_full(self) -> int:
        """How many kicks have found no room since this was asked last."""
        count, self._num_full = self._num_full, 0
        return count

    def flush(self) -> None:
        """Push the kicks that were kept, as far as they fit, and ring once if any went out since the last flush."""
        while self._backlog and self._ring.push(*self._backlog[0]):
            self._queued.discard(self._backlog.popleft())
            self._rang = False
        if not self._rang:
            self._rang = True
            self._doorbell.ring()
        self.is_due = bool(self._backlog)

    def send_now(self, kick: int, slot: int, epoch: int, value: int = 0) -> None:
        """Send a kick and ring, from a thread that does not flush.

        A kick that does not fit waits for the thread that flushes. `Producer.push` keeps the GIL, so the two threads of
        a client never push at the same time.
        """
        self.send(kick, slot, epoch, value)
        self._rang = True  # before the ring, as in `flush`, which need not ring again
        self._doorbell.ring()

    @property
    def backlog(self) -> int:
        """How many kicks have found the ring full, and go with the next flush."""
        return len(self._backlog)


class KickInbox:
    """The reading ends of one process's rings. `done` commits the records when their work is done."""

    def __init__(self, rings: dict[str, Consumer]) -> None:
        self._rings = list(rings.items())
        self._ends = tuple(rings.values())
        self._taken: list[tuple[Consumer, int]] = []

    def take(self, most: int = 256) -> list[tuple[str, Record]]:
        """Peek at the pending records, up to `most` a ring, each with the name of its producer."""
        records: list[tuple[str, Record]] = []
        self._taken.clear()
        for place in pending_rings(self._ends):
            name, ring = self._rings[place]
            taken = ring.peek(most)
            self._taken.append((ring, len(taken)))
            records += [(name, _new(Record, words)) for words in taken]
        return records

    def done(self) -> None:
        """Commit the records that were taken, because their work is done."""
        for ring, count in self._taken:
            ring.commit(count)
        self._taken.clear()

    def pending(self) -> bool:
        return bool(pending_rings(self._ends))
