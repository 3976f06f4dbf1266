"""Doors: which nodes a client writes to itself, when one is opened and refused, and that none closes under a writer."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.direct import claims_of, once_before, wait_direct, wait_granted
from support.direct_steps import DirectStep
from support.encoding import ended, give, num_doors, open_sender, wait_doors
from support.nodes import Station
from support.scheduling import Queues
from support.waiting import wait_until
from support.watching import watch

from embridge import Client, attach
from embridge.allocator.claims import ClaimState
from embridge.allocator.errors import AttachError
from embridge.allocator.records import Peer, WrittenBy
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.doors import Door, Doors
from embridge.pipeline.join import knock
from embridge.workers import run_socket

pytestmark = pytest.mark.process

TOTAL = 500


def doors_of(client: Client) -> Doors:
    doors = library_of(client).doors
    assert doors is not None
    return doors


def a_door(client: Client) -> Door:
    wait_doors(client)
    return next(iter(doors_of(client)._open.values()))


class Pause:
    """The next write waits before it takes that step until it is let go on."""

    def __init__(self, step: DirectStep = DirectStep.COPY) -> None:
        self.has_come, self.may_go = threading.Event(), threading.Event()
        once_before(step, self._wait)

    def _wait(self) -> None:
        self.has_come.set()
        assert self.may_go.wait(30)


@pytest.fixture(autouse=True)
def _nobody_looks_on() -> Iterator[None]:
    yield
    watch(None)


@contextmanager
def writing(sender: Any, pause: Pause) -> Iterator[threading.Thread]:
    """Another thread of this process is in the middle of a write of all rows of that sender; it ends at the end."""
    thread = threading.Thread(target=give, args=(sender,))
    thread.start()
    try:
        assert pause.has_come.wait(20)
        yield thread
    finally:
        pause.may_go.set()
        thread.join()


# ---- closed, and not under a writer


def test_a_door_is_closed_when_the_last_of_several_users_has_left(
    encode: Station, language: Station, receiving: Queues, room: int
) -> None:
    """R33, P7: two threads of one client may be in it at once; the node takes a closed one for the end of both."""
    with attach(encode.run_dir) as sending:
        receiving.add(encode.addr, room)
        sender = open_sender(sending, room, TOTAL)
        wait_doors(sending)
        wait_direct(sender, TOTAL)
        door, first = a_door(sending), Pause(DirectStep.TAKE)
        with writing(sender, first):
            second, spans = Pause(DirectStep.TAKE), array("Q", [0, TOTAL, *[0] * (len(door.columns) // 2)])
            asked = (sender.slot, sender.epoch, TOTAL, door.columns, spans)
            other = threading.Thread(target=door.rows.write, args=asked)
            other.start()
            assert second.has_come.wait(20)
            assert not door.rows.close()
            first.may_go.set()
            wait_until(lambda: sender.poll().is_terminal)
            assert not door.rows.close()
            second.may_go.set()
            other.join()
            assert door.rows.close()
            assert door.rows.write(*asked) == 0
    assert receiving.take(room, 20).difference == ""


def test_a_door_that_is_to_be_closed_stands_while_somebody_writes_through_it(
    encode: Station, language: Station, receiving: Queues, room: int
) -> None:
    """R33, P7, P6: its encode node has declared the other dead, which lives; were the connection to end, the blocks
    would be somebody else's at once.
    """
    with attach(encode.run_dir) as sending:
        receiving.add(encode.addr, room)
        sender, pause = open_sender(sending, room, TOTAL), Pause()
        wait_doors(sending)
        wait_direct(sender, TOTAL)
        doors = doors_of(sending)
        with writing(sender, pause):
            (held,) = claims_of(language).values()
            peers, doors._peers = doors._peers, Nobody(doors._peers)  # type: ignore[assignment]
            wait_until(lambda: not num_doors(sending))
            wait_until(lambda: bool(doors._closing))
            library_of(sending).wake()
            assert claims_of(language).values()
            assert held.state == ClaimState.WRITING
            assert language.control.writers.pid_of(held.writer) == os.getpid()
        wait_until(lambda: not doors._closing)
        wait_until(lambda: language.control.writers.pid_of(held.writer) is None)
        doors._peers = peers
        assert receiving.take(room, 20).difference == ""
        assert ended(sender).error == ""
    encode.wait_idle()


class Nobody:
    """Peers of which none is alive."""

    def __init__(self, peers: Any) -> None:
        self._peers = peers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)

    def is_alive(self, peer: int) -> bool:
        return False


def test_a_client_that_is_closed_while_another_of_its_threads_writes_waits_for_it(
    encode: Station, language: Station, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R33, P7: it leaves with no claim of its own behind it."""
    sending = attach(encode.run_dir)
    receiving.add(encode.addr, room)
    sender, pause = open_sender(sending, room, TOTAL), Pause()
    wait_doors(sending)
    wait_direct(sender, TOTAL)
    with writing(sender, pause):
        closing = threading.Thread(target=sending.close)
        closing.start()
        wait_until(lambda: library_of(sending).attachment.is_closed)
        assert [claim.state for claim in claims_of(language).values()] == [ClaimState.WRITING]
    closing.join()
    assert not claims_of(language)
    received = receiving.take(room, 20)
    assert (received.error, received.difference) in (("", ""), ("PeerLost", ""))
    encode.wait_idle()


