"""`embridge launch --check`: whether a node could start here, without one."""

from __future__ import annotations

import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from embridge.allocator.geometry import Geometry, Limits
from embridge.pipeline.config import PipelineConfig
from embridge.pipeline.node.start_checks import start_checks


def failed(run_dir: Path, **settings: Any) -> dict[str, str]:
    """What each check that fails saw, by its name."""
    config = PipelineConfig(role="language", run_dir=run_dir, **{"geometry": Geometry(num_blocks=1), **settings})
    before = sorted(run_dir.parent.rglob("*"))
    checks = start_checks(config)
    assert sorted(run_dir.parent.rglob("*")) == before, "nothing is made"
    return {check.name: check.seen for check in checks if check.state == "fail"}


def test_where_a_node_could_start_nothing_fails(tmp_path: Path) -> None:
    assert failed(tmp_path / "node") == {}
    (tmp_path / "node").mkdir(mode=0o700)
    (tmp_path / "node" / "lock").touch()
    assert failed(tmp_path / "node") == {}


def test_a_run_directory_that_others_may_enter_fails(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir(mode=0o755)
    assert "mode 755" in failed(tmp_path / "node")["run directory"]


def test_a_file_in_the_place_of_the_run_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    assert "Not a directory" in failed(tmp_path / "node")["run directory"]


def test_a_port_that_is_taken_fails(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert failed(tmp_path / "node", poller_port=port) == {
            "ports": f"poller port: 127.0.0.1:{port}: Address already in use"
        }


def test_two_ports_that_are_one_fail(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for other in ({"poller_port": port}, {"metrics_addr": f"127.0.0.1:{port}"}):
        told = failed(tmp_path / "node", bootstrap_port=port, **other)
        assert told["ports"].endswith(f"port: 127.0.0.1:{port}: Address already in use")


def test_a_pool_that_does_not_fit_fails_with_the_number_that_would(tmp_path: Path) -> None:
    huge = Geometry(hidden_size=1 << 20, block_size=16383, num_blocks=1 << 20)
    assert "shared memory" in failed(tmp_path / "node", geometry=huge)["shared memory"]


def test_too_few_descriptors_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _number: (100, 100))
    assert "a process may have 100" in failed(tmp_path / "node")["descriptors"]


def test_keys_and_tokens_that_cannot_be_read_fail(tmp_path: Path) -> None:
    told = failed(
        tmp_path / "node",
        key_file=tmp_path / "node.key",
        allow_file=tmp_path / "nodes.allow",
        discovery="http://127.0.0.1:1",
        discovery_token_file=tmp_path / "token",
        limits=Limits(max_routes=4),
    )
    assert f"key file {tmp_path}/node.key: No such file or directory" in told["keys"]
    assert f"{tmp_path}/token" in told["discovery"]


def test_what_an_etcd_asks_of_a_node_is_looked_at_too(tmp_path: Path) -> None:
    """Its file holds a user and a password, and authorities have to be some."""
    login, ca_file = tmp_path / "login", tmp_path / "ca.pem"
    login.touch(0o600)
    login.write_text("a-token-without-a-user")
    ca_file.write_text("no certificate")

    def told() -> str:
        url = "etcds://10.0.0.1:2379"
        return failed(
            tmp_path / "node", discovery=url, discovery_token_file=login, discovery_ca_file=ca_file
        )["discovery"]

    assert f"discovery_token_file: token file {login}: it has no user and password" in told()
    login.write_text("me:pw")
    assert f"discovery_ca_file: {ca_file}: " in told()


def test_an_engine_that_this_machine_does_not_have_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "Mooncake is not installed" in failed(tmp_path / "node", engine="mooncake")["engines"]
