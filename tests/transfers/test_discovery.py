"""Nodes with discovery, end to end: who is listed, how each is said to fare, and that no node depends on the server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from support.discovery import QUICK, Discovery, FakeServer, discovery, fake_server, json_answer
from support.encoding import open_sender
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.waiting import wait_until

from embridge import Client, NoRouteError, PipelineConfig, attach, launch
from embridge.allocator.errors import LaunchError
from embridge.allocator.records import DiscoveryState, NodeState, Process
from embridge.allocator.routes import DiscoveryRecord
from embridge.pipeline.cli import main
from embridge.pipeline.config import DEFAULT_ROUTES
from embridge.workers.process_spec import READY

pytestmark = pytest.mark.process


class Cluster(NamedTuple):
    """A discovery server and a node of each role, shared by the tests of this file."""

    server: Discovery
    encode: Station
    language: Station
    run_dirs: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with run_dirs() as path, discovery() as server:
        settings: dict[str, Any] = {"discovery": server.url, **QUICK}
        with station("encode", path / "e", **settings) as source, station("language", path / "l", **settings) as target:
            wait_until(lambda: server.states("encode") == ["READY"] == server.states("language"))
            yield Cluster(server, source, target, path)


@pytest.fixture
def scheduler_client(cluster: Cluster) -> Iterator[Client]:
    with attach(cluster.language.run_dir) as client:
        wait_until(lambda: [n for n in client.encode_nodes() if n.bootstrap_addr == cluster.encode.addr])
        yield client


def said(it: Station) -> DiscoveryRecord:
    """How the node's registrar fares."""
    record = wait_until(it.control.routes.discovery)
    assert record is not None
    return record


def test_a_registered_node_is_listed_with_its_health_and_load_and_found_by_the_other_side(
    cluster: Cluster, scheduler_client: Client, room: int
) -> None:
    """D10: load is what its live slots say; the scheduler reads it from its own shared memory."""
    wait_until(lambda: all(it["healthy"] for it in cluster.server.nodes()))  # all its processes have beaten lately
    (entry,) = cluster.server.nodes()
    assert (entry["bootstrap_addr"], entry["incarnation"]) == (cluster.encode.addr, cluster.encode.node.incarnation)
    assert (entry["healthy"], entry["free_blocks"], entry["outstanding_requests"]) == (True, 8, 0)
    with attach(cluster.encode.run_dir) as encoder:
        open_sender(encoder, room, 300, announce=True)
        wait_until(
            lambda: [(n["outstanding_tokens"], n["outstanding_requests"]) for n in cluster.server.nodes()] == [(300, 1)]
        )
        wait_until(lambda: [n.outstanding_tokens for n in scheduler_client.encode_nodes()] == [300])
        with pytest.raises(
            ValueError, match="encode_nodes: this client is attached to an encode node; attach to the language node"
        ):
            encoder.encode_nodes()
    wait_until(lambda: [n["outstanding_requests"] for n in cluster.server.nodes()] == [0])
    assert scheduler_client.pick_encode_node(100) == cluster.encode.addr
    with pytest.raises(ValueError, match="tokens: -1 is outside"):
        scheduler_client.pick_encode_node(-1)
    cluster.encode.wait_idle()


def test_the_registrar_maps_no_payload_and_a_probe_changes_nothing(cluster: Cluster) -> None:
    """B13: it could not write into a block if it wanted to; and health is asked of the server, which asks no node."""
    for it in (cluster.encode, cluster.language):
        maps = Path(f"/proc/{it.pid_of('registrar')}/maps").read_text()
        segments = set(re.findall(r"/dev/shm/embridge-\d+-\d+-\d+-([a-z]+)-", maps))
        assert segments == {"control"}
        assert "torch" not in maps
    before = [cluster.encode.control.blocks.cells.cell(block) for block in range(8)]
    for _ in range(20):
        assert cluster.server.get("/health")[0] in (200, 503)
    assert [cluster.encode.control.blocks.cells.cell(block) for block in range(8)] == before


