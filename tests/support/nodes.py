"""Nodes for tests: in short run directories of their own, with their messages in a file."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from embridge import Limits, Node, PipelineConfig, Timing, launch
from embridge.allocator.blocks import BlockCounts
from embridge.allocator.control import Control
from embridge.allocator.geometry import Geometry
from embridge.allocator.records import Lane, LaneState, Process
from embridge.pipeline.inspection.observe import requests
from embridge.workers.transfer.engines import mooncake
from support.opening import open_control
from support.remains import alive
from support.waiting import wait_until

Settings = dict[str, Any]
"""What `station` and `config_of` take by name."""

BEAT_S = 1.0  # of shared nodes: the beats of some twenty that nobody uses any more cost a tenth of the machine
LIMITS = Limits(
    num_workers=1,  # a process costs a tenth of a second of a core, and most nodes start for one test
    num_slots=512,
    max_clients=6,
    max_destinations=4,
    window_blocks=64,
    max_peers=8,
    max_peer_slots=512,
    ring_records=512,
)
TWO_WORKERS = replace(LIMITS, num_workers=2)
"""As by default: of the nodes that many tests share, and of those that a test about workers has to itself."""

_NO_MOONCAKE = mooncake.why_unavailable()
_MOONCAKE_IS_THERE = pytest.mark.skipif(bool(_NO_MOONCAKE), reason=_NO_MOONCAKE or "it is there")
every_engine = pytest.mark.parametrize(
    "engine", ["shm", pytest.param("mooncake", marks=_MOONCAKE_IS_THERE)], indirect=True, scope="session"
)
"""The tests run over every engine, on nodes that offer no other (conformance)."""
every_engine_in_storms = pytest.mark.parametrize(
    "engine",
    ["shm", pytest.param("mooncake", marks=[_MOONCAKE_IS_THERE, pytest.mark.storm])],
    indirect=True,
    scope="session",
)
"""For what an engine has little to do with: over Mooncake in `make storm`."""


@dataclass(slots=True)
class Station:
    """A node, and what a test wants to see of it from outside."""

    node: Node
    log_path: Path
    control: Control

    @property
    def run_dir(self) -> Path:
        return self.node.run_dir

    @property
    def addr(self) -> str:
        return self.node.bootstrap_addr

    @property
    def geometry(self) -> Geometry:
        return self.control.geometry

    def log(self) -> str:
        """What its processes have written on standard error: a thread of each writes it, some time after what it is
        about.
        """
        return self.log_path.read_text()

    def says(self, text: str) -> bool:
        """Wait until its log has this text; True, or the test fails with the log."""
        wait_until(lambda: text in self.log(), what=lambda: f"{text!r} in the log:\n{self.log()}")
        return True

    def counts(self) -> BlockCounts:
        return self.control.blocks.counts()

    def in_flight(self) -> list[dict[str, Any]]:
        """The requests whose slots are not released."""
        return requests(self.control, 0)

    def dead_lanes(self) -> list[int]:
        """The seats of clients that have left and are not reaped yet."""
        lanes = self.control.lanes
        return [lane for lane in range(lanes.num_lanes) if lanes.get(lane, Lane.STATE) == LaneState.DEAD]

    def pid_of(self, process: str) -> int:
        return self.control.processes.get(process, Process.PID)

    def pids(self) -> dict[str, int]:
        """All processes of the node by name."""
        return {name: self.pid_of(name) for name in self.control.processes.names}

    def restarts(self) -> dict[str, int]:
        return {name: self.control.processes.get(name, Process.NUM_RESTARTS) for name in self.control.processes.names}

    def kill_group(self) -> None:
        """SIGKILL for every process of the node at once."""
        os.killpg(self.node.pid, signal.SIGKILL)

    def wait_idle(self, timeout_s: float = 20.0) -> None:
        """Until every block is free, every slot released and every client that has left forgotten (D6)."""
        wait_until(
            lambda: (
                self.counts().free == self.control.blocks.num_blocks and not self.in_flight() and not self.dead_lanes()
            ),
            timeout_s,
            lambda: f"{self.control.role.name} node idle: {self.counts()}, {self.dead_lanes()}, {self.in_flight()[:4]}",
        )
        assert sum(self.counts()) == self.control.blocks.num_blocks


def config_of(role: str, run_dir: Path, **settings: Any) -> PipelineConfig:
    """Small tables, nothing locked, and patience with a machine that runs many tests.

    `settings` as `PipelineConfig` takes them, those of Geometry and Timing by their own names.
    """
    geometry = {key: settings.pop(key) for key in list(settings) if key in Geometry.__dataclass_fields__}
    timing = {key: settings.pop(key) for key in list(settings) if key in Timing.__dataclass_fields__}
    return PipelineConfig(
        role=role,
        run_dir=run_dir,
        geometry=Geometry(**{"hidden_size": 64, "num_blocks": 8, **geometry}),
        timing=Timing(**{"request_timeout_s": 60.0, "peer_timeout_s": 30.0, "fence_after_s": 1.0, **timing}),
        lock_memory=False,
        **{"limits": LIMITS, "log_level": "INFO", "metrics_addr": "off", **settings},
    )


def start_node(config: PipelineConfig, log: Path | int, *, within: Sequence[str] = ()) -> Node:
    """`launch`, with what the node writes on standard error appended to a file, or to a descriptor (its processes
    inherit ours).
    """
    sys.stderr.flush()
    ours = os.dup(2)
    theirs = (
        os.dup(log)
        if isinstance(log, int)
        else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    )
    try:
        os.dup2(theirs, 2)
        return launch(config, within=within)
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(theirs)


@contextmanager
def station(
    role: str, run_dir: Path, *, within: Sequence[str] = (), stderr: int | None = None, **settings: Any
) -> Iterator[Station]:
    """A node for the length of a block. All its processes are gone afterwards, whatever became of it.

    `stderr`: a descriptor on which it speaks, instead of its log file.
    """
    log_path = run_dir.with_suffix(".log")
    node = start_node(config_of(role, run_dir, **settings), log_path if stderr is None else stderr, within=within)
    pids: dict[str, int] = {}
    try:
        it = Station(node, log_path, open_control(node.run_dir))
        pids = it.pids()
        yield it
    finally:
        node.stop()
        wait_until(
            lambda: not alive(list(pids.values())), 5.0, lambda: f"{role} node gone: {alive(list(pids.values()))}"
        )
