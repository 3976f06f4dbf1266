"""What a registrar asks of discovery, and the client of our own server."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from embridge.workers.discovery import messages as msg
from embridge.workers.discovery.http import MAX_REASON_CHARS, DiscoveryError, Requests, TokenFile, decoded, printable

T = TypeVar("T")


class DiscoveryService(Protocol):
    """What knows the nodes: our server, or etcd. One task may use it at a time; `close` ends it.

    `longest_pause_s` is the longest pause after failures: what a service keeps for a node must not run out while only
    some requests fail.
    """

    longest_pause_s: float

    async def register(self, report: msg.RouteReport) -> None:
        """Register the node, or renew its registration. Raises DiscoveryError."""

    async def routes(self, role: str) -> msg.RouteAnswer:
        """The registered nodes of one role. Raises DiscoveryError."""

    async def leave(self, leave: msg.Leave) -> None:
        """End the registration of this incarnation. Raises DiscoveryError."""

    async def close(self) -> None:
        """Close the connections."""


class DiscoveryClient:
    """The requests to `embridge discovery`, over one connection, which is kept."""

    def __init__(self, url: str, token: TokenFile, requests: Requests, longest_pause_s: float) -> None:
        self.longest_pause_s = longest_pause_s
        self._url = url.rstrip("/")
        self._token = token
        self._requests = requests

    async def register(self, report: msg.RouteReport) -> None:
        await self._ask("PUT", "/route", msg.Accepted, body=msgspec.json.encode(report))

    async def routes(self, role: str) -> msg.RouteAnswer:
        return await self._ask("GET", f"/route?role={role}", msg.RouteAnswer)

    async def leave(self, leave: msg.Leave) -> None:
        await self._ask("DELETE", f"/route?node_id={leave.node_id}&incarnation={leave.incarnation}", msg.Left)

    async def close(self) -> None:
        await self._requests.close()

    async def _ask(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        token = self._token.token()
        status, data = await self._requests.ask(
            method, self._url, path, body=body, authorization=f"Bearer {token}" if token else ""
        )
        if status != 200:
            refused = 400 <= status < 500
            if refused:
                self._token.forget()
            raise DiscoveryError(f"{self._url}: {method} answered {status}: {_said(data)}", refused=refused)
        return decoded(data, kind, self._url, "a discovery server")


def _said(data: bytes) -> str:
    """The `error` of a refusal, or whatever else the body holds; made printable, and cut."""
    try:
        text = msgspec.json.decode(data, type=msg.Refused).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = repr(data[:MAX_REASON_CHARS])
    return printable(text)
