"""Who takes part in a storm, and the little that is done to processes of all kinds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support.ports import port_to_keep

from embridge import Node, PipelineConfig, Timing
from embridge.allocator.control import Control
from embridge.allocator.geometry import Geometry, Limits
from embridge.allocator.records import Process
from embridge.demo.hosts import Host
from embridge.workers.keys import allow_line, new_key_pair, write_key_file
from storm.items import SHELF_BYTES
from storm.plan import LONGEST

POOL_TOKENS, WINDOW_TOKENS = 768, 512
START_S = 180.0  # for nodes and clients to be up, on a machine that is busy


@dataclass(kw_only=True)
class Options:
    """What a storm is to be like. It ends with `kills` SIGKILLs or after `seconds`, whichever is first."""

    engine: str = "shm"
    seed: int = 1
    kills: int = 10
    seconds: float = 60.0
    history: Path = Path("storm.jsonl")
    kinds: tuple[str, ...] | None = None  # these; None: those that the seed draws
    encode_nodes: int = 1
    encoders: int = 2  # of each encode node
    schedulers: int = 2
    in_flight: int = 10  # of each scheduler
    longest: int = LONGEST  # tokens of a request
    block_size: int = 32  # tokens; the pools keep their size
    deadline_s: float = 30.0
    peer_timeout_s: float = 5.0
    pause_s: float = 0.6  # from one fault to the next, at most
    bounded_memory: bool = False  # /dev/shm is this storm's own, and small
    two_hosts: bool = False  # in two network namespaces, with a cable that can be pulled, and with keys (root)
    without: frozenset[str] = frozenset()


@dataclass(slots=True)
class NodeSeat:
    """A node of the storm, through all its lives."""

    name: str
    config: PipelineConfig
    host: Host | None = None
    node: Node | None = None
    control: Control | None = None
    generation: int = 0
    cells: Any = None
    claims: Any = None  # of a language node
    down: bool = True  # it was killed, or was never up

    @property
    def run_dir(self) -> Path:
        return self.config.directory

    @property
    def is_up(self) -> bool:
        return self.node is not None and not self.down

    def held_items(self) -> list[int]:
        """Of a node with a shelf: items that are pinned, or being filled, and pages of slots that fetches have."""
        assert self.control is not None
        if not self.control.has_shelf:
            return []
        counts, lanes = self.control.shelf.counts(), self.control.lanes
        return [counts.pinned, counts.filling, len(lanes.pages_of(lanes.own_lane))]

    def pids(self) -> dict[str, int]:
        assert self.control is not None
        table = self.control.processes
        return {name: table.get(name, Process.PID) for name in table.names}


@dataclass(slots=True)
class ClientSeat:
    """The place of a client; each time that it dies another process takes it, under the next number."""

    base: str
    side: str
    node: str
    number: int = 0
    process: Any = None
    connection: Connection | None = None
    joined: bool = False
    is_struck: bool = False  # it has stopped in the middle of a write, and others have its requests meanwhile
    rooms: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.base}.{self.number}"


@dataclass(slots=True)
class Wait:
    """Something that is measured from a kill on: `done` says when it is over, `node` whose death ends it."""

    fault: int
    event: str
    node: NodeSeat
    generation: int
    since_ns: int
    done: Callable[[], bool]
    fields: dict[str, Any]


def write_keys(path: Path, hosts: dict[str, Host]) -> dict[str, dict[str, Path]]:
    """A key for each host, and one list of both: what a node that is bound to no loopback address needs."""
    pairs, allow_file = {role: new_key_pair() for role in hosts}, path / "nodes.allow"
    allow_file.write_text("".join(allow_line(host.address, pairs[role].public) + "\n" for role, host in hosts.items()))
    for role, pair in pairs.items():
        write_key_file(path / f"{role}.key", pair)
    return {role: {"key_file": path / f"{role}.key", "allow_file": allow_file} for role in hosts}


def node_config(options: Options, role: str, run_dir: Path, where: dict[str, Any]) -> PipelineConfig:
    """A small node; `where` are its address and keys, with two hosts."""
    # one seed in two has nodes that come back at the address they had, one in two at another
    ports = [port_to_keep(), port_to_keep()] if options.seed % 2 else [0, 0]
    block_size = options.block_size
    return PipelineConfig(
        role=role,
        run_dir=run_dir,
        **where,
        engine=options.engine,
        geometry=Geometry(
            hidden_size=128, block_size=block_size, num_blocks=POOL_TOKENS // block_size, deepstack_layers=1
        ),
        limits=Limits(
            num_slots=512,
            max_clients=6,
            window_blocks=WINDOW_TOKENS // block_size,
            max_destinations=2,
            max_peers=8,
            max_peer_slots=512,
            ring_records=512,
            shelf_bytes=SHELF_BYTES if role == "encode" else 0,
        ),
        timing=Timing(
            request_timeout_s=options.deadline_s,
            peer_timeout_s=options.peer_timeout_s,
            fence_after_s=1.0,
            ready_timeout_s=START_S,
        ),
        default_allocate_tokens=128,
        max_restarts=1_000_000,  # a storm that kills a process every second is no crash loop
        bootstrap_port=ports[0],
        poller_port=ports[1],
        lock_memory=False,
        log_level="INFO",
    )


def nothing() -> None:
    """There is nothing to ease."""


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def end_process(process: Any, connection: Connection | None, farewell: object) -> None:
    """Tell it to end; by force, if it does not."""
    assert connection is not None
    with contextlib.suppress(OSError):
        connection.send(farewell)
    connection.close()
    process.join(10)
    if process.exitcode is None:
        process.kill()
        process.join()
    process.close()
