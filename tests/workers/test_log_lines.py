"""What a line of the log says of who speaks, as text and as JSON; titles of processes; failures by cause."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from support.alone import LanguageAlone

from embridge.workers.log_limit import CauseLimit
from embridge.workers.log_lines import lines
from embridge.workers.stderr import Handler, Stream, Writer


def record(text: str, *values: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("embridge.x", level, "", 0, text, values, None)


def test_a_line_names_the_role_the_node_and_the_process() -> None:
    line = lines("text", "poller", "encode", "1f0c").format(record("room %d failed", 7))
    assert line.endswith(" WARNING embridge[encode 1f0c poller] room 7 failed")
    assert lines("text", "launcher", "encode").format(record("early")).endswith(" embridge[encode launcher] early")


def test_a_record_is_one_line_whoever_has_written_parts_of_it() -> None:
    """A peer says why it has given a request up; it writes no lines of ours, and nothing that a terminal obeys."""
    told = record("room %d failed: %s", 7, "a\n2026-11-30 15:04:05,678 INFO embridge[x] all is well\x1b[2J\udcff")
    line = lines("text", "poller").format(told)
    assert line.endswith(r"room 7 failed: a\n2026-11-30 15:04:05,678 INFO embridge[x] all is well\x1b[2J\udcff")
    assert line.isprintable()
    try:
        raise ValueError("a bug")
    except ValueError:
        told.exc_info = sys.exc_info()
    assert lines("text", "poller").format(told).splitlines()[1] == "Traceback (most recent call last):"
    assert json.loads(lines("json", "poller").format(told))["message"].endswith("\x1b[2J\\udcff")


def test_a_line_of_json_has_a_field_for_each_and_one_for_a_traceback() -> None:
    try:
        raise ValueError("a\nbug")
    except ValueError:
        told = record("%s", "broken\nline")
        told.exc_info = sys.exc_info()
    line = lines("json", "web", "language", "ab").format(told)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["role"], said["node"], said["process"], said["level"]) == ("language", "ab", "web", "WARNING")
    assert said["message"] == "broken\nline"
    assert "ValueError: a\nbug" in said["exception"]
    assert said["time"].endswith("Z")
    assert said["logger"] == "embridge.x"


def test_every_line_of_json_is_one_whatever_it_comes_from(tmp_path: Path) -> None:
    """A record, one that is the last of its cause, what was held back, and what a crash prints."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = Writer(file.fileno())
        writer.lines = lines("json", "poller", "encode", "1")
        handler, stream = Handler(writer), Stream(writer, 2)
        handler.setFormatter(writer.lines)
        handler._limit = CauseLimit(lines_a_cause=2)
        for room in range(4):
            handler.emit(record("room %d", room))
        handler._limit._began_ns = 0  # a minute ago
        handler.emit(record("room %d", 9))
        stream.write("Traceback (most recent call last):\n")
        stream.write('  File "x", line 1\n')
        writer.close()
    said = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert said == [
        "room 0",
        "room 1; no more lines of this cause within a minute",
        "2 lines like 'room %d' were held back",
        "room 9",
        "Traceback (most recent call last):",
        '  File "x", line 1',
    ]


def test_failed_requests_are_warned_of_each_code_by_itself_and_not_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P12: ten lines a minute of one code; others are not held back by it."""
    node = LanguageAlone()
    with caplog.at_level(logging.WARNING):
        node.receiver(1).abort("enough")
        node.settle()
    (said,) = [it for it in caplog.records if "failed" in it.getMessage()]
    assert (said.levelname, said.getMessage()) == ("WARNING", "room 1 failed, ABORTED: enough")
    limit, passed = CauseLimit(), 0
    for _ in range(50):
        passed += limit.take(said, 1)[0]
    assert passed == 10
    other = logging.makeLogRecord({**said.__dict__, "msg": "room %d failed, TIMEOUT: %s"})
    assert limit.take(other, 1)[0]


def test_a_debug_line_tells_each_step_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="embridge"):
        node = LanguageAlone()
        node.receiver(4).abort("enough")
        node.settle()
    steps = [it.getMessage() for it in caplog.records if it.levelno == logging.DEBUG]
    told = "\n".join(steps)
    for step in ("room 4 has slot ", "room 4: Init grants blocks [0, 2)", "room 4 is Failed"):
        assert step in told, told


def test_ps_and_top_tell_processes_apart() -> None:
    """In a process of its own, whose words are as long as those of a node's."""
    code = (
        "import sys; from embridge.workers.titles import set_title; set_title('encode', 'poller');"
        "sys.stdout.write(open('/proc/self/comm').read() + open('/proc/self/cmdline').read().rstrip('\\0'));"
        f"padding = {'x' * 100!r}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "eb-enc-poller\nembridge: encode poller"


@pytest.mark.parametrize("words", [[], ["a"]])
def test_a_title_that_does_not_fit_is_cut_and_harms_nothing(words: list[str]) -> None:
    code = (
        "import os, sys; from embridge.workers.titles import set_title; before = dict(os.environ);"
        "set_title('language', 'x' * 4000);"
        "title = open('/proc/self/cmdline').read().rstrip('\\0');"
        "assert title.startswith('embridge: language xxx'), title;"
        "import ctypes; ctypes.CDLL(None).getenv.restype = ctypes.c_char_p;"
        "assert ctypes.CDLL(None).getenv; assert dict(os.environ) == before;"
        "assert b'PATH=' in open('/proc/self/environ', 'rb').read()"
    )
    subprocess.run([sys.executable, "-c", code, *words], timeout=60, check=True)
