"""Memory of an item cache that other processes of its host read: the ranks of an engine share one copy (D16).

It is one file without a name, in memory, many times as long as all that may lie in it at one time; most of it has no
memory. So there is always a hole for the next item (first fit needs no more than the logarithm of the largest item, in
pages, times what has memory). What nobody uses any more is *warm*: it keeps its memory for the next item that fits
there, for memory that the kernel has yet to zero and to map costs several times as much as the copy into it. It goes
back when the next item needs memory elsewhere, so that what is used and what is warm are never more than the cache.
An item takes whole pages, and is counted so (`taken`): no two share one, so that each page goes back with its item.
Nothing is left of it all when its processes have ended, however they have.

Whoever is told a `RowsAt` opens the file through its owner's /proc, and maps it to be read only. The owner takes the
memory back when nobody in its own process has a view of the rows any more. Whoever tells others of rows keeps one until
they have read them (R70).

Rows on a shelf are told in the same way, where their owner has pinned them (`load`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from embridge.allocator.errors import SegmentError
from embridge.allocator.ranges import Ranges
from embridge.allocator.rows_at import MemoryName, PinWord, RowsAt
from embridge.allocator.shelf import DTYPE_BYTES
from embridge.pipeline.client.host_copies import fresh_copy
from embridge.pipeline.quiet_torch import quieten_torch

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]
SPREAD: Final = 32
"""How many times as long as the cache the file is: enough for items of up to 2^32 pages."""


def fresh_memory(size: int) -> Bytes:
    """So many bytes of this process's own. Raises MemoryError."""
    return np.empty(size, np.uint8)


def as_it_is(size: int) -> int:
    """How much memory of this process's own so many bytes take, as far as it is counted."""
    return size


