"""An encode node that is asked for a published item by a node on another host."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.alone import StubEngine
from support.questions import ROW_BYTES, Shelved
from support.simulation import LIMITS
from support.simulation.node import segment

from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import SHELF_BLOCK_BYTES, SLOTS_PER_PAGE, Role
from embridge.allocator.layout import PayloadLayout
from embridge.allocator.records import NodeState, SegmentHeader
from embridge.allocator.shelf import ItemKey
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.transfer.engines.base import Outcome

pytestmark = pytest.mark.usefixtures("quiet")


def codes(node: Shelved) -> list[int]:
    """Of all refusals since `forget_sent`."""
    return [message.code for message in node.sent(msg.Refused)]


def end(node: Shelved, slot: int, *, epoch: int = 1) -> None:
    """The language node has the outcome of a fetch."""
    node.hears("poller", msg.Close(node.envelope(node_id=10), msg.RequestKey(slot, epoch, slot)))


def test_a_question_is_answered_with_what_the_item_is_and_its_rows_come_as_blocks_are_granted() -> None:
    """R52, P24, B10: no block comes with the question; the last row is as long as the item, and no longer."""
    node = Shelved()
    generation = node.publish("cat", 42)
    node.ask(3, "cat")
    (told,) = node.told()
    assert (told.phase, told.total_tokens, told.ready_tokens) == (Phase.WaitingForInput, 11, 11)
    assert told.item == msg.ItemState(generation, 1, 42, 11, 42)
    assert node.engine.submitted == []
    node.resume(3, [5, 4], first=0)
    node.resume(3, [9], first=2, sent=8, tokens=3)
    shelf = PayloadLayout.of(node.node.geometry).size
    moves = [move for _, moves in node.engine.submitted for move in moves]
    assert moves == [
        [5 * 4 * ROW_BYTES, shelf, 16], [4 * 4 * ROW_BYTES, shelf + 16, 16], [9 * 4 * ROW_BYTES, shelf + 32, 10],
    ]  # fmt: skip
    assert node.told()[-1].phase == Phase.Success
    end(node, 3)
    assert node.open() == []
    assert node.num_pinned == 0
    assert node.control.lanes.pages_of(node.control.lanes.own_lane) == []


def test_what_is_not_there_is_refused_at_once_and_holds_no_slot() -> None:
    """P24, R50: an unknown key, one that was taken away, another generation, gone or yet to come."""
    node = Shelved()
    generation = node.publish("cat")
    node.publish("gone")
    node.client.shelf.unpublish("gone")
    node.ask(1, "unknown")
    node.ask(2, "gone")
    node.ask(3, "cat", generation=generation - 1)
    node.ask(4, "cat", generation=generation + 7)
    assert codes(node) == [*[FailureCode.NOT_PUBLISHED] * 2, FailureCode.GENERATION_GONE, FailureCode.NOT_PUBLISHED]
    *_, gone, yet = [refusal.reason for refusal in node.sent(msg.Refused)]
    assert gone == f"generation {generation - 1} is gone; {generation} is there"
    assert yet == f"generation {generation + 7} is not published yet; {generation} is"
    assert node.open() == []
    assert node.num_pinned == 0


def test_a_refusal_stands_also_when_the_key_has_been_published_since() -> None:
    """R50: a doubled question is refused as it was; who asks anew has another request."""
    node = Shelved()
    node.ask(1, "cat")
    node.ask(2, "dog")
    node.publish("cat")
    node.ask(1, "cat")
    assert codes(node) == [FailureCode.NOT_PUBLISHED] * 3
    node.restart("bootstrap")
    node.settle()
    node.ask(1, "cat")
    assert codes(node) == [FailureCode.NOT_PUBLISHED] * 3 + [FailureCode.BUSY]
    node.client.shelf.unpublish("cat")
    node.ask(1, "cat")
    assert codes(node)[-1] == FailureCode.NOT_PUBLISHED
    assert node.open() == []
    node.publish("cat")
    node.ask(1, "cat", epoch=2)
    assert len(node.open()) == 1


def test_a_request_has_one_slot_however_often_it_asks() -> None:
    """R51: while it is open, and after its end."""
    node = Shelved()
    node.publish("cat", 8)
    for _ in range(3):
        node.ask(1, "cat")
    assert len(node.open()) == 1
    node.restart("bootstrap")
    node.settle()
    node.ask(1, "cat")
    assert len(node.open()) == 1
    assert codes(node) == []
    node.resume(1, [2], first=0, tokens=2)
    end(node, 1)
    node.ask(1, "cat")
    assert node.open() == []
    assert len(node.engine.submitted) == 1


def test_an_item_stays_until_no_attempt_can_read_it_whatever_became_of_the_request() -> None:
    """R52, R53, R54: neither its replacement nor an abort makes room there, and nobody is told of the end before."""
    node = Shelved(1, engine=StubEngine(outcome=Outcome.PENDING, late_writes=True))
    node.publish("cat")
    node.ask(1, "cat")
    node.resume(1, [2], first=0)
    node.publish("dog")
    assert not node.client.shelf.contains("dog")
    node.abort(1)
    node.advance(1.0)
    assert node.sent(msg.AbortAck) == []
    assert node.num_pinned == 1
    node.publish("dog")
    assert not node.client.shelf.contains("dog")
    node.engine.outcome = Outcome.DONE
    node.advance(1.0)
    assert len(node.sent(msg.AbortAck)) == 1
    end(node, 1)
    node.publish("dog")
    assert node.client.shelf.contains("dog")


def test_several_fetches_of_one_item_share_its_pin_until_the_last_has_ended() -> None:
    """R85, R42."""
    node = Shelved(1)
    node.publish("cat")
    node.ask(1, "cat")
    node.ask(2, "cat")
    assert node.num_pinned == 1
    node.abort(1)
    end(node, 1)
    node.publish("dog")
    assert node.num_pinned == 1
    assert not node.client.shelf.contains("dog")
    node.abort(2)
    end(node, 2)
    assert node.num_pinned == 0
    node.publish("dog")
    assert node.client.shelf.contains("dog")


def test_the_death_of_a_language_node_ends_its_fetches() -> None:
    """R56."""
    node = Shelved()
    node.publish("cat")
    node.ask(1, "cat")
    assert node.num_pinned == 1
    node.register(incarnation=2)
    node.settle()
    assert node.open() == []
    assert node.num_pinned == 0


@pytest.mark.parametrize("change", range(1, 45))
def test_a_bootstrap_that_dies_anywhere_leaves_no_pin_without_a_request(change: int) -> None:
    """R51, R55, R85, P1, P11: and the question at which it was, a "dead bootstrap of a node with a shelf", is answered
    by the next one, once.
    """
    node = Shelved()
    node.publish("cat", 8)
    node.publish("dog", 8)
    node.ask(5, "dog")
    with node.killed_at("bootstrap", change):
        node.ask(1, "cat")
    node.advance(0.1)
    node.ask(1, "cat")
    assert len(node.open()) == node.num_pinned == 2
    node.resume(1, [2], first=0, tokens=2)
    assert [state.phase for state in node.told() if state.key.slot == 1][-1] == Phase.Success
    end(node, 1)
    assert len(node.open()) == node.num_pinned == 1
    node.ask(1, "cat")  # which was doubled on its way
    assert len(node.open()) == 1
    node.abort(5)
    end(node, 5)
    assert node.num_pinned == 0
    assert node.control.lanes.pages_of(node.control.lanes.own_lane) == []


@pytest.mark.parametrize("change", range(1, 8))
def test_a_bootstrap_that_dies_while_it_releases_a_fetch_leaves_no_pin(change: int) -> None:
    """R55, R85."""
    node = Shelved()
    node.publish("cat", 8)
    node.ask(1, "cat")
    node.resume(1, [2], first=0, tokens=2)
    with node.killed_at("bootstrap", change):
        end(node, 1)
    node.advance(node.world.timing.scan_s * 2 + 0.1)
    assert node.open() == []
    assert node.num_pinned == 0
    assert node.control.lanes.pages_of(node.control.lanes.own_lane) == []


def test_a_pin_that_no_request_has_is_taken_away_by_the_next_bootstrap() -> None:
    """R85: of one that was killed between its pin and its slot."""
    node = Shelved()
    node.publish("cat")
    control, rows = node.control, node.node.shelf
    assert rows is not None
    key = ItemKey.of("cat", (control.node_id, control.incarnation))
    pin = control.shelf.own_reader(rows).pin(*key, node.now_ns)
    assert pin is not None
    assert node.num_pinned == 1
    node.restart("bootstrap")
    node.settle()
    assert node.num_pinned == 0



def test_a_node_without_a_slot_for_a_fetch_says_so_and_clients_make_room() -> None:
    """P12, R50: a client that holds all pages gives back those that it does not use."""
    limits = replace(LIMITS, num_slots=SLOTS_PER_PAGE, shelf_bytes=SHELF_BLOCK_BYTES)
    node = Shelved(limits=limits)
    node.publish("cat")
    node.sender(7, 4)
    node.init(7, [3])
    node.ask(1, "cat")
    assert codes(node) == [FailureCode.BUSY]
    node.close(7)
    node.advance(0.5)
    node.ask(1, "cat", epoch=2)
    assert len(node.open()) == 1
    node.advance(5.0)
    assert node.control.slot_waiters.lanes() == []


def test_a_node_takes_no_more_than_half_of_its_pages_for_fetches() -> None:
    """P12, P21: encoders have the others."""
    limits = replace(LIMITS, shelf_bytes=SHELF_BLOCK_BYTES)
    node = Shelved(limits=limits)
    node.control.peers.bury(*node.control.peers.alive())
    node.register(node_id=11, num_slots=128)
    node.publish("cat")
    for slot in range(SLOTS_PER_PAGE + 1):
        node.ask(slot, "cat", node_id=11)
    assert codes(node) == [FailureCode.BUSY]
    assert len(node.open()) == SLOTS_PER_PAGE
    assert not node.sender(1, 4).is_waiting


def test_a_node_that_is_being_stopped_or_has_no_shelf_refuses() -> None:
    """P18."""
    node = Shelved()
    node.publish("cat")
    node.control.header.store(SegmentHeader.NODE_STATE, NodeState.DRAINING)
    node.ask(1, "cat")
    assert codes(node) == [FailureCode.REFUSED]
    bare = Shelved(limits=LIMITS)
    bare.ask(1, "cat")
    assert codes(bare) == [FailureCode.REFUSED]
    assert "set shelf_bytes there" in bare.sent(msg.Refused)[0].reason


def test_a_question_that_cannot_be_one_is_refused_and_raises_no_tombstone() -> None:
    """B6, D15."""
    node = Shelved()
    node.publish("cat")
    node.ask(1, "cat", first_block=1)
    node.ask(1, "cat", required_dst_info_num=2)
    node.ask(1, "cat", endpoint="tcp://x:2")
    node.ask(65, "cat")
    assert codes(node) == [FailureCode.PROTOCOL] * 4
    node.ask(1, "cat", registration=7)
    assert node.open() == []
    node.ask(1, "cat")
    assert len(node.open()) == 1


@pytest.mark.parametrize("change", range(1, 10))
def test_what_a_dead_bootstrap_has_noted_of_a_slot_is_no_word_of_the_next_request_there(change: int) -> None:
    """R55, R16: an encoder that has the slot next sends its own rows."""
    node = Shelved()
    node.publish("cat", 8)
    with node.killed_at("bootstrap", change):
        node.ask(1, "cat")
    node.advance(0.1)
    sender = node.sender(7, 4)
    assert not node.control.is_fetch(sender.slot, sender.epoch)


@pytest.mark.parametrize("change", range(10, 22))
def test_a_fetch_that_is_given_up_before_its_first_block_is_opened_once(change: int) -> None:
    """R51, R55: also where its bootstrap has died before it raised the tombstone."""
    node = Shelved()
    node.publish("cat", 8)
    with node.killed_at("bootstrap", change):
        node.ask(1, "cat")
    node.advance(0.1)
    node.ask(1, "cat")
    assert len(node.open()) == 1
    node.abort(1)
    end(node, 1)
    assert node.open() == []
    node.ask(1, "cat")  # which was doubled on its way
    assert node.open() == []


def test_a_fetch_that_goes_on_has_the_rest_alone_and_of_the_same_item() -> None:
    """R57: what it does not name, or has no rest of, is refused."""
    node = Shelved()
    generation = node.publish("cat", 42)
    node.ask(1, "cat", first_block=1)
    node.ask(1, "cat", first_block=3, generation=generation)
    assert codes(node) == [FailureCode.PROTOCOL] * 2
    node.ask(1, "cat", epoch=2, first_block=2, generation=generation)
    assert node.told()[-1].sent_tokens == 8
    key, own = msg.RequestKey(1, 2, 1), "tcp://10.1.0.10:2"
    node.hears("bootstrap", msg.Resume(node.envelope(node_id=10), key, own, 7, 1, 1 << 32, [9], 2, 1, 3, 8))
    shelf = PayloadLayout.of(node.node.geometry).size
    moves = [move for _, moves in node.engine.submitted for move in moves]
    assert moves == [[9 * 4 * ROW_BYTES, shelf + 32, 10]]
    assert node.told()[-1].phase == Phase.Success
    node.publish("cat", 42, version=2)
    node.ask(2, "cat", first_block=2, generation=generation)
    assert codes(node)[-1] == FailureCode.GENERATION_GONE
    end(node, 1, epoch=2)
    assert node.open() == []
    assert node.num_pinned == 0


def test_no_node_takes_so_many_slots_that_another_has_none_for_its_fetches() -> None:
    """R86, P21: also not behind a restart of the bootstrap; what its fetches give back, it may have again."""
    limits = replace(LIMITS, shelf_bytes=SHELF_BLOCK_BYTES)
    node = Shelved(limits=limits)
    node.register(node_id=11, num_slots=128)
    node.publish("cat", 8)
    part = SLOTS_PER_PAGE // 2 // 2
    for slot in range(SLOTS_PER_PAGE):
        node.ask(slot, "cat", node_id=11)
    assert len(node.open()) == SLOTS_PER_PAGE - part
    assert set(codes(node)) == {FailureCode.BUSY}
    node.restart("bootstrap")
    node.settle()
    node.forget_sent()
    node.ask(64, "cat", node_id=11)
    assert codes(node) == [FailureCode.BUSY]
    for slot in range(part):
        node.ask(slot, "cat")
    assert len(node.open()) == SLOTS_PER_PAGE
    assert codes(node) == [FailureCode.BUSY]
    node.abort(0, node_id=11)
    node.hears("poller", msg.Close(node.envelope(node_id=11), msg.RequestKey(0, 1, 0)))
    node.ask(65, "cat", node_id=11)
    assert len(node.open()) == SLOTS_PER_PAGE
    assert codes(node) == [FailureCode.BUSY]


def test_a_generation_names_no_item_of_a_later_incarnation() -> None:
    """R58: those of each incarnation begin behind all before it, as it does by the clock."""
    control = Shelved().node.control
    first, later = [], control.incarnation + 1000  # a second later
    for incarnation in (control.incarnation, later):
        mapping = segment(control.layout.size)
        format_control(
            mapping, Role.ENCODE, control.geometry, control.limits, node_id=1, incarnation=incarnation, now_ns=1
        )
        core = Control(mapping).shelf.core
        _, entry, generation, *_ = core.begin(b"h" * 16, b"cat", 0, 1, 40, 1, 40, 1, 0, 1, False)
        first.append(core.show(entry, generation, 0))
    assert first[1] >= first[0] + 8000
