"""The discovery server over real HTTP on loopback: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.auth_token import read_token
from embridge.workers.discovery.server import Server, check_binding
from embridge.workers.discovery.status import MAX_NODES
from embridge.workers.status_page import status_page
from embridge.workers.timing import NS

TOKEN = "correct-horse-battery"
WALL_MS = 1_700_000_000_000
REPORT: dict[str, Any] = {
    "role": "encode",
    "node_id": "a1",
    "incarnation": 7,
    "bootstrap_addr": "tcp://127.0.0.1:4001",
    "poller_addr": "tcp://127.0.0.1:4002",
    "state": "READY",
    "unhealthy": [],
    "outstanding_tokens": 300,
    "outstanding_requests": 2,
    "free_blocks": 5,
    "num_blocks": 8,
    "sequence": 1,
    "ttl_s": 5.0,
}


class Clock:
    """The server's clock: a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Caller:
    """A session with one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, clock: Clock) -> None:
        self.session = session
        self.url = url
        self.clock = clock

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """(status, decoded body)."""
        async with self.session.request(method, self.url + path, **options) as response:
            body = await response.text()
            return response.status, json.loads(body) if response.content_type == "application/json" else body

    async def put(self, **changes: Any) -> tuple[int, Any]:
        return await self.ask("PUT", "/route", json={**REPORT, **changes})


@asynccontextmanager
async def serving(token: str = "") -> AsyncIterator[Caller]:
    clock, urls, stop = Clock(), asyncio.Queue[str](), asyncio.Event()
    task = asyncio.create_task(
        Server(token=token, clock=clock, wall_s=lambda: WALL_MS / 1000).serve("127.0.0.1", 0, urls.put_nowait, stop)
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield Caller(session, await urls.get(), clock)
    stop.set()
    await task


def against(test: Callable[[Caller], Awaitable[None]], token: str = "") -> None:
    """Run a test's body against a server of its own."""

    async def life() -> None:
        async with serving(token) as caller:
            await test(caller)

    asyncio.run(life())


def test_a_node_registers_is_listed_with_health_and_load_and_leaves() -> None:
    """D4, D5: every route once, and nothing but what was reported."""

    async def body(caller: Caller) -> None:
        assert await caller.put() == (200, {"result": "registered"})
        assert await caller.put(sequence=2, role="encode") == (200, {"result": "renewed"})
        assert (await caller.put(node_id="b2", role="language"))[0] == 200
        caller.clock.now_ns = NS
        expected = {key: value for key, value in REPORT.items() if key not in ("sequence", "ttl_s")}
        status, answer = await caller.ask("GET", "/route?role=encode")
        assert (status, answer) == (200, {"routes": [{**expected, "healthy": True, "age_s": 1.0}], "server_up_s": 1.0})
        status, answer = await caller.ask("GET", "/nodes")
        assert [node["node_id"] for node in answer["nodes"]] == ["a1", "b2"]
        assert (answer["nodes"][0]["outstanding_tokens"], answer["nodes"][0]["free_blocks"]) == (300, 5)
        assert await caller.ask("GET", "/health") == (
            200,
            {"healthy": True, "num_nodes": 2, "error": "", "unhealthy": []},
        )
        assert (await caller.put(incarnation=6))[0] == 409
        assert await caller.put(incarnation=8) == (200, {"result": "replaced"})
        assert (await caller.ask("DELETE", "/route?node_id=a1&incarnation=7"))[0] == 409
        assert await caller.ask("DELETE", "/route?node_id=a1&incarnation=8") == (200, {"left": True})
        status, answer = await caller.put(incarnation=8, sequence=9)
        assert status == 409
        assert "has left" in answer["error"]
        assert [node["node_id"] for node in (await caller.ask("GET", "/nodes?role=encode"))[1]["nodes"]] == []

    against(body)


