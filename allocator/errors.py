"""The exceptions of embridge.

    EmbridgeError
    ├── SegmentError          shared memory could not be created, checked or attached
    ├── LaunchError           a node did not come up, or one of its processes failed
    ├── AttachError           a client could not join a node
    │   └── NodeGoneError     the node it had joined is dead
    ├── NodeUnhealthyError    this node takes no new requests: one of its processes cannot be kept alive
    ├── NodeBusyError         something of this node is used up for now (a RuntimeError, too)
    ├── NoRouteError          discovery knows no encode node that a request could be sent to
    ├── TransferError         one request failed; `reason` says why, in the words both schedulers get
    │   ├── TransferTimeout
    │   ├── TransferAborted
    │   └── PeerLost
    ├── FetchError            a published item could not be fetched
    │   ├── NotPublished          nothing is published under its key, or no more
    │   ├── GenerationGone        it is published, but not that generation any more
    │   ├── FetchTimeout          no answer came in time
    │   ├── Busy                  its node, or this one, has no slot for it now
    │   ├── ItemsTooLarge         the cache is too small for all that one user wants
    │   └── FetchFailed           its node cannot be reached, or has refused
    └── ProtocolError         a peer sent what it must not

A caller's own mistake is a plain `ValueError` or `RuntimeError`. Exhaustion is a return value, not an exception.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class EmbridgeError(Exception):
    """The root of all exceptions that embridge raises on purpose."""


class SegmentError(EmbridgeError):
    """Shared memory could not be created, checked or attached."""


class LaunchError(EmbridgeError):
    """A node did not reach READY, or one of its processes failed for good."""


class AttachError(EmbridgeError):
    """A client could not join a node."""


class NodeGoneError(AttachError):
    """The node that this client had joined is dead."""


class NodeUnhealthyError(EmbridgeError):
    """This node takes no new requests now, because one of its processes cannot be kept alive.

    The node goes on trying to start it, so the caller may try again, too.
    """


class NodeBusyError(EmbridgeError, RuntimeError):
    """Something of this node is used up for now, and nothing was taken; the text says what, and when to try again.

    `retry_after_s` is after how many seconds to try again, if that is known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message if retry_after_s is None else f"{message}; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class NoRouteError(EmbridgeError):
    """Discovery knows no encode node that is READY and healthy."""


class FailureCode(IntEnum):
    """Why a request failed. The code travels in messages and stands in the slot's record."""

    NONE = 0
    INTERNAL = 1
    TIMEOUT = 2
    ABORTED = 3
    PEER_LOST = 4
    CLIENT_DIED = 5
    UNKNOWN_ROOM = 6
    REFUSED = 7
    PROTOCOL = 8
    UNREACHABLE = 9
    TOO_LARGE = 10
    CORRUPT = 11
    NOT_PUBLISHED = 12
    GENERATION_GONE = 13
    BUSY = 14


class TransferError(EmbridgeError):
    """A request failed. `code` is for programs, `reason` for people."""

    def __init__(self, code: FailureCode, reason: str, room: int) -> None:
        super().__init__(f"room {_said(room)}: {reason}")
        self.code = code
        self.reason = reason
        self.room = room

    def __reduce__(self) -> tuple[type[Self], tuple[FailureCode, str, int]]:
        return type(self), (self.code, self.reason, self.room)  # as pools of processes hand an exception over


def _said(room: object) -> str:
    """A room as text. A value that is refused as a room may be anything, and an int of 5000 digits has no text."""
    try:
        return str(room)
    except Exception:
        return f"(a {type(room).__name__})"


class TransferTimeout(TransferError):
    """The request's deadline passed."""


class TransferAborted(TransferError):
    """One of the two sides gave the request up."""


class PeerLost(TransferError):
    """The other node, or the client process on it, is gone."""


_FAILURES: dict[FailureCode, type[TransferError]] = {
    FailureCode.TIMEOUT: TransferTimeout,
    FailureCode.ABORTED: TransferAborted,
    FailureCode.PEER_LOST: PeerLost,
    FailureCode.CLIENT_DIED: PeerLost,
    FailureCode.UNREACHABLE: PeerLost,
}


def known_code(code: int) -> FailureCode:
    """The failure code that a number stands for. An unknown one (a newer peer's) becomes INTERNAL."""
    return FailureCode(code) if code in FailureCode._value2member_map_ else FailureCode.INTERNAL


def failure(code: int, reason: str, room: int) -> TransferError:
    """The exception for a failed request's code and reason."""
    known = known_code(code)
    return _FAILURES.get(known, TransferError)(known, reason, room)


class FetchError(EmbridgeError):
    """A published item could not be fetched. `key` is its key; trying again may help."""

    def __init__(self, key: str | bytes, reason: str) -> None:
        super().__init__(f"item {key!r}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str | bytes, str]]:
        return type(self), (self.key, self.reason)


class NotPublished(FetchError):
    """Nothing is published under the key: not yet, or no more. It is answered at once."""


class GenerationGone(FetchError):
    """The key is published, but another generation than the wanted one."""


class Busy(FetchError):
    """There is no slot for the fetch now, at the node of the item or at this one; try again."""


class FetchTimeout(FetchError):
    """The deadline passed before there was an answer."""


class FetchFailed(FetchError):
    """The node of the item cannot be reached, has refused, or the fetch was given up."""


class ItemsTooLarge(FetchError):
    """The cache cannot hold all items of one user at once, however empty it is."""


class ProtocolError(EmbridgeError):
    """A peer's message breaks a rule: `field` held `value`; `limit` says what it may hold."""

    def __init__(self, peer: str, field: str, value: object, limit: str) -> None:
        super().__init__(f"{peer}: {field} is {value!r}; expected {limit}")
        self.peer = peer
        self.field = field
        self.value = value
        self.limit = limit

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, object, str]]:
        return type(self), (self.peer, self.field, self.value, self.limit)
