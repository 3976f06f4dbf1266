"""Copies rows that have come into a tensor of the caller's: one copy, from where they lie."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import torch

from embridge.pipeline.client.host_copies import why_no_rows

BUFFERS: Final = ("input_embeddings", "fill_ids", "mrope_positions", "deepstack_embeddings")


class CopiedRows:
    """Rows that can be copied: those of a result, or of a chunk."""

    __slots__ = ()

    def copy_to(self, tensor: torch.Tensor, stream: Any = None, *, buffer: str = "input_embeddings") -> None:
        """Copy the rows of one buffer into a tensor of the same shape and dtype, without another copy between.

        `tensor` may be part of a larger one, with any strides, on any device. Into one on a GPU the copy is made on
        `stream` (a torch.cuda.Stream; default: the current one). Where the client has pinned its node's payload
        (`Client.pinned`), this returns before it has ended: release the request only when the stream has done it.
        `buffer` is one of input_embeddings, fill_ids, mrope_positions, deepstack_embeddings.

        Raises:
            ValueError: the node's geometry has no such buffer; or the tensor's shape, dtype or kind is another one; or
                a stream is given for a tensor that is not on a GPU.
        """
        if buffer not in BUFFERS:
            raise ValueError(f"buffer: {buffer!r} is none of {', '.join(BUFFERS)}")
        rows: torch.Tensor | None = getattr(self, buffer)
        if rows is None:
            raise ValueError(f"buffer: this node's geometry has no {buffer}")
        _check(tensor, rows)
        is_on_gpu = tensor.is_cuda
        if stream is not None and not is_on_gpu:
            raise ValueError(f"stream: given for a tensor on {tensor.device}; leave it out, or give one on a GPU")
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            tensor.detach().copy_(rows, non_blocking=is_on_gpu)


def _check(tensor: Any, rows: torch.Tensor) -> None:
    shape, dtype = tuple(rows.shape), rows.dtype
    remedy = f"give torch.empty({shape}, dtype={dtype}), or as much of a larger one"
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"tensor: {type(tensor).__name__} is no tensor; {remedy}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"tensor: shape {tuple(tensor.shape)} is not {shape}; {remedy}")
    if tensor.dtype != dtype:
        raise ValueError(f"tensor: dtype {tensor.dtype} is not {dtype}; {remedy}")
    kind = why_no_rows(tensor)
    if not kind and any(size > 1 and not stride for size, stride in zip(shape, tensor.stride(), strict=True)):
        kind = "a tensor whose rows lie in the same memory"
    if kind:
        raise ValueError(f"tensor: {kind}; {remedy}")
