"""Rows that are written with no second look: what is taken for plain lies where it says, and all else is looked at."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch

from embridge.allocator._core import PlainRows
from embridge.allocator.buffers import pools
from embridge.allocator.geometry import Geometry
from embridge.pipeline.client.given_rows import given_rows, plain_rows

N: Final = 5
GEOMETRIES: Final = {
    "all buffers": Geometry(hidden_size=8, num_blocks=4, deepstack_layers=2),
    "no deepstack": Geometry(hidden_size=8, num_blocks=4),
    "embeddings alone": Geometry(hidden_size=8, num_blocks=4, fill_ids=False, mrope_positions=False),
}
ALL: Final = GEOMETRIES["all buffers"]


def rows(geometry: Geometry, count: int = N) -> list[Any]:
    """Embeddings, ids, positions and deepstack rows, as `given_rows` takes them."""
    layers = geometry.deepstack_layers
    return [
        torch.randn(count, geometry.hidden_size).to(torch.bfloat16),
        torch.arange(count, dtype=torch.int32) if geometry.fill_ids else None,
        torch.arange(3 * count, dtype=torch.int32).reshape(count, 3) if geometry.mrope_positions else None,
        torch.randn(count, layers, geometry.hidden_size).to(torch.bfloat16) if layers else None,
    ]


def span_of(geometry: Geometry, first: int, embeddings: Any, ids: Any, positions: Any, deepstack: Any) -> Any:
    return plain_rows(geometry).span(first, embeddings, deepstack, positions, ids)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_plain_rows_lie_where_the_span_says(name: str, with_gradient: bool) -> None:
    """P6, P22: the same bytes that a second look finds, in the order of the pools."""
    geometry = GEOMETRIES[name]
    given = rows(geometry)
    given[0].requires_grad_(with_gradient)
    span = span_of(geometry, 7, *given)
    assert span is not None
    assert span[:2] == [7, 7 + N]
    chunk = given_rows(geometry, 7, *given).chunk(7, 7 + N)
    for address, pool in zip(span[2:], pools(geometry), strict=True):
        assert ctypes.string_at(address, N * pool.row_bytes) == chunk.data[pool.name].tobytes()


def test_a_part_of_a_tensor_is_plain_if_its_rows_lie_together() -> None:
    whole = rows(ALL, 9)
    part = [it[2:7] for it in whole]
    span = span_of(ALL, 0, *part)
    assert span is not None
    assert span[2:] == [part[i].data_ptr() for i in (0, 3, 2, 1)]


class Subclass(torch.Tensor):
    """Whose methods may do anything."""


ODD: Final[dict[str, Callable[[torch.Tensor], Any]]] = {
    "negative": torch._neg_view,
    "zeroes that lie nowhere": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "a subclass": lambda t: t.as_subclass(Subclass),
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "without data": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "backwards": lambda t: t.T.contiguous().T if t.ndim == 2 else t.flip(0)[::2],
    "of another type": lambda t: t.to(torch.float64),
    "short": lambda t: t[1:],
    "an array": lambda t: t.float().numpy(),
    "a list": lambda t: t.tolist(),
    "flat": lambda t: t.reshape(-1) if t.ndim > 1 else t.reshape(-1, 1),
    "missing": lambda t: None,
    "empty": lambda t: t[:0],
    "a number": lambda t: t.reshape(-1)[0],
}


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_plain_is_looked_at_again(kind: str, which: int) -> None:
    """B12, P22: each kind of tensor, in each place; some of it converts, and some is an error then."""
    given = rows(ALL)
    given[which] = ODD[kind](given[which])
    assert span_of(ALL, 0, *given) is None


def test_tensors_of_which_a_transformation_has_taken_the_data_are_looked_at_again() -> None:
    """B12: such as torch.vmap makes, whose type is that of any other."""
    found: list[Any] = []
    _, ids, positions, deepstack = rows(ALL)

    def look(embeddings: torch.Tensor) -> torch.Tensor:
        found.append(span_of(ALL, 0, embeddings, ids, positions, deepstack))
        return embeddings

    torch.vmap(look)(torch.randn(2, N, ALL.hidden_size).to(torch.bfloat16))
    assert found == [None]


def test_a_buffer_that_the_nodes_do_not_have_is_looked_at_again() -> None:
    for name, without in GEOMETRIES.items():
        if name != "all buffers":
            assert span_of(without, 0, *rows(ALL)) is None


def test_empty_rows_are_looked_at_again() -> None:
    assert span_of(ALL, 0, *rows(ALL, 0)) is None
    assert span_of(ALL, 0, np.zeros((N, 8), np.float32), None, None, None) is None


def test_what_a_signal_handler_raises_meanwhile_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(torch.Tensor):
        @property
        def dtype(self) -> torch.dtype:  # type: ignore[override]
            raise KeyboardInterrupt

    plain = PlainRows(Interrupted, ((torch.float32, (8,)),))
    with pytest.raises(KeyboardInterrupt):
        plain.span(0, torch.zeros(N, 8).as_subclass(Interrupted))


def test_kinds_that_do_not_fit_are_a_value_error() -> None:
    for kinds in ((), (None,), ((torch.float32, (1,) * 5),), ((torch.float32, (1,)),) * 9):
        with pytest.raises(ValueError, match="kinds"):
            PlainRows(torch.Tensor, kinds)
    with pytest.raises(ValueError, match="kinds: a dimension of -1"):  # which a failed look at a shape would fit
        PlainRows(torch.Tensor, ((torch.float32, (-1,)),))
    with pytest.raises(TypeError, match="kinds: 5"):
        PlainRows(torch.Tensor, (5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes 3 positional"):
        PlainRows(torch.Tensor, ((torch.float32, (1,)), None)).span(0, None)
