"""What does it cost a request that its rows are checked on receipt?

Two pairs of nodes on this machine, with `verify` and without, take turns: whole requests through shared memory, one at
a time, from `send_embedding` (blocks granted before) to the scheduler's `Success`. Beside them what it is made of: the
checksum of the same rows, by the processor's instruction, against a copy of as many bytes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from _harness import Benchmark, Figures

from embridge import Client, PipelineConfig, attach, launch
from embridge.allocator._core import checksum, copy
from embridge.allocator.geometry import Geometry
from embridge.pipeline.client.client import library_of

HIDDEN, BLOCK, NUM_BLOCKS = 3584, 128, 64
MIB = 1 << 20
SIZES = {"1 MiB": MIB, "8 MiB": 8 * MIB, "32 MiB": 32 * MIB}
GEOMETRY = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=NUM_BLOCKS)


def until(condition: Callable[[], bool]) -> None:
    """What is not timed: wait for it, but not for ever."""
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("a request does not go on; see the nodes' messages above")
        time.sleep(0.001)


class Pair:
    """Two nodes, both of whose clients are this process."""

    def __init__(self, stack: ExitStack, root: Path, *, verify: bool) -> None:
        nodes = {
            role: stack.enter_context(
                launch(
                    PipelineConfig(
                        role=role,
                        run_dir=root / f"{role}-{verify:d}",
                        engine="shm",
                        geometry=GEOMETRY,
                        lock_memory=False,
                        verify=verify,
                    )
                )
            )
            for role in ("encode", "language")
        }
        self._encode, self._language = (stack.enter_context(attach(node.run_dir)) for node in nodes.values())
        self._clients: tuple[Client, ...] = (self._encode, self._language)
        self._addr = nodes["encode"].bootstrap_addr
        self._room = 0

    def request(self, rows: tuple[torch.Tensor, ...]) -> float:
        """Seconds from `send_embedding` to Success."""
        self._room += 1
        tokens = len(rows[0])
        receiver = self._language.receiver(self._addr, self._room)
        sender = self._encode.sender(self._room, tokens)
        until(lambda: receiver.handshake_done)
        receiver.init(receiver.allocate(-(-tokens // BLOCK)), tokens)
        until(lambda: sender.poll() > 0)
        begun = time.perf_counter()
        sender.send_embedding(*rows)
        while (phase := receiver.poll().name) != "Success":
            assert phase != "Failed", receiver.failure_exception()
            time.sleep(0.00005)
        took = time.perf_counter() - begun
        sender.clear()
        receiver.clear()
        until(
            lambda: all(
                library_of(client).attachment.control.blocks.counts().free == NUM_BLOCKS for client in self._clients
            )
        )
        return took


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(bench: Benchmark, name: str, size: int, plain: Pair, verifying: Pair) -> None:
    """One size: the contenders take turns, and each figure is the median of its turn."""
    tokens = size // GEOMETRY.token_bytes
    rows = (
        torch.randn(tokens, HIDDEN).bfloat16(),
        torch.zeros(tokens, dtype=torch.int32),
        torch.zeros(tokens, 3, dtype=torch.int32),
    )
    source, target = np.ones(64 * MIB, np.uint8), np.ones(64 * MIB, np.uint8)
    columns, moves = (
        np.array([(0, HIDDEN * 2), (40 * MIB, 12), (50 * MIB, 4)], np.int64),
        np.array([(0, 0, size)], np.int64),
    )

    def turn(once: Callable[[], float]) -> Figures:
        median = statistics.median(once() for _ in range(bench.scaled(8)))
        return {"us": median * 1e6, "gb_per_s": size / median / 1e9}

    for pair in (plain, verifying):
        pair.request(rows)
    results = bench.interleave(
        {
            "copy": lambda: turn(lambda: timed(lambda: copy(target, source, moves, 1))),
            "checksum": lambda: turn(lambda: timed(lambda: checksum(source, columns, tokens, 0))),
            "request": lambda: turn(lambda: plain.request(rows)),
            "request, verified": lambda: turn(lambda: verifying.request(rows)),
        }
    )
    bench.show(f"{name}, one request at a time", results, {"us": "µs", "gb_per_s": "GB/s"})
    bench.at_least(f"{name}: the checksum", results.median("checksum", "gb_per_s"), 4.0, "GB/s")
    ratio = results.ratio("us", "request, verified", "request")
    print(f"a verified request takes {ratio or 0.0:.2f} times as long")


def main() -> None:
    bench = Benchmark(__file__, __doc__, rounds=12)
    with tempfile.TemporaryDirectory(prefix="eb-") as root, ExitStack() as stack:
        plain, verifying = (Pair(stack, Path(root), verify=verify) for verify in (False, True))
        for name, size in SIZES.items():
            measure(bench, name, size, plain, verifying)
    bench.finish()


if __name__ == "__main__":
    main()
