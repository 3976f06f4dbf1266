"""Requests that the caller's thread ends itself, because their rows may stay where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.alone import ENCODE_ADDRESS
from support.lending import Scheduler
from support.simulation.settings import LIMITS

from embridge.allocator._core import TurnTaker
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.status import Phase
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue

pytestmark = pytest.mark.usefixtures("quiet")
TOTAL = 7


@pytest.fixture
def node() -> Scheduler:
    return Scheduler()


def landed(node: Scheduler, room: int) -> EmbeddingRequest:
    """A request whose rows have just been written, and whose library thread has yet to hear of it."""
    request = node.add(room)
    receiver = node.announce(request, TOTAL)
    node.settle()
    node.write(request, 0, TOTAL)
    assert node.control.status.advance(receiver.slot, receiver.epoch, Phase.Success, TOTAL, node.now_ns)
    library_of(node.client).attachment.user_bell.ring()
    return request


def rings(library: Library) -> int:
    return library.attachment.library_bell.sequence()


def test_a_request_that_has_landed_is_popped_without_a_turn_of_the_library_thread(node: Scheduler) -> None:
    """R35: with its rows where they are; the library thread, when it comes, finds nothing left to do."""
    request, library = landed(node, 1), library_of(node.client)
    before = rings(library)
    assert node.queue.pop_transferred() == ([request], [])
    assert (node.is_lent(request), len(node.queue), rings(library)) == (True, 0, before)
    node.check(request)
    node.settle()
    assert node.queue.pop_transferred() == ([], [])
    assert node.control.lanes.num_lent() == 2
    request.release()
    node.settle()
    assert (node.control.lanes.num_lent(), node.counts()) == (0, {"free": 16})


def test_a_look_of_the_queue_keeps_nothing_from_poll(node: Scheduler) -> None:
    """P5: whichever is called first, `poll` tells of each rise once."""
    request = landed(node, 1)
    node.queue.pop_transferred()
    assert node.client.poll() == [request.receiver]
    assert node.client.poll() == ()


def test_what_poll_has_ended_keeps_the_caller_awake_until_it_is_popped(node: Scheduler) -> None:
    """P8: once; a caller who does not pop it may sleep all the same."""
    request = landed(node, 1)
    assert node.client.poll() == [request.receiver]
    assert (node.client.wait(0), node.client.wait(0)) == (True, False)
    assert node.queue.pop_transferred() == ([request], [])
    second = landed(node, 2)
    node.client.poll()
    assert node.queue.pop_transferred() == ([second], [])
    assert not node.client.wait(0)


def test_what_one_queue_has_ended_for_another_keeps_the_caller_awake_until_that_is_popped(node: Scheduler) -> None:
    """P8: one who sleeps beside it is told of the look, and takes nothing of what others have yet to take."""
    told: list[str] = []
    library_of(node.client).view.on_change = lambda: told.append("looked")
    request = landed(node, 1)
    assert TransferQueue(node.client).pop_transferred() == ([], [])
    assert told == ["looked"]
    assert library_of(node.client).view.arm_beside()
    assert not library_of(node.client).view.arm()
    assert node.queue.pop_transferred() == ([request], [])


def test_while_somebody_has_the_turn_the_caller_leaves_a_request_to_the_library_thread(node: Scheduler) -> None:
    """P8: and rings it, because it may have passed the request already. A caller in a signal handler does the same."""
    request, library = landed(node, 1), library_of(node.client)
    before = rings(library)
    with TurnTaker(library.view.turn) as has_turn:
        assert has_turn
        assert node.queue.pop_transferred() == ([], [])
        assert rings(library) > before
    library.turn()
    assert node.client.wait(0)
    assert node.queue.pop_transferred() == ([request], [])


def test_a_library_thread_that_did_not_get_the_turn_is_rung_when_it_is_given_back(
    node: Scheduler
) -> None:
    """P8: it waits for nobody, and nothing that it was rung for is lost."""
    request, library = landed(node, 1), library_of(node.client)
    assert request.receiver is not None
    assert request.receiver.driver is not None
    end, before = request.receiver.driver.end_at_once, rings(library)

    def crossed(receiver: EmbeddingReceiver) -> bool:
        assert not library._take_turn()
        assert rings(library) == before
        assert end(receiver)
        return True

    request.receiver.driver = request.receiver.driver._replace(end_at_once=crossed)
    assert node.queue.pop_transferred() == ([request], [])
    assert rings(library) > before
    library._take_turn()
    second, before = landed(node, 2), rings(library)
    assert node.queue.pop_transferred() == ([second], [])
    assert rings(library) == before


def test_what_has_to_be_copied_is_left_to_the_library_thread(node: Scheduler) -> None:
    """D10: the caller's thread copies nothing, and rings the library thread."""
    request, library = landed(node, 1), library_of(node.client)
    node.control.blocks.set_waiting(node.new_client().lane, True)
    before = rings(library)
    assert node.queue.pop_transferred() == ([], [])
    assert rings(library) > before
    library.turn()
    assert node.queue.pop_transferred() == ([request], [])
    assert not node.is_lent(request)


