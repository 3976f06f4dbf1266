"""Items that a role cannot use, an exception in one among them: the process and the next item go on."""

from __future__ import annotations

import pytest
from support.alone import EncodeAlone

from embridge.allocator.errors import EmbridgeError
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_kick_that_names_no_slot_changes_nothing() -> None:
    """D4: it lies in a client's memory; a worker that ended of it would find it again in its next life."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3, 4])
    slots = (node.control.limits.num_slots, 1 << 31)
    for slot in slots:
        attachment = library_of(node.client).attachment
        attachment.kick_worker(sender.room, slot, 1)
        attachment.kick_bootstrap(Kick.LOOK, slot, 1)
        attachment.kick_poller(slot, 1)
        node.settle()
    node.advance(1.0)
    assert node.blocks_written() == [[3, 4]]


class Broken(EmbridgeError):
    """Something that is raised on purpose."""


@pytest.mark.parametrize("error", [ValueError, Broken])
@pytest.mark.parametrize(("role", "method"), [("bootstrap", "apply"), ("poller", "_advance"), ("worker0", "_submit")])
def test_an_exception_in_one_item_ends_that_request_and_not_the_process(
    role: str, method: str, error: type[Exception]
) -> None:
    """D4: it is logged and counted, and the next item is served."""
    node = EncodeAlone()
    victim, other = node.sender(1, 8), node.sender(2, 8)
    target: object = node.actor(role).role
    target = getattr(target, "_grants", target)
    real = getattr(target, method)

    def failing(first: object, *arguments: object) -> object:
        slot = first if isinstance(first, int) else first.slot  # type: ignore[attr-defined]
        if slot == victim.slot:
            raise error("broken on purpose")
        return real(first, *arguments)

    setattr(target, method, failing)
    node.init(1, [3, 4])
    node.init(2, [5, 6])
    assert other.poll() == Phase.Success
    assert node.metric(role, "errors") >= 1
    setattr(target, method, real)
    node.init(1, [3, 4])  # to the bootstrap it was a message that it could not take: its node sends it again
    node.advance(2.0, until=lambda: victim.poll() >= Phase.Success)
    if role == "bootstrap":
        assert victim.poll() == Phase.Success
    else:
        assert "broken on purpose" in str(victim.failure_exception())
