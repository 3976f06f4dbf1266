"""One request with several destinations: each has its own grants and progress, and a failure is told to all."""

from __future__ import annotations

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone

from embridge.allocator.records import Destination, Slot, WrittenBy
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers import messages as msg
from embridge.workers.role import Send

pytestmark = pytest.mark.usefixtures("quiet")


def test_the_destinations_of_a_request_share_its_window_and_no_entry_of_it() -> None:
    """R1, B10: of 16 entries each of two has 8; a grant beyond its share would be taken for the other's blocks."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 200, rows=0)
    node.init(1, list(range(8)), required=2)
    node.init(1, list(range(8, 16)), required=2, node_id=11)
    assert [node.destinations.grant(sender.slot, 0, k)[0] for k in range(8)] == list(range(8))
    assert [node.destinations.grant(sender.slot, 1, k)[0] for k in range(8)] == list(range(8, 16))
    assert sender.poll() == Phase.WaitingForInput
    node.resume(1, [0], first=8, required=2)
    assert sender.poll() == Phase.Failed
    assert node.slots.reason(sender.slot) == "grant to block 9 exceeds the window at 0"


def test_a_destination_grants_no_more_than_its_share_of_the_encode_nodes_window() -> None:
    """R1: the encode node has a window of 16 blocks, and the request another destination."""
    node = LanguageAlone(num_blocks=16)
    receiver = node.client.receiver(ENCODE_ADDRESS, 1, required_dst_info_num=2)
    node.settle()
    node.registered()
    assert receiver.max_window_blocks == 8
    alone = node.receiver(2)
    assert alone.max_window_blocks == 16


def test_each_destination_is_told_its_own_progress_and_the_word_holds_the_least() -> None:
    """R18, D11: an absent one counts as 0."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 20)
    node.init(1, [3, 4, 5], required=2)
    assert node.get(sender, Destination.SENT) == 12
    assert sender.progress().sent == 0
    node.init(1, [8], required=2, node_id=11)
    assert sender.progress().sent == 4
    rooms = {status.envelope.for_incarnation: status.room for status in node.sent(msg.Status)}
    assert len(rooms) == 1  # both nodes are of incarnation 1
    told = _told(node)
    assert (told["tcp://10.1.0.10:2"].sent_tokens, told["tcp://10.1.0.11:2"].sent_tokens) == (12, 4)
    assert told["tcp://10.1.0.10:2"].phase == told["tcp://10.1.0.11:2"].phase


def test_a_success_that_the_client_has_raised_is_told_to_the_destination_of_the_worker_at_once() -> None:
    """R36, R83: the worker, which says so itself where it has sent all rows, has sent those of one destination here."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.slots.set(sender.slot, Slot.MAY_WRITE, 1)
    node.init(1, [], required=2)
    node.init(1, [], required=2, node_id=11)
    for d, writer in enumerate((WrittenBy.CLIENT, WrittenBy.WORKER)):
        node.destinations.set(sender.slot, d, Destination.WRITTEN_BY, writer)
    node.resume(1, [5, 6], first=0, required=2, node_id=11)
    assert [node.get(sender, Destination.SENT, d) for d in range(2)] == [0, 8]
    for field in (Destination.GRANTED_TOKENS, Destination.SENT):
        node.destinations.set(sender.slot, 0, field, 8)
    assert node.control.status.advance(sender.slot, sender.epoch, Phase.Success, 8, node.now_ns)
    library_of(node.client).attachment.kick_poller(sender.slot, sender.epoch)
    library_of(node.client).attachment.flush()
    node.settle()
    assert {address: room.phase for address, room in _told(node).items()} == {
        "tcp://10.1.0.10:2": Phase.Success,
        "tcp://10.1.0.11:2": Phase.Success,
    }


def _told(node: EncodeAlone) -> dict[str, msg.RoomState]:
    """The last status that was sent to each address."""
    sends = [item for _, item in node.wire.sent if isinstance(item, Send)]
    return {item.address: item.message.room for item in sends if isinstance(item.message, msg.Status)}


def test_rows_flow_to_a_destination_on_its_own_grant_whoever_is_still_missing() -> None:
    """R19: WaitingForInput is a label; and an init may grant no block at all."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [], required=2)
    assert node.slots.get(sender.slot, Slot.NUM_DESTINATIONS) == 1
    node.resume(1, [3, 4], first=0, required=2)
    assert sender.poll() == Phase.Bootstrapping
    assert node.get(sender, Destination.SENT) == 8


def test_no_write_goes_to_a_destination_that_has_not_granted() -> None:
    """B10: another one's grant is not its own."""
    node = EncodeAlone()
    node.register(node_id=11)
    node.sender(1, 16)
    node.init(1, [3, 4], required=2)
    node.init(1, [8], required=2, node_id=11)
    node.resume(1, [5, 6], first=2, required=2)
    ten, eleven = (node.control.peers.find(node_id, 1) for node_id in (10, 11))
    written: dict[int | None, tuple[int, ...]] = {ten: (), eleven: ()}
    for (peer, _), blocks in zip(node.engine.submitted, node.blocks_written(), strict=True):
        written[peer] += tuple(blocks)
    assert written == {ten: (3, 4, 5, 6), eleven: (8,)}


@pytest.mark.parametrize("how", ["aborts", "dies"])
def test_the_failure_of_one_destination_is_told_to_all(how: str) -> None:
    """D11, R18."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 20)
    node.init(1, [3, 4], required=2)
    node.init(1, [8], required=2, node_id=11)
    node.forget_sent()
    if how == "aborts":
        node.abort(1, reason="rank 0 is out of memory")
    else:
        node.is_refused("poller", "tcp://10.1.0.10:2")
    assert sender.poll() == Phase.Failed
    told = _told(node)
    assert told["tcp://10.1.0.11:2"].phase == Phase.Failed
    reason = told["tcp://10.1.0.11:2"].reason
    assert reason == ("rank 0 is out of memory" if how == "aborts" else "language node a at tcp://10.1.0.10:1 is lost")
