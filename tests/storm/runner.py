"""The process that raises a storm: over a load of requests, it makes the faults.

Everything that it does and sees stands in the history; what that means is the checker's business.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from support.agents import start_fork_server
from support.cables import plug, pull
from support.leaks import LeakCheck
from support.remains import alive, run_dirs
from support.stopping import is_stopped

from embridge.allocator.blocks import EXPOSED, OWNED
from embridge.allocator.geometry import SLOTS_PER_PAGE
from embridge.allocator.records import Lane, LaneState, Process
from embridge.demo.hosts import two_hosts
from embridge.workers.process_spec import READY
from storm.clients import ABORTED, STRIKES
from storm.history import Recorder, messages_of, speak_into
from storm.load import Load
from storm.places import ClientSeat, NodeSeat, Options, Wait, nothing, send_signal, wait_for
from storm.plan import WEIGHTS

LONG_STOP = 1 / 12  # of the stops last longer than a peer's patience
FULL_S = 20.0
ENDS_BETWEEN = 8  # sides of requests that end between two faults: on a machine that is slow, the storm is, too
FAULT_BY_S = 5.0  # but a fault comes then in any case
EARLY = 1 / 8  # of the processes that are not READY again may be killed all the same
REST_BYTES = 1 << 20  # what a full /dev/shm has left


class Storm(Load):
    """One seed: the load, and faults in the middle of it. The history says how it went."""

    # ---- faults

    def _fault(self) -> None:
        if self._ending:
            return
        if self._num_ended < ENDS_BETWEEN and time.monotonic() < self._fault_by:
            self._at(0.02, self._fault)
            return
        self._num_ended, self._fault_by = 0, time.monotonic() + FAULT_BY_S
        weights = [WEIGHTS.get(kind, 1.0) for kind in self.kinds]
        for _ in range(1 if self._rng.random() < 7 / 8 else 2):  # sometimes two at once
            kind = self._rng.choices(self.kinds, weights)[0]
            getattr(self, f"_do_{kind.replace(' ', '_')}")()
        self._at(self._rng.uniform(0.05, self.options.pause_s), self._fault)

    def _a_node(self) -> NodeSeat | None:
        up = [node for node in self.nodes.values() if node.is_up]
        return self._rng.choice(up) if up else None

    def _kill_process(self, names: list[str]) -> None:
        node = self._a_node()
        if node is None:
            return
        name = self._rng.choice([n for n in node.pids() if any(n.startswith(prefix) for prefix in names)])
        control, pid = node.control, node.pids()[name]
        assert control is not None
        is_ready = control.processes.get(name, Process.STATE) == READY
        if not alive([pid]) or not (is_ready or self._rng.random() < EARLY):
            return  # the one before is not up again
        fault = next(self._fault_ids)
        processes = control.processes
        since = self.note("fault", id=fault, kind=f"kill {names[0]}", victim=name, node=node.name, pid=pid)
        send_signal(pid, signal.SIGKILL)
        self.kills += 1

        def is_back() -> bool:
            return processes.get(name, Process.PID) != pid and processes.get(name, Process.STATE) == READY

        self._waits.append(Wait(fault, "restarted", node, node.generation, since, is_back, {}))

    def _do_kill_worker(self) -> None:
        self._kill_process(["worker"])

    def _do_kill_poller(self) -> None:
        self._kill_process(["poller"])

    def _do_kill_bootstrap(self) -> None:
        self._kill_process(["bootstrap"])

    def _do_kill_client(self) -> None:
        seats = [seat for seat in self.seats if seat.joined and self.nodes[seat.node].is_up]
        if seats:
            self._kill_client(self._rng.choice(seats))

    def _kill_client(self, seat: ClientSeat) -> None:
        node = self.nodes[seat.node]
        control, cells, process, pid, since = node.control, node.cells, seat.process, seat.process.pid, 0
        assert control is not None
        lanes = control.lanes
        lane = next((i for i in range(lanes.num_lanes) if lanes.get(i, Lane.PID) == pid), None)
        if lane is None:
            return
        pages = lanes.pages_of(lane)
        seen: dict[str, Any] = {}

        def held() -> int:
            if "exit_ns" not in seen and since and process.exitcode is not None:
                seen["exit_ns"] = time.monotonic_ns() - since
            if lanes.get(lane, Lane.PID) != pid or lanes.get(lane, Lane.STATE) == LaneState.FREE:
                return 0
            words = cells.copy()
            state, slot = words & np.uint64(3), (words >> np.uint64(2)) & np.uint64(0xFFFF)
            of_lane = np.isin(slot // np.uint64(SLOTS_PER_PAGE), pages)
            return int((of_lane & ((state == OWNED) | (state == EXPOSED))).sum())

        fault, seen["held"] = next(self._fault_ids), held()
        since = self.note("fault", id=fault, kind="kill client", victim=seat.name, node=node.name, pid=pid)
        send_signal(pid, signal.SIGKILL)
        self.kills += 1
        self._waits.append(Wait(fault, "recovered", node, node.generation, since, lambda: not held(), seen))
        there = self.nodes["l"]
        if seat.side == "encode" and there.is_up:
            writes = {"claims": self._claims_of(pid)}
            self._waits.append(
                Wait(fault, "let_go", there, there.generation, since, lambda: not self._claims_of(pid), writes)
            )
        self._client_down(seat, "killed")

    def _do_kill_node(self) -> None:
        self._kill_whole("kill node")

    def _do_kill_launcher(self) -> None:
        self._kill_whole("kill launcher")

    def _kill_whole(self, kind: str) -> None:
        node = self._a_node()
        if node is None or node.node is None:
            return
        pid = node.node.pid
        self.note("fault", id=next(self._fault_ids), kind=kind, victim="launcher", node=node.name, pid=pid)
        if kind == "kill node":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self._node_down(node, "killed")

    def _lasting(self, kind: str, for_s: float, ease: Callable[[], None], **fields: Any) -> int:
        """A fault with an end; its number."""
        fault = next(self._fault_ids)
        self.note("fault", id=fault, kind=kind, for_s=round(for_s, 3), **fields)

        def end() -> None:
            if self._eased.pop(fault, None) is not None:
                ease()
                self.note("eased", id=fault)

        self._eased[fault] = end
        self._at(for_s, end)
        return fault

    def _stop_for_s(self) -> float:
        if self._rng.random() < LONG_STOP:
            return self.options.peer_timeout_s + self._rng.uniform(0.5, 1.5)
        return self._rng.uniform(0.02, min(1.5, self.options.peer_timeout_s / 2))

    def _do_stop_process(self) -> None:
        node = self._a_node()
        if node is None:
            return
        name, pid = self._rng.choice(list(node.pids().items()))
        send_signal(pid, signal.SIGSTOP)
        self._lasting(
            "stop process",
            self._stop_for_s(),
            lambda: send_signal(pid, signal.SIGCONT),
            victim=name,
            node=node.name,
            pid=pid,
        )

    def _do_stop_client(self) -> None:
        seats = [seat for seat in self.seats if seat.process is not None]
        if not seats:
            return
        seat = self._rng.choice(seats)
        pid = seat.process.pid
        send_signal(pid, signal.SIGSTOP)
        self._lasting(
            "stop client",
            self._stop_for_s(),
            lambda: send_signal(pid, signal.SIGCONT),
            victim=seat.name,
            node=seat.node,
            pid=pid,
        )

    def _do_stop_writer(self) -> None:
        """An encoder stops in the middle of the next write that it makes itself (`_struck`)."""
        seats = [s for s in self.seats if s.side == "encode" and s.joined and self.nodes[s.node].is_up]
        if seats:
            with contextlib.suppress(OSError):
                connection = self._rng.choice(seats).connection
                connection.send(("strike", self._rng.choice(STRIKES)))  # type: ignore[union-attr]

    def _struck(self, seat: ClientSeat, room: int) -> None:
        """While it is stopped its scheduler gives the request up, mostly; then it goes on, or is killed."""
        process, is_doomed, for_s = seat.process, self._rng.random() < 1 / 2, self._rng.uniform(0.2, 2.0)

        def ease() -> None:
            if is_doomed and not self._ending and seat.process is process and self.nodes[seat.node].is_up:
                self._kill_client(seat)
            if seat.process is process:
                seat.is_struck = False
                with contextlib.suppress(FileNotFoundError):  # it has died
                    wait_for(lambda: is_stopped(process.pid), 5.0)  # it has said that it will stop
                send_signal(process.pid, signal.SIGCONT)

        seat.is_struck = True
        self._lasting("stop client", for_s, ease, victim=seat.name, node=seat.node, pid=process.pid, room=room)
        partner = self._open.get(room, {}).get("language")
        if partner is not None and self._rng.random() < 3 / 4:

            def give_up() -> None:
                if partner.connection is not None and room in partner.rooms:
                    with contextlib.suppress(OSError):
                        partner.connection.send(("abort", room, ABORTED))

            self._at(self._rng.uniform(0, for_s / 2), give_up)

    def _do_slow_peer(self) -> None:
        """Its poller works a third of the time."""
        node = self._a_node()
        if node is None:
            return
        pid = node.pids()["poller"]
        over: list[bool] = []

        def burst() -> None:
            if not over:
                send_signal(pid, signal.SIGSTOP)
                self._at(self._rng.uniform(0.01, 0.06), rest)

        def rest() -> None:
            send_signal(pid, signal.SIGCONT)
            if not over:
                self._at(0.02, burst)

        def ease() -> None:
            over.append(True)
            send_signal(pid, signal.SIGCONT)

        self._lasting("slow peer", self._rng.uniform(0.5, 2.0), ease, victim="poller", node=node.name, pid=pid)
        burst()

    def _do_full_memory(self) -> None:
        """/dev/shm is full while a node starts: it is refused with one clear message, and starts when there is room
        again.
        """
        if self._fill is not None or not all(node.is_up for node in self.nodes.values()):
            return
        self._fill = Path("/dev/shm/storm-fills-it")
        free = os.statvfs("/dev/shm")
        with self._fill.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(4096, free.f_bavail * free.f_frsize - REST_BYTES))

        def ease() -> None:
            assert self._fill is not None
            self._fill.unlink()
            self._fill, self._unfill = None, nothing

        fault = self._lasting("full memory", FULL_S, ease, victim="", node="")
        self._unfill = self._eased[fault]  # when a launch has been refused; the time is but a bound
        self._kill_whole("kill node")

    def _do_cut_link(self) -> None:
        """The cable is pulled, and nobody is told; mostly for less than a peer's patience."""
        if self._is_cut:
            return
        host, for_s = self._hosts["encode"], self._stop_for_s()

        def ease() -> None:
            plug(host)
            self._is_cut = False

        self._is_cut = True
        pull(host)
        self._lasting("cut link", for_s, ease, victim="the cable", node="")


@contextlib.contextmanager
def messages_in(history: Path) -> Iterator[None]:
    """What nodes and clients write on standard error goes to a file beside the history meanwhile."""
    ours = os.dup(2)
    messages_of(history).unlink(missing_ok=True)
    speak_into(messages_of(history))
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def raise_storm(options: Options, make: Callable[[Path], Storm] | None = None) -> Storm:
    """One storm from its beginning to its end, in this process; what it left behind is in the history, too."""
    multiprocessing.resource_tracker.ensure_running()
    start_fork_server()
    check = LeakCheck()
    try:
        with run_dirs() as path, two_hosts() if options.two_hosts else contextlib.nullcontext() as hosts:
            storm = make(path) if make is not None else Storm(options, path, hosts)
            storm.run()
        storm.note.close()
        problems = check.problems()
        note = Recorder(options.history)
        for what in problems:
            note("left", what=what)
        note.close()
        return storm
    finally:
        check.restore()
        for pid in check.processes():
            send_signal(pid, signal.SIGKILL)


def tell(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
