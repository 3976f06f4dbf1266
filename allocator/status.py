"""Status words: one 64-bit word a slot that only increases, and what its parts mean.

`epoch:28 | phase:3 | whole:1 | sent:32`, compared as one integer. A new request in a slot takes the next epoch, so
whatever a late writer of an old epoch does loses by arithmetic. Success and Failed never change. `sent` counts tokens:
at a destination those that have landed there, on the encode side the least of all destinations. A destination is
*whole* when whoever writes its rows on the direct path has written all: until its end, which its encode side decides
from then on (R36).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from embridge.allocator._core import StatusTable

__all__ = ["TERMINAL", "Phase", "Progress", "StatusTable", "is_whole", "phase_path", "split"]


class Phase(IntEnum):
    """The documents' five states of a request."""

    Bootstrapping = 0
    WaitingForInput = 1
    Transferring = 2
    Success = 3
    Failed = 4

    @property
    def is_terminal(self) -> bool:
        return self >= Phase.Success


TERMINAL: Final = int(Phase.Success)  # phases from here on never change


class Progress(NamedTuple):
    """A status word taken apart; it comes from one load, so it is never torn."""

    epoch: int
    phase: int
    sent: int


EPOCH_SHIFT: Final = 36
PHASE_SHIFT: Final = 33
PHASE_MASK: Final = 0x7
"""Where the epoch and the phase stand in a status word, for those who count many of them."""

_new: Final = tuple.__new__  # a NamedTuple's own goes through one more function


def split(word: int) -> Progress:
    return _new(Progress, (word >> 36, word >> 33 & 0x7, word & 0xFFFF_FFFF))


def is_whole(word: int) -> bool:
    """Whether all rows of a destination are there, so that it does not fail for itself (R36)."""
    return bool(word >> 32 & 1)


def phase_path(stamps: tuple[int, ...]) -> list[Phase]:
    """The phases that were entered, in order, by the stamps of a slot."""
    return [phase for phase in Phase if stamps[phase]]
