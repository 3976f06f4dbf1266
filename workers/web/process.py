"""The web process of a node: it beats, and answers on the HTTP port, until it is told to stop.

The launcher holds the listening socket, so the port stays the same, and open, while this process is started again.
Nothing waits for this process, and no request needs it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from embridge.allocator.control import Control
from embridge.allocator.segment import map_segment
from embridge.workers.process_spec import ProcessSpec, begin, is_launcher_gone
from embridge.workers.role import RoleContext
from embridge.workers.version import version
from embridge.workers.web.hosts import listed_hosts
from embridge.workers.web.routes import routes
from embridge.workers.web.server import Server
from embridge.workers.web.view import View


def run_web(spec: ProcessSpec, ctx: RoleContext) -> None:
    """Serve the node's HTTP port until the process is told to stop."""
    assert spec.listen is not None
    version()  # of what runs here: another one may be installed meanwhile
    seen = Control(map_segment(spec.control.fd, spec.control_bytes, writable=False))
    view = View(seen, spec.timing, time.monotonic_ns)
    server = Server(socket.socket(fileno=os.dup(spec.listen.fd)), routes(view, listed_hosts(spec.web_hosts)))
    event_fd, bell = spec.event_fds[spec.name].fd, ctx.control.bell(spec.name)
    server.watch(event_fd)
    server.watch(spec.death.fd)
    begin(spec, ctx.control)
    try:
        while not spec.stop and not is_launcher_gone(spec):
            ctx.control.processes.beat(ctx.index, time.monotonic_ns())
            if bell.arm(bell.sequence()) and not spec.stop:
                server.turn(spec.timing.beat_s)
            bell.disarm()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(event_fd)
    finally:
        server.close()
        seen.close()
