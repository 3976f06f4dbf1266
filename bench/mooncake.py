"""How close do requests over Mooncake come to Mooncake itself?

The floor is Mooncake alone: one engine writes the same bytes, in the same descriptors, from its registered memory into
that of an engine in another process, and polls until all are done. Ours is a whole request between two nodes over the
same protocol (TCP): from the grant to the scheduler's `Success`, with control messages, status words and pollers in
between. The rows are staged before the grant, as those of an encoder that is ahead; a second figure begins at
`send_embedding` with the blocks granted before, so staging is in it, too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _harness import Benchmark, Figures

from embridge import PipelineConfig, attach, launch
from embridge.allocator.geometry import Geometry
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.sender import AHEAD_BLOCKS
from embridge.workers.transfer.engines import mooncake

HIDDEN, BLOCK = 3584, 128
sys.path.remove(str(Path(__file__).parent))  # this file bears the name of the package that it measures
MIB = 1 << 20
SIZES = {"1 MiB": MIB, "8 MiB": 8 * MIB, "32 MiB": 32 * MIB}
NUM_BLOCKS = 64

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

    def __init__(self) -> None:
        from mooncake.engine import TransferEngine

        size = max(SIZES.values()) + MIB
        self._engine, self._memory = TransferEngine(), np.ones(size, np.uint8)
        assert self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert self._engine.register_memory(self._memory.ctypes.data, size) == 0
        self._target = subprocess.Popen(
            [sys.executable, "-c", TARGET, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._target.stdout is not None
        port, base = self._target.stdout.readline().split()
        self._name, self._base = f"127.0.0.1:{port}", int(base)

    def write(self, tokens: int) -> float:
        """One request's descriptors (rows, positions, ids, aux); seconds until all are done."""
        pieces, at = [], 0
        for size in (tokens * HIDDEN * 2, tokens * 12, tokens * 4, 64):
            pieces.append((self._memory.ctypes.data + at, self._base + at, size))
            at += size
        begun = time.perf_counter()
        pending = [self._engine.transfer_submit_write(self._name, *piece) for piece in pieces]
        while pending:
            status = self._engine.transfer_check_status(pending[-1])
            assert status >= 0
            if status:
                pending.pop()
        return time.perf_counter() - begun

    def close(self) -> None:
        self._target.communicate()


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

    def request(self, tokens: int, *, ahead: bool) -> float:
        """Seconds from the grant (`ahead`: of rows that are staged) or from `send_embedding` to the scheduler's
        Success.
        """
        self._room += 1
        blocks = -(-tokens // BLOCK)
        receiver = self._language.receiver(self._addr, self._room)
        sender = self._encode.sender(self._room, tokens)
        until(lambda: receiver.handshake_done)
        if ahead:
            sender.send_embedding(*self._rows[tokens])
            until(
                lambda: library_of(self._encode).attachment.control.blocks.counts().owned >= min(blocks, AHEAD_BLOCKS)
            )
            begun = time.perf_counter()
            receiver.init(receiver.allocate(blocks), tokens)
        else:
            receiver.init(receiver.allocate(blocks), tokens)
            until(lambda: sender.poll() > 0)
            begun = time.perf_counter()
            sender.send_embedding(*self._rows[tokens])
        self._await_success(receiver)
        took = time.perf_counter() - begun
        sender.clear()
        receiver.clear()
        pools = [library_of(client).attachment.control.blocks for client in (self._encode, self._language)]
        until(lambda: all(pool.counts().free == NUM_BLOCKS for pool in pools))
        return took

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
    ours.request(tokens, ahead=True)
    results = bench.interleave(
        {
            "Mooncake alone": lambda: turn(lambda: floor.write(tokens)),
            "request, rows staged": lambda: turn(lambda: ours.request(tokens, ahead=True)),
            "request, from send_embedding": lambda: turn(lambda: ours.request(tokens, ahead=False)),
        }
    )
    bench.show(f"{name}, one request at a time", results, {"us": "µs", "gb_per_s": "GB/s"})
    if size < 8 * MIB:
        raw, staged = results.median("Mooncake alone", "us"), results.median("request, rows staged", "us")
        added = None if raw is None or staged is None else staged - raw
        bench.at_most(f"{name}: what a request adds to Mooncake's own time", added, 300, "µs")
    else:
        share = results.ratio("gb_per_s", "request, rows staged", "Mooncake alone")
        bench.at_least(f"{name}: throughput, of Mooncake alone", share, 0.95)


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=12)
    why = mooncake.why_unavailable()
    if why:
        raise SystemExit(why)
    os.environ["MC_FORCE_TCP"] = "1"
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
    bench.finish()


if __name__ == "__main__":
    main()
