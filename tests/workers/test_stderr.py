"""What a process says is never waited for: neither its log lines nor a crash's traceback, whatever its standard error
is.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.pipes import full_pipe
from support.waiting import wait_until

from embridge.workers.log_limit import LINES_A_CAUSE, MAX_CAUSES, WINDOW_NS, CauseLimit
from embridge.workers.stderr import MAX_TEXT_LENGTH, MAX_TEXTS, Handler, Stream, Writer


@contextmanager
def writer_into(fd: int) -> Iterator[Writer]:
    """A writer, whose descriptor and thread are gone afterwards; the other end of a pipe is to be read, or closed, by
    then.
    """
    writer = Writer(fd)
    before = set(threading.enumerate())
    yield writer
    writer.close()
    wait_until(lambda: not set(threading.enumerate()) - before)


def test_who_writes_into_a_full_pipe_goes_on_and_what_was_dropped_is_counted() -> None:
    """P21: nobody reads; what exceeds the queue is dropped, and told of when somebody reads again."""
    with full_pipe() as pipe, writer_into(pipe.write) as writer:
        for i in range(3 * MAX_TEXTS):
            writer.put(f"line {i}\n")
        writer.flush()  # ends, too, though nothing moves
        said = b""

        def kept_and_dropped() -> tuple[int, int]:
            nonlocal said
            said += pipe.drain()
            lines = said[: said.rfind(b"\n") + 1].decode().lstrip(".").splitlines()
            kept = sum(line.startswith("line ") for line in lines)
            return kept, sum(
                int(line.split()[0]) for line in lines if line.endswith("dropped: nobody read them in time")
            )

        wait_until(lambda: sum(kept_and_dropped()) == 3 * MAX_TEXTS, what=kept_and_dropped)
        assert said.lstrip(b".").startswith(b"line 0\n")
        assert MAX_TEXTS <= kept_and_dropped()[0] <= MAX_TEXTS + 2


def test_a_reader_that_is_gone_or_a_descriptor_that_does_not_wait_stops_nobody() -> None:
    """P21: a broken pipe loses lines, and a pipe that somebody has made non-blocking takes them all the same, when it
    can.
    """
    read, write = os.pipe()
    os.close(read)
    with writer_into(write) as writer:
        writer.put("into the void\n")
        writer.flush()
    os.close(write)
    with full_pipe() as pipe:
        os.set_blocking(pipe.write, False)
        with writer_into(pipe.write) as writer:
            writer.put("later\n")
            said = b""

            def came() -> bool:
                nonlocal said
                said += pipe.drain()
                return said.endswith(b"later\n")

            wait_until(came)


def test_a_text_without_end_is_cut() -> None:
    read, write = os.pipe()
    with writer_into(write) as writer:
        writer.put("x" * 5 * MAX_TEXT_LENGTH)
        writer.flush()
        assert os.read(read, 1 << 20).endswith(f"... and {4 * MAX_TEXT_LENGTH} more characters\n".encode())
    os.close(read)
    os.close(write)


def test_lines_of_one_cause_are_limited_and_those_of_others_are_not() -> None:
    """P12, P21: a cause is the text before its values stand in it; what was held back is counted when a new minute
    begins.
    """
    limit, now = CauseLimit(), 5 * WINDOW_NS

    def record(text: str, room: int) -> logging.LogRecord:
        return logging.LogRecord("embridge.some", logging.WARNING, "", 0, text, (room,), None)

    passed = [limit.take(record("room %d failed", room), now) for room in range(10 * LINES_A_CAUSE)]
    assert [passes for passes, _, _ in passed] == [True] * LINES_A_CAUSE + [False] * 9 * LINES_A_CAUSE
    assert [is_last for _, is_last, _ in passed].index(True) == LINES_A_CAUSE - 1
    assert limit.take(record("peer %d is lost", 1), now)[0]
    passes, _, told = limit.take(record("room %d failed", 1), now + WINDOW_NS)
    assert passes
    assert told == f"{9 * LINES_A_CAUSE} lines like 'room %d failed' were held back\n"
    passed = [limit.take(record(f"text {i} of %d", i), now + WINDOW_NS) for i in range(10 * MAX_CAUSES)]
    assert sum(passes for passes, _, _ in passed) < MAX_CAUSES + LINES_A_CAUSE  # who makes up causes gains nothing


def test_every_logger_of_a_process_is_behind_the_limit() -> None:
    """P12: the handler limits, so no line needs to be thought of; DEBUG was asked for, and is passed whole."""
    read, write = os.pipe()
    with writer_into(write) as writer:
        log = logging.Logger("embridge.some", logging.DEBUG)
        log.addHandler(Handler(writer))
        for room in range(LINES_A_CAUSE + 5):
            log.warning("room %d failed", room)
            log.debug("room %d", room)
        writer.flush()
        lines = os.read(read, 1 << 20).decode().splitlines()
        assert sum("failed" in line for line in lines) == LINES_A_CAUSE
        assert f"room {LINES_A_CAUSE - 1} failed; no more lines of this cause within a minute" in lines
        assert lines.count(f"room {LINES_A_CAUSE + 4}") == 1
    os.close(read)
    os.close(write)


def test_a_stream_writes_whole_lines() -> None:
    read, write = os.pipe()
    with writer_into(write) as writer:
        stream = Stream(writer, write)
        for piece in ("one", " two\nthree\nfo", "ur"):
            print(piece, end="", file=stream)
        writer.flush()
        assert os.read(read, 100) == b"one two\nthree\n"
        stream.flush()
        assert os.read(read, 100) == b"four"
        with pytest.raises(TypeError):
            stream.write(b"five")  # type: ignore[arg-type]
    os.close(read)
    os.close(write)


CRASH = """
import logging, threading
from embridge.workers.stderr import log_to_stderr
log_to_stderr("INFO", "some")
logging.getLogger("embridge.some").warning("a line of %s", "some")
threading.Thread(target=lambda: 1 / 0).start()
raise KeyError("its main thread")
"""


def crash(stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CRASH], stderr=stderr)


def test_the_traceback_of_a_crash_comes_out() -> None:
    """P21: what goes through a thread is written before the process is gone: log lines, and tracebacks of its
    threads.
    """
    process = crash(subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"WARNING embridge[some] a line of some\n" in said
    assert b"ZeroDivisionError: division by zero\n" in said
    assert b"KeyError: 'its main thread'\n" in said


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_process_ends_though_nobody_can_take_what_it_says(kind: str) -> None:
    """P21, P8: neither its crash nor its end waits for standard error."""
    with full_pipe() as pipe:
        closed = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, CRASH]
        process = crash(pipe.write) if kind == "full" else subprocess.Popen(closed)
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
            process.wait()


def test_the_thread_that_writes_is_there_before_the_first_line() -> None:
    """P20: whoever watches the threads of a process, as the launcher does, sees none come later, and holds no more for
    it.
    """
    code = (
        "import logging, threading; from embridge.workers.stderr import log_to_stderr; log_to_stderr('INFO', 'x');"
        "before = threading.active_count(); logging.getLogger().warning('a line'); print(before, "
        "threading.active_count(), flush=True)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["2", "2"]
    assert "a line" in said.stderr
