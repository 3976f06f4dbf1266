"""Kill a process at each of its system calls in turn, and look at what it leaves in /dev/shm.

`python -m support.stepping create` forks a child that makes a segment, stops it by ptrace before and after each of its
system calls, and kills it there: at the first of these stops, then another child at the second, and so on, until one
gets through. `remove` does the same to whoever removes the name of a dead process. What stands in /dev/shm changes by
system calls alone, so these are all the states that a kill can leave. It prints, as JSON, what was left after each
kill, and after the next start has cleaned up.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import posix_ipc

from embridge.allocator import segment
from embridge.allocator.segment import SHARED_MEMORY, create_segment, remove_left_names, shared_memory_space

SIZE: Final = 1 << 20
_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200
_EXITKILL: Final = 0x00100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _child(act: Callable[[], Any]) -> int:
    """A process that is stopped before it acts."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return pid
    try:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
    finally:
        os._exit(0)


def killed_at(stop: int, act: Callable[[], Any]) -> tuple[int, bool]:
    """The number of a child that was killed at its n-th stop, and whether it came so far."""
    pid = _child(act)
    _ptrace(_SETOPTIONS, pid, _EXITKILL)
    for _ in range(stop):
        _ptrace(_SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return pid, False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid, True


def left() -> dict[str, int]:
    """The names that children of this process have left, and the size of each."""
    names = [name for name in os.listdir(SHARED_MEMORY) if name.startswith("embridge-")]
    return {name: os.stat(f"{SHARED_MEMORY}/{name}").st_size for name in names if int(name.split("-")[2]) in _children}


def used_bytes() -> int:
    space = shared_memory_space()
    return space.size - space.free


_children: set[int] = set()


def leave_a_name() -> None:
    """What a kill between the two calls leaves."""
    pid = os.fork()
    if not pid:
        real, posix_ipc.unlink_shared_memory = posix_ipc.unlink_shared_memory, lambda name: os._exit(0)
        segment.create_segment("payload", SIZE)
        real("")
    os.waitpid(pid, 0)
    _children.add(pid)


def main(what: str) -> None:
    states = []
    for stop in range(1, 10_000):
        if what == "remove":
            leave_a_name()
        act = remove_left_names if what == "remove" else lambda: create_segment("payload", SIZE)
        pid, has_come = killed_at(stop, act)
        _children.add(pid)
        states.append({"left": left(), "used_bytes": used_bytes()})
        remove_left_names()
        states[-1]["then_left"] = left()
        if not has_come:
            break
    json.dump(states, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
