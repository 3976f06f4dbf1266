"""The exceptions of embridge, as they go from one process to another."""

from __future__ import annotations

import copy
import pickle

import pytest

import embridge
from embridge import EmbridgeError, FailureCode, FetchError, NodeBusyError, TransferError
from embridge.allocator.errors import ProtocolError

KINDS = [
    kind
    for kind in (*(getattr(embridge, name) for name in embridge.__all__), ProtocolError)
    if isinstance(kind, type) and issubclass(kind, Exception)
]


def made(kind: type[Exception]) -> Exception:
    if issubclass(kind, TransferError):
        return kind(FailureCode.PEER_LOST, "its node is gone", 7)
    if issubclass(kind, FetchError):
        return kind(b"key", "it is not published")
    if issubclass(kind, ProtocolError):
        return kind("a peer", "room", -1, "0 or more")
    return kind("no room", 0.5) if issubclass(kind, NodeBusyError) else kind("what happened")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_exception_is_the_same_on_the_other_side_of_a_pool_of_processes(kind: type[Exception]) -> None:
    """D4: one that cannot be read there ends the pool, and nobody hears why the work has failed."""
    error = made(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_all_that_are_public_are_among_them() -> None:
    assert {EmbridgeError, TransferError, FetchError, NodeBusyError} < set(KINDS)
