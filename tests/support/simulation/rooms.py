"""Rooms of a simulation: nodes, clients, and what each client does for its side of a room, drawn by the seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch

from embridge.allocator.errors import FailureCode, NodeGoneError
from embridge.allocator.geometry import Geometry, Role
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers.timing import NS
from support.rows import Rows, rows_of
from support.simulation.node import SimulatedNode
from support.simulation.processes import ClientActor
from support.simulation.settings import ROWS_A_ROOM
from support.simulation.world import World

BLOCK_SIZE = 4


def rows_for(geometry: Geometry, room: int, first: int, end: int) -> Rows:
    """Rows that say whose they are: see `ROWS_A_ROOM`."""
    ids = torch.arange(room * ROWS_A_ROOM + first, room * ROWS_A_ROOM + end, dtype=torch.int32)
    return rows_of(geometry, room, first, end)._replace(fill_ids=ids)


@dataclass(eq=False)
class Transfer:
    """One room: what its encoder and its schedulers do, and how it ended on each side."""

    room: int
    total: int
    timeout_s: float | None = None
    sender: EmbeddingSender | None = None
    encoder: ClientActor | None = None
    requests: list[EmbeddingRequest] = field(default_factory=list)
    owners: dict[EmbeddingRequest, Scheduler] = field(default_factory=dict)
    outcomes: dict[EmbeddingRequest, str] = field(default_factory=dict)
    may_fail: bool = False  # somebody aborts it, stays away, or dies
    gap_ns: int = NS // 5  # at most, between two writes
    num_due: int = 0  # calls of the script that have yet to open a side of it

    def __repr__(self) -> str:
        receivers = [(r.receiver, r.transferred_tokens, self.outcomes.get(r)) for r in self.requests]
        return f"room {self.room} of {self.total}: {self.sender} {receivers}"


@dataclass(eq=False)
class Scheduler:
    """A scheduler process on a language node."""

    node: SimulatedNode
    actor: ClientActor
    queue: TransferQueue
    kept: list[EmbeddingRequest] = field(default_factory=list)  # results that it keeps until all requests have ended


class Rooms:
    """Nodes, clients and rooms; what is planned for which room is the scenario's."""

    def __init__(self, world: World, disturbance: str) -> None:
        self.world = world
        self.rng = rng = world.rng
        self.layers = rng.choice((0, 0, 1))
        self.is_near = disturbance == "near"  # both sides of a room open it at about the same time
        self.encode = self._encode_node(1)
        self.keeps = disturbance == "retries"
        self.lost: dict[Transfer, list[EmbeddingRequest]] = {}  # failed with their encode node, to be retried
        self.is_dense = disturbance in ("writers", "near", "several")  # many short rooms, two encoders
        few = (1, 1, 1, 1, 2) if world.is_direct else (1, 1, 2)
        self.num_languages = 2 if disturbance == "several" else 1 if self.is_dense else rng.choice(few)
        self.encoders = [self._client(self.encode) for _ in range(2 if self.is_dense else rng.choice((1, 1, 2)))]
        self.schedulers = [self._scheduler(i, 1) for i in range(self.num_languages)]
        self.transfers: list[Transfer] = []

    # ---- nodes and clients

    def _geometry(self) -> Geometry:
        blocks = self.rng.randint(*((8, 40) if self.is_near else (1, 8)))
        return Geometry(hidden_size=2, block_size=BLOCK_SIZE, num_blocks=blocks, deepstack_layers=self.layers)

    def _encode_node(self, incarnation: int) -> SimulatedNode:
        return self.world.node("encode", Role.ENCODE, self._geometry(), node_id=1, incarnation=incarnation)

    def _client(self, node: SimulatedNode) -> ClientActor:
        node.new_client()
        return node.clients[-1]

    def _scheduler(self, i: int, incarnation: int) -> Scheduler:
        rng, geometry = self.rng, self._geometry()
        memory = rng.choice((1 << 30, 200 * geometry.token_bytes))
        settings = {"host_buffer_bytes": memory, "default_allocate_tokens": rng.randint(1, 40)}
        node = self.world.node(
            f"language{i}", Role.LANGUAGE, geometry, node_id=10 + i, incarnation=incarnation, settings=settings
        )
        return self._attend(node)

    def _attend(self, node: SimulatedNode) -> Scheduler:
        actor = self._client(node)
        scheduler = Scheduler(node, actor, TransferQueue(actor.client, adaptive=self.rng.random() < 0.5))
        self.world.at(self.world.now_ns, "", lambda: self._poll(scheduler))
        return scheduler

    # ---- what the clients do

    def _plan(self, start_ns: int, disturbance: str = "none") -> Transfer:
        world, rng = self.world, self.rng
        most = 40 if rng.random() < 0.3 and not self.is_dense else 8
        transfer = Transfer(len(self.transfers) + 1, rng.randint(1, most * BLOCK_SIZE))
        self.transfers.append(transfer)
        if disturbance not in ("none", "writers", "near", "several"):
            transfer.gap_ns = 2 * NS  # so that what disturbs finds it on its way
        absent = None
        if disturbance == "absences" and rng.random() < 0.6:
            transfer.may_fail, transfer.timeout_s = True, rng.uniform(0.5, 5.0)
            absent = rng.randint(-1, self.num_languages - 1)
        transfer.num_due = 1 + self.num_languages
        for i in range(-1, self.num_languages):
            call = self._opener(transfer, i, is_absent=i == absent)
            late_ns = rng.randint(0, NS // 50 if self.is_near else NS // 2)
            world.at(start_ns + late_ns, f"party {i} opens room {transfer.room}", call)
        return transfer

    def _opener(self, transfer: Transfer, i: int, *, is_absent: bool) -> Callable[[], None]:
        def call() -> None:
            transfer.num_due -= 1
            if is_absent:
                return
            if i < 0:
                self._send(transfer)
            else:
                self._receive(transfer, self.schedulers[i])

        return call

    def _send(self, transfer: Transfer) -> None:
        world, rng = self.world, self.rng
        alive = [actor for actor in self.encoders if not self._is_lost(actor)]
        if not alive or self.encode not in world.nodes:
            transfer.may_fail = True
            return
        transfer.encoder = actor = rng.choice(alive)

        def user() -> None:
            try:
                transfer.sender = actor.client.sender(
                    transfer.room, transfer.total, mrope_position_delta=-transfer.room, timeout_s=transfer.timeout_s
                )
            except NodeGoneError:  # while this thread was in another call
                return
            if rng.random() < 0.5:
                transfer.sender.announce()

        actor.call(user)
        cuts = sorted({0, transfer.total, *(rng.randint(0, transfer.total) for _ in range(rng.randint(0, 4)))})
        when = world.now_ns
        for first, end in itertools.pairwise(cuts):
            when += rng.choice((0, rng.randint(0, transfer.gap_ns)))
            label = f"room {transfer.room} gets rows {first} to {end}"
            world.at(when, label, partial(actor.call, partial(self._write, transfer, first, end)))

    def _write(self, transfer: Transfer, first: int, end: int) -> None:
        if transfer.sender is not None:
            rows = rows_for(self.encode.geometry, transfer.room, first, end)
            with suppress(NodeGoneError):
                transfer.sender.write(first, *rows)
            for tensor in rows:  # it is the caller's again (P22)
                if tensor is not None:
                    tensor.zero_()

    def _receive(self, transfer: Transfer, scheduler: Scheduler) -> None:
        if scheduler.actor.is_dead or scheduler.node not in self.world.nodes:
            transfer.may_fail = True
            return
        request = EmbeddingRequest(
            room=transfer.room,
            bootstrap_addr=self.encode.own_addresses.bootstrap_addr,
            required_dst_info_num=self.num_languages,
            timeout_s=transfer.timeout_s,
            payload=transfer.room,
            keep_for_retry=self.keeps,
        )
        transfer.requests.append(request)
        transfer.owners[request] = scheduler
        self._send_if_it_was_lost(transfer)
        scheduler.actor.call(lambda: scheduler.queue.add(request))

    def _send_if_it_was_lost(self, transfer: Transfer) -> None:
        if self.keeps and transfer.encoder is not None and transfer.encoder not in self.encoders:
            self._send(transfer)

    def _poll(self, scheduler: Scheduler) -> None:
        """The scheduler's step, every 10 ms."""
        if scheduler.actor.is_dead or scheduler.node not in self.world.nodes:
            return
        scheduler.actor.call(lambda: self._take(scheduler))
        self.world.after(0.01, "", lambda: self._poll(scheduler))

    def _take(self, scheduler: Scheduler) -> None:
        scheduler.actor.client.poll()
        finished, failed = scheduler.queue.pop_transferred()
        for request in failed:
            assert request.failure is not None
            assert request.failure.code != FailureCode.INTERNAL, request.failure
            if request.is_retryable:
                self.lost.setdefault(self._transfer_of(request), []).append(request)
            else:
                self._transfer_of(request).outcomes[request] = f"Failed: {request.failure}"
        for request in finished:
            self._check_result(request)
            self._transfer_of(request).outcomes[request] = "Success"
            if request.room % 3:
                request.release()
            else:
                scheduler.kept.append(request)
        while scheduler.kept and self.is_over():
            self._check_result(scheduler.kept[-1])
            scheduler.kept.pop().release()
        self._take_up_lost()

    def _take_up_lost(self) -> None:
        """What becomes of the rooms that are lost with their encode node."""
        assert not self.lost

    def _transfer_of(self, request: EmbeddingRequest) -> Transfer:
        return self.transfers[request.room - 1]

    def _check_result(self, request: EmbeddingRequest) -> None:
        """P6: the very bytes that were written."""
        transfer, result = self._transfer_of(request), request.result
        assert result is not None
        expected = rows_for(self.encode.geometry, transfer.room, 0, transfer.total)
        for name, rows in expected._asdict().items():
            got = getattr(result, name)
            assert (rows is None) == (got is None), name
            assert rows is None or torch.equal(rows.view(torch.uint8), got.view(torch.uint8)), (
                f"room {transfer.room}: {name}"
            )
        assert result.aux_datas[:2].tolist() == [transfer.total, -transfer.room]

    # ---- how they end

    def _is_over(self, transfer: Transfer) -> bool:
        sender = transfer.sender
        if transfer.num_due:
            return False
        if sender is not None and not self._is_lost(transfer.encoder) and sender._final is None:
            return False
        return all(r in transfer.outcomes or self._is_lost(s.actor) for r, s in transfer.owners.items())

    def _is_lost(self, actor: ClientActor | None) -> bool:
        return actor is None or actor.is_dead or actor in self.world.orphans

    def is_over(self) -> bool:
        """Every request has ended, for all who have asked for it."""
        return all(self._is_over(transfer) for transfer in self.transfers)

