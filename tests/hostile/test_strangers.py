"""P16, D15: who may not connect does not reach a role, whatever it does to the port; who may is served meanwhile.

Real sockets; the roles run in the test's thread (`support.wires`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from support.alone import EncodeAlone, LanguageAlone
from support.wires import Wired, dealer, register, say, wired

from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.workers import messages as msg
from embridge.workers.keys import KeyPair, new_key_pair
from embridge.workers.wire import dealers as wire_module
from embridge.workers.wire import reader as reader_module

NODE, LISTED, OTHER, STRANGER = (new_key_pair() for _ in range(4))


@pytest.fixture
def allow_file(tmp_path: Path) -> Path:
    path = tmp_path / "nodes.allow"
    path.write_text(f"- {LISTED.public} listed\n- {OTHER.public} other\n")
    return path


@pytest.fixture
def port(allow_file: Path) -> Iterator[Wired]:
    """An encode node's control port with keys."""
    with wired(EncodeAlone().actor("bootstrap"), NODE, allow_file) as it:
        yield it


def answer(port: Wired, sock: zmq.Socket[bytes], timeout_s: float = 20.0) -> msg.Message:
    port.turn_until(lambda: sock.poll(0), timeout_s)
    return msg.decode(sock.recv(), "the node")


def is_served(port: Wired, keys: KeyPair = LISTED, node_id: int = 50) -> bool:
    """A listed node registers, over a new connection."""
    with dealer(port.address, keys, NODE.public) as sock:
        sock.send(register(node_id))
        return isinstance(answer(port, sock), msg.Registered)


# ---- who is not let in


def plain(port: Wired) -> ExitStack:
    return speaking(port, [None] * 3)


def unlisted(port: Wired) -> ExitStack:
    return speaking(port, [STRANGER] * 3)


def to_another_server(port: Wired) -> ExitStack:
    """A listed client that takes the node for somebody else: it cannot even ask to be let in."""
    return speaking(port, [LISTED] * 3, OTHER.public)


def speaking(port: Wired, keys: list[KeyPair | None], server_key: str = NODE.public) -> ExitStack:
    stack = ExitStack()
    for pair in keys:
        sock = stack.enter_context(dealer(port.address, pair, server_key))
        for _ in range(10):
            say(sock, register(66))
    return stack


def half_open(port: Wired) -> ExitStack:
    """They connect and say nothing, or begin a greeting and stop, or talk of something else."""
    stack = ExitStack()
    greeting = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE".ljust(64, b"\x00")
    for number in range(40):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=5))
        sock.sendall(
            (b"", greeting[: 1 + number % 60], greeting, b"GET / HTTP/1.1\r\n\r\n", os.urandom(500))[number % 5]
        )
    return stack


def storm(port: Wired) -> ExitStack:
    """They come and go, and come again."""
    for number in range(300):
        with socket.create_connection(("127.0.0.1", port.port), timeout=5) as sock:
            if number % 2:
                sock.sendall(os.urandom(number))
        if number % 20 == 0:
            port.turn()
    return ExitStack()


STRANGERS = (plain, unlisted, to_another_server, half_open, storm)


@pytest.mark.parametrize("attack", STRANGERS, ids=lambda call: call.__name__)
def test_a_stranger_reaches_no_role_and_a_listed_node_is_served_meanwhile(
    port: Wired, attack: Callable[[Wired], ExitStack]
) -> None:
    """P16, D15: not one message, and the process lives."""
    with attack(port):
        for node_id in range(50, 53):
            assert is_served(port, node_id=node_id)
        for _ in range(20):
            port.turn(0.005)
    assert [arrival.identity for arrival in port.arrivals] == [LISTED.public] * 3
    assert port.metrics()["messages_in"] == 3
    assert port.metrics()["messages_refused"] == port.metrics()["errors"] == 0  # not even to be dropped


