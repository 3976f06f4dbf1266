"""Fetches that are given up, or break off, in the midst of a look; and what is kept of nodes that are not asked again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, LanguageAlone
from support.questions import fetch_from_afar, land, tell

from embridge import FetchFailed, NotPublished
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client import refusals as refused
from embridge.pipeline.client.far_fetch import FarFetch
from embridge.pipeline.client.fetch import Fetch
from embridge.pipeline.client.fetching import Fetching
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.refusals import REFUSED_NS, TRY_NS, Refusals
from embridge.pipeline.client.shelf_doors import UNASKED_NS, ShelfDoors
from embridge.workers import messages as msg
from embridge.workers.timing import NS

pytestmark = pytest.mark.usefixtures("quiet")

ITEM = msg.ItemState(7, 3, 14, 11, 42)  # 11 rows of a node's own, in three blocks


@pytest.fixture
def node() -> LanguageAlone:
    return LanguageAlone()


def of(node: LanguageAlone) -> Fetching:
    fetching = node.client._all_fetches()
    assert isinstance(fetching, Fetching)
    return fetching


def key_of(node: LanguageAlone, slot: int) -> msg.RequestKey:
    return msg.RequestKey(slot, node.slots.get(slot, Slot.EPOCH), node.slots.get(slot, Slot.ROOM))


def ack(node: LanguageAlone, slot: int) -> None:
    node.hears("poller", msg.AbortAck(node.envelope(node_id=20), key_of(node, slot), 0))
    node.advance(0.2)


def is_idle(node: LanguageAlone) -> bool:
    return list(node.control.open_slots()) == [] and set(node.counts()) == {"free"}


def breaks(*_: object) -> object:
    raise OSError("it breaks")


def test_a_fetch_that_breaks_off_is_aborted_and_leaves_nothing(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4, D6: its request is not left to its deadline, nor its slot held for ever."""
    fetch, slot = fetch_from_afar(node, "cat")
    with monkeypatch.context() as patched:
        patched.setattr(FarFetch, "_learn", breaks)
        tell(node, slot, Phase.WaitingForInput, 0, ITEM)
        node.advance(0.1)
    assert "OSError: it breaks" in str(fetch.exception())
    assert len(node.sent(msg.Abort)) == 1
    ack(node, slot)
    assert is_idle(node)


def test_a_fetch_that_cannot_be_looked_at_stops_no_other(node: LanguageAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    """D4, P21."""
    find = ShelfDoors.find

    def find_one(doors: ShelfDoors, address: str) -> object:
        return find(doors, address) if address == ENCODE_ADDRESS else breaks()

    first = node.client.fetch("dog", "tcp://10.0.0.21:1", deadline_s=5)
    node.settle()
    monkeypatch.setattr(ShelfDoors, "find", find_one)
    fetch, slot = fetch_from_afar(node, "cat")
    assert isinstance(first.exception(), FetchFailed)
    refusal = msg.Refused(node.envelope(node_id=20), FailureCode.NOT_PUBLISHED, "no", key_of(node, slot))
    node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
    node.advance(0.1)
    assert isinstance(fetch.exception(), NotPublished)


@pytest.mark.parametrize("number", range(2))
def test_a_fetch_that_is_given_up_in_the_midst_of_a_look_is_over(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """R54, R71: by a signal handler. No block is granted for it after that, and it has one outcome."""
    fetch, slot = fetch_from_afar(node, "cat")
    take, drained, given_up = EmbeddingReceiver.take, FarFetch._drain, list[str]()

    def give_up(me: Any, *values: Any) -> Any:
        if not given_up:
            given_up.append(f"{fetch.key!r}")
            fetch.abort()
        return (take if number == 0 else drained)(me, *values)

    where: tuple[type, str] = ((EmbeddingReceiver, "take"), (FarFetch, "_drain"))[number]
    monkeypatch.setattr(where[0], where[1], give_up)
    tell(node, slot, Phase.WaitingForInput, 0, ITEM)
    node.advance(0.1)
    land(node, slot, bytes(42))
    tell(node, slot, Phase.Success, 11, ITEM)
    node.advance(0.2)
    assert given_up
    assert "given up" in str(fetch.exception())
    with pytest.raises(FetchFailed):
        fetch.result()
    ack(node, slot)
    assert is_idle(node)


def test_a_fetch_that_is_given_up_while_its_request_is_opened_leaves_none(
    node: LanguageAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6."""
    begun, fetches = FarFetch.__init__, list[Fetch]()

    def begin(me: FarFetch, *values: Any) -> None:
        begun(me, *values)
        fetches[0].abort()

    monkeypatch.setattr(FarFetch, "__init__", begin)
    fetches.append(node.client.fetch("cat", ENCODE_ADDRESS))
    node.settle()
    fields = (ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16, "there.sock")
    node.hears("bootstrap", msg.Registered(node.envelope(node_id=20), *fields), address=ENCODE_ADDRESS)
    node.advance(0.3)
    for slot, _ in list(node.control.open_slots()):
        ack(node, slot)
    assert is_idle(node)
    assert isinstance(fetches[0].exception(), FetchFailed)


def test_what_is_not_published_while_somebody_waits_is_said_to_be_so_and_not_that_it_is_late(
    node: LanguageAlone,
) -> None:
    """P24: also where there is no time left to ask again."""
    fetch, slot = fetch_from_afar(node, "cat", wait_s=30.0, deadline_s=1.0)
    node.advance(0.95 - (node.now_ns - fetch.begun_ns) / NS)
    refusal = msg.Refused(node.envelope(node_id=20), FailureCode.NOT_PUBLISHED, "no", key_of(node, slot))
    node.hears("bootstrap", refusal, address=ENCODE_ADDRESS)
    node.advance(0.3)
    assert isinstance(fetch.exception(), NotPublished)


def test_callbacks_are_called_in_their_order_and_an_await_may_be_over(
    node: LanguageAlone, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said of a loop that was closed before its fetch ended."""
    caplog.set_level(logging.ERROR)
    fetch, called = node.client.fetch("cat", ENCODE_ADDRESS), list[int]()

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fetch, 0.001)

    asyncio.run(impatient())
    for number in range(3):
        fetch.add_done_callback(lambda _, number=number: called.append(number))  # type: ignore[misc]
    logging.disable(logging.NOTSET)
    fetch.abort()
    assert called == [0, 1, 2]
    assert caplog.text == ""


def test_what_did_not_open_is_forgotten_when_nobody_asks_for_it_any_more(node: LanguageAlone) -> None:
    """P20, P23: of encode nodes that come and go, each at an address of its own."""
    doors = of(node)._doors
    for number in range(5):
        node.client.fetch("cat", f"tcp://10.0.1.{number}:1").abort()
    assert len(doors._doors) == 5
    node.advance(UNASKED_NS / NS + 1)
    assert doors._doors == {}


def test_an_address_is_not_dead_while_the_second_try_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """P11: who looked for the last time long ago has seen one refusal."""
    refusals, answers = Refusals(), [True, None, None, False]
    monkeypatch.setattr(Refusals, "_try", lambda *_: answers.pop(0))
    address, now_ns = "tcp://127.0.0.1:9", NS
    assert not refusals.is_refused(address, now_ns)
    for _ in range(3):
        now_ns += REFUSED_NS + TRY_NS
        assert not refusals.is_refused(address, now_ns)


def test_no_connection_is_kept_to_an_address_for_which_nobody_asks() -> None:
    """P23."""
    refusals = Refusals()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        refusals.is_refused(address, NS)
        refusals.forget_old(NS + refused.FORGET_NS)
        assert refusals._tries == {}
    refusals.close()
