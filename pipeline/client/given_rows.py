"""The rows that a caller gives: checked against the node's geometry, and seen as bytes per token and buffer.

What converts without loss is taken: ids and positions of any integer type whose values are within int32, positions the
other way round (3, n), tensors on a device, with a gradient, with any strides. All else is a ValueError that says what
to give.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator._core import Mapping, copy
from embridge.allocator.buffers import pools
from embridge.allocator.geometry import AUX_WORDS, POSITION_AXES, Geometry
from embridge.pipeline.arguments import whole

Bytes = npt.NDArray[np.uint8]

INT32: Final = np.iinfo(np.int32)
INTEGERS: Final = frozenset(
    getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
)  # not those that are quantized
MAX_SAID: Final = 200


class Chunk(NamedTuple):
    """Rows [first, end): a flat byte view of each buffer, by pool name."""

    first: int
    end: int
    data: dict[str, Bytes]


class Given(NamedTuple):
    """Rows [first, end) as the caller gave them: checked, and not copied yet.

    `data`, by pool name: the bytes themselves where they lie one after the other in host memory; else the tensor.
    """

    first: int
    end: int
    data: dict[str, Bytes | torch.Tensor]

    def lent(self) -> Chunk:
        """All of them, as they lie; ids and positions that are none of the caller's int32 are ours already.

        Raises:
            ValueError: embeddings do not lie in host memory one after the other, so there is nothing to lend.
        """
        for name in ("input_embeddings", "deepstack_embeddings"):
            if isinstance(self.data.get(name), torch.Tensor):
                raise ValueError(
                    f"{name}: borrow=True needs a contiguous tensor in host memory; give .cpu().contiguous(), or do not"
                )
        return self.chunk(self.first, self.end)

    def chunk(self, first: int, end: int) -> Chunk:
        """Rows [first, end) of them as bytes. What is not contiguous, or on a device, is copied to the host here."""
        num_rows, low, high = self.end - self.first, first - self.first, end - self.first
        data: dict[str, Bytes] = {}
        for name, rows in self.data.items():
            if isinstance(rows, torch.Tensor):
                data[name] = _bytes_of(rows[low:high])
            else:
                row_bytes = rows.nbytes // num_rows
                data[name] = rows[low * row_bytes : high * row_bytes]
        return Chunk(first, end, data)


def given_rows(
    geometry: Geometry,
    first: int,
    input_embeddings: Any,
    fill_ids: Any,
    mrope_positions: Any,
    deepstack_embeddings: Any,
) -> Given:
    """Check what a caller gave.

    Raises:
        ValueError: a dtype, shape, length or kind of tensor is none that the node's geometry can take.
    """
    hidden, layers = geometry.hidden_size, geometry.deepstack_layers
    rows = _embeddings(geometry, input_embeddings)
    count = len(rows.tensor)
    data = {
        "input_embeddings": rows.data,
        "fill_ids": _integers("fill_ids", fill_ids, (count,)),
        "mrope_positions": _integers("mrope_positions", mrope_positions, (count, POSITION_AXES)),
    }
    if layers:
        if deepstack_embeddings is None:
            raise ValueError(f"deepstack_embeddings: missing; this node's geometry has {layers} deepstack layers")
        deepstack = _Rows.of("deepstack_embeddings", deepstack_embeddings, getattr(torch, geometry.dtype))
        _check_shape("deepstack_embeddings", deepstack.tensor, (count, layers, hidden))
        data["deepstack_embeddings"] = deepstack.data
    elif deepstack_embeddings is not None:
        raise ValueError("deepstack_embeddings: given, but this node's geometry has no deepstack layers")
    return Given(first, first + count, data)


def aux_words(aux_datas: Any, total_tokens: int, mrope_position_delta: int) -> npt.NDArray[np.int32]:
    """The 16 auxiliary words: [0] total length, [1] mrope_position_delta, the rest the caller's.

    Raises:
        ValueError: a shape, a type or a value is none that fits.
    """
    words = np.zeros(AUX_WORDS, np.int32)
    if aux_datas is not None:
        try:
            given = np.asarray(aux_datas)
        except ValueError as error:
            raise ValueError(f"aux_datas: {error}") from error
        if given.shape != (AUX_WORDS,) or given.dtype.kind not in "iu":
            raise ValueError(f"aux_datas: shape {given.shape} dtype {given.dtype} is not ({AUX_WORDS},) of integers")
        if given.min() < INT32.min or given.max() > INT32.max:
            raise ValueError(f"aux_datas: {given.min()} to {given.max()} is outside int32")
        words[:] = given
    delta = whole("mrope_position_delta", mrope_position_delta, INT32.min, INT32.max)
    words[0], words[1] = min(total_tokens, INT32.max), delta
    return words


def num_rows(geometry: Geometry, input_embeddings: Any) -> int:
    """How many rows a caller gave. Raises ValueError for what is no tensor of rows of this geometry."""
    return len(_embeddings(geometry, input_embeddings).tensor)


class _Rows(NamedTuple):
    """A tensor whose bytes can be had, and the bytes, where they lie one after the other in host memory."""

    tensor: torch.Tensor
    data: Bytes | torch.Tensor

    @classmethod
    def of(cls, name: str, value: Any, dtype: torch.dtype | None = None) -> _Rows:
        """Of that dtype, or of integers. Nothing is copied, but one row, to see that it can be."""
        try:
            tensor = value if isinstance(value, torch.Tensor) else _tensor_of(value, is_integer=dtype is None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: {_said(error)}") from error
        if dtype is None and tensor.dtype not in INTEGERS:
            raise ValueError(f"{name}: dtype {tensor.dtype} is no integer; give torch.int32")
        if dtype is not None and tensor.dtype != dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype} is not {dtype}; give .to({dtype}), if it may be rounded")
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "meta tensor, which has no data" if tensor.is_meta else f"tensor of layout {tensor.layout}"
            raise ValueError(f"{name}: a {kind}; give a dense tensor, such as .to_dense() makes, with its data")
        try:
            tensor = tensor.detach()
            if tensor.is_neg():
                tensor = tensor.resolve_neg()
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                return cls(tensor, _bytes_of(tensor))
            _bytes_of(tensor[:1])
        except Exception as error:  # each kind of tensor, and each subclass, has errors of its own
            raise ValueError(f"{name}: {_said(error)}; give a plain tensor") from error
        return cls(tensor, tensor)


def _said(error: Exception) -> str:
    """The first line of an error of torch's, which may be pages long."""
    return str(error).strip().partition("\n")[0][:MAX_SAID] or type(error).__name__


