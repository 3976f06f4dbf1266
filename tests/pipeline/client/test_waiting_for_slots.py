"""More rooms than slots: calls wait for a slot, and no two tables wait for each other.

Two whole nodes in one thread, of two pages of slots each, under the simulation's checks.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, failure_of
from support.rows import rows_of
from support.simulation import LIMITS, ROWS_A_ROOM, ClientActor, Faults, SimulatedNode, World

from embridge.allocator.errors import FailureCode, NodeBusyError, TransferAborted, TransferTimeout
from embridge.allocator.geometry import SLOTS_PER_PAGE, Geometry, Role
from embridge.allocator.records import Lane, LaneState, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client import slot_queue as waiting
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import MAX_ROOM, NO_SLOT
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.timing import NS

GEOMETRY = Geometry(hidden_size=2, block_size=4, num_blocks=16)
NUM_SLOTS = 128  # two pages
WATCHDOG_S = 30.0
TOTAL = 3
FEW = replace(LIMITS, num_slots=NUM_SLOTS, max_clients=3)
LOSSY = Faults(lost=0.1, doubled=0.1, delayed=0.3, kill_role=0.002)


class Nodes:
    """One encode node, and language nodes with a scheduler each."""

    def __init__(
        self, world: World, *, num_languages: int = 1, num_encoders: int = 1, num_slots: int = NUM_SLOTS
    ) -> None:
        self.world = world
        self.limits = replace(FEW, num_slots=num_slots)
        self.encode = self._node("encode", Role.ENCODE, 1)
        self.encoders = [self._client(self.encode) for _ in range(num_encoders)]
        self.languages = [self._node(f"language{i}", Role.LANGUAGE, 10 + i) for i in range(num_languages)]
        self.queues = [TransferQueue(self._client(node).client) for node in self.languages]
        self.senders: list[EmbeddingSender] = []
        self.finished: list[int] = []

    def _node(self, name: str, role: Role, node_id: int) -> SimulatedNode:
        return self.world.node(name, role, GEOMETRY, node_id=node_id, limits=self.limits)

    def _client(self, node: SimulatedNode) -> ClientActor:
        node.new_client()
        return node.clients[-1]

    def send(self, room: int, *, encoder: int = 0) -> EmbeddingSender:
        sender = self.encoders[encoder].client.sender(room, TOTAL)
        ids = torch.arange(room * ROWS_A_ROOM, room * ROWS_A_ROOM + TOTAL, dtype=torch.int32)
        sender.send_embedding(*rows_of(GEOMETRY, room, 0, TOTAL)._replace(fill_ids=ids))
        self.senders.append(sender)
        return sender

    def request(self, room: int, *, language: int = 0, required: int = 1) -> EmbeddingRequest:
        address = self.encode.own_addresses.bootstrap_addr
        request = EmbeddingRequest(room=room, bootstrap_addr=address, required_dst_info_num=required)
        self.queues[language].add(request)
        return request

    def num_finished(self) -> int:
        for queue in self.queues:
            finished, failed = queue.pop_transferred()
            assert not failed, failed[0].failure
            for request in finished:
                assert request.result is not None
                assert request.result.fill_ids.tolist() == [request.room * ROWS_A_ROOM + row for row in range(TOTAL)]
                request.release()
                self.finished.append(request.room)
        return len(self.finished)

    def run(self, done: Callable[[], bool], limit_s: float = 100.0) -> None:
        self.world.run(done, limit_s=limit_s)

    def is_clean(self) -> bool:
        lanes = [
            (node.control.lanes, client.lane) for node in (self.encode, *self.languages) for client in node.clients
        ]
        waiting = [table.get(lane, word) for table, lane in lanes for word in (Lane.NUM_WAITING, Lane.NUM_EARLY)]
        return self.world.is_clean() and not any(waiting) and all(sender._final is not None for sender in self.senders)


@pytest.fixture
def nodes() -> Iterator[Callable[..., Nodes]]:
    worlds: list[World] = []

    def make(seed: int = 1, faults: Faults | None = None, **options: Any) -> Nodes:
        worlds.append(World(seed, faults=faults or Faults(), trace_length=50))
        return Nodes(worlds[-1], **options)

    yield make
    while worlds:
        worlds.pop().close()


@pytest.mark.parametrize(
    ("seed", "faults", "times"),
    [
        (1, Faults(), 4),
        pytest.param(2, LOSSY, 4, marks=pytest.mark.storm),
        (3, replace(LOSSY, lost_marks=0.5), 2),
        pytest.param(3, replace(LOSSY, lost_marks=0.5), 4, marks=pytest.mark.storm),
    ],
    ids=["1-faults0", "2-faults1", "3-faults2", "3-faults2-twice as many"],
)
def test_rooms_that_are_opened_in_opposite_orders_all_arrive(nodes: Any, seed: int, faults: Faults, times: int) -> None:
    """P8, D8: many more than either side has slots, before any of them could end; nothing is left."""
    pair = nodes(seed, faults)
    count = times * NUM_SLOTS
    for room in range(count):
        pair.request(room)
        pair.send(count - 1 - room)
    assert sum(sender.slot == NO_SLOT for sender in pair.senders) == count - NUM_SLOTS // 2
    assert pair.encode.control.lanes.num_early() == 1
    pair.run(lambda: pair.num_finished() == count)
    pair.run(pair.is_clean)
    assert [sender.poll() for sender in pair.senders] == [Phase.Success] * count


def test_without_the_other_half_they_wait_for_each_other(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: the run above would see it: first come, first served on both sides ends in deadlines."""
    monkeypatch.setattr(SlotLease, "_take_early", SlotLease._take)
    pair = nodes()
    for room in range(4 * NUM_SLOTS):
        pair.request(room)
        pair.send(4 * NUM_SLOTS - 1 - room)
    with pytest.raises(AssertionError, match="not done within"):
        pair.run(lambda: pair.num_finished() > 0, limit_s=10.0)


