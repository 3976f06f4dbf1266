"""P13, P16: nodes that do not fit together, and processes that only answer like a node: each is one clear error.

Nothing is left behind, which is checked after every test (see `conftest.py`).
"""

from __future__ import annotations

import os
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from support.carrying import carried
from support.encoding import ended, give, open_sender
from support.nodes import Settings, Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, Limits, attach
from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import AttachError, SegmentError
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.layout import LAYOUT_VERSION, ControlLayout, PayloadLayout
from embridge.allocator.records import SegmentHeader
from embridge.allocator.segment import create_segment, map_segment
from embridge.pipeline import join as joining
from embridge.pipeline.inspection.node_status import node_status
from embridge.pipeline.join import knock
from embridge.workers import messages as msg
from embridge.workers import run_socket

pytestmark = pytest.mark.process

FEW = Limits(num_slots=64, max_clients=2, num_workers=1, window_blocks=64, max_peers=4, ring_records=64)


# ---- peers that differ: each a language node of its own against the one encode node


DIFFER: dict[str, tuple[Settings, str]] = {
    "hidden size": ({"hidden_size": 32}, "hidden_size: language 32, encode 64; launch both with the same"),
    "deepstack": ({}, "deepstack_layers: language 0, encode 3; launch both with the same"),
}


@pytest.mark.parametrize("what", DIFFER)
def test_peers_that_differ_are_refused_with_both_values_named(
    encode: Station, own_dir: Path, room: int, what: str
) -> None:
    settings, text = DIFFER[what]
    with station("language", own_dir / "l", limits=FEW, connect_timeout_s=1.0, **settings) as other:
        with attach(other.run_dir) as client:
            queues = Queues(client)
            queues.add(encode.addr, room)
            assert queues.take(room, 10).reason == f"encode node {encode.addr} refused: {text}"
        other.wait_idle()
        assert encode.says(text)


# ---- addresses where no encode node answers, and requests that are too large: one language node


@pytest.fixture(scope="module")
def hasty() -> Iterator[Station]:
    """A language node that fits the shared encode node, waits half a second for a peer, and receives 1000 tokens at
    most.
    """
    tokens = Geometry(hidden_size=64, deepstack_layers=3).token_bytes * 1000
    with (
        run_dirs() as path,
        station(
            "language",
            path / "l",
            limits=FEW,
            num_blocks=9,
            deepstack_layers=3,
            connect_timeout_s=0.5,
            host_buffer_bytes=tokens,
        ) as it,
    ):
        yield it


@pytest.fixture
def waiting(hasty: Station) -> Iterator[Queues]:
    with attach(hasty.run_dir) as client:
        yield Queues(client)
    hasty.wait_idle()


