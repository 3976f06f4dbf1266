"""Two and three whole nodes under a seed: whatever the network, the scheduling and the deaths of processes do, rows arrive whole.

A failing seed prints the end of its trace; `run_seed(seed)` makes the same steps again (P19).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from support.rows import Rows, rows_of
from support.simulation import ROWS_A_ROOM, Faults, SimulatedNode, World

from embridge.allocator.layout import Geometry, Role
from embridge.allocator.status import Phase
from embridge.pipeline.queues import EmbeddingRequest, TransferQueue
from embridge.pipeline.sender import EmbeddingSender
from embridge.workers.timing import NS

BLOCK_SIZE = 4
LIMIT_S = 400.0

CALM = Faults()
LOSSY = Faults(lost=0.15, doubled=0.15, delayed=0.3, failed_attempt=0.1)
DEADLY = Faults(lost=0.05, doubled=0.1, delayed=0.2, kill_role=0.01, stall=0.003, failed_attempt=0.1)


def rows_for(geometry: Geometry, room: int, first: int, end: int) -> Rows:
    """Rows that say whose they are: see `ROWS_A_ROOM`."""
    ids = torch.arange(room * ROWS_A_ROOM + first, room * ROWS_A_ROOM + end, dtype=torch.int32)
    return rows_of(geometry, room, first, end)._replace(fill_ids=ids)


@dataclass
class Transfer:
    """One room: what its encoder and its schedulers do, and how it ended on each side."""

    room: int
    total: int
    requests: list[EmbeddingRequest] = field(default_factory=list)
    sender: EmbeddingSender | None = None
    disturbed: bool = False  # somebody aborted, or died: it may fail
    outcomes: list[str] = field(default_factory=list)
    num_open: int = 0


class Scenario:
    """Nodes, clients and rooms, drawn by the seed."""

    def __init__(self, world: World, *, num_languages: int | None = None, num_rooms: int | None = None) -> None:
        self.world = world
        rng = world.rng
        layers = rng.choice((0, 0, 1))

        def geometry() -> Geometry:
            blocks = rng.randint(1, 8)
            return Geometry(hidden_size=2, block_size=BLOCK_SIZE, num_blocks=blocks, deepstack_layers=layers)

        self.encode = world.node("encode", Role.ENCODE, geometry(), node_id=1)
        count = num_languages or rng.choice((1, 1, 2))
        self.languages = [self._language(i, geometry()) for i in range(count)]
        self.encoders = [self.encode.new_client() for _ in range(rng.choice((1, 1, 2)))]
        self.queues = [TransferQueue(node.new_client(), adaptive=rng.random() < 0.5) for node in self.languages]
        self.transfers: list[Transfer] = []
        for room in range(1, 1 + (num_rooms or rng.randint(1, 6))):
            self._plan(room)
        for i in range(count):
            self._poll(i)

    def _language(self, i: int, geometry: Geometry) -> SimulatedNode:
        rng = self.world.rng
        memory = rng.choice((1 << 30, 200 * geometry.token_bytes))
        settings = {"host_buffer_bytes": memory, "default_allocate_tokens": rng.randint(1, 40)}
        return self.world.node(f"language{i}", Role.LANGUAGE, geometry, node_id=10 + i, settings=settings)

    # ---- what the clients do

    def _plan(self, room: int) -> None:
        world, rng = self.world, self.world.rng
        long = rng.random() < 0.3
        transfer = Transfer(room, rng.randint(1, 40 * BLOCK_SIZE if long else 8 * BLOCK_SIZE))
        self.transfers.append(transfer)
        transfer.num_open = 1 + len(self.queues)
        start = world.now_ns + rng.randint(0, NS)
        opened = start + rng.randint(0, NS // 2)
        world.at(opened, f"encoder opens {room}", lambda: self._send(transfer))
        for i in range(len(self.queues)):
            when = start + rng.randint(0, NS // 2)
            world.at(when, f"language{i} opens {room}", lambda i=i: self._receive(transfer, i))  # type: ignore[misc]

    def _send(self, transfer: Transfer) -> None:
        world, rng = self.world, self.world.rng
        client = rng.choice(self.encoders)
        transfer.sender = sender = client.sender(transfer.room, transfer.total, mrope_position_delta=-transfer.room)
        if rng.random() < 0.5:
            sender.announce()
        cuts = sorted({0, transfer.total, *(rng.randint(0, transfer.total) for _ in range(rng.randint(0, 4)))})
        when = world.now_ns
        for first, end in itertools.pairwise(cuts):
            when += rng.choice((0, rng.randint(0, NS // 5)))
            world.at(when, f"write {transfer.room} [{first}, {end})", self._writer(transfer, first, end))

    def _writer(self, transfer: Transfer, first: int, end: int) -> Callable[[], None]:
        def write() -> None:
            assert transfer.sender is not None
            transfer.sender.write(first, *rows_for(self.encode.geometry, transfer.room, first, end))

        return write

    def _receive(self, transfer: Transfer, i: int) -> None:
        request = EmbeddingRequest(
            room=transfer.room,
            bootstrap_addr=self.encode.own_addresses.bootstrap_addr,
            required_dst_info_num=len(self.queues),
            payload=transfer,
        )
        transfer.requests.append(request)
        self.queues[i].add(request)

    def _poll(self, i: int) -> None:
        """The scheduler's step."""
        queue, world = self.queues[i], self.world
        queue._client.poll()
        finished, failed = queue.pop_transferred()
        for request in finished:
            self._finished(request)
        for request in failed:
            transfer = request.payload
            assert isinstance(transfer, Transfer)
            transfer.outcomes.append(f"Failed: {request.failure}")
        world.at(world.now_ns + 10_000_000, f"language{i} polls", lambda: self._poll(i))

    def _finished(self, request: EmbeddingRequest) -> None:
        transfer, result = request.payload, request.result
        assert isinstance(transfer, Transfer)
        assert result is not None
        expected = rows_for(self.encode.geometry, transfer.room, 0, transfer.total)
        for name, rows in expected._asdict().items():
            got = getattr(result, name)
            assert (rows is None) == (got is None), name
            assert rows is None or torch.equal(rows.view(torch.uint8), got.view(torch.uint8)), f"room {transfer.room}: {name}"
        assert result.aux_datas[:2].tolist() == [transfer.total, -transfer.room]
        transfer.outcomes.append("Success")
        request.release()

    # ---- how it ended

    def is_done(self) -> bool:
        return (
            all(len(t.outcomes) == len(self.queues) for t in self.transfers)
            and all(t.sender is not None and t.sender._final is not None for t in self.transfers)
            and self.world.is_clean()
        )

    def run(self) -> None:
        self.world.run(self.is_done, limit_s=LIMIT_S)
        for transfer in self.transfers:
            sender = transfer.sender
            assert sender is not None
            if not transfer.disturbed:
                assert transfer.outcomes == ["Success"] * len(self.queues), transfer
            if "Success" in transfer.outcomes:
                assert sender.poll() == Phase.Success, transfer
            if sender.poll() == Phase.Failed:
                assert sender.failure_exception() is not None
        for queue in self.queues:
            queue._client._turn()
            assert queue.memory.reserved_bytes == 0


def run_seed(seed: int, faults: Faults) -> World:
    world = World(seed, faults=faults)
    try:
        Scenario(world).run()
    finally:
        world.close()
    return world


@pytest.mark.parametrize("seed", range(10))
def test_calm(seed: int) -> None:
    run_seed(seed, CALM)
