"""What the language poller does with the claim of a request that has ended: nothing of it is anybody's while its writer
may write.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import LanguageAlone

from embridge.allocator.claims import Claim, ClaimState, ClaimTable, WriterId
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver

pytestmark = pytest.mark.usefixtures("quiet")

QUARANTINED = {"free": 6, "quarantined": 2}


def granted(node: LanguageAlone, room: int = 1) -> EmbeddingReceiver:
    """A request with two blocks, which an encoder on this host may write."""
    receiver = node.receiver(room)
    assert node.control.claims.get(receiver.slot) == Claim(receiver.epoch, ClaimState.OPEN)
    return receiver


def taken(node: LanguageAlone, receiver: EmbeddingReceiver, pid: int = 4711) -> WriterId:
    """An encoder of the encode node writes into its blocks."""
    writer = node.control.writers.add(ForeignWriter(20, 1, pid, has_claims=True))
    assert writer is not None
    assert node.control.claims.take(receiver.slot, receiver.epoch, writer)
    return writer


def state(node: LanguageAlone, receiver: EmbeddingReceiver) -> ClaimState:
    return node.control.claims.get(receiver.slot).state


def pass_time(node: LanguageAlone, seconds: int) -> None:
    """The encode node lives."""
    for _ in range(2 * seconds):
        node.advance(0.5)
        node.heartbeat()


def test_an_open_claim_ends_with_its_request_and_the_acknowledgement_frees_its_blocks() -> None:
    """R30, R7: no writer can come any more."""
    node = LanguageAlone()
    receiver = granted(node)
    receiver.abort()
    node.settle()
    assert state(node, receiver) == ClaimState.ENDED
    assert node.counts() == QUARANTINED
    node.abort_ack(receiver)
    assert node.counts() == {"free": 8}


def test_an_open_claim_ends_before_its_scheduler_hears_of_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R81, P6: rows that the encode node's worker has written; a later sender of the room finds nothing to claim."""
    node = LanguageAlone()
    receiver = granted(node)
    seen = []
    end = ClaimTable.end

    def watched(claims: ClaimTable, slot: int, epoch: int) -> None:
        end(claims, slot, epoch)
        seen.append((receiver.poll() == Phase.Success, state(node, receiver)))

    monkeypatch.setattr(ClaimTable, "end", watched)
    node.status(receiver, Phase.Success, receiver.granted_tokens, total_tokens=receiver.granted_tokens)
    assert receiver.poll() == Phase.Success
    assert seen == [(False, ClaimState.ENDED)]


def test_a_claim_that_is_held_is_left_to_its_writer_when_all_rows_are_there() -> None:
    """R81: the encode side's word was raised by it, and it is about to give the claim back."""
    node = LanguageAlone()
    receiver = granted(node)
    writer = taken(node, receiver)
    node.status(receiver, Phase.Success, receiver.granted_tokens, total_tokens=receiver.granted_tokens)
    assert receiver.poll() == Phase.Success
    assert node.control.claims.get(receiver.slot) == Claim(receiver.epoch, ClaimState.WRITING, writer)


@pytest.mark.parametrize("is_acked_first", [True, False])
def test_blocks_wait_for_the_acknowledgement_and_for_who_writes_into_them(is_acked_first: bool) -> None:
    """R30, R7, D2: for both, in whichever order they come, and for however long."""
    node = LanguageAlone()
    receiver = granted(node)
    writer = taken(node, receiver)
    receiver.abort()
    node.settle()
    assert receiver.poll() == Phase.Failed
    assert node.control.claims.get(receiver.slot) == Claim(receiver.epoch, ClaimState.REVOKED, writer)
    for is_ack in (is_acked_first, not is_acked_first):
        pass_time(node, 3)
        assert node.counts() == QUARANTINED
        if is_ack:
            node.abort_ack(receiver)
        else:
            assert not node.control.claims.give_back(receiver.slot, receiver.epoch, writer)
    node.advance(0.1)
    assert state(node, receiver) == ClaimState.ENDED
    assert node.counts() == {"free": 8}


def test_the_death_of_who_writes_ends_its_claim_and_no_one_else_s() -> None:
    """R33: a "dead foreign writer"; the blocks are free at once, and another encoder's claim stands."""
    node = LanguageAlone()
    mine, others = granted(node, 1), granted(node, 2)
    dead, living = taken(node, mine, 1), taken(node, others, 2)
    for receiver in (mine, others):
        receiver.abort()
        node.settle()
        node.abort_ack(receiver)
    assert node.counts() == {"free": 4, "quarantined": 4}
    node.node.writer_gone(dead)
    node.settle()
    assert node.counts() == QUARANTINED
    assert node.control.claims.get(others.slot) == Claim(others.epoch, ClaimState.REVOKED, living)
    node.node.writer_gone(living)
    node.settle()
    assert node.counts() == {"free": 8}