@contextmanager
def silent() -> Iterator[str]:
    """A server of something else: it takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_no_encode_node_answers_fails_the_request_and_no_other(
    encode: Station, hasty: Station, sending: Client, waiting: Queues, rooms: Iterator[int]
) -> None:
    """Nobody; a server of something else; the other port of an encode node; a language node; a host that has no
    address.
    """
    with silent() as elsewhere:
        wrong = [
            "tcp://127.0.0.1:1",
            elsewhere,
            encode.node.poller_addr,
            hasty.addr,
            "tcp://no-such-host.invalid:4000",
            "tcp://-:4000",
        ]
        asked = {next(rooms): addr for addr in wrong}
        for room, addr in asked.items():
            waiting.add(addr, room)
        good = next(rooms)
        assert carried(waiting, encode.addr, sending, good, 300, 10).difference == ""
        for room, addr in asked.items():
            received = waiting.take(room, 10)
            name = addr.removeprefix("tcp://").rpartition(":")[0]
            why = "check its address and that it is up" if name == "127.0.0.1" else f"name {name} does not resolve: "
            assert received.error == "PeerLost"
            assert received.reason.startswith(f"no encode node answers at {addr} for 0.5 s; {why}")


def test_a_request_over_host_buffer_bytes_is_refused_at_once_on_both_sides(
    encode: Station, sending: Client, waiting: Queues, rooms: Iterator[int]
) -> None:
    """D9: the setting that is too small is named, and a request that just fits passes."""
    large, fits = next(rooms), next(rooms)
    for room in (large, fits):
        waiting.add(encode.addr, room)
    sender = open_sender(sending, large, 1001, announce=True)
    assert give(open_sender(sending, fits, 1000))
    received = waiting.take(large, 10)
    assert re.fullmatch(r"1001 tokens need \d+ bytes of host memory > \d+; raise host_buffer_bytes", received.reason)
    assert ended(sender).reason == received.reason
    assert waiting.take(fits, 10).difference == ""


# ---- another version of the protocol


def test_a_message_of_another_version_is_refused_and_named_in_the_log(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P16: among bytes that are no message at all.

    The node answers the registration alone, and serves the next request.
    """
    envelope = msg.Envelope(msg.VERSION, 77, 1, 0)
    fields: dict[str, Any] = dict.fromkeys(msg.Register.__struct_fields__, 1) | {
        "envelope": envelope,
        "offers": {},
        **dict.fromkeys(("fill_ids", "mrope_positions", "verify"), True),
    }
    texts = ("bootstrap_addr", "poller_addr", "dtype")
    register = msg.Register(**(fields | dict.fromkeys(texts, "x")))
    good = msg.encode(register)
    tag, _, *rest = msgspec.msgpack.decode(good)
    other = msgspec.msgpack.encode([tag, [99, 77, 1, 0], *rest])
    assert len(other) == len(good)
    before, restarts = encode.control.metrics.all(), encode.restarts()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 1000)
        dealer.connect(encode.addr)
        for data in (other, b"", b"\xc1", good[:-1], os.urandom(1000)):
            dealer.send(data)
        wait_until(lambda: refused(encode) >= 5 + before["bootstrap"]["messages_refused"])
        assert dealer.poll(5000)
        answer = msg.decode(dealer.recv(), "node")
        assert isinstance(answer, msg.Refused)
        ours = f"this encode node {msg.VERSION}; run the same embridge on both"
        assert answer.reason == f"protocol version: the language node speaks 99, {ours}"
        assert not dealer.poll(0)
        dealer.send(good)  # of this version, and refused for what it says
        assert dealer.poll(5000)
        assert "hidden_size: language 1, encode 64" in str(msg.decode(dealer.recv(), "node"))
    assert encode.says(f"message refused: a connected peer: version is 99; expected one of {msg.ACCEPTED_VERSIONS}")
    assert carried(receiving, encode.addr, sending, room, 300).difference == ""
    assert encode.restarts() == restarts


def refused(it: Station) -> int:
    return int(it.control.metrics.all()["bootstrap"]["messages_refused"])


# ---- segments of another version, or of somebody else


def crafted(header: dict[SegmentHeader, int], *, size: int | None = None) -> Control:
    """A control segment with some words of its header changed, opened as by one who attaches."""
    geometry = Geometry(hidden_size=8, num_blocks=2)
    layout = ControlLayout.of(Role.LANGUAGE, geometry, FEW)
    segment = create_segment("control", layout.size)
    try:
        mapping = map_segment(segment.fd, layout.size)
        format_control(mapping, Role.LANGUAGE, geometry, FEW, node_id=1, incarnation=1, now_ns=1)
        control = Control(mapping)
        for word, value in header.items():
            control.header.store(word, value)
        return Control(map_segment(segment.fd, size or layout.size))
    finally:
        segment.close()


SEGMENTS = {
    "no segment of ours": (
        {SegmentHeader.MAGIC: 7},
        None,
        "control segment: magic 0x7 is not 0x3145474449...; this is no embridge segment",
    ),
    "a newer layout": (
        {SegmentHeader.VERSION: LAYOUT_VERSION + 1},
        None,
        f"control segment: layout version {LAYOUT_VERSION + 1}, this process speaks {LAYOUT_VERSION}; run the same "
        f"embridge version",
    ),
    "a header that says more": (
        {SegmentHeader.CONTROL_BYTES: 1 << 40},
        None,
        "control segment: ... bytes mapped, its header says more",
    ),
    "a segment without its end": ({}, 8192, "control segment: 8192 bytes mapped, its header says more"),
    "a segment that is too short": (
        {},
        1 << 30,
        "segment: ... bytes < 1073741824 bytes expected; the node that made it has another layout",
    ),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_a_segment_of_another_version_is_refused_before_any_offset_is_trusted(what: str) -> None:
    header, size, text = SEGMENTS[what]
    assert crafted({}).geometry.hidden_size == 8
    with pytest.raises(SegmentError, match=pattern(text)):
        crafted(header, size=size)


def pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("..."))


# ---- who answers at a run socket, and is no node of this version


Answer = Callable[[socket.socket], None]


