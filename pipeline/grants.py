"""How much to allocate for a request whose length is not known yet.

The documents grant a fixed default (8192 tokens). Too little costs a round, too much keeps others waiting; so the default is learned:
it is the length that nine of ten recent requests did not exceed, between one block and the configured start value's fourfold. An
encoder that announces the length makes the guess unnecessary.
"""

from __future__ import annotations

from collections import deque
from typing import Final

RECENT: Final = 64
ENOUGH: Final = 8  # lengths seen before the default moves
QUANTILE: Final = 0.9


class AdaptiveDefault:
    """Tokens to grant before the length is known, in whole blocks: a partly granted block could only grow with a new one behind it.

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
