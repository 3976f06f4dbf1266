"""What bounds every carrier: one copy by one thread, one wake-up of a sleeping process, and the two together.

They are carriers themselves, between the same two processes as the others, with the same sources, and slots of the same
kind of memory that are used again as often as a scheduler's blocks. Which way to copy is the fastest (memcpy, or past
the cache) depends on size and machine: all are measured in every round, and the floor is the fastest one of that round.
"""

from __future__ import annotations

import ctypes
import time

import torch
from _carriers import Carrier, Job, Receive, Release, Send, Slots
from _harness import FORK, Figures, Results, shared
from _native import address_of, functions

ONE_COPY = "floor: one copy"
WAKE_UP = "floor: one futex wake-up"
POSSIBLE = "floor: one copy and one wake-up"


class Bell:
    """A futex that rings without the kernel while nobody sleeps."""

    def __init__(self) -> None:
        self.memory = shared(4096)
        self.word = address_of(self.memory)
        self.ring, self.wait = functions().ring, functions().wait_for_ring


class WakeUp(Carrier):
    """No row is carried; the scheduler is only woken."""

    name = WAKE_UP
    has_rows = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._bell = Bell()
        self._seen = 0

    def sender(self) -> Send:
        ring, word = self._bell.ring, self._bell.word
        return lambda number, rows: ring(word)

    def begin(self, total: int) -> None:
        self._bell = Bell()

    def receiver(self) -> tuple[Receive, Release]:
        wait, word, nothing = self._bell.wait, self._bell.word, torch.zeros(0)
        received = known = 0

        def receive() -> tuple[int, torch.Tensor]:
            nonlocal received, known
            if received == known:
                known = wait(word, known)
            received += 1
            return received - 1, nothing

        return receive, lambda number: None


class OneCopy(Slots):
    """One copy into shared memory and one wake-up, and the rows are used where they are."""

    def begin(self, total: int) -> None:
        self._bell = Bell()
        self.copied = FORK.RawArray(ctypes.c_int64, total)

    def sender(self) -> Send:
        slots, size, copy = [slot.data_ptr() for slot in self.slots()], self.job.size, self.copy
        ring, word, order, in_flight = self._bell.ring, self._bell.word, self.order, self.job.in_flight
        copied, now = self.copied, time.monotonic_ns

        def send(number: int, rows: torch.Tensor) -> None:
            copy(slots[number % in_flight], rows.data_ptr(), size)
            copied[number] = now()
            order[number % in_flight] = number
            ring(word)

        return send

    def receiver(self) -> tuple[Receive, Release]:
        slots, order, in_flight = self.slots(), self.order, self.job.in_flight
        wait, word = self._bell.wait, self._bell.word
        received = known = 0

        def receive() -> tuple[int, torch.Tensor]:
            nonlocal received, known
            if received == known:
                known = wait(word, known)
            slot = received % in_flight
            received += 1
            return order[slot], slots[slot]

        return receive, lambda number: None


class PlainCopy(OneCopy):
    name = "floor: memcpy, futex"


class OneStream(OneCopy):
    name = "floor: past the cache, futex"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.copy = functions().copy_one_stream


class TwoStreams(OneCopy):
    name = "floor: past it, two streams"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.copy = functions().copy_two_streams


COPIES: tuple[type[Carrier], ...] = (PlainCopy, OneStream, TwoStreams)


def add_floors(results: Results) -> None:
    """Put the floors' rows, round by round from the fastest way to copy, before those that were measured."""
    ways = [results.figures.get(kind.name, []) for kind in COPIES]
    alone: list[Figures] = []
    woken: list[Figures] = []
    for figures in zip(*ways, strict=False):
        seen = [of_one for of_one in figures if of_one]
        alone.append(max((of_one_copy(it) for it in seen), key=lambda it: it["gb_per_s"], default={}))
        woken.append({**max(seen, key=lambda it: it["gb_per_s"], default={})})
    results.figures = {
        name: rounds
        for name, rounds in ((ONE_COPY, alone), (POSSIBLE, woken), *results.figures.items())
        if any(rounds)
    }


def of_one_copy(figures: Figures) -> Figures:
    """What was timed of the copy by itself, in the shape of a carrier's figures."""
    return {metric.removeprefix("copy_"): value for metric, value in figures.items() if metric.startswith("copy_")}
