"""`embridge top` and `embridge trace` at a real terminal and on real nodes: keys, sizes, and that the terminal is given
back as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text
from support.carrying import carried
from support.encoding import open_sender
from support.nodes import Station
from support.scheduling import Queues
from support.stopping import is_stopped
from support.waiting import wait_until

from embridge import Client
from embridge.pipeline.cli import main
from embridge.pipeline.cli.terminal import Terminal

ENTERED, LEFT, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


class Pty:
    """A terminal of 80 by 24, and what was shown on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        os.set_blocking(self.ours, False)
        self.text = ""
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.theirs)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read(self) -> str:
        """All that was shown until now."""
        try:
            while more := os.read(self.ours, 65536):
                self.text += more.decode(errors="replace")
        except BlockingIOError:
            pass
        return self.text

    def wait_for(self, said: str) -> None:
        """Until this is shown; then what came before is forgotten."""
        wait_until(lambda: said in plain(self.read()), 20.0, lambda: f"{said!r} is shown: {plain(self.text)[-2000:]}")
        self.text = ""

    def is_given_back(self) -> bool:
        """Its modes are what they were, the first screen is shown, and the cursor."""
        text = self.read()
        return (
            termios.tcgetattr(self.theirs) == self.before
            and text.rfind(LEFT) > text.rfind(ENTERED)
            and CURSOR in text[max(0, text.rfind(ENTERED)) :]
        )

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def pty() -> Iterator[Pty]:
    made = Pty()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def at_pty(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """This process is at that terminal."""
    with open(pty.theirs, closefd=False) as keyboard, open(pty.theirs, "w", closefd=False) as display:
        monkeypatch.setattr("sys.stdin", keyboard)
        yield Console(file=display, force_terminal=True, color_system="standard", _environ={"TERM": "xterm"})


# ---- the terminal


@pytest.mark.parametrize(
    ("ends_with", "raised"),
    [
        (lambda: None, None),
        (lambda: 1 // 0, ZeroDivisionError),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
        (lambda: os.kill(os.getpid(), signal.SIGHUP), SystemExit),
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
    ],
    ids=["end", "exception", "SIGTERM", "SIGHUP", "SIGINT"],
)
def test_whatever_ends_the_block_the_terminal_is_as_it_was(
    pty: Pty, at_pty: Console, ends_with: Any, raised: type[BaseException] | None
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)}

    def live() -> None:
        with Terminal(at_pty) as terminal:
            terminal.draw([Text("something")])
            assert termios.tcgetattr(pty.theirs) != pty.before
            ends_with()
            terminal.keys(5.0 if raised else 0.0)

    if raised is None:
        live()
    else:
        with pytest.raises(raised) as caught:
            live()
        if isinstance(caught.value, SystemExit):
            assert caught.value.code in (128 + signal.SIGTERM, 128 + signal.SIGHUP)
    assert "something" in pty.read()
    assert pty.is_given_back()
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_new_size_wakes_who_waits_for_a_key_and_is_drawn_at_once(pty: Pty, at_pty: Console) -> None:
    with Terminal(at_pty) as terminal:
        assert terminal.size == (80, 24)
        pty.resize(40, 12)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert terminal.keys(60.0) == []
        assert terminal.size == (40, 12)
        terminal.draw([Text("x" * 40)] * 12)
        pty.type("j\x1b[B\x1b")
        assert terminal.keys(60.0) == ["j", "down", "escape"]
        pty.type("\x1b[")
        assert terminal.keys(60.0) == []  # the rest of it never comes
    assert pty.is_given_back()


def test_without_a_terminal_it_says_what_there_is_instead(
    pty: Pty, at_pty: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Terminal.why_not(at_pty) == ""
    dumb = Console(file=at_pty.file, force_terminal=True, _environ={"TERM": "dumb"})
    monkeypatch.setenv("TERM", "dumb")
    assert "has no screen to draw on" in Terminal.why_not(dumb)
    code, out, err = invoke("top", "--run-dir", str(tmp_path))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--once prints one picture" in err


# ---- on nodes


def invoke(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, args, prog_name="embridge")
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.process
def test_keys_lead_through_a_live_node_and_q_and_sigterm_give_the_terminal_back(
    pty: Pty, encode: Station, sending: Client, rooms: Iterator[int]
) -> None:
    """From the list to a request's story, to the node and back; filters; and what opens meanwhile appears."""
    waiting, later = next(rooms), next(rooms)
    words = [sys.executable, "-m", "embridge", "top", "--run-dir", str(encode.run_dir), "--interval", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    senders = [open_sender(sending, waiting, 100)]
    for end in ("q", "SIGTERM"):
        with subprocess.Popen(
            words, stdin=pty.theirs, stdout=pty.theirs, stderr=pty.theirs, start_new_session=True, env=environment
        ) as process:
            try:
                pty.wait_for(f"room {waiting} waits for")
                if end == "q":
                    pty.wait_for("requests/s")  # after the second look
                    pty.type("\r")
                    pty.wait_for("waits for")
                    pty.wait_for("rule: ")
                    pty.type("\x1b[Dn")
                    pty.wait_for("restarts")
                    pty.type("n/xyz\r")
                    pty.wait_for("with 'xyz'")
                    pty.type("\x1b")
                    senders.append(open_sender(sending, later, 100))
                    pty.wait_for(f"{later} Bootstrapping")
                    process.send_signal(signal.SIGTSTP)  # Ctrl-Z
                    wait_until(partial(is_stopped, process.pid))  # a SIGCONT that came before would be in vain
                    assert pty.is_given_back()
                    process.send_signal(signal.SIGCONT)
                    pty.wait_for("in flight")
                    pty.type("q")
                else:
                    process.terminate()
                assert process.wait(20) == (0 if end == "q" else 128 + signal.SIGTERM)
            finally:
                process.kill()
        assert pty.is_given_back()
    for sender in senders:
        sender.abort()


@pytest.mark.process
def test_one_picture_and_the_trace_of_a_request_on_both_of_its_nodes(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int], tmp_path: Path
) -> None:
    """P8: one that has ended, with its phases on both sides by one clock, and one that waits, with for whom."""
    done, waiting = next(rooms), next(rooms)
    assert carried(receiving, encode.addr, sending, done, 300).difference == ""
    sender = open_sender(sending, waiting, 50)
    both = ["--run-dir", str(encode.run_dir), "--run-dir", str(language.run_dir)]

    code, out, err = invoke("trace", str(done), *both, "--json")
    assert (code, err) == (0, "")
    for node, role in zip(json.loads(out), ("encode", "language"), strict=True):
        (told,) = node["requests"]
        assert (node["role"], told["room"], told["phase"], told["sent"]) == (role, done, "Success", 300)
        assert told["has_ended"]
        assert told["stages"][0]["phase"] == "Bootstrapping"
        assert sum(stage["for_s"] for stage in told["stages"]) == pytest.approx(told["took_s"], abs=1e-3)
        assert told["paths"]
    code, out, _ = invoke("trace", str(done), *both)
    assert (code, out.count(f"room {done}"), out.count("Success after")) == (0, 2, 2)

    code, out, _ = invoke("trace", str(waiting), *both)
    assert (code, out.count(f"room {waiting}")) == (0, 1)
    assert "waits for" in out

    code, out, err = invoke("trace", "--slowest", "2", *both, "--chrome", str(tmp_path / "t.json"))
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert (code, out, "requests; https://ui.perfetto.dev" in err) == (0, "", True)
    assert {event["pid"] for event in events} == {1, 2}
    sides = [event["ts"] for event in events if event["name"] == f"room {done}: Success"]
    assert len(sides) <= 2
    code, out, _ = invoke("trace", str(done), *both, "--chrome", "-")
    assert (code, {event["ph"] for event in json.loads(out)["traceEvents"]}) == (0, {"M", "X"})

    code, out, _ = invoke("top", "--run-dir", str(encode.run_dir), "--json", "--interval", "0.1")
    data = json.loads(out)
    assert (code, data["role"], data["requests"]["in_flight"]) == (0, "encode", 1)
    assert data["in_flight"][0]["room"] == waiting
    assert data["ended"]["succeeded"] >= 1
    assert data["rates"]["over_s"] >= 0.1
    code, out, _ = invoke("top", "--run-dir", str(encode.run_dir), "--once", "--interval", "0.1")
    assert (code, f"{waiting} Bootstrapping" in out) == (0, True)
    sender.abort()


def test_a_trace_of_nothing_is_asked_what_it_should_be_of(tmp_path: Path) -> None:
    for args in ([], ["5", "--slowest", "3"]):
        code, out, err = invoke("trace", *args, "--run-dir", str(tmp_path))
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "--slowest N" in err


@pytest.mark.process
def test_a_room_that_nobody_knows_is_one_line_and_status_2(encode: Station) -> None:
    code, out, err = invoke("trace", "123456789", "--run-dir", str(encode.run_dir))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "know of no such request" in err
