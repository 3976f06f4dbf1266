"""The registrar: the one process of a node that talks to the discovery server, so that no client ever does (D10).

Every second the registrar reports the node (its load, and which processes do not beat), asks for the nodes of the other
role, and writes them into the route table, where clients read them. It reports at once that the node drains, and leaves
when the node stops. The server is our own, or an etcd (`services.py`).

The node goes on, whatever the server does (it may be down, hang, or send nonsense). Each request has a deadline.
Failures are retried after a pause that doubles up to the time to live, with jitter. The reason of a failure is logged
when it changes, and stands in the control segment for `embridge status`. The routes that were known stay: a node that
was alive a moment ago is a better guess than none, and a dead one refuses the connection at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from typing import Final

from embridge.allocator.geometry import Role
from embridge.allocator.metrics import Metric
from embridge.allocator.records import DiscoveryState, NodeState
from embridge.allocator.routes import DiscoveryRecord, RouteRecord
from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.client import DiscoveryService
from embridge.workers.discovery.http import DiscoveryError
from embridge.workers.discovery.services import open_service
from embridge.workers.health import failing_processes, load_of, silent_processes
from embridge.workers.process_spec import ProcessSpec, begin
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS, Timing

log = logging.getLogger(__name__)

LEAVE_TIMEOUT_S: Final = 1.0  # how long a node that stops waits for the server
PUBLISHED: Final = (NodeState.READY, NodeState.DRAINING)


class Backoff:
    """When the next exchange is due: after the interval while all is well, else after a pause that doubles each time.

    The pause has a limit (`longest_s`), and is shortened at random by up to a half, so that the nodes of a cluster do
    not all come back at once.
    """

    def __init__(self, interval_s: float, longest_s: float, chance: random.Random) -> None:
        self._interval_s = interval_s
        self.longest_s = longest_s
        self._chance = chance
        self.num_failures = 0

    def succeeded(self) -> float:
        self.num_failures = 0
        return self._interval_s

    def failed(self) -> float:
        self.num_failures += 1
        pause_s = min(self.longest_s, self._interval_s * 2.0 ** min(self.num_failures - 1, 30))
        return pause_s * self._chance.uniform(0.5, 1.0)


class Reporter:
    """Makes the reports of the node from its words, and writes the answers into its words; does no I/O."""

    def __init__(self, ctx: RoleContext, url: str) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._url = url
        self._table = ctx.control.route_writer
        self._known: dict[int, RouteRecord] = {route.node_id: route for route in ctx.control.routes.routes()}
        self._state = DiscoveryState.STARTING
        self._reason = ""
        self._since_ns = self._heard_ns = 0
        self._told_full = False
        self.other_role = Role.LANGUAGE if ctx.control.role == Role.ENCODE else Role.ENCODE

    def report(self, now_ns: int) -> msg.RouteReport | None:
        """The report of the node as it is now; None before the node is READY, and once it is STOPPED."""
        control, ctx = self._control, self._ctx
        state = control.state
        if state not in PUBLISHED:
            return None
        load = load_of(ctx)
        return msg.RouteReport(
            role="encode" if control.role == Role.ENCODE else "language",
            node_id=f"{control.node_id:x}",
            incarnation=control.incarnation,
            bootstrap_addr=ctx.addresses.bootstrap_addr,
            poller_addr=ctx.addresses.poller_addr,
            state="READY" if state == NodeState.READY else "DRAINING",
            unhealthy=self._unhealthy(now_ns),
            outstanding_tokens=load.outstanding_tokens,
            outstanding_requests=load.outstanding_requests,
            free_blocks=load.free_blocks,
            num_blocks=control.blocks.num_blocks,
            sequence=now_ns,
            ttl_s=ctx.timing.discovery_ttl_s,
        )

    def _unhealthy(self, now_ns: int) -> list[msg.Silent]:
        """The processes that do not beat, and those that cannot be kept alive, which may beat at this moment."""
        silent = dict(silent_processes(self._control, now_ns, self._ctx.timing.health_s))
        failing = {name: reason[:64] for name, reason in failing_processes(self._control)}
        return [msg.Silent(name, silent.get(name, 0.0), failing.get(name, "")) for name in {**silent, **failing}]

    def leave(self) -> msg.Leave:
        return msg.Leave(node_id=f"{self._control.node_id:x}", incarnation=self._control.incarnation)

    def take(self, answer: msg.RouteAnswer, now_ns: int) -> None:
        """Write the routes of an answer into the table.

        Routes that a server which has just started does not list are kept: those nodes may not have renewed there yet,
        which takes them their longest pause, and a request that is under way.
        """
        routes = {route.node_id: route for route in (_record(entry, now_ns) for entry in answer.routes)}
        timing = self._ctx.timing
        if answer.server_up_s < timing.discovery_ttl_s + timing.discovery_timeout_s:
            routes = self._known | routes
        left_out = self._table.put_all(routes.values())
        if left_out and not self._told_full:
            log.warning(
                "%d nodes found no room among %d routes; raise max_routes", left_out, self._control.limits.max_routes
            )
        self._told_full = bool(left_out)
        self._known = routes

    def say(self, state: DiscoveryState, reason: str, num_failures: int, now_ns: int) -> None:
        """Write the state of the registration into the control segment; log it if it has changed."""
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason, self._since_ns = state, reason, now_ns
            if state in (DiscoveryState.REFUSED, DiscoveryState.UNREACHABLE):
                log.warning("discovery: %s; the node goes on without", reason)
            else:
                log.info("discovery: %s at %s", state.name, self._url)
        if state == DiscoveryState.REGISTERED:
            self._heard_ns = now_ns
        self._table.put_discovery(
            DiscoveryRecord(state, self._since_ns, self._heard_ns, num_failures, self._url, self._reason)
        )


def _record(entry: msg.RouteEntry, now_ns: int) -> RouteRecord:
    return RouteRecord(
        node_id=int(entry.node_id, 16),
        incarnation=entry.incarnation,
        state=NodeState[entry.state],
        healthy=entry.healthy,
        unhealthy=", ".join(str(silent) for silent in entry.unhealthy),
        bootstrap_addr=entry.bootstrap_addr,
        poller_addr=entry.poller_addr,
        outstanding_tokens=entry.outstanding_tokens,
        outstanding_requests=entry.outstanding_requests,
        free_blocks=entry.free_blocks,
        num_blocks=entry.num_blocks,
        reported_ns=now_ns - int(entry.age_s * NS),
    )


class Registrar:
    """The loop of the registrar: it beats, exchanges with the server, one exchange at a time, and leaves at the end."""

    def __init__(self, spec: ProcessSpec, ctx: RoleContext) -> None:
        self._spec = spec
        self._ctx = ctx
        self._timing: Timing = ctx.timing
        self._control = ctx.control
        self._reporter = Reporter(ctx, spec.discovery)
        self._backoff = Backoff(self._timing.discovery_interval_s, self._timing.discovery_ttl_s, random.Random())
        self._wake = asyncio.Event()
        self._due_ns = 0
        self._published = NodeState.STARTING
        self._service: DiscoveryService | None = None

    async def run(self) -> None:
        loop, event_fd = asyncio.get_running_loop(), self._spec.event_fds[self._spec.name].fd
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_reader(event_fd, self._rung, event_fd)
        loop.add_reader(self._spec.death.fd, self._stop)
        begin(self._spec, self._control)
        exchange: asyncio.Task[None] | None = None
        bell = self._control.bell(self._spec.name)
        try:
            while not self._spec.stop:
                seen = bell.sequence()
                self._wake.clear()
                now = time.monotonic_ns()
                self._control.processes.beat(self._ctx.index, now)
                if exchange is not None and exchange.done():
                    exchange.result()
                    exchange = None
                if exchange is None and (now >= self._due_ns or self._has_news()):
                    exchange = asyncio.create_task(self._exchange())
                    exchange.add_done_callback(lambda _: self._wake.set())
                wait_s = self._timing.beat_s
                if exchange is None:
                    wait_s = min(wait_s, (self._due_ns - now) / NS)
                if bell.arm(seen):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await self._wake.wait()
                    bell.disarm()
        finally:
            loop.remove_reader(self._spec.death.fd)
            if exchange is not None:
                exchange.cancel()
                await asyncio.wait([exchange])
            if self._published in PUBLISHED:
                await self._leave()
            await self._disconnect()

    def _stop(self) -> None:
        self._spec.stop = True
        self._wake.set()

    def _rung(self, event_fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event_fd)
        self._wake.set()

    def _has_news(self) -> bool:
        """Whether the node has become READY, or drains, since the last report: that is reported at once, once."""
        return self._control.state in PUBLISHED and self._control.state != self._published

    def _connected(self) -> DiscoveryService:
        """The service, made on first use. Raises DiscoveryError."""
        if self._service is None:
            self._service = open_service(
                self._spec.discovery,
                token_file=self._spec.discovery_token_file,
                ca_file=self._spec.discovery_ca_file,
                timing=self._timing,
                clock=time.monotonic_ns,
                unreadable=lambda count: self._ctx.count(Metric.MESSAGES_REFUSED, count),
            )
            self._backoff.longest_s = self._service.longest_pause_s
        return self._service

    async def _disconnect(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def _exchange(self) -> None:
        """Report the node and ask for the routes, once; set when the next exchange is due."""
        report = self._reporter.report(time.monotonic_ns())
        if report is None:
            self._due_ns = time.monotonic_ns() + int(self._timing.discovery_interval_s * NS)
            return
        self._published = NodeState[report.state]
        state, reason = DiscoveryState.REGISTERED, ""
        try:
            service = self._connected()
            self._ctx.count(Metric.MESSAGES_OUT)
            try:
                await service.register(report)
            except DiscoveryError as error:
                if not error.refused:
                    raise
                state, reason = DiscoveryState.REFUSED, str(error)  # the routes are asked for all the same
            answer = await service.routes(self._reporter.other_role.name.lower())
            self._ctx.count(Metric.MESSAGES_IN)
            self._reporter.take(answer, time.monotonic_ns())
        except DiscoveryError as error:
            state, reason = DiscoveryState.REFUSED if error.refused else DiscoveryState.UNREACHABLE, str(error)
        except Exception as error:  # a bug in one exchange ends that exchange (D4)
            log.exception("registrar: an exchange failed")
            self._ctx.count(Metric.ERRORS)
            state, reason = DiscoveryState.UNREACHABLE, f"{type(error).__name__}: {error}"
        pause_s = self._backoff.succeeded() if state == DiscoveryState.REGISTERED else self._backoff.failed()
        now = time.monotonic_ns()
        self._due_ns = now + int(pause_s * NS)
        self._reporter.say(state, reason, self._backoff.num_failures, now)

    async def _leave(self) -> None:
        """Leave as the node stops: the server refuses later reports of this incarnation, so nothing is routed here."""
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._connected().leave(self._reporter.leave())
        except (DiscoveryError, TimeoutError) as error:
            log.info("discovery: not left: %s; the registration runs out", error or "no answer")
        else:
            self._reporter.say(DiscoveryState.LEFT, "", 0, time.monotonic_ns())


def run_registrar(spec: ProcessSpec, ctx: RoleContext) -> None:
    """Run the registrar until the process is told to stop."""

    async def life() -> None:
        await Registrar(spec, ctx).run()

    asyncio.run(life())