def test_a_process_that_does_not_beat_makes_its_node_unhealthy_until_it_does(
    cluster: Cluster, scheduler_client: Client
) -> None:
    """D4: a stopped worker is named; nothing is routed there meanwhile."""
    pid = cluster.encode.pid_of("worker0")
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "worker0 of encode node" in cluster.server.get("/health")[1]["error"], 10)
        answer = cluster.server.get("/health")
        assert answer[0] == 503
        assert ("worker0", cluster.encode.addr) in [
            (it["process"], it["bootstrap_addr"]) for it in answer[1]["unhealthy"]
        ]
        wait_until(lambda: not scheduler_client.encode_nodes()[0].healthy)
        with pytest.raises(NoRouteError, match="worker0 silent"):
            scheduler_client.pick_encode_node()
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: cluster.server.get("/health")[0] == 200, 10)
    assert wait_until(lambda: scheduler_client.encode_nodes()[0].healthy)
    assert scheduler_client.pick_encode_node() == cluster.encode.addr


def test_a_registrar_that_dies_is_started_again_and_the_routes_stay_meanwhile(
    cluster: Cluster, scheduler_client: Client
) -> None:
    """D3, D4: a "dead registrar": the table is in shared memory, and the registration outlives it by its time
    to live.
    """
    pid = cluster.language.pid_of("registrar")
    reported_ns = scheduler_client.encode_nodes()[0].reported_ns
    os.kill(pid, signal.SIGKILL)
    processes = cluster.language.control.processes
    while processes.get("registrar", Process.PID) == pid or processes.get("registrar", Process.STATE) != READY:
        assert [n.bootstrap_addr for n in scheduler_client.encode_nodes()] == [cluster.encode.addr]
        assert len(cluster.server.nodes("language")) == 1
    wait_until(lambda: scheduler_client.encode_nodes()[0].reported_ns > reported_ns)
    assert said(cluster.language).state == DiscoveryState.REGISTERED


