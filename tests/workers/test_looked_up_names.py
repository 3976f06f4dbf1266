"""Addresses: only numbers are on the wire and at sockets; names of requests are looked up beside everybody's way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.waiting import wait_until
from support.wires import Wired, wired

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.workers import addresses
from embridge.workers import messages as msg
from embridge.workers.addresses import MAX_ASKED, MAX_THREADS, Found, Names, look_up, numeric, split_address
from embridge.workers.keys import new_key_pair
from embridge.workers.role import Disconnect, Send

NAME = "tcp://encoder.example:4000"


pytestmark = pytest.mark.usefixtures("quiet")


# ---- what an address is

NO_ADDRESS = [
    "",
    "here",
    "tcp://",
    "tcp://10.0.0.7",
    "tcp://10.0.0.7:0",
    "tcp://10.0.0.7:65536",
    "tcp://10.0.0.7:4000\n",
    "tcp://10.0.0.7:4000;10.0.0.8:1",
    "tcp://10.0.0.7\0:4000",
    "tcp://a b:1",
    "tcp://*:4000",
    "tcp://eth0;10.0.0.7:1",
    "tcp://fd00::7:4000",
    "tcp://[10.0.0.7:4000",
    "tcp://[1:2]:4000",
    "tcp://0.0.0.0:4000",
    "tcp://[::]:4000",
    "tcp://[::ffff:0.0.0.0]:4000",
    "tcp://224.0.0.1:4000",
    "ipc:///tmp/x",
    "inproc://x",
    "udp://10.0.0.7:4000",
    "TCP://10.0.0.7:4000",
]
NAMES = [NAME, "tcp://localhost:1", "tcp://127.1:80", "tcp://1.2.3.999:4", "tcp://-:4000"]


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_what_leads_to_no_node_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|is the address of no node|is no IPv6 address"):
        split_address(address)
    with pytest.raises(ValueError, match=r"is not of the form|is the address of no node|is no IPv6 address"):
        numeric(address)


@pytest.mark.parametrize("address", NAMES)
def test_a_name_is_an_address_but_no_number(address: str) -> None:
    """What the C library alone takes for a number, too."""
    split_address(address)
    with pytest.raises(ValueError, match=r"is no tcp://ip:port"):
        numeric(address)


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("tcp://10.0.0.7:4000", "tcp://10.0.0.7:4000"),
        ("tcp://[::1]:1", "tcp://[::1]:1"),
        ("tcp://[0:0::1]:1", "tcp://[::1]:1"),
        ("tcp://[FD00::7]:1", "tcp://[fd00::7]:1"),
        ("tcp://[::ffff:10.0.0.7]:4000", "tcp://10.0.0.7:4000"),
        ("tcp://[fe80::1%eth0]:4000", "tcp://[fe80::1%eth0]:4000"),
    ],
)
def test_a_number_has_one_form(address: str, form: str) -> None:
    assert numeric(address) == form
    assert numeric(form) == form


@pytest.mark.parametrize("field", ["bootstrap_addr", "poller_addr"])
@pytest.mark.parametrize("address", [*NO_ADDRESS, *NAMES])
def test_a_node_that_announces_no_number_is_refused_with_the_field(field: str, address: str) -> None:
    """P16, P21: this node would connect there, and its resolver would be asked for what a stranger says."""
    node = EncodeAlone()
    node.forget_sent()
    changes: dict[str, Any] = {field: address}
    node.register(node_id=11, **changes)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason.startswith(msg.clip(f"{field}: {address!r}")[:100])
    assert node.control.peers.find(11, 1) is None


@pytest.mark.parametrize("field", [1, 2])
def test_an_encode_node_that_announces_a_name_fails_the_requests_that_ask_it(field: int) -> None:
    """P16."""
    node = LanguageAlone()
    receiver = node.client.receiver(ENCODE_ADDRESS, 1)
    node.settle()
    fields: list[Any] = [node.envelope(node_id=20), ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16]
    fields[field] = NAME
    node.hears("bootstrap", msg.Registered(*fields), address=ENCODE_ADDRESS)
    name = ("bootstrap_addr", "poller_addr")[field - 1]
    failure = receiver.failure_exception()
    assert failure is not None
    assert (
        failure.reason
        == f"encode node {ENCODE_ADDRESS} announces what is no address: {name}: '{NAME}' is no tcp://ip:port"
    )


def test_no_name_reaches_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """P21: libzmq would look it up in its one I/O thread; the last check, whatever a role says."""
    connected: list[str] = []
    connect = zmq.Socket.connect

    def note(sock: Any, address: str) -> Any:
        return connect(sock, address) if address.startswith("inproc:") else connected.append(address)

    monkeypatch.setattr(zmq.Socket, "connect", note)
    node = LanguageAlone()
    with wired(node.actor("bootstrap")) as it:
        envelope = node.envelope(node_id=20)
        it.wire.send([Send(address, msg.Heartbeat(envelope, [])) for address in [*NO_ADDRESS, *NAMES]])
        assert connected == []
        _, _, denied = it.wire.receive(())
        assert {item.address for item in denied} == {*NO_ADDRESS, *NAMES}
        it.wire.send([Send("tcp://10.0.0.7:1", msg.Heartbeat(envelope, []))])
        assert connected == ["tcp://10.0.0.7:1"]


# ---- what a request with a name waits for


def names(node: LanguageAlone, found: dict[str, Found | None]) -> None:
    """What has come of each name so far."""
    node.world.find = lambda address: found[address]  # type: ignore[method-assign]


def why(receiver: Any) -> tuple[FailureCode, str]:
    failure = receiver.failure_exception()
    assert failure is not None
    return failure.code, failure.reason


def test_only_the_request_with_the_name_waits_for_it_and_at_most_as_long_as_for_a_connection() -> None:
    """P21, P8, D10."""
    node = LanguageAlone()
    names(node, {NAME: None})
    slow = node.client.receiver(NAME, 1)
    other = node.receiver(2)
    assert other.handshake_done
    sends = [item for _, item in node.wire.sent if isinstance(item, Send)]
    assert [item.address for item in sends if isinstance(item.message, msg.Register)] == [ENCODE_ADDRESS]
    timeout_s = node.world.timing.connect_timeout_s
    node.advance(timeout_s - 0.1)
    assert slow.poll() == Phase.Bootstrapping
    node.advance(0.7)
    assert why(slow) == (
        FailureCode.UNREACHABLE,
        f"no encode node answers at {NAME} for {timeout_s:g} s; name encoder.example does not resolve: no answer yet",
    )


def test_who_joins_those_who_wait_for_a_name_has_as_long_as_they_had() -> None:
    """P21, P8: the requests before it are no reason to fail early; and who is asked for again waits on."""
    node = LanguageAlone()
    names(node, {NAME: None})
    timeout_s = node.world.timing.connect_timeout_s
    first = node.client.receiver(NAME, 1)
    node.advance(timeout_s - 1)
    second = node.client.receiver(NAME, 2)
    library_of(node.client).attachment.kick_bootstrap(Kick.OPEN, first.slot, first.epoch)
    node.advance(1.7)
    assert (first.poll(), second.poll()) == (Phase.Failed, Phase.Bootstrapping)
    node.advance(timeout_s - 2)
    assert second.poll() == Phase.Bootstrapping
    node.advance(1.0)
    assert why(second) == why(first)


def test_who_joins_those_who_wait_for_a_connection_has_as_long_as_they_had() -> None:
    """P21, P8: here the node starts late: too late for the first, in time for the second, in a registration after the
    first one's (R14).
    """
    node = LanguageAlone()
    timeout_s = node.world.timing.connect_timeout_s
    first = node.client.receiver(ENCODE_ADDRESS, 1)
    node.advance(timeout_s - 1)
    second = node.client.receiver(ENCODE_ADDRESS, 2)
    library_of(node.client).attachment.kick_bootstrap(Kick.OPEN, first.slot, first.epoch)
    node.advance(1.7)
    assert why(first) == (
        FailureCode.UNREACHABLE,
        f"no encode node answers at {ENCODE_ADDRESS} for {timeout_s:g} s; check its address and that it is up",
    )
    node.advance(timeout_s - 2)
    assert second.poll() == Phase.Bootstrapping
    node.registered()
    assert second.handshake_done
    numbers = [message.registration for message in node.sent(msg.Register)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 2


def test_of_those_who_wait_for_a_connection_each_fails_in_its_time() -> None:
    """P8: also where there is always one more, and the line is renewed, so that nothing piles up in a socket."""
    node = LanguageAlone()
    timeout_s = node.world.timing.connect_timeout_s
    every_s, receivers = timeout_s / 4, []
    for room in range(13):
        receivers.append(node.client.receiver(ENCODE_ADDRESS, room))
        node.advance(every_s)
    assert [receiver.poll() == Phase.Failed for receiver in receivers] == [True] * 9 + [False] * 4
    assert sum(isinstance(item, Disconnect) for _, item in node.wire.sent) == 3
    node.advance(timeout_s)
    assert [receiver.poll() for receiver in receivers] == [Phase.Failed] * 13
    node.advance(timeout_s)  # for their aborts, which find nobody, either
    assert not node.actor("bootstrap").role._links  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["given up", "refused", "nobody listens", "its port is closed", "it is dead"])
def test_where_a_name_leads_is_forgotten_when_nobody_answers_there(how: str) -> None:
    """P21: else whoever asks for that name goes there for as long as an answer is kept, wherever its node is by now."""
    node = LanguageAlone()
    forgotten: list[str] = []
    node.world.forget = lambda endpoint: forgotten.append(endpoint)  # type: ignore[method-assign]
    names(node, {NAME: Found(ENCODE_ADDRESS)})
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    if how in ("its port is closed", "it is dead"):
        node.registered()
        assert receiver.handshake_done
    assert not forgotten
    match how:
        case "given up":
            node.advance(node.world.timing.connect_timeout_s + 0.6)
        case "refused":
            refusal = msg.Refused(node.envelope(node_id=20), FailureCode.REFUSED, "not here")
            node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
        case "it is dead":
            node.advance(node.world.timing.peer_timeout_s + 1)
        case _:
            node.actor("bootstrap").refused.append(ENCODE_ADDRESS)
            node.settle()
    assert set(forgotten) == {ENCODE_ADDRESS}


def test_a_name_that_does_not_resolve_may_do_so_later_until_the_time_to_connect_is_over() -> None:
    """P8: a node's name may come with the node."""
    node = LanguageAlone()
    found: dict[str, Found | None] = {
        NAME: Found("", "name encoder.example does not resolve: Name or service not known")
    }
    names(node, found)
    first = node.client.receiver(NAME, 1)
    node.advance(1.0)
    assert first.poll() == Phase.Bootstrapping
    found[NAME] = Found(ENCODE_ADDRESS)
    node.advance(0.6)
    node.registered()
    assert first.handshake_done
    found[NAME] = Found("", "name encoder.example does not resolve: Name or service not known")
    second = node.client.receiver(NAME, 2)
    node.advance(node.world.timing.connect_timeout_s + 0.6)
    assert why(second)[1].endswith(" s; name encoder.example does not resolve: Name or service not known")


