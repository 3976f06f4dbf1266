"""Shared memory and processes for the tests of the native core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from typing import Any

from embridge.allocator._core import BlockCells, Consumer, Doorbell, Mapping, Producer, StatusTable, Words, format_ring

DEADLINE_S = 60.0
SPAWN = multiprocessing.get_context("spawn")


class SharedMemory:
    """A memfd of `size` bytes that survives being an argument of a spawned process."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = size
        self.fd = os.memfd_create("embridge-test") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.size, reduction.DupFd(self.fd))

    def map(self, **options: Any) -> Mapping:
        return Mapping(self.fd, self.size, **options)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def _rebuild(size: int, handle: Any) -> SharedMemory:
    return SharedMemory(size, handle.detach())


class Arena:
    """One of each structure at fixed places of one mapping, as each process of a test sees it."""

    SIZE = 1 << 20
    CAPACITY = 64
    NUM_SLOTS = 128
    NUM_VIEWS = 2
    NUM_BLOCKS = 256
    WORDS, STATUS, STAMPS, DIRTY = 0, 0x10000, 0x20000, 0x30000
    CELLS, EXPOSURE, RINGS, BELLS = 0x40000, 0x50000, 0x60000, 0x90000

    def __init__(self, memory: SharedMemory, event_fd: int = -1) -> None:
        self.mapping = memory.map()
        self.event_fd = event_fd
        self.words = Words(self.mapping, self.WORDS, 1024)
        self.cells = BlockCells(self.mapping, self.CELLS, self.EXPOSURE, self.NUM_BLOCKS)
        self.status = StatusTable(
            self.mapping, self.STATUS, self.STAMPS, self.DIRTY, self.NUM_SLOTS, num_views=self.NUM_VIEWS
        )

    @classmethod
    def new(cls) -> tuple[SharedMemory, Arena]:
        memory = SharedMemory(cls.SIZE)
        arena = cls(memory)
        for ring in range(4):
            format_ring(arena.mapping, arena.ring_offset(ring), cls.CAPACITY)
        return memory, arena

    def ring_offset(self, index: int) -> int:
        return self.RINGS + index * 0x8000

    def producer(self, index: int = 0) -> Producer:
        return Producer(self.mapping, self.ring_offset(index))

    def consumer(self, index: int = 0) -> Consumer:
        return Consumer(self.mapping, self.ring_offset(index))

    def ring_header(self, index: int = 0) -> Words:
        """Word 0 of each header line (0 capacity, 1 head, 2 tail)."""
        return Words(self.mapping, self.ring_offset(index), 3, stride=64)

    def bell(self, index: int = 0) -> Doorbell:
        return Doorbell(self.mapping, self.BELLS + 64 * index, self.event_fd)


def until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; fail at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {DEADLINE_S} s still not: {what}")
        os.sched_yield()


@contextlib.contextmanager
def running(*calls: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Run each call in a spawned process of its own; at the end all have ended, and well."""
    processes = [SPAWN.Process(target=target, args=args, daemon=True) for target, args in calls]
    for process in processes:
        process.start()
    try:
        yield processes
        for process in processes:
            process.join(DEADLINE_S)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
