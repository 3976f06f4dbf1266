"""The doorbell: who sleeps is woken, who is awake costs nothing, and no ring is lost."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest
from core_support import DEADLINE_S, Arena, SharedMemory, until

from embridge.allocator._core import Doorbell, Words

AWAKE, ASLEEP, ARMED = range(3)


class Bell:
    """A doorbell with an eventfd, and its raw word (sequence below, state above)."""

    def __init__(self, sequence: int = 0) -> None:
        mapping = SharedMemory(4096).map()
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.word = Words(mapping, 64, 1)
        self.word.store(0, sequence)
        self.bell = Doorbell(mapping, 64, self.event_fd)
        self.without_fd = Doorbell(mapping, 64)

    def kind(self) -> int:
        return self.word.load(0) >> 32 & 3

    def rung(self) -> int:
        """What the eventfd has counted since the last call."""
        return os.eventfd_read(self.event_fd) if select.select([self.event_fd], [], [], 0)[0] else 0

    def __del__(self) -> None:
        os.close(self.event_fd)


def test_a_ring_between_the_look_and_the_wait_ends_the_wait_at_once() -> None:
    """P8: whoever waits with what it noted before it looked cannot miss a ring."""
    bell = Bell().bell
    seen = bell.sequence()
    bell.ring()
    assert bell.wait(seen, float("inf")) == seen + 1
    assert bell.wait(seen, float("inf"), spin_s=0) == seen + 1


def test_a_wait_ends_in_time_and_leaves_the_waiter_awake() -> None:
    bell = Bell()
    assert bell.bell.wait(seen=0, timeout_s=0.001, spin_s=0) == 0
    assert bell.bell.wait(0, 0) == 0
    assert bell.bell.wait(0, -5) == 0
    assert bell.bell.wait(0, 1e-6, 1e-3) == 0
    assert bell.kind() == AWAKE


@pytest.mark.parametrize("spin_s", [0, 20e-6, DEADLINE_S])
def test_a_ring_wakes_who_sleeps_or_spins(spin_s: float) -> None:
    bell = Bell()
    woken: list[int] = []
    waiter = threading.Thread(target=lambda: woken.append(bell.bell.wait(0, DEADLINE_S, spin_s)))
    waiter.start()
    if spin_s < 1:
        until(lambda: bell.kind() == ASLEEP, "the waiter sleeps")
    bell.bell.ring()
    waiter.join(DEADLINE_S)
    assert woken == [1]
    assert bell.kind() == AWAKE


def test_the_sequence_wraps() -> None:
    bell = Bell(sequence=2**32 - 1).bell
    assert bell.sequence() == 2**32 - 1
    bell.ring()
    assert bell.wait(2**32 - 1, float("inf")) == 0
    with pytest.raises(ValueError, match="seen"):
        bell.wait(2**32, 0)


def test_a_waiter_that_was_killed_asleep_costs_a_ring_no_more_than_a_call() -> None:
    """P1: its state stays behind, and the next waiter is woken all the same."""
    bell = Bell()
    bell.word.store(0, ASLEEP << 32)
    bell.bell.ring()
    bell.bell.ring()
    assert bell.bell.wait(1, float("inf")) == 2
    assert bell.bell.wait(2, 0.001, 0) == 2
    assert bell.kind() == AWAKE


def test_only_the_waiter_ends_its_sleep() -> None:
    """P1, P8: a ringer that did, and was killed before it had woken it, would leave a waiter whom no ring wakes."""
    bell = Bell()
    bell.word.store(0, ASLEEP << 32)
    bell.bell.ring()
    assert bell.kind() == ASLEEP


def test_an_armed_eventfd_is_written_once() -> None:
    bell = Bell()
    assert bell.rung() == 0
    bell.bell.ring()
    assert bell.rung() == 0  # not armed
    assert bell.bell.arm(seen=1)
    assert bell.kind() == ARMED
    bell.bell.ring()
    bell.bell.ring()
    assert bell.rung() == 1
    assert bell.kind() == AWAKE
    assert bell.bell.arm(3)
    bell.bell.disarm()
    bell.bell.ring()
    assert bell.rung() == 0


def test_arming_after_a_ring_is_refused() -> None:
    """P8: the caller looks again instead of sleeping on a ring that is past."""
    bell = Bell()
    seen = bell.bell.sequence()
    bell.bell.ring()
    assert not bell.bell.arm(seen)
    assert bell.kind() == AWAKE
    assert bell.bell.arm(bell.bell.sequence())


def test_a_ringer_without_the_eventfd_leaves_the_arming_to_one_that_has_it() -> None:
    bell = Bell()
    assert bell.bell.arm(0)
    bell.without_fd.ring()
    assert bell.rung() == 0
    assert bell.kind() == ARMED
    bell.bell.ring()
    assert bell.rung() == 1


def test_an_eventfd_that_is_full_is_readable_and_no_error() -> None:
    bell = Bell()
    os.eventfd_write(bell.event_fd, 2**64 - 2)
    assert bell.bell.arm(0)
    bell.bell.ring()
    assert bell.kind() == AWAKE
    assert bell.rung() == 2**64 - 2


def test_the_eventfd_is_the_doorbells_own_copy() -> None:
    """P20: it is closed with the doorbell, and its number is never written to when the caller has closed it."""
    mapping = SharedMemory(4096).map()
    fd = os.eventfd(0)
    before = len(os.listdir("/proc/self/fd"))
    bell = Doorbell(mapping, 0, fd)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    os.close(fd)
    assert bell.arm(0)
    bell.ring()
    del bell
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        Doorbell(mapping, 0, 1 << 20)


def test_a_signal_ends_a_wait_early() -> None:
    """P18: SIGTERM is seen at once by a process that sleeps."""
    bell = Bell().bell
    caught: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # again: the first may come before it sleeps
        assert bell.wait(0, float("inf"), 0) == 0
        assert signal.SIGALRM in caught
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_other_threads_run_while_one_waits() -> None:
    bell = Bell()
    waiter = threading.Thread(target=lambda: bell.bell.wait(0, DEADLINE_S, DEADLINE_S))
    waiter.start()
    started = time.monotonic()
    while time.monotonic() < started + 0.01:
        assert waiter.is_alive()
    bell.bell.ring()
    waiter.join(DEADLINE_S)
    assert not waiter.is_alive()


def test_a_consumer_sleeps_until_a_record_is_there_and_not_only_until_a_ring() -> None:
    """P8, B9: a doorbell serves many rings; a ring for another one is no record in this one."""
    memory, arena = Arena.new()
    other = Arena(memory)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(arena.consumer().wait(arena.bell(), DEADLINE_S, 0)))
    waiter.start()
    state = Words(arena.mapping, Arena.BELLS, 1)
    bell = other.bell()
    for _ in range(3):
        until(lambda: state.load(0) >> 32 == ASLEEP, "the consumer sleeps")
        bell.ring()
    assert waiter.is_alive()
    other.producer().push(1)
    bell.ring()
    waiter.join(DEADLINE_S)
    assert results == [True]


@pytest.mark.parametrize("is_spared", [False, True])
@pytest.mark.parametrize("caller", [AWAKE, ASLEEP, ARMED])
def test_of_a_client_whose_request_has_succeeded_the_library_thread_sleeps_on_where_its_caller_goes_on(
    caller: int, is_spared: bool
) -> None:
    """P8: he was asleep, or is awake while it is spared; one in a poll loop may be away for long."""
    his, library = Bell(), Bell()
    library.bell.spare(is_spared)
    his.word.store(0, caller << 32)
    his.bell.ring_client(library.bell)
    assert his.bell.sequence() > 0
    assert his.rung() == (1 if caller == ARMED else 0)
    is_left_to_him = caller == ASLEEP or (caller == AWAKE and is_spared)
    assert library.bell.sequence() == (0 if is_left_to_him else 1)
    with pytest.raises(TypeError):
        his.bell.ring_client(None)  # type: ignore[arg-type]
