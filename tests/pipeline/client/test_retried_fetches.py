"""What has come of a fetch that failed, and the retry that goes on behind it; the test is the encode node."""

from __future__ import annotations

import pytest
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, LanguageAlone
from support.questions import ROW_BYTES, fetch_from_afar, land, tell

from embridge import FetchError, FetchFailed, GenerationGone
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.fetch import Fetch
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")

ITEM = msg.ItemState(7, 3, 14, 11, 42)  # 11 rows of a node's own, in three blocks
DATA = bytes(range(42))
BLOCK_BYTES = BLOCK_SIZE * ROW_BYTES


@pytest.fixture
def node() -> LanguageAlone:
    return LanguageAlone()


def key_of(node: LanguageAlone, slot: int) -> msg.RequestKey:
    return msg.RequestKey(slot, node.slots.get(slot, Slot.EPOCH), node.slots.get(slot, Slot.ROOM))


def refuse(node: LanguageAlone, slot: int, code: int) -> None:
    refusal = msg.Refused(node.envelope(node_id=20), code, "no", key_of(node, slot))
    node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
    ack(node, slot)


def ack(node: LanguageAlone, slot: int) -> None:
    node.hears("poller", msg.AbortAck(node.envelope(node_id=20), key_of(node, slot), 0))
    node.advance(0.2)


def is_idle(node: LanguageAlone) -> bool:
    return list(node.control.open_slots()) == [] and set(node.counts()) == {"free"}


def broken_off(node: LanguageAlone, sent: int = 9, *, generation: int = 0) -> Fetch:
    """A fetch of which so many rows have come when it is given up."""
    fetch, slot = fetch_from_afar(node, "cat", generation=generation)
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    land(node, slot, DATA)
    tell(node, slot, Phase.WaitingForInput, sent, ITEM)
    node.advance(0.1)
    fetch.abort()
    node.advance(0.1)
    ack(node, slot)
    assert is_idle(node)
    node.forget_sent()
    return fetch


def only_slot(node: LanguageAlone) -> int:
    node.settle()
    node.advance(0.2, until=lambda: bool(list(node.control.open_slots())))
    node.settle()
    ((slot, _),) = list(node.control.open_slots())
    return slot


def error_of(fetch: Fetch) -> FetchError:
    error = fetch.exception()
    assert error is not None
    return error


@pytest.mark.parametrize(("sent", "first"), [(3, 0), (4, 1), (7, 1), (8, 2), (10, 2)])
def test_a_retry_goes_on_behind_what_has_come_and_names_its_generation(
    node: LanguageAlone, sent: int, first: int
) -> None:
    """R57, P6: whole blocks of it stay; those are not asked for."""
    fetch = broken_off(node, sent)
    assert fetch.kept_bytes == (sent * ROW_BYTES if first else 0)
    again = fetch.retry()
    slot = only_slot(node)
    ask = node.sent(msg.Ask)[0]
    assert (ask.generation, ask.first_block, ask.item) == (7 if first else 0, first, b"cat")
    tell(node, slot, Phase.WaitingForInput, first * BLOCK_SIZE, ITEM)
    (resume,) = node.sent(msg.Resume)
    assert (resume.first_block, len(resume.dst_embedding_indices)) == (first, 3 - first)
    blocks = [node.control.windows.get(slot, k) for k in range(first, 3)]
    payload = memoryview(node.node.payload)
    for k, block in enumerate(blocks, first):
        part = DATA[k * BLOCK_BYTES : (k + 1) * BLOCK_BYTES]
        payload[block * BLOCK_BYTES : block * BLOCK_BYTES + len(part)] = part
    tell(node, slot, Phase.Success, 11, ITEM)
    node.advance(0.2)
    assert again.result().rows.flatten().tolist() == list(DATA)
    assert (again.kept_bytes, fetch.kept_bytes) == (0, 0)
    assert is_idle(node)


@pytest.mark.parametrize("code", [FailureCode.GENERATION_GONE, FailureCode.NOT_PUBLISHED])
def test_where_its_item_is_gone_a_retry_begins_at_the_first_row(node: LanguageAlone, code: int) -> None:
    """R57: as another request (R50), which takes whatever is there."""
    again = broken_off(node).retry()
    refuse(node, only_slot(node), code)
    slot = only_slot(node)
    ask = node.sent(msg.Ask)[-1]
    assert (ask.generation, ask.first_block) == (0, 0)
    other = ITEM_OF_8
    tell(node, slot, Phase.WaitingForInput, 0, other)
    land(node, slot, bytes(reversed(DATA)))
    tell(node, slot, Phase.Success, 11, other)
    node.advance(0.2)
    item = again.result()
    assert (item.generation, item.rows.flatten().tolist()) == (8, list(reversed(DATA)))
    assert is_idle(node)


