"""Claims: who may write into the blocks of a request of this node, one word a slot.

    claims [slot]  63        36 35     32 31     24 23            0
                   | epoch:28  | state:4 | entry:8 | generation:24 |  then: length:32, lane:16

    shut --offer--> open <--give_back-- writing --revoke--> revoked
      |              | +----take------->   |                   |
      +- revoke -----+----> ended <-- end_writer, ------ give_back, end_writer
                                      the last give_back

A client of an encode node on this host writes straight into this node's blocks, and it may stop or die between any two
instructions. So it writes only while it holds the claim of the request's slot, and the claim names it: the entry of the
table of foreign writers, and which of the entry's owners it is. Every change is one compare-and-swap from the value
that was looked at, but that of `SlotOpener.open`, before which nobody can know the epoch (R28, R31).

Who ends a request revokes its claim first. An open claim is ended by that, and nobody can write any more. A claim that
is held is revoked, and the request's blocks stay in quarantine until its writer has given it back or is dead (R30,
R33). An ended claim is never offered again: whoever offers may be slower than whoever ends. A request that succeeds
ends its claim, too, before its blocks can be anybody else's: its writer gives an ended claim back, and the poller ends
an open one when it hears that somebody else has written the last row (R81).

The word behind it says whose bell a writer rings, and the length of the request; 0 where none is known. A retry begins
with its length (R26); else the writer tells it before its first row counts, for its rows are ahead of every message.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from embridge.allocator._core import Mapping, Words, claim_give_back, claim_take
from embridge.allocator.records import CLAIM_WORDS

REQUEST: Final = 1
_LANE_BITS: Final = 16
GENERATION_BITS: Final = 24
MAX_GENERATION: Final = (1 << GENERATION_BITS) - 1
_ENTRY_BITS: Final = 8
_WRITER_BITS: Final = GENERATION_BITS + _ENTRY_BITS
_STATE_BITS: Final = 4


class ClaimState(IntEnum):
    """How a claim stands."""

    SHUT = 0
    OPEN = 1
    WRITING = 2
    REVOKED = 3
    ENDED = 4


HELD: Final = frozenset({ClaimState.WRITING, ClaimState.REVOKED})


class WriterId(NamedTuple):
    """An entry of the table of foreign writers, and the how many-th owner of it. Nobody's is (0, 0)."""

    entry: int
    generation: int

    def pack(self) -> int:
        return self.entry << GENERATION_BITS | self.generation


NOBODY: Final = WriterId(0, 0)


class Claim(NamedTuple):
    """A claim word."""

    epoch: int
    state: ClaimState
    writer: WriterId = NOBODY

    def pack(self) -> int:
        return _bare(self.epoch, self.state) | self.writer.pack()

    @classmethod
    def of(cls, word: int) -> Claim:
        epoch, entry = word >> _WRITER_BITS + _STATE_BITS, word >> GENERATION_BITS & (1 << _ENTRY_BITS) - 1
        return cls(epoch, ClaimState(state_of(word)), WriterId(entry, word & MAX_GENERATION))


def state_of(word: int) -> int:
    """The state that a claim word names."""
    return word >> _WRITER_BITS & (1 << _STATE_BITS) - 1


def _bare(epoch: int, state: ClaimState) -> int:
    """A claim word that names no writer."""
    return (epoch << _STATE_BITS | state) << _WRITER_BITS


class ClaimTable:
    """The claims of a language node's slots. Any thread; each method is one step for all others."""

    def __init__(self, mapping: Mapping, offset: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self._words = Words(mapping, offset, num_slots * CLAIM_WORDS)

    def get(self, slot: int) -> Claim:
        return Claim.of(self._words.load(slot * CLAIM_WORDS))

    def lane(self, slot: int) -> int:
        """The lane of the slot's client."""
        return self._words.load(slot * CLAIM_WORDS + REQUEST) & (1 << _LANE_BITS) - 1

    def length(self, slot: int) -> int:
        """The length of the request in tokens; 0: not known yet, so it may have any."""
        return self._words.load(slot * CLAIM_WORDS + REQUEST) >> _LANE_BITS

    def _move(self, slot: int, before: Claim, after: Claim) -> bool:
        return self._words.compare_exchange(slot * CLAIM_WORDS, before.pack(), after.pack())

    # ---- the language node

    def offer(self, slot: int, epoch: int) -> bool:
        """Open the claim: what is granted from now on may be written. False where it was offered or ended before."""
        shut, open_ = _bare(epoch, ClaimState.SHUT), _bare(epoch, ClaimState.OPEN)
        return self._words.compare_exchange(slot * CLAIM_WORDS, shut, open_)

    def revoke(self, slot: int, epoch: int) -> bool:
        """End the claim of a request that has ended. False while its writer holds it: ask again later."""
        while True:
            now = self.get(slot)
            if now.epoch != epoch or now.state == ClaimState.ENDED:
                return True
            if now.state == ClaimState.REVOKED:
                return False
            is_held = now.state == ClaimState.WRITING
            after = now._replace(state=ClaimState.REVOKED) if is_held else Claim(epoch, ClaimState.ENDED)
            if self._move(slot, now, after):
                return not is_held

    def end(self, slot: int, epoch: int) -> None:
        """End the claim of a request that has all its rows, unless its writer holds it and is about to (R81)."""
        self._move(slot, Claim(epoch, ClaimState.OPEN), Claim(epoch, ClaimState.ENDED))

    def end_writer(self, writer: WriterId) -> int:
        """End the claims that a writer holds which can write no more. Returns how many there were (R33)."""
        ended = 0
        for slot in range(self.num_slots):
            while (now := self.get(slot)).state in HELD and now.writer == writer:
                if self._move(slot, now, Claim(now.epoch, ClaimState.ENDED)):
                    ended += 1
        return ended

    # ---- the writer

    def take(self, slot: int, epoch: int, writer: WriterId) -> bool:
        """Claim the request's blocks for this writer. False where the claim is not open for this epoch."""
        return claim_take(self._words, slot, epoch, writer.pack())

    def give_back(self, slot: int, epoch: int, writer: WriterId) -> bool:
        """Give the claim back. False where it was revoked meanwhile: it is ended now, and somebody waits for that."""
        return claim_give_back(self._words, slot, epoch, writer.pack())
