"""Copies within host memory, by the thread that asks for them alone.

Torch spreads a copy over as many threads as the machine has cores, and waits for the last. Beside a model and its
server those cores are busy, and the last one comes a time slice later: 10 ms, where one thread copies 9 MB in 2.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embridge.allocator._core import copy

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]


def why_no_rows(tensor: torch.Tensor) -> str:
    """What kind of tensor this is, if it is one that has no rows in memory; else empty."""
    import torch

    if tensor.is_meta:
        return "a meta tensor, which has no data"
    if tensor.is_nested:
        return "a nested tensor"
    return "" if tensor.layout == torch.strided else f"a tensor of layout {tensor.layout}"


def copy_rows(there: torch.Tensor, rows: torch.Tensor) -> None:
    """Copy a tensor, on whichever device, into one of the same shape that is contiguous in host memory."""
    if rows.dtype == there.dtype and _is_plain(rows):
        np.copyto(_bytes(there), _bytes(rows))
    else:
        there.copy_(rows)


def copy_for_others(there: Bytes, rows: torch.Tensor) -> bool:
    """Copy a tensor into its bytes, if it lies in host memory as they do; whether it does. Other processes read them,
    so what is large goes past the cache of this one, in half of the time.
    """
    import torch

    if is_plain := _is_plain(rows):
        copy(there, rows.view(torch.uint8).numpy(), pack("3q", 0, 0, rows.nbytes), 1)
    return is_plain


def fresh_copy(rows: torch.Tensor) -> torch.Tensor:
    """A copy of rows in host memory. Numpy asks for huge pages, of which the kernel needs to zero and map few: a fifth
    of the time of torch's.
    """
    import torch

    there = torch.from_numpy(np.empty(rows.nbytes, np.uint8)).view(rows.dtype).view(rows.shape)
    copy_rows(there, rows)
    return there


def _is_plain(rows: torch.Tensor) -> bool:
    import torch

    is_dense = rows.device.type == "cpu" and rows.layout == torch.strided and rows.is_contiguous()
    return is_dense and not rows.is_conj() and not rows.is_neg()


def _bytes(rows: torch.Tensor) -> Bytes:
    import torch

    found: Bytes = rows.flatten().view(torch.uint8).numpy()
    return found
