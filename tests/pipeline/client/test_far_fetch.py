"""A fetch from a node on another host, as a client of a language node goes through it; the test is the encode node."""

from __future__ import annotations

import pytest
import torch
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, LanguageAlone
from support.questions import THERE, fetch_from_afar, land, state_of, tell

from embridge import Busy, FetchFailed, FetchTimeout, GenerationGone, NotPublished
from embridge.allocator.errors import FailureCode, FetchError
from embridge.allocator.fetches import ItemShape
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.fetch import Fetch
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")

ITEM = msg.ItemState(7, 3, 14, 11, 42)  # 11 rows of a node's own, in three blocks
DATA = bytes(range(42))


@pytest.fixture
def node() -> LanguageAlone:
    return LanguageAlone()


def refuse(node: LanguageAlone, slot: int, code: int, reason: str = "no") -> None:
    key = msg.RequestKey(slot, node.slots.get(slot, Slot.EPOCH), node.slots.get(slot, Slot.ROOM))
    node.hears("bootstrap", msg.Refused(node.envelope(node_id=20), code, reason, key), address=ENCODE_ADDRESS)
    node.advance(0.2)


def ack(node: LanguageAlone, slot: int) -> None:
    key = msg.RequestKey(slot, node.slots.get(slot, Slot.EPOCH), node.slots.get(slot, Slot.ROOM))
    node.hears("poller", msg.AbortAck(node.envelope(node_id=20), key, 0))
    node.advance(0.2)


def is_idle(node: LanguageAlone) -> bool:
    return list(node.control.open_slots()) == [] and set(node.counts()) == {"free"}


def error_of(fetch: Fetch) -> FetchError:
    assert fetch.poll()
    error = fetch.exception()
    assert error is not None
    return error


def test_the_question_names_the_key_and_grants_no_block_until_the_answer_says_how_many(node: LanguageAlone) -> None:
    """R59: what came with a question would have to be freed."""
    _, slot = fetch_from_afar(node, "cat", generation=7)
    ask = node.sent(msg.Ask)[0]
    assert (ask.item, ask.generation, ask.dst_embedding_indices) == (b"cat", 7, [])
    assert node.counts() == {"free": 8}
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    (resume,) = node.sent(msg.Resume)
    assert (len(resume.dst_embedding_indices), resume.allocated_tokens) == (3, 11)
    assert node.sent(msg.Init) == []


def test_rows_are_copied_out_as_they_land_and_are_the_items(node: LanguageAlone) -> None:
    """R3, P6, D14: a block is free when its rows have been copied; the last row ends where the item does."""
    fetch, slot = fetch_from_afar(node, "cat")
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    land(node, slot, DATA)
    tell(node, slot, Phase.WaitingForInput, BLOCK_SIZE, ITEM)
    node.advance(0.2)
    assert node.counts()["free"] == 6
    assert not fetch.poll()
    tell(node, slot, Phase.Success, 11, ITEM)
    node.advance(0.2)
    item = fetch.result()
    assert (item.generation, item.shape, item.dtype, item.where) == (7, (3, 14), "uint8", "host")
    assert item.rows.flatten().tolist() == list(DATA)
    assert is_idle(node)
    item.release()
    with pytest.raises(ValueError, match="was released"):
        _ = item.rows


