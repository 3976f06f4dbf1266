"""How close do requests over Mooncake come to Mooncake itself?

The floor is Mooncake alone: one engine writes the same bytes, in the same descriptors, from its registered memory into
that of an engine in another process, and polls until all are done. Ours is a whole request between two nodes over the
same protocol (TCP): from the grant to the scheduler's `Success`, with control messages, status words and pollers in
between. Its rows are given in one of three ways. In place: an encoder has made them in its node's blocks
(`EmbeddingSender.rows`), and the time begins with `commit`; nothing is copied on either side. Written: it begins with
`send_embedding`, which copies them once. In both cases all is granted before. Ahead: they were given before the grant,
with which it begins.

At last many at once: 64 requests of 1 MB, from one encode node to one peer, and to 16. Of Mooncake alone so many writes
go to as many engines, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _harness import Benchmark, Figures

from embridge import EmbeddingRequest, EmbeddingSender, PipelineConfig, PreallocQueue, TransferQueue, attach, launch
from embridge.allocator.geometry import Geometry
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.staging import AHEAD_BLOCKS
from embridge.workers.start import TIMER_SLACK
from embridge.workers.transfer.engines import mooncake

HIDDEN, BLOCK = 3584, 128
MIB = 1 << 20
MB = 1_000_000
SIZES = {"1 MB": MB, "9 MB": 9 * MB, "42 MB": 42 * MB}
# of a request's way, by size: what it may add to Mooncake's time in µs, or its least share of Mooncake's throughput
GOALS = {
    "request, in place": {"1 MB": 400, "9 MB": 0.85, "42 MB": 0.92},
    "request, written": {"1 MB": 600, "9 MB": 0.65, "42 MB": 0.65},
}
NUM_BLOCKS = 64
AT_ONCE, PEERS = 64, (1, 16)

# The other end of the floor: a process with memory that anybody who knows the port may write to.
TARGET = """
import mmap, sys, numpy
from mooncake.engine import TransferEngine
engine, memory = TransferEngine(), numpy.ones(int(sys.argv[1]), numpy.uint8)
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
assert engine.register_memory(memory.ctypes.data, memory.nbytes) == 0
print(engine.get_rpc_port(), memory.ctypes.data, flush=True)
sys.stdin.read()
"""


def tokens_of(size: int) -> int:
    return size // Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=1).token_bytes


def until(condition: Callable[[], bool]) -> None:
    """What is not timed: wait for it, but not for ever."""
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a request does not go on; see the nodes' messages above")
        time.sleep(0.001)


class Floor:
    """Mooncake alone, between this process and another one."""

    def __init__(self, num_targets: int = 1) -> None:
        from mooncake.engine import TransferEngine

        size = max(SIZES.values()) + MIB
        self._engine, self._memory = TransferEngine(), np.ones(size, np.uint8)
        assert self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert self._engine.register_memory(self._memory.ctypes.data, size) == 0
        self._targets = [
            subprocess.Popen(
                [sys.executable, "-c", TARGET, str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(num_targets)
        ]
        self._places: list[tuple[str, int]] = []
        for target in self._targets:
            assert target.stdout is not None
            port, base = target.stdout.readline().split()
            self._places.append((f"127.0.0.1:{port}", int(base)))

    def write(self, tokens: int, count: int = 1) -> float:
        """The descriptors of so many requests (rows, positions, ids, aux); seconds until all are done."""
        pieces, at = [], 0
        for size in (tokens * HIDDEN * 2, tokens * 12, tokens * 4, 64):
            pieces.append((at, size))
            at += size
        here, places = self._memory.ctypes.data, self._places
        begun = time.perf_counter()
        pending = [
            self._engine.transfer_submit_write(name, here + at, base + at, size)
            for name, base in (places[number % len(places)] for number in range(count))
            for at, size in pieces
        ]
        while pending:
            status = self._engine.transfer_check_status(pending[-1])
            assert status >= 0
            if status:
                pending.pop()
        return time.perf_counter() - begun

    def close(self) -> None:
        for target in self._targets:
            target.communicate()


class Many:
    """Requests from one encode node to several language nodes, all under way at once."""

    def __init__(self, encode: Client, languages: list[Client], addr: str) -> None:
        self._encode, self._addr = encode, addr
        self._transfers = [TransferQueue(client) for client in languages]
        self._preallocs = [
            PreallocQueue(client, transfer) for client, transfer in zip(languages, self._transfers, strict=True)
        ]
        self._room = 1 << 32
        tokens = tokens_of(MIB)
        self._rows = torch.randn(tokens, HIDDEN).bfloat16()
        self._ids, self._positions = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens, 3, dtype=torch.int32)

    def write(self, count: int) -> float:
        """Seconds until all results are there, from the first `send_embedding`; the rooms are open on both sides."""
        senders = []
        for number in range(count):
            self._room += 1
            request = EmbeddingRequest(room=self._room, bootstrap_addr=self._addr)
            self._preallocs[number % len(self._preallocs)].add(request)
            senders.append(self._encode.sender(self._room, tokens_of(MIB)))
        until(lambda: all(sender.poll() > 0 for sender in senders))
        begun = time.perf_counter()
        for sender in senders:
            sender.send_embedding(self._rows, self._ids, self._positions)
        num_there, end = 0, begun + 60
        while num_there < count:
            if time.perf_counter() > end:
                raise SystemExit(f"{count - num_there} of {count} requests are stuck")
            time.sleep(0.0002)
            for transfer in self._transfers:
                finished, failed = transfer.pop_transferred()
                assert not failed, failed[0].failure
                num_there += len(finished)
                for request in finished:
                    request.release()
        return time.perf_counter() - begun


class Ours:
    """Whole requests between two nodes, both of whose clients are this process."""

    def __init__(self, encode: Client, language: Client, addr: str) -> None:
        self._encode, self._language, self._addr = encode, language, addr
        self._room = 0
        self._rows = {
            tokens_of(size): (
                torch.randn(tokens_of(size), HIDDEN).bfloat16(),
                torch.zeros(tokens_of(size), dtype=torch.int32),
                torch.zeros(tokens_of(size), 3, dtype=torch.int32),
            )
            for size in SIZES.values()
        }

    def request(self, tokens: int, way: str) -> float:
        """Seconds to the scheduler's Success: from `commit` of rows that were made in place, from `send_embedding` of
        rows that are written, or from the grant of rows that were given ahead.
        """
        self._room += 1
        blocks = -(-tokens // BLOCK)
        receiver = self._language.receiver(self._addr, self._room)
        sender = self._encode.sender(self._room, tokens)
        until(lambda: receiver.handshake_done)
        if way == "ahead":
            sender.send_embedding(*self._rows[tokens])
            until(
                lambda: library_of(self._encode).attachment.control.blocks.counts().owned >= min(blocks, AHEAD_BLOCKS)
            )
            begun = time.perf_counter()
            receiver.init(receiver.allocate(blocks), tokens)
        else:
            receiver.init(receiver.allocate(blocks), tokens)
            until(lambda: sender.poll() > 0)
            if way == "in place":
                self._make(sender, tokens)
            begun = time.perf_counter()
            if way == "in place":
                sender.commit(tokens)
            else:
                sender.send_embedding(*self._rows[tokens])
        self._await_success(receiver)
        took = time.perf_counter() - begun
        sender.clear()
        receiver.clear()
        pools = [library_of(client).attachment.control.blocks for client in (self._encode, self._language)]
        until(lambda: all(pool.counts().free == NUM_BLOCKS for pool in pools))
        return took

    def _make(self, sender: EmbeddingSender, tokens: int) -> None:
        """As a device would that is told where to write."""
        rows = sender.rows(0, tokens)
        assert rows.is_in_place
        assert rows.end == tokens
        views = (rows.input_embeddings, rows.fill_ids, rows.mrope_positions)
        for view, given in zip(views, self._rows[tokens], strict=True):
            assert view is not None
            view.copy_(given)

    def _await_success(self, receiver: EmbeddingReceiver) -> None:
        """As a scheduler does: a look at the word, step after step."""
        while (phase := receiver.poll().name) != "Success":
            assert phase != "Failed", receiver.failure_exception()
            time.sleep(0.00005)


def measure(bench: Benchmark, name: str, size: int, floor: Floor, ours: Ours) -> None:
    """One size: the contenders take turns, and each figure is the median of its turn."""
    tokens = tokens_of(size)

    def turn(once: Callable[[], float]) -> Figures:
        median = statistics.median(once() for _ in range(bench.scaled(8)))
        return {"us": median * 1e6, "gb_per_s": size / median / 1e9}

    floor.write(tokens)
    cases = {"Mooncake alone": partial(turn, partial(floor.write, tokens))}
    for way in ("in place", "written", "ahead"):
        ours.request(tokens, way)
        cases[f"request, {way}"] = partial(turn, partial(ours.request, tokens, way))
    results = bench.interleave(cases)
    bench.show(f"{name}, one request at a time", results, {"us": "µs", "gb_per_s": "GB/s"})
    for case, goals in GOALS.items():
        if goals[name] > 1:
            raw, took = results.median("Mooncake alone", "us"), results.median(case, "us")
            added = None if raw is None or took is None else took - raw
            bench.at_most(f"{name}, {case}: what it adds to Mooncake's own time", added, goals[name], "µs")
        else:
            share = results.ratio("gb_per_s", case, "Mooncake alone")
            bench.at_least(f"{name}, {case}: throughput, of Mooncake alone", share, goals[name])


def measure_many(bench: Benchmark, root: Path, num_peers: int) -> None:
    geometry = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=512)
    configs = [
        PipelineConfig(
            role=role,
            run_dir=root / f"{num_peers}-{role}{number}",
            engine="mooncake",
            geometry=replace(geometry, num_blocks=-(-512 // count)),
            lock_memory=False,
            default_allocate_tokens=tokens_of(MIB),
        )
        for role, count in (("encode", 1), ("language", num_peers))
        for number in range(count)
    ]
    with ExitStack() as stack:
        nodes = [stack.enter_context(launch(config)) for config in configs]
        clients = [stack.enter_context(attach(node.run_dir)) for node in nodes]
        floor, ours = Floor(num_peers), Many(clients[0], clients[1:], nodes[0].bootstrap_addr)
        floor.write(tokens_of(MIB), AT_ONCE)
        ours.write(AT_ONCE)

        def turn(write: Callable[[], float]) -> Figures:
            took = statistics.median(write() for _ in range(bench.scaled(4)))
            return {"ms": took * 1e3, "gb_per_s": AT_ONCE * MIB / took / 1e9}

        results = bench.interleave(
            {
                "Mooncake alone": lambda: turn(lambda: floor.write(tokens_of(MIB), AT_ONCE)),
                "requests, from send_embedding": lambda: turn(lambda: ours.write(AT_ONCE)),
            }
        )
        title = f"{AT_ONCE} requests of 1 MB at once, peers: {num_peers}"
        bench.show(title, results, {"ms": "ms", "gb_per_s": "GB/s"})
        share = results.ratio("gb_per_s", "requests, from send_embedding", "Mooncake alone")
        bench.at_least(f"{title}: throughput, of Mooncake alone", share, 0.8)
        floor.close()


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=12)
    why = mooncake.why_unavailable()
    if why:
        raise SystemExit(why)
    os.environ["MC_FORCE_TCP"] = "1"
    with suppress(OSError):
        TIMER_SLACK.write_text("1")  # of the scheduler's thread: a nap of 50 µs would last 105
    geometry = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=NUM_BLOCKS)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        encode, language = (
            PipelineConfig(role=role, run_dir=Path(root, role), engine="mooncake", geometry=geometry, lock_memory=False)
            for role in ("encode", "language")
        )
        with (
            launch(encode) as source,
            launch(language) as target,
            attach(source.run_dir) as there,
            attach(target.run_dir) as here,
        ):
            floor, ours = Floor(), Ours(there, here, source.bootstrap_addr)
            for name, size in SIZES.items():
                measure(bench, name, size, floor, ours)
            floor.close()
        for num_peers in PEERS:
            measure_many(bench, Path(root), num_peers)
    bench.finish()


if __name__ == "__main__":
    main()
