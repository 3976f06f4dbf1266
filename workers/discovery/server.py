"""The discovery server: it knows the nodes, their health and their load, so that routers can choose among them.

`embridge discovery` runs it.

Its state is in memory, and nodes renew it every second: after a restart of the server it is whole again within one
interval. The server asks the nodes nothing, so a probe of `/health` costs them nothing and touches no payload (B13);
the answer is what the beats of each process say (D4).

    PUT    /route    a node registers, or renews           GET /health    200 only if every process of every node beats
    GET    /route    the nodes, for registrars             GET /nodes     the nodes with health and load, for routers
    DELETE /route    a node leaves                         GET /metrics   the same for Prometheus
    GET    /         the status page, which asks           GET /status.json

Every body is decoded into a typed, ranged message before a handler uses it. An answer that is no success is JSON with
an `error` that says what was wrong. The server binds one address, and one beyond loopback only where a token is
configured, which every request must then bear, but for that of the status page: it holds no data,
and asks for the token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.metrics import metrics
from embridge.workers.discovery.registry import Registry, RegistryFull, RouteConflict
from embridge.workers.discovery.status import status
from embridge.workers.exposition import content_type
from embridge.workers.log_limit import LogLimit
from embridge.workers.status_page import status_page
from embridge.workers.web.hosts import strange_name

log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")

REQUEST_TIMEOUT_S: Final = 5.0  # from the end of a request's headers to the end of its body
SHUTDOWN_TIMEOUT_S: Final = 1.0
CLOCKS_APART_S: Final = 24 * 3600.0  # how far the clocks of a node's host and of this one may differ

_STRANGE: Final = (
    "is no name of this server's, which answers to localhost and to IP addresses while it has no token; "
    "ask it by its address, or start it with --token-file"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def check_binding(host: str, *, has_token: bool) -> None:
    """Raise ValueError for an address that the server must not bind.

    Such are the address of all interfaces, and, without a token, any address other than loopback.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"host: {host!r} is no IP address; give the one address that the server binds") from error
    if address.is_unspecified:
        raise ValueError(f"host: {host} is every interface; give the one address that the server binds")
    if not address.is_loopback and not has_token:
        raise ValueError(
            f"host: {host} is not a loopback address, and there is no token; give --token-file, or bind 127.0.0.1"
        )


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Malformed(logging.Filter):
    """Limits what aiohttp logs of requests that are no HTTP: a few lines for each cause, and a count.

    aiohttp would log a traceback for each such request, before the token is checked.
    """

    def __init__(self, count: Callable[[], None], clock: Callable[[], int]) -> None:
        super().__init__()
        self._count = count
        self._clock = clock
        self._limit = LogLimit(lines_a_peer=5, lines_in_all=20)

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        self._count()
        kind, peer = (
            type(error).__name__,
            record.args[0] if isinstance(record.args, tuple) and record.args else "somebody",
        )
        self._limit.log(log, logging.INFO, kind, self._clock(), "a request of %s is no HTTP: %s", peer, kind)
        return False


