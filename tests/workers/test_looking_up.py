"""Looking names up: threads, what is kept, and which of several addresses is taken."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.alone import EncodeAlone
from support.waiting import wait_until
from support.wires import Wired, wired

from embridge.workers import addresses
from embridge.workers.addresses import MAX_ASKED, MAX_THREADS, Found, Names, look_up

pytestmark = pytest.mark.usefixtures("quiet")

NAME = "tcp://encoder.example:4000"


# ---- the threads that look names up


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    it = Resolver()
    monkeypatch.setattr(addresses, "look_up", it.look_up)
    yield it
    it.answers.set()
    wait_until(lambda: not it.busy, 10)


class Resolver:
    """Answers for names that begin with `quick` at once, for others when it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []
        self.busy = 0
        self._lock = threading.Lock()

    def look_up(self, address: str) -> Found:
        with self._lock:
            self.asked.append(address)
            self.busy += 1
        if not address.startswith("tcp://quick"):
            self.answers.wait()
        with self._lock:
            self.busy -= 1
        return Found("tcp://10.0.0.7:1")


def found_soon(it: Names, address: str) -> Found:
    wait_until(lambda: it.find(address) is not None, 10)
    found = it.find(address)
    assert found is not None
    return found


def test_a_slow_name_is_asked_for_once_and_holds_up_no_other(resolver: Resolver) -> None:
    """P21."""
    news = threading.Event()
    it = Names(news.set)
    assert [it.find("tcp://slow:1") for _ in range(100)] == [None] * 100
    assert found_soon(it, "tcp://quick:1").endpoint == "tcp://10.0.0.7:1"
    assert news.wait(10)
    assert resolver.asked == ["tcp://slow:1", "tcp://quick:1"]
    resolver.answers.set()
    assert found_soon(it, "tcp://slow:1").endpoint == "tcp://10.0.0.7:1"


def test_names_that_are_asked_for_are_bounded_and_so_are_threads(resolver: Resolver) -> None:
    """P12."""
    before = threading.active_count()
    it = Names()
    assert [it.find(f"tcp://slow{i}:1") for i in range(MAX_ASKED)] == [None] * MAX_ASKED
    assert it.find("tcp://quick:1") == Found("", f"{MAX_ASKED} other names are being looked up")
    assert threading.active_count() - before <= MAX_THREADS
    resolver.answers.set()
    assert found_soon(it, f"tcp://slow{MAX_ASKED - 1}:1").endpoint
    wait_until(lambda: threading.active_count() <= before, 10)
    assert found_soon(it, "tcp://quick:1").endpoint


def test_an_answer_is_kept_for_a_while(resolver: Resolver) -> None:
    now = [0]
    it = Names(clock=lambda: now[0])
    found_soon(it, "tcp://quick:1")
    now[0] = addresses.FOUND_NS - 1
    assert it.find("tcp://quick:1")
    assert resolver.asked == ["tcp://quick:1"]
    now[0] += 1
    found_soon(it, "tcp://quick:1")
    assert resolver.asked == ["tcp://quick:1"] * 2


def test_an_answer_that_led_to_nobody_is_forgotten_at_once_under_all_its_names(resolver: Resolver) -> None:
    """P21."""
    it = Names()
    for name in ("quick1", "quick2"):
        found_soon(it, f"tcp://{name}:1")
    it.forget("tcp://10.0.0.8:1")
    assert it.find("tcp://quick1:1")
    it.forget("tcp://10.0.0.7:1")
    for name in ("quick1", "quick2"):
        found_soon(it, f"tcp://{name}:1")
    assert sorted(resolver.asked) == ["tcp://quick1:1"] * 2 + ["tcp://quick2:1"] * 2


def test_names_that_hang_take_the_places_of_no_others(resolver: Resolver) -> None:
    """P21: none waits for a look-up to end that may take half a minute."""
    it = Names()
    for i in range(60):
        assert it.find(f"tcp://slow{i}:1") is None
    assert found_soon(it, "tcp://quick:1").endpoint