def test_a_fetch_larger_than_the_pool_comes_in_rounds(node: LanguageAlone) -> None:
    """R5, R21: half of the pool at a time."""
    num_bytes = 100 * BLOCK_SIZE * 4 - 3
    item = msg.ItemState(7, 1, num_bytes, 11, num_bytes)
    fetch, slot = fetch_from_afar(node, "cat")
    tell(node, slot, Phase.WaitingForInput, 0, item)
    data = torch.arange(num_bytes).to(torch.uint8)
    total, sent = 100 * BLOCK_SIZE, 0
    for _ in range(30):
        granted = node.slots.granted(slot)[1]
        land(node, slot, data.numpy().tobytes())
        sent = min(granted, total)
        phase = Phase.Success if sent == total else Phase.Transferring
        tell(node, slot, phase, sent, item)
        node.advance(0.1)
        assert node.counts()["free"] >= 4
        if fetch.poll():
            break
    assert torch.equal(fetch.result().rows.flatten(), data)
    assert is_idle(node)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (FailureCode.NOT_PUBLISHED, NotPublished),
        (FailureCode.GENERATION_GONE, GenerationGone),
        (FailureCode.BUSY, Busy),
        (FailureCode.TOO_LARGE, FetchFailed),
        (99, FetchFailed),
    ],
)
def test_a_refusal_is_an_error_and_leaves_nothing(node: LanguageAlone, code: int, kind: type[FetchError]) -> None:
    """R50, R59, P24."""
    fetch, slot = fetch_from_afar(node, "cat")
    refuse(node, slot, code)
    assert type(error_of(fetch)) is kind
    ack(node, slot)
    assert is_idle(node)


def test_who_waits_asks_again_as_another_request(node: LanguageAlone) -> None:
    """R50: the same one would be refused for ever; and for no longer than it waits."""
    fetch, slot = fetch_from_afar(node, "cat", wait_s=3.0)
    for number in range(3):
        refuse(node, slot, FailureCode.NOT_PUBLISHED)
        ack(node, slot)
        node.advance(0.3)
        ((slot, _),) = list(node.control.open_slots())
        assert len({(ask.key.slot, ask.key.epoch) for ask in node.sent(msg.Ask)}) == number + 2
    node.advance(3.0)
    refuse(node, slot, FailureCode.NOT_PUBLISHED)
    assert isinstance(error_of(fetch), NotPublished)


@pytest.mark.parametrize(
    "item",
    [
        msg.ItemState(7, 3, 14, 11, 43),
        msg.ItemState(7, 3, 14, 99, 42),
        msg.ItemState(7, 1 << 31, 1 << 31, 11, 42),
    ],
)
def test_an_item_that_cannot_be_as_it_is_told_fails_its_fetch_alone(node: LanguageAlone, item: msg.ItemState) -> None:
    """B6, P16: no memory is taken for it."""
    fetch, slot = fetch_from_afar(node, "cat")
    tell(node, slot, Phase.WaitingForInput, 0, item)
    node.advance(0.2)
    assert "the encode node tells of" in str(error_of(fetch))
    ack(node, slot)
    assert is_idle(node)


def test_a_fetch_that_is_given_up_is_aborted_there_and_holds_its_blocks_until_that_is_answered(
    node: LanguageAlone,
) -> None:
    """R54, R71, D2."""
    fetch, slot = fetch_from_afar(node, "cat")
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    fetch.abort()
    assert isinstance(error_of(fetch), FetchFailed)
    node.advance(0.2)
    assert "given up" in node.sent(msg.Abort)[0].reason
    assert node.counts() == {"free": 5, "quarantined": 3}
    ack(node, slot)
    assert is_idle(node)
    fetch.abort()


def test_the_death_of_its_node_is_an_error_that_says_what_to_do(node: LanguageAlone) -> None:
    """P4, D1."""
    fetch, slot = fetch_from_afar(node, "cat")
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    node.is_refused("bootstrap", ENCODE_ADDRESS)
    node.advance(0.5)
    error = error_of(fetch)
    assert isinstance(error, FetchFailed)
    assert "fetch it from another node, or have it encoded again" in str(error)
    assert is_idle(node)


def test_a_fetch_that_nobody_answers_ends_at_its_deadline(node: LanguageAlone) -> None:
    """P8, D1."""
    fetch, _ = fetch_from_afar(node, "cat", deadline_s=0.5)
    node.advance(1.0)
    assert isinstance(error_of(fetch), FetchTimeout)


