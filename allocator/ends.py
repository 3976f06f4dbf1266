"""How the requests of a node ended, and how long they took: counters in the control segment, for whoever watches.

Who sees an end counts it in a row of its own: the poller, the clients together (a request that only its client had),
and the launcher (a request that it fails because there is no poller). `native/ends.h` draws a row.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from embridge.allocator._core import (
    END_DELIVERY,
    END_PATHS,
    END_REASON,
    END_REASONS,
    END_ROUNDS,
    END_SUCCEEDED,
    END_TIMES,
    END_WORDS,
    NUM_TIMES,
    TIME_BOUNDS_NS,
    TIME_WORDS,
    Mapping,
    StatusTable,
    Words,
)
from embridge.allocator.errors import FailureCode, known_code
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import NUM_END_ROWS

__all__ = ["TIME_BOUNDS_NS", "Counter", "Delivered", "Ended", "Ends", "Path", "Times"]


class Counter(IntEnum):
    """Who counts, in a row of its own."""

    POLLER = 0
    CLIENTS = 1  # all of them, by additions
    LAUNCHER = 2


class Path(IntEnum):
    """The way of a request's rows to a destination."""

    DIRECT = 0  # its encoder has written them into the blocks there
    SHM = 1  # a transfer worker has, on one host
    NETWORK = 2


class Delivered(NamedTuple):
    """How many requests have reached a destination on one path, and how many tokens they had."""

    requests: int
    tokens: int


class Times(NamedTuple):
    """A histogram: how many took at most each of `TIME_BOUNDS_NS`, those longer than all, and the sum of all in ns."""

    counts: tuple[int, ...]
    sum_ns: int


class Ended(NamedTuple):
    """All rows together. `stages`: the times of the three phases before the end; `whole`: from opening to success."""

    succeeded: int
    failed: dict[FailureCode, int]
    delivered: dict[Path, Delivered]
    rounds: int
    stages: tuple[Times, ...]
    whole: Times


_CODES: Final = tuple(FailureCode)


class Ends:
    """The rows, to write in one's own, and to read together."""

    def __init__(self, mapping: Mapping, layout: ControlLayout, status: StatusTable) -> None:
        self._words = Words(mapping, layout.ends, NUM_END_ROWS * END_WORDS)
        self._status = status

    def succeeded(self, counter: Counter, slot: int, epoch: int, path: Path, rounds: int) -> bool:
        """Count a request that has succeeded, with its tokens, and its times by its stamps.

        False, and nothing is counted: the slot has another epoch, or has not succeeded.
        """
        return self._status.count_success(slot, epoch, path, rounds, self._words, counter)

    def delivered(self, counter: Counter, path: Path, tokens: int) -> None:
        """Count one more destination of a request that is counted."""
        at = counter * END_WORDS + END_DELIVERY + 2 * path
        self._words.add(at, 1)
        self._words.add(at + 1, tokens)

    def failed(self, counter: Counter, code: int) -> None:
        """Count a request that has failed."""
        self._words.add(counter * END_WORDS + END_REASON + known_code(code), 1)

    def read(self) -> Ended:
        """What all have counted until now."""
        rows = [self._words.load_many(row * END_WORDS, END_WORDS) for row in range(NUM_END_ROWS)]
        words = [sum(column) for column in zip(*rows, strict=True)]
        times = [_times(words[END_TIMES + i * TIME_WORDS :]) for i in range(NUM_TIMES)]
        return Ended(
            words[END_SUCCEEDED],
            {code: words[END_REASON + code] for code in _CODES if code},
            {path: Delivered(*words[END_DELIVERY + 2 * path :][:2]) for path in Path},
            words[END_ROUNDS],
            tuple(times[:-1]),
            times[-1],
        )


def _times(words: list[int]) -> Times:
    return Times(tuple(words[: TIME_WORDS - 1]), words[TIME_WORDS - 1])


assert len(_CODES) <= END_REASONS
assert len(Path) <= END_PATHS
