"""The HTTP server of a node answers whoever asks, and is held up by nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from embridge.workers.timing import NS
from embridge.workers.web.address import web_address
from embridge.workers.web.server import MAX_CONNECTIONS, MAX_HEAD, PATIENCE_S, Answer, Asked, Server


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.ns = NS

    def __call__(self) -> int:
        return self.ns


class Site:
    """A server on a port of its own, stepped by the test, and who asks it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[Asked] = []
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = listening.getsockname()
        self.server = Server(listening, {"/": self._answer, "/broken": self._broken}, self.clock)
        self.callers: list[socket.socket] = []

    def _answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        return Answer(b"here\n")

    def _broken(self, asked: Asked) -> Answer:
        raise ValueError("a bug")

    def caller(self, sent: bytes = b"") -> socket.socket:
        """Somebody who has connected and sent this much."""
        sock = socket.create_connection(self.address, timeout=10)
        self.callers.append(sock)
        sock.sendall(sent)
        return sock

    def turns(self, count: int = 10) -> None:
        for _ in range(count):
            self.server.turn(0.002)

    def ask(self, sent: bytes) -> bytes:
        """The whole answer to what somebody has sent."""
        sock, answer = self.caller(sent), b""
        sock.setblocking(False)
        for _ in range(1000):
            self.server.turn(0.01)
            try:
                chunk = sock.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return answer
            if not chunk:
                return answer
            answer += chunk
        raise AssertionError(f"no end of the answer: {answer!r}")


@pytest.fixture
def site() -> Iterator[Site]:
    it = Site()
    yield it
    for sock in it.callers:
        sock.close()
    it.server.close()


def test_a_question_is_answered_and_the_connection_closed(site: Site) -> None:
    answer = site.ask(b"GET /?a=1&b= HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 5\r\n" in head
    assert b"\r\nConnection: close" in head
    assert body == b"here\n"
    assert site.asked == [Asked("/", {"a": "1", "b": ""}, {"host": "x", "accept": "text/plain"})]


def test_a_head_has_no_body(site: Site) -> None:
    answer = site.ask(b"HEAD / HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01 TLS\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET /" + b"x" * MAX_HEAD, 431),
    ],
)
def test_what_cannot_be_answered_is_said_and_the_next_is_served(site: Site, sent: bytes, status: int) -> None:
    """D4, P16."""
    assert site.ask(sent).startswith(f"HTTP/1.1 {status} ".encode())
    assert site.ask(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_question_may_come_byte_by_byte(site: Site) -> None:
    sock = site.caller()
    for byte in b"GET / HTTP/1.1\r\n\r\n":
        sock.sendall(bytes([byte]))
        site.turns(2)
    site.turns()
    assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_who_says_nothing_holds_nobody_up(site: Site) -> None:
    """P21: nor do as many of them as may connect, again and again: a probe that has a second would fail."""
    silent = []
    for _ in range(3 * MAX_CONNECTIONS):
        silent.append(site.caller(b"GET / HT"))
        site.turns(2)
    assert len(site.server._connections) < MAX_CONNECTIONS
    assert site.ask(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert all(sock.recv(1) == b"" for sock in silent[: 2 * MAX_CONNECTIONS])
    site.clock.ns += int(PATIENCE_S * NS)
    site.turns(2)
    assert not site.server._connections


def test_who_does_not_read_is_let_go_and_as_many_as_may_connect_have_others_wait(site: Site) -> None:
    """P21, P12: what is being answered is not broken off for who comes later."""
    routes, site.server._routes = site.server._routes, {"/": lambda _: Answer(bytes(1 << 24))}
    slow = [site.caller(b"GET / HTTP/1.1\r\n\r\n") for _ in range(MAX_CONNECTIONS)]
    site.turns(2 * MAX_CONNECTIONS + 5)
    site.server._routes = routes
    late = site.caller(b"GET / HTTP/1.1\r\n\r\n")
    site.turns()
    assert len(site.server._connections) == MAX_CONNECTIONS
    late.setblocking(False)
    with pytest.raises(BlockingIOError):
        late.recv(1)  # it waits for one of them to go
    site.clock.ns += int(PATIENCE_S * NS)
    late.setblocking(True)
    site.turns()
    assert late.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert not site.server._connections
    assert len(slow) == MAX_CONNECTIONS  # which have been there all the while


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", None),
        ("off", None),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_the_address_of_the_port(text: str, meant: tuple[str, int] | None) -> None:
    assert web_address(text) == meant


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "9464", ":9464", "localhost:1", "::1:9464", "[127.0.0.1]:1", "127.0.0.1:65536", "[::1]:x", "on"],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"address:port, such as 127\.0\.0\.1:9464"):
        web_address(text)
