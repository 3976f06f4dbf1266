"""P15, B6: every bad input is one clear error that says what was seen, and leaves nothing behind: the same clients go
on.

Each table reads: what is wrong | what the error says | how it is done. Settings are in `test_config.py`, nodes that do
not fit together in `test_bad_nodes.py`, places that cannot be used in `test_launches_that_fail.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.encoding import ended, give, open_sender
from support.rows import rows_of
from support.scheduling import ByHand
from support.unharmed import TOTAL, Bench, says
from support.waiting import wait_until

from embridge import EmbeddingRequest, attach
from embridge.allocator.geometry import MAX_TOKENS, Geometry
from embridge.pipeline.client.given_rows import given_rows

pytestmark = pytest.mark.process


# ---- opening a request


Opening = Callable[[Bench], Any]


def sender(*, room: Any = None, total: Any = 10, **named: Any) -> Opening:
    return lambda b: b.sending.sender(next(b.rooms) if room is None else room, total, **named)


def receiver(*, room: Any = None, addr: Any = None, **named: Any) -> Opening:
    return lambda b: b.receiving.receiver(
        b.addr if addr is None else addr, next(b.rooms) if room is None else room, **named
    )


def twice(opening: Callable[[Bench, int], Any]) -> Opening:
    """The same room twice; the first is given up afterwards."""

    def both(b: Bench) -> None:
        room = next(b.rooms)
        first = opening(b, room)
        try:
            opening(b, room)
        finally:
            first.abort("enough seen")
            ended(first)
            first.clear()

    return both


AUX = np.zeros(16, np.int64)
OPENINGS = {
    "a length of 0": ("total_tokens: 0 is outside 1 to 4294967295", sender(total=0)),
    "a length over 2^32 - 1": ("total_tokens: 4294967296 is outside 1 to 4294967295", sender(total=MAX_TOKENS + 1)),
    "a length that is no whole number": ("total_tokens: 10.0 is outside 1 to 4294967295", sender(total=10.0)),
    "a room below 0": ("room: -1 is outside 0 to 2**63 - 1", sender(room=-1)),
    "a room over 2^63 - 1": ("room: 9223372036854775808 is outside 0 to 2**63 - 1", receiver(room=1 << 63)),
    "a room that is no number": ("room: 'r' is outside 0 to 2**63 - 1", receiver(room="r")),
    "a sender's room that lives": (
        "is in use; a room is one request",
        twice(lambda b, room: b.sending.sender(room, 10)),
    ),
    "a receiver's room that lives": (
        "is in use; a room is one request",
        twice(lambda b, room: b.receiving.receiver(b.addr, room)),
    ),
    "no time": ("timeout_s: 0 s must be positive", sender(timeout_s=0)),
    "time without end": ("timeout_s: inf s must be positive, and at most 1e+09 s", receiver(timeout_s=float("inf"))),
    "time that is no number": ("timeout_s: 'long' s must be positive", sender(timeout_s="long")),
    "15 auxiliary words": ("aux_datas: shape (15,) dtype int64 is not (16,) of integers", sender(aux_datas=AUX[:15])),
    "auxiliary fractions": ("aux_datas: shape (16,) dtype float32 is not", sender(aux_datas=AUX.astype(np.float32))),
    "ragged auxiliary words": ("aux_datas: ...inhomogeneous", sender(aux_datas=[[1], [2, 3]])),
    "an auxiliary word over int32": (
        "aux_datas: 2147483648 to 2147483648 is outside int32",
        sender(aux_datas=AUX + (1 << 31)),
    ),
    "a delta over int32": (
        "mrope_position_delta: 2147483648 is outside -2147483648 to 2147483647",
        sender(mrope_position_delta=1 << 31),
    ),
    "a delta that is a fraction": (
        "mrope_position_delta: 1.5 is outside -2147483648 to",
        sender(mrope_position_delta=1.5),
    ),
    "no destination": ("required_dst_info_num: 0 is outside 1 to 64", receiver(required_dst_info_num=0)),
    "65 destinations": ("required_dst_info_num: 65 is outside 1 to 64", receiver(required_dst_info_num=65)),
    "an address that is none": ("bootstrap_addr: 'here' is not of the form tcp://host:port", receiver(addr="here")),
    "an address that is no text": ("bootstrap_addr: 5 is not of the form", receiver(addr=5)),
    "an address without a port": (
        "bootstrap_addr: 'tcp://127.0.0.1' is not of the form",
        receiver(addr="tcp://127.0.0.1"),
    ),
    "an address without a host": ("bootstrap_addr: 'tcp://:80' is not of the form", receiver(addr="tcp://:80")),
    "port 0": ("bootstrap_addr: 'tcp://127.0.0.1:0' is not", receiver(addr="tcp://127.0.0.1:0")),
    "a port over 65535": ("bootstrap_addr: 'tcp://127.0.0.1:65536' is not", receiver(addr="tcp://127.0.0.1:65536")),
    "another transport": ("bootstrap_addr: 'ipc:///tmp/x' is not", receiver(addr="ipc:///tmp/x")),
    "an address with more behind it": ("bootstrap_addr: 'tcp://a:1/x' is not", receiver(addr="tcp://a:1/x")),
    "an address of 207 bytes": ("bootstrap_addr: 207 bytes > 128 bytes", receiver(addr=f"tcp://{'a' * 199}:1")),
    "a sender on a language node": (
        "sender: this client is attached to a language node; attach to the encode node",
        lambda b: b.receiving.sender(next(b.rooms), 10),
    ),
    "a receiver on an encode node": (
        "receiver: this client is attached to a encode node; attach to the language node",
        lambda b: b.sending.receiver(b.addr, next(b.rooms)),
    ),
}


@pytest.mark.parametrize("what", OPENINGS)
def test_a_request_that_cannot_be_opened_is_a_value_error(bench: Bench, what: str) -> None:
    text, opening = OPENINGS[what]
    before = bench.encode.in_flight() + bench.language.in_flight()
    with bench.unharmed(), pytest.raises(ValueError, match=says(text)):
        opening(bench)
    assert bench.encode.in_flight() + bench.language.in_flight() == before == []


QUEUED: dict[str, tuple[str, dict[str, Any]]] = {
    "a room over 2^63 - 1": ("room: 9223372036854775808 is outside", {"room": 1 << 63}),
    "an address that is none": ("bootstrap_addr: 'tcp://x' is not of the form", {"addr": "tcp://x"}),
    "no destination": ("required_dst_info_num: 0 is outside", {"required": 0}),
    "time that is no number": ("timeout_s: 'long' is no number of seconds", {"timeout_s": "long"}),
    "time without end": ("timeout_s: inf s must be positive", {"timeout_s": float("inf")}),
    "time that no float can hold": ("timeout_s: 1000...000... is no number of seconds", {"timeout_s": 10**400}),
    "time that has no text": ("timeout_s: a int is no number of seconds", {"timeout_s": 10**5000}),
    "a room that has no text": ("room: a int is outside", {"room": 10**5000}),
    "no time": ("deadline passed while waiting for a slot", {"timeout_s": 0}),
    "more destinations than the encode node takes": ("required_dst_info_num 5 > max_destinations 4", {"required": 5}),
}


@pytest.mark.parametrize("what", QUEUED)
def test_a_bad_request_in_the_queue_comes_out_as_failed_and_stops_nobody_behind_it(bench: Bench, what: str) -> None:
    text, given = QUEUED[what]
    with bench.unharmed():
        arguments: dict[str, Any] = {"addr": bench.addr, "room": next(bench.rooms), **given}
        request = bench.queues.add(**arguments)
        behind = next(bench.rooms)
        bench.queues.add(bench.addr, behind)
        assert give(open_sender(bench.sending, behind, TOTAL))
        assert bench.queues.take(behind, 20).difference == ""
        received = bench.queues.take(request.room, 20)
        assert re.search(says(text), received.reason)
        assert request.result is None


@pytest.mark.parametrize("reason", ["", None])
def test_a_request_that_is_given_up_for_no_reason_is_given_up(bench: Bench, reason: Any) -> None:
    """P5: before it has a slot, too."""
    with bench.unharmed():
        request = EmbeddingRequest(room=next(bench.rooms), bootstrap_addr=bench.addr)
        request.abort(reason)
        bench.queues.prealloc.add(request)
        bench.queues.requests[request.room] = request
        received = bench.queues.take(request.room, 20)
        assert received.reason == "aborted by the scheduler"


def test_two_encoders_of_one_room_are_told_apart(bench: Bench) -> None:
    """The second of them, in a client of its own, fails; the first goes on."""

    def try_both() -> None:
        room = next(bench.rooms)
        first = open_sender(bench.sending, room, TOTAL)
        wait_until(lambda: not first.is_untold)  # or the other one is the first of which the node knows
        with attach(bench.encode.run_dir) as other:
            second = ended(open_sender(other, room, TOTAL))
        assert second.reason == f"room {room} is in use by another sender of this node"
        bench.queues.add(bench.addr, room)
        assert give(first)
        assert bench.queues.take(room, 20).difference == ""
        bench.encode.wait_idle()  # the next client has the same lane

    try_both()  # a lane's first user has its doorbell made
    with bench.unharmed():
        try_both()


# ---- grants


GRANTS: dict[str, tuple[str, Callable[[ByHand, list[int]], Any]]] = {
    "a block over the pool": ("embedding_indices: 9 is outside 0 to 8", lambda t, own: t.receiver.init([9], 128)),
    "a block below 0": ("embedding_indices: -1 is outside 0 to 8", lambda t, own: t.receiver.init([-1], 128)),
    "a block of nobody": (
        "are not blocks of this request, each once; use allocate()",
        lambda t, own: t.receiver.init([next(k for k in range(9) if k not in own)], 128),
    ),
    "a block twice": (
        "embedding_indices: ... are not blocks of this request, each once",
        lambda t, own: t.receiver.init([own[0]] * 2),
    ),
    "more blocks than the window": ("65 blocks held > window of 9", lambda t, own: t.receiver.init(own[:1] * 65)),
    "more tokens than the blocks hold": (
        "allocated_tokens: 257 does not end in the last of 2 blocks of 128 tokens; expected 129 to 256",
        lambda t, own: t.receiver.init(own, 257),
    ),
    "tokens that leave a block empty": (
        "allocated_tokens: 128 does not end in the last of 2",
        lambda t, own: t.receiver.init(own, 128),
    ),
    "tokens without a block": (
        "allocated_tokens: 1 does not end in the last of 0 blocks",
        lambda t, own: t.receiver.init([], 1),
    ),
    "fewer tokens than 0": ("allocated_tokens: -1 is outside 0 to 4294967295", lambda t, own: t.receiver.init(own, -1)),
    "more sent than has landed": (
        "sent_tokens: 129 > 0 tokens that have landed",
        lambda t, own: t.receiver.resume_transfer(own, 129),
    ),
    "less sent than nothing": ("sent_tokens: -1 is outside 0 to", lambda t, own: t.receiver.resume_transfer(own, -1)),
    "rows given back that never came": (
        "num_tokens: 1 > 0 tokens that have landed",
        lambda t, own: t.receiver.release_drained(1),
    ),
}


@pytest.mark.parametrize("what", GRANTS)
def test_a_grant_that_does_not_fit_is_a_value_error_and_the_request_goes_on_with_a_good_one(
    bench: Bench, what: str
) -> None:
    """R1, R2, D15."""
    text, grant = GRANTS[what]
    room = next(bench.rooms)
    with bench.unharmed():
        transfer = ByHand(bench.receiving, bench.addr, room)
        sending = open_sender(bench.sending, room, TOTAL)
        assert give(sending)
        wait_until(lambda: transfer.receiver.handshake_done)
        own = transfer.receiver.allocate(2).tolist()
        with pytest.raises(ValueError, match=says(text)):
            grant(transfer, own)
        assert (transfer.receiver.granted_tokens, transfer.receiver.num_rounds) == (0, 0)
        transfer.receiver.init(own, 256)
        with pytest.raises(ValueError, match="init: blocks were granted already; use resume_transfer"):
            transfer.receiver.init(own, 256)
        transfer.wait_sent(256)
        transfer.copy_out(256)
        transfer.grant(1, TOTAL - 256)
        received = transfer.finish(TOTAL)
        assert (received.difference, received.rounds) == ("", 2)
        assert ended(sending).error == ""


def test_a_receiver_that_was_cleared_takes_no_grant_and_frees_nothing(bench: Bench) -> None:
    """D2: its slot may be another request's by now."""
    with bench.unharmed():
        receiver = bench.receiving.receiver(bench.addr, next(bench.rooms))
        receiver.clear()
        wait_until(lambda: receiver._final is not None)
        with pytest.raises(ValueError, match="this receiver was cleared; it takes no more grants"):
            receiver.init([1], 128)
        assert receiver.release_drained(1 << 20) == 0
        assert len(receiver.allocate(1)) == 0


