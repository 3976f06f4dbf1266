"""embridge as a carrier of rows (`_carriers.py`), on one host and over Mooncake."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from _carriers import Carrier, Job, Look, Release, Send, Sleep

import embridge

OURS = "embridge"
IN_PLACE = "embridge, in place"
DEFAULT_TOKENS = 8192
TOUCHED_WITHIN_S = 60.0


class Embridge(Carrier):
    """Two nodes, an encoder's client and a scheduler's queues.

    A request is opened on both sides ahead of its rows, as a router has it.
    """

    name = OURS
    engine = "auto"
    pool_bytes = 3 << 30
    settings: ClassVar[dict[str, Any]] = {"log_level": "WARNING"}  # the lines of two dozen starts would hide the table

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stack = ExitStack()
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="eb-")))
        block_size = 128
        blocks_a_request = -(-job.tokens // block_size)
        token_bytes = embridge.Geometry(hidden_size=job.hidden, block_size=block_size, num_blocks=1).token_bytes
        num_blocks = self.num_blocks(blocks_a_request, self.pool_bytes // (token_bytes * block_size))
        geometry = embridge.Geometry(hidden_size=job.hidden, block_size=block_size, num_blocks=num_blocks)
        self.nodes = [
            self._stack.enter_context(
                embridge.launch(
                    embridge.PipelineConfig(
                        role=role,
                        run_dir=root / role,
                        engine=self.engine,
                        geometry=geometry,
                        lock_memory=False,
                        default_allocate_tokens=min(DEFAULT_TOKENS, job.tokens),
                        host_buffer_bytes=max(1 << 30, 2 * job.size * job.in_flight),
                        **self.settings,
                    )
                )
            )
            for role in ("encode", "language")
        ]
        for role in ("encode", "language"):
            wait_touched(root / role)
        self._numbers = self._total = 0

    def num_blocks(self, blocks_a_request: int, fits: int) -> int:
        """Of each pool: twice what is in flight, as far as that fits."""
        return min(max(64, 2 * blocks_a_request * self.job.in_flight), max(fits, 2 * blocks_a_request))

    def pids(self) -> list[int]:
        return [child for node in self.nodes for child in (node.pid, *children(node.pid))]

    def sender(self) -> Send:
        client = embridge.attach(self.nodes[0].run_dir)
        tokens = self.job.tokens
        ids, positions = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens, 3, dtype=torch.int32)
        first, total, ahead = self._first_room(), self._total, self.job.in_flight
        self._client = client

        def opened(number: int) -> embridge.EmbeddingSender:
            sender = client.sender(first + number, tokens)
            if tokens > DEFAULT_TOKENS:  # so that all of it is granted before its rows come
                sender.announce()
            return sender

        senders = {number: opened(number) for number in range(min(ahead, total))}

        def send(number: int, rows: torch.Tensor) -> None:
            senders.pop(number).send_embedding(rows, ids, positions)
            if number + ahead < total:  # an encoder opens the room of its next request before it encodes
                senders[number + ahead] = opened(number + ahead)

        return send

    def _first_room(self) -> int:
        return 1 + (os.getppid() << 32) + self._numbers - self._total

    def begin(self, total: int) -> None:
        """In the benchmark's own process, before each round: rooms are used once."""
        self._numbers += total
        self._total = total

    def looker(self) -> tuple[Look, Sleep, Release]:
        client = embridge.attach(self.nodes[1].run_dir)
        transfer = embridge.TransferQueue(client)
        prealloc = embridge.PreallocQueue(client, transfer)
        first, addr = self._first_room(), self.nodes[0].bootstrap_addr
        requests: dict[int, embridge.EmbeddingRequest] = {}
        opened = 0

        def open_next() -> None:
            nonlocal opened
            if opened == self._total:
                return
            request = embridge.EmbeddingRequest(room=first + opened, bootstrap_addr=addr)
            prealloc.add(request)
            requests[opened] = request
            opened += 1

        for _ in range(self.job.in_flight):
            open_next()

        def look() -> list[tuple[int, torch.Tensor]]:
            client.poll()
            finished, failed = transfer.pop_transferred()
            assert not failed, failed[0].failure
            return [(request.room - first, rows_of(request)) for request in finished]

        def sleep() -> None:
            client.wait(0.1)

        def release(number: int) -> None:
            requests.pop(number).release()
            open_next()

        self._client = client
        return look, sleep, release

    def close(self) -> None:
        self._stack.close()


class EmbridgeInQuarter(Embridge):
    name = "embridge, pools of a quarter of what is in flight"

    def num_blocks(self, blocks_a_request: int, fits: int) -> int:
        return max(blocks_a_request * self.job.in_flight // 4, 2)


class EmbridgeInHalfOfOne(Embridge):
    name = "embridge, pools of half of one request"

    def num_blocks(self, blocks_a_request: int, fits: int) -> int:
        return max(blocks_a_request // 2, 2)


class EmbridgeMooncake(Embridge):
    name = "embridge, Mooncake (tcp)"
    engine = "mooncake"


class EmbridgeMooncakeInPlace(EmbridgeMooncake):
    """The encoder makes its rows in its node's blocks, and only says that they are there."""

    name = "embridge, Mooncake (tcp), in place"

    def sender(self) -> Send:
        client = embridge.attach(self.nodes[0].run_dir)
        tokens, first, total, ahead = self.job.tokens, self._first_room(), self._total, self.job.in_flight
        self._client = client
        self._opened: dict[int, embridge.EmbeddingSender] = {}

        def open_next(number: int) -> None:
            if number < total:
                sender = self._opened[number] = client.sender(first + number, tokens)
                if tokens > DEFAULT_TOKENS:
                    sender.announce()

        for number in range(ahead):
            open_next(number)

        def send(number: int, rows: torch.Tensor) -> None:
            self._opened.pop(number).commit(tokens)
            open_next(number + ahead)

        return send

    def source(self, number: int, own: torch.Tensor) -> torch.Tensor:
        rows = self._opened[number].rows(0, self.job.tokens)
        assert rows.is_in_place
        assert rows.end == self.job.tokens
        for view in (rows.fill_ids, rows.mrope_positions):
            assert view is not None
            view.zero_()
        return rows.input_embeddings


# Carriers of one host are compared with other carriers of one host, those of several with raw Mooncake.
HERE: tuple[type[Carrier], ...] = (Embridge,)
NETWORK: tuple[type[Carrier], ...] = (EmbridgeMooncake, EmbridgeMooncakeInPlace)


def wait_touched(run_dir: Path) -> None:
    """Until a node has touched the memory of its pool, as it does in the background once it is up; what other carriers
    use was touched, too.
    """
    deadline = time.monotonic() + TOUCHED_WITHIN_S
    while len(set(embridge.node_status(run_dir)["touched"].removesuffix(" MiB").split(" of "))) > 1:
        assert time.monotonic() < deadline, "the pool's memory is not touched yet"
        time.sleep(0.05)


def rows_of(request: embridge.EmbeddingRequest) -> torch.Tensor:
    assert request.result is not None
    return request.result.input_embeddings


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    try:
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, direct) for found in (child, *children(child))]
