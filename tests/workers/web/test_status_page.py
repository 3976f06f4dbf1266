"""The status page: what `workers/status_page.html` may hold, and what a browser shows of it.

Where a browser is installed, it opens the page of a real node, and of one that tells whatever the test wants.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.browser import Tab, browser, needs_browser
from support.nodes import Station, station
from support.told_nodes import full_discovery, full_node
from support.waiting import wait_until

import embridge
from embridge.allocator.geometry import Role
from embridge.workers.status_page import FILE, status_page
from embridge.workers.web.routes import ROUTES
from embridge.workers.web.server import Answer, Asked, Server

HOSTILE = "<img src=x onerror='window.hurt=1'><script>window.hurt=1</script>\"&"
ROOM = (1 << 62) + 1

# ---- the file


def test_the_policy_names_the_one_script_and_the_one_style_of_the_page() -> None:
    """P16: a browser runs what is in the file, byte for byte, and nothing else."""
    policy = status_page().headers["Content-Security-Policy"]
    for tag in (b"script", b"style"):
        (inner,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), status_page().body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner).digest()).decode()
        assert f"{tag.decode()}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy


def test_the_page_asks_nobody_else_and_makes_no_markup_of_what_it_is_told() -> None:
    """P16: no address of anybody, no attribute that runs or styles, no way from a text to an element."""
    text = FILE.read_text()
    assert re.findall(r"https?://[^'\"\s]+|//[\w.-]+/", text) == ["http://www.w3.org/2000/svg"]  # the name of a kind
    assert not re.findall(r"<[^>]*\s(?:style|on\w+|src|srcset|action)=", text)
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|import\(|\.src\b"
    assert not re.findall(ways, text)
    assert re.findall(r"fetch\(([^,]*),", text) == ['"status.json"']
    assert set(re.findall(r"href=\"([^\"#]+)\"", text.replace("\n", ""))) - {"status.json", "metrics"} == set(
        re.findall(r"href=\"(data:image/svg\+xml,[^\"]+)\"", text.replace("\n", ""))
    )


def test_it_is_answered_with_its_policy() -> None:
    answer = ROUTES["/"](None, Asked("/", {}, {}))  # type: ignore[arg-type]
    assert answer == Answer(status_page().body, "text/html; charset=utf-8", headers=status_page().headers)
    assert b"<noscript>" in answer.body


# ---- in a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as it:
        yield Tab(it)


@pytest.fixture(scope="module")
def node(shared_dir: Path) -> Iterator[Station]:
    with station("encode", shared_dir / "p", metrics_addr="127.0.0.1:0", num_blocks=4) as it:
        yield it


class Told:
    """A server with the page, which tells what it is given, in a thread of its own."""

    def __init__(self) -> None:
        self.status: Any = {}
        self.code = 200
        self.num_asked = 0
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        self._ends = False
        shown = Answer(status_page().body, "text/html; charset=utf-8", headers=status_page().headers)
        self._server = Server(listening, {"/": lambda _: shown, "/status.json": self._answer})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _answer(self, _asked: Asked) -> Answer:
        self.num_asked += 1
        return Answer(json.dumps(self.status).encode(), "application/json", self.code)

    def _run(self) -> None:
        while not self._ends:
            self._server.turn(0.02)
        self._server.close()

    def end(self) -> None:
        self._ends = True
        self._thread.join()


@contextmanager
def told(status: Any) -> Iterator[Told]:
    it = Told()
    it.status = status
    try:
        yield it
    finally:
        it.end()


def is_within_its_width(tab: Tab) -> bool:
    """Whether nothing has to be scrolled sideways."""
    return bool(tab.value("document.documentElement.scrollWidth <= window.innerWidth"))


def ground(tab: Tab) -> Any:
    return tab.value("getComputedStyle(document.body).backgroundColor")


@needs_browser
@pytest.mark.process
def test_the_page_of_a_node_shows_a_request_that_waits_and_why(tab: Tab, node: Station) -> None:
    """P8: in a wide window and in one of a telephone, light and dark, without an error; what it says is what is."""
    tab.errors.clear()
    with embridge.attach(node.run_dir) as client:
        sender = client.sender(ROOM, 2000)
        wait_until(lambda: [it["line"] for it in node.in_flight()] == ["no init"])
        tab.show(node.node.web_addr, width=1280)
        tab.wait(f"document.body && document.body.innerText.includes('{ROOM}')")
        tab.wait("document.body.innerText.includes('no init came; its scheduler has not asked this node for the room')")
        assert tab.value("document.querySelector('h1').innerText") == f"encode node {node.control.node_id:x}"
        assert tab.value("document.getElementById('state').innerText") == "READY"
        grounds = set()
        for width in (1280, 1101, 820, 390):
            for dark in (False, True):
                tab.look(width=width, height=900, dark=dark)
                assert is_within_its_width(tab), width
                grounds.add(ground(tab))
        assert len(grounds) == 2
        names = tab.value("[...document.querySelectorAll('h2')].map((it) => it.firstChild.data)")
        assert names == ["Requests", "Processes", "Clients", "Peers"]
        sender.abort()
        tab.wait("document.body.innerText.includes('none is open')")  # it is asked again by itself
    assert tab.errors == []


@needs_browser
@pytest.mark.process
def test_its_parts_are_reached_by_keys_and_stay_open_while_it_is_asked_again(tab: Tab, node: Station) -> None:
    tab.errors.clear()
    with embridge.attach(node.run_dir) as client:
        sender = client.sender(ROOM + 1, 2000)
        wait_until(lambda: [it["line"] for it in node.in_flight()] == ["no init"], what=node.in_flight)
        tab.show(node.node.web_addr, width=390, dark=True)
        tab.wait("document.querySelector('summary') !== null")
        reached = []
        for _ in range(5):
            tab.press("Tab", 9)
            reached.append(tab.value("document.activeElement.tagName + ' ' + document.activeElement.innerText"))
        assert reached[:3] == ["A Skip to what the node tells", "BUTTON Pause", "SUMMARY Details"]
        assert reached[3:] == ["A status.json", "A metrics"]
        tab.value("document.querySelector('summary').focus()")
        tab.press("Enter", 13)
        assert tab.value("document.querySelector('details').open")
        before = tab.value("document.querySelectorAll('td')[5].innerText")
        tab.wait(f"document.querySelectorAll('td')[5].innerText !== {json.dumps(before)}")
        assert tab.value("document.querySelector('details').open")
        assert tab.value("document.activeElement.tagName") == "SUMMARY"
        assert is_within_its_width(tab)
        sender.abort()
    assert tab.errors == []


def spoiled(value: Any) -> Any:
    """The same with hostile texts."""
    if isinstance(value, str):
        return f"{HOSTILE} {value}"
    if isinstance(value, list):
        return [spoiled(it) for it in value]
    return {key: spoiled(it) for key, it in value.items()} if isinstance(value, dict) else value


TOLD: dict[str, Callable[[], dict[str, Any]]] = {
    "an encode node": lambda: full_node(Role.ENCODE),
    "a language node": lambda: full_node(Role.LANGUAGE),
    "discovery": full_discovery,
}
SHOWN = {
    "an encode node": ("ab", "tcp://10.0.0.8:4000", "silent for 5 s", "process poller cannot be kept", "poller silent"),
    "a language node": ("ab", "cd", "silent for 5 s", "tcp://10.0.0.9:1", "409 it is late", "draining"),
    "discovery": ("a1", "b2", "tcp://10.0.0.7:4000", "draining", "poller", "killed by SIGKILL"),
}


@needs_browser
@pytest.mark.parametrize("of", TOLD)
def test_whatever_it_is_told_is_text(tab: Tab, of: str) -> None:
    """P16: names, addresses and reasons with markup in them are shown as they are, and do nothing."""
    tab.errors.clear()
    status = TOLD[of]()
    with told({**spoiled(status), "kind": status["kind"]}) as server:
        tab.show(server.url, width=390)
        tab.wait(f"document.body && document.body.textContent.includes({json.dumps(HOSTILE)})")
        shown = tab.value("document.body.textContent").lower()
        for text in SHOWN[of]:
            assert f"{HOSTILE} {text}".lower() in shown, text
        assert tab.value("[window.hurt, document.images.length, document.scripts.length]") == [None, 0, 1]
        for width in (390, 1101):
            tab.look(width=width)
            assert is_within_its_width(tab), width
    assert tab.errors == []


@needs_browser
def test_who_does_not_answer_is_said_and_nobody_is_asked_while_nobody_looks(tab: Tab) -> None:
    with told(full_node(Role.LANGUAGE)) as server:
        tab.show(server.url, width=1280)
        tab.wait("document.body && document.body.innerText.includes('it has to grant the first blocks')")
        assert tab.value("byId('silence').hidden")
        server.code = 503
        tab.wait("byId('silence').innerText.includes('it says 503 Service Unavailable. What is below is from ')")
        assert tab.value("document.body.className") == "stale"
        server.code = 200
        tab.wait("byId('silence').hidden")
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}), "
        hide += "document.dispatchEvent(new Event('visibilitychange')), [timer, asking]"
        assert tab.value(hide % "true") == [0, None]
        before = server.num_asked
        assert tab.value(hide % "false")[0] == 0
        wait_until(lambda: server.num_asked > before)
        tab.value("byId('pause').click()")
        assert tab.value("[timer, asking, byId('pulse').innerText]") == [0, None, "paused"]
        tab.value("byId('pause').click()")
        tab.wait("byId('pulse').innerText === 'live'")
    tab.wait("byId('silence').innerText.includes('nobody answers there')")
