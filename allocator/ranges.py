"""Hands out ranges of a segment: first fit from the lowest address, so that warm memory is used again."""

from __future__ import annotations

from bisect import bisect_left, insort


class Ranges:
    """Free ranges of [0, size), in multiples of `granularity` bytes. Private to one thread of one process."""

    def __init__(self, size: int, granularity: int = 4096) -> None:
        self._granularity = granularity
        self._free: list[tuple[int, int]] = []  # (begin, end), ascending, never touching
        size -= size % granularity
        if size:
            self._free.append((0, size))

    def take(self, size: int) -> tuple[int, int] | None:
        """(begin, end) of the lowest range that holds `size` bytes, cut to whole granules; None when none does."""
        size = -(-max(size, 1) // self._granularity) * self._granularity
        for index, (begin, end) in enumerate(self._free):
            if end - begin >= size:
                if end - begin == size:
                    del self._free[index]
                else:
                    self._free[index] = (begin + size, end)
                return begin, begin + size
        return None

    def give_back(self, begin: int, end: int) -> None:
        """Free a range that `take` returned; it is joined to free neighbours."""
        index = bisect_left(self._free, (begin, end))
        assert index == len(self._free) or end <= self._free[index][0], "given back twice"
        assert index == 0 or self._free[index - 1][1] <= begin, "given back twice"
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == begin:
            begin = self._free.pop(index - 1)[0]
        insort(self._free, (begin, end))

    def cut(self, size: int) -> list[tuple[int, int]]:
        """Take away so many free bytes, those at the highest addresses; all, if there are fewer."""
        found: list[tuple[int, int]] = []
        while size > 0 and self._free:
            begin, end = self._free.pop()
            keep = max(begin, end - -(-size // self._granularity) * self._granularity)
            if keep > begin:
                self._free.append((begin, keep))
            found.append((keep, end))
            size -= end - keep
        return found

    @property
    def free_bytes(self) -> int:
        return sum(end - begin for begin, end in self._free)