@pytest.mark.parametrize(("number", "ended_with"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_server_that_ends_and_comes_back_empty_loses_no_node(
    cluster: Cluster, scheduler_client: Client, number: signal.Signals, ended_with: int
) -> None:
    """D3: its state is in memory; a scheduler does not notice, for its last routes stay, as does what a young server
    does not list yet.
    """
    assert cluster.server.stop(number) == ended_with
    wait_until(lambda: said(cluster.language).state == DiscoveryState.UNREACHABLE)
    assert "Connection refused; is `embridge discovery` running?" in said(cluster.language).reason
    assert scheduler_client.pick_encode_node() == cluster.encode.addr
    status = CliRunner().invoke(main, ["status", "--run-dir", str(cluster.language.run_dir)])
    assert "UNREACHABLE" in status.stdout
    assert cluster.encode.addr in status.stdout
    cluster.server.start()
    seen = set()

    def is_back() -> bool:
        seen.add(len(scheduler_client.encode_nodes()))
        return said(cluster.language).state == DiscoveryState.REGISTERED and cluster.server.states("encode") == [
            "READY"
        ]

    wait_until(is_back)
    assert seen == {1}
    assert said(cluster.language).num_failures == 0


def test_a_node_that_drains_is_told_at_once_and_gone_when_it_stops_and_a_killed_one_runs_out(
    cluster: Cluster, scheduler_client: Client, room: int
) -> None:
    """P18, D5, D3: killed, expired, restarted as a newer incarnation, drained, left."""

    def of(run_dir: Path) -> list[dict[str, Any]]:
        return [n for n in cluster.server.nodes() if n["node_id"] == f"{second.control.node_id:x}"]

    def seen_draining() -> bool:
        return [n.state for n in scheduler_client.encode_nodes() if n.bootstrap_addr == again.addr] == [
            NodeState.DRAINING
        ]

    run_dir = cluster.run_dirs / "second"
    settings: Settings = {"discovery": cluster.server.url, **QUICK, "discovery_ttl_s": 3.0}
    with station("encode", run_dir, **settings) as second:
        wait_until(lambda: of(run_dir))
        second.kill_group()
        second.node.wait(10)
    wait_until(lambda: not of(run_dir))
    assert len(cluster.server.nodes()) == 1
    # It is slow to renew, so that what is seen of the drain was told at once.
    slow: Settings = {**settings, "discovery_interval_s": 20.0, "discovery_ttl_s": 40.0}
    with station("encode", run_dir, **slow) as again, attach(run_dir) as encoder:
        (entry,) = wait_until(lambda: of(run_dir))
        assert entry["incarnation"] == again.node.incarnation > second.node.incarnation
        open_sender(encoder, room, 10)
        again.node.terminate()
        wait_until(lambda: [n["state"] for n in of(run_dir)] == ["DRAINING"], 10)
        wait_until(seen_draining)
        assert {scheduler_client.pick_encode_node() for _ in range(8)} == {cluster.encode.addr}
        again.node.terminate()
        assert again.node.wait(20) == 0
        assert of(run_dir) == []
    wait_until(lambda: len(scheduler_client.encode_nodes()) == 1)


def test_whatever_the_server_does_the_node_goes_on_and_registers_when_it_is_back_to_its_senses(own_dir: Path) -> None:
    """D10, P8: it hangs, talks nonsense, refuses, says too much; each is a reason that is shown and logged once."""
    token = own_dir / "token"

    def write_token(text: str) -> None:
        token.write_text(text)
        token.chmod(0o600)

    def refused_for(reason: str) -> None:
        wait_until(lambda: reason in said(it).reason, 20, lambda: f"{reason!r} in {said(it)}")
        assert said(it).state in (DiscoveryState.UNREACHABLE, DiscoveryState.REFUSED)

    write_token("correct-horse-battery")
    # the longest pause is the time to live
    timing: Settings = {**QUICK, "discovery_ttl_s": 1.0, "discovery_timeout_s": 0.3}
    with (
        fake_server() as server,
        station("encode", own_dir / "e", discovery=server.url, discovery_token_file=token, **timing) as it,
    ):
        for behave, reason in (
            (FakeServer.hang, "no answer within 0.3 s"),
            (server.answer(b"\x00\xff garbage \r\n\r\n"), server.url),
            (server.answer(json_answer([1, 2])), "its answer is not that of a discovery server"),
            (server.answer(json_answer({}, "302 Found\r\nLocation: http://127.0.0.1:1/")), "answered 302"),
            (server.answer(json_answer("x" * (3 << 20))), "its answer has more than"),
            (
                server.answer(json_answer({"error": "token\n\x1b[31mexpected"}, "401 No")),
                "answered 401: token??[31mexpected",
            ),
        ):
            server.behave = behave
            refused_for(reason)
            if behave is FakeServer.hang:
                wait_until(lambda: said(it).num_failures >= 3)
                assert it.says(reason)
                assert it.log().count(reason) == 1
        assert b"Authorization: Bearer correct-horse-battery\r\n" in server.heard
        token.unlink()
        refused_for("No such file")
        write_token("another-horse-battery")
        wait_until(lambda: b"Bearer another-horse-battery" in server.heard)
        assert said(it).num_failures >= 7
        assert it.control.state == NodeState.READY
        assert sum(it.restarts().values()) == 0
        with attach(it.run_dir) as client:
            open_sender(client, 1, 10)
        answers = [json_answer({"result": "registered"}), json_answer({"routes": [], "server_up_s": 9.0})]
        server.behave = lambda connection: server.answer_by_method(connection, *answers)
        wait_until(lambda: said(it).state == DiscoveryState.REGISTERED, 20, lambda: said(it))
        assert said(it).num_failures == 0
        assert "horse" not in it.log()


def test_a_token_that_cannot_be_read_stops_the_launch_before_any_process_is_started(own_dir: Path) -> None:
    token = own_dir / "token"
    token.write_text("correct-horse-battery")
    token.chmod(0o644)
    config = PipelineConfig(
        role="encode", run_dir=own_dir / "e", discovery="http://10.0.0.1:1", discovery_token_file=token
    )
    assert config.limits.max_routes == DEFAULT_ROUTES
    with pytest.raises(LaunchError, match=r"discovery_token_file: token file .* mode 644 .* must be 600"):
        launch(config)


def test_a_client_of_a_node_without_discovery_is_told_so(receiving: Any) -> None:
    with pytest.raises(ValueError, match="has no discovery; launch it with --discovery http://host:port"):
        receiving.client.pick_encode_node()
