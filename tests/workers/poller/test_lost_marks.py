"""A mark that is lost delays a request and loses none: whatever word was behind it, the slow look finds it.

A mark is a dirty bit of a slot. Its writer may die before it, or it may be taken when the request is not entered yet.
Status words are compared all the same; what else a request waits for (its peer, its length, that rows are ready) shows
itself in no status word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.alone import EncodeAlone
from support.rows import rows_of
from support.simulation import ROWS_A_ROOM, ClientActor, Faults, SimulatedNode, World

from embridge.allocator._core import TurnTaker
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.records import Destination, Slot
from embridge.allocator.rings import Kick, Record
from embridge.allocator.slot_changes import SlotChanges
from embridge.allocator.status import Phase
from embridge.pipeline.client import rounds
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.poller.encode import Publisher
from embridge.workers.poller.room_lists import At, ToldRooms
from embridge.workers.timing import NS

GEOMETRY = Geometry(hidden_size=2, block_size=4, num_blocks=16)
TOTAL = 6
NO_MARKS = Faults(lost_marks=1.0)


class Pair:
    """An encode and a language node with a client each."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.world = World(seed, faults=faults)
        self.encode, self.language = (
            self._node(name, role) for name, role in (("encode", Role.ENCODE), ("language", Role.LANGUAGE))
        )
        self.encoder, self.scheduler = self.encode.clients[0], self.language.clients[0]
        self.queue = TransferQueue(self.scheduler.client)
        self.finished: list[EmbeddingRequest] = []

    def _node(self, name: str, role: Role) -> SimulatedNode:
        node = self.world.node(name, role, GEOMETRY, node_id=1 + role)
        node.new_client()
        return node

    def send(self, room: int) -> EmbeddingSender:
        sender = self.encoder.client.sender(room, TOTAL)
        ids = torch.arange(room * ROWS_A_ROOM, room * ROWS_A_ROOM + TOTAL, dtype=torch.int32)
        sender.send_embedding(*rows_of(GEOMETRY, room, 0, TOTAL)._replace(fill_ids=ids))
        return sender

    def request(self, room: int) -> EmbeddingRequest:
        request = EmbeddingRequest(room=room, bootstrap_addr=self.encode.own_addresses.bootstrap_addr)
        self.queue.add(request)
        return request

    def num_finished(self) -> int:
        finished, failed = self.queue.pop_transferred()
        assert not failed, failed[0].failure
        for request in finished:
            request.release()
        self.finished += finished
        return len(self.finished)

    def open_before_the_handshake(self, num_rooms: int) -> None:
        """Each has been compared before its peer is known: no status word rises for that."""
        self.world.network.cut = {("encode", "language")}
        for room in range(num_rooms):
            self.request(room)
        now_ns = self.world.now_ns
        self.run(lambda: self.world.now_ns > now_ns + NS)
        self.world.network.cut.clear()
        for room in range(num_rooms):
            self.send(room)

    def run(self, done: Callable[[], bool], limit_s: float = 60.0) -> None:
        self.world.run(done, limit_s=limit_s)


@pytest.fixture
def pairs() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(seed: int = 1, faults: Faults | None = None) -> Pair:
        made.append(Pair(seed, faults or Faults()))
        return made[-1]

    yield make
    while made:
        made.pop().world.close()


@pytest.mark.parametrize("seed", range(3))
def test_requests_arrive_though_every_mark_is_lost(pairs: Any, seed: int) -> None:
    """P8: the peer, the length and what is ready stand in words of the slots' records, which are compared, too."""
    pair = pairs(seed, NO_MARKS)
    pair.open_before_the_handshake(100)
    pair.run(lambda: pair.num_finished() == 100)


@pytest.mark.parametrize("instead", ["the round", "the comparison of records"])
def test_either_of_two_slow_looks_is_enough(pairs: Any, monkeypatch: pytest.MonkeyPatch, instead: str) -> None:
    """P8: a round comes by every request, and a comparison finds the records that have changed."""
    if instead == "the round":
        monkeypatch.setattr(SlotChanges, "take_some", lambda *_: set())
    else:
        monkeypatch.setattr(rounds.Round, "some", lambda _: [])
    pair = pairs(1, NO_MARKS)
    pair.open_before_the_handshake(1)
    pair.run(lambda: pair.num_finished() == 1)


