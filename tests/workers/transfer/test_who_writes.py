"""R28: a transfer worker writes the rows of a destination if and only if the client has said that the worker does."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone

from embridge.allocator.records import Destination, Slot, WrittenBy

SAID: dict[str, tuple[bool, WrittenBy]] = {
    "a client that writes nothing itself": (False, WrittenBy.UNDECIDED),
    "the client itself": (True, WrittenBy.CLIENT),
    "nothing yet": (True, WrittenBy.UNDECIDED),
    "the worker": (True, WrittenBy.WORKER),
}


@pytest.mark.parametrize("said", SAID)
def test_the_worker_goes_by_what_the_client_has_said(said: str) -> None:
    """R28: else rows are written twice, or by nobody; where nothing was said, the client is asked."""
    may_write, writer = SAID[said]
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.slots.set(sender.slot, Slot.MAY_WRITE, may_write)
    before = node.control.bell("library0").sequence()
    node.destinations.set(sender.slot, 0, Destination.WRITTEN_BY, writer)
    node.init(1, [3, 4])
    node.advance(1.2)
    is_written = bool(node.engine.submitted)
    assert is_written == (not may_write or writer == WrittenBy.WORKER)
    assert node.get(sender, Destination.SENT) == (8 if is_written else 0)
    assert node.control.bell("library0").sequence() != before


def test_what_was_said_first_of_a_destination_stays() -> None:
    """R28: whichever thread of the client has said it."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    for said in (WrittenBy.CLIENT, WrittenBy.WORKER):
        stands = node.destinations.settle(sender.slot, 0, Destination.WRITTEN_BY, said)
        assert stands == node.get(sender, Destination.WRITTEN_BY) == WrittenBy.CLIENT
    assert node.get(sender, Destination.WRITTEN_BY, 1) == WrittenBy.UNDECIDED


def test_nothing_is_staged_for_a_destination_to_which_the_client_writes() -> None:
    """R28, R21: and rows are kept until it has them, too."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], required=2)
    node.init(1, [5], required=2, node_id=11)
    staging = sender.stock.staging
    node.destinations.set(sender.slot, 0, Destination.SENT, 4)
    node.destinations.set(sender.slot, 1, Destination.SENT, 0)
    assert staging.wanted(8) == ({1: 8, 0: 4}, {0, 1}, 0)
    node.destinations.set(sender.slot, 0, Destination.WRITTEN_BY, WrittenBy.CLIENT)
    assert staging.wanted(8) == ({0: 4}, {0}, 0)
    node.destinations.set(sender.slot, 1, Destination.WRITTEN_BY, WrittenBy.CLIENT)
    assert staging.wanted(8) == ({}, set(), 0)


def test_a_grant_wakes_whoever_writes_its_rows() -> None:
    """R28, P8: of two destinations one may be the client's, and one the worker's."""
    node = EncodeAlone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.slots.set(sender.slot, Slot.MAY_WRITE, 1)
    node.init(1, [], required=2)
    node.init(1, [], required=2, node_id=11)
    bells = [node.control.bell(name) for name in ("library0", "worker0")]

    def rung() -> list[bool]:
        """By a grant to the second destination."""
        before = [bell.sequence() for bell in bells]
        node.actor("bootstrap").role._grants.look(sender.slot, sender.epoch)  # type: ignore[attr-defined]
        node.actor("bootstrap").ctx.flush()
        return [bell.sequence() != was for bell, was in zip(bells, before, strict=True)]

    for said, expected in (
        ((WrittenBy.CLIENT, WrittenBy.CLIENT), [True, False]),
        ((WrittenBy.CLIENT, WrittenBy.WORKER), [True, True]),
        ((WrittenBy.WORKER, WrittenBy.WORKER), [False, True]),
    ):
        for d, writer in enumerate(said):
            node.destinations.set(sender.slot, d, Destination.WRITTEN_BY, writer)
        assert rung() == expected
