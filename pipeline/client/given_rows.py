"""The rows that a caller gives: checked against the node's geometry, and seen as bytes per token and buffer.

Whatever converts without loss is taken: ids and positions of any integer type whose values are within int32, positions
the other way round (3, n), tensors on a device, with a gradient, with any strides. Anything else raises ValueError,
which says what to give.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from embridge.allocator._core import Mapping, PlainRows, copy
from embridge.allocator.buffers import pools
from embridge.allocator.geometry import AUX_WORDS, POSITION_AXES, Geometry
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.host_copies import why_no_rows

Bytes = npt.NDArray[np.uint8]

INT32: Final = np.iinfo(np.int32)
INT32_MIN: Final = -(1 << 31)
INT32_MAX: Final = (1 << 31) - 1
NO_AUX: Final = array("i", bytes(4 * AUX_WORDS))
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

    `data` has for each pool name the bytes themselves if they lie contiguous in host memory, else the tensor.
    """

    first: int
    end: int
    data: dict[str, Bytes | torch.Tensor]

    def lent(self) -> Chunk:
        """All of the rows, as they lie. Ids and positions that are not the caller's int32 are ours already.

        Raises:
            ValueError: the embeddings do not lie contiguous in host memory, so there is nothing to lend.
        """
        for name in ("input_embeddings", "deepstack_embeddings"):
            if isinstance(self.data.get(name), torch.Tensor):
                raise ValueError(
                    f"{name}: borrow=True needs a contiguous tensor in host memory; give .cpu().contiguous(), or do not"
                )
        return self.chunk(self.first, self.end)

    def since(self, first: int) -> Given:
        """Those from row `first` on."""
        if first == self.first:
            return self
        num_rows, low = self.end - self.first, first - self.first
        data: dict[str, Bytes | torch.Tensor] = {
            name: rows[low:] if isinstance(rows, torch.Tensor) else rows[low * (rows.nbytes // num_rows) :]
            for name, rows in self.data.items()
        }
        return Given(first, self.end, data)

    def chunk(self, first: int, end: int) -> Chunk:
        """Rows [first, end) of them as bytes.

        Rows that are not contiguous, or on a device, are copied to the host here.
        """
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
    """Check the rows that a caller gave.

    Raises:
        ValueError: a dtype, shape, length or kind of tensor is none that the node's geometry can take.
    """
    hidden, layers = geometry.hidden_size, geometry.deepstack_layers
    rows = _embeddings(geometry, input_embeddings)
    count = len(rows.tensor)
    data = {"input_embeddings": rows.data}
    if _has(geometry.fill_ids, "fill_ids", fill_ids):
        data["fill_ids"] = _integers("fill_ids", fill_ids, (count,))
    if _has(geometry.mrope_positions, "mrope_positions", mrope_positions):
        data["mrope_positions"] = _integers("mrope_positions", mrope_positions, (count, POSITION_AXES))
    if layers:
        if deepstack_embeddings is None:
            raise ValueError(f"deepstack_embeddings: missing; this node's geometry has {layers} deepstack layers")
        deepstack = _Rows.of("deepstack_embeddings", deepstack_embeddings, getattr(torch, geometry.dtype))
        _check_shape("deepstack_embeddings", deepstack.tensor, (count, layers, hidden))
        data["deepstack_embeddings"] = deepstack.data
    elif deepstack_embeddings is not None:
        raise ValueError("deepstack_embeddings: given, but this node's geometry has no deepstack layers")
    return Given(first, first + count, data)


def kinds_of(geometry: Geometry) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Of each buffer that rows have: its dtype, and the shape of one row."""
    dtype = getattr(torch, geometry.dtype)
    kinds = {
        "input_embeddings": (dtype, (geometry.hidden_size,)),
        "deepstack_embeddings": (dtype, (geometry.deepstack_layers, geometry.hidden_size)),
        "mrope_positions": (torch.int32, (POSITION_AXES,)),
        "fill_ids": (torch.int32, ()),
    }
    return {pool.name: kinds[pool.name] for pool in pools(geometry)}


def plain_rows(geometry: Geometry) -> PlainRows:
    """Finds rows that need no second look, of tensors in this order: `input_embeddings`, `deepstack_embeddings`,
    `mrope_positions`, `fill_ids`, as `pools` has their buffers.
    """
    kinds = kinds_of(geometry)
    names = ("input_embeddings", "deepstack_embeddings", "mrope_positions", "fill_ids")
    return PlainRows(torch.Tensor, tuple(kinds.get(name) for name in names))


def aux_words(aux_datas: Any, total_tokens: int, mrope_position_delta: int) -> array[int]:
    """The 16 auxiliary words: [0] total length, [1] mrope_position_delta, the rest the caller's.

    Raises:
        ValueError: a shape, a type or a value is none that fits.
    """
    words = NO_AUX[:]
    if aux_datas is not None:
        try:
            given = np.asarray(aux_datas)
        except ValueError as error:
            raise ValueError(f"aux_datas: {error}") from error
        if given.shape != (AUX_WORDS,) or given.dtype.kind not in "iu":
            raise ValueError(f"aux_datas: shape {given.shape} dtype {given.dtype} is not ({AUX_WORDS},) of integers")
        if given.min() < INT32.min or given.max() > INT32.max:
            raise ValueError(f"aux_datas: {given.min()} to {given.max()} is outside int32")
        words = array("i", given.tolist())
    delta = mrope_position_delta
    if type(delta) is not int or not INT32_MIN <= delta <= INT32_MAX:
        delta = whole("mrope_position_delta", delta, INT32_MIN, INT32_MAX)
    words[0], words[1] = min(total_tokens, INT32_MAX), delta
    return words


def num_rows(geometry: Geometry, input_embeddings: Any) -> int:
    """How many rows a caller gave. Raises ValueError for what is no tensor of rows of this geometry."""
    return len(_embeddings(geometry, input_embeddings).tensor)


class _Rows(NamedTuple):
    """A tensor, and its bytes if they lie contiguous in host memory."""

    tensor: torch.Tensor
    data: Bytes | torch.Tensor

    @classmethod
    def of(cls, name: str, value: Any, dtype: torch.dtype | None = None) -> _Rows:
        """Check that this is a tensor of that dtype, or of integers.

        Nothing is copied but one row, to see that it can be.
        """
        try:
            tensor = value if isinstance(value, torch.Tensor) else _tensor_of(value, is_integer=dtype is None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: {_said(error)}") from error
        if dtype is None and tensor.dtype not in INTEGERS:
            raise ValueError(f"{name}: dtype {tensor.dtype} is no integer; give torch.int32")
        if dtype is not None and tensor.dtype != dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype} is not {dtype}; give .to({dtype}), if it may be rounded")
        if kind := why_no_rows(tensor):
            raise ValueError(f"{name}: {kind}; give a dense tensor, such as .to_dense() makes, with its data")
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
    """The first line of one of torch's errors, which may be pages long."""
    return str(error).strip().partition("\n")[0][:MAX_SAID] or type(error).__name__


def _tensor_of(value: Any, *, is_integer: bool) -> torch.Tensor:
    """Make a tensor of a value.

    Raises ValueError for a value that torch has no dtype for; torch's own error would name many dtypes that are not
    ours.
    """
    given = np.ascontiguousarray(value)
    if not given.dtype.isnative:
        given = given.astype(given.dtype.newbyteorder("="))
    if is_integer and given.dtype.kind not in "iubfc":
        raise ValueError(f"dtype {given.dtype} is no integer; give torch.int32")
    return torch.as_tensor(given if given.flags.writeable else given.copy())  # torch warns of what is read-only


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


def _has(is_in_geometry: bool, name: str, value: Any) -> bool:
    """Whether the node's rows have this buffer. Raises ValueError where that is not what was given."""
    if is_in_geometry and value is None:
        raise ValueError(f"{name}: missing; give them, or launch both nodes with a geometry of {name}=False")
    if not is_in_geometry and value is not None:
        raise ValueError(f"{name}: given, but this node's geometry has none")
    return is_in_geometry


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not {shape}")


def _integers(name: str, value: Any, shape: tuple[int, ...]) -> Bytes | torch.Tensor:
    """(n,) or (n, axes) int32, from integers of any type within int32; also from (axes, n), unless n equals axes."""
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
    """A tensor's bytes in host memory: a view if they lie contiguous there, else a copy."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        tensor = tensor.to("cpu").contiguous()
    if not tensor.ndim or tensor.stride(-1) != 1:  # of one element: contiguous whatever its stride, but `view` asks
        tensor = tensor.reshape(-1).as_strided((tensor.numel(),), (1,))
    data: Bytes = tensor.view(torch.uint8).numpy().reshape(-1)
    return data


def address_of(data: Bytes) -> int:
    """Where the first of these bytes lies in this process."""
    address: int = data.__array_interface__["data"][0]
    return address


def place(payload: Mapping, geometry: Geometry, chunk: Chunk, blocks: dict[int, int]) -> None:
    """Copy what a chunk has of these request blocks into blocks of a payload of that geometry, without the GIL."""
    bs = geometry.block_size
    moves: list[list[int]] = []
    for k, block in blocks.items():
        low, high = max(chunk.first, k * bs), min(chunk.end, (k + 1) * bs)
        at = block * bs + low % bs
        if moves and moves[-1][0] + moves[-1][2] == at and moves[-1][1] + moves[-1][2] == low - chunk.first:
            moves[-1][2] += high - low  # neighbours move as one
        else:
            moves.append([at, low - chunk.first, high - low])
    rows = np.array(moves, np.int64)
    for pool in pools(geometry):
        scaled = rows * pool.row_bytes
        scaled[:, 0] += pool.offset
        copy(payload, chunk.data[pool.name], scaled, len(scaled))
