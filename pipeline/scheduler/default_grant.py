"""How much to allocate for a request whose length is not known yet.

The documents grant a fixed default (8192 tokens). Too little costs a round, too much keeps others waiting; so the
default is learned: it is the length that nine of ten recent requests did not exceed, between one block and the
configured start value's fourfold. An encoder that announces the length makes the guess unnecessary.

A request that has shown no row yet, be its length announced or not, may wait for its encoder until its deadline, and
holds what it was granted all that time. So its grant is a share of what is free, which shrinks with the number who
wait; a quarter of the pool stays for those whose rows have come. It has its share once, of the default or of its
length, and once more when its length becomes known; what it is short of, it is granted with its rows. And whatever its
length, a request has no more than half of the pool granted ahead of its rows: their encoder may stop at any time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

RECENT: Final = 64
ENOUGH: Final = 8  # lengths seen before the default moves
QUANTILE: Final = 0.9
SMALL_POOL: Final = 16  # blocks; in one of fewer, a request that is alone may have half of so many


class AdaptiveDefault:
    """Tokens to grant before the length is known, in whole blocks: a partly granted block could only grow with a new
    one behind it.

    `start_tokens`, rounded up, until enough requests were seen.
    """

    def __init__(self, start_tokens: int, block_size: int, *, adaptive: bool = True) -> None:
        self._start = -(-start_tokens // block_size) * block_size
        self._block_size = block_size
        self._adaptive = adaptive
        self._recent: deque[int] = deque(maxlen=RECENT)

    def observe(self, total_tokens: int) -> None:
        """A request's real length became known."""
        self._recent.append(total_tokens)

    def tokens(self) -> int:
        """The default now."""
        if not self._adaptive or len(self._recent) < ENOUGH:
            return self._start
        lengths = sorted(self._recent)
        length = lengths[min(int(len(lengths) * QUANTILE), len(lengths) - 1)]
        blocks = -(-length // self._block_size)
        return min(max(blocks * self._block_size, self._block_size), 4 * self._start)


def free_for_all_of(blocks: int, num_blocks: int) -> int:
    """So many free blocks are enough for a request to be given these, though it has shown no row; no more need be
    counted.
    """
    return min(max(2 * blocks, blocks + num_blocks // 4), num_blocks)


def share_without_rows(free: int, num_blocks: int) -> int:
    """Blocks, at most, for a request that has shown no row, of a pool of which so many are free.

    The first one of an idle pool has half of it, the next one a half of what is left, and so on; where a quarter is
    left, they have none.
    """
    if free == num_blocks:
        return most_ahead(num_blocks)
    return max(0, min(free // 2, free - num_blocks // 4))


def most_ahead(num_blocks: int) -> int:
    """Blocks, at most, that one request may have ahead of its rows, of a pool of so many."""
    return max(num_blocks // 2, SMALL_POOL // 2)