ITEM_OF_8 = msg.ItemState(8, 3, 14, 11, 42)


def test_who_wants_that_generation_alone_is_told_that_it_is_gone(node: LanguageAlone) -> None:
    """R57."""
    again = broken_off(node, generation=7).retry()
    for _ in range(2):
        refuse(node, only_slot(node), FailureCode.GENERATION_GONE)
    assert isinstance(error_of(again), GenerationGone)
    assert is_idle(node)


@pytest.mark.parametrize("other", [ITEM_OF_8, msg.ItemState(7, 1, 42, 11, 42)])
def test_rows_of_another_item_never_stand_behind_what_has_come(node: LanguageAlone, other: msg.ItemState) -> None:
    """R57, P6: whatever an encode node answers."""
    again = broken_off(node).retry()
    slot = only_slot(node)
    tell(node, slot, Phase.WaitingForInput, 8, other)
    node.advance(0.2)
    ack(node, slot)
    slot = only_slot(node)
    assert node.sent(msg.Ask)[-1].first_block == 0
    tell(node, slot, Phase.WaitingForInput, 0, other)
    land(node, slot, bytes(42))
    tell(node, slot, Phase.Success, 11, other)
    node.advance(0.2)
    assert not again.result().rows.any()
    assert is_idle(node)


def test_after_a_restart_of_its_node_a_retry_begins_at_the_first_row(node: LanguageAlone) -> None:
    """R58: though the item of the next incarnation has that number and that shape."""
    fetch = broken_off(node)
    peer, = node.control.peers.alive()
    node.control.peers.bury(peer)
    node.registered(incarnation=2)
    again = fetch.retry()
    node.advance(0.1)
    fields = (ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16, "there.sock")
    node.hears("bootstrap", msg.Registered(node.envelope(node_id=20, incarnation=2), *fields), address=ENCODE_ADDRESS)
    node.advance(0.2, until=lambda: bool(node.sent(msg.Ask)))
    slot = only_slot(node)
    state = node.sent(msg.Ask)[-1]
    assert state.first_block == 2
    session = node.slots.get(slot, Slot.SESSION)
    told = msg.RoomState(key_of(node, slot), 1, False, 8, 11, 11, 2, session, 0, 0, "", 0, ITEM)
    node.hears("poller", msg.Status(node.envelope(node_id=20, incarnation=2), told))
    node.advance(0.3)
    key = msg.RequestKey(slot, state.key.epoch, state.key.room)
    node.hears("poller", msg.AbortAck(node.envelope(node_id=20, incarnation=2), key, 0))
    node.advance(0.3)
    assert node.sent(msg.Ask)[-1].first_block == 0
    again.abort()


def test_at_another_node_a_retry_begins_at_the_first_row_and_one_retry_has_what_has_come(node: LanguageAlone) -> None:
    """R57."""
    fetch = broken_off(node)
    elsewhere = fetch.retry("tcp://10.0.0.21:1")
    assert elsewhere.address == "tcp://10.0.0.21:1"
    elsewhere.abort()
    assert (elsewhere.kept_bytes, fetch.kept_bytes) == (0, 0)
    fetch = broken_off(node)
    first, second = fetch.retry(), fetch.retry()
    node.advance(0.2)
    assert {ask.first_block for ask in node.sent(msg.Ask)} == {0, 2}
    first.abort()
    assert first.kept_bytes == 9 * ROW_BYTES  # its own retry may go on
    second.abort()
    assert second.kept_bytes == 0


def test_what_has_not_failed_is_not_retried(node: LanguageAlone) -> None:
    fetch, slot = fetch_from_afar(node, "cat")
    with pytest.raises(ValueError, match="has not failed"):
        fetch.retry()
    fetch.abort()
    node.advance(0.1)
    ack(node, slot)
    assert isinstance(error_of(fetch), FetchFailed)
    kept = broken_off(node)
    with pytest.raises(ValueError, match="deadline_s"):
        kept.retry(deadline_s=-1)
    assert kept.kept_bytes == 9 * ROW_BYTES