@contextmanager
def impostor(run_dir: Path, answer: Answer) -> Iterator[Path]:
    """Somebody who listens at a run socket and answers one hello."""
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(run_dir / run_socket.SOCKET_NAME))
        server.listen()

        def serve() -> None:
            guest, _ = server.accept()
            with guest:
                guest.recv(1 << 16)
                answer(guest)
                guest.settimeout(5.0)
                guest.recv(1)  # until the other has left

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield run_dir
        finally:
            thread.join()


def welcome(names: list[str], header: dict[SegmentHeader, int] | None = None, *, payload_bytes: int = 0) -> Answer:
    """The welcome of a node with a small segment in which some words differ."""

    def answer(guest: socket.socket) -> None:
        geometry = Geometry(hidden_size=8, num_blocks=2)
        layout = ControlLayout.of(Role.LANGUAGE, geometry, FEW)
        size = payload_bytes or PayloadLayout.of(geometry).size
        control, payload, event = create_segment("control", layout.size), create_segment("payload", size), os.eventfd(0)
        mapping = map_segment(control.fd, layout.size)
        format_control(mapping, Role.LANGUAGE, geometry, FEW, node_id=1, incarnation=1, now_ns=1)
        opened = Control(mapping)
        for word, value in (header or {}).items():
            opened.header.store(word, value)
        frame = run_socket.Welcome(layout.size, size, 0, names, "tcp://127.0.0.1:1", 1.0, {})
        fds = {"control": control.fd, "payload": payload.fd}
        run_socket.send_frame(guest, frame, [fds.get(name, event) for name in names])
        control.close()
        payload.close()
        os.close(event)

    return answer


ALL = ["control", "payload", "lane0", "bootstrap", "poller"]


OURS = run_socket.PROTOCOL_VERSION


THEIRS = OURS + 1


IMPOSTORS: dict[str, tuple[str, Answer]] = {
    "one who hangs up": ("refused this process: it hung up", lambda s: s.shutdown(socket.SHUT_RDWR)),
    "one who says nothing": (r"timed out; is `embridge launch` running?", lambda s: None),
    "one who talks of something else": (
        "the other side runs another version of embridge",
        lambda s: void(s.send(b"HTTP/1.1 400")),
    ),
    "an older node": (
        f"refused this process: run socket version {THEIRS}, this node speaks {OURS}",
        lambda s: run_socket.send_frame(s, run_socket.Sorry(f"run socket version {THEIRS}, this node speaks {OURS}")),
    ),
    "a node that hands over something else": (
        "it handed over ['lane0'] and not ['control', 'payload']; it is a node of another version",
        welcome(["lane0"]),
    ),
    "a node of a newer layout": (
        f"control segment: layout version 99, this process speaks {LAYOUT_VERSION}",
        welcome(ALL, {SegmentHeader.VERSION: 99}),
    ),
    "a segment of somebody else": ("control segment: magic 0x5 is not", welcome(ALL, {SegmentHeader.MAGIC: 5})),
    "a payload that is too small": (
        "what it handed over does not fit together: payload segment: 4096 bytes <",
        welcome(ALL, payload_bytes=4096),
    ),
}


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("what", IMPOSTORS)
def test_attaching_to_what_is_no_node_of_this_version_says_so(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """P13."""
    text, answer = IMPOSTORS[what]
    monkeypatch.setattr(joining, "JOIN_TIMEOUT_S", 0.3)
    with impostor(own_dir / "n", answer) as run_dir, pytest.raises((AttachError, SegmentError), match=pattern(text)):
        attach(run_dir)


@pytest.mark.parametrize(
    "hello", [run_socket.Hello(THEIRS), run_socket.Observe(THEIRS), run_socket.PeerHello(THEIRS, 1, 1, 1)]
)
def test_who_speaks_another_version_of_the_run_socket_is_refused_by_the_node(encode: Station, hello: Any) -> None:
    with pytest.raises(
        AttachError, match=f"refused this process: run socket version {THEIRS}, this node speaks {OURS}"
    ):
        knock(encode.run_dir, hello, 5.0)
    assert node_status(encode.run_dir)["state"] == "READY"


def test_attaching_without_room_for_descriptors_says_so(encode: Station) -> None:
    spare = [os.dup(0) for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for fd in spare:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
    try:
        with pytest.raises(
            AttachError, match=rf"of {len(ALL)} descriptors came over; this process may have \d+: raise `ulimit -n`"
        ):
            attach(encode.run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with attach(encode.run_dir) as client:
        assert client.geometry == encode.geometry
    encode.wait_idle()
