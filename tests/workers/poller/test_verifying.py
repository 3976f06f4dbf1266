"""Rows that are checked on receipt, at one node whose peers are played by the test (R27)."""

from __future__ import annotations

from array import array

import pytest
from support.alone import BLOCK_SIZE, Alone, EncodeAlone, LanguageAlone, failure_of
from support.rows import rows_of
from support.simulation import Killed

from embridge.allocator.buffers import PayloadBuffers
from embridge.allocator.checksums import RowSum, RowSums
from embridge.allocator.errors import FailureCode
from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.workers import messages as msg
from embridge.workers.poller import verifier as verifying

pytestmark = pytest.mark.usefixtures("quiet")


# ---- the encode node


def encode_alone() -> EncodeAlone:
    return EncodeAlone(verify=True)


def last_report(node: Alone) -> msg.RoomState:
    return node.sent(msg.Status)[-1].room


def sum_of(node: Alone, room: int, tokens: int) -> RowSum:
    """What the checksum of the first rows is, by another way than through the node's blocks."""
    rows = rows_of(node.node.geometry, room, 0, tokens)
    it = EncodeAlone(num_blocks=1 + -(-tokens // BLOCK_SIZE))
    buffers = PayloadBuffers(it.node.payload, it.node.geometry)
    for name in ("input_embeddings", "fill_ids", "mrope_positions"):
        data = getattr(rows, name)
        view = getattr(buffers, name)
        flat = view.reshape(-1, *view.shape[2:])
        flat[:tokens] = data if name == "input_embeddings" else data.numpy()
    return RowSums(it.node.payload, it.node.geometry).extend(
        RowSum(0, 0), tokens, list(range(-(-tokens // BLOCK_SIZE)))
    )


def without_aux(node: EncodeAlone, sender: EmbeddingSender) -> None:
    """Make the request's aux words those of nobody, so that `sum_of` need not know them."""
    node.slots.aux(sender.slot)[:] = array("i", bytes(64))


def test_a_report_carries_the_checksum_of_all_rows_that_are_sent() -> None:
    """R27, P6: whatever attempts they went in; and `sent` and the checksum belong together."""
    node = encode_alone()
    sender = node.sender(1, 14, rows=0)
    without_aux(node, sender)
    node.init(1, [3, 9])
    for end in (3, 7, 14):
        node.write(sender, sender._ready, end)
        tokens = min(end, 8)
        assert RowSum(last_report(node).sent_tokens, last_report(node).checksum) == sum_of(node, 1, tokens)
    node.resume(1, [5, 2], first=2)
    assert RowSum(14, last_report(node).checksum) == sum_of(node, 1, 14)
    assert node.get(sender, Destination.SUMMED) == sum_of(node, 1, 14).pack()


def test_each_destination_has_its_own_checksum() -> None:
    """R27, R18."""
    node = encode_alone()
    node.register(node_id=11)
    sender = node.sender(1, 12)
    node.init(1, [3], required=2)
    node.init(1, [5, 2, 8], required=2, node_id=11)
    ours = [RowSum.of(node.get(sender, Destination.SUMMED, d)) for d in (0, 1)]
    assert [tokens for tokens, _ in ours] == [4, 12]
    assert ours[0].checksum != ours[1].checksum
    node.resume(1, [6, 7], first=1, required=2)
    assert node.get(sender, Destination.SUMMED, 0) == node.get(sender, Destination.SUMMED, 1)


def test_a_destination_that_has_checked_more_than_was_sent_fails_the_request() -> None:
    """R27, R2: it knows of no row that we have not reported."""
    node = encode_alone()
    sender = node.sender(1, 12)
    node.init(1, [3, 4])
    node.checked(1, 8)
    assert sender.poll() < Phase.Success
    node.checked(1, 9)
    assert sender.poll() == Phase.Failed
    failure = failure_of(sender)
    assert failure.code == FailureCode.PROTOCOL
    assert "checked 9 tokens > 8 tokens" in failure.reason


def test_it_succeeds_only_when_every_destination_has_checked_every_row() -> None:
    """R27: so that a row that was damaged fails the request on every side."""
    node = encode_alone()
    node.register(node_id=11)
    sender = node.sender(1, 8)
    node.init(1, [3, 4], required=2)
    node.init(1, [3, 4], required=2, node_id=11)
    assert (sender.poll(), sender.sent_tokens) == (Phase.WaitingForInput, 8)
    node.checked(1, 8)
    node.checked(1, 7, node_id=11)
    node.checked(1, 8, node_id=12)  # who has no part in it
    assert sender.poll() == Phase.WaitingForInput
    node.restart("poller")
    node.settle()
    node.checked(1, 4, node_id=11)  # an old one
    assert sender.poll() == Phase.WaitingForInput
    node.checked(1, 8, node_id=11)
    assert sender.poll() == Phase.Success


def test_rows_that_a_dead_worker_has_summed_and_not_counted_are_not_sent_again() -> None:
    """R27, P2, P11: it is killed between the two words; before the first it redoes the rows from where the sum
    stands.
    """
    for kill_at, attempts in (("SENT", 1), ("SUMMED", 2)):
        node = encode_alone()
        sender = node.sender(1, 8)
        worker = node.actor("worker0")
        table = worker.role._dsts  # type: ignore[attr-defined]
        step, field = (table.raise_to, Destination.SENT) if kill_at == "SENT" else (table.set, Destination.SUMMED)

        def dies(slot: int, d: int, at: Destination, value: int, *, step: object = step, field: object = field) -> bool:
            if at == field:
                raise Killed
            return step(slot, d, at, value)  # type: ignore[no-any-return, operator]

        setattr(table, "raise_to" if kill_at == "SENT" else "set", dies)
        node.init(1, [3, 4])
        assert node.get(sender, Destination.SENT) == 8
        assert RowSum.of(node.get(sender, Destination.SUMMED)).tokens == 8
        assert len(node.engine.submitted) == attempts
        node.checked(1, 8)
        assert sender.poll() == Phase.Success


def test_without_verify_nothing_is_summed() -> None:
    """R27: a request succeeds when its rows are there, and who tells that it has checked some is refused."""
    node = EncodeAlone()
    sender = node.sender(1, 8)
    node.init(1, [3])
    node.checked(1, 8)
    assert node.metric("poller", "messages_refused") == 1
    assert (sender.poll(), node.get(sender, Destination.VERIFIED)) == (Phase.Transferring, 0)
    node.resume(1, [4], first=1)
    assert sender.poll() == Phase.Success
    assert last_report(node).checksum == node.get(sender, Destination.SUMMED) == 0


@pytest.mark.parametrize("ours", [False, True])
def test_nodes_verify_both_or_not_at_all(ours: bool) -> None:
    """R27: who sets it on one node only is told, and does not believe that rows are checked."""
    node = EncodeAlone(verify=ours)
    node.register(node_id=12, verify=not ours)
    (refused,) = node.sent(msg.Refused)
    assert refused.reason == f"verify: language {not ours}, encode {ours}; launch both with the same"
    node.register(node_id=12, verify=ours)
    assert len(node.sent(msg.Registered)) == 2


# ---- the language node


def language_alone(total: int = 16, blocks: int = 4) -> tuple[LanguageAlone, EmbeddingReceiver, RowSum]:
    """A request whose rows are in its blocks (zeros, as they stand in a fresh payload), and what their checksum is."""
    node = LanguageAlone(verify=True)
    receiver = node.receiver(1, blocks)
    return node, receiver, sum_there(node, receiver, total)


def sum_there(node: LanguageAlone, receiver: EmbeddingReceiver, tokens: int) -> RowSum:
    windows = node.control.windows
    blocks = [windows.get(receiver.slot, k) for k in range(-(-tokens // BLOCK_SIZE))]
    return RowSums(node.node.payload, node.node.geometry).extend(RowSum(0, 0), tokens, blocks)


def damage(node: LanguageAlone, receiver: EmbeddingReceiver, row: int) -> None:
    """One bit of the row's id is not what was sent."""
    block = node.control.windows.get(receiver.slot, row // BLOCK_SIZE)
    PayloadBuffers(node.node.payload, node.node.geometry).fill_ids[block, row % BLOCK_SIZE] ^= 1 << 30


def test_the_word_rises_when_the_rows_are_checked_and_the_encode_side_is_told() -> None:
    """R27, P6: and Success comes with a report of its own."""
    node, receiver, right = language_alone()
    node.actor("worker0").stalled_ns = node.now_ns + 1
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    assert (receiver.poll(), receiver.sent_tokens) == (Phase.Bootstrapping, 0)
    node.forget_sent()
    node.advance(0.02)
    assert (receiver.poll(), receiver.sent_tokens) == (Phase.WaitingForInput, 16)
    assert node.slots.get(receiver.slot, Slot.VERIFIED) == right.pack()
    (checked,) = node.sent(msg.Checked)
    assert checked.rooms == [msg.CheckedRows(msg.RequestKey(receiver.slot, receiver.epoch, 1), 16)]
    node.status(receiver, Phase.Success, 16, checksum=right.checksum)
    assert receiver.poll() == Phase.Success


def test_what_is_checked_is_told_again_for_as_long_as_the_request_is_in_flight() -> None:
    """R27: the one message may be lost; and with it the encode side knows that the node lives (P4)."""
    node, receiver, right = language_alone()
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    other = node.receiver(2)
    node.forget_sent()
    node.advance(0.5)
    assert node.sent(msg.Heartbeat) == []
    for checked in node.sent(msg.Checked):
        # Of the other one nothing was checked.
        assert [(rows.key.room, rows.checked_tokens) for rows in checked.rooms] == [(1, 16)]
    assert len(node.sent(msg.Checked)) >= 4
    node.status(receiver, Phase.Success, 16, checksum=right.checksum)
    assert receiver.poll() == Phase.Success
    receiver.clear()
    other.abort()
    node.settle()
    node.abort_ack(other)
    other.clear()
    node.forget_sent()
    node.advance(2.0)
    assert node.sent(msg.Checked) == []
    assert node.sent(msg.Heartbeat)
    assert all(beat.rooms == [] for beat in node.sent(msg.Heartbeat))


def test_rows_that_are_not_those_that_were_sent_fail_the_request() -> None:
    """R27, P6: the reason names the blocks and both checksums, and goes to the encode side with the abort."""
    node, receiver, _ = language_alone()
    first = sum_there(node, receiver, 6)
    node.status(receiver, Phase.WaitingForInput, 6, checksum=first.checksum)
    assert receiver.sent_tokens == 6
    right = sum_there(node, receiver, 8)
    damage(node, receiver, 7)
    wrong = sum_there(node, receiver, 8)
    node.status(receiver, Phase.WaitingForInput, 8, checksum=right.checksum)
    assert (receiver.poll(), receiver.sent_tokens) == (Phase.Failed, 6)
    failure = receiver.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.CORRUPT
    assert (
        failure.reason
        == f"block 1, rows 6 to 7: checksum {wrong.checksum:08x} on receipt, {right.checksum:08x} when sent"
    )
    (abort,) = node.sent(msg.Abort)
    assert (abort.code, abort.reason) == (FailureCode.CORRUPT, failure.reason)
    assert node.metric("poller", "corrupt") == 1
    assert node.counts() == {"free": 4, "quarantined": 4}
    node.abort_ack(receiver)
    receiver.clear()
    node.settle()
    assert node.counts() == {"free": 8}


def test_a_report_of_several_blocks_is_named_by_all_of_them() -> None:
    """R27."""
    node, receiver, right = language_alone()
    damage(node, receiver, 9)
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    failure = receiver.failure_exception()
    assert failure is not None
    assert failure.reason.startswith("blocks 0 to 3, rows 0 to 15: checksum ")


def test_reports_that_come_meanwhile_are_checked_in_their_turn() -> None:
    """R27: no row is skipped, an older report changes nothing, and the newest one counts in the end."""
    node, receiver, right = language_alone()
    sums = {n: sum_there(node, receiver, n).checksum for n in (4, 8, 12, 16)}
    worker = node.actor("worker0")
    worker.stalled_ns = node.now_ns + 1
    node.status(receiver, Phase.WaitingForInput, 4, checksum=sums[4])
    node.status(receiver, Phase.Transferring, 12, checksum=sums[12])
    node.status(receiver, Phase.Success, 16, checksum=sums[16], resumed=True)
    node.status(receiver, Phase.Transferring, 8, checksum=sums[8])
    assert receiver.sent_tokens == 0
    node.advance(0.02)
    assert receiver.poll() == Phase.Success
    assert [phase.name for phase in receiver.phase_path()] == [
        "Bootstrapping",
        "WaitingForInput",
        "Transferring",
        "Success",
    ]
    assert node.slots.get(receiver.slot, Slot.VERIFIED) == right.pack()


@pytest.mark.parametrize("role", ["worker0", "poller"])
def test_a_check_that_died_with_its_process_is_made_again(role: str) -> None:
    """R27, P11: the worker's record is still in its ring; the poller hears of the rows with the next heartbeat."""
    node, receiver, right = language_alone()
    node.actor("worker0").stalled_ns = node.now_ns + 1
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    node.restart(role)
    node.advance(0.02)
    node.heartbeat(node.state(receiver, Phase.WaitingForInput, 16, checksum=right.checksum))
    assert receiver.sent_tokens == 16


def test_a_check_whose_answer_is_lost_is_asked_for_again() -> None:
    """R27, P8: with the first heartbeat after a second; heartbeats before that ask for nothing."""
    node, receiver, right = language_alone()
    worker = node.actor("worker0")
    worker.stalled_ns = node.now_ns + 1
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    worker.records.take()
    worker.records.done()  # as a worker would that dies with what it could not put into a full ring
    beat = node.state(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
    for _ in range(5):
        node.advance(0.1)
        node.heartbeat(beat)
        assert receiver.sent_tokens == 0
    node.advance(0.6)
    node.heartbeat(beat)
    assert receiver.sent_tokens == 16


def test_many_rows_are_checked_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """R27: no record keeps a worker for long; a row that is wrong in the first piece is found, too."""
    for row in (None, 0, 15):
        with monkeypatch.context() as patch:
            patch.setattr(verifying, "PIECE_BYTES", 1)
            node, receiver, right = language_alone()
            if row is not None:
                damage(node, receiver, row)
            node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum)
            assert receiver.sent_tokens == (16 if row is None else 0)
            assert (receiver.poll() == Phase.Failed) == (row is not None)


def test_an_answer_for_a_request_that_has_ended_has_no_effect() -> None:
    """R27, P17: nor does it in the next epoch of the slot."""
    node, receiver, right = language_alone()
    node.actor("worker0").stalled_ns = node.now_ns + 1
    node.status(receiver, Phase.WaitingForInput, 16, checksum=right.checksum ^ 1)
    receiver.abort("given up")
    node.settle()
    node.advance(0.02)
    assert receiver.poll() == Phase.Failed
    failure = receiver.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.ABORTED
    assert node.metric("poller", "corrupt") == 0
    assert node.slots.get(receiver.slot, Slot.VERIFIED) == 0
