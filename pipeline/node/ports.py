"""A node's two ports, opened by its launcher so that they close only when the node is gone."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any, Final

from embridge.pipeline.node.naming import naming

BIND_FOR_S: Final = 2.0  # for a process of a node that was killed while it began: it holds the port until it notices
BIND_PAUSE_S: Final = 0.02


def listen(name: str, host: str, port: int, until: float) -> tuple[int, str]:
    """Open a listening socket. Returns its descriptor and its `tcp://` address.

    An address in use may come free; the call waits for that until the given time (monotonic).

    Raises:
        LaunchError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    what = f"{name} port: {shown}:{port}"
    with naming(what, "choose another"), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV  # also with the zone of a link-local address
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=numeric)[0][4]
        while not _is_bound(sock, address, patient=time.monotonic() < until):
            time.sleep(BIND_PAUSE_S)
        sock.listen(1024)
        said = f"tcp://{shown}:{sock.getsockname()[1]}"
        return sock.detach(), said


def _is_bound(sock: socket.socket, address: Any, *, patient: bool) -> bool:
    """Bind it; False where the address is in use and may come free. Raises OSError."""
    try:
        sock.bind(address)
    except OSError as error:
        if not patient or error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
