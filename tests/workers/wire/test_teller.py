"""What a process without a port says to other nodes, through real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.alone import EncodeAlone, LanguageAlone
from support.waiting import wait_until
from support.wires import Wired, wired

from embridge.allocator.segment import Descriptor
from embridge.workers import messages as msg
from embridge.workers.keys import KeyPair, new_key_pair
from embridge.workers.process_spec import ProcessSpec
from embridge.workers.role import Disconnect, Send
from embridge.workers.wire.teller import Teller

pytestmark = pytest.mark.usefixtures("quiet")

OURS, THEIRS = new_key_pair(), new_key_pair()


@contextmanager
def telling(keys: KeyPair | None = None, allow_file: Path | None = None) -> Iterator[Teller]:
    actor, nothing = EncodeAlone().actor("worker0"), Descriptor(-1)
    teller = Teller(
        ProcessSpec(
            name="worker0", control=nothing, control_bytes=0, payload=nothing, payload_bytes=0, event_fds={},
            death=nothing, listen=None, bind_addr="", addresses=actor.node.own_addresses, timing=actor.world.timing,
            launcher_pid=0, keys=keys, allow_file=allow_file,
        ),
        actor.ctx,
    )
    try:
        yield teller
    finally:
        teller.close()


def landed(node: LanguageAlone) -> msg.Landed:
    key = msg.RequestKey(3, 4, 5)
    return msg.Landed(node.envelope(node_id=20), msg.RoomState(key, 3, False, 8, 8, 8, 2, 1, 0, 0, "", 0))


def hears(port: Wired, count: int) -> None:
    port.turn_until(lambda: len(port.arrivals) >= count)


def test_what_it_says_comes_to_the_port_of_the_other_node() -> None:
    """R83."""
    node = LanguageAlone()
    with wired(node.actor("poller")) as port, telling() as teller:
        teller.send([Send(port.address, landed(node)), Send(port.address, landed(node))])
        hears(port, 2)
        assert [arrival.message for arrival in port.arrivals] == [landed(node)] * 2
        teller.send([Disconnect(port.address), Send(port.address, landed(node))])
        hears(port, 3)


def test_with_keys_it_proves_its_node_s_and_speaks_to_the_listed_one_alone(tmp_path: Path) -> None:
    """D15."""
    node = LanguageAlone()
    there, here = tmp_path / "there", tmp_path / "here"
    there.write_text(f"- {OURS.public} ours\n")
    here.write_text(f"- {THEIRS.public} theirs\n")
    with wired(node.actor("poller"), THEIRS, there) as port, telling(OURS, here) as teller:
        teller.send([Send(port.address, landed(node), THEIRS.public)])
        hears(port, 1)
        assert port.arrivals[0].identity == OURS.public
        teller.send([Send(port.address, landed(node), new_key_pair().public)])
        assert teller._dealers.by_address == {}


def test_where_nobody_listens_it_does_not_wait() -> None:
    """P8, D10."""
    node = LanguageAlone()
    with telling() as teller:
        for _ in range(100):
            teller.send([Send("tcp://127.0.0.1:9", landed(node))])
        wait_until(lambda: teller._dealers.by_address["tcp://127.0.0.1:9"].events())


def test_a_connection_that_is_refused_is_noticed_and_no_monitor_is_asked_with_each_message() -> None:
    node = LanguageAlone()
    with telling() as teller:
        address = "tcp://127.0.0.1:9"
        asked = list[float]()
        teller.send([Send(address, landed(node))])
        dealer = teller._dealers.by_address[address]
        events = dealer.events

        def noted() -> set[int]:
            asked.append(time.monotonic())
            return events()

        dealer.events = noted  # type: ignore[method-assign]
        begun = time.monotonic()
        while time.monotonic() < begun + 0.25:
            teller.send([Send(address, landed(node))])
        assert 2 <= len(asked) <= 3
        teller.send([Disconnect(address)])
        assert teller._looked_ns == {}
