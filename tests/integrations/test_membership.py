"""An engine's membership of a node: nothing that becomes of the node is raised into the engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.waiting import wait_until

from embridge import AttachError, ConfigError, LaunchError, PipelineConfig
from embridge.integrations import membership
from embridge.integrations.engine_settings import EngineSettings, naming_encoders
from embridge.integrations.membership import EngineNodes, Membership
from embridge.workers.timing import NS
from embridge.workers.transfer import engines

KILLED = """
import os, signal, sys
from pathlib import Path
from embridge import PipelineConfig
from embridge.integrations.membership import Membership
run_dir = Path(sys.argv[1])
geometry = {"hidden_size": 64, "num_blocks": 8}
it = Membership(run_dir, PipelineConfig.from_env(role="language", run_dir=run_dir, geometry=geometry))
assert (run_dir / "lock").exists()
os.kill(os.getpid(), signal.SIGKILL)
"""


class StubNode:
    """A node, and the client that joins it."""

    def __init__(self) -> None:
        self.node_gone = self.is_stopped = False
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def stop(self) -> None:
        self.is_stopped = True

    def wait(self, timeout_s: float) -> int | None:
        return 1 if self.node_gone else None


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[StubNode]:
    """Those that were launched; the last one is joined."""
    made: list[StubNode] = []

    def launch(config: Any, *, keeps_run_dir: bool) -> StubNode:
        assert not keeps_run_dir
        made.append(StubNode())
        return made[-1]

    monkeypatch.setattr(membership, "launch", launch)
    monkeypatch.setattr(membership, "attach", lambda run_dir: made[-1])
    monkeypatch.setattr(membership, "AGAIN_S", 0.001)
    return made


def test_a_node_that_is_gone_is_launched_and_joined_again(nodes: list[StubNode]) -> None:
    it = Membership(Path("/there"), PipelineConfig(role="language"))
    assert it.look() is nodes[0]  # type: ignore[comparison-overlap]
    nodes[0].node_gone = True
    wait_until(lambda: it.look() is not None)
    assert it.look() is nodes[1]  # type: ignore[comparison-overlap]
    assert (nodes[0].closed, nodes[0].is_stopped) == (1, True)  # what this process had of it is closed
    it.close()
    assert (nodes[1].closed, nodes[1].is_stopped) == (1, True)


@pytest.mark.parametrize("error", [AttachError("nobody"), OSError("no file"), RuntimeError("no thread")])
def test_whatever_joining_again_raises_it_is_tried_again(
    nodes: list[StubNode], error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And said once."""
    it = Membership(Path("/there"), PipelineConfig(role="language"))
    attach, left = vars(membership)["attach"], [1, 2, 3]

    def fail(run_dir: Path) -> Any:
        if left:
            left.pop()
            raise type(error)(*error.args)
        return attach(run_dir)

    monkeypatch.setattr(membership, "attach", fail)
    nodes[0].node_gone = True
    wait_until(lambda: it.look() is not None)
    assert not left
    assert len(nodes) == 2  # it was launched once
    assert [text for text in caplog.messages if str(error) in text] == [f"the node in /there is not joined: {error}"]
    it.close()


def test_without_a_thread_to_be_had_the_node_stays_gone_and_nothing_is_raised(
    nodes: list[StubNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Membership(Path("/there"), PipelineConfig(role="language"))

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    nodes[0].node_gone = True
    with monkeypatch.context() as patch:
        patch.setattr(membership, "threading", SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=fail)))
        assert it.look() is None
        assert it.look() is None
    wait_until(lambda: it.look() is not None)
    it.close()