def test_the_death_of_who_writes_into_a_request_that_goes_on_ends_its_claim_at_once() -> None:
    """R33: before anybody has said that the request has failed; then its blocks wait for the acknowledgement alone."""
    node = LanguageAlone()
    receiver = granted(node)
    node.node.writer_gone(taken(node, receiver))
    node.settle()
    assert receiver.poll() < Phase.Success
    assert state(node, receiver) == ClaimState.ENDED
    node.status(receiver, Phase.Failed, 0, code=5, reason="the encoder process died")
    assert node.counts() == QUARANTINED
    node.abort_ack(receiver)
    assert node.counts() == {"free": 8}


def test_the_claim_is_revoked_before_a_block_is_anybody_s() -> None:
    """R30: an owned block is free with the poller's next step, and a writer that still finds the claim open writes."""
    node = LanguageAlone()
    receiver = granted(node)
    cells = node.actor("poller").control.blocks.cells
    reclaim, seen = cells.reclaim, list[ClaimState]()

    def noted(*arguments: Any) -> int:
        seen.append(state(node, receiver))
        return int(reclaim(*arguments))

    cells.reclaim = noted  # type: ignore[method-assign]
    receiver.abort()
    node.settle()
    assert seen[0] == ClaimState.ENDED


def test_a_claim_is_not_offered_when_its_request_has_ended() -> None:
    """R30: the bootstrap exposes blocks that the poller takes back at the same moment."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    cells = node.actor("bootstrap").control.blocks.cells
    expose = cells.expose

    def ended_after(*arguments: Any) -> int:
        exposed = int(expose(*arguments))
        node.control.status.advance(receiver.slot, receiver.epoch, Phase.Failed, 0, node.now_ns)
        node.control.claims.revoke(receiver.slot, receiver.epoch)
        node.control.blocks.cells.reclaim(receiver.slot, receiver.epoch, True)
        return exposed

    cells.expose = ended_after  # type: ignore[method-assign]
    receiver.init(receiver.allocate(2))
    node.settle()
    assert state(node, receiver) == ClaimState.ENDED


def test_over_a_network_no_claim_is_offered() -> None:
    """R28: nobody on this host may write there."""
    node = LanguageAlone(late_writes=True)
    receiver = node.receiver(1)
    assert state(node, receiver) == ClaimState.SHUT
    receiver.abort()
    node.settle()
    assert state(node, receiver) == ClaimState.ENDED


def test_a_request_that_has_succeeded_keeps_its_blocks_whoever_has_its_claim() -> None:
    """R32: its writer has only to give it back; a result that is released is free at once."""
    node = LanguageAlone()
    receiver = granted(node)
    writer = taken(node, receiver)
    node.status(receiver, Phase.Success, 8, total_tokens=8)
    receiver.clear()
    node.advance(0.1)
    assert node.counts() == {"free": 8}
    again = granted(node, 2)
    assert again.slot != receiver.slot or again.epoch == receiver.epoch + 1
    assert not node.control.claims.give_back(receiver.slot, receiver.epoch, writer) or again.slot != receiver.slot
    assert state(node, again) == ClaimState.OPEN


def test_a_writer_that_holds_its_claim_for_long_costs_the_poller_no_more_than_a_look_now_and_then() -> None:
    """P12, P21: an encoder that is stopped while it copies; it is neither asked again and again, nor does what the
    poller has to remember grow.
    """
    told = []
    for is_held in (False, True):
        node = LanguageAlone()
        receiver = granted(node)
        if is_held:
            taken(node, receiver)
        receiver.abort()
        pass_time(node, 20)
        poller: Any = node.actor("poller").role
        assert len(poller._timers) < 10
        told.append(node.metric("poller", "resent"))
    assert told[1] <= told[0]


@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_poller_that_dies_between_the_failure_and_the_end_of_its_claim_is_made_up_for(again: int) -> None:
    """P2, R25, R30: before every change of the step that ends the request, and once more in its successor."""
    change, places = 0, ["in the middle of a step"]
    while places == ["in the middle of a step"]:
        change += 1
        node = LanguageAlone()
        receiver = granted(node)
        writer = taken(node, receiver)
        receiver.abort()
        with node.killed_at("poller", change) as places:
            node.settle()
        if again:
            with node.killed_at("poller", again):
                node.settle()
        node.advance(1.2)
        assert receiver.poll() == Phase.Failed
        assert state(node, receiver) == ClaimState.REVOKED
        assert node.counts() == QUARANTINED
        node.abort_ack(receiver)
        node.advance(1.2)
        assert node.counts() == QUARANTINED
        assert not node.control.claims.give_back(receiver.slot, receiver.epoch, writer)
        node.advance(1.2)
        assert node.counts() == {"free": 8}
    assert change > 3, f"the poller makes {change - 1} changes only"
