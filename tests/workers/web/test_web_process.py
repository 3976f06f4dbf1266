"""The web process of a node: it is asked over its port, and may die."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nodes import Settings, Station, station
from support.waiting import wait_until

from embridge.pipeline.inspection.node_status import node_status
from embridge.workers.status_page import status_page

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def node(shared_dir: Path) -> Iterator[Station]:
    settings: Settings = {"metrics_addr": "127.0.0.1:0", "web_hosts": "status.example"}
    with station("language", shared_dir / "w", **settings, num_blocks=4) as it:
        yield it


def scrape(node: Station) -> str:
    with urllib.request.urlopen(f"{node.node.web_addr}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_the_port_is_where_status_and_node_say(node: Station) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", node.node.web_addr)
    assert node_status(node.run_dir)["http"] == node.node.web_addr
    text = scrape(node)
    assert "\nembridge_healthy 1\n" in text
    assert '\nembridge_node_state{state="ready"} 1\n' in text
    assert 'embridge_process_restarts_total{process="web"} 0' in text


def test_the_status_page_and_what_it_asks_for_are_answered(node: Station) -> None:
    """P8: as `embridge status` has it, from a process that sees the pids of the others."""
    with urllib.request.urlopen(node.node.web_addr, timeout=10) as answer:
        assert answer.headers["Content-Security-Policy"] == status_page().headers["Content-Security-Policy"]
        assert answer.read() == status_page().body
    with urllib.request.urlopen(f"{node.node.web_addr}/status.json", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        told = json.load(answer)
    assert (told["kind"], told["node_id"], told["ready"]) == ("node", f"{node.control.node_id:x}", True)
    assert {it["name"]: it["pid"] for it in told["processes"]} == node.pids()
    assert not [it for it in told["processes"] if it["trouble"]]


def test_it_maps_no_payload_and_looks_through_a_mapping_that_nothing_can_be_written_to(node: Station) -> None:
    maps = Path(f"/proc/{node.pid_of('web')}/maps").read_text()
    assert "-payload-" not in maps
    assert re.search(r" r--s .*-control-", maps)


def test_it_dies_and_is_back_at_the_same_port_and_nothing_else_notices(node: Station) -> None:
    """D4: a "dead web"; the launcher holds the port, so who asks meanwhile waits and is answered."""
    others = {name: pid for name, pid in node.pids().items() if name != "web"}
    before, pid = node.node.web_addr, node.pid_of("web")
    os.kill(pid, signal.SIGKILL)
    text = scrape(node)
    assert 'embridge_process_restarts_total{process="web"} 1' in text
    wait_until(lambda: node.pid_of("web") != pid)  # the launcher writes it down when it has forked
    assert node_status(node.run_dir)["http"] == before
    assert {name: pid for name, pid in node.pids().items() if name != "web"} == others
    wait_until(lambda: "\nembridge_healthy 1\n" in scrape(node), what="healthy again")


def test_the_log_begins_with_a_line_that_says_what_runs(node: Station) -> None:
    node.says("is READY: ")
    (line,) = [line for line in node.log().splitlines() if " is READY: " in line]
    told = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))
    assert f" INFO embridge[language {node.control.node_id:x} launcher] embridge " in line
    assert re.search(r"\] embridge \d+\.\d+\S*: language node [0-9a-f]+ is READY: ", line)
    assert told["bootstrap"] == node.addr
    assert told["http"] == node.node.web_addr
    assert told["pool"].startswith('"4x')
    assert told["config"] == "arguments"
    assert {"engines", "poller", "payload", "control", "slots", "workers", "run_dir", "keys", "direct"} <= set(told)


def test_each_process_has_a_title(node: Station) -> None:
    for name, pid in node.pids().items():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
        assert words == f"embridge: language {name}".encode()
        assert Path(f"/proc/{pid}/comm").read_text() == f"eb-lng-{name}"[:15] + "\n"


def test_a_name_that_is_not_the_nodes_own_reads_no_status(node: Station) -> None:
    """D15: `web_hosts` has come from the configuration to the process that answers."""
    def asked_by(host: str) -> urllib.request.Request:
        return urllib.request.Request(f"{node.node.web_addr}/status.json", headers={"Host": host})

    with urllib.request.urlopen(asked_by("Status.example"), timeout=10) as answer:
        assert json.load(answer)["kind"] == "node"
    with pytest.raises(urllib.error.HTTPError, match="403") as error:
        urllib.request.urlopen(asked_by("evil.example"), timeout=10)
    error.value.close()
