"""What an address of a node is: which forms lead to one, and that no name reaches a socket."""

from __future__ import annotations

from typing import Any

import pytest
import zmq
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.wires import wired

from embridge.workers import messages as msg
from embridge.workers.addresses import numeric, split_address
from embridge.workers.role import Send

pytestmark = pytest.mark.usefixtures("quiet")

NAME = "tcp://encoder.example:4000"
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


@pytest.mark.parametrize("address", [None, 7, b"tcp://10.0.0.7:4000", ["tcp://10.0.0.7:4000"], "tcp://" + "a" * 5000])
def test_what_is_no_text_or_longer_than_any_is_no_address_and_is_not_repeated_whole(address: Any) -> None:
    """D9: whoever names nodes may have the address from anybody."""
    for reads in (split_address, numeric):
        with pytest.raises(ValueError, match=r"is not of the form tcp://host:port") as error:
            reads(address)
        assert len(str(error.value)) < 400


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
    engine = node.world.engine.name
    fields: list[Any] = [node.envelope(node_id=20), ENCODE_ADDRESS, "tcp://10.0.0.20:2", engine, 16, 16, ""]
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
        it.wire.send([Send(address, msg.Heartbeat(envelope, [], [], 0, 0, 0)) for address in [*NO_ADDRESS, *NAMES]])
        assert connected == []
        _, _, denied = it.wire.receive(())
        assert {item.address for item in denied} == {*NO_ADDRESS, *NAMES}
        it.wire.send([Send("tcp://10.0.0.7:1", msg.Heartbeat(envelope, [], [], 0, 0, 0))])
        assert connected == ["tcp://10.0.0.7:1"]
