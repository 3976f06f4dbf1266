"""Several attempts for one destination at once, over a network, and how much is under way to one peer."""

from __future__ import annotations

from support.alone import BLOCK_SIZE, EncodeAlone, StubEngine

from embridge.allocator.records import Destination
from embridge.allocator.request_tables import STAGE_READING, StageEntry
from embridge.allocator.status import Phase
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.workers.transfer.attempt import WINDOW_COPIES
from embridge.workers.transfer.engines.base import Outcome


class OwnLife(StubEngine):
    """Tickets of a dead process are nobody's: what a later one submits has its own outcome."""

    def __init__(self, outcome: Outcome = Outcome.PENDING) -> None:
        super().__init__(late_writes=True, outcome=outcome)
        self.num_ended = 0

    def shutdown(self) -> None:
        self.num_ended += 1
        self.outcome = Outcome.DONE


def streamed(node: EncodeAlone, blocks: list[int]) -> EmbeddingSender:
    """A request whose blocks are given one after the other, and granted all at once."""
    total = len(blocks) * BLOCK_SIZE
    sender = node.sender(1, total, rows=0)
    node.init(1, blocks)
    for first in range(0, total, BLOCK_SIZE):
        node.write(sender, first, first + BLOCK_SIZE)
    return sender


def states(node: EncodeAlone, sender: EmbeddingSender, count: int) -> list[bool]:
    """Of so many blocks of a request, whether an attempt holds them."""
    entries = [StageEntry.of(node.control.staging.load(sender.slot, k)) for k in range(count)]
    return [entry.state == STAGE_READING for entry in entries]


def test_a_piece_is_written_while_others_are_under_way_and_sent_rises_over_those_in_order() -> None:
    """R6, R2: they may end in any order; each begins where the one before it ends."""
    node = EncodeAlone(engine=OwnLife())
    sender = streamed(node, [3, 4, 5])
    assert node.blocks_written() == [[3], [4], [5]]
    assert node.get(sender, Destination.ISSUED) == 12
    node.engine.outcomes[2] = Outcome.DONE
    node.advance(0.1)
    assert node.get(sender, Destination.SENT) == 0
    node.engine.outcomes[1] = Outcome.DONE
    node.advance(0.1)
    assert node.get(sender, Destination.SENT) == 8
    node.engine.outcomes[3] = Outcome.DONE
    node.advance(0.1)
    assert sender.poll() == Phase.Success
    assert node.blocks_written() == [[3], [4], [5]]


def test_behind_an_attempt_that_failed_nothing_counts_and_all_is_written_again() -> None:
    """R6, R8: the session is tainted at once; what is before it counts still, and only its source blocks are kept."""
    engine = OwnLife()
    node = EncodeAlone(engine=engine)
    sender = streamed(node, [3, 4, 5])
    engine.outcomes |= {2: Outcome.FAILED, 3: Outcome.DONE}
    node.advance(0.02)
    assert (node.get(sender, Destination.TAINTED), node.get(sender, Destination.SENT)) == (2, 0)
    assert states(node, sender, 3) == [True, True, False]
    engine.outcomes[1] = Outcome.DONE
    node.advance(0.02, until=lambda: engine.num_ended > 0)
    assert engine.num_ended == 1
    node.advance(1.0)
    assert node.blocks_written() == [[3], [4], [5], [4, 5]]
    assert sender.poll() == Phase.Success


def test_what_is_under_way_is_bounded_over_all_requests_to_one_peer() -> None:
    """P8, P12: what waits for that goes when others have ended, in the order in which it came."""
    engine = OwnLife()
    node = EncodeAlone(engine=engine, num_blocks=256)
    senders = [node.sender(room, 8) for room in range(1, 64)]
    for room in range(1, 64):
        node.init(room, [3, 4])
    under_way = sum(len(moves) for _, moves in engine.submitted)
    assert WINDOW_COPIES // 2 < under_way <= WINDOW_COPIES
    count = len(engine.submitted)
    assert count < 63
    engine.outcomes[1] = Outcome.DONE
    node.advance(0.04)  # first its destination is told
    assert len(engine.submitted) == count + 1
    engine.outcome = Outcome.DONE
    node.advance(0.5)
    assert [sender.poll() for sender in senders] == [Phase.Success] * 63
