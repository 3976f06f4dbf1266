"""Whether anybody listens at an address."""

from __future__ import annotations

import socket

from embridge.pipeline.client.refusals import FORGET_NS, REFUSED_NS, TRY_NS, Refusals
from embridge.workers.timing import NS


def address_of(sock: socket.socket) -> str:
    return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def test_an_address_counts_as_dead_when_each_try_was_refused_for_a_while_and_not_before() -> None:
    refusals, now_ns = Refusals(), NS
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = address_of(sock)
        for _ in range(20):
            assert not refusals.is_refused(address, now_ns)
            now_ns += TRY_NS // 2
    found = [refusals.is_refused(address, now_ns + k * TRY_NS) for k in range(10)]
    assert not any(found[: REFUSED_NS // TRY_NS])
    assert all(found[REFUSED_NS // TRY_NS + 1 :])
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        assert not refusals.is_refused(address, now_ns + 20 * TRY_NS)  # it is back
    refusals.close()


def test_what_was_seen_long_ago_counts_no_more() -> None:
    refusals = Refusals()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = address_of(sock)
    refusals.is_refused(address, NS)
    assert not refusals.is_refused(address, NS + FORGET_NS)
    assert not refusals.is_refused(address, NS + FORGET_NS + TRY_NS)
    refusals.is_refused("tcp://127.0.0.1:9", NS + 3 * FORGET_NS)
    refusals.forget_old(NS + 3 * FORGET_NS)
    assert list(refusals._tries) == ["tcp://127.0.0.1:9"]
    refusals.close()


def test_an_address_of_which_nothing_can_be_known_is_not_dead() -> None:
    refusals = Refusals()
    assert not any(refusals.is_refused("tcp://[2001:db8::1]:9", NS + k * TRY_NS) for k in range(10))
    refusals.close()
