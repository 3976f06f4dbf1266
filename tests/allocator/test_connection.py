"""A reader's connection, and whether the node at its other end lives."""

from __future__ import annotations

import os
import socket

import pytest

from embridge.allocator._core import has_hung_up
from embridge.allocator.connection import Connection


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_a_connection_is_open_until_the_other_end_hangs_up_or_this_one_is_closed(kind: socket.SocketKind) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    it = Connection(here)
    assert it.is_open()
    there.send(b"x")
    assert it.is_open()
    assert here.recv(2) == b"x"  # it is taken by nobody but its reader
    there.close()
    assert not it.is_open()
    it.hang_up()
    assert not it.is_open()  # whatever has its number by now
    with pytest.raises(ValueError, match="negative"):
        has_hung_up(-1)


def test_what_is_no_open_socket_has_hung_up() -> None:
    read, write = os.pipe()
    assert has_hung_up(read)
    os.close(write)
    os.close(read)
    assert has_hung_up(read)
    with socket.socket() as unconnected:
        assert has_hung_up(unconnected.fileno())
