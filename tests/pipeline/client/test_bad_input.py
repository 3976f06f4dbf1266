"""P15, B6: every bad input is one clear error that says what was seen, and leaves nothing behind: the same clients go
on.

Each table reads: what is wrong | what the error says | how it is done. Settings are in `test_config.py`, nodes that do
not fit together and places that cannot be used in `test_bad_nodes.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.encoding import ended, give, open_sender
from support.nodes import Station
from support.rows import Rows, rows_of
from support.scheduling import ByHand, Queues
from support.waiting import wait_until
from support.watched import is_all_watched

from embridge import Client, EmbeddingRequest, attach
from embridge.allocator.geometry import MAX_TOKENS, Geometry
from embridge.pipeline.client.given_rows import given_rows

pytestmark = pytest.mark.process

TOTAL = 300  # tokens of a request in these tests: three blocks of the nodes' 128
WATCHED = ("launcher", "bootstrap", "poller")


class Bench:
    """A client on either side of the shared nodes, and room numbers."""

    def __init__(
        self, encode: Station, language: Station, sending: Client, queues: Queues, rooms: Iterator[int]
    ) -> None:
        self.encode = encode
        self.language = language
        self.sending = sending
        self.queues = queues
        self.rooms = rooms
        self.addr = encode.addr

    @property
    def receiving(self) -> Client:
        return self.queues.client

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """What is done meanwhile takes no block, slot or descriptor for good, ends no process, and the next good
        request arrives.
        """
        nodes = (self.encode, self.language)
        wait_until(
            lambda: all(map(is_all_watched, nodes)), what="two threads watched of each who is connected, no other"
        )
        before, restarts = self._descriptors(), self._restarts()
        yield
        self.good_request()
        assert self._restarts() == restarts
        wait_until(lambda: not self._descriptors() - before, 5.0, lambda: f"{self._descriptors() - before} are left")

    def good_request(self) -> None:
        room = next(self.rooms)
        self.queues.add(self.addr, room)
        assert give(open_sender(self.sending, room, TOTAL))
        assert self.queues.take(room, 20).difference == ""
        self.encode.wait_idle()
        self.language.wait_idle()

    def _descriptors(self) -> Counter[str]:
        """What the processes of the nodes have open, by process and kind."""
        found: Counter[str] = Counter()
        for node in (self.encode, self.language):
            for name in WATCHED:
                for link in Path(f"/proc/{node.pid_of(name)}/fd").iterdir():
                    with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                        found[f"{node.control.role.name} {name}: {os.readlink(link).split('[')[0]}"] += 1
        return found

    def _restarts(self) -> list[dict[str, int]]:
        return [self.encode.restarts(), self.language.restarts()]


@pytest.fixture(scope="module")
def bench(encode: Station, language: Station, _rooms: Iterator[int]) -> Iterator[Bench]:
    with attach(encode.run_dir) as sending, attach(language.run_dir) as receiving:
        bench = Bench(encode, language, sending, Queues(receiving), _rooms)
        for _ in range(encode.control.limits.num_workers):  # one for each: what they make on first use is there
            bench.good_request()
        yield bench


def says(text: str) -> str:
    """A pattern for pytest: the text, with `...` for anything."""
    return ".*".join(re.escape(part) for part in text.split("..."))


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
        wait_until(lambda: bench.encode.in_flight())
        with attach(bench.encode.run_dir) as other:
            second = ended(open_sender(other, room, TOTAL))
        assert second.reason == f"room {room} is in use by another sender of this node"
        bench.queues.add(bench.addr, room)
        assert give(first)
        assert bench.queues.take(room, 20).difference == ""

    try_both()  # a lane's first user has its doorbell made
    with bench.unharmed():
        try_both()


# ---- rows


def but(**changes: Callable[[Any], Any]) -> Callable[[Rows], dict[str, Any]]:
    """Good rows, but for what these functions make of some of them."""

    def make(rows: Rows) -> dict[str, Any]:
        given = {"start": 0, **rows._asdict()}
        return {name: changes[name](value) if name in changes else value for name, value in given.items()}

    return make


def every(change: Callable[[Any], Any], **others: Callable[[Any], Any]) -> Callable[[Rows], dict[str, Any]]:
    return but(**dict.fromkeys(Rows._fields, change), **others)


WRITES = {
    "embeddings of another dtype": (
        "input_embeddings: dtype torch.float16 is not torch.bfloat16",
        but(input_embeddings=lambda t: t.to(torch.float16)),
    ),
    "embeddings that are a list": ("input_embeddings: list is no tensor", but(input_embeddings=lambda t: [[1.0]])),
    "embeddings of another width": (
        "input_embeddings: shape (300, 63) is not (n, 64)",
        but(input_embeddings=lambda t: t[:, :63]),
    ),
    "embeddings with a batch": (
        "input_embeddings: shape (1, 300, 64) is not (n, 64)",
        but(input_embeddings=lambda t: t[None]),
    ),
    "a single number": ("input_embeddings: shape () is not (n, 64)", but(input_embeddings=lambda t: t[0, 0])),
    "no rows": ("input_embeddings: 0 rows; give at least one", every(lambda t: t[:0])),
    "embeddings that are columns": (
        "input_embeddings: shape (64, 300) is not (n, 64); these are columns: give input_embeddings.T",
        but(input_embeddings=lambda t: t.T),
    ),
    "embeddings without data": (
        "input_embeddings: a meta tensor, which has no data",
        but(input_embeddings=lambda t: t.to("meta")),
    ),
    "sparse embeddings": (
        "input_embeddings: a tensor of layout torch.sparse_coo",
        but(input_embeddings=lambda t: t.to_sparse()),
    ),
    "compressed embeddings": (
        "input_embeddings: a tensor of layout torch.sparse_csr",
        but(input_embeddings=lambda t: t.to_sparse_csr()),
    ),
    "quantized embeddings": (
        "input_embeddings: dtype torch.quint8 is not torch.bfloat16",
        but(input_embeddings=lambda t: torch.quantize_per_tensor(torch.zeros(t.shape), 0.1, 0, torch.quint8)),
    ),
    "complex embeddings": (
        "input_embeddings: dtype torch.complex64 is not torch.bfloat16",
        but(input_embeddings=lambda t: torch.zeros(t.shape, dtype=torch.complex64).conj()),
    ),
    "nested embeddings": ("input_embeddings: ", but(input_embeddings=lambda t: torch.nested.nested_tensor([t, t[1:]]))),
    "ids beyond 32 bits": (
        "fill_ids: 2147483648 is outside int32",
        but(fill_ids=lambda t: torch.full((len(t),), 1 << 31)),
    ),
    "ids without a sign beyond 32 bits": (
        "fill_ids: 18446744073709551615 is outside int32",
        but(fill_ids=lambda t: np.full(len(t), (1 << 64) - 1, np.uint64)),
    ),
    "ids that are truths": (
        "fill_ids: dtype torch.bool is no integer; give torch.int32",
        but(fill_ids=lambda t: t > 0),
    ),
    "ids without data": ("fill_ids: a meta tensor, which has no data", but(fill_ids=lambda t: t.to("meta"))),
    "sparse positions": (
        "mrope_positions: a tensor of layout torch.sparse_coo",
        but(mrope_positions=lambda t: t.to_sparse()),
    ),
    "fewer ids than rows": ("fill_ids: shape (299,) is not (300,)", but(fill_ids=lambda t: t[1:])),
    "ids that are words": (
        "fill_ids: dtype <U1 is no integer; give torch.int32",
        but(fill_ids=lambda t: ["a"] * len(t)),
    ),
    "ids that are no numbers": ("fill_ids: ...object", but(fill_ids=lambda t: [None] * len(t))),
    "two position axes": ("mrope_positions: shape (300, 2) is not (300, 3)", but(mrope_positions=lambda t: t[:, :2])),
    "positions that are fractions": (
        "mrope_positions: dtype torch.float32 is no integer; give torch.int32",
        but(mrope_positions=lambda t: t.float()),
    ),
    "no deepstack rows": (
        "deepstack_embeddings: missing; this node's geometry has 3 deepstack layers",
        but(deepstack_embeddings=lambda t: None),
    ),
    "deepstack rows of 2 layers": (
        "deepstack_embeddings: shape (300, 2, 64) is not (300, 3, 64)",
        but(deepstack_embeddings=lambda t: t[:, :2]),
    ),
    "rows that do not begin at the first": (
        "start: 1 is not 0, the number of rows given so far",
        every(lambda t: t[1:], start=lambda _: 1),
    ),
    "rows before the first": ("start: -1 is outside 0 to 4294967295", but(start=lambda _: -1)),
    "rows beyond the length": ("rows: 301 > 300 tokens that this request was opened with", but(start=lambda _: 1)),
}


# torch's, as they are made
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:.*quantiz")
@pytest.mark.parametrize("what", WRITES)
def test_rows_that_do_not_fit_are_a_value_error_and_the_request_goes_on_with_good_ones(bench: Bench, what: str) -> None:
    text, make = WRITES[what]
    room = next(bench.rooms)
    rows = rows_of(bench.sending.geometry, room, 0, TOTAL)
    bench.queues.add(bench.addr, room)
    sending = open_sender(bench.sending, room, TOTAL)
    with pytest.raises(ValueError, match=says(text)):
        sending.write(**make(rows))
    assert give(sending)
    assert bench.queues.take(room, 20).difference == ""
    bench.encode.wait_idle()
    bench.language.wait_idle()


@pytest.mark.parametrize(
    "number", [np.int64, np.uint32, torch.tensor], ids=["numpy", "numpy, without a sign", "a tensor's element"]
)
def test_any_type_of_integer_is_taken_for_a_number(bench: Bench, number: Callable[[int], Any]) -> None:
    """By sender, receiver and queues alike, from the room to the last grant."""
    with bench.unharmed():
        room = next(bench.rooms)
        seconds: Any = np.float32(60)
        rows = rows_of(bench.sending.geometry, room, 0, TOTAL)
        transfer = ByHand(bench.receiving, bench.addr, number(room))
        sending = bench.sending.sender(number(room), number(TOTAL), mrope_position_delta=number(7), timeout_s=seconds)
        assert sending.write(number(0), *rows)
        wait_until(lambda: transfer.receiver.handshake_done)
        blocks: Any = torch.from_numpy(transfer.receiver.allocate(number(2)).astype(np.int64))
        transfer.receiver.init(blocks, number(256))
        transfer.wait_sent(256)
        assert transfer.receiver.release_drained(number(256)) == 2
        transfer.receiver.resume_transfer(transfer.receiver.allocate(number(1)), number(256), number(TOTAL - 256))
        transfer.wait_sent(TOTAL)
        assert transfer.receiver.total_embedding_length == TOTAL
        transfer.receiver.clear()
        assert ended(sending).error == ""
        room = next(bench.rooms)
        seconds = np.int64(60)
        bench.queues.requests[room] = bench.queues.add(bench.addr, number(room), required=number(1), timeout_s=seconds)
        assert give(open_sender(bench.sending, room, TOTAL))
        assert bench.queues.take(room, 20).difference == ""


def test_all_rows_at_once_must_be_as_many_as_announced(bench: Bench) -> None:
    room = next(bench.rooms)
    rows = rows_of(bench.sending.geometry, room, 0, TOTAL)
    bench.queues.add(bench.addr, room)
    sending = open_sender(bench.sending, room, TOTAL)
    for given, text in (
        (rows.input_embeddings[1:], "299 rows, the request was opened with 300"),
        (rows[0].T, "these are columns"),
    ):
        with pytest.raises(ValueError, match=text):
            sending.send_embedding(given, *rows[1:])
    with pytest.raises(ValueError, match="input_embeddings: NoneType is no tensor"):
        sending.send_embedding(None, *rows[1:])  # type: ignore[arg-type]
    assert sending.send_embedding(*rows)
    assert bench.queues.take(room, 20).difference == ""


def test_deepstack_rows_for_a_node_that_has_none_are_a_value_error() -> None:
    geometry = Geometry(hidden_size=64, deepstack_layers=0)
    rows = rows_of(geometry, 1, 0, 5)
    with pytest.raises(
        ValueError, match="deepstack_embeddings: given, but this node's geometry has no deepstack layers"
    ):
        given_rows(geometry, 0, *rows[:3], torch.zeros(5, 3, 64, dtype=torch.bfloat16))


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same rows, each beside rows of something else."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 77, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "every second element": lambda rows: Rows(*(strided(t) for t in rows)),
    "columns first": lambda rows: Rows(*(t.T.contiguous().T if t.ndim == 2 else strided(t) for t in rows)),
    "one row of a larger tensor": lambda rows: Rows(*(torch.stack([t, t + 1], 1)[:, 0] for t in rows)),
    "numpy, backwards": lambda rows: Rows(
        rows[0], rows[1].numpy()[::-1].copy()[::-1], rows[2].numpy()[::-1].copy()[::-1], rows[3]
    ),
    "positions the other way round": lambda rows: Rows(rows[0], rows[1], rows[2].T.contiguous(), rows[3]),
    "ids and positions of 64 bits": lambda rows: Rows(
        rows[0], rows[1].long(), rows[2].numpy().astype(np.int64).T, rows[3]
    ),
    "numpy, read-only": lambda rows: (
        rows[0],
        *(np.frombuffer(t.numpy().tobytes(), np.int32).reshape(t.shape) for t in rows[1:3]),
        rows[3],
    ),
    "with a gradient": lambda rows: (rows[0].clone().requires_grad_(), *rows[1:3], rows[3].clone().requires_grad_()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_not_contiguous_are_copied_and_arrive_right(bench: Bench, layout: str) -> None:
    room = next(bench.rooms)
    rows = LAYOUTS[layout](rows_of(bench.sending.geometry, room, 0, TOTAL))
    bench.queues.add(bench.addr, room)
    assert open_sender(bench.sending, room, TOTAL).write(0, *rows)
    assert bench.queues.take(room, 20).difference == ""


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
