"""A port whose process has no descriptor left: it rests, and who knocks is let in when there are some again."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq
from support.waiting import wait_until

from embridge.workers.wire.port import KEPT, LOOK_NS, SPARE, Port


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many meanwhile, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open("/dev/null", os.O_RDONLY)  # the least number that is free: all below are taken
    os.close(probe)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + count, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.mark.parametrize("left", [0, SPARE])
def test_while_few_descriptors_are_left_nobody_is_let_in_and_who_is_there_is_served(
    listening: socket.socket, left: int
) -> None:
    """P21, P12: nobody stays in the backlog, for whom libzmq would look again and again; afterwards all are let in."""
    address = listening.getsockname()
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as early,
        context.socket(zmq.DEALER) as late,
        contextlib.ExitStack() as stack,
    ):
        for sock in (router, early, late):
            sock.setsockopt(zmq.LINGER, 0)
        with contextlib.closing(Port(router, listening.fileno(), url_of(address))) as port:
            early.connect(url_of(address))
            early.send(b"early")
            assert router.poll(20_000)
            assert router.recv_multipart()[1:] == [b"early"]
            knocking = [stack.enter_context(socket.socket()) for _ in range(KEPT - 1)]
            newcomer = stack.enter_context(socket.socket())
            now_ns = LOOK_NS
            assert not port.look(now_ns)
            with descriptors_left(left):
                for stranger in knocking:
                    stranger.connect(address)
                assert port.look(now_ns + LOOK_NS)
                assert port.is_short
                wait_until(lambda: nobody_is_left(port, listening))
                newcomer.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    newcomer.connect(address)
                assert nobody_is_left(port, listening)
                early.send(b"again")
                assert router.poll(20_000)
                assert router.recv_multipart()[1:] == [b"again"]
                assert not port.look(now_ns + 2 * LOOK_NS)
            while knocking:
                knocking.pop().close()
            wait_until(lambda: port.look(now_ns + 3 * LOOK_NS) or not port.is_short)
            late.connect(url_of(address))
            late.send(b"late")
            assert router.poll(20_000)
            assert router.recv_multipart()[1:] == [b"late"]


def test_a_port_whose_process_has_died_while_it_was_shut_is_open_again(listening: socket.socket) -> None:
    """P12: the launcher keeps the listening socket, with what was done to it."""
    address = listening.getsockname()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        with contextlib.closing(Port(router, listening.fileno(), url_of(address))) as port:
            port._shut(True)
        with context.socket(zmq.ROUTER) as again, contextlib.closing(
            Port(again, listening.fileno(), url_of(address))
        ):
            router.close(0)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(url_of(address))
            dealer.send(b"here")
            assert again.poll(20_000)


def test_of_a_port_that_flaps_at_its_limit_there_must_be_some_to_spare(listening: socket.socket) -> None:
    address = url_of(listening.getsockname())
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        contextlib.closing(Port(router, listening.fileno(), address)) as port,
    ):
        with descriptors_left(SPARE):
            assert port.look(LOOK_NS)
        with descriptors_left(2 * SPARE):
            assert not port.look(2 * LOOK_NS)
            assert port.is_short
        assert port.look(3 * LOOK_NS)
        assert not port.is_short


def url_of(address: tuple[str, int]) -> str:
    return f"tcp://{address[0]}:{address[1]}"


def nobody_is_left(port: Port, listening: socket.socket) -> bool:
    """Whether the backlog is empty: each was turned away, or let in by libzmq, if that was faster."""
    port.turn_away()
    is_waiting, _, _ = select.select([listening], [], [], 0)
    return not is_waiting
