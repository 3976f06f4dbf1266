"""Copies within host memory: whatever tensor is given, its values come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from embridge.pipeline.client.host_copies import copy_for_others, copy_rows, fresh_copy

KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda rows: rows,
    "of every second row": lambda rows: rows[::2],
    "transposed": lambda rows: rows.t(),
    "expanded": lambda rows: rows[:1].expand(5, -1),
    "with a gradient": lambda rows: rows.float().requires_grad_().detach(),
    "of another dtype": lambda rows: rows.double(),
    "conjugated": lambda rows: torch.complex(rows.float(), rows.float()).conj(),
    "negated": lambda rows: torch.complex(rows.float(), rows.float()).conj().imag,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_are_copied(kind: str) -> None:
    rows = KINDS[kind](torch.randn(6, 4).bfloat16())
    there = torch.zeros(rows.shape, dtype=rows.dtype)
    copy_rows(there, rows)
    assert torch.equal(there, rows)
    assert torch.equal(fresh_copy(rows), rows)
    assert fresh_copy(rows).is_contiguous()


def test_values_are_converted_where_the_dtypes_differ() -> None:
    there = torch.zeros(2, 3, dtype=torch.float32)
    copy_rows(there, torch.ones(2, 3, dtype=torch.int32))
    assert there.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 5, 7), (300, 1021)])  # the last one goes past the cache
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.bool, torch.float64])
def test_rows_for_others_are_copied_as_bytes_from_wherever_they_lie(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rows = torch.randn(2, *shape).to(dtype)[1:].view(shape)
    there = np.zeros(rows.nbytes + 2, np.uint8)
    assert copy_for_others(there[1:-1], rows)
    assert torch.equal(torch.from_numpy(there[1:-1].copy()).view(dtype).view(shape), rows)
    assert (there[0], there[-1]) == (0, 0)
    assert not copy_for_others(there[1:-1], rows.expand(2, *shape).transpose(0, 1))