def test_strangers_are_counted_and_the_lines_about_them_are_bounded(
    port: Wired, caplog: pytest.LogCaptureFixture
) -> None:
    """P16: nobody fills the disk of a node by knocking."""
    for _ in range(30):
        before = port.metrics()["connections_refused"]
        with dealer(port.address, STRANGER, NODE.public):
            port.turn_until(lambda before=before: port.metrics()["connections_refused"] > before)  # type: ignore[misc]
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert 1 <= len(lines) <= 20
    assert f"connection from 127.0.0.1 refused: its key {STRANGER.public[:8]}... is not in" in lines[0]
    assert not any(pair.secret in caplog.text for pair in (NODE, LISTED, STRANGER))


def test_a_handshake_that_does_not_end_is_ended(port: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """P16: a half-open connection does not stay; libzmq closes it."""
    assert wire_module.HANDSHAKE_MS <= 5000
    monkeypatch.setattr(wire_module, "HANDSHAKE_MS", 100)
    with wired(EncodeAlone().actor("poller"), NODE, port.wire._keys.allow.path) as quick:  # type: ignore[union-attr]
        with socket.create_connection(("127.0.0.1", quick.port), timeout=20) as sock:
            while sock.recv(1000):
                pass  # its greeting, and then the end
        assert quick.metrics()["messages_in"] == 0


def test_without_a_handler_nobody_is_let_in(port: Wired) -> None:
    """D15: what decides is missing, so the answer is no."""
    assert port.wire._gatekeeper is not None
    port.wire._poller.unregister(port.wire._gatekeeper.socket)
    port.wire._gatekeeper.close()
    port.wire._gatekeeper = None
    with dealer(port.address, LISTED, NODE.public) as sock:
        monitor = sock.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        sock.send(register())
        port.turn_until(lambda: monitor.poll(0))
        for _ in range(10):
            port.turn(0.005)
        sock.disable_monitor()
        monitor.close(0)
    assert port.arrivals == []


# ---- messages of those who are let in


@pytest.mark.parametrize("keys", [False, True])
def test_frames_over_sockets_are_refused_and_counted(allow_file: Path, keys: bool) -> None:
    """P16: too long, too many, too few parts, noise; and a registration is answered after each."""
    node = EncodeAlone().actor("bootstrap")
    with wired(node, NODE if keys else None, allow_file if keys else None) as port:
        odd: list[list[bytes]] = [
            [b"x"] * 2,
            [b""],
            [b"\xc1"],
            [register()[:-1]],
            [os.urandom(1000)],
            [register(), register()],
        ]
        for number, frames in enumerate(odd):
            with dealer(port.address, LISTED if keys else None, NODE.public) as sock:
                sock.send_multipart(frames)
                sock.send(register(70 + number))
                assert isinstance(answer(port, sock), msg.Registered | msg.Refused)
        assert port.metrics()["messages_refused"] >= len(odd)
        with dealer(port.address, LISTED if keys else None, NODE.public) as sock:
            came = len(port.arrivals)
            sock.send(bytes(msg.MAX_MESSAGE_BYTES + 1))
            sock.send(register(90))  # its connection has ended with the frame before
            with dealer(port.address, LISTED if keys else None, NODE.public) as other:
                other.send(register(70))
                assert isinstance(answer(port, other), msg.Registered)
        assert all(
            len(msg.encode(a.message)) < 1000 for a in port.arrivals[came:] if not isinstance(a.message, msg.Foreign)
        )
        assert port.metrics()["errors"] == 0


def test_a_flood_of_what_is_refused_is_read_slowly_and_whoever_else_is_there_is_served(
    port: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P21, P16: the port rests once it has refused its share; then the flood and others are read in turn, one
    for one.
    """
    monkeypatch.setattr(reader_module, "COST_NS", 10**12)  # so that no rest ends by itself
    with dealer(port.address, LISTED, NODE.public) as flood, dealer(port.address, OTHER, NODE.public) as good:
        good.send(register(70))
        assert isinstance(answer(port, good), msg.Registered)
        for _ in range(1000):
            flood.send(b"noise")
        port.turn_until(lambda: port.metrics()["messages_refused"] == reader_module.REFUSED_AT_ONCE)
        good.send(register(70))
        for _ in range(20):
            port.turn(0.01)
        assert port.metrics()["messages_refused"] == reader_module.REFUSED_AT_ONCE
        assert not good.poll(0)
        port.wire._reader.rests_until_ns = port.wire._reader._paid_ns = 0
        monkeypatch.setattr(reader_module, "COST_NS", 0)
        monkeypatch.setattr(reader_module, "MESSAGES_AT_ONCE", 2)
        port.turn_until(lambda: port.metrics()["messages_in"] == 2)
        assert port.metrics()["messages_refused"] < 2 * reader_module.REFUSED_AT_ONCE


@pytest.mark.parametrize("keys", [False, True])
def test_a_message_of_endless_frames_is_dropped_a_few_at_a_time(
    allow_file: Path, keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P12, P16: it is counted once and costs no step more than its share of frames; whoever else is there is served
    after it.
    """
    monkeypatch.setattr(reader_module, "MESSAGES_AT_ONCE", 4)
    num_frames = 4000  # about 16 steps of 4 x 64
    with wired(EncodeAlone().actor("bootstrap"), NODE if keys else None, allow_file if keys else None) as port:
        key = LISTED if keys else None
        with dealer(port.address, key, NODE.public) as sock, dealer(port.address, key, NODE.public) as other:
            other.send(register(70))
            assert isinstance(answer(port, other), msg.Registered)
            before = port.metrics()["messages_refused"]
            sock.send_multipart([b"x"] * num_frames)
            steps = 0
            while port.metrics()["messages_refused"] == before:
                port.turn(0.005)
                steps += port.wire._reader._is_dropping
            assert steps >= num_frames // (4 * reader_module.FRAMES_AT_ONCE)
            assert port.metrics()["messages_refused"] == before + 1
            sock.send(register(71))
            assert isinstance(answer(port, sock), msg.Registered)
            other.send(register(70))
            assert isinstance(answer(port, other), msg.Registered)


def test_what_never_ends_reaches_nobody_and_goes_with_its_connection(port: Wired) -> None:
    """P16: libzmq holds back a message until its last frame, and forgets it when the connection ends before."""
    with dealer(port.address, LISTED, NODE.public) as other:
        with dealer(port.address, LISTED, NODE.public) as sock:
            sock.send(register(71))
            assert isinstance(answer(port, sock), msg.Registered)
            before = port.metrics()
            for _ in range(1000):
                sock.send(register(71), zmq.SNDMORE)
            other.send(register(70))
            assert isinstance(answer(port, other), msg.Registered)
        other.send(register(70))
        assert isinstance(answer(port, other), msg.Registered)
        assert port.metrics()["messages_refused"] == before["messages_refused"]
        assert port.metrics()["messages_in"] == before["messages_in"] + 2


def test_a_registration_of_another_version_is_answered_with_both_versions(port: Wired) -> None:
    """D5: a node that is not updated yet learns why; its other messages are not answered."""
    with dealer(port.address, LISTED, NODE.public) as sock:
        sock.send(register(version=99))
        refused = answer(port, sock)
        assert isinstance(refused, msg.Refused)
        assert refused.reason == (
            f"protocol version: the language node speaks 99, this encode node {msg.VERSION}; run the same embridge on "
            f"both"
        )
        sock.send(msg.encode(msg.Abort(msg.Envelope(99, 50, 1, 1), msg.RequestKey(1, 1, 1), 3, "")))
        sock.send(register())
        assert isinstance(answer(port, sock), msg.Registered)


def test_a_key_that_is_taken_off_the_list_is_not_heard_any_more(
    port: Wired, allow_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: new connections are refused at once, and what comes over old ones is dropped; a key that is added may
    connect.
    """
    monkeypatch.setattr(wire_module, "LOOK_AT_LIST_NS", 0)
    with dealer(port.address, LISTED, NODE.public) as sock:
        sock.send(register())
        assert isinstance(answer(port, sock), msg.Registered)
        allow_file.write_text(f"- {OTHER.public}\n- {STRANGER.public}\n")
        came, refused = len(port.arrivals), port.metrics()["messages_refused"]
        sock.send(register(registration=2))
        port.turn_until(lambda: port.metrics()["messages_refused"] > refused)
        assert len(port.arrivals) == came
        with dealer(port.address, LISTED, NODE.public):
            port.turn_until(lambda: port.metrics()["connections_refused"] == 1)
    assert is_served(port, STRANGER, node_id=51)


def test_a_list_that_is_broken_later_leaves_the_old_one_in_force(
    port: Wired, allow_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allow_file.write_text("10.0.0.1 no-key\n")
    assert is_served(port)
    assert f"allow file {allow_file}, line 1: its second field is no public key" in caplog.text
    allow_file.unlink()
    assert is_served(port)


# ---- the end that connects


def test_an_address_without_a_line_fails_the_request_at_once(allow_file: Path) -> None:
    node, address = LanguageAlone(), "tcp://127.0.0.1:9"
    with wired(node.actor("bootstrap"), LISTED, allow_file) as it:
        slot = node.client.receiver(address, 1).slot
        it.turn_until(lambda: node.slots.get(slot, Slot.FAILURE))
        assert node.slots.get(slot, Slot.FAILURE) == FailureCode.REFUSED
        reason = f"encode node {address}: no key for it in this node's allow-list; add its line"
        assert node.slots.reason(slot) == reason


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (STRANGER, "it does not list this node's key; add its line there"),
        (None, "one of both nodes has keys and the other has none, or it is no node"),
    ],
)
def test_a_node_that_is_not_let_in_learns_why(port: Wired, tmp_path: Path, ours: KeyPair | None, says: str) -> None:
    """P16: the one whose key is missing there, and the one that is plain."""
    allow = tmp_path / "ours.allow"
    allow.write_text(f"127.0.0.1 {NODE.public}\n")
    node = LanguageAlone()
    with wired(node.actor("bootstrap"), ours, allow if ours else None) as it:
        receiver = node.client.receiver(port.address, 1)

        def failed() -> bool:
            port.turn()
            return node.slots.get(receiver.slot, Slot.FAILURE) != 0

        it.turn_until(failed)
        assert node.slots.get(receiver.slot, Slot.FAILURE) == FailureCode.REFUSED
        assert node.slots.reason(receiver.slot) == f"encode node {port.address}: {says}"


def test_a_server_that_cannot_prove_its_key_is_told_nothing(port: Wired, tmp_path: Path) -> None:
    """D15: somebody else listens at the encode node's address."""
    allow = tmp_path / "ours.allow"
    allow.write_text(f"127.0.0.1 {OTHER.public}\n")
    node = LanguageAlone()
    with wired(node.actor("bootstrap"), LISTED, allow) as it:
        node.client.receiver(port.address, 1)

        def hinted() -> bool:
            port.turn()
            return any(not denied.is_final for denied in it.denied)

        it.turn_until(hinted)
        link = next(iter(it.actor.role._links.values()))  # type: ignore[attr-defined]
        assert link.hint == "its key is another than listed here, or it is no node"
    assert port.arrivals == []


def test_the_limits_of_a_socket_are_set_on_both_ends() -> None:
    """P12, P16: queues, messages and handshakes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as sock:
        wire_module.set_limits(sock)
        assert sock.getsockopt(zmq.MAXMSGSIZE) == msg.MAX_MESSAGE_BYTES
        assert sock.getsockopt(zmq.HANDSHAKE_IVL) == wire_module.HANDSHAKE_MS
        assert sock.getsockopt(zmq.SNDHWM) == wire_module.HIGH_WATER > 0
        assert sock.getsockopt(zmq.RCVHWM) == wire_module.RECEIVE_HIGH_WATER > 0
        assert sock.getsockopt(zmq.TCP_KEEPALIVE) == 1


def test_a_node_at_an_ipv6_address_is_reached(allow_file: Path) -> None:
    if (
        not os.path.exists("/proc/net/if_inet6")
        or "00000000000000000000000000000001" not in Path("/proc/net/if_inet6").read_text()
    ):
        pytest.skip("this machine has no ::1")
    with wired(EncodeAlone().actor("bootstrap"), NODE, allow_file, "::1") as port:
        assert port.address.startswith("tcp://[::1]:")
        assert is_served(port)
