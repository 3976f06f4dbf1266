"""P17: messages that are late have no effect: of an older epoch, incarnation, registration or room; all of them, in any
order, twice.

Two whole nodes in one thread (`support.simulation`), each with its key. A third party keeps every message that was ever
on its way, and delivers all of them again: while later requests run, and after everything has ended.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from support.rows import arrived, rows_of
from support.simulation import ROWS_A_ROOM, Flight, Network, SimulatedNode, World

from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.status import Phase, split
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.timing import NS

GEOMETRY = Geometry(hidden_size=2, block_size=4, num_blocks=4)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    while Pair.made:
        Pair.made.pop().world.close()


class Recorder(Network):
    """A network that keeps what it carried."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.kept: list[Flight] = []

    def _deliver(self, flight: Flight) -> None:
        if len(self.kept) < 5000:
            self.kept.append(flight)
        super()._deliver(flight)

    def replay(self, flights: list[Flight]) -> None:
        """All of them again, twice, in an order that the seed says, within half a second."""
        for flight in flights * 2:
            self._number += 1
            due = self._world.now_ns + self._world.rng.randint(0, NS // 2)
            heapq.heappush(
                self._flights, Flight(due, self._number, flight.target, flight.data, flight.origin, flight.address)
            )


class Pair:
    """An encode and a language node, a client on each, and requests that go from one to the other."""

    made: ClassVar[list[Pair]] = []  # to be closed by the fixture

    def __init__(self, seed: int) -> None:
        Pair.made.append(self)
        self.world = World(seed)
        self.network = self.world.network = Recorder(self.world)
        self.encode = self.world.node("encode", Role.ENCODE, GEOMETRY, node_id=1, key="key of encode")
        self.encoder = self.encode.new_client()
        self.room = 0
        self.language = self.born(1)

    def born(self, incarnation: int) -> SimulatedNode:
        node = self.world.node(
            "language", Role.LANGUAGE, GEOMETRY, node_id=10, incarnation=incarnation, key="key of language"
        )
        self.client = node.new_client()
        self.queue = TransferQueue(self.client)
        return node

    def transfer(self, total: int, *, aborted: bool = False) -> None:
        """One request from its opening to its end, and the slot released on both sides."""
        self.room += 1
        request = EmbeddingRequest(room=self.room, bootstrap_addr=self.encode.own_addresses.bootstrap_addr)
        self.queue.add(request)
        sender = self.encoder.sender(self.room, total)
        ids = torch.arange(self.room * ROWS_A_ROOM, self.room * ROWS_A_ROOM + total, dtype=torch.int32)
        rows = rows_of(GEOMETRY, self.room, 0, total)._replace(fill_ids=ids)
        end = total // 2 if aborted else total
        sender.write(0, *rows.cut(end))
        finished: list[EmbeddingRequest] = []
        failed: list[EmbeddingRequest] = []

        def ended() -> bool:
            self.client.poll()
            done, lost = self.queue.pop_transferred()
            finished.extend(done)
            failed.extend(lost)
            if aborted and sender.poll() == Phase.WaitingForInput:
                sender.abort("given up")
            return bool(finished or failed)

        self.world.run(ended, limit_s=200.0)
        assert bool(failed) == aborted, failed and failed[0].failure
        for it in finished + failed:
            if it in finished:
                assert it.result is not None
                assert torch.equal(arrived(it.result).fill_ids, ids)
            it.release()
        sender.clear()
        self.world.run(self.world.is_clean, limit_s=200.0)

    def words(self) -> dict[str, list[int]]:
        """Every status word, and what every block is."""
        state = {}
        for node in self.world.nodes:
            control = node.control
            state[f"{node.name} words"] = [control.status.load(slot) for slot in range(control.limits.num_slots)]
            state[f"{node.name} blocks"] = [
                value for block in range(GEOMETRY.num_blocks) for value in control.blocks.cells.cell(block)[:1]
            ]
        return state

    def run_on(self, seconds: float) -> None:
        end = self.world.now_ns + int(seconds * NS)
        self.world.run(lambda: self.world.now_ns >= end, limit_s=seconds + 60)


@pytest.mark.parametrize("seed", range(4))
def test_everything_that_was_ever_sent_comes_again_and_changes_nothing(seed: int) -> None:
    """P17, R14, R15, R16: after the end no word and no block changes; while later requests run, they end with their own
    rows.
    """
    pair = Pair(seed)
    for total, aborted in ((8, False), (20, False), (12, True), (5, False)):
        pair.transfer(total, aborted=aborted)
    old = list(pair.network.kept)
    assert len({type(msg.decode(flight.data, "")).__name__ for flight in old}) >= 7
    before = pair.words()
    pair.network.replay(old)
    pair.run_on(1.0)
    assert pair.words() == before
    for total in (16, 7, 24):
        pair.network.replay(old)
        pair.transfer(total)
    assert all(sum(row["errors"] for row in node.control.metrics.all().values()) == 0 for node in pair.world.nodes)


@pytest.mark.parametrize("seed", range(2))
def test_what_was_said_to_and_by_a_node_that_is_no_more_has_no_effect_on_the_next_one(seed: int) -> None:
    """P17, D5, R14: the language node died in the middle, and is back under a later incarnation."""
    pair = Pair(seed)
    pair.transfer(20)
    pair.room += 1
    pair.queue.add(EmbeddingRequest(room=pair.room, bootstrap_addr=pair.encode.own_addresses.bootstrap_addr))
    orphan = pair.encoder.sender(pair.room, 8)
    pair.world.run(lambda: orphan.poll() >= Phase.WaitingForInput, limit_s=100.0)
    old = list(pair.network.kept)
    pair.world.close_node(pair.language)
    pair.world.run(lambda: orphan.poll() == Phase.Failed, limit_s=100.0)
    orphan.clear()
    pair.language = pair.born(2)
    pair.network.replay(old)
    pair.run_on(1.0)
    assert not any(split(word).epoch for word in pair.words()["language words"])
    for total in (9, 20):
        pair.network.replay(old)
        pair.transfer(total)
