"""Quarantine of blocks, and the check of an idle node that finds a block which nobody holds."""

from __future__ import annotations

import pytest
from support.alone import LanguageAlone

from embridge.allocator.errors import FailureCode, PeerLost
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.sessions import SHM_EXPOSURE, exposure_of
from embridge.allocator.status import Phase
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_block_that_a_late_write_may_hit_is_quarantined_by_the_drain() -> None:
    """R7, P7: and a clean one is freed."""
    node = LanguageAlone(late_writes=True)
    clean, tainted = node.receiver(1), node.receiver(2)
    node.status(clean, Phase.Transferring, 4)
    node.status(tainted, Phase.Transferring, 4, tainted=2)
    clean.release_drained(4)
    tainted.release_drained(4)
    assert node.counts() == {"free": 5, "exposed": 2, "quarantined": 1}


def test_a_tainted_session_that_is_over_quarantines_nothing() -> None:
    """R7: a taint of a session that a fence has ended, that is, below ours."""
    node = LanguageAlone(late_writes=True)
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 4, tainted=1)  # session 0
    receiver.release_drained(4)
    assert node.counts() == {"free": 7, "exposed": 1}


@pytest.mark.parametrize(("tainted", "expected"), [(0, {"free": 8}), (2, {"free": 6, "quarantined": 2})])
def test_blocks_of_a_failed_request_wait_for_the_abort_ack_and_the_tainted_ones_longer(
    tainted: int, expected: dict[str, int]
) -> None:
    """R7, D2: Failed frees nothing by itself."""
    node = LanguageAlone(late_writes=True)
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 4)
    receiver.abort()
    node.settle()
    assert receiver.poll() == Phase.Failed
    assert node.counts() == {"free": 6, "quarantined": 2}
    assert len(node.sent(msg.Abort)) == 1
    node.abort_ack(receiver, tainted=tainted)
    assert node.counts() == expected


def test_blocks_are_quarantined_when_the_encode_side_says_failed_and_until_it_acknowledges() -> None:
    """R7: Failed from there frees nothing; an abort is sent, and its ack does."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.Failed, 4, code=FailureCode.ABORTED, reason="the encoder had enough")
    assert node.counts() == {"free": 6, "quarantined": 2}
    assert "the encoder had enough" in str(receiver.failure_exception())
    assert len(node.sent(msg.Abort)) == 1
    node.abort_ack(receiver)
    assert node.control.blocks.counts().free == 8


def test_the_death_of_a_peer_frees_no_block_while_it_can_still_write() -> None:
    """R12, D2: over shared memory it is the end of its last process, the "dead foreign writer", that frees them."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    writer = node.control.writers.add(ForeignWriter(20, 1, 4711))
    assert writer is not None
    node.is_refused("poller", "tcp://10.0.0.20:2")
    assert isinstance(receiver.failure_exception(), PeerLost)
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.node.writer_gone(writer)
    node.settle()
    assert node.control.blocks.counts().free == 8


def test_blocks_are_not_freed_by_an_abort_while_a_remote_write_may_land() -> None:
    """D2: not by the client, not by its death, not by time; only by the ack."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    receiver.abort()
    receiver.clear()
    node.settle()
    node.node.clients[0].die()
    for _ in range(20):
        node.advance(0.5)
        node.heartbeat()
    assert node.counts() == {"free": 6, "quarantined": 2}
    node.abort_ack(receiver)
    assert node.control.blocks.counts().free == 8


def test_a_block_that_nobodys_request_holds_is_reported_once() -> None:
    """P1: the integrity check of an idle node, which sees no leak while a request is in flight."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.advance(5)
    assert node.metric("poller", "errors") == 0
    receiver.abort()
    node.settle()
    node.abort_ack(receiver)
    receiver.clear()
    node.advance(5)
    assert node.counts()["free"] == 8
    assert node.metric("poller", "errors") == 0
    node.node.may_leak = True  # the simulation would say so itself
    node.control.blocks.acquire(receiver.slot, receiver.epoch, 1, may_take_reserve=True)
    node.advance(5)
    assert node.metric("poller", "errors") == 1


@pytest.mark.parametrize(("network", "errors"), [(False, 1), (True, 0)])
def test_a_quarantine_that_no_fence_can_end_is_a_leak(network: bool, errors: int) -> None:
    """P1: through shared memory nothing stays in quarantine once no request is in flight; over a network a fence ends
    it.
    """
    node = LanguageAlone(late_writes=network)
    receiver = node.receiver(1)
    receiver.abort()
    node.settle()
    node.abort_ack(receiver)
    receiver.clear()
    node.advance(3)
    node.node.may_leak = True
    blocks = node.control.blocks.acquire(receiver.slot, receiver.epoch, 1, may_take_reserve=True)
    node.control.blocks.cells.expose(
        blocks, 0, 1, receiver.slot, receiver.epoch, exposure_of(0, 1) if network else SHM_EXPOSURE
    )
    node.control.blocks.cells.quarantine(blocks, 0, 1, receiver.slot, receiver.epoch)
    node.advance(4)
    assert node.metric("poller", "errors") == errors