def test_with_a_single_page_of_slots_rooms_are_opened_when_they_are_asked_for(nodes: Any) -> None:
    """P8: an encoder's call always waits, for no page may be full of rooms that nobody has asked for; and they all
    arrive.
    """
    pair = nodes(num_slots=SLOTS_PER_PAGE, num_encoders=2)
    count = 4 * SLOTS_PER_PAGE
    for room in range(count):
        pair.request(room)
        pair.send(count - 1 - room, encoder=room % 2)
    assert all(sender.slot == NO_SLOT for sender in pair.senders)
    pair.run(lambda: pair.num_finished() == count)
    pair.run(pair.is_clean)


def test_rooms_of_several_destinations_take_the_other_half_when_all_of_these_are_there(nodes: Any) -> None:
    """P8, R18: else it would be full of rooms that wait for a destination whose rooms find no slot."""
    pair = nodes(num_languages=2)
    for room in range(NUM_SLOTS):
        pair.request(room, required=2)
        pair.request(room + 60, language=1, required=2)
    for room in reversed(range(NUM_SLOTS + 60)):
        pair.send(room)
    pair.run(lambda: pair.num_finished() == 8)  # four rooms are open at both
    assert sorted(pair.finished) == sorted([60, 61, 62, 63] * 2)


def test_several_encoders_share_the_slots(nodes: Any) -> None:
    """P8: one that holds all pages of slots gives them to one that has none."""
    pair = nodes(num_encoders=3)
    for room in range(2 * NUM_SLOTS):
        pair.send(room, encoder=0)
    for room in range(2 * NUM_SLOTS, 3 * NUM_SLOTS):
        pair.send(room, encoder=1 + room % 2)
    for room in reversed(range(3 * NUM_SLOTS)):
        pair.request(room)
    pair.run(lambda: pair.num_finished() == 3 * NUM_SLOTS)
    pair.run(pair.is_clean)


def test_a_client_with_nothing_to_do_keeps_no_slots_from_another(nodes: Any) -> None:
    """P8: it holds all pages, from a time when it had more to do."""
    pair = nodes(num_encoders=2)
    pair.send(1, encoder=0)
    pair.request(1)
    pair.run(lambda: pair.num_finished() == 1 and pair.is_clean())
    while library_of(pair.encoders[0].client).requests.lease._lease_page() is not None:
        pass
    assert pair.encode.control.lanes.pages_of(pair.encoders[0].lane) == [0, 1]
    pair.send(2, encoder=1)
    pair.request(2)
    pair.run(lambda: pair.num_finished() == 2, limit_s=2.0)


