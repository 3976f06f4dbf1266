"""P15, B6: every tensor of rows that does not fit is one clear error that says what was seen, and the request goes on.

Each table reads: what is wrong | what the error says | how it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.encoding import ended, give, open_sender
from support.rows import Rows, rows_of
from support.scheduling import ByHand
from support.unharmed import TOTAL, Bench, says
from support.waiting import wait_until

from embridge.allocator.geometry import Geometry
from embridge.pipeline.client.given_rows import given_rows

pytestmark = pytest.mark.process


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
