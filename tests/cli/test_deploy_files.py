"""The files of `deploy/`: what they name is there, their limits fit the settings, and a container runs.

No container engine is needed: namespaces of the test's own stand for the container.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.remains import children_of
from support.waiting import wait_until

from embridge import PipelineConfig, Timing
from embridge.pipeline.cli import main
from embridge.pipeline.config import ROLES, all_settings, variable_of
from embridge.pipeline.node.sizing import Sizes
from embridge.workers.keys import new_key_pair, write_key_file
from embridge.workers.web.routes import ROUTES

FOLDER = Path(__file__).parents[2] / "deploy"
UNIT = FOLDER / "embridge@.service"
MIB = 1 << 20
UNITS = {"Mi": MIB, "Gi": 1024 * MIB}
VARIABLES = {variable_of(group, it.name) for group, it in all_settings()}
ENDS_WITHIN_S = Timing().drain_timeout_s + Timing().stop_timeout_s
OF_SYSTEMD = {
    "Unit": {"Description", "After", "Wants", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "NotifyAccess", "ExecStart", "ExecReload", "Restart", "RestartSec", "WatchdogSec", "KillMode"),
        *("TimeoutStartSec", "TimeoutStopSec", "User", "UMask", "RuntimeDirectory", "RuntimeDirectoryMode"),
        *("RuntimeDirectoryPreserve", "LimitNOFILE", "LimitMEMLOCK", "OOMScoreAdjust", "NoNewPrivileges"),
        *("ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectControlGroups", "RestrictSUIDSGID"),
    },
    "Install": {"WantedBy"},
}
"""Of systemd.unit(5), systemd.service(5) and systemd.exec(5) of version 239 those that the unit uses."""


def options_of(words: list[str]) -> None:
    """Check that a command of embridge with these words is one that there is."""
    context = click.Context(main)
    command = main.get_command(context, words[0])
    assert command is not None, words
    known = {option for param in command.get_params(context) for option in (*param.opts, *param.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known, words


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_the_unit_has_keys_that_systemd_knows_and_a_command_that_there_is() -> None:
    parsed = unit()
    assert {name: set(parsed[name]) for name in parsed.sections()} == OF_SYSTEMD
    program, *words = parsed["Service"]["ExecStart"].split()
    assert program.endswith("/bin/embridge")
    options_of(words)
    assert parsed["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_units_times_are_longer_than_those_of_a_node() -> None:
    service, timing = unit()["Service"], Timing()
    assert float(service["TimeoutStartSec"]) > timing.ready_timeout_s
    assert float(service["TimeoutStopSec"]) > ENDS_WITHIN_S
    assert float(service["WatchdogSec"]) > 2 * timing.silent_after_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "embridge"  # a path without a space, which ends a word in a unit
    program.symlink_to(sys.executable)
    text = UNIT.read_text().replace("/opt/embridge/bin/embridge", str(program))
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert UNIT.stem not in done.stderr, done.stderr


# ---- Kubernetes


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def settings_of(role: str) -> dict[str, str]:
    (found,) = (it["data"] for it in documents() if it["kind"] == "ConfigMap")
    return {name: text for name, text in found.items() if name == f"{role}.toml"}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, the Pod's specification)."""
    for it in documents():
        if it["kind"] == "StatefulSet":
            yield it["metadata"]["name"], it["spec"]["template"]["spec"]


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (it for it in (*pod["initContainers"], *pod["containers"]) if it["name"] == name)
    return dict(found)


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def test_there_is_a_pod_for_each_role_and_what_it_mounts_is_there() -> None:
    assert {role for role, _ in pods()} == set(ROLES)
    for _, pod in pods():
        volumes = {volume["name"] for volume in pod["volumes"]}
        for it in (*pod["initContainers"], *pod["containers"]):
            assert {mount["name"] for mount in it["volumeMounts"]} <= volumes
        mains = [it for it in pod["containers"] if it["name"] != "node"]
        for name in ("run", "shm"):  # the node and who attaches to it
            paths = {
                mount["mountPath"]
                for it in (container(pod, "node"), *mains)
                for mount in it["volumeMounts"]
                if mount["name"] == name
            }
            assert len(paths) == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_pods_settings_are_a_configuration_and_its_memory_holds_the_node(role: str, tmp_path: Path) -> None:
    pod = dict(pods())[role]
    node = container(pod, "node")
    options_of(node["args"])
    environ = {it["name"]: it["value"].replace("$(POD_IP)", "10.0.0.7") for it in node["env"] if "value" in it}
    assert environ.keys() <= VARIABLES
    assert node["args"][-1] == f"/etc/embridge/{role}.toml"
    (text,) = settings_of(role).values()
    (tmp_path / "node.toml").write_text(text)
    config = PipelineConfig.from_toml(tmp_path / "node.toml", environ)
    assert config.role == role
    assert config.host == "10.0.0.7"
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    _, _, metrics_port = config.metrics_addr.rpartition(":")
    assert ports == {
        "bootstrap": config.bootstrap_port,
        "poller": config.poller_port,
        "metrics": int(metrics_port),
    }
    (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["medium"] == "Memory"
    needed = Sizes.of(ROLES[role], config.geometry, config.limits).total
    assert needed < bytes_of(shm["sizeLimit"])
    assert bytes_of(shm["sizeLimit"]) + 800 * MIB <= bytes_of(node["resources"]["limits"]["memory"])
    assert config.directory.parent == Path("/run/embridge")
    assert f"/run/embridge/{config.directory.name}" in container(pod, "prepare")["command"][-1]


@pytest.mark.parametrize("role", ROLES)
def test_a_pods_probes_ask_what_the_node_answers_and_it_has_time_to_drain(role: str) -> None:
    pod = dict(pods())[role]
    node = container(pod, "node")
    assert node["restartPolicy"] == "Always", "a sidecar: it ends after the others"
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert node[name]["httpGet"] == {"path": path, "port": "metrics"}
        assert path in ROUTES
    startup, life = node["startupProbe"], node["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > Timing().ready_timeout_s
    assert life["periodSeconds"] * life["failureThreshold"] > 2 * Timing().silent_after_s
    assert pod["terminationGracePeriodSeconds"] > ENDS_WITHIN_S
    assert pod["enableServiceLinks"] is False


# ---- the container


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (FOLDER / "Containerfile").read_text()))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def words_of(instruction: str) -> list[str]:
    (text,) = (rest for word, rest in instructions() if word == instruction)
    return [str(word) for word in json.loads(text)]


