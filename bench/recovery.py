"""How long after a SIGKILL are blocks usable again, or quarantined? (P3)

Two nodes of this machine carry requests; at a random moment one process is killed. For a client, timed is from the kill
until no block of its node is held in its name any more but in quarantine, and until all are free; also with the worker
or the poller of that node killed in the same moment, so that a new one has to do it; and with 2 GiB of the client's own
memory, which the kernel takes apart before it says that the process is dead. For a process of a node, whose blocks
belong to living requests all the while: until rows move again (a worker), or a status word rises again (a poller), and
no request may be lost.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _harness import FORK, WATCHDOG_S, Benchmark, Failed, Figures, Results, percentile

from embridge import (
    EmbeddingRequest,
    Geometry,
    Limits,
    Node,
    PipelineConfig,
    PreallocQueue,
    TransferQueue,
    attach,
    launch,
)
from embridge.allocator.control import Control
from embridge.allocator.records import Process
from embridge.allocator.status import split
from embridge.pipeline.inspection.open_readonly import look
from embridge.workers.process_spec import READY

HIDDEN, BLOCK, BLOCKS, TOKENS, IN_FLIGHT = 512, 64, 32, 1500, 6  # requests of 1.5 MB; each needs most of a pool
LIMITS = Limits(num_slots=512, max_clients=8, ring_records=1024)

bench = Benchmark(__file__, __doc__, rounds=1)
dice = random.Random(int(os.environ.get("SEED", "1")))


def encoder(run_dir: Path, orders: Connection, own_bytes: int) -> None:
    """Open the rooms that it is told of, and give all their rows."""
    torch.set_num_threads(1)
    own = torch.ones(own_bytes, dtype=torch.uint8)  # noqa: F841
    embeddings, positions = torch.zeros(TOKENS, HIDDEN).bfloat16(), torch.zeros(TOKENS, 3, dtype=torch.int32)
    ids = torch.arange(TOKENS, dtype=torch.int32)
    with attach(run_dir) as client:
        orders.send("ready")
        kept = []
        while True:
            sender = client.sender(orders.recv(), TOKENS)
            sender.send_embedding(embeddings, ids, positions)
            kept = [*kept[-2 * IN_FLIGHT :], sender]


def scheduler(
    run_dir: Path, addr: str, orders: Connection, to_encoder: Connection, first_room: int, own_bytes: int
) -> None:
    """Keep so many requests in flight; say how many have ended, and why one has failed."""
    torch.set_num_threads(1)
    own = torch.ones(own_bytes, dtype=torch.uint8)  # noqa: F841
    with attach(run_dir) as client:
        transfer = TransferQueue(client)
        prealloc = PreallocQueue(client, transfer)
        orders.send("ready")
        room, open_rooms, stop = first_room, 0, False
        while not stop or open_rooms:
            while open_rooms < IN_FLIGHT and not stop:
                prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=addr))
                to_encoder.send(room)
                room, open_rooms = room + 1, open_rooms + 1
            finished, failed = transfer.pop_transferred()
            for request in (*finished, *failed):
                open_rooms -= 1
                request.release()
                orders.send(str(request.failure or ""))
            stop |= orders.poll(0) and orders.recv() == "stop"
            time.sleep(0.001)
        orders.send("stopped")


@dataclass
class Pair:
    """Two nodes, and what is seen of them from outside."""

    encode: Node
    language: Node
    controls: dict[str, Control] = field(default_factory=dict)
    room: int = 1

    def pid(self, side: str, process: str) -> int:
        return self.controls[side].processes.get(process, Process.PID)

    def wait_idle(self) -> None:
        for control in self.controls.values():
            until(lambda c=control: c.blocks.counts().free == BLOCKS and not any(  # type: ignore[misc]
                c.lanes.get(lane, 0) for lane in range(LIMITS.max_clients)
            ), "idle")
            for name in control.processes.names:
                state = partial(control.processes.get, name, Process.STATE)
                until(lambda state=state: state() == READY, "ready")  # type: ignore[misc]


def until(condition: Callable[[], object], what: str) -> int:
    """The time when it is seen to hold, ns. Raises: Failed."""
    end = time.monotonic_ns() + int(WATCHDOG_S * 1e9)
    while not condition():
        if time.monotonic_ns() > end:
            raise Failed(f"{what}: not within {WATCHDOG_S:g} s")
    return time.monotonic_ns()


@contextmanager
def nodes() -> Iterator[Pair]:
    geometry = Geometry(hidden_size=HIDDEN, block_size=BLOCK, num_blocks=BLOCKS)
    with tempfile.TemporaryDirectory(prefix="eb-") as root:
        configs = [
            PipelineConfig(
                role=role,
                run_dir=Path(root, role[0]),
                geometry=geometry,
                limits=LIMITS,
                lock_memory=False,
                log_level="ERROR",
                max_restarts=1_000_000,  # a minute: more kills than that nobody makes
            )
            for role in ("encode", "language")
        ]
        with launch(configs[0]) as encode, launch(configs[1]) as language:
            yield Pair(
                encode, language, {"encode": look(encode.run_dir).control, "language": look(language.run_dir).control}
            )


@contextmanager
def clients(pair: Pair, own_bytes: int = 0) -> Iterator[tuple[Any, Any, Connection]]:
    """An encoder and a scheduler with requests under way, each with so much memory of its own, and the scheduler's end
    of its pipe.
    """
    to_encoder, from_scheduler = FORK.Pipe()
    ours, theirs = FORK.Pipe()
    source = FORK.Process(target=encoder, args=(pair.encode.run_dir, from_scheduler, own_bytes), daemon=True)
    source.start()
    assert to_encoder.recv() == "ready"
    args = (pair.language.run_dir, pair.encode.bootstrap_addr, theirs, to_encoder, pair.room, own_bytes)
    target = FORK.Process(target=scheduler, args=args, daemon=True)
    target.start()
    assert ours.recv() == "ready"
    try:
        for _ in range(IN_FLIGHT):
            reason = ours.recv() if ours.poll(WATCHDOG_S) else "the scheduler says nothing"
            if reason:
                raise Failed(f"requests do not flow: {reason}")
        yield source, target, ours
    finally:
        for process in (source, target):
            process.kill()
            process.join()
        for end in (to_encoder, from_scheduler, ours, theirs):
            end.close()
        pair.room += 100_000


def held(control: Control) -> int:
    counts = control.blocks.counts()
    return counts.owned + counts.exposed


def kill_client(pair: Pair, side: str, beside: str = "", own_bytes: int = 0) -> Figures:
    """SIGKILL to a client, and to a process of its node with it, while it holds blocks."""
    control = pair.controls[side]
    with clients(pair, own_bytes) as (source, target, _):
        time.sleep(dice.uniform(0, 20e-3))
        until(lambda: held(control), "blocks held")
        client = source if side == "encode" else target
        victims = [client.pid, *([pair.pid(side, beside)] if beside else [])]
        begun = time.monotonic_ns()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        settled = until(lambda: not held(control), "blocks free or quarantined")
        free = until(lambda: control.blocks.counts().free == BLOCKS, "blocks free")
        buried = until(lambda: not client.is_alive(), "the client dead")
    pair.wait_idle()
    return {"settled": (settled - begun) / 1e6, "free": (free - begun) / 1e6, "buried": (buried - begun) / 1e6}


def words(control: Control) -> int:
    return sum(split(control.status.load(slot)).phase + split(control.status.load(slot)).sent for slot in range(64))


def kill_process(pair: Pair, side: str, process: str) -> Figures:
    """SIGKILL to a process of a node under load: until its work goes on, and how many requests failed of it."""
    control = pair.controls[side]
    metrics, index = control.metrics, control.processes.names.index(process)

    def mark() -> int:
        return metrics.row(index)["writes"] if process.startswith("worker") else words(control)

    with clients(pair) as (_, _, ended):
        time.sleep(dice.uniform(0, 20e-3))
        pid = pair.pid(side, process)
        begun = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        until(lambda: pair.pid(side, process) != pid, "restarted")
        before = mark()
        moves = until(lambda: mark() != before, "work goes on")
        ready = until(lambda: control.processes.get(process, Process.STATE) == READY, "ready")
        ended.send("stop")
        reasons = []
        while ended.poll(WATCHDOG_S) and (reason := ended.recv()) != "stopped":
            reasons.append(reason)
    pair.wait_idle()
    return {
        "settled": (moves - begun) / 1e6,
        "ready": (min(ready, moves) - begun) / 1e6,
        "lost": sum(map(bool, reasons)),
    }


def main() -> None:
    num = 6 if bench.quick else 100
    cases: dict[str, Callable[[Pair], Figures]] = {
        "encoder": lambda pair: kill_client(pair, "encode"),
        "scheduler": lambda pair: kill_client(pair, "language"),
        "encoder of 2 GiB": lambda pair: kill_client(pair, "encode", own_bytes=2 << 30),
        "scheduler of 2 GiB": lambda pair: kill_client(pair, "language", own_bytes=2 << 30),
        "encoder and its poller": lambda pair: kill_client(pair, "encode", "poller"),
        "encoder and a worker": lambda pair: kill_client(pair, "encode", f"worker{dice.randrange(2)}"),
        "scheduler and its poller": lambda pair: kill_client(pair, "language", "poller"),
        "a worker": lambda pair: kill_process(pair, "encode", f"worker{dice.randrange(2)}"),
        "the encode poller": lambda pair: kill_process(pair, "encode", "poller"),
        "the language poller": lambda pair: kill_process(pair, "language", "poller"),
    }
    results = Results()
    lost = 0.0
    with nodes() as pair:
        samples: dict[str, list[Figures]] = {name: [] for name in cases}
        for _ in range(num):
            for name, case in cases.items():
                samples[name].append(case(pair))
    for name, figures in samples.items():
        settled = [one["settled"] for one in figures]
        row = {
            "kills": float(len(settled)),
            "p50": percentile(settled, 50),
            "p99": percentile(settled, 99),
            "max": max(settled),
        }
        for other in ("free", "ready"):
            if other in figures[0]:
                row[other] = percentile([one[other] for one in figures], 99)
        if "buried" in figures[0]:
            row["buried"] = percentile([one["buried"] for one in figures], 50)
        lost += sum(one.get("lost", 0.0) for one in figures)
        results.figures[name] = [row]
    columns = {"kills": "kills", "p50": "p50, ms", "p99": "p99, ms", "max": "max, ms"}
    columns |= {"free": "all free, p99, ms", "ready": "READY, p99, ms", "buried": "the kernel says so, p50, ms"}
    bench.show(
        "from SIGKILL to blocks usable or quarantined; for a process of a node, to its work going on", results, columns
    )
    for name in ("encoder", "scheduler", "encoder of 2 GiB", "scheduler of 2 GiB"):
        bench.at_most(f"{name} killed: p99", results.median(name, "p99"), 100, "ms")
    for name in cases:
        bench.at_most(f"{name} killed: max", results.median(name, "max"), 1000, "ms")
    bench.at_most("requests lost by the death of a worker or a poller", lost, 0, "requests")
    bench.finish()


if __name__ == "__main__":
    main()
