"""Notices when a process can write no more, which is before the kernel has buried it.

SIGKILL ends the threads of a process one by one. Each thread lets go of the memory first, and the last thread takes the
memory apart, page table by page table: 15 ms for a process that has imported torch, 250 ms with 2 GiB of its own,
seconds with a GPU's driver. Only then is the pidfd of the process readable, and are its connections closed. But from
the moment at which no thread has memory any more, the process can write nothing.

A pidfd of a thread (Linux 6.9) tells that the thread has ended. Two threads are watched, for one of them may be the
last, whose pidfd tells no sooner than that of the process; the pidfd of a process's first thread never does. A client
has two other threads (`Client`): the library thread, and one that is there for this watch. When a watched thread ends,
`DeathWatch` looks at the others until none has memory, or until the process is seen to live on.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable
from typing import Final

from embridge.workers.timing import NS

PIDFD_THREAD: Final = os.O_EXCL  # <linux/pidfd.h>
WATCHED_THREADS: Final = 2
ARRIVAL_NS: Final = NS  # in which whoever has come starts its threads
ARRIVAL_PAUSE_NS: Final = NS // 50
LOOK_PAUSE_NS: Final = NS // 500
# after a thread has ended; a process that still has memory then has lost a thread, no more
LOOK_FOR_NS: Final = NS // 2
_VSIZE: Final = 20  # "Virtual memory size in bytes", among the fields of /proc/<pid>/stat that follow the name


def has_memory(pid: int) -> bool:
    """Whether any thread of a process still has its memory.

    Raises OSError if /proc cannot be read, usually because the process is gone.
    """
    # twice: a thread that had no memory the first time has begun no other since
    return any(_any_has_memory(pid) for _ in range(2))


def _any_has_memory(pid: int) -> bool:
    return any(_thread_has_memory(pid, thread) for thread in _threads(pid))


def _threads(pid: int) -> list[int]:
    """The threads of a process, oldest first. Raises OSError."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def _thread_has_memory(pid: int, thread: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(b")") + 2 :].split()[_VSIZE] != b"0"


class DeathWatch:
    """Watches two threads of one process, for whoever owns the selector.

    `gone` is called at most once, from within it or from `tick`.
    """

    def __init__(
        self, selector: selectors.BaseSelector, pid: int, gone: Callable[[], None], clock: Callable[[], int]
    ) -> None:
        self._selector = selector
        self._pid = pid
        self._gone = gone
        self._clock = clock
        self._watched: dict[int, int] = {}  # thread -> its pidfd
        self._look_until_ns = 0
        self._arrives_until_ns = clock() + ARRIVAL_NS
        self._is_able = pid > 0  # of another pid namespace there is no number here

    def tick(self, now_ns: int) -> int | None:
        """Look at the process; called several times a second, and when the next look is due.

        Returns when the next look is due (monotonic ns), None for any time.
        """
        if self._look_until_ns:
            return self._look(now_ns)
        if self._is_able and len(self._watched) < WATCHED_THREADS:
            self._watch_more()
            if self._is_able and len(self._watched) < WATCHED_THREADS and now_ns < self._arrives_until_ns:
                return now_ns + ARRIVAL_PAUSE_NS
        return None

    def _watch_more(self) -> None:
        """Watch the oldest threads, which live longest.

        Where a thread cannot be watched, the death of the process is noticed later, by the pidfd of the process.
        """
        with contextlib.suppress(OSError):
            for thread in _threads(self._pid):
                if len(self._watched) == WATCHED_THREADS:
                    return
                if thread != self._pid and thread not in self._watched:
                    self._watch(thread)

    def _watch(self, thread: int) -> None:
        try:
            pidfd = os.pidfd_open(thread, PIDFD_THREAD)
        except ProcessLookupError:
            return
        except OSError:  # a kernel that knows no such pidfd, or no descriptors left
            self._is_able = False
            return
        try:
            self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._has_ended(thread))
        except OSError:
            os.close(pidfd)
            self._is_able = False
            return
        self._watched[thread] = pidfd

    def _has_ended(self, thread: int) -> None:
        if thread not in self._watched:
            return  # closed in the same turn
        self._forget(thread)
        now = self._clock()
        self._look_until_ns = now + LOOK_FOR_NS
        self._look(now)

    def _look(self, now_ns: int) -> int | None:
        try:
            is_gone = not has_memory(self._pid)
        except OSError:  # buried meanwhile, which its pidfd says, or no descriptor to look with
            is_gone = False
        if is_gone:
            self.close()
            self._gone()
        elif now_ns < self._look_until_ns:
            return now_ns + LOOK_PAUSE_NS
        self._look_until_ns = 0
        return None

    def _forget(self, thread: int) -> None:
        pidfd = self._watched.pop(thread)
        self._selector.unregister(pidfd)
        os.close(pidfd)

    def close(self) -> None:
        """Stop looking."""
        self._look_until_ns, self._is_able = 0, False
        for thread in list(self._watched):
            self._forget(thread)
