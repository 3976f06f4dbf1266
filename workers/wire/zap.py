"""Decides who may connect: the ZAP 1.0 handler of a process (rfc.zeromq.org/spec/27), a socket in its own loop (D19).

libzmq asks the handler once a handshake, over `inproc://zeromq.zap.01`, and holds the connection back until the handler
has answered: no byte of a stranger's messages reaches this process. The user id of the answer is the public key of the
node that connects. It comes with every message of that connection, so a role knows who speaks, whatever a message
claims.

    request: version, request id, domain, address, routing id, mechanism, credentials...
    reply:   version, request id, status code, status text, user id, metadata
"""

from __future__ import annotations

import logging
import time
from typing import Final

import zmq
from zmq.utils import z85

from embridge.workers.keys import AllowFile
from embridge.workers.log_limit import LogLimit

log = logging.getLogger(__name__)

ENDPOINT: Final = "inproc://zeromq.zap.01"
DOMAIN: Final = b"embridge"
VERSION: Final = b"1.0"
ANSWER_AT_ONCE: Final = 256
FINGERPRINT: Final = 8  # characters of a public key in a log line: enough to find it in a list


class Gatekeeper:
    """Answers ZAP requests from the allow-list.

    It must be made before any socket with keys is bound: without a handler, libzmq asks nobody.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allow: AllowFile) -> None:
        self._allow = allow
        self._limit = LogLimit()
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def answer(self) -> int:
        """Answer the requests that wait. Returns how many connections were refused."""
        refused = 0
        for _ in range(ANSWER_AT_ONCE):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            key = self._judge(request)
            refused += key is None
            code, text = (b"200", b"OK") if key else (b"400", b"no access")
            request_id = request[1] if len(request) > 1 else b""
            self.socket.send_multipart([VERSION, request_id, code, text, (key or "").encode(), b""])
        return refused

    def _judge(self, request: list[bytes]) -> str | None:
        """The key that this request proves, if it is in the allow-list; else None."""
        if len(request) != 7:
            return None
        version, _, domain, address, _, mechanism, credential = request
        if version != VERSION or domain != DOMAIN or mechanism != b"CURVE" or len(credential) != 32:
            return None
        self._allow.refresh()
        key = z85.encode(credential).decode()
        if key in self._allow.list.keys:
            return key
        now_ns = time.monotonic_ns()
        where = address.decode("ascii", "replace")
        self._limit.log(
            log, logging.WARNING, where, now_ns,
            "connection from %s refused: its key %s... is not in %s; add its line there",
            where, key[:FINGERPRINT], self._allow.path,
        )  # fmt: skip
        return None

    def close(self) -> None:
        self.socket.close(0)
