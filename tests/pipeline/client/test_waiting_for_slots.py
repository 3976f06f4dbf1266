"""Calls that wait for a slot: what can be done with them, who is served first, and how they end."""

from __future__ import annotations

from typing import Any

import pytest
from support.alone import ENCODE_ADDRESS, EncodeAlone, LanguageAlone, failure_of

from embridge.allocator._core import TurnTaker
from embridge.allocator.errors import FailureCode, NodeBusyError, TransferAborted, TransferTimeout
from embridge.allocator.records import Lane, LaneState, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client import slot_queue as waiting
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import MAX_ROOM, NO_SLOT
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.scheduler.queues import PreallocQueue
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.timing import NS

TOTAL = 3


def full_encode() -> tuple[EncodeAlone, list[EmbeddingSender]]:
    """As many as may be opened before anybody asks for them."""
    node = EncodeAlone()
    return node, [node.sender(1000 + room, 4, rows=0) for room in range(node.control.limits.num_slots // 2)]


class FullLanguage(LanguageAlone):
    """Every slot is held: by requests that have granted nothing, and one, `spared`, by the test."""

    def __init__(self) -> None:
        super().__init__()
        slot = library_of(self.client).requests.lease._take()
        assert slot is not None
        self.spared = slot
        for room in range(1, self.control.limits.num_slots):
            self.receiver(100 + room, None)


def test_a_call_that_waits_can_be_used_and_goes_on_when_its_room_is_asked_for() -> None:
    """P8: what was announced and written before it had a slot is in it then."""
    node, _ = full_encode()
    sender = node.client.sender(1, 8, aux_datas=range(16))
    sender.announce()
    node.write(sender, 0, 4)
    assert sender.is_waiting
    assert (sender.poll(), sender.sent_tokens, sender.failure_exception()) == (Phase.Bootstrapping, 0, None)
    assert "slot=none" in repr(sender)
    assert sender.phase_path() == [Phase.Bootstrapping]
    node.init(1, [3, 4])
    assert not sender.is_waiting
    assert node.slots.get(sender.slot, Slot.TOTAL) == 8
    node.write(sender, 4, 8)
    assert node.blocks_written() == [[3], [4]]
    assert node.slots.aux(sender.slot).tolist()[2:] == list(range(2, 16))


def test_rooms_that_are_asked_for_with_no_block_leave_a_quarter_of_the_slots() -> None:
    """P8, D8: for those whose blocks are there, which then wait for nobody."""
    node, first = full_encode()
    count = node.control.limits.num_slots
    for room in range(count // 2):
        node.init(room, [])
    senders = [node.client.sender(room, 4) for room in range(count // 2)]
    node.advance(1.0)
    num_open = sum(not sender.is_waiting for sender in senders)
    assert count - len(first) - num_open == count // 4 - 1
    last = senders[-1]
    assert last.is_waiting
    node.init(last.room, [3])
    node.settle()
    assert not last.is_waiting


def test_a_room_that_is_asked_for_before_its_call_takes_a_slot_at_once() -> None:
    """P8: the client asks, and is told without the next init."""
    node, _ = full_encode()
    node.init(1, [3])
    sender = node.client.sender(1, 4)
    assert sender.is_waiting
    node.settle()
    assert not sender.is_waiting


def test_a_call_that_joins_while_the_library_thread_finds_nobody_hears_that_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: it is announced after the look at who waits, and so not among what is taken for read."""
    node, _ = full_encode()
    node.init(1, [3])
    line, senders = library_of(node.client).slot_queue, []
    stop = line._stop_listening

    def joined(*args: Any) -> None:
        monkeypatch.undo()
        senders.append(node.client.sender(1, 4))
        node.actor("bootstrap").step()
        assert node.control.wanted.end == 1
        stop(*args)

    monkeypatch.setattr(line, "_stop_listening", joined)
    library_of(node.client).turn()
    node.settle()
    assert not senders[0].is_waiting


def test_a_call_that_asks_while_the_library_thread_takes_the_mark_away_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: nobody has announced its room, because no mark stood."""
    node, _ = full_encode()
    before = node.client.sender(2, 4)
    node.settle()
    node.init(2, [4])
    assert not before.is_waiting
    node.init(1, [3])
    line, senders = library_of(node.client).slot_queue, []
    assert not len(line)
    line._is_marked = True
    set_mark = library_of(node.client).attachment.control.room_waiters.set

    def asked(lane: int, waits: bool) -> None:
        monkeypatch.undo()
        senders.append(node.client.sender(1, 4))
        set_mark(lane, waits)
        node.actor("bootstrap").step()

    monkeypatch.setattr(library_of(node.client).attachment.control.room_waiters, "set", asked)
    library_of(node.client).turn()
    node.settle()
    assert not senders[0].is_waiting


def test_who_waits_is_served_in_order_when_half_of_the_slots_are_free_again() -> None:
    """R22: and not before."""
    node, first = full_encode()
    later = [node.client.sender(room, 4) for room in range(3)]
    node.settle()
    assert all(sender.is_waiting for sender in later)
    for sender in first[:2]:
        sender.abort()
    node.settle()
    assert [sender.is_waiting for sender in later] == [False, False, True]


def test_a_call_that_waits_and_is_aborted_tells_the_other_side() -> None:
    """P5, D11: it takes a slot to end in."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    sender.abort("no image after all")
    sender.abort("a second time")
    node.settle()
    assert isinstance(sender.failure_exception(), TransferAborted)
    assert failure_of(sender).reason == "no image after all"
    assert sender in node.client.poll()
    node.forget_sent()
    node.init(1, [3])
    assert ["no image after all" in message.reason for message in node.sent(msg.Refused)] == [True]


def test_a_room_that_is_aborted_there_ends_the_call_that_waits_here() -> None:
    """D11, R15: with the reason."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    node.abort(1, reason="not wanted any more")
    node.settle()
    assert "not wanted any more" in str(sender.failure_exception())


@pytest.mark.parametrize("is_full", [False, True])
def test_the_deadline_of_a_call_counts_while_it_waits(is_full: bool) -> None:
    """D1, P8: for a slot that it may have, or when every slot is in use."""
    node, _ = full_encode()
    if is_full:
        while (slot := library_of(node.client).requests.lease._take()) is not None:
            assert slot >= 0
    sender = node.client.sender(1, 4, timeout_s=1.0)
    node.write(sender, 0, 4)
    node.advance(0.8)
    assert sender.poll() == Phase.Bootstrapping
    node.advance(0.6)
    assert isinstance(sender.failure_exception(), TransferTimeout)
    assert "waiting for a slot" in str(sender.failure_exception())
    assert sender in node.client.poll()
    assert (sender.slot == NO_SLOT) == is_full
    node.advance(0.2, until=lambda: sender.done)
    assert sender.done
    assert node.control.lanes.get(node.client.lane, Lane.UNSENT_BYTES) == 0
    assert sender.stamps_ns[Phase.Failed] > 0
    node.client.sender(2, 4)


def test_a_receiver_that_waits_can_be_used() -> None:
    """P8: it grants nothing, and tells its encode node that it is there as soon as it has a slot."""
    node = LanguageAlone()
    held = [node.receiver(100 + room, None) for room in range(node.control.limits.num_slots)]
    receiver = node.client.receiver(ENCODE_ADDRESS, 1)
    assert receiver.is_waiting
    assert not receiver.handshake_done
    assert not receiver.needs_resume
    assert (receiver.total_embedding_length, receiver.granted_tokens, receiver.ready_tokens, receiver.num_rounds) == (
        0,
        0,
        0,
        0,
    )
    assert receiver.allocate(4).tolist() == []
    assert receiver.current_allocation().tolist() == []
    assert receiver.release_drained(0) == 0
    with pytest.raises(ValueError, match="waits for a slot"):
        receiver.init([3])
    receiver.init([])
    with pytest.raises(ValueError, match="room: 1 is in use"):
        node.client.receiver(ENCODE_ADDRESS, 1)
    node.forget_sent()
    held[0].clear()
    node.settle()
    node.abort_ack(held[0])
    node.advance(0.1)
    assert not receiver.is_waiting
    assert {message.key.room for message in node.sent(msg.Init)} == {1}


def test_a_receiver_that_waits_and_is_late_goes() -> None:
    """P5, D1: without ever having had a slot."""
    node = FullLanguage()
    late = node.client.receiver(ENCODE_ADDRESS, 2, timeout_s=1.0)
    node.advance(1.5)
    failure = late.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.TIMEOUT
    assert set(node.client.poll()) == {late}
    assert late.why_not_retryable == ""


@pytest.mark.parametrize("how", ["abort", "clear"])
def test_a_receiver_that_waits_and_is_given_up_ends_in_the_next_turn(how: str) -> None:
    """P5, P8: nobody was told that it is there, so nobody has to be told that it is not; those behind wait on, the room
    is free.
    """
    node = FullLanguage()
    given_up, behind = (node.client.receiver(ENCODE_ADDRESS, room) for room in (1, 2))
    given_up.init([])
    node.forget_sent()
    getattr(given_up, how)()
    library_of(node.client).turn()
    failure = given_up.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.ABORTED
    assert (given_up.slot, given_up.stamps_ns[Phase.Failed]) == (NO_SLOT, node.now_ns)
    assert given_up in node.client.poll()
    assert behind.is_waiting
    assert node.control.lanes.get(node.client.lane, Lane.NUM_WAITING) == 1
    node.settle()
    assert node.wire.sent == []
    assert node.client.receiver(ENCODE_ADDRESS, 1).is_waiting
    with pytest.raises(ValueError, match="cleared" if how == "clear" else "ABORTED"):
        given_up.retry(ENCODE_ADDRESS, 0)


def test_a_receiver_that_waits_and_is_given_up_takes_a_slot_that_has_come_free() -> None:
    """D11: its encoder then hears of it, and not by its own deadline."""
    node = FullLanguage()
    given_up = node.client.receiver(ENCODE_ADDRESS, 1)
    node.forget_sent()
    library_of(node.client).requests.lease._free[0].append(node.spared)
    given_up.abort("no image after all")
    node.settle()
    assert given_up.slot == node.spared
    assert isinstance(given_up.failure_exception(), TransferAborted)
    assert [(message.key.room, message.reason) for message in node.sent(msg.Abort)] == [(1, "no image after all")]


def test_a_receiver_whose_time_ends_while_it_is_given_up_has_ended_once(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: the library thread may end it between the two looks of the caller's thread; the first reason stands."""
    node = FullLanguage()
    receiver = node.client.receiver(ENCODE_ADDRESS, 1, timeout_s=1.0)
    give_up = receiver.give_up

    def too_late(code: FailureCode, reason: str) -> None:
        monkeypatch.undo()
        node.world.now_ns += 2 * NS
        library_of(node.client).turn()
        give_up(code, reason)

    monkeypatch.setattr(receiver, "give_up", too_late)
    receiver.abort()
    assert isinstance(receiver.failure_exception(), TransferTimeout)
    assert not library_of(node.client).slot_queue._first


def test_requests_in_a_queue_end_in_time_whatever_waits_before_them() -> None:
    """D1, P8: their deadlines and aborts count, though the first of them has all the time in the world."""
    node = LanguageAlone()
    queue = TransferQueue(node.client)
    for room in range(node.control.limits.num_slots):
        node.receiver(100 + room, None)
    times_s = ((1, 99), (2, 1), (3, 99))
    patient, late, unwanted = (
        EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS, timeout_s=s) for room, s in times_s
    )
    for request in (patient, late, unwanted):
        queue.add(request)
    unwanted.abort("not needed")
    node.advance(1.5)
    _, failed = queue.pop_transferred()
    codes = {request.room: request.failure and request.failure.code for request in failed}
    assert codes == {2: FailureCode.TIMEOUT, 3: FailureCode.ABORTED}
    assert len(queue) == 1
    assert node.control.lanes.get(node.client.lane, Lane.NUM_WAITING) == 1
    assert node.control.blocks.waiters() == []  # it is no block that they wait for


def test_only_a_full_line_is_an_error_which_says_when_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """P12: so many a client; it is a RuntimeError, too."""
    monkeypatch.setattr(waiting, "MAX_WAITING", 8)
    monkeypatch.setattr("embridge.pipeline.scheduler.incoming.MAX_WAITING", 8)
    node, _ = full_encode()
    for room in range(8):
        node.client.sender(room, 4)
    node.world.now_ns += 8 * NS
    with pytest.raises(NodeBusyError, match=r"wait for a slot: 8 >= 8; try again in 1 s") as busy:
        node.client.sender(8, 4)
    assert isinstance(busy.value, RuntimeError)
    assert busy.value.retry_after_s == 1.0
    assert library_of(node.client).requests.waiting_for(8) is None
    language = LanguageAlone()
    prealloc = PreallocQueue(language.client, TransferQueue(language.client))
    refused = EmbeddingRequest(room=8, bootstrap_addr=ENCODE_ADDRESS)
    with TurnTaker(library_of(language.client).view.turn):  # so that adding opens none
        for room in range(8):
            prealloc.add(EmbeddingRequest(room=room, bootstrap_addr=ENCODE_ADDRESS))
        with pytest.raises(NodeBusyError, match="wait for a slot: 8 >= 8"):
            prealloc.add(refused)
    library_of(language.client).turn()
    prealloc.add(refused)


def test_those_who_wait_when_the_client_closes_or_its_node_goes_have_failed() -> None:
    """P5."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).slot_queue.close()
    assert "this client was closed" in str(sender.failure_exception())
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).attachment.node_gone = True
    assert "own node is gone" in str(sender.failure_exception())
    assert sender in node.client.poll()


def test_those_who_have_left_the_line_when_the_node_has_gone_are_named_by_the_next_poll() -> None:
    """P8: a caller that goes by `poll` hears of their end, though the library thread has ended them first."""
    node, _ = full_encode()
    sender = node.client.sender(1, 4)
    library_of(node.client).attachment.node_gone = True
    library_of(node.client).turn()
    assert len(library_of(node.client).slot_queue) == 0
    assert sender in node.client.poll()


def test_marks_of_a_client_that_died_while_it_waited_are_gone() -> None:
    """P3: nobody rings for it any more, and its seat is another's."""
    node, _ = full_encode()
    node.client.sender(1, 4)
    node.settle()
    assert node.control.room_waiters.lanes() == [node.client.lane]
    node.node.clients[0].die()
    node.advance(1.0, until=lambda: not node.control.room_waiters.has(node.client.lane))
    assert not node.control.room_waiters.has(node.client.lane)
    assert node.control.lanes.num_early() == 0


def test_one_that_died_while_it_waited_counts_for_nothing_while_its_peers_still_hold_its_slots() -> None:
    """P3, P8: others would give pages away, ring, and ask for fences, for somebody who is gone, as long as a peer says
    nothing.
    """
    node = EncodeAlone()
    other = node.new_client()
    lane, control = node.client.lane, node.control
    node.sender(1, 4)
    node.init(1, [3])
    marks = (control.slot_waiters, control.room_waiters, control.blocks._waiters)
    for bits in marks:
        bits.set(lane, True)
    lease = SlotLease(control, other.lane)
    assert lease._lease_page() is not None
    node.node.clients[0].die()
    node.settle()
    assert control.lanes.get(lane, Lane.STATE) == LaneState.DEAD
    assert [bits.has(lane) for bits in marks] == [True] * 3
    assert [control.slot_waiters.lanes(), control.room_waiters.lanes(), control.blocks.waiters()] == [[]] * 3
    lease.share(is_needy=False)
    assert control.lanes.pages_of(other.lane) != []
    node.close(1)
    node.settle()
    assert control.lanes.get(lane, Lane.STATE) == LaneState.FREE
    assert [bits.has(lane) for bits in marks] == [False] * 3


# ---- the log


def test_a_log_that_was_overrun_shows_the_latest_rooms() -> None:
    """P8: what is lost is announced again with the next init."""
    node = EncodeAlone()
    log = node.control.wanted
    end = log.capacity + 5
    for room in range(end):
        log.append(MAX_ROOM - room, can_end=room % 2 == 1)
    assert log.since(0) == ([(MAX_ROOM - room, room % 2 == 1) for room in range(5, end)], end)
    assert log.since(end - 2) == ([(MAX_ROOM - end + 2, end % 2 == 1), (MAX_ROOM - end + 1, end % 2 == 0)], end)


def test_nobody_writes_the_log_while_nobody_waits() -> None:
    """P12: a node whose calls all have slots pays nothing for it."""
    node = EncodeAlone()
    node.init(1, [3])
    assert node.control.wanted.end == 0