class Pauses:
    """In the place of the event that ends a membership: time passes as it is waited for."""

    def __init__(self, it: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        self.waited: list[float] = []
        it.clock = lambda: self.now_ns
        it._launched_ns = 0
        monkeypatch.setattr(it, "_stop", self)

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass

    def wait(self, timeout_s: float) -> bool:
        self.waited.append(timeout_s)
        self.now_ns += int(timeout_s * NS)
        return False


def test_a_node_that_does_not_stay_is_launched_after_pauses_that_double(
    nodes: list[StubNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a limit, whether it does not start or ends soon; one that has lived for long is launched at once."""
    it = Membership(Path("/there"), PipelineConfig(role="language"))
    pauses = Pauses(it, monkeypatch)
    monkeypatch.setattr(membership, "AGAIN_S", 0.5)
    real, left = vars(membership)["launch"], [1, 2]

    def launch(config: Any, *, keeps_run_dir: bool) -> Any:
        if left:
            left.pop()
            raise LaunchError("it does not start")
        return real(config, keeps_run_dir=keeps_run_dir)

    monkeypatch.setattr(membership, "launch", launch)
    for _ in range(7):
        nodes[-1].node_gone = True
        wait_until(lambda: it.look() is not None)
    assert pauses.waited == [0.5, 0.5, 1, 0.5, 2, 4, 8, 16, 30, 30, 30]  # two were waited after what was raised
    pauses.now_ns += 60 * NS
    nodes[-1].node_gone = True
    wait_until(lambda: it.look() is not None)
    assert pauses.waited[-1] == 0
    it.close()


@pytest.mark.process
def test_the_run_directory_of_a_launched_node_goes_with_it_but_not_what_is_a_user_s(tmp_path: Path) -> None:
    """P9: also when whoever launched it was killed; the launcher takes it away itself."""
    run_dir = tmp_path / "node"
    shape: dict[str, Any] = {"geometry": {"hidden_size": 64, "num_blocks": 8}}
    config = PipelineConfig.from_env(role="language", run_dir=run_dir, **shape)
    subprocess.run([sys.executable, "-c", KILLED, str(run_dir)], timeout=60, check=False)
    wait_until(lambda: not run_dir.exists(), 30)
    assert run_dir.parent.exists()
    run_dir.mkdir(mode=0o700)
    (run_dir / "mine").touch()
    (run_dir / engines.log_name("worker0", ["mooncake"])).touch()  # as a worker does whose engine's library speaks
    it = Membership(run_dir, config)
    assert it.look() is not None
    it.close()
    assert [path.name for path in run_dir.iterdir()] == ["mine"]


@pytest.mark.parametrize("limits", [3, None, ["num_slots"]])
@pytest.mark.parametrize("role", ["encode", "language"])
def test_settings_of_a_node_that_are_no_table_are_refused_by_their_name(role: str, limits: Any) -> None:
    settings = EngineSettings.of({"launch": True, "node": {"limits": limits}}, "the engine's options")
    with pytest.raises(ConfigError, match=r"limits: expected a table"):
        settings.config(role, Path("/there"))


def test_the_shelf_of_a_node_that_is_launched_is_that_of_its_limits_where_they_have_one() -> None:
    for limits, size in (({}, 1 << 20), ({"shelf_bytes": 1 << 21}, 1 << 21)):
        settings = EngineSettings.of({"launch": True, "shelf_bytes": 1 << 20, "node": {"limits": limits}}, "options")
        config = settings.config("encode", Path("/there"))
        assert config is not None
        assert config.limits.shelf_bytes == size


def test_an_engine_has_a_node_of_each_of_its_roles_and_one_of_its_processes_launches_it(
    nodes: list[StubNode],
) -> None:
    """All of them are left together, the latest first."""
    settings = EngineSettings.of({"launch": True}, "the engine's options")
    first, second = (EngineNodes(settings, engine, is_both=True) for engine in ("e0", "e1"))
    encode, language = first.join("encode", launches=True), first.join("language", launches=True)
    assert len(nodes) == 2
    follower = second.join("encode", launches=False)
    assert len(nodes) == 2
    names = [member.run_dir.name for member in (encode, language, follower)]
    assert [name.removeprefix("embridge-") for name in names] == ["encode-e0", "language-e0", "encode-e1"]
    first.close()
    first.close()
    assert [node.is_stopped for node in nodes] == [True, True]


def test_an_engine_that_may_fetch_from_nobody_is_told_which_setting_to_give() -> None:
    said = r"^options: encoders: name the encode nodes .* \(it has no discovery\)$"
    with pytest.raises(ConfigError, match=said), naming_encoders("options"):
        raise ValueError("it has no discovery")


@pytest.mark.parametrize(
    ("name", "can_be"), [("a" * 256, True), ("a" * 257, False), ("é" * 128, True), ("é" * 129, False), ("", False)]
)
def test_a_name_is_its_item_s_key_where_it_can_be_one(name: str, can_be: bool) -> None:
    """At most 256 bytes, not characters."""
    found = EngineSettings().key(name)
    assert found == name if can_be else re.fullmatch("[0-9a-f]{64}", found)
