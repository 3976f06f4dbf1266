"""Nodes whose rows have no ids, no positions, or elements of one byte: nothing else travels for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.nodes import Station, every_engine, station
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import EmbeddingRequest, attach
from embridge.allocator.errors import FailureCode

pytestmark = pytest.mark.process

HIDDEN = 64


def rows(total: int, dtype: str) -> torch.Tensor:
    """(total, hidden) of any bytes; those of a row say which it is."""
    at, column = torch.arange(total).view(-1, 1), torch.arange(HIDDEN * getattr(torch, dtype).itemsize)
    return (at * 7 + column + (at >> 8)).to(torch.uint8).view(getattr(torch, dtype))


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def pair(own_dir: Path, engine: str, **geometry: Any) -> tuple[Any, Any]:
    made = (station(role, own_dir / role[0], engine=engine, **geometry) for role in ("encode", "language"))
    return tuple(made)  # type: ignore[return-value]


@every_engine
def test_rows_without_ids_and_positions_arrive(own_dir: Path, engine: str, room: int) -> None:
    """P6."""
    send_both(own_dir, engine, room, "bfloat16", ids=False, positions=False)


@pytest.mark.parametrize(("dtype", "ids", "positions"), [("float8_e4m3fn", True, False), ("int8", False, True)])
def test_rows_of_one_byte_an_element_arrive(
    own_dir: Path, room: int, dtype: str, ids: bool, positions: bool
) -> None:
    """P6."""
    send_both(own_dir, "shm", room, dtype, ids=ids, positions=positions)


def send_both(own_dir: Path, engine: str, room: int, dtype: str, *, ids: bool, positions: bool) -> None:
    """In one round, lent; and in several, drained through fewer blocks than they need."""
    geometry = {"dtype": dtype, "fill_ids": ids, "mrope_positions": positions, "default_allocate_tokens": 512}
    there, here = pair(own_dir, engine, **geometry)
    with there as encode, here as language, attach(encode.run_dir) as sending, attach(language.run_dir) as client:
        queues = Queues(client)
        assert client.geometry.token_bytes == HIDDEN * getattr(torch, dtype).itemsize + 4 * ids + 12 * positions
        for number, total in enumerate((300, 2500)):
            request = queues.add(encode.addr, room + number)
            given_ids = torch.arange(total, dtype=torch.int32) if ids else None
            given_positions = torch.arange(3 * total, dtype=torch.int32).view(total, 3) if positions else None
            assert sending.sender(room + number, total).send_embedding(rows(total, dtype), given_ids, given_positions)
            queues.wait(room + number, 30)
            check(request, rows(total, dtype), fill_ids=given_ids, mrope_positions=given_positions)
            request.release()


def check(request: EmbeddingRequest, sent: torch.Tensor, **given: torch.Tensor | None) -> None:
    assert request.result is not None
    assert request.result.input_embeddings.dtype == sent.dtype
    assert torch.equal(bytes_of(request.result.input_embeddings), bytes_of(sent))
    for name, right in given.items():
        seen = getattr(request.result, name)
        assert (seen is None) == (right is None)
        assert right is None or torch.equal(seen, right)


@pytest.mark.parametrize("engine", ["shm"], indirect=True, scope="session")
def test_nodes_whose_rows_have_other_buffers_do_not_register(own_dir: Path, encode: Station, room: int) -> None:
    """P16: the request fails with what to change."""
    with (
        station("language", own_dir / "l", engine="shm", deepstack_layers=3, fill_ids=False) as other,
        attach(other.run_dir) as client,
    ):
        request = Queues(client).add(encode.addr, room)
        wait_until(lambda: request.failure is not None or client.poll() is None, 20, lambda: f"{request} ended")
        assert request.failure is not None
        assert request.failure.code == FailureCode.REFUSED
        assert "fill_ids: language False, encode True; launch both with the same" in str(request.failure)
