"""More rooms than slots: calls wait for a slot, and no two tables wait for each other.

Two whole nodes in one thread, of two pages of slots each, under the simulation's checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.rows import arrived, rows_of
from support.simulation import LIMITS, ROWS_A_ROOM, ClientActor, Faults, SimulatedNode, World

from embridge.allocator.geometry import SLOTS_PER_PAGE, Geometry, Role
from embridge.allocator.records import Lane
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import NO_SLOT
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue

GEOMETRY = Geometry(hidden_size=2, block_size=4, num_blocks=16)
NUM_SLOTS = 128  # two pages
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
                assert arrived(request.result).fill_ids.tolist() == [
                    request.room * ROWS_A_ROOM + row for row in range(TOTAL)
                ]
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
        (1, Faults(), 2),
        pytest.param(2, LOSSY, 4, marks=pytest.mark.storm),
        pytest.param(3, replace(LOSSY, lost_marks=0.5), 4, marks=pytest.mark.storm),
    ],
    ids=["calm", "lossy", "lossy, and marks are lost"],
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
        pair.run(lambda: pair.num_finished() > 0, limit_s=3.0)


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
