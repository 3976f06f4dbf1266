"""The registrar's requests to the discovery server.

Each has a deadline, every answer has a bound, and redirects and proxies are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from embridge.workers.discovery import messages as msg

MAX_REASON_CHARS: Final = 160

T = TypeVar("T")


class DiscoveryError(Exception):
    """A request to the server did not succeed. `refused`: the server has answered, and refuses the request itself."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class Resolver(AbstractResolver):
    """Looks a name up in a daemon thread: a lookup in asyncio's own threads would keep the process from ending."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def tell(put: Callable[[Any], None], value: Any) -> None:
            def unless_given_up() -> None:
                if not answer.done():
                    put(value)

            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(unless_given_up)

        def ask() -> None:
            try:
                tell(answer.set_result, socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                tell(answer.set_exception, error)

        try:
            threading.Thread(target=ask, name="embridge-resolve", daemon=True).start()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(where[0]), port=port, family=kind, proto=proto, flags=flags)
            for kind, _, proto, _, where in await answer
        ]

    async def close(self) -> None:
        pass


class DiscoveryClient:
    """One connection to the server, which is kept. One task may use it at a time; `close` ends it."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=60.0, resolver=Resolver()),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"Content-Type": "application/json", **headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def register(self, report: msg.RouteReport) -> None:
        """Register the node, or renew its registration. Raises DiscoveryError."""
        await self._ask("PUT", "/route", msg.Accepted, body=msgspec.json.encode(report))

    async def routes(self, role: str) -> msg.RouteAnswer:
        """The registered nodes of one role. Raises DiscoveryError."""
        return await self._ask("GET", f"/route?role={role}", msg.RouteAnswer)

    async def leave(self, leave: msg.Leave) -> None:
        """End the registration of this incarnation. Raises DiscoveryError."""
        await self._ask("DELETE", f"/route?node_id={leave.node_id}&incarnation={leave.incarnation}", msg.Left)

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.request(method, self._url + path, data=body, allow_redirects=False) as response,
            ):
                status, data = response.status, await _body(response)
        except TimeoutError as error:
            raise DiscoveryError(f"{self._url}: no answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            why = os.strerror(error.os_error.errno) if error.os_error.errno else error.os_error
            if isinstance(error.os_error, socket.gaierror):
                why = f"its name does not resolve: {error.os_error.strerror}"
            raise DiscoveryError(f"{self._url}: {why}; is `embridge discovery` running?") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a malformed header
            raise DiscoveryError(f"{self._url}: {type(error).__name__}: {str(error)[:MAX_REASON_CHARS]}") from error
        if status != 200:
            raise DiscoveryError(f"{self._url}: {method} answered {status}: {_said(data)}", refused=400 <= status < 500)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            text = str(error)[:MAX_REASON_CHARS]
            raise DiscoveryError(f"{self._url}: its answer is not that of a discovery server: {text}") from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer. Raises DiscoveryError where it has more than `MAX_ANSWER_BYTES`."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > msg.MAX_ANSWER_BYTES:
            raise DiscoveryError(f"{response.url.origin()}: its answer has more than {msg.MAX_ANSWER_BYTES} bytes")
    return bytes(data)


def _said(data: bytes) -> str:
    """The `error` of a refusal, or whatever else the body holds; made printable, and cut."""
    try:
        text = msgspec.json.decode(data, type=msg.Refused).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = repr(data[:MAX_REASON_CHARS])
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARS])