@pytest.mark.parametrize(
    "reason", ["\udcff", "x" * 1000, "é" * 100, None], ids=["no UTF-8", "too long", "cut in a letter", "no text"]
)
def test_any_reason_for_an_abort_reaches_the_other_side(bench: Bench, reason: Any) -> None:
    with bench.unharmed():
        room = next(bench.rooms)
        bench.queues.add(bench.addr, room)
        sending = open_sender(bench.sending, room, TOTAL)
        wait_until(lambda: sending.poll().name == "WaitingForInput")
        sending.abort(reason)
        assert ended(sending).error == "TransferAborted"
        assert bench.queues.take(room, 20).error == "TransferAborted"


def test_integers_of_the_other_byte_order_are_taken() -> None:
    """They convert without loss."""
    geometry = Geometry(hidden_size=8, block_size=4, num_blocks=1)
    rows = rows_of(geometry, 1, 0, 5)
    ids = rows.fill_ids.numpy()
    given = given_rows(
        geometry, 0, rows.input_embeddings, ids.astype(">i4"), rows.mrope_positions.numpy().astype(">i8"), None
    )
    assert given.chunk(0, 5).data["fill_ids"].tobytes() == ids.tobytes()
    assert given.chunk(0, 5).data["mrope_positions"].tobytes() == rows.mrope_positions.numpy().tobytes()
