"""A node as a service: what its manager is told, what SIGHUP reloads, and how it is drained and stopped from elsewhere.

One node serves most of the file. The unit's command launches it, and a socket of the test's own stands for systemd's.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from support.remains import children_of
from support.told_nodes import node as made_by_hand
from support.waiting import wait_until

from embridge import EmbeddingRequest, Node, PreallocQueue, Timing, TransferQueue, attach
from embridge.allocator.geometry import Role
from embridge.allocator.records import Process
from embridge.pipeline.cli import main
from embridge.pipeline.cli.foreground import Pulse
from embridge.pipeline.node.service_manager import ServiceManager
from embridge.workers.keys import allow_line, new_key_pair, write_key_file
from embridge.workers.timing import NS

pytestmark = pytest.mark.process

UNIT = Path(__file__).parents[2] / "deploy" / "embridge@.service"
WATCHDOG_S = 0.4
SETTINGS = """\
role = "language"
key_file = "{folder}/node.key"
allow_file = "{folder}/nodes.allow"
[geometry]
hidden_size = 64
num_blocks = 4
[timing]
silent_after_s = 0.6
"""


def exec_of(key: str) -> list[str]:
    """The words of this line of the unit."""
    (line,) = re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text())
    return str(line).split()


@dataclass
class Service:
    """The command, and what its manager has been told, each datagram as its values by name."""

    folder: Path
    process: subprocess.Popen[str]
    manager: socket.socket
    told: list[dict[str, str]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "node"

    def hear(self, timeout_s: float = 30.0) -> dict[str, str]:
        """The next datagram. Raises TimeoutError."""
        self.manager.settimeout(timeout_s)
        said = self.manager.recv(4096).decode()
        self.told.append(dict(line.split("=", 1) for line in said.split("\n")))
        return self.told[-1]

    def hear_nothing(self, for_s: float) -> None:
        """Hear what is on its way, until nothing comes for so long."""
        try:
            while True:
                self.hear(for_s)
        except TimeoutError:
            pass

    def hear_of(self, name: str) -> dict[str, str]:
        """The next datagram that has this value; signs of life come between."""
        while name not in (said := self.hear()):
            assert set(said) == {"WATCHDOG"}, said
        return said

    def asked(self, path: str) -> tuple[int, str]:
        """What the node's HTTP port answers."""
        found = re.search(r"http=http://(\S+)", self.log())
        assert found is not None
        connection = http.client.HTTPConnection(found[1], timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def reload(self, text: str = "") -> str:
        """Change the settings, and ask for a reload as systemd does. Returns what the manager is told at its end."""
        (self.folder / "node.toml").write_text(text + SETTINGS.format(folder=self.folder))
        before_us = time.monotonic_ns() // 1000
        subprocess.run([str(self.process.pid) if it == "$MAINPID" else it for it in exec_of("ExecReload")], check=True)
        began = self.hear_of("RELOADING")
        assert began["RELOADING"] == "1"
        assert before_us <= int(began["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        done = self.hear_of("READY")
        return done["STATUS"]


@contextmanager
def launched(folder: Path) -> Iterator[Service]:
    pair = new_key_pair()
    write_key_file(folder / "node.key", pair)
    (folder / "nodes.allow").write_text(allow_line("127.0.0.1", pair.public) + "\n")
    (folder / "nodes.allow").chmod(0o600)
    (folder / "node.toml").write_text('log_level = "WARNING"\n' + SETTINGS.format(folder=folder))
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(folder / "notify"))
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        file = stack.enter_context(open(folder / "log", "wb"))
        _, *words = exec_of("ExecStart")
        places = {"/etc/embridge/%i.toml": str(folder / "node.toml"), "/run/embridge-%i": str(folder / "node")}
        # `env`: under `nohup` these tests, and what they start, would ignore SIGHUP
        words = ["env", "--default-signal=HUP", sys.executable, "-m", "embridge", *(places.get(it, it) for it in words)]
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True, text=True)
        it = Service(folder, process, manager)
        try:
            it.hear()
            yield it
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with launched(tmp_path_factory.mktemp("service")) as it:
        yield it


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_the_manager_is_told_when_the_node_is_ready_and_again_and_again_that_it_lives(service: Service) -> None:
    ready = service.told[0]
    assert ready["READY"] == "1"
    assert ready["STATUS"].startswith("language node at tcp://127.0.0.1:")
    assert "READY role=language" in service.log()
    assert service.asked("/livez") == service.asked("/readyz") == (200, "ok\n")
    for _ in range(2):
        assert service.hear(WATCHDOG_S * 10) == {"WATCHDOG": "1"}
    (launcher,) = children_of(service.process.pid)
    for pid in (launcher, *children_of(launcher)):  # nobody else speaks to it
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_launcher_that_hangs_is_not_said_to_live(service: Service) -> None:
    """Though the command itself goes on: the manager goes by that, and ends and restarts the service."""
    (launcher,) = children_of(service.process.pid)
    os.kill(launcher, signal.SIGSTOP)
    try:
        service.hear_nothing(WATCHDOG_S * 6)
    finally:
        os.kill(launcher, signal.SIGCONT)
    assert service.hear() == {"WATCHDOG": "1"}


def test_only_the_launchers_beats_count_for_the_manager() -> None:
    """D4: the launcher mends the others itself; one that has not beaten in time is not said to live."""
    control, now_ns = made_by_hand(Role.LANGUAGE), time.monotonic_ns()
    config: Any = SimpleNamespace(timing=Timing(silent_after_s=10.0))
    look: Any = SimpleNamespace(control=control)
    pulse = Pulse(cast(Node, SimpleNamespace(config=config)), ServiceManager({}))
    assert not pulse.is_beating(), "nothing is seen yet"
    pulse._seen = look
    for name in control.processes.names:
        control.processes.set(name, Process.BEAT_NS, now_ns)
    control.processes.set("poller", Process.BEAT_NS, now_ns - 11 * NS)
    assert pulse.is_beating()
    control.processes.set("launcher", Process.BEAT_NS, now_ns - 11 * NS)
    assert not pulse.is_beating()


def test_sighup_takes_over_the_level_of_the_log_and_the_allow_list_and_names_what_needs_a_restart(
    service: Service,
) -> None:
    """P18: the same processes go on."""
    pids = children_of(*children_of(service.process.pid))
    said = service.reload('log_level = "INFO"\ndefault_allocate_tokens = 77\n')
    allow_file = service.folder / "nodes.allow"
    assert said == (
        f"now in force: log_level INFO (was WARNING), {allow_file} with 1 keys; "
        "needs a restart: default_allocate_tokens 77 (is 8192)"
    )
    wait_until(lambda: f"reloaded: {said}" in service.log())  # a thread of the launcher writes it

    other = new_key_pair()
    with open(allow_file, "a") as file:
        file.write(allow_line("-", other.public) + "\n")
    for name in ("bootstrap", "poller"):  # a line of level INFO, of processes that were born with WARNING
        line = rf"{name}\S* allow file {re.escape(str(allow_file))}: 2 keys"
        wait_until(lambda: re.search(line, service.log()))  # noqa: B023
    assert f"{allow_file} with 2 keys" in service.reload()
    assert children_of(*children_of(service.process.pid)) == pids


def test_what_cannot_be_used_on_sighup_changes_nothing(service: Service) -> None:
    allow_file, key_file = service.folder / "nodes.allow", service.folder / "node.key"
    before, key = allow_file.read_text(), key_file.read_text()
    allow_file.write_text("nonsense\n")
    key_file.unlink()
    write_key_file(key_file, new_key_pair())
    said = service.reload()
    assert f"needs a restart: {key_file}, which holds another key" in said
    assert f"allow file {allow_file}, line 1: 1 field" in said
    assert said.endswith("the list as it was before stays in force")
    allow_file.write_text(before)
    key_file.write_text(key)

    said = service.reload("verify = 5\n")
    assert said.startswith("not reloaded: verify: expected true or false, got 5, a whole number (from ")
    assert f"embridge: SIGHUP: {said}" in service.log()
    assert "needs a restart" not in service.reload()


def test_check_says_that_a_node_runs_there_already(service: Service) -> None:
    words = ("launch", "--config", str(service.folder / "node.toml"), "--run-dir", str(service.run_dir), "--check")
    done = run(*words, "--json")
    failed = [check for check in json.loads(done.stdout) if check["state"] == "fail"]
    assert [check["name"] for check in failed] == ["run directory"]
    assert failed[0]["seen"].endswith("a node is running there")
    assert done.exit_code == 1
    assert "stop it or choose another --run-dir" in " ".join(run(*words).stdout.split())


def test_drain_waits_for_requests_in_flight_and_stop_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the node is left then, and the command that launched it has succeeded."""
    with launched(tmp_path) as service:
        with socket.create_server(("127.0.0.1", 0)) as silent, attach(service.run_dir) as client:
            queue, address = PreallocQueue(client, TransferQueue(client)), "tcp://{}:{}".format(*silent.getsockname())
            queue.add(EmbeddingRequest(room=7, bootstrap_addr=address, required_dst_info_num=1))
            drained = run("drain", "--run-dir", str(service.run_dir), "--timeout", "0.5", "--json")
            assert drained.exit_code == 1
            assert "draining: 1 requests in flight" in drained.stderr
            assert "it still runs after 0.5 s, with 1 requests; `embridge stop` ends it at once" in drained.stderr
            said = json.loads(drained.stdout)
            assert (said["ended"], said["in_flight"]) == (False, 1)
            assert [said["pid"]] == children_of(service.process.pid)

            assert service.asked("/readyz") == (503, "the node is DRAINING\n")
            assert service.asked("/livez") == (200, "ok\n")
            sent: list[object] = []
            with monkeypatch.context() as patched:
                patched.setattr(signal, "pidfd_send_signal", lambda *what: sent.append(what))
                again = run("drain", "--run-dir", str(service.run_dir), "--timeout", "0")
            assert (again.exit_code, sent) == (1, []), "a second drain does not stop it"
            assert service.process.poll() is None

            stopped = run("stop", "--run-dir", str(service.run_dir))
            assert stopped.exit_code == 0, stopped.output
            assert f"(pid {said['pid']}) has ended" in stopped.stdout
        assert service.process.wait(30) == 0, service.log()
        assert run("stop", "--run-dir", str(service.run_dir)).exit_code == 3
        assert "Traceback" not in service.log()