def test_names_that_have_hung_before_have_half_of_the_places_however_many_they_are(resolver: Resolver) -> None:
    """P21, P12: whoever goes on asking for them holds up nobody else; and they are looked up, too."""
    now = [0]
    it = Names(clock=lambda: now[0])
    slow = [f"tcp://slow{i}:1" for i in range(MAX_ASKED - 1)]
    assert [it.find(name) for name in slow] == [None] * len(slow)
    wait_until(lambda: resolver.busy == MAX_THREADS, 10)
    now[0] = 2 * addresses.LONG_NS
    resolver.answers.set()
    wait_until(lambda: not it._asked, 10)
    resolver.answers.clear()
    hung = slow[:MAX_THREADS]
    assert set(resolver.asked[:MAX_THREADS]) == set(hung)
    now[0] += addresses.FOUND_NS
    for name in hung:
        assert it.find(name) is None
    wait_until(lambda: resolver.busy == MAX_THREADS // 2, 10)
    assert found_soon(it, "tcp://quick:1").endpoint
    assert resolver.busy == MAX_THREADS // 2
    resolver.answers.set()
    for name in hung:
        assert found_soon(it, name).endpoint


def test_without_a_thread_a_name_is_asked_for_again_later(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """P15."""
    it = Names()
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
        )
        assert it.find("tcp://quick:1") == Found("", "its name cannot be looked up: can't start new thread")
    assert found_soon(it, "tcp://quick:1").endpoint


# ---- what the resolver says


def resolves_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    real = socket.getaddrinfo

    def answer(host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        if host != "somewhere":
            return real(host, port, *more, **named)
        return [(None, None, 0, "", (ip, port)) for ip in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.fixture
def port() -> Iterator[Wired]:
    """A node that listens at 127.0.0.1 alone, and greets by itself, as a process does while the test waits."""
    with wired(EncodeAlone().actor("bootstrap")) as it:
        yield it


@pytest.fixture
def other_service() -> Iterator[Callable[[int], None]]:
    """Somebody else at the same port of another address: takes connections, and says nothing, or `220 ready`."""
    made: list[socket.socket] = []

    def listen(port: int, host: str = "127.0.0.3") -> None:
        made.append(socket.create_server((host, port)))

    yield listen
    for sock in made:
        sock.close()


def test_of_several_addresses_the_first_at_which_a_node_speaks_is_taken(
    monkeypatch: pytest.MonkeyPatch, port: Wired, other_service: Callable[[int], None]
) -> None:
    """Nobody listens at the first, another service at the second."""
    monkeypatch.setattr(addresses, "TRY_S", 0.2)
    other_service(port.port)
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1", "0.0.0.0")
    assert look_up(f"tcp://somewhere:{port.port}") == Found(f"tcp://127.0.0.1:{port.port}")


def test_an_address_that_is_slow_is_better_than_none(
    monkeypatch: pytest.MonkeyPatch, port: Wired, other_service: Callable[[int], None]
) -> None:
    monkeypatch.setattr(addresses, "TRY_S", 0.05)
    other_service(port.port)
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    assert look_up(f"tcp://somewhere:{port.port}") == Found(f"tcp://127.0.0.3:{port.port}")


def test_where_nobody_listens_at_any_address_that_is_the_reason(monkeypatch: pytest.MonkeyPatch, port: Wired) -> None:
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    why_not = "name somewhere has 2 addresses, and none answers: Connection refused"
    assert look_up(f"tcp://somewhere:{port.port}") == Found("", why_not)


def test_one_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a node is there is the registration's business."""
    resolves_to(monkeypatch, "127.0.0.2", "127.0.0.2")
    assert look_up("tcp://somewhere:1") == Found("tcp://127.0.0.2:1")


@pytest.mark.parametrize("label", ["a" * 64, "a..b"])
def test_a_name_that_can_be_none_does_not_resolve(label: str) -> None:
    found = look_up(f"tcp://{label}:4000")
    assert found.endpoint == ""
    assert found.why.startswith(f"name {label} does not resolve: ")


def test_a_resolver_that_fails_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert look_up(NAME) == Found("", "name encoder.example does not resolve: Temporary failure in name resolution")