def _tensor_of(value: Any, *, is_integer: bool) -> torch.Tensor:
    """Raises ValueError for what torch has no dtype for, of which it would name many that are none of ours."""
    array = np.ascontiguousarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if is_integer and array.dtype.kind not in "iubfc":
        raise ValueError(f"dtype {array.dtype} is no integer; give torch.int32")
    return torch.as_tensor(array if array.flags.writeable else array.copy())  # torch warns of what is read-only


def _embeddings(geometry: Geometry, input_embeddings: Any) -> _Rows:
    if not isinstance(input_embeddings, torch.Tensor | np.ndarray):
        raise ValueError(f"input_embeddings: {type(input_embeddings).__name__} is no tensor; give (n, hidden)")
    rows, hidden = _Rows.of("input_embeddings", input_embeddings, getattr(torch, geometry.dtype)), geometry.hidden_size
    shape = tuple(rows.tensor.shape)
    if len(shape) != 2 or shape[1] != hidden:
        remedy = "; these are columns: give input_embeddings.T" if len(shape) == 2 and shape[0] == hidden else ""
        raise ValueError(f"input_embeddings: shape {shape} is not (n, {hidden}){remedy}")
    if not shape[0]:
        raise ValueError("input_embeddings: 0 rows; give at least one")
    return rows


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not {shape}")


def _integers(name: str, value: Any, shape: tuple[int, ...]) -> Bytes | torch.Tensor:
    """(n,) or (n, axes) int32, from integers of any type that are within it; (axes, n), too, unless n is the axes."""
    tensor, data = _Rows.of(name, value)
    if tuple(tensor.shape) == shape[::-1] != shape:
        tensor = data = tensor.mT
    _check_shape(name, tensor, shape)
    if tensor.dtype == torch.int32:
        return data
    numbers = tensor.cpu().numpy()
    low, high = numbers.min(), numbers.max()
    if low < INT32.min or high > INT32.max:
        raise ValueError(f"{name}: {low if low < INT32.min else high} is outside int32")
    return _bytes_of(torch.from_numpy(numbers.astype(np.int32)))


def _bytes_of(tensor: torch.Tensor) -> Bytes:
    """Its bytes, in the host's memory: a view where they lie there one after the other."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        tensor = tensor.to("cpu").contiguous()
    if not tensor.ndim or tensor.stride(-1) != 1:  # of one element: contiguous whatever its stride, but `view` asks
        tensor = tensor.reshape(-1).as_strided((tensor.numel(),), (1,))
    data: Bytes = tensor.view(torch.uint8).numpy().reshape(-1)
    return data


def place(payload: Mapping, geometry: Geometry, chunk: Chunk, blocks: dict[int, int]) -> None:
    """Copy what a chunk has of these request blocks into their source blocks, without the GIL."""
    bs, moves = geometry.block_size, []
    for k, source in blocks.items():
        low, high = max(chunk.first, k * bs), min(chunk.end, (k + 1) * bs)
        moves.append((source * bs + low % bs, low - chunk.first, high - low))
    rows = np.array(moves, np.int64)
    for pool in pools(geometry):
        scaled = rows * pool.row_bytes
        scaled[:, 0] += pool.offset
        copy(payload, chunk.data[pool.name], scaled, len(scaled))
