"""The native core between real processes: hammered from two sides, and with SIGKILL at any moment."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np
import pytest
from core_support import DEADLINE_S, SPAWN, Arena, SharedMemory, running, until
from support.waiting import grows, reaches

from embridge.allocator._core import Words, set_parent_death_signal

NUM_RECORDS = 60_000
NUM_KILLS = 60
GO, DONE, COUNT = 0, 1, 2  # words of an arena
MARKS = 100  # a word a block, or a record


def start_together(arena: Arena, num_processes: int) -> None:
    arena.words.add(GO, 1)
    until(lambda: arena.words.load(GO) >= num_processes, "every process is there")


# ---- rings


def produce(memory: SharedMemory, num: int) -> None:
    """Push the numbers from 0 to `num - 1`, singly and in batches, ringing after each."""
    arena = Arena(memory)
    ring, bell, rng = arena.producer(), arena.bell(), random.Random(1)
    sent = 0
    while sent < num:
        if rng.random() < 0.5:
            sent += ring.push(sent, sent * sent % 2**64, *[sent] * 6)
        else:
            batch = np.arange(sent, min(sent + rng.randrange(1, 40), num), dtype=np.uint64)
            records = np.repeat(batch[:, None], 8, axis=1)
            records[:, 1] = batch * batch
            sent += ring.push_bytes(records)
        bell.ring()


def test_every_record_crosses_once_and_in_order() -> None:
    memory, arena = Arena.new()
    ring, bell, rng, received = arena.consumer(), arena.bell(), random.Random(2), 0
    with running((produce, (memory, NUM_RECORDS))):
        while received < NUM_RECORDS:
            assert ring.wait(bell, DEADLINE_S)
            records = ring.peek(rng.randrange(1, 100))
            for number, square, *rest in records:
                assert number == received
                assert square == number * number
                assert rest == [number] * 6
                received += 1
            ring.commit(len(records))
    assert ring.pending() == 0


def echo(memory: SharedMemory, num: int, spin_s: float) -> None:
    arena = Arena(memory)
    requests, answers, bell, other = arena.consumer(0), arena.producer(1), arena.bell(0), arena.bell(1)
    for _ in range(num):
        assert requests.wait(bell, DEADLINE_S, spin_s)
        answers.push(requests.peek(1)[0][0])
        requests.commit(1)
        other.ring()


@pytest.mark.parametrize("spin_s", [0.0, 20e-6])
def test_no_wake_up_is_lost_between_two_that_sleep(spin_s: float) -> None:
    """P8: a lost one would be a wait until the deadline."""
    memory, arena = Arena.new()
    requests, answers = arena.producer(0), arena.consumer(1)
    num = 4000
    with running((echo, (memory, num, spin_s))):
        for i in range(num):
            requests.push(i)
            arena.bell(0).ring()
            assert answers.wait(arena.bell(1), DEADLINE_S, spin_s)
            assert answers.peek(2) == [(i, 0, 0, 0, 0, 0, 0, 0)]
            answers.commit(1)


class EventFd:
    """An eventfd that survives being an argument of a spawned process."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK) if fd is None else fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_event_fd, (reduction.DupFd(self.fd),)


def _rebuild_event_fd(handle: Any) -> EventFd:
    return EventFd(handle.detach())


def count_up(memory: SharedMemory, event_fd: EventFd, num: int) -> None:
    arena = Arena(memory, event_fd.fd)
    bell = arena.bell()
    for i in range(1, num + 1):
        arena.words.store(COUNT, i)
        bell.ring()
        if i % 7 == 0:  # now and then let the other one fall asleep
            until(reaches(lambda: arena.words.load(DONE), i), "the waiter has seen it")


def test_no_wake_up_is_lost_by_who_sleeps_in_a_poll_loop_of_its_own() -> None:
    """P8: an armed eventfd."""
    memory, _ = Arena.new()
    event_fd, num = EventFd(), 20_000
    arena = Arena(memory, event_fd.fd)
    bell, poll = arena.bell(), select.poll()
    poll.register(event_fd.fd, select.POLLIN)
    with running((count_up, (memory, event_fd, num))):
        count = 0
        while count < num:
            seen = bell.sequence()
            newest = arena.words.load(COUNT)
            if newest != count:
                count = newest
                arena.words.store(DONE, count)
            elif bell.arm(seen):
                assert poll.poll(DEADLINE_S * 1000)
                os.eventfd_read(event_fd.fd)
    os.close(event_fd.fd)


# ---- owner cells


def contend(memory: SharedMemory, me: int, rounds: int) -> None:
    """Take blocks, mark each as ours, look that nobody else has marked it, give them back."""
    arena = Arena(memory)
    marks = Words(arena.mapping, 8 * MARKS, arena.NUM_BLOCKS)
    out, rng = np.zeros(16, np.uint32), random.Random(me)
    start_together(arena, 2)
    for _ in range(rounds):
        count = arena.cells.acquire(me, me, rng.randrange(1, 17), 0, out, 0)
        for block in out[:count].tolist():
            assert marks.compare_exchange(block, 0, me)
        if rng.random() < 0.3:
            arena.cells.expose(out, 0, count, me, me, me)
        for block in out[:count].tolist():
            assert marks.compare_exchange(block, me, 0)
        assert arena.cells.release(out, 0, count, me, me) == count