def test_without_both_they_wait_for_ever(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: the run above would see it: the comparison of status words alone finds no peer."""
    monkeypatch.setattr(rounds.Round, "some", lambda _: [])
    monkeypatch.setattr(SlotChanges, "take_some", lambda *_: set())
    pair = pairs(1, NO_MARKS)
    pair.open_before_the_handshake(1)
    with pytest.raises(AssertionError, match="not done within"):
        pair.run(lambda: pair.num_finished() == 1)


def test_a_handle_that_was_woken_after_it_has_left_takes_nothing_from_the_next_one_in_its_slot(
    pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8, R16: a mark names the slot's present request, whoever else asked to be looked at in the same turn."""
    pair = pairs()
    receiver_of = pair.scheduler.client.receiver
    address = pair.encode.own_addresses.bootstrap_addr
    old = receiver_of(address, 1)
    pair.send(1)
    pair.run(lambda: old.handshake_done)
    old.init(old.allocate(2))
    pair.run(lambda: old.poll() == Phase.Success)
    old.clear()
    pair.run(
        lambda: old._final is not None and pair.language.control.slots.get(old.slot, Slot.RELEASED_EPOCH) >= old.epoch
    )
    # so that its slot is the next to be taken
    library_of(pair.scheduler.client).requests.lease._free[0] = deque([old.slot])
    new = receiver_of(address, 2)
    assert new.slot == old.slot
    served: list[TransferHandle] = []
    monkeypatch.setattr(new, "service", lambda: served.append(new))
    pair.scheduler.lose_marks(1)
    pair.language.control.status.mark(new.slot, 1)
    library = library_of(pair.scheduler.client)
    with TurnTaker(library.view.turn):  # as the library thread has it: a caller leaves what it has to do to that one
        old.clear()
    assert list(library._to_serve) == [old]
    library._slow_ns = pair.world.now_ns + 10**12  # no slow look: the mark alone
    library.turn()
    assert served == [new]
    new.abort()


def test_a_slot_is_given_back_once_though_two_threads_collect_it(pairs: Any) -> None:
    """P3, R16: who saw the release of an earlier epoch, and comes late, takes back nothing of a later one."""
    pair = pairs()
    lease: Any = library_of(pair.scheduler.client).requests.lease
    slot, epoch = lease.open(1, 1, 2, lambda *_: None)
    lease.leave(slot, epoch)
    slots = pair.language.control.slots
    slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
    get = lease._slots.get

    def meanwhile(at: int, field: Slot) -> int:
        """The other thread collects it, opens it again and leaves it, between the two steps of this one."""
        value = int(get(at, field))
        lease._slots.get = get
        lease.collect()
        lease._free[0] = deque([slot])
        again = lease.open(2, 1, 2, lambda *_: None)
        lease.leave(*again)
        return value

    lease._slots.get = meanwhile
    lease.collect()
    assert list(lease._free[0]) == []
    slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch + 1)
    lease.collect()
    assert list(lease._free[0]) == [slot]


