"""How much to grant to a request whose length is not known yet, or that has shown no row yet.

The documents grant a fixed default (8192 tokens). Too little costs a round, and too much keeps others waiting. So the
default is learned: it is the length that nine of ten recent requests did not exceed, between one block and four times
the configured start value. An encoder that announces the length makes the guess unnecessary.

A request that has shown no row may wait for its encoder until its deadline, even if its length is announced, and it
holds what it was granted all that time. So its grant is a share of what is free, which shrinks with the number of
requests that wait, and a quarter of the pool stays for requests whose rows have come. It gets its share once, of the
default or of its length, and once more when its length becomes known; the rest is granted when its rows come. Whatever
its length, a request has at most half of the pool granted ahead of its rows, because its encoder may stop at any time.
What can be taken back (`withdrawing.py`) may leave less than a quarter.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

from embridge.allocator.blocks import BlockPool

RECENT: Final = 64
ENOUGH: Final = 8  # lengths seen before the default moves
QUANTILE: Final = 0.9
SMALL_POOL: Final = 16  # blocks; in a smaller pool a request that is alone may have half of this number


class AdaptiveDefault:
    """How many tokens to grant before the length is known, in whole blocks.

    They are whole blocks, because a partly granted block could grow only with a new block behind it. Until enough
    requests were seen it is `start_tokens`, rounded up.
    """

    def __init__(self, start_tokens: int, block_size: int, *, adaptive: bool = True) -> None:
        self._start = -(-start_tokens // block_size) * block_size
        self._block_size = block_size
        self._adaptive = adaptive
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self.now = self._start
        """The default now, in tokens."""
        self.longest = 4 * self._start
        """How many tokens a request of unknown length may well have: the longest recent one, or four times the start
        value while too few were seen.
        """

        self.latest = 0
        """The length of the request whose length was learned last, in tokens."""

    def observe(self, total_tokens: int) -> None:
        """Note the real length of a request, in tokens."""
        self.latest = total_tokens
        recent, lengths = self._recent, self._sorted
        recent.append(total_tokens)
        if len(recent) > RECENT:
            oldest = recent.popleft()
            if oldest == total_tokens:
                return
            del lengths[bisect_left(lengths, oldest)]
        insort(lengths, total_tokens)
        if len(lengths) < ENOUGH:
            self.longest = max(lengths[-1], 4 * self._start)
            return
        self.longest = lengths[-1]
        if self._adaptive:
            self.now = self._learned()

    def tokens(self) -> int:
        """The default now, in tokens."""
        return self.now

    def _learned(self) -> int:
        length = self._sorted[min(int(len(self._sorted) * QUANTILE), len(self._sorted) - 1)]
        blocks = -(-length // self._block_size)
        return min(max(blocks * self._block_size, self._block_size), 4 * self._start)


def free_for_all_of(blocks: int, num_blocks: int) -> int:
    """How many free blocks are enough to give a request that has shown no row all of `blocks`.

    The caller need not count more free blocks than that.
    """
    return min(max(2 * blocks, blocks + num_blocks // 4), num_blocks)


def free_for_withdrawable(blocks: int, num_blocks: int) -> int:
    """As `free_for_all_of`, where the grant can be taken back from a request that has shown no row (R34)."""
    return min(max(2 * blocks, blocks + num_blocks // 8), num_blocks)


def share_of(pool: BlockPool, blocks: int) -> int:
    """How many of these blocks a request may have that has shown no row; the rest is granted when its rows come."""
    enough = free_for_all_of(blocks, pool.num_blocks)
    free = pool.cells.num_free(enough)
    if free >= enough and enough < pool.num_blocks:
        return blocks
    return min(blocks, share_without_rows(free, pool.num_blocks))


def share_without_rows(free: int, num_blocks: int) -> int:
    """How many blocks a request that has shown no row may have at most, in a pool of which `free` are free.

    The first such request of an idle pool gets half of it, the next one half of what is left, and so on. When a quarter
    is left, they get none.
    """
    if free == num_blocks:
        return most_ahead(num_blocks)
    return max(0, min(free // 2, free - num_blocks // 4))


def most_ahead(num_blocks: int, num_lent: int = 0) -> int:
    """How many blocks one request may have ahead of its rows at most, in a pool of `num_blocks`.

    Of the blocks that are lent nobody knows when they come back (R35): they count as no part of the pool.
    """
    most = max(num_blocks // 2, SMALL_POOL // 2)
    return min(most, max((num_blocks - num_lent) // 2, 1)) if num_lent else most