def test_health_names_the_node_and_the_process_that_does_not_beat() -> None:
    """D4, B13: one silent process of one node is enough; the probe is answered from reports, and asks no node
    anything.
    """

    async def body(caller: Caller) -> None:
        await caller.put(unhealthy=[{"process": "worker1", "silent_s": 2.25}])
        await caller.put(node_id="b2")
        status, answer = await caller.ask("GET", "/health")
        assert status == 503
        assert answer["error"] == "worker1 of encode node a1: no sign of life for 2.2 s"
        assert [(it["node_id"], it["process"]) for it in answer["unhealthy"]] == [("a1", "worker1")]
        await caller.put(sequence=2)
        assert (await caller.ask("GET", "/health"))[0] == 200
        caller.clock.now_ns = 3 * NS
        await caller.put(node_id="b2", sequence=2)
        status, answer = await caller.ask("GET", "/health")
        assert (status, [(it["node_id"], it["process"]) for it in answer["unhealthy"]]) == (503, [("a1", "registrar")])
        caller.clock.now_ns = 5 * NS + NS // 5
        assert await caller.ask("GET", "/health") == (
            200,
            {"healthy": True, "num_nodes": 1, "error": "", "unhealthy": []},
        )

    against(body)


def test_prometheus_sees_the_same_nodes() -> None:
    async def body(caller: Caller) -> None:
        await caller.put(unhealthy=[{"process": "worker1", "silent_s": 2.25}])
        await caller.put(incarnation=1)
        status, text = await caller.ask("GET", "/metrics")
        assert status == 200
        labels = 'role="encode",node_id="a1",bootstrap_addr="tcp://127.0.0.1:4001"'
        assert f"embridge_node_healthy{{{labels}}} 0.0" in text
        assert f"embridge_node_outstanding_tokens{{{labels}}} 300.0" in text
        assert 'embridge_discovery_reports_total{result="conflict"} 1\n' in text
        assert f"embridge_node_draining{{{labels}}} 0.0" in text

    against(body)


BAD_REPORTS: list[tuple[str, Any]] = [
    ("role", "both"),
    ("role", None),
    ("node_id", "A1"),
    ("node_id", "0" * 17),
    ("node_id", "a1\n"),
    ("incarnation", 0),
    ("incarnation", -1),
    ("incarnation", 1 << 63),
    ("incarnation", 1.5),
    ("incarnation", True),
    ("bootstrap_addr", "http://127.0.0.1:1"),
    ("bootstrap_addr", "tcp://127.0.0.1:65536"),
    ("bootstrap_addr", "tcp://127.0.0.1:0"),
    ("bootstrap_addr", "tcp://127.0.0.1:1\n"),
    ("poller_addr", "tcp://" + "h" * 200 + ":1"),
    ("state", "STOPPED"),
    ("unhealthy", [{"process": "x" * 33, "silent_s": 1.0}]),
    ("unhealthy", [{"process": "x", "silent_s": -1.0}]),
    ("unhealthy", [{"process": "x", "silent_s": 1.0}] * 65),
    ("outstanding_tokens", -1),
    ("outstanding_requests", 1 << 53),
    ("free_blocks", 9),
    ("num_blocks", "8"),
    ("sequence", 1 << 63),
    ("ttl_s", 0),
    ("ttl_s", 1e9),
    ("surplus", 1),
]


