"""The registrar's requests over HTTP.

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
from embridge.workers.discovery.auth_token import read_token
from embridge.workers.discovery.authorities import tls_context

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


class TokenFile:
    """What the file of the setting `discovery_token_file` holds; read on first use, and again after a refusal, because
    it may have been changed.
    """

    def __init__(self, path: str, read: Callable[[str], str] = read_token) -> None:
        self._path = path
        self._read = read
        self._token: str | None = None

    def token(self) -> str:
        """The token; empty where no file is set. Raises DiscoveryError for a file that cannot be used."""
        if self._token is None:
            try:
                self._token = self._read(self._path) if self._path else ""
            except ValueError as error:
                raise DiscoveryError(str(error)) from error
        return self._token

    def forget(self) -> None:
        """The next request reads the file again."""
        self._token = None


class Requests:
    """Requests to the servers of one kind, over connections that are kept. One task may use it at a time.

    `running` names the program that should listen there, for a person who reads why nobody has answered. `ca_file`, if
    any, has the authorities by which the certificate of a server is checked; else the system's are taken.
    """

    def __init__(self, timeout_s: float, running: str, ca_file: str = "") -> None:
        self._timeout_s = timeout_s
        self._running = running
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1, keepalive_timeout=60.0, resolver=Resolver(), ssl=tls_context(ca_file) if ca_file else True
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def ask(
        self, method: str, server: str, path: str, *, body: bytes | None = None, authorization: str = ""
    ) -> tuple[int, bytes]:
        """Status and body of the answer of a server, `http(s)://host:port`, whatever they are.

        Raises DiscoveryError where there is none, or one beyond `MAX_ANSWER_BYTES`.
        """
        headers = {"Authorization": authorization} if authorization else {}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.request(
                    method, server + path, data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                return response.status, await _body(response)
        except TimeoutError as error:
            raise DiscoveryError(f"{server}: no answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            why = str(error.certificate_error)[:MAX_REASON_CHARS]
            raise DiscoveryError(f"{server}: its certificate is not accepted: {why}; see discovery_ca_file") from error
        except aiohttp.ClientConnectorError as error:
            why = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
            if isinstance(error.os_error, socket.gaierror):
                why = f"its name does not resolve: {error.os_error.strerror}"
            raise DiscoveryError(f"{server}: {why}; is {self._running} running?") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a malformed header
            raise DiscoveryError(f"{server}: {type(error).__name__}: {str(error)[:MAX_REASON_CHARS]}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def decoded(data: bytes, kind: type[T], server: str, what: str, *, strict: bool = True) -> T:
    """The body of an answer as a message; unless `strict`, integers may stand there as text. Raises DiscoveryError."""
    try:
        return msgspec.json.decode(data, type=kind, strict=strict)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        text = str(error)[:MAX_REASON_CHARS]
        raise DiscoveryError(f"{server}: its answer is not that of {what}: {text}") from error


def printable(text: str) -> str:
    """What somebody else has sent, cut, and fit for a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARS])


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer. Raises DiscoveryError where it has more than `MAX_ANSWER_BYTES`."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > msg.MAX_ANSWER_BYTES:
            raise DiscoveryError(f"{response.url.origin()}: its answer has more than {msg.MAX_ANSWER_BYTES} bytes")
    return bytes(data)