def test_two_processes_never_own_the_same_block() -> None:
    """D6, P1: and no block is lost between them; the pool is small, so that they meet."""
    memory, arena = Arena.new()
    everything = np.zeros(arena.NUM_BLOCKS, np.uint32)
    arena.cells.acquire(9, 9, arena.NUM_BLOCKS - 24, 0, everything, 0)
    with running((contend, (memory, 1, 8000)), (contend, (memory, 2, 8000))):
        pass
    assert arena.cells.counts() == (24, arena.NUM_BLOCKS - 24, 0, 0)
    assert arena.cells.reclaim(9, 9, True) == arena.NUM_BLOCKS - 24


# ---- status words


def raise_words(memory: SharedMemory, me: int, num: int) -> None:
    arena = Arena(memory)
    start_together(arena, 3)
    part = num // 10
    for sent in range(1, num):
        if sent % part == 0:  # the observer, too, is to have its turns on a busy machine
            until(lambda: arena.words.load(COUNT) > sent // part * 30, "the observer looks")  # noqa: B023
        for slot in range(4):
            arena.status.advance(slot, 1, 1 + sent * 2 // num, sent, me)
    arena.words.add(DONE, 1)


def test_a_status_word_never_decreases_under_two_writers() -> None:
    """P5, D12: an observer looks all the time; and every change that is marked is seen in the end."""
    memory, arena = Arena.new()
    num = 20_000
    for slot in range(4):
        arena.status.open(slot, 1)
    pages, out = np.arange(2, dtype=np.uint32), np.zeros(128, np.uint32)
    last, taken, observations = [0] * 4, [0] * 4, 0
    with running((raise_words, (memory, 1, num)), (raise_words, (memory, 2, num))):
        start_together(arena, 3)
        finished = False
        while not finished:
            finished = arena.words.load(DONE) == 2
            arena.words.add(COUNT, 1)
            for slot in range(4):
                word = arena.status.load(slot)
                assert word >= last[slot]
                last[slot] = word
                observations += 1
            for slot in out[: arena.status.changed(0, pages, 2, out)].tolist():
                taken[slot] = arena.status.load(slot)
    assert observations > 1000
    assert last == taken == [1 << 36 | 2 << 33 | (num - 1)] * 4
    assert all(stamp in (1, 2) for stamp in arena.status.stamps(0)[:3])


# ---- SIGKILL: one spawned process forks victims and kills them at random moments


def fork_and_kill(victim: Callable[[], None], has_begun: Callable[[], bool], rng: random.Random) -> None:
    """Run `victim` in a fork of this process and kill it some random time after it has begun."""
    child = os.fork()
    if child == 0:
        try:
            victim()
        finally:
            os._exit(1)
    until(has_begun, "the victim has begun")
    end = time.perf_counter_ns() + rng.randrange(0, 300_000)
    while time.perf_counter_ns() < end:
        pass
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def storm_of_producers(memory: SharedMemory) -> None:
    arena, rng, received = Arena(memory), random.Random(3), 0
    ring, header = arena.consumer(), arena.ring_header()

    def produce_from_where_the_last_one_stopped() -> None:
        mine, sequence = arena.producer(), header.load(2)
        while True:
            sequence += mine.push(sequence, ~sequence % 2**64, *[sequence] * 6)

    for _ in range(NUM_KILLS):
        fork_and_kill(produce_from_where_the_last_one_stopped, grows(lambda: header.load(2)), rng)
        while records := ring.peek(64):
            for record in records:
                assert record == (received, ~received % 2**64, *[received] * 6)
                received += 1
            ring.commit(len(records))


def storm_of_consumers(memory: SharedMemory) -> None:
    arena, rng = Arena(memory), random.Random(4)
    ring, header, sent = arena.producer(), arena.ring_header(), 0

    def consume() -> None:
        mine = arena.consumer()
        while True:
            for record in mine.peek(5):
                arena.words.add(MARKS + record[0] % 800, 1)  # the work
                mine.commit(1)

    def fill() -> bool:
        nonlocal sent
        while ring.push(sent):
            sent += 1
        return header.load(1) > before

    for _ in range(NUM_KILLS):
        before = header.load(1)
        fork_and_kill(consume, fill, rng)
        head, tail = header.load(1), header.load(2)
        assert head <= tail <= head + arena.CAPACITY
        assert [r[0] for r in arena.consumer().peek(3)] == list(range(head, tail))[:3]
    work = sum(arena.words.load(MARKS + i) for i in range(800))
    assert header.load(1) <= work <= header.load(1) + NUM_KILLS  # all of it, and at most one twice a kill


def storm_of_owners(memory: SharedMemory) -> None:
    arena, rng = Arena(memory), random.Random(5)

    def own() -> None:
        out = np.zeros(32, np.uint32)
        epoch = arena.words.load(COUNT)
        while True:
            count = arena.cells.acquire(7, epoch, 32, 0, out, 0)
            arena.words.add(DONE, 1)
            arena.cells.expose(out, 0, count // 2, 7, epoch, epoch)
            arena.cells.quarantine(out, 0, count // 4, 7, epoch)
            arena.cells.release(out, 0, count, 7, epoch)
            arena.cells.end_exposure(0, 0, epoch)

    for _ in range(NUM_KILLS):
        epoch = arena.words.add(COUNT, 1) + 1
        fork_and_kill(own, grows(lambda: arena.words.load(DONE)), rng)
        counts = arena.cells.counts()
        assert sum(counts) == arena.NUM_BLOCKS
        assert arena.cells.reclaim(7, epoch, True) == counts[1] + counts[2]
        quarantined = arena.cells.counts()[3]
        assert arena.cells.counts() == (arena.NUM_BLOCKS - quarantined, 0, 0, quarantined)
        assert arena.cells.end_exposure(0, 0, epoch + 1) == quarantined


def storm_of_status_writers(memory: SharedMemory) -> None:
    arena, rng = Arena(memory), random.Random(6)
    pages, out = np.arange(2, dtype=np.uint32), np.zeros(128, np.uint32)
    seen = np.zeros(arena.NUM_SLOTS, np.uint64)

    def write() -> None:
        while True:
            for slot in range(8):
                epoch = arena.status.open(slot, 1)
                arena.status.advance(slot, epoch, 1, 0, 2)
                arena.status.advance(slot, epoch, 2, 5, 3)
                arena.status.advance(slot, epoch, 4, 5, 4)

    for _ in range(NUM_KILLS):
        fork_and_kill(write, grows(lambda: arena.status.load(0)), rng)
        old = seen.copy()
        arena.status.changed(0, pages, 2, out)
        found = set(out[: arena.status.compare(pages, 2, seen, out)].tolist())
        assert (seen >= old).all()
        assert found == set(np.flatnonzero(seen != old).tolist())
        assert seen[:8].tolist() == [arena.status.load(slot) for slot in range(8)]


def storm_of_ringers(memory: SharedMemory) -> None:
    """The main process sleeps on the bell; whoever was killed while ringing, the next ring wakes it."""
    arena, rng = Arena(memory), random.Random(7)
    bell = arena.bell()

    def ring_for_ever() -> None:
        mine = arena.bell()
        while True:
            mine.ring()

    for _ in range(NUM_KILLS):
        fork_and_kill(ring_for_ever, grows(bell.sequence), rng)
        stamp = arena.words.add(COUNT, 1) + 1
        bell.ring()
        until(reaches(lambda: arena.words.load(DONE), stamp), "the waiter has seen the ring after the kill")
    arena.words.store(GO, 1)
    bell.ring()


@pytest.mark.parametrize("storm", [storm_of_producers, storm_of_consumers, storm_of_owners, storm_of_status_writers])
def test_whoever_is_killed_the_structure_can_be_used_and_nothing_is_lost(
    storm: Callable[[SharedMemory], None],
) -> None:
    """P1, P5, P11: records uncommitted are seen again, blocks are reclaimed, words have only risen."""
    memory, _ = Arena.new()
    with running((storm, (memory,))):
        pass


def test_a_killed_ringer_leaves_a_bell_that_the_next_ring_sounds() -> None:
    """P1, P8."""
    memory, arena = Arena.new()
    bell = arena.bell()
    with running((storm_of_ringers, (memory,))):
        while not arena.words.load(GO):
            seen = bell.sequence()
            arena.words.store(DONE, arena.words.load(COUNT))
            assert bell.wait(seen, DEADLINE_S, spin_s=0) != seen


# ---- the parent's death


def die_with_child(memory: SharedMemory) -> None:
    """Fork a child that dies with us; tell its pid; wait to be killed."""
    arena = Arena(memory)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        set_parent_death_signal(signal.SIGKILL)
        arena.words.store(COUNT, os.getpid() if os.getppid() == parent else 0)
        while True:
            signal.pause()
    while True:
        signal.pause()


def test_a_child_that_asked_for_it_dies_with_its_parent() -> None:
    """P10."""
    memory, arena = Arena.new()
    process = SPAWN.Process(target=die_with_child, args=(memory,), daemon=True)
    process.start()
    until(lambda: arena.words.load(COUNT), "the grandchild lives")
    pidfd = os.pidfd_open(arena.words.load(COUNT))
    process.kill()
    process.join(DEADLINE_S)
    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)
    with pytest.raises(ValueError, match="signal"):
        set_parent_death_signal(65)