def test_a_node_that_is_asked_by_name_and_by_number_has_one_link() -> None:
    """R14, D2: a second registration would void what was granted under the first."""
    node = LanguageAlone()
    names(node, {NAME: Found(ENCODE_ADDRESS)})
    node.receiver(1)
    by_name = node.client.receiver(NAME, 2)
    mapped = node.client.receiver(ENCODE_ADDRESS.replace("10.0.0.20", "[::ffff:10.0.0.20]"), 3)
    node.settle()
    assert by_name.handshake_done
    assert mapped.handshake_done
    assert len(node.sent(msg.Register)) == 1


def test_a_request_that_ends_while_its_name_is_looked_up_leaves_nothing() -> None:
    """D6."""
    node = LanguageAlone()
    names(node, {NAME: None})
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    receiver.abort()
    receiver.clear()
    node.advance(node.world.timing.connect_timeout_s + 1)
    assert not list(node.control.current_slots())
    assert not node.actor("bootstrap").role._lookups  # type: ignore[attr-defined]


def test_after_a_restart_of_the_bootstrap_process_the_name_is_looked_up_again() -> None:
    """P11."""
    node = LanguageAlone()
    found: dict[str, Found | None] = {NAME: None}
    names(node, found)
    receiver = node.client.receiver(NAME, 1)
    node.settle()
    node.restart("bootstrap")
    found[NAME] = Found(ENCODE_ADDRESS)
    node.settle()
    node.registered()
    assert receiver.handshake_done


def test_the_key_beside_a_name_is_that_of_the_address_behind_it(tmp_path: Any) -> None:
    """D15: the allow-list may know a node by its name."""
    pair, other = new_key_pair(), new_key_pair()
    allow = tmp_path / "nodes.allow"
    allow.write_text(f"encoder.example {other.public}\n")
    node = LanguageAlone()
    names(node, {NAME: Found("tcp://127.0.0.1:9")})
    with wired(node.actor("bootstrap"), pair, allow) as it:
        by_name = node.client.receiver(NAME, 1)
        it.turn_until(lambda: it.wire._dealers)
        assert it.wire._dealers["tcp://127.0.0.1:9"].key == other.public
        assert not node.slots.get(by_name.slot, Slot.FAILURE)
        by_number = node.client.receiver("tcp://127.0.0.2:9", 2)
        it.turn_until(lambda: node.slots.get(by_number.slot, Slot.FAILURE))


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
