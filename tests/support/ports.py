"""Ports for what is to begin again at the port that it had: nobody else is given one of these meanwhile."""

from __future__ import annotations

import random
import socket
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
