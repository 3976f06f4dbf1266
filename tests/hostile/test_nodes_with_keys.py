"""D15, P16, P17: whole nodes with keys: they serve each other, refuse who is not listed, and drop what is said in
another's name.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.carrying import carried, joined
from support.encoding import give, open_sender
from support.frames import FrameMaker
from support.nodes import Station, station
from support.remains import run_dirs
from support.scheduling import Queues
from support.waiting import wait_until
from support.wires import dealer, register, say

from embridge import attach
from embridge.pipeline.inspection.node_status import node_status
from embridge.workers import messages as msg
from embridge.workers.keys import new_key_pair, write_key_file

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ENCODE, LANGUAGE, LISTED, STRANGER = (new_key_pair() for _ in range(4))
PAIRS = {"encode": ENCODE, "language": LANGUAGE, "stranger": STRANGER}


def keys_of(path: Path, who: str, lines: str) -> dict[str, Any]:
    """The settings of a node that has this key and lists those."""
    key_file, allow_file = path / f"{who}.key", path / f"{who}.allow"
    write_key_file(key_file, PAIRS[who])
    allow_file.write_text(lines)
    return {"key_file": key_file, "allow_file": allow_file}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    """An encode and a language node that list each other, and the encode node one more, which the test plays."""
    with run_dirs() as path:
        ours = keys_of(path, "encode", f"- {LANGUAGE.public} language\n- {LISTED.public} listed\n")
        theirs = keys_of(path, "language", f"127.0.0.1 {ENCODE.public} encode\n")
        with (
            station("encode", path / "e", ready_timeout_s=80.0, **ours) as encode,
            station("language", path / "l", connect_timeout_s=10.0, ready_timeout_s=80.0, **theirs) as language,
        ):
            yield encode, language


def transfer(encode: Station, language: Station, room: int) -> str:
    """One request from end to end: what differs from what was sent, or why it failed."""
    with joined(encode, language) as (sending, queues):
        received = carried(queues, encode.addr, sending, room, 2000, 30)
        return received.reason or received.difference


def metric(it: Station, name: str) -> int:
    return sum(int(row[name]) for row in it.control.metrics.all().values())


def test_nodes_with_keys_carry_a_request(pair: tuple[Station, Station], room: int) -> None:
    """D15: and it takes more than one round."""
    encode, language = pair
    assert transfer(encode, language, room) == ""
    assert metric(encode, "connections_refused") == metric(language, "connections_refused") == 0


def test_status_tells_the_fingerprint_of_the_key_and_how_many_are_allowed(pair: tuple[Station, Station]) -> None:
    """D15: from the public key and the allow-list; the fingerprint is how the log names a key, too."""
    for it, key, allowed in zip(pair, (ENCODE, LANGUAGE), (2, 1), strict=True):
        seen = node_status(it.run_dir)["keys"]
        assert seen == {"messages": "CURVE", "key_fingerprint": key.public[:8], "keys_allowed": allowed}


def test_a_secret_is_shown_nowhere(pair: tuple[Station, Station]) -> None:
    """Not in the log, the status, the process arguments, or their environment."""
    for it, key in zip(pair, (ENCODE, LANGUAGE), strict=True):
        seen = it.log() + json.dumps(node_status(it.run_dir), default=str)
        for pid in it.pids().values():
            for part in ("cmdline", "environ"):
                seen += Path(f"/proc/{pid}/{part}").read_bytes().decode("utf-8", "replace")
        assert key.secret not in seen
        assert str(it.node.config.key_file) not in it.log()


def test_a_listed_node_that_speaks_for_another_is_dropped(pair: tuple[Station, Station], rooms: Iterator[int]) -> None:
    """D15, P17: it names the language node, and a request of it; and 2000 frames of every other kind."""
    encode, language = pair
    assert transfer(encode, language, next(rooms)) == ""
    peer = encode.control.peers.record(encode.control.peers.alive()[0])
    target = encode.control.incarnation
    room, before = next(rooms), metric(encode, "messages_forged")
    with (
        joined(encode, language) as (sending, queues),
        dealer(encode.addr, LISTED, ENCODE.public) as sock,
    ):
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, 2000)
        maker = FrameMaker(random.Random(1), target, [(peer.node_id, peer.incarnation)])
        for slot in range(10):
            envelope = msg.Envelope(msg.VERSION, peer.node_id, peer.incarnation, target)
            sock.send(msg.encode(msg.Abort(envelope, msg.RequestKey(slot, 1, room), 3, "not mine")))
        for frame in maker.frames(2000):
            if len(frame) < msg.MAX_MESSAGE_BYTES:
                sock.send(frame)
        sock.send(register(version=99))
        wait_until(lambda: metric(encode, "messages_forged") >= before + 10)
        assert give(sender)
        assert queues.take(room, 30).difference == ""
        while "language node speaks 99" not in str(msg.decode(sock.recv(), "the encode node")):
            pass  # these are answers to frames before the last
    assert encode.says("came with another node's key; it is dropped")
    assert not any(encode.restarts().values())


def test_strangers_at_both_ports_of_both_nodes_reach_nobody(
    pair: tuple[Station, Station], rooms: Iterator[int]
) -> None:
    """P16: plain clients, unlisted keys, half-open connections and a storm of them; a request is served meanwhile."""
    encode, language = pair
    assert transfer(encode, language, next(rooms)) == ""
    before = {it.addr: metric(it, "connections_refused") for it in pair}
    stale = {it.addr: metric(it, "messages_stale") for it in pair}
    opened: list[socket.socket] = []
    contexts: list[Any] = []
    try:
        for it, key in zip(pair, (ENCODE, LANGUAGE), strict=True):
            for addr in (it.addr, it.node.poller_addr):
                port = int(addr.rpartition(":")[2])
                for number in range(60):
                    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
                    if number % 3:
                        sock.close()
                    else:
                        opened.append(sock)
                for pair_of_keys in (None, STRANGER):
                    contexts.append(dealer(addr, pair_of_keys, key.public))
                    say(contexts[-1].__enter__(), msg.encode(msg.Stale(msg.Envelope(msg.VERSION, 1, 1, 1), 1)))
        for it in pair:
            wait_until(lambda it=it: metric(it, "connections_refused") >= before[it.addr] + 2)  # type: ignore[misc]
        assert transfer(encode, language, next(rooms)) == ""
    finally:
        for sock in opened:
            sock.close()
        for context in contexts:
            context.__exit__(None, None, None)
    assert not any(it.restarts()[name] for it in pair for name in it.restarts())
    assert metric(encode, "errors") == metric(language, "errors") == 0
    assert {it.addr: metric(it, "messages_stale") for it in pair} == stale  # what they said would have been


def test_a_node_with_a_key_that_is_not_listed_fails_its_requests_with_the_reason(
    pair: tuple[Station, Station], own_dir: Path, rooms: Iterator[int]
) -> None:
    """D15: and so does one that takes the encode node's address for somebody else's; the others are served."""
    encode, language = pair
    port = encode.addr.rpartition(":")[2]
    lines = f"127.0.0.1:{port} {ENCODE.public}\n127.0.0.1:1 {STRANGER.public}\n"
    with (
        station(
            "language",
            own_dir / "s",
            connect_timeout_s=5.0,
            ready_timeout_s=80.0,
            **keys_of(own_dir, "stranger", lines),
        ) as other,
        attach(other.run_dir) as client,
    ):
        queues = Queues(client)
        room = next(rooms)
        queues.add(encode.addr, room)
        reason = f"encode node {encode.addr}: it does not list this node's key; add its line there"
        assert queues.take(room, 30).reason == reason
        room = next(rooms)
        queues.add("tcp://127.0.0.2:4000", room)
        reason = "encode node tcp://127.0.0.2:4000: no key for it in this node's allow-list; add its line"
        assert queues.take(room, 30).reason == reason
    assert transfer(encode, language, next(rooms)) == ""


def test_a_plain_client_gets_no_answer(pair: tuple[Station, Station]) -> None:
    """P16: whatever it says, within the time in which a listed one is answered."""
    encode, _ = pair
    came = metric(encode, "messages_in")
    with dealer(encode.addr) as plain, dealer(encode.addr, LISTED, ENCODE.public) as listed:
        say(plain, msg.encode(msg.Stale(msg.Envelope(msg.VERSION, 1, 1, 1), 1)))
        listed.send(msg.encode(msg.Abort(msg.Envelope(msg.VERSION, 99, 1, 1), msg.RequestKey(1, 1, 1), 3, "")))
        assert listed.poll(20_000, zmq.POLLIN)
        assert isinstance(msg.decode(listed.recv(), "the node"), msg.Stale)
        assert not plain.poll(0)
    assert metric(encode, "messages_in") >= came + 1


def test_nodes_at_ipv6_addresses_carry_a_request(own_dir: Path, room: int) -> None:
    """Launch, registration and both ports at ::1, plain."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    settings: dict[str, Any] = {"host": "::1", "ready_timeout_s": 80.0}
    with (
        station("encode", own_dir / "e", **settings) as encode,
        station("language", own_dir / "l", **settings) as language,
    ):
        assert encode.addr.startswith("tcp://[::1]:")
        assert transfer(encode, language, room) == ""
