"""The gateway of etcd: answers of every kind over HTTP, members that do not answer, logins, certificates; and a real
one.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.etcd import Answer, Etcd, FakeGateway, etcd, fake_gateway, needs_etcd, report

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.auth_token import read_login
from embridge.workers.discovery.authorities import tls_context
from embridge.workers.discovery.client import DiscoveryService
from embridge.workers.discovery.etcd_url import parse_etcd_url
from embridge.workers.discovery.http import DiscoveryError
from embridge.workers.discovery.services import open_service
from embridge.workers.timing import Timing

TIMING = Timing(discovery_interval_s=1.0, discovery_ttl_s=5.0, discovery_timeout_s=3.0)
PATIENT = Timing(discovery_timeout_s=20.0)
IMPATIENT = Timing(discovery_interval_s=1.0, discovery_ttl_s=5.0, discovery_timeout_s=0.5)


def through(
    endpoints: list[str], token_file: str, ask: Callable[[DiscoveryService], Awaitable[Any]], timing: Timing = TIMING
) -> Any:
    """What `ask` returns, with a client of the etcd at these endpoints."""

    async def life() -> Any:
        hosts = ",".join(it.removeprefix("http://") for it in endpoints)
        service = open_service(
            f"etcd://{hosts}/p", token_file=token_file, ca_file="", timing=timing, clock=lambda: 0, unreadable=print
        )
        try:
            return await ask(service)
        finally:
            await service.close()

    return asyncio.run(life())


def always(status: int, answered: Any) -> Answer:
    return lambda path, body, authorization: (status, answered)


async def routes(service: DiscoveryService) -> msg.RouteAnswer:
    return await service.routes("encode")


UNSUPPORTED = {"error": "etcdserver: mvcc: database space\x1b[31m exceeded", "code": 8}


@pytest.mark.parametrize(
    ("status", "answered", "said", "refused"),
    [
        (404, b"404 page not found", r"answered 404: .*page not found.*--enable-grpc-gateway", True),
        (429, UNSUPPORTED, r"kv/range answered 429: etcdserver: mvcc: database space\?\[31m exceeded$", True),
        (403, {"code": 7, "message": "permission denied", "details": []}, "answered 403: permission denied", True),
        (503, {"error": "etcdserver: no leader", "code": 14}, "answered 503: etcdserver: no leader", False),
        (302, b"", "answered 302", False),
        (200, b"\x00\xff", "its answer is not that of etcd", False),
        (200, {"kvs": [{"key": "!!"}]}, "its answer is not that of etcd", False),
        (200, {"kvs": 7}, "its answer is not that of etcd", False),
        (200, {"kvs": [{"key": "AAAA", "value": "x" * (3 << 20)}]}, "its answer has more than 2097152 bytes", False),
    ],
)
def test_every_other_answer_is_an_error_that_says_what_came(
    status: int, answered: Any, said: str, refused: bool
) -> None:
    with (
        fake_gateway(always(status, answered)) as gateway,
        pytest.raises(DiscoveryError, match=rf"{gateway.endpoint}: .*{said}") as raised,
    ):
        through([gateway.endpoint], "", routes)
    assert raised.value.refused is refused


def test_a_member_that_does_not_answer_or_has_no_leader_is_passed_over() -> None:
    """Also later: the one that has answered is asked first."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        fake_gateway(always(503, {"error": "etcdserver: no leader"})) as leaderless,
        fake_gateway(always(200, {"header": {"revision": "1"}})) as good,
    ):
        endpoints = [f"http://127.0.0.1:{silent.getsockname()[1]}", leaderless.endpoint, good.endpoint]

        async def twice(service: DiscoveryService) -> list[msg.RouteAnswer]:
            return [await routes(service), await routes(service)]

        answers = through(endpoints, "", twice, IMPATIENT)
        assert [it.routes for it in answers] == [[], []]
        assert (len(leaderless.asked), len(good.asked)) == (1, 2)
        with pytest.raises(DiscoveryError, match=f"{leaderless.endpoint}: .*no leader"):
            through(endpoints[:2], "", routes, IMPATIENT)


class Guarded:
    """An etcd that asks for a user and a password, and forgets tokens when it is told to."""

    def __init__(self) -> None:
        self.password = "right-password"
        self.tokens = 0

    def __call__(self, path: str, body: dict[str, Any], authorization: str) -> tuple[int, Any]:
        if path == "auth/authenticate":
            if body != {"name": "nodes", "password": self.password}:
                return 400, {"error": "etcdserver: authentication failed, invalid user ID or password", "code": 3}
            self.tokens += 1
            return 200, {"header": {}, "token": f"token.{self.tokens}"}
        if authorization != f"token.{self.tokens}":
            return 401, {"error": "etcdserver: invalid auth token", "code": 16}
        return 200, {}