def test_an_encoder_that_dies_leaves_room_for_the_others(nodes: Any) -> None:
    """P3: what it had opened before anybody asked for it counts no more."""
    pair = nodes(num_encoders=2)
    for room in range(NUM_SLOTS):
        pair.send(room, encoder=0)
    survivor = pair.send(NUM_SLOTS, encoder=1)
    pair.run(lambda: pair.encode.control.slot_waiters.lanes() == [] and survivor.is_waiting)
    pair.encoders[0].die()
    pair.run(lambda: not survivor.is_waiting, limit_s=5.0)
    pair.request(NUM_SLOTS)
    pair.run(lambda: survivor.poll() == Phase.Success)


# ---- what can be done with a request that waits


def full_encode() -> tuple[EncodeAlone, list[EmbeddingSender]]:
    """As many as may be opened before anybody asks for them."""
    node = EncodeAlone()
    return node, [node.sender(1000 + room, 4, rows=0) for room in range(node.control.limits.num_slots // 2)]


class FullLanguage(LanguageAlone):
    """Every slot is held: by requests that have granted nothing, and one, `spared`, by the test."""

    def __init__(self) -> None:
        super().__init__()
        slot = library_of(self.client).requests.lease._take()
        assert slot is not None
        self.spared = slot
        for room in range(1, self.control.limits.num_slots):
            self.receiver(100 + room, None)


def test_a_call_that_waits_can_be_used_and_goes_on_when_its_room_is_asked_for(nodes: Any) -> None:
    """P8: what was announced and written before it had a slot is in it then."""
    node, _ = full_encode()
    sender = node.client.sender(1, 8, aux_datas=range(16))
    sender.announce()
    node.write(sender, 0, 4)
    assert sender.is_waiting
    assert (sender.poll(), sender.sent_tokens, sender.failure_exception()) == (Phase.Bootstrapping, 0, None)
    assert "slot=none" in repr(sender)
    assert sender.phase_path() == [Phase.Bootstrapping]
    node.init(1, [3, 4])
    assert not sender.is_waiting
    assert node.slots.get(sender.slot, Slot.TOTAL) == 8
    node.write(sender, 4, 8)
    assert node.blocks_written() == [[3], [4]]
    assert node.slots.aux(sender.slot).tolist()[2:] == list(range(2, 16))


def test_rooms_that_are_asked_for_with_no_block_leave_a_quarter_of_the_slots(nodes: Any) -> None:
    """P8, D8: for those whose blocks are there, which then wait for nobody."""
    node, first = full_encode()
    count = node.control.limits.num_slots
    for room in range(count // 2):
        node.init(room, [])
    senders = [node.client.sender(room, 4) for room in range(count // 2)]
    node.advance(1.0)
    num_open = sum(not sender.is_waiting for sender in senders)
    assert count - len(first) - num_open == count // 4 - 1
    last = senders[-1]
    assert last.is_waiting
    node.init(last.room, [3])
    node.settle()
    assert not last.is_waiting


def test_a_room_that_is_asked_for_before_its_call_takes_a_slot_at_once(nodes: Any) -> None:
    """P8: the client asks, and is told without the next init."""
    node, _ = full_encode()
    node.init(1, [3])
    sender = node.client.sender(1, 4)
    assert sender.is_waiting
    node.settle()
    assert not sender.is_waiting


def test_a_call_that_joins_while_the_library_thread_finds_nobody_hears_that_it_is_wanted(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: it is announced after the look at who waits, and so not among what is taken for read."""
    node, _ = full_encode()
    node.init(1, [3])
    line, senders = library_of(node.client).slot_queue, []
    stop = line._stop_listening

    def joined(*args: Any) -> None:
        monkeypatch.undo()
        senders.append(node.client.sender(1, 4))
        node.actor("bootstrap").step()
        assert node.control.wanted.end == 1
        stop(*args)

    monkeypatch.setattr(line, "_stop_listening", joined)
    library_of(node.client).turn()
    node.settle()
    assert not senders[0].is_waiting


def test_a_call_that_asks_while_the_library_thread_takes_the_mark_away_is_asked_for_again(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: nobody has announced its room, because no mark stood."""
    node, _ = full_encode()
    before = node.client.sender(2, 4)
    node.settle()
    node.init(2, [4])
    assert not before.is_waiting
    node.init(1, [3])
    line, senders = library_of(node.client).slot_queue, []
    assert not len(line)
    line._is_marked = True
    set_mark = library_of(node.client).attachment.control.room_waiters.set

    def asked(lane: int, waits: bool) -> None:
        monkeypatch.undo()
        senders.append(node.client.sender(1, 4))
        set_mark(lane, waits)
        node.actor("bootstrap").step()

    monkeypatch.setattr(library_of(node.client).attachment.control.room_waiters, "set", asked)
    library_of(node.client).turn()
    node.settle()
    assert not senders[0].is_waiting


def test_who_waits_is_served_in_order_when_half_of_the_slots_are_free_again(nodes: Any) -> None:
    """R22: and not before."""
    node, first = full_encode()
    later = [node.client.sender(room, 4) for room in range(3)]
    node.settle()
    assert all(sender.is_waiting for sender in later)
    for sender in first[:2]:
        sender.abort()
    node.settle()
    assert [sender.is_waiting for sender in later] == [False, False, True]


def test_a_call_that_waits_and_is_aborted_tells_the_other_side(nodes: Any) -> None:
    """P5, D11: it takes a slot to end in."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    sender.abort("no image after all")
    sender.abort("a second time")
    node.settle()
    assert isinstance(sender.failure_exception(), TransferAborted)
    assert failure_of(sender).reason == "no image after all"
    assert sender in node.client.poll()
    node.forget_sent()
    node.init(1, [3])
    assert ["no image after all" in message.reason for message in node.sent(msg.Refused)] == [True]


def test_a_room_that_is_aborted_there_ends_the_call_that_waits_here(nodes: Any) -> None:
    """D11, R15: with the reason."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    node.abort(1, reason="not wanted any more")
    node.settle()
    assert "not wanted any more" in str(sender.failure_exception())


@pytest.mark.parametrize("is_full", [False, True])
def test_the_deadline_of_a_call_counts_while_it_waits(nodes: Any, is_full: bool) -> None:
    """D1, P8: for a slot that it may have, or when every slot is in use."""
    node, _ = full_encode()
    if is_full:
        while (slot := library_of(node.client).requests.lease._take()) is not None:
            assert slot >= 0
    sender = node.client.sender(1, 4, timeout_s=1.0)
    node.write(sender, 0, 4)
    node.advance(0.8)
    assert sender.poll() == Phase.Bootstrapping
    node.advance(0.6)
    assert isinstance(sender.failure_exception(), TransferTimeout)
    assert "waiting for a slot" in str(sender.failure_exception())
    assert sender in node.client.poll()
    assert (sender.slot == NO_SLOT) == is_full
    node.advance(0.2, until=lambda: sender.done)
    assert sender.done
    assert node.control.lanes.get(node.client.lane, Lane.UNSENT_BYTES) == 0
    assert sender.stamps_ns[Phase.Failed] > 0
    node.client.sender(2, 4)


def test_a_receiver_that_waits_can_be_used(nodes: Any) -> None:
    """P8: it grants nothing, and tells its encode node that it is there as soon as it has a slot."""
    node = LanguageAlone()
    held = [node.receiver(100 + room, None) for room in range(node.control.limits.num_slots)]
    receiver = node.client.receiver(ENCODE_ADDRESS, 1)
    assert receiver.is_waiting
    assert not receiver.handshake_done
    assert not receiver.needs_resume
    assert (receiver.total_embedding_length, receiver.granted_tokens, receiver.ready_tokens, receiver.num_rounds) == (
        0,
        0,
        0,
        0,
    )
    assert receiver.allocate(4).tolist() == []
    assert receiver.current_allocation().tolist() == []
    assert receiver.release_drained(0) == 0
    with pytest.raises(ValueError, match="waits for a slot"):
        receiver.init([3])
    receiver.init([])
    with pytest.raises(ValueError, match="room: 1 is in use"):
        node.client.receiver(ENCODE_ADDRESS, 1)
    node.forget_sent()
    held[0].clear()
    node.settle()
    node.abort_ack(held[0])
    node.advance(0.1)
    assert not receiver.is_waiting
    assert {message.key.room for message in node.sent(msg.Init)} == {1}


def test_a_receiver_that_waits_and_is_late_goes(nodes: Any) -> None:
    """P5, D1: without ever having had a slot."""
    node = FullLanguage()
    late = node.client.receiver(ENCODE_ADDRESS, 2, timeout_s=1.0)
    node.advance(1.5)
    failure = late.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.TIMEOUT
    assert set(node.client.poll()) == {late}
    assert late.why_not_retryable == ""


@pytest.mark.parametrize("how", ["abort", "clear"])
def test_a_receiver_that_waits_and_is_given_up_ends_in_the_next_turn(nodes: Any, how: str) -> None:
    """P5, P8: nobody was told that it is there, so nobody has to be told that it is not; those behind wait on, the room
    is free.
    """
    node = FullLanguage()
    given_up, behind = (node.client.receiver(ENCODE_ADDRESS, room) for room in (1, 2))
    given_up.init([])
    node.forget_sent()
    getattr(given_up, how)()
    library_of(node.client).turn()
    failure = given_up.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.ABORTED
    assert (given_up.slot, given_up.stamps_ns[Phase.Failed]) == (NO_SLOT, node.now_ns)
    assert given_up in node.client.poll()
    assert behind.is_waiting
    assert node.control.lanes.get(node.client.lane, Lane.NUM_WAITING) == 1
    node.settle()
    assert node.wire.sent == []
    assert node.client.receiver(ENCODE_ADDRESS, 1).is_waiting
    with pytest.raises(ValueError, match="cleared" if how == "clear" else "ABORTED"):
        given_up.retry(ENCODE_ADDRESS, 0)


def test_a_receiver_that_waits_and_is_given_up_takes_a_slot_that_has_come_free(nodes: Any) -> None:
    """D11: its encoder then hears of it, and not by its own deadline."""
    node = FullLanguage()
    given_up = node.client.receiver(ENCODE_ADDRESS, 1)
    node.forget_sent()
    library_of(node.client).requests.lease._free[0].append(node.spared)
    given_up.abort("no image after all")
    node.settle()
    assert given_up.slot == node.spared
    assert isinstance(given_up.failure_exception(), TransferAborted)
    assert [(message.key.room, message.reason) for message in node.sent(msg.Abort)] == [(1, "no image after all")]


def test_a_receiver_whose_time_ends_while_it_is_given_up_has_ended_once(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: the library thread may end it between the two looks of the caller's thread; the first reason stands."""
    node = FullLanguage()
    receiver = node.client.receiver(ENCODE_ADDRESS, 1, timeout_s=1.0)
    give_up = receiver.give_up

    def too_late(code: FailureCode, reason: str) -> None:
        monkeypatch.undo()
        node.world.now_ns += 2 * NS
        library_of(node.client).turn()
        give_up(code, reason)

    monkeypatch.setattr(receiver, "give_up", too_late)
    receiver.abort()
    assert isinstance(receiver.failure_exception(), TransferTimeout)
    assert not library_of(node.client).slot_queue._first


def test_requests_in_a_queue_end_in_time_whatever_waits_before_them(nodes: Any) -> None:
    """D1, P8: their deadlines and aborts count, though the first of them has all the time in the world."""
    node = LanguageAlone()
    queue = TransferQueue(node.client)
    for room in range(node.control.limits.num_slots):
        node.receiver(100 + room, None)
    times_s = ((1, 99), (2, 1), (3, 99))
    patient, late, unwanted = (
        EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS, timeout_s=s) for room, s in times_s
    )
    for request in (patient, late, unwanted):
        queue.add(request)
    unwanted.abort("not needed")
    node.advance(1.5)
    _, failed = queue.pop_transferred()
    codes = {request.room: request.failure and request.failure.code for request in failed}
    assert codes == {2: FailureCode.TIMEOUT, 3: FailureCode.ABORTED}
    assert len(queue) == 1
    assert node.control.lanes.get(node.client.lane, Lane.NUM_WAITING) == 1
    assert node.control.blocks.waiters() == []  # it is no block that they wait for


def test_only_a_full_line_is_an_error_which_says_when_to_try_again(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """P12: so many a client; it is a RuntimeError, too."""
    monkeypatch.setattr(waiting, "MAX_WAITING", 8)
    monkeypatch.setattr("embridge.pipeline.scheduler.transfer_queue.MAX_WAITING", 8)
    node, _ = full_encode()
    for room in range(8):
        node.client.sender(room, 4)
    node.world.now_ns += 8 * NS
    with pytest.raises(NodeBusyError, match=r"wait for a slot: 8 >= 8; try again in 1 s") as busy:
        node.client.sender(8, 4)
    assert isinstance(busy.value, RuntimeError)
    assert busy.value.retry_after_s == 1.0
    assert library_of(node.client).requests.waiting_for(8) is None
    language = LanguageAlone()
    prealloc = PreallocQueue(language.client, TransferQueue(language.client))
    for room in range(8):
        prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS))
    refused = EmbeddingRequest(room=8, bootstrap_addr=ENCODE_ADDRESS)
    with pytest.raises(NodeBusyError, match="wait for a slot: 8 >= 8"):
        prealloc.add(refused)
    library_of(language.client).turn()
    prealloc.add(refused)


def test_those_who_wait_when_the_client_closes_or_its_node_goes_have_failed(nodes: Any) -> None:
    """P5."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).slot_queue.close()
    assert "this client was closed" in str(sender.failure_exception())
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).attachment.node_gone = True
    assert "own node is gone" in str(sender.failure_exception())
    assert sender in node.client.poll()


def test_those_who_have_left_the_line_when_the_node_has_gone_are_named_by_the_next_poll(nodes: Any) -> None:
    """P8: a caller that goes by `poll` hears of their end, though the library thread has ended them first."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).attachment.node_gone = True
    library_of(node.client).turn()
    assert len(library_of(node.client).slot_queue) == 0
    assert sender in node.client.poll()


def test_marks_of_a_client_that_died_while_it_waited_are_gone(nodes: Any) -> None:
    """P3: nobody rings for it any more, and its seat is another's."""
    node, _ = full_encode()
    node.client.sender(1, 4)
    node.settle()
    assert node.control.room_waiters.lanes() == [node.client.lane]
    node.node.clients[0].die()
    node.advance(1.0, until=lambda: not node.control.room_waiters.has(node.client.lane))
    assert not node.control.room_waiters.has(node.client.lane)
    assert node.control.lanes.num_early() == 0


def test_one_that_died_while_it_waited_counts_for_nothing_while_its_peers_still_hold_its_slots(nodes: Any) -> None:
    """P3, P8: others would give pages away, ring, and ask for fences, for somebody who is gone, as long as a peer says
    nothing.
    """
    node = EncodeAlone()
    other = node.new_client()
    lane, control = node.client.lane, node.control
    node.sender(1, 4)
    node.init(1, [3])
    marks = (control.slot_waiters, control.room_waiters, control.blocks._waiters)
    for bits in marks:
        bits.set(lane, True)
    lease = SlotLease(control, other.lane)
    assert lease._lease_page() is not None
    node.node.clients[0].die()
    node.settle()
    assert control.lanes.get(lane, Lane.STATE) == LaneState.DEAD
    assert [bits.has(lane) for bits in marks] == [True] * 3
    assert [control.slot_waiters.lanes(), control.room_waiters.lanes(), control.blocks.waiters()] == [[]] * 3
    lease.share(is_needy=False)
    assert control.lanes.pages_of(other.lane) != []
    node.close(1)
    node.settle()
    assert control.lanes.get(lane, Lane.STATE) == LaneState.FREE
    assert [bits.has(lane) for bits in marks] == [False] * 3


# ---- the log


def test_a_log_that_was_overrun_shows_the_latest_rooms(nodes: Any) -> None:
    """P8: what is lost is announced again with the next init."""
    node = EncodeAlone()
    log = node.control.wanted
    end = log.capacity + 5
    for room in range(end):
        log.append(MAX_ROOM - room, can_end=room % 2 == 1)
    assert log.since(0) == ([(MAX_ROOM - room, room % 2 == 1) for room in range(5, end)], end)
    assert log.since(end - 2) == ([(MAX_ROOM - end + 2, end % 2 == 1), (MAX_ROOM - end + 1, end % 2 == 0)], end)


def test_nobody_writes_the_log_while_nobody_waits(nodes: Any) -> None:
    """P12: a node whose calls all have slots pays nothing for it."""
    node = EncodeAlone()
    node.init(1, [3])
    assert node.control.wanted.end == 0


# ---- pages of slots


def test_pages_go_round_and_no_slot_is_lost_or_doubled(nodes: Any) -> None:
    """P1, R16: two clients take, leave and share at random; each slot is held by one of them, or free with one, or in a
    free page.
    """
    node = EncodeAlone()
    control = node.control
    other = node.new_client()
    leases = [SlotLease(control, lane) for lane in (node.client.lane, other.lane)]
    rng = random.Random(5)
    held: list[list[tuple[int, int]]] = [[], []]
    num_early: list[int] = []
    for _ in range(4000):
        i = rng.randrange(2)
        lease = leases[i]
        if rng.random() < 0.5:
            is_early = rng.random() < 0.3
            opened = lease.open(1, 1, 2, lambda _: None, is_early=is_early)
            control.slot_waiters.set(i, opened is None and not is_early)
            if opened is not None:
                assert all(opened[0] != slot for slots in held for slot, _ in slots)
                held[i].append(opened)
        elif held[i]:
            slot, epoch = held[i].pop(rng.randrange(len(held[i])) if rng.random() < 0.3 else 0)
            control.status.advance(slot, epoch, Phase.Failed, 0, 1)
            lease.leave(slot, epoch)
            control.slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
        lease.share(is_needy=control.slot_waiters.has(i))
        num_early.append(control.lanes.num_early())
        assert sorted(lease.pages.tolist()) == control.lanes.pages_of(i)
    assert max(num_early) == control.lanes.num_pages // 2
    for i, lease in enumerate(leases):
        control.slot_waiters.set(i, False)
        for slot, epoch in held[i]:
            lease.leave(slot, epoch)
            control.slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
    for lease in leases:
        lease.collect()
        lease.share(is_needy=False)
        assert {page: sorted(free) for page, free in lease._free.items()} == {
            page: list(range(64 * page, 64 * page + 64)) for page in lease.pages.tolist()
        }
    assert control.lanes.num_early() == 0


class Handed(dict[int, set[int]]):
    """The early pages of a client, one of which is given away just when it is to be made early."""

    give: Callable[[], None] | None = None

    def setdefault(self, page: int, early: set[int]) -> set[int]:
        if self.give is not None:
            give, self.give = self.give, None
            give()
        return super().setdefault(page, early)


def test_a_page_that_is_given_away_while_it_is_made_early_is_not_counted(nodes: Any) -> None:
    """P8: the library thread gives it to a client that waits, in between."""
    node = EncodeAlone()
    control, lane = node.control, node.client.lane
    lease = SlotLease(control, lane)
    assert lease._lease_page() is not None
    control.slot_waiters.set(node.new_client().lane, True)
    early = lease._early = Handed()
    early.give = lambda: lease.share(is_needy=False)
    lease.open(1, 1, 2, lambda _: None, is_early=True)
    lease.share(is_needy=False)
    assert control.lanes.num_early() == len(early) == sum(map(len, early.values()))


class Crossed(set[int]):
    """The early slots of a page.

    The caller's thread adds one when the library thread has found it empty, and takes it out at once.
    """

    def __init__(self, slots: set[int], caller: threading.Thread) -> None:
        super().__init__(slots)
        self.caller = caller
        self.has_got, self.is_ended, self.has_added, self.is_looked_at = (threading.Event() for _ in range(4))

    def add(self, slot: int) -> None:
        self.has_got.set()
        assert self.is_ended.wait(WATCHDOG_S)
        super().add(slot)
        self.has_added.set()
        assert self.is_looked_at.wait(WATCHDOG_S)

    def __bool__(self) -> bool:
        if not len(self) and not self.is_looked_at.is_set():
            if not self.num_looks:
                self.num_looks = 1
                return False
            self.is_ended.set()
            assert self.has_added.wait(WATCHDOG_S)
            self.is_looked_at.set()
            self.caller.join(WATCHDOG_S)
            return True
        return len(self) > 0

    num_looks = 0


def test_a_page_of_which_the_last_early_slot_leaves_while_another_is_taken_is_not_counted(nodes: Any) -> None:
    """P8: neither thread has a slot of it then, each having made way for the other."""
    node = EncodeAlone()
    control = node.control
    lease = SlotLease(control, node.client.lane)
    first = lease.open(1, 1, 2, lambda _: None, is_early=True)
    assert first is not None
    opened: list[object] = []
    caller = threading.Thread(target=lambda: opened.append(lease.open(2, 1, 2, lambda _: None, is_early=True)))
    early = lease._early[0] = Crossed(lease._early[0], caller)
    caller.start()
    assert early.has_got.wait(WATCHDOG_S)
    lease.leave(*first)
    caller.join(WATCHDOG_S)
    assert opened == [None]
    lease.share(is_needy=False)
    assert (control.lanes.num_early(), lease._early) == (0, {})
