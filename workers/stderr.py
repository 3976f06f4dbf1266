"""What a process says on standard output and standard error: handed to a thread, never waited for, and so much of one
cause and no more.

Whoever reads them may have stopped reading: a pipe that is full blocks who writes into it for as long as it stays full.
A process of a node must go on meanwhile. So a text goes into a bounded queue, and a thread of its own writes; where the
queue is full, it is dropped, and counted: "... lines were dropped". What a crash prints takes the same way. At the end
the process waits for the rest, a bounded time.

Descriptors 1 and 2 belong to the user and are shared with others: nothing about them is changed, `O_NONBLOCK` neither.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import queue
import select
import sys
import threading
import time
from pathlib import Path
from typing import Final, TextIO, cast

from embridge.workers.log_limit import CauseLimit

MAX_TEXTS: Final = 1000  # that wait to be written; one is a line, or a traceback
MAX_TEXT_LENGTH: Final = 8192
FLUSH_S: Final = 0.5
THREAD_NAME: Final = "embridge-stderr"  # 15 characters are what the kernel shows


class Writer:
    """A bounded queue before one descriptor. `put` may be called by any thread, and by a collection of garbage."""

    def __init__(self, fd: int | None) -> None:
        """`fd`: duplicated, so that it stays what it is now; None writes nothing at all."""
        with contextlib.suppress(OSError):  # without a descriptor of its own, that very one
            fd = os.dup(fd) if fd is not None else None
        self._fd = fd
        self._queue: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._is_started = False
        self._num_dropped = 0
        self._num_taken = 0
        self._stuck_at = -1  # how many had been taken when a flush was given up

    def put(self, text: str) -> None:
        """Have a text written, as soon as that is possible; it is dropped where too many wait."""
        if self._fd is None:
            return
        if self._queue.qsize() >= MAX_TEXTS or not (self._is_started or self.start()):
            self._num_dropped += 1
            return
        if len(text) > MAX_TEXT_LENGTH:
            text = f"{text[:MAX_TEXT_LENGTH]}... and {len(text) - MAX_TEXT_LENGTH} more characters\n"
        self._queue.put(text)

    def flush(self) -> None:
        """Wait until all is written that was put before, `FLUSH_S` at most; not at all while nothing moves since the
        last time.
        """
        if not self._is_started or sys.is_finalizing() or self._stuck_at == self._num_taken:
            return
        done = threading.Event()
        self._queue.put(done)
        if not done.wait(FLUSH_S):
            self._stuck_at = self._num_taken

    def close(self) -> None:
        """Write the rest, as `flush` does, and end the thread; nothing is written any more."""
        self.flush()
        self._queue.put(None)

    def start(self) -> bool:
        """Have the thread run; False if there is no room for one: the next text tries again."""
        if self._fd is None:
            return False
        if not self._starting.acquire(blocking=False):
            return self._is_started
        try:
            if not self._is_started:
                threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()
                self._is_started = True
        except RuntimeError:
            return False
        finally:
            self._starting.release()
        return True

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(THREAD_NAME)
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._write(item)
            self._num_taken += 1
            dropped, self._num_dropped = self._num_dropped, 0
            if dropped and not self._write(f"{dropped} lines were dropped: nobody read them in time\n"):
                self._num_dropped += dropped
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _write(self, text: str) -> bool:
        """Write all of it, however long that takes. False if it is lost, which is counted."""
        assert self._fd is not None
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever shares it has made it so
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()
            except OSError:
                self._num_dropped += 1
                return False
        return True


class Stream(io.TextIOBase):
    """A text stream over a `Writer`, line by line: what stands in for `sys.stderr` and `sys.stdout`."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: Writer, fd: int) -> None:
        self.writer = writer
        self._fd_shown = fd
        self._part = ""
        self._lock = threading.RLock()  # which a collection of garbage may come upon in its own thread

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd_shown

    def isatty(self) -> bool:
        try:
            return os.isatty(self._fd_shown)
        except OSError:
            return False

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write: {type(text).__name__} is not str")
        with self._lock:
            whole, newline, self._part = (self._part + text).rpartition("\n")
            if newline:
                self.writer.put(whole + newline)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            part, self._part = self._part, ""
            if part:
                self.writer.put(part)
        self.writer.flush()


class Handler(logging.Handler):
    """Log records into a `Writer`, no more of one cause than `CauseLimit` lets pass; DEBUG is passed whole: it was
    asked for.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer
        self._limit = CauseLimit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_last, held_back = False, ""
            if record.levelno > logging.DEBUG:
                passes, is_last, held_back = self._limit.take(record, time.monotonic_ns())
                if not passes:
                    return
            last = "; no more lines of this cause within a minute" if is_last else ""
            self._writer.put(f"{held_back}{self.format(record)}{last}\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self._writer.flush()


def _stream_over(fd: int, now: object, original: object) -> Stream | None:
    """A stream that never blocks over a descriptor; None where something else than the descriptor stands there, and has
    to stay.
    """
    if now is not original:
        return None
    writer = Writer(fd if original is not None else None)  # None: the descriptor was closed when the process began
    atexit.register(writer.flush)
    return Stream(writer, fd)


def never_block_on_output() -> None:
    """From now until it ends, this process waits for nobody who reads its standard output and standard error."""
    if stream := _stream_over(1, sys.stdout, sys.__stdout__):
        sys.stdout = cast(TextIO, stream)
    if stream := _stream_over(2, sys.stderr, sys.__stderr__):
        sys.stderr = cast(TextIO, stream)


def log_to_stderr(level: str, name: str) -> None:
    """Log on standard error, as a process of the node: it never waits for who reads that, and each cause has so many
    lines a minute.
    """
    never_block_on_output()
    stream: object = sys.stderr
    if isinstance(stream, Stream):
        # not with the first line: whoever watches this process's threads would see one more, at some time
        stream.writer.start()
    handler = Handler(stream.writer) if isinstance(stream, Stream) else logging.StreamHandler()
    logging.basicConfig(
        level=level, format=f"%(asctime)s %(levelname)s embridge[{name}] %(message)s", handlers=[handler]
    )