def test_a_signal_handler_that_raises_leaves_the_turn_to_the_next_one(
    node: Scheduler
) -> None:
    """D4: what it has interrupted is found by the library thread."""
    request, library = landed(node, 1), library_of(node.client)
    assert request.receiver is not None
    assert request.receiver.driver is not None
    driver = request.receiver.driver

    def interrupted(receiver: EmbeddingReceiver) -> bool:
        raise KeyboardInterrupt

    request.receiver.driver = driver._replace(end_at_once=interrupted)
    with pytest.raises(KeyboardInterrupt):
        node.queue.pop_transferred()
    request.receiver.driver = driver
    library._take_turn()
    assert node.queue.pop_transferred() == ([request], [])
    node.check(request)

# ---- what the caller's thread does besides


def test_a_request_has_its_slot_when_it_is_handed_over_and_leaves_it_when_it_is_released(node: Scheduler) -> None:
    """P8: without a turn of the library thread; what it has lent comes free at once."""
    library = library_of(node.client)
    before = rings(library)
    request = EmbeddingRequest(room=1, bootstrap_addr=ENCODE_ADDRESS)
    node.queue.add(request)
    assert request.receiver is not None
    assert (request.receiver.is_waiting, rings(library)) == (False, before)
    node.settle()
    node.registered()
    node.finish(request, TOTAL)
    assert node.queue.pop_transferred() == ([request], [])
    assert node.is_lent(request)
    before = rings(library)
    request.release()
    assert (node.control.lanes.num_lent(), node.counts(), rings(library)) == (0, {"free": 16}, before)


def test_while_somebody_has_the_turn_both_are_left_to_the_library_thread(node: Scheduler) -> None:
    """P8: which is rung."""
    library, landed_before = library_of(node.client), landed(node, 1)
    assert node.queue.pop_transferred() == ([landed_before], [])
    before = rings(library)
    request = EmbeddingRequest(room=2, bootstrap_addr=ENCODE_ADDRESS)
    with TurnTaker(library.view.turn):
        node.queue.add(request)
        assert (request.receiver, rings(library)) == (None, before + 1)
        landed_before.release()
        assert (node.control.lanes.num_lent(), rings(library)) == (2, before + 2)
    library.turn()
    assert request.receiver is not None
    assert node.control.lanes.num_lent() == 0


def test_a_turn_that_fails_on_the_caller_s_thread_is_the_library_thread_s(
    node: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P15: `add` raises none of it."""
    library, request = library_of(node.client), EmbeddingRequest(room=1, bootstrap_addr=ENCODE_ADDRESS)
    before = rings(library)
    with monkeypatch.context() as patch:
        patch.setattr(node.queue, "_grant_all", lambda: 1 // 0)
        node.queue.add(request)
    assert rings(library) == before + 1
    library.turn()
    assert len(node.queue) == 1


def test_of_as_many_requests_as_fill_a_page_of_slots_all_are_lent() -> None:
    """R35: a quarter of a page is not held, and so they lie in more than one page."""
    node = Scheduler(num_blocks=4 * SLOTS_PER_PAGE, limits=replace(LIMITS, num_slots=8 * SLOTS_PER_PAGE))
    requests = {landed(node, room) for room in range(SLOTS_PER_PAGE)}
    finished, failed = node.queue.pop_transferred()
    assert (set(finished), failed) == (requests, [])
    assert all(map(node.is_lent, requests))


def test_a_library_thread_is_spared_while_nothing_waits_for_what_a_success_gives_free(node: Scheduler) -> None:
    """P8: no request of this client for a block or a slot, nor anybody else; blocks are not short, and none was
    copied.
    """
    said: list[bool] = []

    class Bell:
        def spare(self, is_spared: bool) -> None:
            said.append(is_spared)

    library, other = library_of(node.client), node.new_client()
    library._is_spared = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.attachment, "library_bell", Bell())
        library.turn()
        for waiters in (node.control.blocks._waiters, node.control.slot_waiters):
            waiters.set(other.lane, True)
            library.turn()
            waiters.set(other.lane, False)
            library.turn()
        library.drained_ns = node.now_ns
        library.turn()
        node.advance(1.0)
        library.turn()
        slot = node.add(1).receiver.slot  # type: ignore[union-attr]
        held = node.control.blocks.acquire(slot, 1, 12, may_take_reserve=False)
        library.turn()
        assert len(held) == 12
    assert said == [True, False, True, False, True, False, True, False]
