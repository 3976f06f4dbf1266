"""Slots that clients have left: who hears of it, and who is woken when they are released."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone

from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("waits", ["nobody", "its own client", "another client"])
def test_a_release_wakes_the_client_that_has_the_page_where_somebody_waits_for_a_slot(waits: str) -> None:
    """P8, R17."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    assert sender.poll() == Phase.Success
    lane = library_of(node.client).attachment.lane
    if waits == "its own client":
        node.control.lanes.set_num_waiting(lane, 1)
    if waits == "another client":
        node.control.slot_waiters.set(library_of(node.new_client()).attachment.lane, True)
    bell = node.control.bell(f"library{lane}")
    before = bell.sequence()
    node.close(1)
    assert not node.control.is_open(sender.slot, sender.epoch)
    assert (bell.sequence() > before) is (waits != "nobody")


def test_the_poller_hears_from_a_client_itself_that_it_has_left() -> None:
    node = EncodeAlone()
    attachment = library_of(node.client).attachment
    attachment.tell_left(5, 3)
    attachment.flush()
    (name, record), = node.control.inbox("poller").take()
    assert (name, record.kick, record.slot, record.epoch) == (f"lane{attachment.lane}", Kick.LOOK, 5, 3)
    assert not node.control.inbox("bootstrap").pending()
