"""P13, P16: nodes that do not fit together, places where no node can be, and what is no node: each is one clear error.

Nothing is left behind, which is checked after every test (see `conftest.py`).
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
from support.agents import Agent
from support.encoding import ended, give, open_sender
from support.nodes import LIMITS, Settings, Station, config_of, run_dirs, start_node, station
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, Limits, PipelineConfig, attach, launch
from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import AttachError, EmbridgeError, LaunchError, SegmentError
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.layout import LAYOUT_VERSION, ControlLayout, PayloadLayout
from embridge.allocator.pinning import lock_note
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
        waiting.add(encode.addr, good)
        assert give(open_sender(sending, good, 300))
        assert waiting.take(good, 10).difference == ""
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
        "verify": True,
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
    receiving.add(encode.addr, room)
    assert give(open_sender(sending, room, 300))
    assert receiving.take(room, 20).difference == ""
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
        f"control segment: layout version {LAYOUT_VERSION + 1}, this process speaks {LAYOUT_VERSION}; run the same embridge version",
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


ALL = ["control", "payload", "lane0", "bootstrap"]
IMPOSTORS: dict[str, tuple[str, Answer]] = {
    "one who hangs up": ("refused this process: it hung up", lambda s: s.shutdown(socket.SHUT_RDWR)),
    "one who says nothing": (r"timed out; is `embridge launch` running?", lambda s: None),
    "one who talks of something else": (
        "the other side runs another version of embridge",
        lambda s: void(s.send(b"HTTP/1.1 400")),
    ),
    "an older node": (
        "refused this process: run socket version 2, this node speaks 1",
        lambda s: run_socket.send_frame(s, run_socket.Sorry("run socket version 2, this node speaks 1")),
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


@pytest.mark.parametrize("hello", [run_socket.Hello(2), run_socket.Observe(2), run_socket.PeerHello(2, 1, 1, 1)])
def test_who_speaks_another_version_of_the_run_socket_is_refused_by_the_node(encode: Station, hello: Any) -> None:
    with pytest.raises(AttachError, match="refused this process: run socket version 2, this node speaks 1"):
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
            AttachError, match=r"of 4 descriptors came over; this process may have \d+: raise `ulimit -n`"
        ):
            attach(encode.run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with attach(encode.run_dir) as client:
        assert client.geometry == encode.geometry
    encode.wait_idle()


# ---- places where no node can be


def used_port(path: Path) -> PipelineConfig:
    taken = socket.create_server(("127.0.0.1", 0))
    used_port.held = taken  # type: ignore[attr-defined]
    return config_of("encode", path, bootstrap_port=taken.getsockname()[1])


def too_large(path: Path) -> PipelineConfig:
    """More than all of /dev/shm, so that nothing of it is filled for the attempt."""
    space = os.statvfs("/dev/shm")
    blocks = space.f_blocks * space.f_frsize // Geometry(hidden_size=4096, block_size=4096).embedding_bytes // 4096 + 10
    return config_of("encode", path, hidden_size=4096, block_size=4096, num_blocks=blocks)


def open_to_others(path: Path) -> PipelineConfig:
    path.mkdir(mode=0o700)
    path.chmod(0o750)
    return config_of("encode", path)


def a_file(path: Path) -> PipelineConfig:
    path.write_text("")
    return config_of("encode", path)


PLACES: dict[str, tuple[str, Callable[[Path], PipelineConfig]]] = {
    "too little shared memory": (
        "shared memory: ... MiB control segment + ... MiB payload (... blocks of 4096 tokens of ... bytes) > "
        "... MiB free of ... MiB in /dev/shm; lower num_blocks to ... or enlarge /dev/shm (containers: --shm-size)",
        too_large,
    ),
    "a port in use": ("bootstrap port: 127.0.0.1:...: Address already in use; choose another", used_port),
    "a run directory open to others": (
        "run directory ...: mode 750 of user ...; it must be 700 and belong to user",
        open_to_others,
    ),
    "a run directory that is a file": ("run directory ...: Not a directory; choose another with --run-dir", a_file),
    "a run directory under a file": (
        "run directory ...: Not a directory; choose another with --run-dir",
        lambda path: config_of("encode", a_file(path).directory / "n"),
    ),
    "a path too long for a socket": (
        "its socket's path exceeds 107 bytes; choose a shorter one",
        lambda path: config_of("encode", path / ("x" * 100)),
    ),
}


@pytest.mark.parametrize("what", PLACES)
def test_a_node_that_cannot_come_up_says_what_was_missing_and_leaves_nothing(own_dir: Path, what: str) -> None:
    """P13, P9."""
    text, make = PLACES[what]
    config = make(own_dir / "n")
    try:
        with pytest.raises(LaunchError, match=pattern(text)):
            launch(config)
    finally:
        if hasattr(used_port, "held"):
            used_port.held.close()
            del used_port.held
    assert not any(stat.S_ISSOCK(path.lstat().st_mode) for path in own_dir.rglob("*"))


# ---- limits of the process that launches


def _limited(state: SimpleNamespace, run_dir: Path, number: int, soft: int, dropped: int | None) -> str:
    """Launch under a resource limit, and without a capability; what the node shows of its memory, or the error."""
    if dropped is not None:
        ctypes.CDLL(None).prctl(24, dropped, 0, 0, 0)  # PR_CAPBSET_DROP: what is started from here does not have it
    before = len(os.listdir("/proc/self/fd"))
    if soft < 0:  # so many descriptors more than are open now
        used = {int(fd) for fd in os.listdir("/proc/self/fd")}
        soft = [fd for fd in range(max(used) + 2 - soft) if fd not in used][-soft]
    _, hard = resource.getrlimit(number)
    resource.setrlimit(number, (soft, hard if dropped is None else soft))
    try:
        config = PipelineConfig(
            role="encode", run_dir=run_dir, geometry=Geometry(hidden_size=8, num_blocks=2), limits=LIMITS
        )
        with start_node(config, run_dir.with_suffix(".log")) as node:
            wait_until(lambda: node_status(node.run_dir)["memory"] != "not locked")
            return str(node_status(node.run_dir)["memory"])
    except EmbridgeError as error:
        left = len(os.listdir("/proc/self/fd")) - before
        return f"{type(error).__name__}: {error} ({left} left)"
    finally:
        resource.setrlimit(number, (hard if dropped is None else soft, hard if dropped is None else soft))


@pytest.mark.parametrize(
    ("soft", "says"),
    [
        (
            70,
            "LaunchError: descriptors: a process may have 70, a node of 6 clients and 2 workers needs 86; raise `ulimit -n`",
        ),
        (-3, "LaunchError: launcher: it cannot be started: Too many open files; check `ulimit -n`"),
    ],
)
def test_a_node_that_would_run_out_of_descriptors_is_not_started(
    own_dir: Path, encoder: Agent, soft: int, says: str
) -> None:
    """P13, P15."""
    said = encoder.call(_limited, own_dir / "n", resource.RLIMIT_NOFILE, soft, None)
    assert said.startswith(says)
    assert said.endswith("(0 left)")


def test_a_limit_of_the_size_of_files_is_named(own_dir: Path, encoder: Agent) -> None:
    """P13: segments are files; that there is room enough in /dev/shm does not help."""
    said = encoder.call(_limited, own_dir / "n", resource.RLIMIT_FSIZE, 1 << 16, None)
    assert re.fullmatch(
        r"LaunchError: shared memory for control: .* \(File too large\); lower num_slots or raise `ulimit -f` \(0 left\)",
        said,
    ), said


def test_memory_that_may_not_be_locked_is_no_failure_and_is_shown(own_dir: Path) -> None:
    """P13: a node of a process that may lock nothing runs, and `embridge status` says why its memory is not locked."""
    agent = Agent("launching process")
    try:
        said = agent.call(_limited, own_dir / "n", resource.RLIMIT_MEMLOCK, 0, 14)  # CAP_IPC_LOCK
    finally:
        agent.close()
    assert said == "not locked: Operation not permitted; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, "locked"),
        (1, "not locked: Operation not permitted; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"),
        (12, "not locked: Cannot allocate memory; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"),
        (22, "not locked: Invalid argument"),
    ],
)
def test_what_became_of_locking_is_said_in_words(code: int, says: str) -> None:
    assert lock_note(code) == says