def test_a_node_that_does_not_register_is_asked_as_one_of_another_host(node: LanguageAlone) -> None:
    """P8: and so the error says that nobody answers, long before the deadline."""
    fetch = node.client.fetch("cat", ENCODE_ADDRESS)
    node.advance(node.world.timing.connect_timeout_s + 2.0)
    assert "no encode node answers" in str(error_of(fetch))


def test_the_caller_hears_of_no_request(node: LanguageAlone) -> None:
    fetch, slot = fetch_from_afar(node, "cat")
    assert list(node.client.poll()) == []
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    land(node, slot, DATA)
    tell(node, slot, Phase.Success, 11, ITEM)
    node.advance(0.2)
    assert fetch.poll()
    assert list(node.client.poll()) == []


def test_a_message_that_is_lost_is_sent_again(node: LanguageAlone) -> None:
    """R24: the question until it is answered, then the window."""
    _, slot = fetch_from_afar(node, "cat")
    node.advance(3.0)
    assert len(node.sent(msg.Ask)) > 1
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    node.forget_sent()
    node.advance(0.5)
    node.heartbeat(state_of(node, slot, Phase.WaitingForInput, 0, ITEM, known_blocks=0))
    assert len(node.sent(msg.Resume)[0].dst_embedding_indices) == 3
    assert node.sent(msg.Ask) == []


def test_the_length_alone_is_no_answer(node: LanguageAlone) -> None:
    """B7: it may be announced before it is told what the item is."""
    fetch, slot = fetch_from_afar(node, "cat")
    state = state_of(node, slot, Phase.WaitingForInput, 0, ITEM)
    node.hears("poller", msg.Announce(node.envelope(node_id=20), state.key, 11))
    assert not fetch.poll()
    assert node.counts() == {"free": 8}
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    assert len(node.sent(msg.Resume)) == 1


def test_what_a_dead_client_was_about_to_ask_is_no_word_of_the_next_request_there(node: LanguageAlone) -> None:
    """R16: of a slot that was prepared and not opened; an ordinary request asks for its room."""
    receiver = node.receiver(5)
    slot, epoch = receiver.slot, receiver.epoch
    receiver.clear()
    key = msg.RequestKey(slot, epoch, 5)
    node.hears("poller", msg.AbortAck(node.envelope(node_id=20), key, 0))
    node.advance(0.2)
    for page in library_of(node.client).requests.lease.pages:
        for left in range(64 * page, 64 * page + 64):
            node.control.fetches.ask(left, node.slots.get(left, Slot.EPOCH) + 1, b"cat", 0)
    node.forget_sent()
    node.receiver(6)
    assert node.sent(msg.Ask) == []
    assert len(node.sent(msg.Init)) == 1


def test_a_node_of_this_host_that_has_no_door_left_is_asked_as_one_of_another(node: LanguageAlone) -> None:
    """P12: so does one whose socket is not here (`THERE`)."""
    fetch, slot = fetch_from_afar(node, "cat")
    assert [node.control.peers.record(peer).offer for peer in node.control.peers.alive()] == [THERE]
    refuse(node, slot, FailureCode.NOT_PUBLISHED)
    assert isinstance(error_of(fetch), NotPublished)


@pytest.mark.parametrize("loads", range(6))
def test_an_answer_that_is_being_written_is_read_whole_or_not_at_all(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch, loads: int
) -> None:
    """R52, P6: between any two loads of its client the poller writes all of it."""
    fetches, left = node.control.fetches, [loads]
    load, answer = fetches._words.load, ItemShape(7, 3, 14, 11, 42)

    class Between:
        def load(self, index: int) -> int:
            if left[0] == 0:
                monkeypatch.undo()
                fetches.answer(3, answer)
            left[0] -= 1
            return load(index)

    monkeypatch.setattr(fetches, "_words", Between())
    found = fetches.shape(3)
    assert found == answer or not found.bytes
    monkeypatch.undo()
    fetches.answer(3, answer)
    assert fetches.shape(3) == answer