def test_who_logs_in_does_so_once_and_again_when_etcd_has_forgotten_the_token(tmp_path: Path) -> None:
    login, etcd = tmp_path / "login", Guarded()
    login.touch(0o600)
    login.write_text("nodes:right-password\n")

    async def ask(service: DiscoveryService) -> None:
        await routes(service)
        await routes(service)
        etcd.tokens += 1
        await routes(service)
        etcd.password = "another:password"
        etcd.tokens += 1
        with pytest.raises(DiscoveryError, match="authentication failed") as raised:
            await routes(service)
        assert raised.value.refused
        assert "right-password" not in str(raised.value)
        login.write_text("nodes:another:password\n")
        await routes(service)

    with fake_gateway(etcd) as gateway:
        through([gateway.endpoint], str(login), ask)
        assert gateway.asked.count("auth/authenticate") == 4
        assert through_login(gateway, login, "nodes:wrong") == "refused"
        assert through_login(gateway, login, "nobody") == "it has no user and password"


def through_login(gateway: FakeGateway, login: Path, text: str) -> str:
    login.write_text(text)
    try:
        through([gateway.endpoint], str(login), routes)
    except DiscoveryError as error:
        return "refused" if error.refused else str(error).partition(": ")[2].partition(";")[0]
    return "taken"


@needs_etcd
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_etcd_that_has_a_certificate_and_asks_for_logins_is_talked_to_with_both(tmp_path: Path) -> None:
    """A user that may read and write the prefix alone needs no other right."""
    login = tmp_path / "login"
    login.touch(0o600)

    async def life(url: str, ca_file: str, password: str) -> list[msg.RouteEntry]:
        login.write_text(f"nodes:{password}")
        timing, files = PATIENT, {"token_file": str(login), "ca_file": ca_file}
        service = open_service(url, timing=timing, clock=time.monotonic_ns, unreadable=print, **files)
        try:
            await service.register(report())
            await service.register(report(outstanding_tokens=7))
            found = (await service.routes("encode")).routes
            await service.leave(msg.Leave(node_id="1", incarnation=7))
            assert (await service.routes("encode")).routes == []
            return found
        finally:
            await service.close()

    with etcd(tls=True) as server:
        server.ask_for_logins("nodes", "correct-horse")
        (found,) = asyncio.run(life(server.url, str(server.ca_file), "correct-horse"))
        assert (found.node_id, found.outstanding_tokens) == ("1", 7)
        with pytest.raises(DiscoveryError, match="answered 400: etcdserver: authentication failed"):
            asyncio.run(life(server.url, str(server.ca_file), "battery"))
        with pytest.raises(DiscoveryError, match=r"its certificate is not accepted: .*; see discovery_ca_file"):
            asyncio.run(life(server.url, "", "correct-horse"))


@needs_etcd
def test_a_real_etcd_without_space_keeps_who_is_registered() -> None:
    """And says why it takes no news of them."""

    async def life(server: Etcd) -> None:
        service = open_service(
            server.url, token_file="", ca_file="", timing=PATIENT, clock=time.monotonic_ns, unreadable=print
        )
        try:
            await service.register(report())
            server.fill()
            for _ in range(2):
                with pytest.raises(DiscoveryError, match=r"answered 429: .*database space exceeded") as raised:
                    await service.register(report(outstanding_tokens=7))
                assert raised.value.refused
                assert [it.outstanding_tokens for it in (await service.routes("encode")).routes] == [0]
            await service.register(report())
            await service.leave(msg.Leave(node_id="1", incarnation=7))
            assert (await service.routes("encode")).routes == []
        finally:
            await service.close()

    with etcd(quota_bytes=1_000_000) as server:
        asyncio.run(life(server))


@pytest.mark.parametrize("text", ["ab", ":secretly", "two words:x", "x" * 600])
def test_a_login_is_a_user_and_a_password_in_a_file_that_nobody_else_may_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "login"
    path.touch(0o600)
    path.write_text("me:pw")
    assert read_login(path) == "me:pw"
    path.write_text(text)
    with pytest.raises(ValueError, match="token file") as raised:
        read_login(path)
    assert text not in str(raised.value)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="must be 600"):
        read_login(path)


def test_a_file_of_no_authorities_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(ValueError, match=f"{path}: .*; it must hold certificates in PEM"):
            tls_context(path)
        (tmp_path / "empty").write_text("")


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix"),
    [
        ("etcd://10.0.0.1:2379", ["http://10.0.0.1:2379"], "/embridge"),
        ("etcds://a.b:1,[::1]:2/x/y-z/", ["https://a.b:1", "https://[::1]:2"], "/x/y-z"),
        ("etcd://h:65535/", ["http://h:65535"], "/embridge"),
    ],
)
def test_a_url_of_etcd_has_members_and_a_prefix(url: str, endpoints: list[str], prefix: str) -> None:
    assert parse_etcd_url(url) == (tuple(endpoints), prefix)
