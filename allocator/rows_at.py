"""Where rows lie, for other processes of a host: in memory of an item cache, or on a shelf, under somebody's pin."""

from __future__ import annotations

import os
from typing import NamedTuple, Self


class MemoryName(NamedTuple):
    """How other processes of the host find memory that a process has as a descriptor."""

    pid: int
    fd: int
    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> Self:
        """Of a descriptor of this process. Raises OSError."""
        stat = os.fstat(fd)
        return cls(os.getpid(), fd, stat.st_dev, stat.st_ino)


class PinWord(NamedTuple):
    """The word under which a process has pinned rows on a shelf."""

    tables: MemoryName
    """In which it stands."""
    offset: int
    """In bytes."""
    generation: int
    """Of the entry: what stands there for as long as the rows are pinned."""
    reader_offset: int
    """In bytes: where the tables say whose word that is."""
    reader: bytes
    """What stands there for as long as it is this process's."""


class RowsAt(NamedTuple):
    """Where the rows of one item lie, for other processes of the host."""

    memory: MemoryName
    offset: int
    """In bytes."""
    shape: tuple[int, int]
    """(num_rows, width)."""
    dtype: str
    """The name of the dtype of the rows."""
    pin: PinWord | None = None
    """Of rows on a shelf; None: they lie in memory of a cache."""
