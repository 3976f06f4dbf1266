"""Publishing: rows under a key on the shelf of an encode node, from which anybody may read them until room is made.

Nothing here waits, and nobody is waited for: a publication takes an entry and a run of blocks, copies the rows there,
and shows them; where there is no room even after others were evicted, it is dropped, and says why (R49). A process that
dies in between leaves an entry that names its lane, which its node buries (R45).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.allocator.metrics import Metric
from embridge.allocator.missed_items import WantedItem
from embridge.allocator.shelf import DTYPE_BYTES, Answer, ItemRecord, ShelfCounts, code_of, key_hasher, raw_key
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.host_copies import Bytes, copy_for_others, why_no_rows
from embridge.workers.timing import NS

if TYPE_CHECKING:
    import torch

MAX_ROWS = (1 << 32) - 1


class PublishStatus(IntEnum):
    """What became of a publication."""

    READY = 0  # it is there
    ALREADY = 1  # an item of this key is there, and was not to be replaced
    FILLING = 2  # another one fills an item of this key, which was not to be replaced
    DROPPED = 3  # `Published.why` says why


class WhyDropped(IntEnum):
    """Why a publication was dropped."""

    NOTHING = 0  # it was not
    NO_ROOM = 1  # readers use what else could be evicted, or others fill it
    TOO_LARGE = 2  # for the shelf, even if it were empty
    TABLE_FULL = 3  # readers use all items among which this key would be
    DRAINING = 4  # the node is about to end, or has taken this client for dead


class Published(NamedTuple):
    """What became of a publication. `generation` orders the items of a key, also that of an item that was there; 0:
    there is none. `evicted` items were taken away for it.
    """

    status: PublishStatus
    generation: int = 0
    why: WhyDropped = WhyDropped.NOTHING
    evicted: int = 0


_DROPS = {Answer.NO_ENTRY: WhyDropped.TABLE_FULL, Answer.NO_ROOM: WhyDropped.NO_ROOM}
_OTHERS = {Answer.ALREADY: PublishStatus.ALREADY, Answer.OTHERS: PublishStatus.FILLING}


class _Begun(msgspec.Struct):
    """An entry that this client fills."""

    entry: int
    generation: int
    first: int
    evicted: int
    replace: bool
    shape: tuple[int, int, str]  # rows, width, dtype

    def rows_in(self, memory: Bytes) -> torch.Tensor:
        """Its memory, as rows."""
        import torch

        num_rows, width, dtype = self.shape
        return torch.from_numpy(memory).view(getattr(torch, dtype)).view(num_rows, width)


class PublishedRows:
    """Rows that are made on the shelf. `rows` is (num_rows, width) to be written to, in place or (where the publication
    was dropped) in memory that nobody sees; `result` is there behind the `with` block.
    """

    def __init__(self, rows: torch.Tensor, result: Published | None) -> None:
        self.rows = rows
        self._result = result

    @property
    def result(self) -> Published:
        """What became of it. Raises ValueError: the rows are not complete yet."""
        if self._result is None:
            raise ValueError("publishing: it has no result before the end of its `with` block")
        return self._result

    def end(self, result: Published) -> None:
        """Say what has become of it."""
        self._result = self._result or result


class ClientShelf:
    """The shelf of an encode node, for one of its clients (`Client.shelf`). One thread at a time calls it."""

    def __init__(self, attachment: Attachment) -> None:
        """Raises ValueError: the node has no shelf."""
        control = attachment.control
        if not control.has_shelf:
            raise ValueError(
                f"shelf: the {control.role.name.lower()} node in {attachment.run_dir} has none; "
                "launch an encode node with --shelf-bytes"
            )
        self._attachment = attachment
        self._hasher = key_hasher((control.node_id, control.incarnation))
        self._table = control.shelf
        self._metrics = control.metrics

    # ---- publishing

    def publish(self, key: str | bytes, rows: Any, *, replace: bool, ttl_s: float | None) -> Published:
        """Copy rows to the shelf, and show them, as `Client.publish`."""
        import torch

        if not isinstance(rows, torch.Tensor | np.ndarray):
            raise ValueError(f"rows: {type(rows).__name__} is neither a tensor nor an array")
        if isinstance(rows, torch.Tensor) and (kind := why_no_rows(rows)):
            raise ValueError(f"rows: {kind}; give a dense tensor, with its data")
        shape = tuple(rows.shape)
        if not shape or 0 in shape:
            raise ValueError(f"rows: shape {shape} has no rows; give (num_rows, width)")
        dtype = rows.dtype.name if isinstance(rows, np.ndarray) else str(rows.dtype).removeprefix("torch.")
        item = self._open(key, shape[0], math.prod(shape[1:]), dtype, replace, ttl_s)
        if isinstance(item, Published):
            return item
        memory = self._memory_of(item)
        try:
            if isinstance(rows, np.ndarray):
                there = item.rows_in(memory).view(shape).numpy()
                there[...] = rows  # as they are: torch takes no array in another byte order, or read-only
            elif not copy_for_others(memory, rows.detach()):
                item.rows_in(memory).view(shape).copy_(rows.detach())
        except BaseException:
            self._drop(item)
            raise
        return self._show(item)

    @contextlib.contextmanager
    def publishing(
        self,
        key: str | bytes,
        num_rows: int,
        width: int,
        dtype: str,
        *,
        replace: bool = False,
        ttl_s: float | None = None,
    ) -> Iterator[PublishedRows]:
        """Rows that are made where they will be read: a context whose `rows` are to be written to.

        They are shown at its end, and dropped where it ends by an exception; after it they are nobody's to write to.
        Where they are not to be published, `rows` are in memory that nobody sees, and `result` says why.

        Raises:
            ValueError, NodeGoneError, RuntimeError: as `Client.publish`.
        """
        import torch

        item = self._open(key, num_rows, width, dtype, replace, ttl_s)
        if isinstance(item, Published):
            yield PublishedRows(torch.empty((num_rows, width), dtype=getattr(torch, dtype)), item)
            return
        memory = self._memory_of(item)
        try:
            it = PublishedRows(item.rows_in(memory), None)
            yield it
        except BaseException:
            self._drop(item)
            raise
        it.end(self._show(item))

    def _memory_of(self, item: _Begun) -> Bytes:
        """Where the rows of an entry go that this client fills."""
        shelf = self._attachment.shelf
        assert shelf is not None
        num_rows, width, dtype = item.shape
        try:
            memory = memoryview(shelf)
        except BufferError:  # the shelf of a node that has gone meanwhile is no more
            self._attachment.check_usable()
            raise
        size = num_rows * width * DTYPE_BYTES[dtype]
        return np.frombuffer(memory, np.uint8, size, item.first * SHELF_BLOCK_BYTES)

    def _drop(self, item: _Begun) -> None:
        """Give up an entry."""
        if not self._attachment.is_closed:
            self._table.core.drop(item.entry, item.generation, self._attachment.lane, item.replace)

    def _show(self, item: _Begun) -> Published:
        """Have everybody see an entry, whose rows are complete. Raises as `Client.publish`."""
        self._attachment.check_usable()
        number = self._table.core.show(item.entry, item.generation, self._attachment.lane)
        if number:
            result = Published(PublishStatus.READY, number, WhyDropped.NOTHING, item.evicted)
        else:
            result = Published(PublishStatus.DROPPED, 0, WhyDropped.DRAINING, item.evicted)
        self._count(result)
        return result

    def _open(
        self, key: str | bytes, num_rows: int, width: int, dtype: str, replace: bool, ttl_s: float | None
    ) -> Published | _Begun:
        """Begin a publication; what has become of it, if it is over."""
        self._attachment.check_usable()
        name, code = self._name(key), code_of(dtype)
        shape = whole("num_rows", num_rows, 1, MAX_ROWS), whole("width", width, 1, MAX_ROWS), dtype
        item = self._begin(name, shape, code, 0 if ttl_s is None else self._expires_ns(ttl_s), replace)
        if isinstance(item, Published):
            self._count(item)
        return item

    def _begin(
        self, name: tuple[bytes, bytes], shape: tuple[int, int, str], code: int, expires_ns: int, replace: bool
    ) -> Published | _Begun:
        num_rows, width, dtype = shape
        size = num_rows * width * DTYPE_BYTES[dtype]
        core, blocks = self._table.core, -(-size // SHELF_BLOCK_BYTES)
        why = WhyDropped.NOTHING
        if self._attachment.control.is_ending:
            why = WhyDropped.DRAINING
        elif blocks > self._table.num_blocks:
            why = WhyDropped.TOO_LARGE
        if why:
            if replace:
                core.unpublish(*name)
            return Published(PublishStatus.DROPPED, 0, why)
        now_ns = self._attachment.clock()
        answer, entry, generation, first, number, evicted = core.begin(
            *name, self._attachment.lane, blocks, size, num_rows, width, code, expires_ns, now_ns, replace
        )
        if answer == Answer.BEGUN:
            return _Begun(entry, generation, first, evicted, replace, shape)
        if status := _OTHERS.get(Answer(answer)):
            return Published(status, number)
        self._table.recall()
        return Published(PublishStatus.DROPPED, 0, _DROPS[Answer(answer)], evicted)

    def _name(self, key: str | bytes) -> tuple[bytes, bytes]:
        """As the shelf looks for it. Raises ValueError for what is no key."""
        raw = raw_key(key)
        return self._hasher(raw).digest(), raw

    def _expires_ns(self, ttl_s: float) -> int:
        if not is_time(ttl_s) or not 0 < ttl_s < math.inf:
            raise ValueError(f"ttl_s: {said(ttl_s)} s must be positive")
        return self._attachment.clock() + int(min(float(ttl_s), 1e9) * NS)

    def _count(self, result: Published) -> None:
        count = self._metrics.count_for_client
        if result.status == PublishStatus.READY:
            count(Metric.PUBLISHED)
        elif result.status == PublishStatus.DROPPED:
            count(Metric.PUBLISH_DROPPED)
        if result.evicted:
            count(Metric.ITEMS_EVICTED, result.evicted)

    # ---- what is there

    def contains(self, key: str | bytes) -> int:
        """The generation of the item that a reader would get; 0: it is not published. It takes microseconds.

        Raises ValueError for what is no key, and as `Client.publish`.
        """
        self._attachment.check_usable()
        return self._table.core.find(*self._name(key), self._attachment.clock())

    def unpublish(self, key: str | bytes) -> int:
        """Take the items of a key away: from now on nobody finds it; who reads it, reads on. Returns how many there
        were. Raises as `contains`.
        """
        self._attachment.check_usable()
        return self._table.core.unpublish(*self._name(key))

    def clear(self) -> int:
        """Take all items away, and those whose publication has begun, for ever: after new weights, say. Returns the
        generation below which nothing is visible. Raises NodeGoneError, RuntimeError as `contains`.
        """
        self._attachment.check_usable()
        return self._table.core.clear()

    def published(self) -> list[ItemRecord]:
        """The items that are there, in no order. Raises NodeGoneError, RuntimeError as `contains`."""
        self._attachment.check_usable()
        return self._table.published()

    def wanted(self) -> list[WantedItem]:
        """Keys that were asked for in vain from other hosts, the latest first, and how often: what is worth publishing.

        Those are the latest 64 that are not there now. A reader of this host looks by itself and asks nobody, so what
        it has missed is not among them. Raises NodeGoneError, RuntimeError as `contains`.
        """
        self._attachment.check_usable()
        return [it for it in self._attachment.control.missed_items.all() if not self.contains(it.key)]

    def counts(self) -> ShelfCounts:
        """Items and bytes on the shelf. Raises NodeGoneError, RuntimeError as `contains`."""
        self._attachment.check_usable()
        return self._table.counts()