def environment_of_the_image() -> dict[str, str]:
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ENV")


def test_the_image_has_settings_and_a_command_that_there_are() -> None:
    environ = environment_of_the_image()
    assert environ.keys() <= VARIABLES
    config = PipelineConfig.from_env(environ, role="encode")
    _, _, metrics_port = config.metrics_addr.rpartition(":")
    (exposed,) = (rest.split() for word, rest in instructions() if word == "EXPOSE")
    assert exposed == [str(config.bootstrap_port), str(config.poller_port), metrics_port]
    assert words_of("ENTRYPOINT") == ["embridge"]
    options_of(words_of("CMD"))
    makefile = (FOLDER.parent / "Makefile").read_text()
    assert re.findall(r"torch==\S+", (FOLDER / "Containerfile").read_text()) == re.findall(r"torch==\S+", makefile)
    assert ("STOPSIGNAL", "SIGTERM") in instructions()


UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--pid", "--fork", "--mount-proc")
INSIDE = """\
set -e
mount -t tmpfs -o size=64m tmpfs /dev/shm
mount -t tmpfs -o mode=777 tmpfs {run}
ip link set lo up
{prepare}
exec "$@"
"""


def can_unshare() -> bool:
    done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.process
def test_the_images_command_is_a_node_that_drains_as_process_1_of_a_small_container(tmp_path: Path) -> None:
    """With 64 MB of /dev/shm, an empty volume that everybody may write to, as Kubernetes makes them, and the command
    that prepares it there.
    """
    if not can_unshare():
        pytest.skip("this user may not have namespaces")
    run, keys = tmp_path / "run", tmp_path / "keys"
    run.mkdir()
    keys.mkdir()
    write_key_file(keys / "encode-0.key", new_key_pair(), 0o644)  # as a secret is mounted
    (tmp_path / "nodes.allow").write_text("")
    (tmp_path / "nodes.allow").chmod(0o644)
    prepare = container(dict(pods())["encode"], "prepare")["command"][-1]
    for before, after in (("/run/embridge", str(run)), ("/keys/", f"{keys}/"), ("10001", "0")):
        assert before in prepare
        prepare = prepare.replace(before, after)
    environ = environment_of_the_image() | {
        "EMBRIDGE_ROLE": "encode",
        "EMBRIDGE_READY_TIMEOUT_S": "80",  # many tests run beside it
        "EMBRIDGE_RUN_DIR": f"{run}/node",
        "EMBRIDGE_KEY_FILE": f"{run}/node/node.key",
        "EMBRIDGE_ALLOW_FILE": str(tmp_path / "nodes.allow"),
        "HOSTNAME": "encode-0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    words = [*words_of("ENTRYPOINT"), *words_of("CMD")]
    log = tmp_path / "log"
    with open(log, "wb") as file:
        script = INSIDE.format(run=shlex.quote(str(run)), prepare=prepare)
        command = [*UNSHARE, "--kill-child", "sh", "-c", script, "container", *words]
        program = subprocess.Popen(command, stdout=file, stderr=file, env=environ, start_new_session=True)
    try:
        wait_until(lambda: "READY role=" in log.read_text() or program.poll() is not None, 90, log.read_text)
        assert f"READY role=encode bootstrap=tcp://127.0.0.1:{environ['EMBRIDGE_BOOTSTRAP_PORT']} " in log.read_text()
        (first,) = children_of(program.pid)
        assert [line.split()[-1] for line in status_of(first) if line.startswith("NSpid")] == ["1"]
        os.kill(first, signal.SIGTERM)
        assert program.wait(30) == 0, log.read_text()
        assert "draining" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        program.kill()
        program.wait()


def status_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()
