"""Owner cells and rings against plain Python models, step by step, with the death of owners and ends among the
steps.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from core_support import SharedMemory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embridge.allocator._core import BlockCells, Consumer, Producer, Words, format_ring
from embridge.allocator.records import RING_REFUSED

FREE, OWNED, EXPOSED, QUARANTINED = range(4)
NUM_BLOCKS = 90
owners = st.tuples(st.integers(0, 2), st.integers(1, 2))
handles = st.integers(0, 1)
choices = st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=40)


class OwnerCells(RuleBasedStateMachine):
    """Two handles on one table, as two processes have; the model is a list of (state, owner, generation, exposure)."""

    def __init__(self) -> None:
        super().__init__()
        mapping = SharedMemory(16 * NUM_BLOCKS).map()
        self.handles = [BlockCells(mapping, 0, 8 * NUM_BLOCKS, NUM_BLOCKS) for _ in range(2)]
        self.state = [FREE] * NUM_BLOCKS
        self.owner: list[tuple[int, int]] = [(0, 0)] * NUM_BLOCKS
        self.generation = [0] * NUM_BLOCKS
        self.exposure = [0] * NUM_BLOCKS

    def free(self, block: int) -> None:
        self.state[block], self.owner[block] = FREE, (0, 0)

    def held(self, owner: tuple[int, int], *states: int) -> list[int]:
        return [b for b in range(NUM_BLOCKS) if self.owner[b] == owner and self.state[b] in states]

    def longest_run(self, lowest: int) -> int:
        best = run = 0
        for block in range(lowest, NUM_BLOCKS):
            run = run + 1 if self.state[block] == FREE else 0
            best = max(best, run)
        return best

    @rule(handle=handles, owner=owners, want=st.integers(0, NUM_BLOCKS), lowest=st.integers(0, NUM_BLOCKS + 1))
    def acquire(self, handle: int, owner: tuple[int, int], want: int, lowest: int) -> None:
        out = np.zeros(NUM_BLOCKS, np.uint32)
        got = out[: self.handles[handle].acquire(*owner, want, lowest, out, 0)].tolist()
        available = [b for b in range(NUM_BLOCKS) if self.state[b] == FREE and b >= lowest]
        assert len(got) == len(set(got)) == min(want, len(available))
        assert set(got) <= set(available)
        if 0 < want <= self.longest_run(lowest):
            assert got == list(range(got[0], got[0] + want))
        for block in got:
            self.state[block], self.owner[block] = OWNED, owner
            self.generation[block] += 1

    @rule(handle=handles, owner=owners, blocks=choices, exposure=st.integers(0, 6))
    def expose(self, handle: int, owner: tuple[int, int], blocks: list[int], exposure: int) -> None:
        mine = [b for b in blocks if b in self.held(owner, OWNED, EXPOSED)]
        assert self.handles[handle].expose(np.array(blocks, np.uint32), 0, len(blocks), *owner, exposure) == len(mine)
        for block in mine:
            self.state[block], self.exposure[block] = EXPOSED, exposure

    @rule(handle=handles, owner=owners, blocks=choices)
    def release(self, handle: int, owner: tuple[int, int], blocks: list[int]) -> None:
        mine = {b for b in blocks if b in self.held(owner, OWNED, EXPOSED)}
        assert self.handles[handle].release(np.array(blocks, np.uint32), 0, len(blocks), *owner) == len(mine)
        for block in mine:
            self.free(block)

    @rule(handle=handles, owner=owners, blocks=choices)
    def quarantine(self, handle: int, owner: tuple[int, int], blocks: list[int]) -> None:
        exposed = {b for b in blocks if b in self.held(owner, EXPOSED)}
        owned = {b for b in blocks if b in self.held(owner, OWNED)}
        count = self.handles[handle].quarantine(np.array(blocks, np.uint32), 0, len(blocks), *owner)
        assert count == len(exposed)
        for block in exposed:
            self.state[block] = QUARANTINED
        for block in owned:
            self.free(block)

    @rule(handle=handles, owner=owners, quarantine=st.booleans())
    def kill_owner(self, handle: int, owner: tuple[int, int], quarantine: bool) -> None:
        """P1: whatever it held, recovery finds it by its name."""
        owned, exposed = self.held(owner, OWNED), self.held(owner, EXPOSED)
        assert self.handles[handle].reclaim(*owner, quarantine) == len(owned) + len(exposed)
        for block in owned if quarantine else owned + exposed:
            self.free(block)
        for block in exposed if quarantine else []:
            self.state[block] = QUARANTINED

    @rule(handle=handles, owner=owners)
    def end_quarantine(self, handle: int, owner: tuple[int, int]) -> None:
        blocks = self.held(owner, QUARANTINED)
        assert self.handles[handle].end_quarantine(*owner) == len(blocks)
        for block in blocks:
            self.free(block)

    @rule(handle=handles, peer=st.integers(0, 1), below=st.integers(0, 7))
    def fence(self, handle: int, peer: int, below: int) -> None:
        """R10: the lowest bit of an exposure is the peer here, the others are the session."""
        blocks = [
            b
            for b in range(NUM_BLOCKS)
            if self.state[b] == QUARANTINED and self.exposure[b] & 1 == peer and self.exposure[b] & ~1 < below
        ]
        assert self.handles[handle].end_exposure(1, peer, below) == len(blocks)
        for block in blocks:
            self.free(block)

    @invariant()
    def every_block_is_where_the_model_has_it(self) -> None:
        """Conservation: the four counts sum to the pool after every step."""
        for handle in self.handles:
            assert handle.counts() == tuple(self.state.count(state) for state in range(4))
        assert self.handles[0].num_free(NUM_BLOCKS) == self.state.count(FREE)
        for b in range(NUM_BLOCKS):
            assert self.handles[0].cell(b) == (self.state[b], *self.owner[b], self.generation[b])
            assert self.handles[1].exposure(b) == self.exposure[b]


class Ring(RuleBasedStateMachine):
    """A ring of eight records that starts near the end of the 64-bit positions; the model is a queue."""

    CAPACITY = 8

    def __init__(self) -> None:
        super().__init__()
        self.mapping = SharedMemory(192 + 64 * self.CAPACITY).map()
        format_ring(self.mapping, 0, self.CAPACITY)
        self.header = Words(self.mapping, 0, 3, stride=64)
        for position in (1, 2):
            self.header.store(position, 2**64 - 10)
        self.producer, self.consumer = Producer(self.mapping, 0), Consumer(self.mapping, 0)
        self.queue: deque[int] = deque()
        self.next = self.num_refused = self.num_committed = 0

    @rule()
    def push(self) -> None:
        assert self.producer.push(*[self.next] * 8) == (len(self.queue) < self.CAPACITY)
        if len(self.queue) < self.CAPACITY:
            self.queue.append(self.next)
            self.next += 1
        else:
            self.num_refused += 1

    @rule(count=st.integers(0, 12))
    def push_many(self, count: int) -> None:
        numbers = np.arange(self.next, self.next + count, dtype=np.uint64)
        fits = min(count, self.CAPACITY - len(self.queue))
        assert self.producer.push_bytes(np.repeat(numbers, 8)) == fits
        self.queue.extend(range(self.next, self.next + fits))
        self.next += fits
        self.num_refused += count - fits

    @rule(most=st.integers(0, 12))
    def peek(self, most: int) -> None:
        expected = list(self.queue)[:most]
        assert self.consumer.peek(most) == [(number,) * 8 for number in expected]
        assert self.consumer.peek_bytes(most) == np.repeat(np.array(expected, np.uint64), 8).tobytes()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.queue)))
        self.consumer.commit(count)
        self.num_committed += count
        for _ in range(count):
            self.queue.popleft()

    @rule()
    def kill_producer(self) -> None:
        """P1: with a record half written, where nobody looks yet."""
        self.producer = Producer(self.mapping, 0)
        if len(self.queue) < self.CAPACITY:
            at = 192 + 64 * (self.header.load(2) % self.CAPACITY)
            memoryview(self.mapping)[at : at + 32] = b"half of a record is here already"

    @rule()
    def kill_consumer(self) -> None:
        """P1, P11: it has committed nothing of what it was at."""
        self.consumer = Consumer(self.mapping, 0)

    @invariant()
    def what_is_pushed_is_pending_or_committed(self) -> None:
        assert self.consumer.pending() == len(self.queue)
        assert self.producer.room() == self.CAPACITY - len(self.queue)
        assert Words(self.mapping, 0, 24).load(RING_REFUSED) == self.num_refused
        assert self.header.load(1) == (2**64 - 10 + self.num_committed) % 2**64


TestOwnerCells = OwnerCells.TestCase
TestOwnerCells.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=25, stateful_step_count=60, deadline=None)
