"""Rings: whole records, once each, in order; peek, work, commit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_support import SharedMemory

from embridge.allocator._core import Consumer, Doorbell, Mapping, Producer, Words, format_ring
from embridge.allocator.records import RING_REFUSED

HEADER, RECORD = 192, 64


class Ring:
    """A ring of its own, both ends and its header words (capacity, head, tail)."""

    def __init__(self, capacity: int = 8, start: int = 0) -> None:
        self.mapping: Mapping = SharedMemory(HEADER + capacity * RECORD + 64).map()
        format_ring(self.mapping, 64, capacity)
        self.header = Words(self.mapping, 64, 3, stride=64)
        self.header.store(1, start)
        self.header.store(2, start)
        self.producer = Producer(self.mapping, 64)
        self.consumer = Consumer(self.mapping, 64)

    @property
    def num_refused(self) -> int:
        return Words(self.mapping, 64, HEADER // 8).load(RING_REFUSED)


def test_a_record_is_eight_words_and_what_is_not_given_is_zero() -> None:
    ring = Ring()
    assert ring.producer.push(1, 2, 2**64 - 1)
    assert ring.producer.push(*range(8))
    assert ring.producer.push()
    assert ring.consumer.peek(10) == [(1, 2, 2**64 - 1, 0, 0, 0, 0, 0), tuple(range(8)), (0,) * 8]
    raw = ring.consumer.peek_bytes(10)
    assert len(raw) == 3 * RECORD
    assert raw[:24] == b"".join(w.to_bytes(8, "little") for w in (1, 2, 2**64 - 1))


def test_what_is_not_committed_is_seen_again() -> None:
    """P11, P1: a restarted reader does the unfinished work once more."""
    ring = Ring()
    for i in range(5):
        ring.producer.push(i)
    assert [r[0] for r in ring.consumer.peek(3)] == [0, 1, 2]
    ring.consumer.commit(2)
    assert [r[0] for r in Consumer(ring.mapping, 64).peek(10)] == [2, 3, 4]
    assert ring.consumer.pending() == 3
    ring.consumer.commit(0)
    ring.consumer.commit(3)
    assert ring.consumer.peek(10) == []
    assert ring.consumer.peek_bytes(10) == b""


def test_a_full_ring_refuses_and_counts() -> None:
    """P12: a full ring is a return value and a counter, which outlives its producer."""
    ring = Ring(capacity=4)
    assert [ring.producer.push(i) for i in range(6)] == [True] * 4 + [False] * 2
    assert ring.num_refused == 2
    assert ring.producer.room() == 0
    assert ring.producer.push_bytes(bytes(3 * RECORD)) == 0
    assert ring.num_refused == 5
    ring.consumer.commit(1)
    assert ring.producer.room() == 1
    assert ring.producer.push_bytes(bytes(3 * RECORD)) == 1
    assert ring.num_refused == 7
    assert ring.producer.capacity == ring.consumer.capacity == 4


@pytest.mark.parametrize("start", [0, 5, 2**32 - 3, 2**63 - 3, 2**64 - 3])
def test_positions_wrap_and_no_record_is_lost(start: int) -> None:
    ring = Ring(capacity=8, start=start)
    sent = 0
    received: list[int] = []
    while len(received) < 40:
        while ring.producer.push(sent):
            sent += 1
        for record in ring.consumer.peek(5):
            received.append(record[0])
            ring.consumer.commit(1)
    assert received == list(range(40))
    assert ring.header.load(1) == (start + 40) % 2**64


@pytest.mark.parametrize("start", [0, 6, 2**64 - 2])
def test_many_records_go_in_one_step_across_the_end(start: int) -> None:
    ring = Ring(capacity=8, start=start)
    records = b"".join(i.to_bytes(8, "little") * 8 for i in range(10))
    assert ring.producer.push_bytes(records) == 8
    assert ring.consumer.peek_bytes(100) == records[: 8 * RECORD]
    assert [r[7] for r in ring.consumer.peek(3)] == [0, 1, 2]
    ring.consumer.commit(3)
    assert ring.producer.push_bytes(memoryview(records)[8 * RECORD :]) == 2
    assert ring.consumer.peek_bytes(100) == records[3 * RECORD :]
    assert ring.producer.push_bytes(b"") == 0


def test_both_ends_can_be_made_anew_at_any_time() -> None:
    """P11."""
    ring = Ring(capacity=4)
    received = []
    for i in range(20):
        assert Producer(ring.mapping, 64).push(i)
        if i % 3 == 2:
            consumer = Consumer(ring.mapping, 64)
            received += [record[0] for record in consumer.peek(10)]
            consumer.commit(consumer.pending())
    assert received == list(range(18))


def test_more_than_is_pending_cannot_be_committed() -> None:
    ring = Ring()
    ring.producer.push(1)
    with pytest.raises(ValueError, match="commit: 2 records > 1 pending"):
        ring.consumer.commit(2)
    with pytest.raises(OverflowError):
        ring.consumer.commit(-1)
    assert ring.consumer.pending() == 1


@pytest.mark.parametrize(("head", "tail"), [(0, 9), (5, 4), (2**64 - 1, 8), (2**63, 0)])
def test_a_damaged_header_is_an_error_and_nothing_is_touched(head: int, tail: int) -> None:
    """Words from shared memory are input: `tail - head > capacity` cannot be."""
    ring = Ring(capacity=8)
    ring.header.store(1, head)
    ring.header.store(2, tail)
    producer, consumer = Producer(ring.mapping, 64), Consumer(ring.mapping, 64)
    bell = Doorbell(SharedMemory(4096).map(), 0)
    calls: list[Callable[[], object]] = [
        lambda: producer.push(1),
        lambda: producer.push_bytes(bytes(RECORD)),
        producer.room,
        lambda: consumer.peek(1),
        lambda: consumer.peek_bytes(1),
        lambda: consumer.commit(1),
        consumer.pending,
        lambda: consumer.wait(bell, 1.0),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="its header is damaged"):
            call()
    assert (ring.header.load(1), ring.header.load(2)) == (head, tail)


@pytest.mark.parametrize("capacity", [0, 1, 3, 2**21, 2**64 - 1])
def test_an_end_is_not_made_on_what_is_no_ring(capacity: int) -> None:
    ring = Ring()
    ring.header.store(0, capacity)
    for end in (Producer, Consumer):
        with pytest.raises(ValueError, match="power of two"):
            end(ring.mapping, 64)


def test_an_end_is_not_made_on_a_ring_that_claims_more_than_the_mapping_has() -> None:
    ring = Ring(capacity=8)
    ring.header.store(0, 1024)
    for end in (Producer, Consumer):
        with pytest.raises(ValueError, match="outside the mapping"):
            end(ring.mapping, 64)
    ring.producer.push(1)  # an end that was made before goes on with what it has checked
    assert ring.consumer.pending() == 1


def test_what_is_no_record_is_refused() -> None:
    ring = Ring()
    with pytest.raises(TypeError, match="at most 8"):
        ring.producer.push(*range(9))
    with pytest.raises(OverflowError):
        ring.producer.push(2**64)
    with pytest.raises(TypeError):
        ring.producer.push("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 64"):
        ring.producer.push_bytes(bytes(63))
    assert ring.consumer.pending() == 0
    assert ring.num_refused == 0


def test_waiting_looks_first_and_ends_in_time() -> None:
    """P8."""
    ring = Ring()
    bell = Doorbell(SharedMemory(4096).map(), 0)
    assert not ring.consumer.wait(bell, 0)
    assert not ring.consumer.wait(bell, -1.0)
    assert not ring.consumer.wait(doorbell=bell, timeout_s=0.001, spin_s=0.0)
    ring.producer.push(1)
    assert ring.consumer.wait(bell, 0)
    assert ring.consumer.wait(bell, float("inf"))
    with pytest.raises(TypeError, match="not a Doorbell"):
        ring.consumer.wait(ring.producer, 1.0)  # type: ignore[arg-type]
    ring.consumer.commit(1)
    with pytest.raises(ValueError, match="not a number"):
        ring.consumer.wait(bell, float("nan"))
    with pytest.raises(TypeError, match="timeout_s"):
        ring.consumer.wait(bell)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="seconds"):
        ring.consumer.wait(bell, 1.0, seconds=3)  # type: ignore[call-arg]
