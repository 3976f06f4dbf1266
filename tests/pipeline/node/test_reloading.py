"""What a running node takes over from a configuration that was read again, without one."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from embridge import LaunchError, PipelineConfig, Timing
from embridge.allocator.geometry import Geometry
from embridge.pipeline.node.launch import Node
from embridge.pipeline.node.launch_messages import Ready
from embridge.pipeline.node.reloading import reloaded
from embridge.workers.keys import allow_line, new_key_pair, write_key_file
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

RUNNING = PipelineConfig(role="encode")


def test_every_group_is_compared_and_what_needs_a_restart_is_not_taken_over() -> None:
    fresh = replace(
        RUNNING,
        log_level="DEBUG",
        verify=True,
        geometry=Geometry(num_blocks=7),
        timing=Timing(scan_s=2.0),
        engine_settings={"mooncake": MooncakeSettings(protocol="rdma")},
    )
    in_force, told = reloaded(RUNNING, fresh, None)
    assert in_force == replace(RUNNING, log_level="DEBUG")
    assert told.taken == ["log_level DEBUG (was INFO)"]
    assert told.restart == [
        "verify True (is False)",
        "geometry.num_blocks 7 (is 0)",
        "timing.scan_s 2.0 (is 1.0)",
        "mooncake.protocol rdma (is tcp)",
    ]
    assert str(reloaded(in_force, in_force, None)[1]) == "now in force: nothing new"


def test_a_key_file_that_cannot_be_read_any_more_is_named(tmp_path: Path) -> None:
    pair = new_key_pair()
    write_key_file(tmp_path / "node.key", pair)
    (tmp_path / "nodes.allow").write_text(allow_line("-", pair.public) + "\n")
    (tmp_path / "nodes.allow").chmod(0o600)
    config = replace(RUNNING, key_file=tmp_path / "node.key", allow_file=tmp_path / "nodes.allow")
    assert str(reloaded(config, config, pair)[1]) == f"now in force: {tmp_path}/nodes.allow with 1 keys"
    (tmp_path / "node.key").chmod(0o644)
    (wrong,) = reloaded(config, config, pair)[1].wrong
    assert wrong.startswith(f"key file {tmp_path}/node.key: mode 644")
    assert wrong.endswith("; a restart would fail")


@pytest.fixture
def launcher() -> Iterator[tuple[Node, socket.socket]]:
    """A node whose launcher is this test, at the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, subprocess.Popen(["true"]) as process:
        process.wait()
        yield Node(process, RUNNING, Ready(), ours.fileno()), theirs


def test_a_launcher_that_does_not_answer_is_an_error_and_its_late_answer_is_not_the_next_ones(
    launcher: tuple[Node, socket.socket],
) -> None:
    node, theirs = launcher
    with pytest.raises(LaunchError, match="reload: no answer within 0 s"):
        node.reload(RUNNING, timeout_s=0)
    theirs.send(b'{"taken": ["the first"], "restart": [], "wrong": []}')
    with pytest.raises(LaunchError, match="reload: no answer within 0 s"):
        node.reload(RUNNING, timeout_s=0)


def test_a_launcher_that_has_ended_is_an_error(launcher: tuple[Node, socket.socket]) -> None:
    node, theirs = launcher
    theirs.close()
    with pytest.raises(LaunchError, match="reload: the launcher cannot be told: Broken pipe; it has ended"):
        node.reload(RUNNING)
