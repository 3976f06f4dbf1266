"""Claims as a client leaves them that has opened a slot's epoch."""

from __future__ import annotations

from embridge.allocator.claims import REQUEST, Claim, ClaimState, ClaimTable
from embridge.allocator.records import CLAIM_WORDS


def shut(claims: ClaimTable, slot: int, epoch: int, lane: int, length: int = 0) -> None:
    """Shut a slot's claim for an epoch, as `SlotOpener.open` does."""
    claims._words.store(slot * CLAIM_WORDS + REQUEST, length << 16 | lane)
    claims._words.store(slot * CLAIM_WORDS, Claim(epoch, ClaimState.SHUT).pack())
