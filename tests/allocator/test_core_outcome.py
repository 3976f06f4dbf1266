"""How direct writes end a request (R36): a destination that is whole, and several destinations, word by word."""

from __future__ import annotations

from array import array

import pytest
from direct_pair import BLOCKS, EPOCH, SLOT, THERE, TOTAL, Pair
from support.claims import shut
from support.direct_steps import DirectStep

from embridge.allocator.claims import Claim, ClaimState
from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import Phase, is_whole, split


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_destination_that_is_whole_fails_only_as_it_is_told(pair: Pair) -> None:
    """R36: between its rows and the Success of the encode side it waits for that; before, it fails, and is not told."""
    status, refused = pair.language.status, list[bool]()

    def fail(step: int, *_: int) -> None:
        if step in (DirectStep.WHOLE, DirectStep.SENT, DirectStep.OWN_WORD, DirectStep.THEIR_WORD):
            assert is_whole(status.load(THERE)) == (step != DirectStep.WHOLE)
            if step != DirectStep.WHOLE:
                refused.append(not status.advance(THERE, EPOCH, Phase.Failed, 0, 5))

    pair.writer.watch(fail)
    assert pair.write(0, TOTAL) == TOTAL
    assert refused
    assert all(refused)
    assert pair.words == ((Phase.Success, TOTAL), (Phase.Success, TOTAL), TOTAL)
    assert not is_whole(status.load(THERE))


def test_a_destination_that_fails_before_it_is_whole_is_not_counted(pair: Pair) -> None:
    """R36: its encode side hears why, and has sent it nothing."""

    def fail(step: int, *_: int) -> None:
        if step == DirectStep.WHOLE:
            assert pair.language.status.advance(THERE, EPOCH, Phase.Failed, 0, 5)

    pair.writer.watch(fail)
    assert pair.write(0, TOTAL) == 0
    assert pair.words == ((0, 0), (Phase.Failed, 0), 0)
    assert pair.claim == Claim(EPOCH, ClaimState.OPEN)


def second_destination(pair: Pair, there: int = THERE + 1) -> None:
    """One more of the request's, at another slot of the same node; its blocks are the same in this test."""
    pair.own.slots.set(SLOT, Slot.REQUIRED, 2)
    assert pair.language.status.open(there, 1) == EPOCH
    shut(pair.language.claims, there, EPOCH, 2)
    assert pair.language.claims.offer(there, EPOCH)
    pair.set(Destination.WINDOW, 4)
    for k, block in enumerate(BLOCKS):
        pair.destinations.set(SLOT, 1, Destination.WINDOW, 4)
        pair.destinations.set_grant(SLOT, 0, k, block, 3)
        pair.destinations.set_grant(SLOT, 1, k, block, 3)
    for field, value in {
        Destination.REMOTE_SLOT: there,
        Destination.REMOTE_EPOCH: EPOCH,
        Destination.FIRST_GRANT: 4,
        Destination.GRANTED_TOKENS: TOTAL,
    }.items():
        pair.destinations.set(SLOT, 1, field, value)


def test_several_destinations_are_whole_before_the_encode_side_succeeds_and_none_hears_of_it_before(pair: Pair) -> None:
    """R36, R18: each has its own rows and the phase of all; who writes the last decides, and the others follow."""
    second_destination(pair)
    own, language = pair.own.status, pair.language.status

    def now() -> list[tuple[int, int, bool]]:
        words = [own.load(SLOT), language.load(THERE), language.load(THERE + 1)]
        return [(split(word).phase, split(word).sent, is_whole(word)) for word in words]

    spans = array("Q", pair.span(0, TOTAL))
    assert pair.writer.write(SLOT, EPOCH, TOTAL, pair.columns, spans) == TOTAL
    assert now() == [(0, 0, False), (0, TOTAL, True), (0, 0, False)]  # the other has not come
    assert pair.claim == Claim(EPOCH, ClaimState.ENDED)
    assert not language.advance(THERE, EPOCH, Phase.Failed, 0, 5)
    pair.own.slots.set(SLOT, Slot.NUM_DESTINATIONS, 2)
    assert pair.writer.write(SLOT, EPOCH, TOTAL, pair.columns, array("Q", pair.span(0, 4)), False, 1) == 4
    assert now() == [(Phase.Transferring, 4, False), (0, TOTAL, True), (Phase.Transferring, 4, False)]
    assert not pair.writer.follow(SLOT, EPOCH, TOTAL, 0)  # nothing is decided
    assert pair.writer.write(SLOT, EPOCH, TOTAL, pair.columns, spans, False, 1) == TOTAL
    success = (Phase.Success, TOTAL, False)
    assert now() == [success, (0, TOTAL, True), success]
    assert pair.writer.follow(SLOT, EPOCH, TOTAL, 0)
    assert not pair.writer.follow(SLOT, EPOCH, TOTAL, 0)  # it has heard
    assert now() == [success] * 3
    assert [phase for phase in Phase if language.stamps(THERE)[phase]] == [0, 1, 2, 3]


def test_a_destination_does_not_follow_a_failure_nor_another_epoch(pair: Pair) -> None:
    """R36, R16: that is told by the encode node, with its reason."""
    second_destination(pair)
    pair.own.slots.set(SLOT, Slot.NUM_DESTINATIONS, 2)
    assert pair.write(0, TOTAL) == TOTAL
    assert not pair.writer.follow(SLOT, EPOCH + 1, TOTAL, 0)
    assert pair.own.status.advance(SLOT, EPOCH, Phase.Failed, 0, 5)
    assert not pair.writer.follow(SLOT, EPOCH, TOTAL, 0)
    assert pair.words[1] == (Phase.WaitingForInput, TOTAL)
    assert pair.language.status.advance(THERE, EPOCH, Phase.Failed, TOTAL, 5, True)