def test_a_child_that_is_forked_while_another_thread_writes_holds_nothing_and_disturbs_nobody(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R33: the door is the parent's, and closes with the parent alone."""
    receiving.add(encode.addr, room)
    sender, pause = open_sender(sending, room, TOTAL), Pause()
    wait_doors(sending)
    wait_direct(sender, TOTAL)
    door = a_door(sending)
    with writing(sender, pause):
        (held,) = claims_of(language).values()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                steps = list[tuple[int, ...]]()
                door.rows.watch(lambda *step: steps.append(step))
                spans = array("Q", [0, TOTAL, *[0] * (len(door.columns) // 2)])
                door.rows.write(sender.slot, sender.epoch, TOTAL, door.columns, spans)
                said = b"open" if num_doors(sending) or steps else b"shut"
                try:
                    door.payload.populate(0, 1)
                    memoryview(door.payload)
                    said += b", mapped"
                except (BufferError, ValueError):
                    pass
                os.write(write, said)
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 100) == b"shut"
        os.close(read)
        os.waitpid(child, 0)
        assert language.control.writers.pid_of(held.writer) == os.getpid()
        assert claims_of(language)[next(iter(claims_of(language)))] == held
    assert receiving.take(room, 20).difference == ""
    assert ended(sender).error == ""


def test_a_client_that_finds_its_node_gone_copies_no_row_that_it_has_let_go_of(
    encode: Station,
    language: Station,
    receiving: Queues,
    rooms: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P22: although the destination lives, has granted them, and its door is open; the client knocks nowhere again."""
    before, room = next(rooms), next(rooms)
    with attach(encode.run_dir) as sending:
        receiving.add(encode.addr, before)
        assert give(open_sender(sending, before, 10))
        assert receiving.take(before, 20).difference == ""
        a_door(sending)
        library, find = library_of(sending), Doors.find
        monkeypatch.setattr(Doors, "find", lambda *_: (WrittenBy.UNDECIDED, None))
        sender = open_sender(sending, room, TOTAL)
        assert give(sender)
        receiving.add(encode.addr, room)
        wait_granted(sender, TOTAL)
        turns = []

        def lost() -> bool:
            """In the library thread's turn, before it serves anybody."""
            turns.append(library.attachment.node_gone)
            if len(turns) > 1:
                return False
            monkeypatch.setattr(Doors, "find", find)
            library.attachment.node_gone = True
            return True

        monkeypatch.setattr(library.attachment, "has_lost_node", lost)
        wait_until(lambda: len(turns) > 3)
        assert sender.done
        assert not num_doors(sending)
        assert not [it.getMessage() for it in caplog.records if it.levelname == "ERROR"]
    assert receiving.take(room, 20).error == "PeerLost"
    encode.wait_idle()


# ---- which node it is


def test_a_door_leads_to_the_node_and_the_incarnation_that_a_request_names(
    encode: Station, receiving: Queues, sending: Client, room: int
) -> None:
    """R14: a peer's entry is another node's when that one is gone, and two may have begun in one millisecond."""
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, TOTAL)
    wait_doors(sending)
    wait_direct(sender, TOTAL)
    doors = doors_of(sending)
    (peer, door), *_ = doors._open.items()
    node_id, incarnation = door.node
    assert doors.find(peer, incarnation) == (WrittenBy.CLIENT, door)
    assert doors.find(peer, incarnation + 1)[1] is None
    assert doors.find(-1, incarnation) == (WrittenBy.UNDECIDED, None)
    peers, doors._peers = doors._peers, Another(doors._peers, node_id + 2)  # type: ignore[assignment]
    assert doors.find(peer, incarnation)[1] is None
    doors._peers = peers
    assert give(sender)
    assert receiving.take(room, 20).difference == ""


class Another:
    """Peers that are all of one other node."""

    def __init__(self, peers: Any, node_id: int) -> None:
        self._peers, self._node_id = peers, node_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)

    def get(self, peer: int, field: Peer) -> int:
        return self._node_id if field == Peer.NODE_ID else int(self._peers.get(peer, field))


@pytest.mark.parametrize(
    "wrong", ["another incarnation of ours", "an incarnation of theirs that is not there", "a stranger"]
)
def test_a_node_lets_no_client_in_that_it_does_not_know(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int, wrong: str
) -> None:
    """R14, D5: such as an encoder of a node that has been launched again."""
    receiving.add(encode.addr, room)
    assert give(open_sender(sending, room, 10))
    assert receiving.take(room, 20).difference == ""
    us, them = encode.control, language.control
    hello = {
        "another incarnation of ours": (us.node_id, us.incarnation + 1, them.incarnation),
        "an incarnation of theirs that is not there": (us.node_id, us.incarnation, them.incarnation + 1),
        "a stranger": (us.node_id + 2, us.incarnation, them.incarnation),
    }[wrong]
    with pytest.raises(AttachError, match=r"not registered here|this is incarnation"):
        knock(language.run_dir, run_socket.PeerHello(run_socket.PROTOCOL_VERSION, *hello, wants_claims=True), 5.0)
