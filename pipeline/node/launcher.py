"""The launcher, one a node: makes the segments, starts the processes, lets clients in, and watches over all of them.

It reads its configuration as a line of JSON on standard input (`node.launch` writes it, `launcher_start` says what runs
first). The processes are forked from it (`birth`), by the context that `torch.multiprocessing` hands out, which is the
very object of `multiprocessing` (a test says so): nobody here imports torch.

    STARTING --all processes READY--> READY --SIGTERM--> DRAINING --nothing in flight, or drain_timeout--> STOPPED
                                                             +------------ a second SIGTERM -------------->

SIGINT has the effect of SIGTERM. SIGHUP has the launcher read the files of its keys again; whoever launched the node
may send it a whole configuration besides (`Node.reload`). `reloading` says what a running node takes over; a line of
the log says what it was, and what needs a restart. Nothing of that ends a process.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec

from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import EmbridgeError, LaunchError
from embridge.allocator.geometry import Role
from embridge.allocator.layout import HUGE_PAGE_BYTES, ControlLayout, PayloadLayout
from embridge.allocator.records import NodeState, Process, SegmentHeader
from embridge.allocator.segment import (
    Descriptor,
    create_segment,
    map_segment,
    remove_left_names,
)
from embridge.allocator.shelf import shelf_size
from embridge.pipeline.config import ROLES, PipelineConfig
from embridge.pipeline.node.backlogs import Backlogs
from embridge.pipeline.node.birth import Birth
from embridge.pipeline.node.claim import next_identity, open_own, remove_own, take_lock
from embridge.pipeline.node.launch_messages import MAX_CONFIG_BYTES, Ready, decode_config
from embridge.pipeline.node.launcher_start import LAUNCHER
from embridge.pipeline.node.naming import LIMITS_REMEDY, naming
from embridge.pipeline.node.ports import BIND_FOR_S, listen
from embridge.pipeline.node.prefaulting import Prefaulting
from embridge.pipeline.node.preflight import check_discovery, chosen_engines, descriptors_left, with_pool
from embridge.pipeline.node.recovery import Recovery
from embridge.pipeline.node.reloading import Reloaded, reloaded
from embridge.pipeline.node.run_socket_server import RunSocketServer
from embridge.pipeline.node.start_line import start_line
from embridge.pipeline.node.supervisor import Supervisor
from embridge.workers.health import NOT_ESSENTIAL, num_in_flight
from embridge.workers.keys import KeyFileError, read_key_file
from embridge.workers.process_spec import READY, ProcessSpec
from embridge.workers.role import Addresses
from embridge.workers.run_socket import SOCKET_NAME
from embridge.workers.stderr import log_to_stderr
from embridge.workers.timing import NS
from embridge.workers.titles import set_title
from embridge.workers.web.address import web_address

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEVELS = logging.getLevelNamesMapping()


class Launcher:
    """One node, from its run directory to its end."""

    def __init__(self, config: PipelineConfig, *, keeps_run_dir: bool = True) -> None:
        """Raises LaunchError or SegmentError where the node cannot be made; nothing of the node is left then."""
        self.config = config
        self._keeps_run_dir = keeps_run_dir
        self._claimed = -1  # the descriptor of the run directory, once that is this node's
        self._given = config  # with what is in force since the last reload
        self.role = ROLES[config.role]
        self._stops = 0
        self._is_orphan = False
        self._opened: list[Descriptor] = []
        self._run_socket: RunSocketServer | None = None
        self._prefaulting: Prefaulting | None = None
        with naming("event loop", LIMITS_REMEDY):
            self._selector = selectors.DefaultSelector()
        try:
            self._make()
        except BaseException:
            self._release()
            raise

    def _make(self) -> None:
        self.config = config = with_pool(self.config)
        self._descriptors_left = descriptors_left(self.role, config.limits)
        self._engines = chosen_engines(config)
        try:
            # Read once: a process that restarts has the same keys.
            self._keys = read_key_file(config.key_file) if config.key_file else None
        except KeyFileError as error:
            raise LaunchError(str(error)) from error
        check_discovery(config)
        directory = self._own(Descriptor(open_own(config.directory))).fd
        self._own(Descriptor(take_lock(config.directory, directory)))
        self._claimed = directory
        self.node_id, self.incarnation = next_identity(config.directory, directory)
        self._make_segments()
        self._listen()
        self._recovery = Recovery(self.control)
        birth = Birth(multiprocessing.get_context("fork"), [self.control.mapping, self._payload])
        self._supervisor = Supervisor(
            birth, self.control, self._selector, self._recovery, config.timing, config.max_restarts
        )

    # ---- run directory, segments, sockets

    def _own(self, descriptor: Descriptor) -> Descriptor:
        self._opened.append(descriptor)
        return descriptor

    def _make_segments(self) -> None:
        config = self.config
        if left := remove_left_names():
            log.info("names of segments that processes left when they were killed, removed: %s", ", ".join(left))
        layout = ControlLayout.of(self.role, config.geometry, config.limits)
        payload_bytes = PayloadLayout.of(config.geometry).size
        self._control_fd = self._own(create_segment("control", layout.size, remedy="lower num_slots"))
        self._payload_fd = self._own(create_segment("payload", payload_bytes, huge=True))
        self._shelf: Descriptor | None = None
        self._shelf_fds = self._make_shelf() if self.role == Role.ENCODE and config.limits.shelf_bytes else {}
        mapping = map_segment(self._control_fd.fd, layout.size)
        format_control(
            mapping,
            self.role,
            config.geometry,
            config.limits,
            node_id=self.node_id,
            incarnation=self.incarnation,
            now_ns=time.monotonic_ns(),
            verify=config.verify,
            unsent_max_bytes=config.unsent_max_bytes,
        )
        self._payload = map_segment(self._payload_fd.fd, payload_bytes, alignment=HUGE_PAGE_BYTES)
        names = ["bootstrap", "poller", *(f"lane{i}" for i in range(config.limits.max_clients))]
        names += ["registrar"] * bool(config.discovery) + ["web"] * config.limits.has_web
        with naming("eventfds", LIMITS_REMEDY):
            self._event_fds = {
                name: self._own(Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))) for name in names
            }
        self.control = Control(mapping, {name: d.fd for name, d in self._event_fds.items()})
        self.control.header.store(SegmentHeader.LAUNCHER_PID, os.getpid())
        self.control.header.store(SegmentHeader.LOG_LEVEL, LEVELS[config.log_level])

    def _make_shelf(self) -> dict[str, int]:
        """The segment of published items, by the descriptors of who publishes and of who reads."""
        size = shelf_size(self.config.limits)
        self._shelf = shelf = self._own(create_segment("shelf", size, remedy="lower shelf_bytes", huge=True))
        with naming("shelf", LIMITS_REMEDY):
            to_read = self._own(Descriptor(os.open(f"/proc/self/fd/{shelf.fd}", os.O_RDONLY | os.O_CLOEXEC)))
        return {"shelf": shelf.fd, "shelf to read": to_read.fd}

    def _listen(self) -> None:
        config, until = self.config, time.monotonic() + BIND_FOR_S
        self._listening: dict[str, Descriptor] = {}
        addresses = {}
        where = {"bootstrap": (config.host, config.bootstrap_port), "poller": (config.host, config.poller_port)}
        if web := web_address(config.metrics_addr):
            where["web"] = web
        for name, (host, port) in where.items():
            fd, addresses[name] = listen(name, host, port, until)
            self._listening[name] = self._own(Descriptor(fd))
        self.control.web_addr = addresses.get("web", "").replace("tcp://", "http://")
        self.addresses = Addresses(addresses["bootstrap"], addresses["poller"], str(config.directory / SOCKET_NAME))

    # ---- up

    def start(self) -> None:
        """Start all processes and wait until each has said READY. Raises LaunchError."""
        with naming("death pipe", LIMITS_REMEDY):
            death, _ = (self._own(Descriptor(fd)) for fd in os.pipe())
        beat = self.control.processes
        beat.set("launcher", Process.PID, os.getpid())
        talking = {"bootstrap", "poller"}
        if self.role == Role.ENCODE:  # its transfer workers tell the nodes of other hosts of a success (R83)
            talking |= {name for name in self.control.processes.names if name.startswith("worker")}
        for name in self.control.processes.names[1:]:
            bells = self._event_fds if name == "poller" else {n: self._event_fds[n] for n in ("bootstrap", "poller")}
            if name in NOT_ESSENTIAL:
                bells = {name: self._event_fds[name]}
            spec = ProcessSpec(
                name=name,
                control=self._control_fd,
                control_bytes=self.control.layout.size,
                payload=self._payload_fd,
                payload_bytes=self._payload.size,
                shelf=self._shelf if name != "poller" else None,
                event_fds=bells,
                death=death,
                listen=self._listening.get(name),
                bind_addr=getattr(self.addresses, f"{name}_addr", ""),
                addresses=self.addresses,
                timing=self.config.timing,
                launcher_pid=os.getpid(),
                role=self.config.role,
                node=f"{self.node_id:x}",
                log_level=self.config.log_level,
                log_format=self.config.log_format,
                engines=tuple(engine.name for engine in self._engines),
                host=self.config.host,
                engine_settings={it.name: self.config.engine_settings.get(it.name) for it in self._engines},
                keys=self._keys if name in talking else None,
                allow_file=self.config.allow_file,
                discovery=self.config.discovery,
                discovery_token_file=str(self.config.discovery_token_file or ""),
                discovery_ca_file=str(self.config.discovery_ca_file or ""),
                web_hosts=self.config.web_hosts,
            )
            with naming(f"{name}: it cannot be started", LIMITS_REMEDY):
                self._supervisor.start(spec)
        self._prefaulting = Prefaulting(self._payload, self._payload_fd.fd, self.control.header)
        if self.config.lock_memory:
            self._prefaulting.lock()
        deadline = time.monotonic() + self.config.timing.ready_timeout_s
        while waiting := self._supervisor.not_ready():
            if failure := self._supervisor.first_failure():
                raise LaunchError(failure)
            if self._stops:
                raise LaunchError("stopped before READY")
            if time.monotonic() > deadline:
                raise LaunchError(f"{', '.join(waiting)}: not READY within {self.config.timing.ready_timeout_s:g} s")
            self._turn(0.01)
        self._supervisor.launched()
        with naming(
            f"run socket {self.addresses.run_socket}", "check the run directory, or choose another with --run-dir"
        ):
            self._run_socket = RunSocketServer(
                self.control,
                self._recovery,
                self.config.directory / SOCKET_NAME,
                self._selector,
                {"control": self._control_fd.fd, "payload": self._payload_fd.fd, **self._shelf_fds},
                {name: descriptor.fd for name, descriptor in self._event_fds.items()},
                self.addresses.bootstrap_addr,
                self.config.timing,
                self._descriptors_left,
                {
                    "default_allocate_tokens": self.config.default_allocate_tokens,
                    "host_buffer_bytes": self.config.host_buffer_bytes,
                    "direct": int(self.config.direct and not self.config.verify),
                },
                self._keys.public if self._keys is not None else "",
                str(self.config.allow_file or ""),
            )
        beat.set("launcher", Process.STATE, READY)
        self._enter(NodeState.READY)
        self._prefaulting.begin()

    def _enter(self, state: NodeState) -> None:
        """Enter the node's next state, which the registrar publishes at once."""
        self.control.header.store(SegmentHeader.NODE_STATE, state)
        if self.control.has_discovery:
            self.control.bell("registrar").ring()

    @property
    def engine_names(self) -> list[str]:
        """The engines that this node offers."""
        return [engine.name for engine in self._engines]

    def ready(self) -> Ready:
        addresses = self.addresses.bootstrap_addr, self.addresses.poller_addr, self.control.web_addr
        return Ready(os.getpid(), self.incarnation, *addresses)

    # ---- watching

    def follow(self, alive_fd: int, parent_fd: int | None) -> None:
        """Stop when the process that launched the node is gone: `parent_fd` is its pidfd, `alive_fd` a socket to it.

        What that process writes into the socket is a configuration that it has read again (`Node.reload`); its end says
        that the process has become another program.
        """
        fds = [fd for fd in (alive_fd, parent_fd) if fd is not None]
        self._selector.register(alive_fd, selectors.EVENT_READ, lambda: self._hear(alive_fd, fds))
        if parent_fd is not None:
            self._selector.register(parent_fd, selectors.EVENT_READ, lambda: self._parent_gone(fds))

    def _hear(self, alive_fd: int, fds: Sequence[int]) -> None:
        try:
            said = os.read(alive_fd, MAX_CONFIG_BYTES)
        except OSError:  # the process died with an answer unread
            said = b""
        if not said:
            self._parent_gone(fds)
            return
        try:
            told = self._reload(decode_config(said))
        except ValueError as error:  # msgspec's own are ValueErrors
            told = Reloaded([], [], [f"the configuration cannot be read: {error}"])
        with contextlib.suppress(OSError):  # it does not wait for an answer any more
            os.write(alive_fd, msgspec.json.encode(told))

    def _reload(self, fresh: PipelineConfig) -> Reloaded:
        """Take over what a running node can from a configuration, say so in the log, and return it."""
        self._given, told = reloaded(self._given, fresh, self._keys)
        level = self._given.log_level
        self.control.header.store(SegmentHeader.LOG_LEVEL, LEVELS[level])
        logging.getLogger().setLevel(level)
        self._supervisor.take_log_level()
        log.warning("reloaded: %s", told)
        return told

    def _parent_gone(self, fds: Sequence[int]) -> None:
        if self._is_orphan:
            return  # both said so in one turn
        self._is_orphan = True
        log.warning("the process that launched this node is gone; stopping")
        for fd in fds:
            self._selector.unregister(fd)
        self._stops += 2

    def watch_signals(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._signal(fd))

    def _signal(self, fd: int) -> None:
        for number in os.read(fd, 64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stops += 1
            elif number == signal.SIGHUP:
                self._reload(self._given)

    def _turn(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            key.data()

    def run(self) -> int:
        """Watch over the node until it has been told to stop and has stopped. Returns the exit status."""
        assert self._run_socket is not None
        drain_until = None
        backlogs = Backlogs({name: descriptor.fd for name, descriptor in self._listening.items()})
        while self._stops < 2:
            now = time.monotonic_ns()
            self.control.processes.beat(0, now)
            ticks = self._supervisor.tick(now), self._run_socket.tick(now), backlogs.tick(now)
            due = [at_ns for at_ns in ticks if at_ns is not None]
            self._recovery.flush()
            if self._stops == 1 and drain_until is None:
                drain_until = time.monotonic() + self.config.timing.drain_timeout_s
                self._enter(NodeState.DRAINING)
                log.info("draining")
            if drain_until is not None and (not num_in_flight(self.control) or time.monotonic() > drain_until):
                break
            wait_s = self.config.timing.beat_s if drain_until is None else 0.02
            self._turn(min([wait_s, *(max(0.0, (at_ns - now) / NS) for at_ns in due)]))
        return 0

    def close(self) -> None:
        """End all processes, and close and remove everything that the node has opened."""
        self.control.header.store(SegmentHeader.NODE_STATE, NodeState.STOPPED)
        self._supervisor.stop(self.config.timing.stop_timeout_s)
        self._release()

    def _release(self) -> None:
        if self._prefaulting is not None:
            self._prefaulting.end()
        if self._run_socket is not None:
            self._run_socket.close()
        self._selector.close()
        if self._claimed >= 0 and not self._keeps_run_dir:
            remove_own(self.config.directory, self._claimed)
        self._claimed = -1
        for descriptor in reversed(self._opened):  # the lock of the run directory last
            descriptor.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=LAUNCHER, description=__doc__)
    parser.add_argument("--ready-fd", type=int, required=True, help="descriptor on which READY is announced")
    parser.add_argument(
        "--alive-fd", type=int, required=True, help="socket to the parent, whose end means that the parent is gone"
    )
    parser.add_argument("--parent-fd", type=int, help="pidfd of the parent")
    parser.add_argument("--remove-run-dir", action="store_true", help="the run directory ends with the node")
    options = parser.parse_args(arguments)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        print("embridge: the process that launched this node is gone before it said what to launch", file=sys.stderr)
        return 1
    config = decode_config(line)
    lines = log_to_stderr(config.log_level, "launcher", role=config.role, kind=config.log_format)
    set_title(config.role, "launcher")
    launcher = None
    with contextlib.ExitStack() as stack:
        try:
            with naming("signals", LIMITS_REMEDY):
                signals = stack.enter_context(_signals())
            launcher = Launcher(config, keeps_run_dir=not options.remove_run_dir)
            lines.node = f"{launcher.node_id:x}"
            stack.callback(launcher.close)
            with naming("event loop", LIMITS_REMEDY):
                launcher.watch_signals(signals)
                launcher.follow(options.alive_fd, options.parent_fd)
            launcher.start()
        except EmbridgeError as error:
            if launcher is not None:
                stack.close()  # whoever reads the error may start the node again at once
            _say(options.ready_fd, Ready(error=str(error)))
            return 1
        log.info("%s", start_line(launcher.control, launcher.config, launcher.ready(), launcher.engine_names))
        if not _say(options.ready_fd, launcher.ready()):
            return 1
        return launcher.run()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Give a descriptor from which the numbers of signals can be read; afterwards these have no effect. Raises OSError.

    The interpreter would give them back to the kernel at its end, who ends a process by them.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    try:
        yield read
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def _say(fd: int, ready: Ready) -> bool:
    """Tell the process that launched the node how the launch went. False if that process is gone."""
    try:
        os.write(fd, msgspec.json.encode(ready) + b"\n")
    except OSError as error:
        log.error("the process that launched this node cannot be told: %s", error.strerror)
        return False
    finally:
        os.close(fd)
    return True
