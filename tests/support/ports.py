"""Ports that nobody else is given meanwhile: for what is to begin again at the port that it had, and for what is not
there at all.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

# below those that the kernel gives to whoever asks for any: to nodes of other tests, and to each connection
NOT_FOR_ANY: Final = range(10_000, 32_768)


def port_to_keep() -> int:
    """A port of 127.0.0.1 that is free, and that only who names it gets."""
    while True:
        port = random.choice(NOT_FOR_ANY)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:  # another test has it
            continue


@contextmanager
def addresses_of_nobody(count: int) -> Iterator[list[str]]:
    """Addresses of 127.0.0.1 at which nobody listens. Their ports stay bound, so no node of another test gets one."""
    with ExitStack() as sockets:
        addresses = []
        for _ in range(count):
            sock = sockets.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            addresses.append(f"tcp://127.0.0.1:{sock.getsockname()[1]}")
        yield addresses
