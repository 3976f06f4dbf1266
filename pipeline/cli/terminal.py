"""A terminal that a command has to itself: its whole screen, and its keys one by one.

Whatever ends the command, the terminal is as it was before: the end of the block, an exception, Ctrl-C, SIGTERM and
SIGHUP. Ctrl-Z gives it back meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

from rich.console import Console, ConsoleDimensions, Group
from rich.screen import Screen
from rich.text import Text

ESCAPE_S: Final = 0.05  # the rest of a sequence follows its escape within this
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
_SEQUENCES: Final = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "4~": "end", "5~": "page up", "6~": "page down", "7~": "home", "8~": "end", "3~": "delete",
}  # fmt: skip
_PLAIN: Final = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\t": "tab", "\x0c": "redraw"}


class Terminal:
    """The terminal of standard input and output, for the length of a block. One thread's, the main one's."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._fd = sys.stdin.fileno()
        self._stack = contextlib.ExitStack()

    @staticmethod
    def why_not(console: Console) -> str:
        """Why there is no such terminal; empty where there is one."""
        if not (sys.stdin.isatty() and console.is_terminal):
            return "standard input and output are no terminal"
        if console.is_dumb_terminal:
            return "this terminal has no screen to draw on, as TERM says"
        return ""

    def __enter__(self) -> Terminal:
        with contextlib.ExitStack() as stack:
            self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, self._wake_read)
            stack.callback(os.close, wake_write)
            before = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, before)
            stack.enter_context(_handled(_end, *_ENDINGS))
            stack.enter_context(_handled(_look_up, signal.SIGWINCH, signal.SIGCONT))
            stack.enter_context(_handled(self._pause, signal.SIGTSTP))
            self._cooked = termios.tcgetattr(self._fd)
            stack.callback(self._give_back)
            self._take()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDINGS, signal.SIGINT))  # one more waits for its turn
        try:
            self._stack.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _take(self) -> None:
        tty.setcbreak(self._fd, termios.TCSADRAIN)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._cooked)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell has the terminal until it continues this process."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now; what is drawn next has this size."""
        try:
            width, height = os.get_terminal_size(self._fd)
        except OSError:  # the terminal is gone
            width = height = 0
        self._console.size = ConsoleDimensions(width or 80, height or 24)  # some that are no window say 0
        return self._console.size.width, self._console.size.height

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines, and nothing else."""
        self._console.print(Screen(Group(*lines)), end="")

    def keys(self, within_s: float) -> list[str]:
        """The keys that were pressed, within this time or as soon as there are some; [] too when the size has changed.

        A printable key is its character, the others have names: `up`, `enter`, `escape`.

        Raises:
            SystemExit: a signal came that ends the command, or nobody is at the keyboard any more.
        """
        ready, _, _ = select.select([self._fd, self._wake_read], [], [], max(0.0, within_s))
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._fd not in ready:
            return []
        typed = self._read()
        if not typed:
            raise SystemExit(128 + signal.SIGHUP)
        deadline = time.monotonic() + ESCAPE_S
        while _is_cut(typed) and (left := deadline - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                more = self._read()
                if not more:
                    break
                typed += more
        return list(keys_of(typed))

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 1024)
        except OSError:  # the terminal is gone
            return b""


def keys_of(typed: bytes) -> Iterator[str]:
    """The keys that a terminal sends so; sequences that mean none of ours are left out."""
    text = typed.decode(errors="ignore")
    i = 0
    while i < len(text):
        if text[i] != "\x1b":
            if (key := _PLAIN.get(text[i], text[i])).isprintable():
                yield key
            i += 1
            continue
        if text[i + 1 : i + 2] not in ("[", "O"):
            yield "escape"
            i += 1
            continue
        end = i + 2
        while end < len(text) and not "@" <= text[end] <= "~":
            end += 1
        if (name := _SEQUENCES.get(text[i + 2 : end + 1])) is not None:
            yield name
        i = end + 1


def _is_cut(typed: bytes) -> bool:
    """Whether more of a sequence, or of a character, may follow."""
    last = typed.rfind(b"\x1b")
    tail = typed[last:] if last >= 0 else b""
    if tail in (b"\x1b", b"\x1b[", b"\x1bO") or (tail.startswith(b"\x1b[") and not 0x40 <= tail[-1] <= 0x7E):
        return True
    try:
        typed.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _look_up(number: int, frame: FrameType | None) -> None:
    """That it came wakes whoever waits for a key."""


@contextlib.contextmanager
def _handled(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
