"""Touches the payload's memory pages after READY, in the background, and has them locked.

Nothing depends on it, because the payload's space is reserved before READY (`create_segment`): it saves time. The
kernel zeroes a page that was never touched when a process first writes there, and that process waits; a page that is
not locked may be swapped out.

One thread touches the pages, slice by slice, at idle priority: it runs when no other thread wants a core. Where the
kernel shares the cores between sessions or containers first (autogroup, cgroups), idle priority holds within the node's
share only; so the thread also pauses after each slice. A slice is zeroed through the descriptor, and only then mapped
(which locks it). Mapping a slice holds up every other change of the launcher's mappings, so it has to be short. No
other lock is held meanwhile, and each process that transfers rows has a mapping of the payload of its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import Final

from embridge.allocator._core import Mapping, Words
from embridge.allocator.pinning import lock, lock_note
from embridge.allocator.records import SegmentHeader

log = logging.getLogger(__name__)

SLICE_BYTES: Final = 1 << 20  # half a millisecond
PAUSE_S: Final = 0.001
END_S: Final = 2.0  # a slice may take so long on a machine without an idle moment; then the process ends without it


class Prefaulting:
    """Touches the payload's memory pages. One thread calls all its methods, the launcher's."""

    def __init__(self, payload: Mapping, fd: int, header: Words) -> None:
        """`payload` is a mapping of the descriptor `fd`; `header` holds the words of the control segment's header."""
        self._payload = payload
        self._fd = fd
        self._header = header
        self._is_locked = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def lock(self) -> None:
        """Have the pages locked as they are touched. Whether the limits of this process allow that is found at once."""
        code = lock(self._payload)
        self._is_locked = code == 0
        self._say_locked(code)

    def _say_locked(self, code: int) -> None:
        self._header.store(SegmentHeader.LOCKED, code << 8 | 1)
        if code:
            log.info("payload %s", lock_note(code))

    def begin(self) -> None:
        """Begin to touch the pages. Where no thread can be started, log it and leave the pages as they are."""
        try:
            thread = threading.Thread(target=self._run, name="embridge-prefault", daemon=True)
            thread.start()
        except RuntimeError as error:
            log.warning("payload not touched: %s", str(error))  # a kept record would keep the error's frames
            if self._is_locked:
                self._say_locked(errno.EAGAIN)
            return
        self._thread = thread

    def end(self) -> None:
        """Stop after the slice that is under way, and wait for its end."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(END_S)

    # ---- its thread

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread alone
        size, touched = self._payload.size, 0
        try:
            while touched < size:
                if self._ending.wait(PAUSE_S):
                    return
                self._take(touched, min(SLICE_BYTES, size - touched))
                touched = min(touched + SLICE_BYTES, size)
                self._header.store(SegmentHeader.TOUCHED_BYTES, touched)
        except OSError as error:
            log.warning("payload touched up to %d of %d bytes: %s", touched, size, error.strerror)
            if self._is_locked:
                self._say_locked(error.errno or errno.EIO)
            return
        log.info("payload of %d bytes touched%s", size, " and locked" if self._is_locked else "")

    def _take(self, offset: int, size: int) -> None:
        os.posix_fallocate(self._fd, offset, size)  # there already, so the kernel zeroes what nobody has written yet
        if self._is_locked:
            self._payload.populate(offset, size)
