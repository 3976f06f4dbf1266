"""What a storm is raised over: it keeps nodes and clients up, hands out requests, and measures recoveries."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from support.agents import FORKED
from support.opening import open_control
from support.remains import alive

from embridge import Node, launch
from embridge.allocator.claims import HELD, Claim
from embridge.allocator.errors import EmbridgeError
from embridge.allocator.records import CLAIM_WORDS, Lane, LaneState
from embridge.demo.hosts import Host
from embridge.pipeline.inspection.observe import requests
from storm import clients
from storm.history import Recorder
from storm.places import (
    START_S,
    ClientSeat,
    NodeSeat,
    Options,
    Wait,
    end_process,
    node_config,
    nothing,
    wait_for,
    write_keys,
)
from storm.plan import KINDS, kinds_of

NS = 1_000_000_000
REPLACE_S = 0.2  # after which another client takes a dead one's seat
GIVE_UP_S = 0.5  # a client whose partner died gives a request up after this


class Load:
    """Nodes and clients, all that they are asked for, and what is measured of them.

    `run` returns when everything has ended.
    """

    def __init__(self, options: Options, path: Path, hosts: tuple[Host, Host] | None = None) -> None:
        self.options = options
        self._hosts = dict(zip(("encode", "language"), hosts, strict=True)) if hosts is not None else {}
        self.note = Recorder(options.history, without=options.without)
        self._rng = random.Random(f"storm {options.seed}")
        possible = tuple(
            k for k in KINDS if (k != "full memory" or options.bounded_memory) and (k != "cut link" or hosts)
        )
        self.kinds = kinds_of(options.seed, options.kinds, possible)
        names = ["e", *(f"e{i}" for i in range(2, options.encode_nodes + 1))]
        keys = write_keys(path, self._hosts)
        roles = dict.fromkeys(names, "encode") | {"l": "language"}
        self.nodes = {}
        for name, role in roles.items():
            host = self._hosts.get(role)
            where: dict[str, Any] = {"host": host.address, **keys[role]} if host is not None else {}
            self.nodes[name] = NodeSeat(name, node_config(options, role, path / name, where), host)
        self.seats = [ClientSeat(f"encoder-{n}-{i}", "encode", n) for n in names for i in range(options.encoders)]
        self.seats += [ClientSeat(f"scheduler-{i}", "language", "l") for i in range(options.schedulers)]
        self._spares: list[tuple[Any, Connection]] = []
        self._rooms = itertools.count(options.seed * 1_000_000 + 1)
        self._open: dict[int, dict[str, ClientSeat]] = {}  # room -> side -> who has yet to report its end
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waits: list[Wait] = []
        self._fault_ids = itertools.count(1)
        self._dead: list[Any] = []  # clients that were killed, and that nobody has waited for
        self._launched: queue.Queue[tuple[NodeSeat, Node | None, str, bool]] = queue.Queue()
        self._launching: list[threading.Thread] = []
        self._eased: dict[int, Callable[[], None]] = {}
        self._is_cut = False
        self._fill: Path | None = None
        self._unfill: Callable[[], None] = nothing
        self._ending = False
        self._num_ended = 0  # sides of requests, since the last fault
        self._fault_by = 0.0
        self.kills = 0
        self.unexplained = 0  # requests that failed and that no client of theirs gave up
        self.tally = {"arrived": 0, "failed": 0, "refused": 0}  # requests, as their schedulers saw them

    # ---- the whole

    def run(self) -> None:
        self.note(
            "begin",
            seed=self.options.seed,
            engine=self.options.engine,
            kinds=self.kinds,
            block_size=self.options.block_size,
            deadline_s=self.options.deadline_s,
            peer_timeout_s=self.options.peer_timeout_s,
        )
        try:
            self._begin()
            end = time.monotonic() + self.options.seconds
            if self.kinds:
                self._at(1.0, self._fault)
            while time.monotonic() < end and (not self.kinds or self.kills < self.options.kills):
                self.turn()
            self._end()
        finally:
            self._clean_up()

    def _begin(self) -> None:
        ours, theirs = FORKED.Pipe()
        self._observer = FORKED.Process(
            target=clients.watch, args=(theirs, self.options.history), name="observer", daemon=True
        )
        self._observer.start()
        theirs.close()
        self._watching = ours
        for _ in self.seats:
            self._prepare_spare()
        for node in self.nodes.values():
            self._launch(node)
        for seat in self.seats:
            self._seat(seat)
        deadline = time.monotonic() + START_S
        while not all(seat.joined for seat in self.seats):
            self.turn()
            if time.monotonic() > deadline:
                raise TimeoutError(f"clients not attached: {[seat.name for seat in self.seats if not seat.joined]}")

    def _end(self) -> None:
        """No more faults and no more requests: wait until all have ended, then until the nodes are idle."""
        self._ending = True
        for ease in list(self._eased.values()):
            ease()
        deadline = time.monotonic() + self.options.deadline_s + 10
        while (self._open or self._waits or self._launching or any(node.down for node in self.nodes.values())) and (
            time.monotonic() < deadline
        ):
            self.turn()
        for seat in self.seats:
            self._dismiss(seat)
        idle_by = time.monotonic() + 15
        for node in self.nodes.values():
            if not node.is_up:
                continue
            while not self._is_idle(node) and time.monotonic() < idle_by:
                time.sleep(0.01)
            self._final(node)

    def _is_idle(self, node: NodeSeat) -> bool:
        control = node.control
        assert control is not None
        lanes = (control.lanes.get(lane, Lane.STATE) for lane in range(control.limits.max_clients))
        return not any(node.held_items()) and (
            control.blocks.counts().free == control.blocks.num_blocks
            and not requests(control, 0)
            and all(state == LaneState.FREE for state in lanes)
        )

    def _final(self, node: NodeSeat) -> None:
        control = node.control
        assert control is not None
        lanes = range(control.limits.max_clients)
        self.note(
            "final",
            node=node.name,
            counts=control.blocks.counts()._asdict(),
            blocks=control.blocks.num_blocks,
            in_flight=requests(control, time.monotonic_ns())[:8],
            dead_lanes=[lane for lane in lanes if control.lanes.get(lane, Lane.STATE) == LaneState.DEAD],
            metrics=control.metrics.all(),
            items=node.held_items(),
        )

    def _clean_up(self) -> None:
        for ease in list(self._eased.values()):
            ease()
        for thread in self._launching:
            thread.join()
        while not self._launched.empty():
            launched, node, *_ = self._launched.get()
            launched.node = node or launched.node
        for seat in self.seats:
            self._dismiss(seat)
        for process in self._dead:
            process.join()
            process.close()
        for process, connection in self._spares:
            end_process(process, connection, None)
        for name in self.nodes:
            with contextlib.suppress(OSError):
                self._watching.send(("forget", name))
        end_process(self._observer, self._watching, ("stop",))
        for place in self.nodes.values():
            if place.node is not None:
                pids = [] if place.control is None else list(place.pids().values())
                place.node.stop()
                wait_for(lambda: not alive(pids), 5.0)  # noqa: B023
                self.note("node_down", node=place.name, generation=place.generation, why="the end")
            place.control = place.cells = place.claims = None
        self._waits.clear()

    def _fault(self) -> None:
        """Make one, and say when the next one comes."""
        raise NotImplementedError

    def _struck(self, seat: ClientSeat, room: int) -> None:
        """An encoder has stopped itself in the middle of a write."""
        raise NotImplementedError

    def _claims_of(self, pid: int) -> int:
        """How many claims of the language node a process holds."""
        node = self.nodes["l"]
        if node.control is None or not node.is_up:
            return 0
        words = node.claims.copy()
        held = words[np.isin(words >> np.uint64(32) & np.uint64(15), [int(state) for state in HELD])]
        return sum(node.control.writers.pid_of(Claim.of(word).writer) == pid for word in held.tolist())

    # ---- one turn

    def turn(self) -> None:
        """Hear the clients, do what is due, hand out requests, look at what is measured."""
        busy = bool(self._waits)
        connections = {seat.connection: seat for seat in self.seats if seat.connection is not None}
        for connection in wait(list(connections), 0.0003 if busy else 0.002):
            assert isinstance(connection, Connection)
            self._hear(connections[connection], connection)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        self._look_at_waits()
        self._look_at_nodes()
        if not self._ending:
            self._hand_out()

    def _at(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), do))

    def _hear(self, seat: ClientSeat, connection: Connection) -> None:
        try:
            while connection.poll():
                match connection.recv():
                    case ("joined",):
                        seat.joined = True
                    case ("gone",):
                        seat.joined = False
                    case ("struck", room):
                        self._struck(seat, room)
                    case ("ended", room, verdict):
                        if seat.side == "language":
                            self.tally["refused" if verdict == "refused" else "failed" if verdict else "arrived"] += 1
                        self.unexplained += bool(verdict) and not clients.was_given_up(verdict)
                        self._report(seat, room)
        except (EOFError, OSError):  # it died; a death that was no fault of ours is noted as its own
            if seat.connection is connection:
                self._client_down(seat, "by itself")

    def _report(self, seat: ClientSeat, room: int) -> None:
        """One side of a request has ended."""
        self._num_ended += 1
        seat.rooms.discard(room)
        sides = self._open.get(room)
        if sides is not None and sides.get(seat.side) is seat:
            del sides[seat.side]
            if not sides:
                del self._open[room]

    def _hand_out(self) -> None:
        """Keep every scheduler at its number of requests in flight; the encoders take turns."""
        for scheduler in self.seats:
            if scheduler.side != "language" or not scheduler.joined or not self.nodes["l"].is_up:
                continue
            while len(scheduler.rooms) < self.options.in_flight:
                encoders = [s for s in self.seats if s.side == "encode" and s.joined and not s.is_struck]
                ready = [s for s in encoders if self.nodes[s.node].is_up]
                if not ready:
                    return
                room = next(self._rooms)
                encoder = ready[room % len(ready)]
                addr = self.nodes[encoder.node].node.bootstrap_addr  # type: ignore[union-attr]
                self.note(
                    "asked",
                    room=room,
                    encoder=encoder.name,
                    scheduler=scheduler.name,
                    encode=encoder.node,
                    language="l",
                )
                self._open[room] = {"encode": encoder, "language": scheduler}
                order = [encoder, scheduler] if room % 3 else [scheduler, encoder]
                for seat in order:
                    seat.rooms.add(room)
                    with contextlib.suppress(OSError):
                        seat.connection.send(("open", room, addr))  # type: ignore[union-attr]

    # ---- nodes

    def _launch(self, seat: NodeSeat) -> None:
        """Start it in a thread of its own, for the others go on."""
        seat.generation += 1

        def work() -> None:
            try:
                self._launched.put((seat, launch(seat.config, within=seat.host.within if seat.host else ()), "", False))
            except EmbridgeError as error:  # two at once may have met the full memory that ends with the first of them
                self._launched.put((seat, None, str(error), self._fill is not None))

        thread = threading.Thread(target=work)
        self._launching.append(thread)
        thread.start()

    def _look_at_nodes(self) -> None:
        while not self._launched.empty():
            seat, node, why, is_full = self._launched.get()
            self._launching = [thread for thread in self._launching if thread.is_alive()]
            if node is None:
                self.note("not_up", node=seat.name, why=why, full=is_full)
                self._unfill()
                self._at(0.2, lambda seat=seat: self._launch(seat))  # type: ignore[misc]
                continue
            seat.node = node
            try:
                seat.control = open_control(seat.run_dir)
            except EmbridgeError as error:
                raise RuntimeError(f"node {seat.name} came up and is gone: {error}") from error
            mapping, layout = seat.control.mapping, seat.control.layout
            seat.cells = np.frombuffer(mapping, np.uint64, seat.control.blocks.num_blocks, layout.cells)
            if seat.config.role == "language":
                words = CLAIM_WORDS * seat.control.limits.num_slots
                seat.claims = np.frombuffer(mapping, np.uint64, words, layout.claims)[::CLAIM_WORDS]
            seat.down = False
            said = {"generation": seat.generation, "addr": node.bootstrap_addr, "processes": seat.pids()}
            self.note("node_up", node=seat.name, **said)
            self._watching.send(("watch", seat.name, seat.run_dir))
        for seat in self.nodes.values():
            if seat.is_up and seat.node is not None and seat.node.wait(0) is not None:
                self._node_down(seat, "by itself")

    def _node_down(self, seat: NodeSeat, why: str) -> None:
        """It is dead or about to be: note when the last of it is gone, and start it again."""
        node, pids, since = seat.node, list(seat.pids().values()), time.monotonic_ns()
        assert node is not None
        seat.down = True
        for client in self.seats:  # one that is stopped has yet to find it out, and says that it has joined again
            client.joined &= client.node != seat.name
        self.note("node_down", node=seat.name, generation=seat.generation, why=why)
        self._watching.send(("forget", seat.name))

        def bury() -> None:
            if alive(pids) and time.monotonic_ns() - since < 10 * NS:
                self._at(0.005, bury)
                return
            self.note(
                "gone", node=seat.name, generation=seat.generation, ns=time.monotonic_ns() - since, left=alive(pids)
            )
            node.stop()
            seat.node = seat.control = seat.cells = seat.claims = None
            self._launch(seat)

        bury()

    # ---- clients

    def _prepare_spare(self) -> None:
        """A process that has imported all it needs, so that a seat is empty for a moment only."""
        ours, theirs = FORKED.Pipe()
        process = FORKED.Process(target=clients.serve, args=(theirs, self.options.history), name="client", daemon=True)
        process.start()
        theirs.close()
        self._spares.append((process, ours))

    def _seat(self, seat: ClientSeat) -> None:
        if not self._spares:
            self._prepare_spare()
        seat.process, seat.connection = self._spares.pop(0)
        seat.number += 1
        seat.joined = seat.is_struck = False
        self.note("client_up", client=seat.name, pid=seat.process.pid)
        options = self.options
        seat.connection.send(
            clients.Seat(
                seat.name,
                seat.side,
                seat.node,
                self.nodes[seat.node].run_dir,
                options.history,
                options.seed,
                options.deadline_s,
                options.longest,
                options.without,
            )
        )

    def _client_down(self, seat: ClientSeat, why: str) -> None:
        """Its partners give the requests up that they had with it; another process takes its place."""
        self.note("client_down", client=seat.name, why=why)
        process, connection, rooms = seat.process, seat.connection, list(seat.rooms)
        assert connection is not None
        seat.process = seat.connection = None
        seat.joined = False
        connection.close()
        self._dead.append(process)
        for room in rooms:
            self._report(seat, room)
        partners = [(partner, room) for room in rooms for partner in self._open.get(room, {}).values()]
        name = seat.name

        def give_up() -> None:
            for partner, room in partners:
                if room in partner.rooms and partner.connection is not None:
                    with contextlib.suppress(OSError):
                        partner.connection.send(("abort", room, f"{name} died"))

        def replace() -> None:
            if not self._ending:
                self._seat(seat)
                self._prepare_spare()

        self._at(GIVE_UP_S, give_up)
        self._at(REPLACE_S, replace)  # not before the recovery was measured

    def _dismiss(self, seat: ClientSeat) -> None:
        if seat.process is not None:
            process, connection = seat.process, seat.connection
            seat.process = seat.connection = None
            self.note("client_down", client=seat.name, why="the end")
            end_process(process, connection, ("leave",))

    # ---- what is measured

    def _look_at_waits(self) -> None:
        for process in [process for process in self._dead if process.exitcode is not None]:
            if not self._waits:
                self._dead.remove(process)
                process.close()
        for it in list(self._waits):
            if it.node.down or it.node.generation != it.generation:
                self._waits.remove(it)
            elif it.done():
                self._waits.remove(it)
                self.note(it.event, id=it.fault, ns=time.monotonic_ns() - it.since_ns, **it.fields)
