"""A small HTTP server: GET and HEAD, one answer a connection, one thread, bounded in everything that a client decides.

Who asks may be slow, silent or hostile. A connection has `PATIENCE_S` for its question and its answer together, a
question at most `MAX_HEAD` bytes, and no more than `MAX_CONNECTIONS` are open. Who comes then takes the place of the
one that has been silent for the longest, so that a probe is answered in time though others hold all that there are; if
all of them are being answered, it waits in the kernel's queue. A body is not read. So the process stays as small as it
is, and no other process of the node notices.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from embridge.workers.timing import NS

log = logging.getLogger(__name__)

MAX_HEAD: Final = 8192
MAX_CONNECTIONS: Final = 64
PATIENCE_S: Final = 5.0
ACCEPT_PAUSE_S: Final = 0.2  # after a connection that could not be taken, for want of a descriptor, say
_PHRASES: Final = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Asked(NamedTuple):
    """A question: its path, the parameters behind it, and its headers by their names in lower case."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What is answered."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = {}


Handler = Callable[[Asked], Answer]


class _Connection:
    """One connection: its question as far as it has come, then its answer as far as it has not gone."""

    def __init__(self, sock: socket.socket, until_ns: int) -> None:
        self.sock = sock
        self.until_ns = until_ns
        self.head = b""
        self.answer: memoryview | None = None


class Server:
    """Serves `routes`, a table from paths to functions, on a listening socket.

    The server changes the socket to non-blocking and closes it with itself. A function that raises costs its asker a
    500, and a line of the log. All of it runs in the thread that calls `turn`; `clock` gives monotonic ns.
    """

    def __init__(
        self, listening: socket.socket, routes: Mapping[str, Handler], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._routes = routes
        self._clock = clock
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._connections: dict[_Connection, None] = {}  # in the order in which they came
        self._accept_ns: int | None = None  # when connections are taken again; None: now
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, None)

    def watch(self, fd: int) -> None:
        """End a `turn` when this descriptor can be read; whoever owns it reads it."""
        self._selector.register(fd, selectors.EVENT_READ, fd)

    def turn(self, wait_s: float) -> None:
        """Wait for at most so many seconds for something to do, and do it."""
        now = self._clock()
        due = [it.until_ns for it in self._connections]
        if self._accept_ns is not None and len(due) < MAX_CONNECTIONS:
            due.append(self._accept_ns)
        wait_s = max(0.0, min([wait_s, *((at_ns - now) / NS for at_ns in due)]))
        ready = [key.data for key, _ in self._selector.select(wait_s)]
        for it in ready:
            if isinstance(it, _Connection):
                self._serve(it)
        if None in ready:  # behind those that have just said what they want
            self._accept()
        now = self._clock()
        for it in [it for it in self._connections if it.until_ns <= now]:
            self._end(it)
        if self._accept_ns is not None and self._accept_ns <= now and len(self._connections) < MAX_CONNECTIONS:
            self._accept_ns = None
            self._selector.register(self._listening, selectors.EVENT_READ, None)

    def close(self) -> None:
        """Close every connection and the socket."""
        for it in list(self._connections):
            self._end(it)
        self._selector.close()
        self._listening.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return  # who came has left
        except OSError as error:
            log.warning("a connection could not be taken: %s", error.strerror)
            self._pause(ACCEPT_PAUSE_S)
            return
        sock.setblocking(False)
        it = _Connection(sock, self._clock() + int(PATIENCE_S * NS))
        self._connections[it] = None
        self._selector.register(sock, selectors.EVENT_READ, it)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._make_room()
        if len(self._connections) >= MAX_CONNECTIONS:
            self._pause(0.0)

    def _make_room(self) -> None:
        """End the oldest connection that has said nothing whole, but the one that has just come."""
        *others, _ = self._connections
        silent = next((it for it in others if it.answer is None), None)
        if silent is not None:
            self._end(silent)

    def _pause(self, for_s: float) -> None:
        self._selector.unregister(self._listening)
        self._accept_ns = self._clock() + int(for_s * NS)

    def _end(self, it: _Connection) -> None:
        del self._connections[it]
        self._selector.unregister(it.sock)
        it.sock.close()

    def _serve(self, it: _Connection) -> None:
        try:
            if it.answer is None:
                chunk = it.sock.recv(MAX_HEAD + 1 - len(it.head))
                if not chunk:
                    self._end(it)
                    return
                it.head += chunk
                found = self._answer(it.head)
                if found is None:
                    return
                it.answer = memoryview(found)
                self._selector.modify(it.sock, selectors.EVENT_WRITE, it)
            it.answer = it.answer[it.sock.send(it.answer) :]
            if not it.answer:
                with contextlib.suppress(OSError):
                    it.sock.shutdown(socket.SHUT_WR)
                self._end(it)
        except BlockingIOError:
            return
        except OSError:
            self._end(it)

    def _answer(self, head: bytes) -> bytes | None:
        """The whole answer to a question; None while that is not all there."""
        text, end, _ = head.partition(b"\r\n\r\n")
        if not end:
            return _written(Answer(b"the header is too long\n", status=431)) if len(head) > MAX_HEAD else None
        first, *lines = text.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _written(Answer(b"this is no question in HTTP/1\n", status=400))
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _written(Answer(b"only GET and HEAD\n", status=405, headers={"Allow": "GET, HEAD"}))
        try:
            parts = urlsplit(target)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32))
        except ValueError:
            return _written(Answer(b"the target cannot be read\n", status=400))
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = self._ask(Asked(parts.path, query, headers))
        return _written(answer, is_head=method == "HEAD")

    def _ask(self, asked: Asked) -> Answer:
        handler = self._routes.get(asked.path)
        if handler is None:
            return Answer(f"nothing is here; there is {', '.join(self._routes)}\n".encode(), status=404)
        try:
            return handler(asked)
        except Exception:
            log.exception("%s cannot be answered", asked.path)
            return Answer(b"it cannot be answered; the log of the node says why\n", status=500)


def _written(answer: Answer, *, is_head: bool = False) -> bytes:
    phrase, extra = _PHRASES.get(answer.status, ""), "".join(f"{name}: {it}\r\n" for name, it in answer.headers.items())
    head = (
        f"HTTP/1.1 {answer.status} {phrase}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        f"{extra}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else answer.body)