def test_a_rise_that_came_before_the_request_was_entered_is_made_up_for(
    pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: another thread took the bit, and compared the word, between the opening of the slot and the entry of its
    handle.
    """
    pair = pairs()
    client, actor = pair.scheduler.client, pair.scheduler
    entered = TransferHandle.entered

    def late(handle: TransferHandle, slot: int, epoch: int) -> None:
        entered(handle, slot, epoch)
        pair.language.control.status.advance(handle.slot, handle.epoch, Phase.WaitingForInput, 0, pair.world.now_ns)
        _let_time_pass(pair, actor)
        assert client.poll() == []
        library_of(client).turn()

    monkeypatch.setattr(TransferHandle, "entered", late)
    receiver = client.receiver(pair.encode.own_addresses.bootstrap_addr, 1)
    pair.run(lambda: receiver in client.poll(), limit_s=1.0)


def test_what_a_poller_keeps_of_a_request_is_not_the_next_ones(pairs: Any) -> None:
    """P1, R16: it looks once more between the end of a request and its release; then its slot is opened again."""
    pair = pairs()
    pair.request(1)
    sender = pair.send(1)
    pair.run(lambda: pair.num_finished() == 1 and sender._final is not None)
    poller = pair.encode.role("poller").role
    pair.run(lambda: not poller._live)
    slots, slot, epoch = pair.encode.control.slots, sender.slot, sender.epoch
    pair.run(lambda: slots.get(slot, Slot.RELEASED_EPOCH) >= epoch)
    poller._ctx.is_current = lambda *_: True  # as it was a moment before the release
    poller._kicked(Record(Kick.ABORTED, slot, epoch, 0))
    poller._enter(slot, epoch)
    poller._read_progress(slot)
    poller._dsts.set(slot, 0, Destination.CLOSED, 0)
    poller._tell_all(slot, epoch, Phase.Success, poller._sent[slot])
    assert list(poller._by_key.values()) == [[(slot, epoch, 0)]]
    poller._ctx.is_current = poller._control.is_current
    library_of(pair.encoder.client).requests.lease._free[0] = deque([slot])  # so that its slot is the next to be taken
    again = pair.encoder.client.sender(2, TOTAL)
    assert (again.slot, again.epoch) == (slot, epoch + 1)
    pair.run(lambda: poller._live.get(slot) == epoch + 1)
    assert poller._by_key == {}
    assert poller._keys == {}
    assert poller._acks_due == set()
    assert slot not in poller._told
    again.abort()
    pair.run(lambda: not poller._live)


def _let_time_pass(pair: Pair, actor: ClientActor) -> None:
    """Long enough for the slow looks of both threads."""
    pair.world.now_ns += 10**9
    actor.due_ns = 0


def test_a_round_comes_by_everything_and_takes_a_share_at_a_time() -> None:
    """P8: and stays cheap, with sixty-four thousand in flight."""
    table = {slot: slot for slot in range(64_000)}
    looks = rounds.Round(table)
    seen: list[int] = []
    for _ in range(rounds.LOOKS_A_ROUND):
        some = looks.some()
        assert len(some) <= 64_000 // rounds.LOOKS_A_ROUND
        seen += some
    assert sorted(seen) == list(table)
    table.clear()
    assert looks.some() == []


def test_a_bootstrap_that_is_restarted_finds_the_latest_request_of_a_slot_there(pairs: Any) -> None:
    """R15, R16, P11: one before it has ended, and is not released yet; it stands behind the new one in the table of
    slots.
    """
    node = EncodeAlone()
    lease = library_of(node.client).requests.lease
    lease._lease_page()
    lease._free[0] = deque([5, 1])
    old = node.sender(1, 4)
    node.init(1, [3], slot=7, epoch=1)
    assert old.poll() == Phase.Success
    new = node.sender(2, 8)
    node.init(2, [4], slot=7, epoch=2)
    assert (old.slot, new.slot) == (5, 1)
    node.restart("bootstrap")
    node.settle()
    node.forget_sent()
    key, own = msg.RequestKey(7, 2, 2), "tcp://10.1.0.10:2"
    node.hears("bootstrap", msg.Resume(node.envelope(), key, own, 7, 1, 1 << 32, [4, 5], 0, 1, 8, 4))
    assert node.sent(msg.Refused) == []
    assert new.poll() == Phase.Success


def _opened_again(node: EncodeAlone) -> tuple[EmbeddingSender, EmbeddingSender]:
    """A sender that has succeeded and is released, and one of another room that has its slot since."""
    lease = library_of(node.client).requests.lease
    lease._lease_page()
    lease._free[0] = deque([5])
    old = node.sender(1, 4)
    node.init(1, [3])
    assert old.poll() == Phase.Success
    node.close(1)
    assert node.slots.get(old.slot, Slot.RELEASED_EPOCH) == old.epoch
    lease.collect()
    lease._free[0] = deque([5])
    new = node.sender(2, 8, rows=0)
    assert (new.slot, new.epoch) == (old.slot, old.epoch + 1)
    node.forget_sent()
    return old, new


def test_no_report_is_made_of_the_words_of_two_requests(pairs: Any) -> None:
    """R16, P6: a request is looked at once more while it is released, and its slot is opened, joined and read
    meanwhile.

    The next one's destination would hear that all of its rows have come.
    """
    node = EncodeAlone()
    old, new = _opened_again(node)
    node.init(2, [4])
    node.forget_sent()
    poller = node.actor("poller").role
    assert isinstance(poller, Publisher)
    poller._out = []
    poller._tell(old.slot, old.epoch, 0, Phase.Success, 4)
    poller._serve(old.slot, old.epoch)
    assert poller._out == []
    poller._live[old.slot] = old.epoch
    looks = iter([True])
    is_current = poller._ctx.is_current
    poller._ctx.is_current = lambda *at: next(looks, False) or is_current(*at)
    assert poller._tell_again(ToldRooms(), [At(old.slot, old.epoch, 0)]) == []
    poller._ctx.is_current = is_current
    poller._serve(new.slot, new.epoch)
    assert [room.key.room for room in poller._tell_again(ToldRooms(), [At(new.slot, new.epoch, 0)])] == [2]


def test_a_request_whose_slot_is_opened_while_it_is_told_of_has_no_destination_any_more() -> None:
    """R16, D4: it has been looked at once more, and nobody has joined the next one yet."""
    node = EncodeAlone()
    old, _ = _opened_again(node)
    poller = node.actor("poller").role
    assert isinstance(poller, Publisher)
    poller._out = []
    poller._tell(old.slot, old.epoch, 0, Phase.Success, 4)
    poller._ctx.is_current = lambda *_: True
    assert poller._tell_again(ToldRooms(), [At(old.slot, old.epoch, 0)]) == []
    assert poller._out == []
