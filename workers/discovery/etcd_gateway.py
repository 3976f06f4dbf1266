"""What is asked of etcd, through the JSON gateway of its API (version 3): leases, keys and their values.

    POST /v3/lease/grant       a lease; the keys that are put under it go when it ends
    POST /v3/lease/keepalive   it begins anew
    POST /v3/lease/revoke      it ends now
    POST /v3/kv/txn            keys are read, and one is put, in one step
    POST /v3/kv/range          keys and values under a prefix
    POST /v3/auth/authenticate a token for a user and a password, where etcd asks for one

Keys and values are base64 there, and 64-bit integers are text. All requests may be repeated: they carry absolute
values, and a lease that nobody keeps alive ends by itself. So each goes to the next member of the cluster where one
does not answer, or cannot (it has no leader, say).
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

import msgspec

from embridge.workers.discovery.http import MAX_REASON_CHARS, DiscoveryError, Requests, TokenFile, decoded, printable

UNAVAILABLE: Final = (408, 500, 502, 503, 504)  # another member may know better
NOT_FOUND: Final = 5  # of gRPC: what a lease that is no more is answered with
NEEDS_LOGIN: Final = (400, 401)  # a token that etcd has forgotten (it does after a restart), or of older users

T = TypeVar("T")


class KeyValue(msgspec.Struct, frozen=True):
    """One key; no value where only keys were asked for."""

    key: bytes
    value: bytes = b""
    lease: int = 0
    mod_revision: int = 0


class Range(msgspec.Struct, frozen=True):
    """Keys in their order. `more`: there are others, beyond the limit of the request."""

    kvs: list[KeyValue] = []
    more: bool = False


class _Response(msgspec.Struct, frozen=True):
    response_range: Range = Range()


class _Done(msgspec.Struct, frozen=True):
    responses: list[_Response] = []


class _Lease(msgspec.Struct, frozen=True):
    ID: int
    TTL: int = 0


class _KeptAlive(msgspec.Struct, frozen=True):
    result: _Lease


class _Authenticated(msgspec.Struct, frozen=True):
    token: str


class _Revoked(msgspec.Struct, frozen=True):
    pass


class _Failure(msgspec.Struct, frozen=True):
    error: str = ""
    message: str = ""
    code: int = 0


class _Refused(DiscoveryError):
    """etcd has answered, and refuses the request; `code` is gRPC's."""

    def __init__(self, text: str, status: int, code: int) -> None:
        super().__init__(text, refused=True)
        self.status = status
        self.code = code


class EtcdGateway:
    """The requests to the members of one cluster, one at a time.

    `login` holds `user:password`, or nothing.
    """

    def __init__(self, endpoints: tuple[str, ...], login: TokenFile, requests: Requests) -> None:
        self._endpoints = endpoints
        self._current = 0  # the member that has answered last
        self._login = login
        self._token = ""
        self._requests = requests

    async def grant(self, ttl_s: float) -> int:
        """A new lease, of whole seconds; etcd makes a short one longer. Raises DiscoveryError."""
        return (await self._call("lease/grant", {"TTL": math.ceil(ttl_s)}, _Lease)).ID

    async def keep_alive(self, lease: int) -> bool:
        """Have a lease begin anew. False: there is no such lease (any more). Raises DiscoveryError."""
        return (await self._call("lease/keepalive", {"ID": str(lease)}, _KeptAlive)).result.TTL > 0

    async def revoke(self, lease: int) -> None:
        """End a lease and what was put under it, if there is any. Raises DiscoveryError."""
        try:
            await self._call("lease/revoke", {"ID": str(lease)}, _Revoked)
        except _Refused as error:
            if error.code != NOT_FOUND:
                raise

    async def look(self, newest_under: bytes, key: bytes, put: tuple[bytes, int] | None) -> tuple[Range, Range]:
        """The last key under a prefix and one key, both without values; then, in the same step, a value and its lease
        are put at that key, if any. Raises DiscoveryError.
        """
        last = {"sort_order": "DESCEND", "sort_target": "KEY", "limit": "1"}
        steps: list[Any] = [
            {"request_range": {**_under(newest_under), "keys_only": True, **last}},
            {"request_range": {"key": key, "keys_only": True}},
        ]
        if put is not None:
            steps.append({"request_put": {"key": key, "value": put[0], "lease": str(put[1])}})
        done = await self._call("kv/txn", {"success": steps}, _Done)
        if len(done.responses) != len(steps):
            raise DiscoveryError(f"{self._server}: {len(done.responses)} answers to {len(steps)} steps")
        return done.responses[0].response_range, done.responses[1].response_range

    async def range(self, prefix: bytes, limit: int) -> Range:
        """The first keys under a prefix, `limit` at most, with their values. Raises DiscoveryError."""
        return await self._call("kv/range", {**_under(prefix), "limit": str(limit)}, Range)

    async def close(self) -> None:
        """Close the connections."""
        await self._requests.close()

    @property
    def _server(self) -> str:
        return self._endpoints[self._current]

    async def _call(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """The answer to one request, after a login where one is needed. Raises DiscoveryError."""
        try:
            return await self._ask(path, body, kind, await self._logged_in())
        except _Refused as error:
            if not self._token or error.status not in NEEDS_LOGIN:
                raise
        self._token = ""
        return await self._ask(path, body, kind, await self._logged_in())

    async def _logged_in(self) -> str:
        """The token that requests bear; empty where there is no login."""
        if not self._token and (login := self._login.token()):
            name, _, password = login.partition(":")
            try:
                answer = await self._ask("auth/authenticate", {"name": name, "password": password}, _Authenticated, "")
            except _Refused:
                self._login.forget()
                raise
            self._token = answer.token
        return self._token

    async def _ask(self, path: str, body: dict[str, Any], kind: type[T], token: str) -> T:
        """One request to the members in turn, until one can answer it."""
        data = msgspec.json.encode(body)
        for left in range(len(self._endpoints) - 1, -1, -1):
            try:
                return await self._ask_one(path, data, kind, token)
            except DiscoveryError as error:
                if error.refused:
                    raise
                self._current = (self._current + 1) % len(self._endpoints)
                if not left:
                    raise
        raise AssertionError("there is a member at least")

    async def _ask_one(self, path: str, body: bytes, kind: type[T], token: str) -> T:
        server = self._server
        status, data = await self._requests.ask("POST", server, f"/v3/{path}", body=body, authorization=token)
        if status == 200:
            return decoded(data, kind, server, "etcd", strict=False)
        failure = _failure(data)
        text = f"{server}: {path} answered {status}: {printable(failure.error or failure.message)}"
        if status == 404 and not failure.code:
            text += "; is it an etcd, and its gateway on (--enable-grpc-gateway)?"
        if status in UNAVAILABLE or not 400 <= status < 500:
            raise DiscoveryError(text)
        raise _Refused(text, status, failure.code)


def _under(prefix: bytes) -> dict[str, bytes]:
    """The range of all keys that begin with a prefix, which ends with a slash."""
    return {"key": prefix, "range_end": prefix[:-1] + bytes([prefix[-1] + 1])}


def _failure(data: bytes) -> _Failure:
    """What etcd says of a failure; whatever else the body holds, cut."""
    try:
        return msgspec.json.decode(data, type=_Failure, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Failure(error=repr(data[:MAX_REASON_CHARS]))
