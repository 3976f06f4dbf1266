"""What two nodes have told each other of the requests in flight between them: a heartbeat carries what has changed and
the digest of all of it, and all is told again only where that shows that something was missed.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.alone import EncodeAlone, LanguageAlone

from embridge.allocator.geometry import Limits
from embridge.allocator.records import Destination, Process, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.workers import messages as msg
from embridge.workers.poller import encode as publishing
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.room_lists import END_OF_SLOTS, At, HeardRooms, ToldRooms
from embridge.workers.role import Send

pytestmark = pytest.mark.usefixtures("quiet")

PEER = 11
MANY = Limits(
    num_slots=512,
    max_clients=2,
    num_workers=1,
    max_destinations=2,
    window_blocks=16,
    max_peers=4,
    max_peer_slots=512,
    ring_records=16,
)


def encode_with(num_rooms: int) -> EncodeAlone:
    """An encode node whose rooms 1, 2, ... have been joined by node 11, in slots of these numbers, and have no rows."""
    node = EncodeAlone(limits=MANY)
    node.register(node_id=PEER, num_slots=512)
    for room in range(1, num_rooms + 1):
        node.sender(room, 8, rows=0)
        node.init(room, [], node_id=PEER)
    node.advance(1.5)
    node.forget_sent()
    return node


def beats_of(node: EncodeAlone) -> list[msg.Heartbeat]:
    """The heartbeats to that node; another one is registered, too."""
    address = f"tcp://10.1.0.{PEER}:2"
    return [it.message for _, it in node.wire.sent
            if isinstance(it, Send) and it.address == address and isinstance(it.message, msg.Heartbeat)]  # fmt: skip


def last_digest(node: EncodeAlone) -> tuple[int, int]:
    beat = beats_of(node)[-1]
    return beat.num_rooms, beat.digest


# ---- the encode side


def test_a_heartbeat_lists_no_room_that_has_not_changed() -> None:
    """R77: however many wait; it says how many, and the digest of what was told of them."""
    node = encode_with(200)
    node.advance(1.0)
    beats = beats_of(node)
    assert len(beats) >= 9
    assert all(beat.rooms == [] for beat in beats)
    assert {(beat.num_rooms, beat.digest) for beat in beats} == {last_digest(node)}
    assert beats[0].num_rooms == 200


def test_rooms_that_wait_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """R25, R77: neither for heartbeats nor in the slow scan; the one that changes is."""
    node = encode_with(100)
    looked: list[int] = []
    look = Publisher._read_progress

    def watched(self: Publisher, slot: int) -> int:
        looked.append(slot)
        return look(self, slot)

    monkeypatch.setattr(Publisher, "_read_progress", watched)
    node.advance(2.0)
    assert looked == []
    node.init(7, [3, 4], node_id=PEER)
    node.advance(1.0)
    assert {node.slots.get(slot, Slot.ROOM) for slot in looked} == {7}


def test_what_is_told_at_once_is_in_the_next_digest() -> None:
    """R77: the sum of the hashes of what was told last, of those that have not ended."""
    node = encode_with(3)
    node.advance(0.2)
    before = last_digest(node)
    sender = node.sender(4, 8, rows=0)
    node.init(4, [3, 4], node_id=PEER)
    told = node.sent(msg.Status)[-1].room
    assert told.key.room == 4
    node.advance(0.2)
    assert last_digest(node) == (before[0] + 1, (before[1] + msg.hash_of(told)) % (1 << 63))
    node.write(sender, 0, 8)
    assert sender.poll() == Phase.Success
    node.advance(0.2)
    assert last_digest(node) == before


def test_what_is_no_news_for_a_report_comes_with_the_next_heartbeat() -> None:
    """R24: how many rows are ready beyond what was granted; once."""
    node = encode_with(1)
    sender = node.sender(2, 40, rows=8)
    node.init(2, [3], node_id=PEER)
    node.advance(0.2)
    node.forget_sent()
    node.write(sender, 8, 24)
    node.actor("worker0").role._enqueue(sender.slot, sender.epoch)  # type: ignore[attr-defined]
    node.advance(1.5)
    assert node.sent(msg.Status) == []
    told = [room.ready_tokens for beat in beats_of(node) for room in beat.rooms]
    assert told == [24]


def test_all_is_told_again_in_pieces_to_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """R77: pieces of a bounded size, with time for others between them, that leave no slot out."""
    monkeypatch.setattr(publishing, "PIECE_ROOMS", 30)
    node = encode_with(100)
    node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))
    node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))  # it is under way
    assert len(node.sent(msg.Snapshot)) == 1
    node.advance(1.0)
    pieces = node.sent(msg.Snapshot)
    assert [len(piece.rooms) for piece in pieces] == [30, 30, 30, 10]
    assert [piece.first_slot for piece in pieces] == [0, *(piece.end_slot for piece in pieces[:-1])]
    assert pieces[-1].end_slot == END_OF_SLOTS
    rooms = [room for piece in pieces for room in piece.rooms]
    assert sorted(room.key.room for room in rooms) == list(range(1, 101))
    assert last_digest(node) == (100, sum(map(msg.hash_of, rooms)) % (1 << 63))


def test_whoever_asks_again_and_again_is_answered_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """P21: a peer with a bug costs a share of the time."""
    monkeypatch.setattr(publishing, "PIECE_ROOMS", 30)
    node = encode_with(100)
    for _ in range(100):
        node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))
        node.advance(0.02)
    took = 3 * 0.02
    assert len(node.sent(msg.Snapshot)) <= 4 * (2.0 / (took * (1 + publishing.SNAPSHOT_PAUSE)) + 1)


def test_whoever_asks_is_told_if_there_is_nothing() -> None:
    """R77: it may have kept what is over."""
    node = encode_with(0)
    node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))
    (piece,) = node.sent(msg.Snapshot)
    assert (piece.first_slot, piece.end_slot, piece.rooms) == (0, END_OF_SLOTS, [])


def test_a_request_that_is_closed_before_its_end_is_in_no_digest() -> None:
    """R23, R77."""
    node = encode_with(2)
    node.forget_sent()
    node.close(1, node_id=PEER)
    assert node.sent(msg.Status) == []  # it knows
    node.advance(0.2)
    (beat,) = [beat for beat in node.sent(msg.Heartbeat) if beat.closed]  # its list has it until then
    assert ([key.room for key in beat.closed], beat.num_rooms) == ([1], 1)
    assert last_digest(node)[0] == 1


def test_a_request_that_is_closed_before_its_end_is_in_no_snapshot() -> None:
    """R77: a piece says what is in flight; so the digest that follows is without it, too."""
    node = encode_with(2)
    node.forget_sent()
    node.close(1, node_id=PEER)
    node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))
    (piece,) = node.sent(msg.Snapshot)
    assert [room.key.room for room in piece.rooms] == [2]
    node.advance(0.2)
    assert last_digest(node) == (1, msg.hash_of(piece.rooms[0]))


def test_the_last_request_that_is_closed_is_named_and_a_node_that_is_gone_leaves_nothing() -> None:
    """R77, P23."""
    node = encode_with(1)
    node.forget_sent()
    node.close(1, node_id=PEER)
    node.advance(1.5)  # nothing is in flight
    assert [key.room for beat in node.sent(msg.Heartbeat) for key in beat.closed] == [1]
    assert last_digest(node) == (0, 0)
    publisher = node.actor("poller").role
    assert isinstance(publisher, Publisher)
    for incarnation in range(2, 6):
        node.register(node_id=PEER, incarnation=incarnation)
        node.sender(incarnation, 4)
        node.init(incarnation, [3], node_id=PEER, incarnation=incarnation)
        node.advance(0.01)
    assert len(publisher._rooms) <= 2


# ---- the language side


def with_a_report(**changes: Any) -> tuple[LanguageAlone, EmbeddingReceiver]:
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.WaitingForInput, 0, **changes)
    node.forget_sent()
    return node, receiver


def asked(node: LanguageAlone) -> int:
    return len(node.sent(msg.Resync))


def test_nothing_is_asked_while_all_was_heard() -> None:
    """R77."""
    node, _ = with_a_report()
    for _ in range(3):
        node.heartbeat()
    assert asked(node) == 0


def test_a_report_that_was_lost_is_missed_and_asked_for() -> None:
    """R77: with each heartbeat, until it has come."""
    node, receiver = with_a_report()
    lost = node.state(receiver, Phase.Transferring, 4)
    node.told.put(lost)
    node.heartbeat()
    node.heartbeat()
    assert asked(node) == 2
    node.snapshot(lost)
    assert receiver.progress().sent == 4
    node.heartbeat()
    assert asked(node) == 2


def test_a_poller_that_was_restarted_asks_for_all() -> None:
    """R77, P11."""
    node, receiver = with_a_report()
    node.restart("poller")
    node.heartbeat()
    assert asked(node) == 1
    node.snapshot(node.state(receiver, Phase.WaitingForInput, 0))
    node.heartbeat()
    assert asked(node) == 1


def test_what_a_snapshot_does_not_name_is_forgotten_in_its_slots_alone() -> None:
    """R77: the encode side has begun anew, or its last word on a request was lost."""
    node = LanguageAlone()
    first, second = node.receiver(1, blocks=1), node.receiver(2, blocks=1)
    for receiver in (first, second):
        node.status(receiver, Phase.WaitingForInput, 0)
    low, high = sorted((first, second), key=lambda it: it.slot)
    node.snapshot(first_slot=high.slot, end_slot=END_OF_SLOTS)
    node.heartbeat()
    assert asked(node) == 0
    node.told.drop(msg.RequestKey(low.slot, low.epoch, low.room))
    node.heartbeat()
    assert asked(node) == 1


def test_what_is_told_of_a_request_that_is_over_here_is_no_reason_to_ask() -> None:
    """R77, R23: rows that were written directly are ahead of reports; it is closed until that is said to be over."""
    node, receiver = with_a_report()
    late = node.state(receiver, Phase.WaitingForInput, 0, key=msg.RequestKey(9, 3, 77))
    node.heartbeat(late)
    node.heartbeat()
    assert asked(node) == 0
    assert [close.key.room for close in node.sent(msg.Close)] == [77] * 2  # at once, and with each heartbeat
    node.heartbeat(node.state(receiver, Phase.Success, 16, key=late.key))
    node.forget_sent()
    node.heartbeat()
    assert (asked(node), node.sent(msg.Close)) == (0, [])


def test_a_report_that_could_not_be_taken_is_asked_for() -> None:
    """D4, R77: an exception ends one message; what it told is not taken as heard."""
    node, receiver = with_a_report()
    role: Any = node.actor("poller").role
    advance = role._advance

    def fails(*_: object) -> None:
        role._advance = advance
        raise OSError("no")

    role._advance = fails
    node.status(receiver, Phase.WaitingForInput, 4)
    node.heartbeat()
    assert asked(node) == 1


def test_a_grant_that_a_heartbeat_does_not_show_to_have_come_is_sent_again() -> None:
    """R24: though that tells of no request; a grant that has just left may be on its way."""
    node, receiver = with_a_report()
    receiver.resume_transfer(receiver.allocate(1), 0)
    node.settle()
    node.forget_sent()
    node.heartbeat()
    assert node.sent(msg.Resume) == []
    node.advance(0.1)
    node.heartbeat()
    (resume,) = node.sent(msg.Resume)
    assert resume.dst_embedding_indices == receiver.current_allocation().tolist()
    node.status(receiver, Phase.WaitingForInput, 0)
    node.forget_sent()
    for _ in range(5):
        node.advance(0.1)
        node.heartbeat()
    assert node.sent(msg.Resume) == []


def test_a_grant_is_sent_again_though_the_request_before_in_its_slot_was_granted_as_much() -> None:
    """R24, R17: with no heartbeat between the two, the words of the slot look as they did."""
    node, before = with_a_report()
    before.resume_transfer(before.allocate(1), 0)
    node.settle()
    node.heartbeat()
    before.abort()
    node.settle()
    node.abort_ack(before)
    before.clear()
    node.settle()
    others = [node.receiver(100 + i, blocks=0) for i in range(63)]  # the other slots of the page
    receiver = node.receiver(99)
    assert (receiver.slot, receiver.epoch) == (before.slot, before.epoch + 1)
    node.status(receiver, Phase.WaitingForInput, 0)
    receiver.resume_transfer(receiver.allocate(1), 0)
    node.settle()
    node.forget_sent()
    for _ in range(3):
        node.advance(0.1)
        node.heartbeat()
    assert {resume.key.room for resume in node.sent(msg.Resume)} == {99}
    assert not any(other.granted_blocks for other in others)


def test_grants_that_waited_in_a_bootstrap_are_sent_again_when_it_was_restarted() -> None:
    """R24, P11: at once, and not when their turn comes."""
    node = LanguageAlone()
    receivers = [node.receiver(room, blocks=1) for room in (1, 2)]
    node.status(receivers[1], Phase.WaitingForInput, 0)
    for _ in range(10):
        node.heartbeat(restarts=1)
        node.advance(1.0)
    node.forget_sent()
    node.heartbeat(restarts=2)
    assert [init.key.room for init in node.sent(msg.Init)] == [1]
    node.heartbeat(restarts=2)
    assert len(node.sent(msg.Init)) == 1


def _with_absent_rooms(monkeypatch: pytest.MonkeyPatch, most_resends_a_s: int) -> LanguageAlone:
    """A hundred, whose first grants are sent again as rarely as they will be."""
    monkeypatch.setattr("embridge.workers.poller.resending.MOST_RESENDS_A_S", most_resends_a_s)
    node = LanguageAlone(limits=MANY)
    for room in range(1, 101):
        node.receiver(room, blocks=0)
    for _ in range(150):
        node.advance(0.2)
        node.heartbeat()
    return node


def test_of_many_grants_that_nobody_answers_a_bounded_number_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """R24, P21: rooms whose encoders have not come cost a bounded share of the time, each in its turn."""
    node = _with_absent_rooms(monkeypatch, 10)
    node.forget_sent()
    for _ in range(150):
        node.advance(0.2)
        node.heartbeat()
    inits = [init.key.room for init in node.sent(msg.Init)]
    assert set(inits) == set(range(1, 101))
    assert len(inits) <= 2 * 10 * 30


def test_of_grants_that_are_sent_again_rarely_some_are_sent_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """P21: each time wakes the threads of two nodes, whatever is sent."""
    node, times = _with_absent_rooms(monkeypatch, 20), []
    for step in range(200):
        node.forget_sent()
        node.advance(0.05)
        if step % 4 == 0:
            node.heartbeat()
        if node.sent(msg.Init):
            times.append(node.now_ns)
    assert 10 < len(times) <= 41


def test_a_heartbeat_says_how_often_the_bootstrap_was_restarted() -> None:
    """R24."""
    node = encode_with(1)
    node.control.processes.set("bootstrap", Process.NUM_RESTARTS, 3)
    node.advance(0.2)
    assert node.sent(msg.Heartbeat)[-1].bootstrap_restarts == 3


# ---- both sides keep the same of the same messages

KEYS = st.builds(msg.RequestKey, st.integers(0, 3), st.integers(1, 3), st.integers(0, 1))
STATES = st.builds(
    msg.RoomState, KEYS, st.sampled_from([0, 1, 2, 3, 4]), st.booleans(), st.integers(0, 9), st.just(9),
    st.integers(0, 9), st.integers(0, 3), st.just(0), st.just(0), st.just(0), st.just(""), st.just(0),
)  # fmt: skip


@given(st.lists(STATES, max_size=30))
@settings(max_examples=80, deadline=None)
def test_who_hears_all_that_was_told_has_its_digest(states: list[msg.RoomState]) -> None:
    """R77: in its order, whatever epochs and ends it tells of."""
    told, heard = ToldRooms(), HeardRooms()
    for state in states:
        told.tell(At(state.key.slot, state.key.epoch, 0), state)
        heard.put(state)
        assert told.digest == heard.digest
    end, which = told.piece(0, 10)
    assert (end, len(which)) == (END_OF_SLOTS, told.digest[0])
    for at in {At(state.key.slot, state.key.epoch, 0) for state in states}:
        told.forget(at)
    assert (told.digest, len(told), told.due(), told.piece(0, 10)[1]) == ((0, 0), 0, [], [])


@given(st.lists(STATES, min_size=1, max_size=8), st.data())
@settings(max_examples=80, deadline=None)
def test_who_has_missed_something_has_another_digest(states: list[msg.RoomState], data: st.DataObject) -> None:
    """R77: unless what it missed was told anew since."""
    told, heard = HeardRooms(), HeardRooms()
    missed = data.draw(st.integers(0, len(states) - 1))
    for number, state in enumerate(states):
        told.put(state)
        if number != missed:
            heard.put(state)
    same = all(told.state(slot, epoch) == heard.state(slot, epoch) for slot in range(4) for epoch in range(1, 4))
    assert (told.digest == heard.digest) == same


def test_the_encode_sides_words_of_a_destination_are_read_anew_for_a_snapshot() -> None:
    """R77, R6: it tells what is so now."""
    node = encode_with(1)
    node.destinations.set(node.client._library.requests.by_room[1].slot, 0, Destination.TAINTED, 5)
    node.hears("poller", msg.Resync(node.envelope(node_id=PEER)))
    assert node.sent(msg.Snapshot)[0].rooms[0].tainted == 5
