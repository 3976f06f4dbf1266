"""A ring that is full costs no kick: its producer keeps it, and does not sleep on it. A ring here has 16 records."""

from __future__ import annotations

from support.alone import EncodeAlone
from support.simulation import LIMITS

from embridge.allocator.rings import FULL_RING_WAIT_S, Kick
from embridge.pipeline.client.client import library_of


def test_a_process_whose_kicks_wait_for_room_looks_again_soon() -> None:
    """P12, R25: whoever takes records wakes nobody, and the slow scan would come after a second."""
    node = EncodeAlone()
    bootstrap, worker = node.actor("bootstrap"), node.actor("worker0")
    to_worker = bootstrap.ctx.to("worker0")
    for slot in range(LIMITS.ring_records):
        to_worker.send(Kick.LOOK, slot, 1)
    assert bootstrap.ctx.nap_s(10.0) == 10.0
    for _ in range(2):
        to_worker.send(Kick.LOOK, 99, 1)
    assert to_worker.backlog == 1
    assert bootstrap.ctx.nap_s(10.0) == FULL_RING_WAIT_S
    assert bootstrap.ctx.nap_s(0.0) == 0.0
    worker.step()
    bootstrap.ctx.flush()
    assert bootstrap.ctx.nap_s(10.0) == 10.0
    assert [record.slot for _, record in worker.records.take()] == [99]


def test_a_flush_rings_for_what_has_gone_out_since_the_last_one_and_for_nothing_else() -> None:
    """P12: also for a kick that has waited; who has nothing to say wakes nobody."""
    node = EncodeAlone()
    bootstrap, worker = node.actor("bootstrap"), node.actor("worker0")
    bell, to_worker = bootstrap.control.bell("worker0"), bootstrap.ctx.to("worker0")
    seen = bell.sequence()

    def rings() -> int:
        nonlocal seen
        bootstrap.ctx.flush()
        before, seen = seen, bell.sequence()
        return seen - before

    assert (rings(), to_worker.is_due) == (0, False)
    for slot in range(LIMITS.ring_records + 1):
        to_worker.send(Kick.LOOK, slot, 1)
    assert (rings(), to_worker.is_due, to_worker.backlog) == (1, True, 1)
    assert rings() == 0
    worker.step()
    assert (rings(), to_worker.is_due, to_worker.backlog) == (1, False, 0)
    assert rings() == 0
    to_worker.leave(Kick.LOOK, 3, 1)
    assert (rings(), to_worker.is_due) == (0, False)
    assert bootstrap.ctx.control.metrics.row(bootstrap.ctx.index)["rings_full"] == 1


def test_a_call_whose_kick_finds_no_room_wakes_the_library_thread_which_then_looks_again_soon() -> None:
    """P12: the caller's thread flushes nothing."""
    node = EncodeAlone()
    client = node.client
    for slot in range(LIMITS.ring_records):
        library_of(client).attachment.kick_bootstrap(Kick.LOOK, slot, 1)
    seen = library_of(client).attachment.library_bell.sequence()
    assert not library_of(client).attachment.has_kicks_left
    library_of(client).attachment.kick_bootstrap(Kick.LOOK, 99, 1)
    assert library_of(client).attachment.library_bell.sequence() != seen
    assert node.control.num_refused("lane0") == 1
    assert library_of(client).attachment.has_kicks_left
    node.settle()
    assert not library_of(client).attachment.has_kicks_left
