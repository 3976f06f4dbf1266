"""Standard output and standard error of a process: a thread writes what it says, so that the process never waits.

Whoever reads them may have stopped reading, and a pipe that is full blocks its writer for as long as it stays full. A
process of a node must go on meanwhile. So a text goes into a bounded queue, and a thread of its own writes it. A text
that finds the queue full is dropped and counted: "... lines were dropped". What a crash prints takes the same way. Log
records are limited for each cause. At its end the process waits for what is left, for a bounded time.

Descriptors 1 and 2 belong to the user and are shared with others, so nothing about them is changed, not even
`O_NONBLOCK`.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO, cast

from embridge.workers.log_limit import CauseLimit
from embridge.workers.log_lines import Lines, lines

MAX_TEXTS: Final = 1000  # waiting to be written; a text is a line, or a traceback
MAX_TEXT_LENGTH: Final = 8192
FLUSH_S: Final = 0.5
THREAD_NAME: Final = "embridge-stderr"  # the kernel shows 15 characters


class Writer:
    """A bounded queue in front of one descriptor. Any thread may call `put`, and so may a garbage collection."""

    def __init__(self, fd: int | None) -> None:
        """`fd` is duplicated, so that it stays what it is now; with None nothing is written at all."""
        with contextlib.suppress(OSError):  # if there is no descriptor left, that very one is used
            fd = os.dup(fd) if fd is not None else None
        self._fd = fd
        self._queue: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._is_started = False
        self._num_dropped = 0
        self._num_taken = 0
        self._stuck_at = -1  # `_num_taken` when the last flush was given up
        self.lines = Lines("")  # how what is no record of a log is written

    def put(self, text: str) -> None:
        """Queue a text to be written as soon as possible; drop it if too many are queued."""
        if self._fd is None:
            return
        if self._queue.qsize() >= MAX_TEXTS or not (self._is_started or self.start()):
            self._num_dropped += 1
            return
        if len(text) > MAX_TEXT_LENGTH:
            text = f"{text[:MAX_TEXT_LENGTH]}... and {len(text) - MAX_TEXT_LENGTH} more characters\n"
        self._queue.put(text)

    def flush(self) -> None:
        """Wait until all texts that were put before are written, for at most `FLUSH_S`.

        It does not wait at all if nothing has been written since the last flush was given up.
        """
        if not self._is_started or sys.is_finalizing() or self._stuck_at == self._num_taken:
            return
        done = threading.Event()
        self._queue.put(done)
        if not done.wait(FLUSH_S):
            self._stuck_at = self._num_taken

    def close(self) -> None:
        """Write what is left, as `flush` does, and end the thread. Nothing is written after that."""
        self.flush()
        self._queue.put(None)

    def start(self) -> bool:
        """Start the thread. False if it cannot be started now; the next text tries again."""
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
            note = self.lines.note(f"{dropped} lines were dropped: nobody read them in time")
            if dropped and not self._write(f"{note}\n"):
                self._num_dropped += dropped
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _write(self, text: str) -> bool:
        """Write the whole text, however long that takes. False if it is lost, which is counted."""
        assert self._fd is not None
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who shares the descriptor has set O_NONBLOCK
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()
            except OSError:
                self._num_dropped += 1
                return False
        return True


class Stream(io.TextIOBase):
    """A text stream over a `Writer`, line by line. It takes the place of `sys.stderr` and `sys.stdout`."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: Writer, fd: int) -> None:
        self.writer = writer
        self._fd_shown = fd
        self._part = ""
        self._lock = threading.RLock()  # reentrant: a garbage collection may write while its own thread holds it

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
                self.writer.put(self.writer.lines.note(whole) + newline)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            part, self._part = self._part, ""
            if part:
                self.writer.put(part)
        self.writer.flush()


class Handler(logging.Handler):
    """Passes log records to a `Writer`, as many of one cause as `CauseLimit` lets pass.

    DEBUG records all pass, because somebody has asked for them.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer
        self._limit = CauseLimit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.levelno > logging.DEBUG:
                passes, is_last, held_back = self._limit.take(record, time.monotonic_ns())
                for line in held_back.splitlines():
                    self._writer.put(f"{self._writer.lines.note(line)}\n")
                if not passes:
                    return
                if is_last:
                    record = copy.copy(record)
                    record.msg, record.args = f"{record.getMessage()}; no more lines of this cause within a minute", ()
            self._writer.put(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self._writer.flush()


def _stream_over(fd: int, now: object, original: object) -> Stream | None:
    """A stream over a descriptor that never blocks.

    None if `now` is no longer the interpreter's `original` stream: what stands there instead has to stay.
    """
    if now is not original:
        return None
    writer = Writer(fd if original is not None else None)  # None: the descriptor was closed when the process began
    atexit.register(writer.flush)
    return Stream(writer, fd)


def never_block_on_output() -> None:
    """Have this process, from now on, never wait for whoever reads its standard output and standard error."""
    if stream := _stream_over(1, sys.stdout, sys.__stdout__):
        sys.stdout = cast(TextIO, stream)
    if stream := _stream_over(2, sys.stderr, sys.__stderr__):
        sys.stderr = cast(TextIO, stream)


@contextlib.contextmanager
def bare_streams() -> Iterator[None]:
    """For a block: the interpreter's own streams. So whoever forks in it, and flushes them first, waits for nobody, and
    the process that is forked begins with them: the threads of others are not in it.
    """
    ours = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, sys.__stdout__), cast(TextIO, sys.__stderr__)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = ours


def log_to_stderr(level: str, name: str, *, role: str = "", node: str = "", kind: str = "text") -> Lines:
    """Log on standard error, as every process of a node does, in lines of this kind (`log_lines.FORMATS`).

    The process never waits for whoever reads it, and each cause has a limited number of lines a minute. Returns how a
    line is written: its `node` may be set later.
    """
    written = lines(kind, name, role, node)
    never_block_on_output()
    stream: object = sys.stderr
    if isinstance(stream, Stream):
        # now and not with the first line: the number of this process's threads stays the same after its start
        stream.writer.lines = written
        stream.writer.start()
    handler = Handler(stream.writer) if isinstance(stream, Stream) else logging.StreamHandler()
    handler.setFormatter(written)
    logging.basicConfig(level=level, handlers=[handler])
    return written