class Server:
    """The handlers of the server.

    `token` is what every request must bear, "" where the address guards enough. `clock` is monotonic ns.

    `wall_s` is the time of day. An incarnation is the millisecond of a node's launch, or a little more; a report of an
    incarnation that lies days ahead is refused, because it would bar the node's own incarnation (D5).
    """

    def __init__(
        self, *, token: str = "", clock: Callable[[], int] = time.monotonic_ns, wall_s: Callable[[], float] = time.time
    ) -> None:
        self.registry = Registry(clock())
        self._clock = clock
        self._wall_s = wall_s
        self._expected = f"Bearer {token}".encode() if token else b""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=msg.MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_put("/route", self._put)
        app.router.add_get("/route", self._routes, allow_head=False)
        app.router.add_delete("/route", self._leave)
        app.router.add_get("/health", self._health)
        app.router.add_get("/nodes", self._nodes, allow_head=False)
        app.router.add_get("/metrics", self._metrics, allow_head=False)
        app.router.add_get("/status.json", self._status, allow_head=False)
        app.router.add_get("/", self._page)
        return app

    async def serve(self, host: str, port: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set. `ready` is called with the URL once the server listens.

        Raises:
            ValueError: the server must not bind that address.
            OSError: the server cannot bind it.
        """
        check_binding(host, has_token=bool(self._expected))
        malformed = _Malformed(self._count_malformed, self._clock)
        _http_log.addFilter(malformed)
        runner = web.AppRunner(
            self.app(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, keepalive_timeout=30.0, logger=_http_log
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            ready(url_of(host, runner.addresses[0][1]))
            await stop.wait()
        finally:
            await runner.cleanup()
            _http_log.removeFilter(malformed)

    def _count_malformed(self) -> None:
        self.registry.counts["malformed"] += 1

    def run(self, host: str, port: int, ready: Callable[[str], None]) -> None:
        """Serve in the main thread until SIGTERM or SIGINT; see `serve`."""

        async def life() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            await self.serve(host, port, ready, stop)

        asyncio.run(life())

    # ---- before every handler

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the token, then run the handler under a deadline; every failure is an answer of one form."""
        try:
            if not self._expected and (name := strange_name(request.headers.get("Host", ""))):
                return _refuse(403, f"Host: {name!r} {_STRANGE}")
            needs_token = bool(self._expected) and request.match_info.handler != self._page
            if needs_token and not hmac.compare_digest(_credentials(request), self._expected):
                return _refuse(401, "Authorization: this server expects `Bearer <token>`, and got something else")
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await handler(request)
        except msgspec.MsgspecError as error:
            return _refuse(400, f"{request.method} {request.path}: {error}")
        except RouteConflict as error:
            self.registry.counts["conflict"] += 1
            log.info("%s %s refused: %s", request.method, request.path, str(error))
            return _refuse(409, str(error))
        except RegistryFull as error:
            return _refuse(503, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _refuse(413, f"body: more than {msg.MAX_BODY_BYTES} bytes")
        except web.HTTPException as error:
            return _refuse(
                error.status,
                f"{request.method} {request.path[:64]}: {error.reason}; "
                "known: / /route /health /nodes /status.json /metrics",
            )
        except TimeoutError:
            return _refuse(408, f"body: not here within {REQUEST_TIMEOUT_S:g} s")
        except Exception:  # one request's bug ends that request (D4)
            log.exception("%s %s failed", request.method, request.path)
            self.registry.counts["error"] += 1
            return _refuse(500, "internal error; the server's log has the rest")

    # ---- the routes

    async def _put(self, request: web.Request) -> web.Response:
        report = msgspec.json.decode(await request.read(), type=msg.RouteReport)
        self._check_incarnation(report.incarnation)
        result = self.registry.put(report, self._clock())
        if result != "renewed":
            what = (report.role, report.node_id, report.incarnation, report.bootstrap_addr)
            log.info("%s node %s of incarnation %d at %s " + result, *what)
        return _json({"result": result})

    async def _routes(self, request: web.Request) -> web.Response:
        role, now = _query(request.query, msg.RouteFilter).role, self._clock()
        return _json(msg.RouteAnswer(routes=self.registry.entries(now, role), server_up_s=self.registry.up_s(now)))

    async def _leave(self, request: web.Request) -> web.Response:
        leave = _query(request.query, msg.Leave)
        self._check_incarnation(leave.incarnation)
        left = self.registry.leave(leave, self._clock())
        if left:
            log.info("node %s of incarnation %d has left", leave.node_id, leave.incarnation)
        return _json(msg.Left(left=left))

    def _check_incarnation(self, incarnation: int) -> None:
        most = int((self._wall_s() + CLOCKS_APART_S) * 1000)
        if incarnation > most:
            raise msgspec.ValidationError(
                f"incarnation: {incarnation} > {most}, which is a day from now in milliseconds; "
                "set the clocks of both hosts"
            )

    async def _health(self, request: web.Request) -> web.Response:
        entries = self.registry.entries(self._clock())
        sick = [
            {
                "node_id": entry.node_id,
                "role": entry.role,
                "bootstrap_addr": entry.bootstrap_addr,
                **msgspec.to_builtins(silent),
            }
            for entry in entries
            for silent in entry.unhealthy
        ]
        text = "; ".join(f"{s['process']} of {s['role']} node {s['node_id']}: {_complaint(s)}" for s in sick)
        answer = {"healthy": not sick, "num_nodes": len(entries), "error": text, "unhealthy": sick}
        return _json(answer, 503 if sick else 200)

    async def _nodes(self, request: web.Request) -> web.Response:
        return _json({"nodes": self.registry.entries(self._clock(), _query(request.query, msg.RouteFilter).role)})

    async def _metrics(self, request: web.Request) -> web.Response:
        shown = content_type(request.headers.get("Accept", ""))
        return web.Response(body=metrics(self.registry, self._clock(), shown), headers={"Content-Type": shown})

    async def _status(self, request: web.Request) -> web.Response:
        return _json(status(self.registry, self._clock()))

    async def _page(self, request: web.Request) -> web.Response:
        shown = status_page()
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", **shown.headers}
        return web.Response(body=shown.body, content_type="text/html", charset="utf-8", headers=headers)


def _complaint(sick: Mapping[str, Any]) -> str:
    if sick.get("reason"):
        return f"it cannot be kept alive ({sick['reason']})"
    return f"no sign of life for {sick['silent_s']:.1f} s"


def _credentials(request: web.Request) -> bytes:
    return request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")


def _query(query: Mapping[str, str], kind: type[T]) -> T:
    """A query string as a message."""
    return msgspec.convert(dict(query), type=kind, strict=False)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _refuse(status: int, error: str) -> web.Response:
    return _json(msg.Refused(error=error), status)
