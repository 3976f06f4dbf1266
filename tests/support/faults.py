"""Fail points: one call of an external function, by embridge's own code, fails (P15).

Production code holds no fail points. The functions that it calls are wrapped from outside; a wrapper looks at who
calls, counts the calls of embridge's modules (not those of the interpreter, of the libraries, or of the test), and
makes the n-th one fail as the system would. A first run without a failure counts the calls, so a test takes each n of
each call, and not those that somebody thought of.

- In the test's own process: `in_force(point)`.
- In the processes of a node: `fault_site/sitecustomize.py` stands first in their path and puts the wrappers in; a
  `FaultDir` tells them, while they run, which process is to fail where, and shows that the point was hit. So one node
  serves many points.

Left out are calls that fail only for a wrong argument (`close`, `fstat` of an open descriptor, `eventfd_read`,
`set_blocking`, ...).
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import importlib.abc
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple, TypeVar

SITE = Path(__file__).with_name("fault_site")
DIR_VARIABLE = "EB_TEST_FAULTS"  # set for the nodes of a test only
PACKAGE = "embridge."
LAUNCHER = "embridge.pipeline.node.launcher"


class Point(NamedTuple):
    """The n-th call, from 1."""

    call: str
    n: int


class Call(NamedTuple):
    """An external function: where it is looked up, and how it fails. An outcome that is no exception is returned."""

    module: str
    attribute: str  # of the module, or of a class in it: `socket.bind`
    outcome: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}".removesuffix(".__init__").removeprefix("embridge.allocator.")


def _os(number: int) -> Callable[[], OSError]:
    return lambda: OSError(number, os.strerror(number))


def _of(module: str, error: str, *arguments: Any) -> Callable[[], Any]:
    """An error of a module that may not be loaded yet."""
    return lambda: getattr(sys.modules[module], error)(*arguments)


def _zmq(number: int) -> Callable[[], Any]:
    return _of("zmq", "ZMQError", number)


CALLS = (
    *(
        Call("os", name, _os(errno.EMFILE))
        for name in ("open", "pipe", "dup", "eventfd", "pidfd_open", "listdir", "scandir")
    ),
    Call("posix_ipc", "SharedMemory", lambda: OSError("This process already has the maximum number of files open")),
    Call("os", "posix_fallocate", _os(errno.ENOSPC)),
    Call("os", "chmod", _os(errno.EPERM)),
    Call("os", "mkdir", _os(errno.ENOSPC)),
    Call("os", "unlink", _os(errno.EROFS)),
    Call("os", "rename", _os(errno.EIO)),
    Call("os", "read", _os(errno.EIO)),
    Call("os", "write", _os(errno.EPIPE)),
    Call("os", "dup2", _os(errno.EBUSY)),
    Call("fcntl", "flock", _os(errno.ENOLCK)),
    Call("builtins", "open", _os(errno.EMFILE)),
    *(Call("pathlib", f"Path.{name}", _os(number)) for name, number in {
        "mkdir": errno.EACCES, "stat": errno.EACCES, "read_text": errno.EIO, "write_text": errno.ENOSPC,
        "replace": errno.EIO,
        "unlink": errno.EROFS,
    }.items()),
    Call("embridge.allocator.segment", "Mapping", _os(errno.ENOMEM)),
    Call("socket", "socket.__init__", _os(errno.EMFILE)),
    *(Call("socket", f"socket.{name}", _os(number)) for name, number in {
        "bind": errno.EADDRINUSE, "listen": errno.EADDRINUSE, "accept": errno.EMFILE, "connect": errno.ECONNREFUSED,
        "getsockopt": errno.ENOBUFS, "setsockopt": errno.ENOMEM, "send": errno.EPIPE, "recv": errno.ECONNRESET,
    }.items()),
    Call("socket", "send_fds", _os(errno.ETOOMANYREFS)),
    Call("socket", "recv_fds", _os(errno.ECONNRESET)),
    Call("socket", "getaddrinfo", _of("socket", "gaierror", -10, "Memory allocation failure")),
    Call("socket", "create_connection", _os(errno.ECONNREFUSED)),
    Call("resource", "setrlimit", _os(errno.EPERM)),
    Call("selectors", "DefaultSelector", _os(errno.EMFILE)),
    Call("selectors", "DefaultSelector.register", _os(errno.ENOSPC)),
    Call("select", "select", _os(errno.ENOMEM)),
    Call("select", "epoll", _os(errno.EMFILE)),
    Call("multiprocessing.process", "BaseProcess.start", _os(errno.EAGAIN)),
    Call("subprocess", "Popen.__init__", _os(errno.EAGAIN)),
    Call("threading", "Thread.start", lambda: RuntimeError("can't start new thread")),
    Call("zmq.sugar.context", "Context.__init__", _zmq(errno.EMFILE)),
    Call("zmq.sugar.context", "Context.socket", _zmq(errno.EMFILE)),
    *(Call("zmq.sugar.socket", f"Socket.{name}", _zmq(number)) for name, number in {
        "bind": errno.EADDRINUSE, "connect": errno.EMFILE, "get_monitor_socket": errno.EMFILE,
        "send": errno.EHOSTUNREACH,
        "send_multipart": errno.EHOSTUNREACH, "recv_multipart": errno.ENOMEM, "poll": errno.ENOMEM,
    }.items()),
    Call("zmq.sugar.poll", "Poller.poll", _zmq(errno.ENOMEM)),
    Call("mooncake.engine", "TransferEngine.initialize", lambda: -1),
    Call("mooncake.engine", "TransferEngine.register_memory", lambda: -1),
    Call("mooncake.engine", "TransferEngine.send_probe", lambda: -1),
    Call("mooncake.engine", "TransferEngine.transfer_submit_write", lambda: -1),
    Call("aiohttp", "ClientSession.__init__", _os(errno.EMFILE)),
    Call(
        *("aiohttp", "ClientSession.request"),
        _of("aiohttp", "ClientOSError", errno.ECONNRESET, "Connection reset by peer"),
    ),
)  # fmt: skip


class Plan:
    """What is counted, and what fails, in this process; with a `thread`, in that thread alone."""

    def __init__(self, point: Point | None = None, thread: int | None = None) -> None:
        self.point = point
        self.thread = thread
        self.counts: Counter[str] = Counter()
        self.hit = False

    def fails(self, call: str) -> bool:
        """Count one call; whether it is the one that fails."""
        if self.thread not in (None, threading.get_ident()):
            return False
        self.counts[call] += 1
        if self.point is None or self.hit or self.point != (call, self.counts[call]):
            return False
        self.hit = True
        return True

    def points(self, limit: int) -> list[Point]:
        """Every call that was counted, the first `limit` times."""
        return [Point(call, n) for call, count in sorted(self.counts.items()) for n in range(1, min(count, limit) + 1)]


T = TypeVar("T")


def share_of(points: Sequence[T], k: int) -> list[T]:
    """Every k-th: what `make test` takes of what a storm takes in full."""
    return list(points[::k])


_plan: Any = None  # what the wrappers ask: a Plan, or a FilePlan


def _caller(frame: FrameType) -> str:
    """The module that calls: for a module that is run, its own name."""
    name = frame.f_globals.get("__name__", "")
    if name == "__main__":
        name = getattr(frame.f_globals.get("__spec__"), "name", "")
    return str(name)


def _wrapped(call: Call, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real, updated=())
    def wrapper(*arguments: Any, **named: Any) -> Any:
        if _plan is not None and _caller(sys._getframe(1)).startswith(PACKAGE) and _plan.fails(call.name):
            outcome = call.outcome()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        return real(*arguments, **named)

    # a class may keep what is no method: it must not bind
    return wrapper if "." in call.attribute else staticmethod(wrapper)


def _place(call: Call) -> tuple[Any, str]:
    """Whose attribute is to be replaced."""
    owner: Any = sys.modules[call.module]
    *path, attribute = call.attribute.split(".")
    for name in path:
        owner = getattr(owner, name)
    return owner, attribute


def _wrap(calls: Sequence[Call]) -> list[tuple[Any, str, Any, bool]]:
    """Replace those whose modules are loaded; what is needed to undo it."""
    there = [(call, *_place(call)) for call in calls if call.module in sys.modules]
    undo = [(owner, attribute, getattr(owner, attribute), attribute in vars(owner)) for _, owner, attribute in there]
    for (call, owner, attribute), (_, _, real, _) in zip(there, undo, strict=True):
        setattr(owner, attribute, _wrapped(call, real))
    return undo


# ---- in the test's own process


@contextlib.contextmanager
def _in_force(plan: Plan) -> Iterator[Plan]:
    global _plan
    assert _plan is None
    undo = _wrap(CALLS)
    _plan = plan
    try:
        yield plan
    finally:
        _plan = None
        for owner, attribute, real, is_own in reversed(undo):
            if is_own:
                setattr(owner, attribute, real)
            else:
                delattr(owner, attribute)


def in_force(point: Point | None = None, thread: int | None = None) -> contextlib.AbstractContextManager[Plan]:
    """The calls of a block (of one thread, if it is given) are counted; with a point, that one fails, and `hit` tells
    whether it did.
    """
    return _in_force(Plan(point, thread))


# ---- in the processes of a node


class FaultDir:
    """A folder through which a test tells the processes of its nodes what fails, and learns what they call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = self._recorded = 0
        path.mkdir()
        self.disarm()

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Nodes that are launched in this block have fail points."""
        before = {name: os.environ.get(name) for name in (DIR_VARIABLE, "PYTHONPATH")}
        os.environ[DIR_VARIABLE] = str(self.path)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(SITE), str(SITE.parent.parent), before["PYTHONPATH"]))
        )
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def record(self) -> None:
        """From now on, every process writes down what it calls."""
        self._say("record")
        self._recorded = self._number

    def arm(self, process: str, point: Point) -> None:
        """The n-th such call of this process from now on fails, once; of a new process too, which then counts from its
        start.
        """
        self._say(f"fail {process} {point.call} {point.n}")

    def disarm(self) -> None:
        self._say("nothing")

    def _say(self, what: str) -> None:
        self._number += 1
        fresh = self.path / "plan.new"
        fresh.write_text(f"{self._number} {what}")
        fresh.replace(self.path / "plan")

    @property
    def was_hit(self) -> bool:
        """Whether what was armed last has failed."""
        return (self.path / f"hit{self._number}").exists()

    def points(self, limit: int) -> list[tuple[str, Point]]:
        """(process, point) of what the processes have called since `record`, each call the first `limit` times."""
        try:
            lines = (self.path / f"calls{self._recorded}").read_text().splitlines()
        except FileNotFoundError:
            return []
        counts = Counter(lines)
        return [(*_split(line, n),) for line, count in sorted(counts.items()) for n in range(1, min(count, limit) + 1)]


def _split(line: str, n: int) -> tuple[str, Point]:
    process, call = line.split()
    return process, Point(call, n)


class FilePlan:
    """The plan of one process of a node: what stands in the folder's file, looked at with each call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat, self._open = os.stat, builtins.open
        self._os_open, self._os_write, self._os_close = os.open, os.write, os.close
        self._stamp: tuple[int, int] = (0, 0)
        self._number = 0
        self._words: list[str] = []
        self._plan = Plan()

    def fails(self, call: str) -> bool:
        status = self._stat(self._path / "plan")
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            with self._open(self._path / "plan") as file:
                number, *self._words = file.read().split()
            self._number = int(number)
            self._plan = Plan()
        process = _process_name()
        if self._words[0] == "record":
            self._append(f"calls{self._number}", f"{process} {call}\n", 0)
        if self._words[0] != "fail" or self._words[1] != process:
            return False
        self._plan.point = Point(self._words[2], int(self._words[3]))
        if not self._plan.fails(call):
            return False
        try:
            self._append(f"hit{self._number}", f"{process} {call}\n", os.O_EXCL)
        except FileExistsError:  # the process that was here before has had it
            return False
        return True

    def _append(self, name: str, line: str, flags: int) -> None:
        fd = self._os_open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        self._os_write(fd, line.encode())
        self._os_close(fd)


def _process_name() -> str:
    """launcher, bootstrap, poller, worker0, ...; empty for what is none of a node's."""
    module = sys.modules.get("multiprocessing.process")
    name = module.current_process().name if module is not None else "MainProcess"
    if name == "MainProcess":
        return "launcher" if LAUNCHER in sys.orig_argv else ""
    return str(name).removeprefix("embridge-")


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of a module as soon as it has been loaded."""

    def __init__(self) -> None:
        self._modules = {call.module for call in CALLS} - sys.modules.keys()

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._modules:
            return None
        self._modules.discard(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, [call for call in CALLS if call.module == name])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, calls: list[Call]) -> None:
        self._real = real
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        _wrap(self._calls)


def install(path: Path) -> None:
    """Put the wrappers into this process, for good (for `sitecustomize`)."""
    global _plan
    plan = FilePlan(path)
    sys.meta_path.insert(0, _Finder())
    _wrap(CALLS)
    _plan = plan
