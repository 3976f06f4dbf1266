"""embridge as a carrier of rows (`_carriers.py`), on one host and over Mooncake."""

from __future__ import annotations

import os
import select
import tempfile
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import torch
from _carriers import Carrier, Job, Receive, Release, Send

import embridge


class Embridge(Carrier):
    """Two nodes, an encoder's client and a scheduler's queues.

    A request is opened on both sides ahead of its rows, as a router has it.
    """

    engine = "auto"
    name = "embridge"
    pool_bytes = 3 << 30

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stack = ExitStack()
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="eb-")))
        block_size = 128
        blocks_a_request = -(-job.tokens // block_size)
        token_bytes = embridge.Geometry(hidden_size=job.hidden, block_size=block_size, num_blocks=1).token_bytes
        fits = self.pool_bytes // (token_bytes * block_size)
        num_blocks = min(max(64, 2 * blocks_a_request * job.in_flight), max(fits, 2 * blocks_a_request))
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
                        default_allocate_tokens=min(8192, job.tokens),
                        host_buffer_bytes=max(1 << 30, 2 * job.size * job.in_flight),
                    )
                )
            )
            for role in ("encode", "language")
        ]
        self._numbers = 0

    def pids(self) -> list[int]:
        return [child for node in self.nodes for child in (node.pid, *children(node.pid))]

    def sender(self) -> Send:
        client = embridge.attach(self.nodes[0].run_dir)
        tokens = self.job.tokens
        ids, positions = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens, 3, dtype=torch.int32)
        first = self._first_room()
        self._client = client

        def send(number: int, rows: torch.Tensor) -> None:
            client.sender(first + number, tokens).send_embedding(rows, ids, positions)

        return send

    def _first_room(self) -> int:
        return 1 + (os.getppid() << 32) + self._numbers

    def begin(self, total: int) -> None:
        """In the benchmark's own process, before each round: rooms are used once."""
        self._numbers += total

    def receiver(self) -> tuple[Receive, Release]:
        client = embridge.attach(self.nodes[1].run_dir)
        transfer = embridge.TransferQueue(client)
        prealloc = embridge.PreallocQueue(client, transfer)
        first, addr = self._first_room(), self.nodes[0].bootstrap_addr
        requests: dict[int, embridge.EmbeddingRequest] = {}
        done: deque[embridge.EmbeddingRequest] = deque()
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)
        opened = 0

        def open_next() -> None:
            nonlocal opened
            request = embridge.EmbeddingRequest(room=first + opened, bootstrap_addr=addr)
            prealloc.add(request)
            requests[opened] = request
            opened += 1

        for _ in range(self.job.in_flight):
            open_next()

        def receive() -> tuple[int, torch.Tensor]:
            while not done:
                if client.arm() and not len(done):
                    poller.poll(100)
                client.poll()
                finished, failed = transfer.pop_transferred()
                assert not failed, failed[0].failure
                done.extend(finished)
            request = done.popleft()
            assert request.result is not None
            return request.room - first, request.result.input_embeddings

        def release(number: int) -> None:
            requests.pop(number).release()
            open_next()

        self._client = client
        return receive, release

    def close(self) -> None:
        self._stack.close()


class EmbridgeMooncake(Embridge):
    name = "embridge, Mooncake (tcp)"
    engine = "mooncake"


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    try:
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, direct) for found in (child, *children(child))]
