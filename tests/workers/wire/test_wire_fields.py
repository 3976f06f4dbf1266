"""Every field of every message is read by whoever it is sent to: what nobody reads is a number that nobody checks, and
costs on the way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, StubEngine, failure_of
from support.questions import Shelved, fetch_from_afar, tell

from embridge.allocator.errors import FailureCode
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.role import Arrival

ROLES = str(Path(msg.__file__).resolve().parent)
STRUCTS: tuple[type[msgspec.Struct], ...] = (
    msg.Envelope,
    msg.Foreign,
    msg.RequestKey,
    msg.RoomState,
    msg.CheckedRows,
    msg.ItemNotice,
    *msg.Message.__args__,
)


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """(message, field) of what code of the roles has read. Who encodes a message does so without it."""
    seen: set[tuple[str, str]] = set()

    def watch(struct: type[msgspec.Struct]) -> None:
        def getattribute(self: msgspec.Struct, name: str) -> Any:
            if sys._getframe(1).f_code.co_filename.startswith(ROLES):
                seen.add((struct.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(struct, "__getattribute__", getattribute, raising=False)

    for struct in STRUCTS:
        watch(struct)
    return seen


def foreign(message: msg.Message) -> msg.Foreign:
    """As it comes from a node of another version."""
    found = msg.decode_foreign(
        msg.encode(msgspec.structs.replace(message, envelope=msgspec.structs.replace(message.envelope, version=99)))
    )
    assert found is not None
    return found


def an_encode_node_takes_every_message() -> None:
    node = EncodeAlone(verify=True)
    sender = node.sender(1, 16)
    node.init(1, [3, 4])
    node.resume(1, [5, 6], first=2, sent=8, session=2)
    node.checked(1, 16)
    node.hears("poller", msg.Resync(node.envelope()))
    assert sender.poll() == Phase.Success
    node.close(1)
    node.sender(2, 16)
    node.init(2, [3])
    node.abort(2)
    registration = msg.Register(
        node.envelope(for_incarnation=0), "", "", {}, 1, 1, 1, "", 0, True, True, 1, 1, 1, False
    )
    node.actor("bootstrap").arrivals.append(Arrival(foreign(registration), b"stranger", None))
    node.settle()
    EncodeAlone(engine=StubEngine(late_writes=True))  # reached by network
    shelved = Shelved()
    shelved.publish("cat")
    shelved.ask(1, "cat")
    shelved.ask(2, "dog", generation=3)
    shelved.hears("poller", msg.Follow(shelved.envelope(), 7, 8))
    shelved.advance(0.1)


def a_language_node_takes_every_message() -> None:
    node = LanguageAlone(verify=True)
    receiver = node.receiver(1)
    envelope, key = node.envelope(node_id=20), msg.RequestKey(receiver.slot, receiver.epoch, 1)
    node.hears("poller", msg.Announce(envelope, key, 16))
    node.heartbeat(node.state(receiver, Phase.Transferring, 0))
    node.snapshot(node.state(receiver, Phase.Transferring, 0))
    node.status(receiver, Phase.Failed, 0, code=3, reason="no more")
    assert receiver.poll() == Phase.Failed
    node.abort_ack(receiver)
    damaged = node.receiver(3)
    node.status(damaged, Phase.Transferring, 8, checksum=1)
    assert failure_of(damaged).code == FailureCode.CORRUPT
    other = node.receiver(2)
    key = msg.RequestKey(other.slot, other.epoch, 2)
    node.hears("bootstrap", msg.Refused(envelope, 7, "no", key), address=ENCODE_ADDRESS)
    node.hears("bootstrap", msg.AbortAck(envelope, key, 0), address=ENCODE_ADDRESS)
    node.hears("bootstrap", msg.Stale(envelope, 1), address=ENCODE_ADDRESS)
    plain = LanguageAlone()
    received = plain.receiver(1)
    plain.status(received, Phase.WaitingForInput, 0, total_tokens=8)
    plain.heartbeat(closed=[msg.RequestKey(received.slot, received.epoch, 1)])
    state = plain.state(received, Phase.Success, 8, total_tokens=8, resumed=True)
    plain.hears("poller", msg.Landed(plain.envelope(node_id=20), state))
    assert received.poll() == Phase.Success
    afar = LanguageAlone()
    _, slot = fetch_from_afar(afar, "cat")
    tell(afar, slot, Phase.WaitingForInput, 0, msg.ItemState(5, 2, 3, 11, 6))
    subscription = afar.client.subscribe(ENCODE_ADDRESS)
    afar.advance(0.1)
    envelope, cat = afar.envelope(node_id=20), msg.ItemNotice(1, 2, 3, b"cat")
    afar.hears("poller", msg.Inventory(envelope, 7, 8, 0, 4, 4, [cat]), msg.Notices(envelope, 7, 9, [cat]))
    afar.advance(0.2)
    assert subscription.keys() == {b"cat": 2}


def test_every_field_of_the_wire_is_read(read: set[tuple[str, str]]) -> None:
    """R2, P16: on the side that it is sent to."""
    an_encode_node_takes_every_message()
    a_language_node_takes_every_message()
    fields = {(struct.__name__, name) for struct in STRUCTS for name in struct.__struct_fields__}
    assert fields - read == set()


def test_a_field_that_nobody_reads_would_be_found(read: set[tuple[str, str]]) -> None:
    """The watch sees what the roles read, and what only a test reads it does not."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.WaitingForInput, 0)
    assert ("RoomState", "known_blocks") in read
    assert node.state(receiver, Phase.WaitingForInput, 0).checksum == 0
    assert ("RoomState", "checksum") not in read
