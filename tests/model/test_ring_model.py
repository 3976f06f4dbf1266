"""The ring of `allocator/native/ring.h`, every interleaving, with producer and consumer killed between any two steps.

A record is written in two halves, so that one that is seen too early is seen torn. A killed process loses what it had
in hand and starts again from the header: the producer at `tail`, the consumer at `head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from explorer import Finding, explore

CAPACITY = 2
NUM_RECORDS = 5
KILLS = 2


class Ring(NamedTuple):
    """The ends are (next step, what is in hand); `worked` are the records whose work was done."""

    slots: tuple[tuple[int, int], ...] = ((0, 0),) * CAPACITY
    head: int = 0
    tail: int = 0
    producer: tuple[str, int] = ("look", 0)
    consumer: tuple[str, int] = ("look", 0)
    worked: tuple[int, ...] = ()
    torn: bool = False
    kills: int = KILLS


def write(ring: Ring, half: int) -> Ring:
    value = ring.tail + 1  # record n carries n + 1
    slots = list(ring.slots)
    old = slots[ring.tail % CAPACITY]
    slots[ring.tail % CAPACITY] = (value, old[1]) if half == 0 else (old[0], value)
    return ring._replace(slots=tuple(slots))


# An end is a program: for each step, what it does to the ring (None: not possible now).
Step = Callable[[Ring], Ring | None]


def has_room(ring: Ring, limit: int = CAPACITY) -> Ring | None:
    return ring if ring.tail - ring.head < limit and ring.tail < NUM_RECORDS else None


def has_record(ring: Ring) -> Ring | None:
    return ring if ring.head < ring.tail else None


def publish(ring: Ring) -> Ring:
    return ring._replace(tail=ring.tail + 1)


def read(ring: Ring) -> Ring:
    low, high = ring.slots[ring.head % CAPACITY]
    return ring._replace(consumer=(ring.consumer[0], low), torn=ring.torn or low != high)


def work(ring: Ring) -> Ring:
    return ring._replace(worked=(*ring.worked, ring.consumer[1]))


def commit(ring: Ring) -> Ring:
    return ring._replace(head=ring.head + 1)


PRODUCER: list[tuple[str, Step]] = [
    ("look", has_room),
    ("write one half", lambda ring: write(ring, 0)),
    ("write the other half", lambda ring: write(ring, 1)),
    ("publish", publish),
]
CONSUMER: list[tuple[str, Step]] = [("look", has_record), ("read", read), ("work", work), ("commit", commit)]


def at_step(ring: Ring, end: str, step: str, hand: int) -> Ring:
    return ring._replace(producer=(step, hand)) if end == "producer" else ring._replace(consumer=(step, hand))


def advance(ring: Ring, end: str, program: list[tuple[str, Step]]) -> Iterator[tuple[str, Ring]]:
    names = [name for name, _ in program]
    at, hand = getattr(ring, end)
    index = names.index(at)
    after = program[index][1](ring)
    if after is not None:
        hand = getattr(after, end)[1] if index + 1 < len(names) else 0
        yield f"{end}: {at}", at_step(after, end, names[(index + 1) % len(names)], hand)
    if ring.kills and index:
        yield f"{end}: killed before {at}", at_step(ring._replace(kills=ring.kills - 1), end, names[0], 0)


def explore_ring(producer: list[tuple[str, Step]], consumer: list[tuple[str, Step]]) -> Finding:
    def violated(ring: Ring) -> str | None:
        if ring.torn:
            return "a record was read half written"
        seen = [value for i, value in enumerate(ring.worked) if value not in ring.worked[:i]]
        if seen != list(range(1, len(seen) + 1)):
            return f"records out of order: {ring.worked}"
        if ring.head > len(seen):
            return f"record {ring.head} is consumed and its work was never done"
        return None

    def steps(ring: Ring) -> Iterator[tuple[str, Ring]]:
        yield from advance(ring, "producer", producer)
        yield from advance(ring, "consumer", consumer)

    return explore(
        Ring(producer=(producer[0][0], 0), consumer=(consumer[0][0], 0)),
        steps,
        violated=violated,
        goal=lambda ring: ring.head == NUM_RECORDS,
    )


def test_every_record_is_worked_on_in_order_whoever_is_killed_and_all_arrive() -> None:
    """P1, P8: whole records, in order, none lost, and no state from which the last one cannot arrive."""
    finding = explore_ring(PRODUCER, CONSUMER)
    assert finding.fault is None, finding
    assert finding.num_states > 1000


def swapped(program: list[tuple[str, Step]], first: str, second: str) -> list[tuple[str, Step]]:
    names = [name for name, _ in program]
    i, j = names.index(first), names.index(second)
    result = list(program)
    result[i], result[j] = result[j], result[i]
    return result


@pytest.mark.parametrize(
    ("producer", "consumer", "fault"),
    [
        (swapped(PRODUCER, "write the other half", "publish"), CONSUMER, "half written"),
        (PRODUCER, swapped(CONSUMER, "work", "commit"), "never done"),
        (PRODUCER, [CONSUMER[0], CONSUMER[3], CONSUMER[1], CONSUMER[2]], "half written|order|never"),
        ([("look", lambda ring: has_room(ring, CAPACITY + 1)), *PRODUCER[1:]], CONSUMER, "half written|order"),
    ],
    ids=["published before it is written", "committed before the work", "committed before it is read", "one too many"],
)
def test_a_ring_with_two_steps_swapped_or_a_check_loosened_is_caught(
    producer: list[tuple[str, Step]], consumer: list[tuple[str, Step]], fault: str
) -> None:
    finding = explore_ring(producer, consumer)
    assert finding.fault is not None
    assert any(word in finding.fault for word in fault.split("|")), finding