class CacheMemory:
    """The memory of one cache. Any thread may call it."""

    def __init__(self, max_bytes: int) -> None:
        """Whoever takes memory sees to it that what is `taken` at one time is at most so much. Raises SegmentError."""
        self._lock = threading.Lock()
        self._freed: deque[tuple[int, int]] = deque()
        self._limit = -(-max_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._used = 0
        size = self._limit * SPREAD
        self._fd = -1
        try:
            self._fd = os.memfd_create("embridge-items", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, size)
            self._mapping = mmap.mmap(self._fd, size)
        except (OSError, OverflowError, ValueError) as error:
            self._close()
            raise SegmentError(
                f"memory of the item cache: {size} bytes cannot be mapped: {error}; lower max_bytes, or raise "
                "`ulimit -v` and `ulimit -n`"
            ) from error
        self._ranges = Ranges(size, mmap.PAGESIZE)  # without memory
        self._warm = Ranges(0, mmap.PAGESIZE)
        self._begin = np.frombuffer(self._mapping, np.uint8).__array_interface__["data"][0]
        self.name = MemoryName.of(self._fd)
        """For other processes, as long as this object is there."""
        weakref.finalize(self, os.close, self._fd).atexit = False

    @staticmethod
    def taken(size: int) -> int:
        """How much memory so many bytes take: whole pages, and one at least."""
        return max(-(-size // mmap.PAGESIZE), 1) * mmap.PAGESIZE

    def take(self, size: int) -> Bytes:
        """Memory of so many bytes, which goes back with the last view of it. Raises MemoryError."""
        needed = self.taken(size)
        with self._lock:
            while self._freed:
                begin, end = self._freed.popleft()
                self._warm.give_back(begin, end)
                self._used -= end - begin
            found = self._warm.take(needed) or self._take_cold(needed)
            self._used += needed
        rows = np.frombuffer(self._mapping, np.uint8, size, found[0])
        weakref.finalize(rows, self._freed.append, found).atexit = False
        return rows

    def _take_cold(self, size: int) -> tuple[int, int]:
        """Memory that the kernel has yet to give."""
        warm = self._warm.cut(self._used + self._warm.free_bytes + size - self._limit)
        while warm:
            begin, end = warm[-1]
            try:
                self._mapping.madvise(mmap.MADV_REMOVE, begin, end - begin)
            except OSError as error:  # it is locked
                for it in warm:
                    self._warm.give_back(*it)
                raise MemoryError from error
            self._ranges.give_back(*warm.pop())
        found = self._ranges.take(size)
        if found is None:
            raise MemoryError
        try:
            os.posix_fallocate(self._fd, found[0], size)
        except OSError as error:
            self._mapping.madvise(mmap.MADV_REMOVE, found[0], size)
            self._ranges.give_back(*found)
            raise MemoryError from error
        return found

    def where(self, taken: Bytes, shape: tuple[int, int], dtype: str) -> RowsAt:
        """Where the rows of an item lie, for a `CacheView`: what `take` gave (`item.copied().bytes`), and the item's
        shape and dtype. Whoever tells others of them keeps the item until they have read it.
        """
        offset: int = taken.__array_interface__["data"][0] - self._begin
        return RowsAt(self.name, offset, shape, dtype)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


@contextlib.contextmanager
def _opened(name: MemoryName) -> Iterator[int]:
    where = f"memory of items of process {name.pid}"
    try:
        fd = os.open(f"/proc/{name.pid}/fd/{name.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(
            f"{where}: it cannot be opened here: {error.strerror}; run both as one user, on one host, and where "
            "they see each other's process numbers"
        ) from error
    try:
        stat = os.fstat(fd)
        if (stat.st_dev, stat.st_ino) != (name.device, name.inode):
            raise SegmentError(f"{where}: it is gone")
        yield fd
    finally:
        os.close(fd)


class CacheView:
    """The memory of another process's cache, to be read only; or a part of it. One thread at a time calls it."""

    def __init__(self, name: MemoryName, begin: int = 0, size: int = 0) -> None:
        """The part begins at a multiple of a page, and all of it is mapped at once; `size` 0: the memory, to its end.

        Raises SegmentError: its process has ended, is on another host, or is another user's. ValueError: there is no
        such part.
        """
        self._begin = begin
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if size else 0)
        with _opened(name) as fd:
            try:
                self._mapping = mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ, offset=begin)
            except OSError as error:
                where = f"memory of items of process {name.pid}"
                raise SegmentError(f"{where}: it cannot be mapped: {error.strerror}; raise `ulimit -v`") from error

    def rows(self, at: RowsAt) -> torch.Tensor:
        """The rows, (num_rows, width). They may be read for as long as the owner keeps them; to write is a SIGSEGV.

        Raises ValueError: they would lie outside of the memory.
        """
        import torch

        count, offset = at.shape[0] * at.shape[1], at.offset - self._begin
        quieten_torch()
        flat = torch.frombuffer(self._mapping, dtype=getattr(torch, at.dtype), count=count, offset=offset)
        return flat.view(at.shape)


class CacheReader:
    """What a process reads of the caches of others. It maps one at a time: that whose rows it has read last, so that
    memory of a cache that is no more does not stay.
    """

    def __init__(self) -> None:
        self._name: MemoryName | None = None
        self._view: CacheView | None = None

    def rows(self, at: RowsAt) -> torch.Tensor:
        """The rows, (num_rows, width), to be read only, for as long as the owner keeps them. Of a shelf's `load` alone
        may be had.

        Raises SegmentError, ValueError as `CacheView`.
        """
        if at.pin is not None:
            raise ValueError("rows: they lie on a shelf, under the pin of another process; load them")
        if self._view is None or self._name != at.memory:
            self._view, self._name = CacheView(at.memory), at.memory
        return self._view.rows(at)

    def load(self, at: RowsAt, device: str) -> torch.Tensor:
        """A copy of the rows on a device, which is complete on return. Raises as `rows`."""
        return _loaded(self.rows(at), device) if at.pin is None else _loaded_under(at.pin, at, device)


def _loaded(rows: torch.Tensor, device: str) -> torch.Tensor:
    return fresh_copy(rows) if device == "cpu" else rows.to(device, copy=True)


def _loaded_under(pin: PinWord, at: RowsAt, device: str) -> torch.Tensor:
    """Rows on a shelf, copied under another process's pin, which that has until it says otherwise, or dies (R87)."""
    with _opened(pin.tables) as tables:  # and nothing stays mapped of a node that may be gone
        view = CacheView(at.memory, at.offset, at.shape[0] * at.shape[1] * DTYPE_BYTES[at.dtype])
        rows = _loaded(view.rows(at), device)
        now = int.from_bytes(os.pread(tables, 8, pin.offset), sys.byteorder)
        reader = os.pread(tables, len(pin.reader), pin.reader_offset)  # behind the word, which then was that reader's
    if now != pin.generation or reader != pin.reader:
        raise SegmentError(f"process {pin.tables.pid} has ended: the rows that it has pinned are another item's by now")
    return rows
