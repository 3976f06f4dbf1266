"""A pipe that nobody reads: what a service manager or a terminal that hangs is for whoever writes into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class FullPipe(NamedTuple):
    """`write` blocks whoever writes into it, until somebody reads from `read`."""

    read: int
    write: int

    def drain(self) -> bytes:
        """All that is in it now."""
        os.set_blocking(self.read, False)
        data = b""
        try:
            while chunk := os.read(self.read, 1 << 16):
                data += chunk
        except BlockingIOError:
            return data
        finally:
            os.set_blocking(self.read, True)
        return data


@contextmanager
def full_pipe() -> Iterator[FullPipe]:
    """A pipe that is full to the last byte; its writing end blocks, as those of a shell do."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        for size in (1 << 16, 1):
            try:
                while True:
                    os.write(write, b"." * size)
            except BlockingIOError:
                continue
        os.set_blocking(write, True)
        yield FullPipe(read, write)
    finally:
        os.close(read)
        os.close(write)