def test_bad_input_is_400_and_names_the_field() -> None:
    """P16: nothing of it reaches the registry."""

    async def body(caller: Caller) -> None:
        for field, value in BAD_REPORTS:
            status, answer = await caller.put(**{field: value})
            assert (status, field in answer["error"]) == (400, True), (field, value, answer)
        for field in REPORT:
            rest = {key: value for key, value in REPORT.items() if key != field}
            status, answer = await caller.ask("PUT", "/route", json=rest)
            assert (status, f"`{field}`" in answer["error"]) == (400, True), (field, answer)
        for data in (b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"role": "encode"', b"[" * 5000):
            assert (await caller.ask("PUT", "/route", data=data))[0] == 400
        for query, field in (
            ("GET /route?role=both", "role"),
            ("GET /nodes?rank=1", "rank"),
            ("DELETE /route?node_id=a1", "incarnation"),
            ("DELETE /route?node_id=a1&incarnation=x", "incarnation"),
            ("DELETE /route?node_id=&incarnation=1", "node_id"),
        ):
            status, answer = await caller.ask(*query.split())
            assert (status, field in answer["error"]) == (400, True), (query, answer)
        assert (await caller.ask("PUT", "/route", data=b" " * (msg.MAX_BODY_BYTES + 1)))[0] == 413
        assert (await caller.ask("POST", "/route", data=b"{}"))[0] == 405
        status, answer = await caller.ask("GET", "/routes")
        assert (status, "known: / /route" in answer["error"]) == (404, True)
        assert (await caller.ask("GET", "/nodes"))[1] == {"nodes": []}

    against(body)


def test_without_the_token_nothing_is_answered_and_nothing_changed() -> None:
    async def body(caller: Caller) -> None:
        for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
            for method, path in (
                ("PUT", "/route"),
                ("GET", "/route"),
                ("DELETE", "/route"),
                ("GET", "/health"),
                ("GET", "/metrics"),
            ):
                status, answer = await caller.ask(
                    method, path, headers=headers, json=REPORT if method == "PUT" else None
                )
                assert (status, "Authorization" in answer["error"]) == (401, True)
                assert TOKEN not in str(answer)
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert (await caller.ask("GET", "/nodes", headers=good))[1] == {"nodes": []}
        assert (await caller.ask("PUT", "/route", headers=good, json=REPORT))[0] == 200

    against(body, TOKEN)


def test_an_incarnation_of_days_to_come_bars_nobody() -> None:
    """P16, D5: neither registering nor leaving under it; the node itself goes on."""

    async def body(caller: Caller) -> None:
        assert (await caller.put())[0] == 200
        for incarnation in (WALL_MS + 25 * 3600 * 1000, (1 << 53) - 1):
            for status, answer in (
                await caller.put(incarnation=incarnation, sequence=1),
                await caller.ask("DELETE", f"/route?node_id=a1&incarnation={incarnation}"),
            ):
                assert (status, "set the clocks of both hosts" in answer["error"]) == (400, True), answer
        assert await caller.ask("DELETE", "/route?node_id=a1&incarnation=9") == (200, {"left": False})
        assert await caller.put(sequence=2) == (200, {"result": "renewed"})
        assert await caller.put(incarnation=WALL_MS) == (200, {"result": "replaced"})

    against(body)


def test_what_is_no_http_has_no_traceback_in_the_log_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """P16, P21: it comes before anybody has looked at the token; a few lines say that it comes."""
    caplog.set_level("DEBUG")
    lines = (b"GET /nodes HTTP/9\r\n\r\n", b"GET /nodes HTTP/1.1\r\nno colon\r\n\r\n", b"G\x00T / HTTP/1.1\r\n\r\n")

    async def body(caller: Caller) -> None:
        port = int(caller.url.rpartition(":")[2])
        for number in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(lines[number % len(lines)])
            assert (await reader.read()).startswith(b"HTTP/1.0 400")
            writer.close()
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert (
            'embridge_discovery_reports_total{result="malformed"} 60\n'
            in (await caller.ask("GET", "/metrics", headers=good))[1]
        )

    against(body, TOKEN)
    assert not [record for record in caplog.records if record.exc_info]
    said = [record.getMessage() for record in caplog.records if "is no HTTP" in record.getMessage()]
    assert 0 < len(said) <= 20, said


def test_a_header_of_bytes_that_are_no_text_is_refused_as_any_other() -> None:
    """P16."""

    async def body(caller: Caller) -> None:
        port = int(caller.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /nodes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 40")

    against(body, TOKEN)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_interface_is_never_bound(host: str) -> None:
    with pytest.raises(ValueError, match="is every interface"):
        check_binding(host, has_token=True)


def test_beyond_loopback_a_token_is_needed() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1 is not a loopback address, and there is no token"):
        check_binding("10.0.0.1", has_token=False)
    with pytest.raises(ValueError, match="'here' is no IP address"):
        check_binding("here", has_token=True)
    check_binding("10.0.0.1", has_token=True)
    check_binding("127.0.0.1", has_token=False)
    check_binding("::1", has_token=False)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def test_a_token_is_read_from_a_file_that_nobody_else_may_read(token_file: Path) -> None:
    assert read_token(token_file) == TOKEN
    token_file.chmod(0o400)
    assert read_token(token_file) == TOKEN
    for mode in (0o640, 0o604, 0o660, 0o700):
        token_file.chmod(mode)
        with pytest.raises(ValueError, match=f"mode {mode:o} .* must be 600"):
            read_token(token_file)
    token_file.chmod(0o600)
    bad = {
        "short": "of 5 bytes is outside 16 to 512",
        "x" * 600: "outside 16 to 512",
        "two words, both long": "one word",
    }
    for text, match in bad.items():
        token_file.write_text(text)
        with pytest.raises(ValueError, match=match) as raised:
            read_token(token_file)
        assert text not in str(raised.value)
    with pytest.raises(ValueError, match="No such file"):
        read_token(token_file.with_name("missing"))


def test_a_port_in_use_is_an_error_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            asyncio.run(Server().serve("127.0.0.1", port, print, asyncio.Event()))


def test_the_status_page_is_shown_to_anybody_and_what_it_asks_for_only_with_the_token() -> None:
    """D15: the file holds no data; it is at `/`, and at no other path that is written so."""

    async def body(caller: Caller) -> None:
        for method in ("GET", "HEAD"):
            async with caller.session.request(method, caller.url + "/") as response:
                assert response.status == 200
                assert response.content_type == "text/html"
                assert response.headers["Content-Security-Policy"] == status_page().headers["Content-Security-Policy"]
                assert await response.read() == (status_page().body if method == "GET" else b"")
        for method, path in (("GET", "/status.json"), ("PUT", "/"), ("GET", "//"), ("GET", "/nodes")):
            assert (await caller.ask(method, path))[0] == 401, (method, path)
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        status, told = await caller.ask("GET", "/status.json", headers=bearer)
        assert (status, told["kind"], told["nodes"]) == (200, "discovery", [])

    against(body, TOKEN)


def test_without_a_token_a_name_that_is_not_the_servers_own_reads_and_changes_nothing() -> None:
    """D15: a page of a stranger's whose name leads here registers no node; with a token it would need that."""
    evil = {"Host": "evil.example:8998"}

    async def body(caller: Caller) -> None:
        for method, path in (("GET", "/"), ("GET", "/nodes"), ("GET", "/metrics"), ("PUT", "/route")):
            status, told = await caller.ask(method, path, headers=evil, json=REPORT if method == "PUT" else None)
            assert status == 403
            assert told["error"].startswith("Host: 'evil.example' is no name of this server's")
        assert (await caller.ask("GET", "/nodes", headers={"Host": "localhost:1"})) == (200, {"nodes": []})

    async def body_with_token(caller: Caller) -> None:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await caller.ask("GET", "/nodes", headers=evil | bearer))[0] == 200
        assert (await caller.ask("GET", "/nodes", headers=evil))[0] == 401

    against(body)
    against(body_with_token, TOKEN)


def test_the_status_has_the_sums_of_each_role_and_those_in_trouble_first() -> None:
    """P12: and no more nodes than are of use to people."""

    async def body(caller: Caller) -> None:
        for i in range(MAX_NODES + 5):
            await caller.put(node_id=f"{i + 1:x}", outstanding_tokens=i)
        await caller.put(node_id="fb2", role="language", state="DRAINING", outstanding_requests=1)
        await caller.put(node_id="fc3", unhealthy=[{"process": "worker1", "silent_s": 2.25}], outstanding_tokens=0)
        status, told = await caller.ask("GET", "/status.json")
        assert (status, told["num_nodes"], len(told["nodes"])) == (200, MAX_NODES + 7, MAX_NODES)
        assert [it["node_id"] for it in told["nodes"][:3]] == ["fc3", "fb2", f"{MAX_NODES + 5:x}"]
        assert told["roles"]["language"] == {
            "nodes": 1, "healthy": 1, "ready": 0,
            "outstanding_tokens": 300, "outstanding_requests": 1, "free_blocks": 5, "num_blocks": 8,
        }  # fmt: skip
        encode = told["roles"]["encode"]
        assert (encode["nodes"], encode["healthy"], encode["ready"]) == (MAX_NODES + 6, MAX_NODES + 5, MAX_NODES + 6)

    against(body)
