"""Addresses of nodes: `tcp://ip:port` between nodes and at sockets; a host name in a request is looked up here.

libzmq would look a name up in its one I/O thread: until the resolver answers, no message goes in or out for any peer.
It also takes only the first address of a name that has addresses of both families. So no name reaches a socket. A name
is looked up in a thread, and the answer is kept for a while, or until nobody answers at that address. If a name has
several addresses, the first at which a node speaks is taken.

A look-up cannot be broken off, and look-ups that hang would keep others from their threads. So each look-up has a
thread of its own, up to a limit. Names that have taken long before come last, and have no more than half of the
threads.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from embridge.workers.timing import NS

MAX_ASKED: Final = 256  # names that are being looked up, or wait for it
MAX_THREADS: Final = 64
LONG_NS: Final = NS  # a look-up that takes longer makes its name one of those that come last
MAX_KEPT: Final = 1024  # answers
MAX_REMEMBERED: Final = 80  # characters of an address whose one form is kept
MAX_SAID: Final = 300  # characters of an address, which has a host name of 253 at most
MAX_ADDRESSES: Final = 8  # of one name that are tried
FOUND_NS: Final = 10 * NS  # how long an answer is kept
NOT_FOUND_NS: Final = NS
TRY_S: Final = 0.5  # how long one of several addresses has to answer; all together take less than `connect_timeout_s`

T = TypeVar("T")

_FORM: Final = re.compile(r"tcp://(\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[\w.-]+):([1-9]\d{0,4})", re.ASCII)
_GREETING: Final = re.compile(rb"\xff.{8}\x7f", re.DOTALL)  # the first ten bytes from who speaks ZMTP, sent unasked


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of `tcp://host:port`, an IPv6 address without its brackets.

    Raises:
        ValueError: this is no address of a node.
    """
    if not isinstance(address, str):  # from who names nodes, and may have it from anybody
        raise ValueError(f"{type(address).__name__} is not of the form tcp://host:port")
    form = _FORM.fullmatch(address)
    if form is None or int(form[2]) > 65535 or len(address) > MAX_SAID:
        raise ValueError(f"{address!r:.{MAX_SAID}} is not of the form tcp://host:port")
    host = form[1].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        if form[1] != host:
            raise ValueError(f"{address!r}: {host} is no IPv6 address") from None
        return host, int(form[2])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"{address!r}: {host} is the address of no node")
    return str(ip), int(form[2])


def numeric(address: str) -> str:
    """The one form of `tcp://ip:port`. Raises ValueError for a name, another transport, or what leads to no node."""
    is_short = isinstance(address, str) and len(address) <= MAX_REMEMBERED
    return _numeric(address) if is_short else _numeric.__wrapped__(address)


@functools.lru_cache(MAX_KEPT)
def _numeric(address: str) -> str:
    host, port = split_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{address!r} is no tcp://ip:port") from None
    return f"tcp://[{ip}]:{port}" if ip.version == 6 else f"tcp://{ip}:{port}"


def host_of(address: str) -> str:
    """The host of `tcp://host:port`, a name or an IP address, an IPv6 one without its brackets."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


class Found(NamedTuple):
    """The result of a look-up: the numeric address of the name's node, or why there is none."""

    endpoint: str
    why: str = ""


class Names:
    """Looks names up for one thread, which never waits. `found` is called, in another one, when there is an answer."""

    def __init__(
        self, found: Callable[[], None] = lambda: None, *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._found = found
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Found, int]] = {}  # address -> its answer, and until when it holds
        self._asked: set[str] = set()
        self._queue: deque[str] = deque()
        self._last: deque[str] = deque()  # names that have taken long before
        self._begun: dict[str, int] = {}  # look-ups under way, and since when
        self._slow: dict[str, None] = {}  # names whose last look-up took long
        self._num_threads = 0

    def find(self, address: str) -> Found | None:
        """The result for `tcp://name:port`; None while it is looked up."""
        with self._lock:
            found, until_ns = self._kept.get(address, (None, 0))
            if found is not None and self._clock() < until_ns:
                return found
            if address in self._asked:
                return None
            queue = self._last if address in self._slow else self._queue
            if len(self._asked) >= MAX_ASKED or (len(self._last) >= MAX_ASKED // 2 and queue is self._last):
                return Found("", f"{len(self._asked)} other names are being looked up")
            self._asked.add(address)
            queue.append(address)
            why_not = self._start()
            if why_not and not self._num_threads:
                queue.remove(address)
                self._asked.remove(address)
                return Found("", f"its name cannot be looked up: {why_not}")
        return None

    def forget(self, endpoint: str) -> None:
        """Forget the answers that lead to this endpoint, because nobody answers there any more.

        Their names are looked up again when a request next has one of them.
        """
        with self._lock:
            for address in [address for address, (found, _) in self._kept.items() if found.endpoint == endpoint]:
                del self._kept[address]

    def _start(self) -> str:
        """Start one more thread, if a name waits for one and may have it (under the lock).

        Returns why none can be started.
        """
        if not self._may_begin() or self._num_threads >= MAX_THREADS:
            return ""
        try:
            threading.Thread(target=self._work, name="embridge-names", daemon=True).start()
        except RuntimeError as error:
            return str(error)
        self._num_threads += 1
        return ""

    def _may_begin(self) -> bool:
        if self._queue:
            return True
        return bool(self._last) and sum([address in self._slow for address in self._begun]) < MAX_THREADS // 2

    def _work(self) -> None:
        """Look names up until none is left (what a thread runs)."""
        while True:
            with self._lock:
                if not self._may_begin():
                    self._num_threads -= 1
                    return
                address = self._queue.popleft() if self._queue else self._last.popleft()
                self._begun[address] = self._clock()
            try:
                found = look_up(address)
            except Exception as error:  # a bug in one look-up ends that one (D4)
                found = Found("", f"{type(error).__name__}: {error}")
            with self._lock:
                now_ns = self._clock()
                self._slow.pop(address, None)
                if now_ns - self._begun.pop(address) > LONG_NS:
                    _put(self._slow, address, None)
                self._asked.remove(address)
                _put(self._kept, address, (found, now_ns + (FOUND_NS if found.endpoint else NOT_FOUND_NS)))
            self._found()


def _put(table: dict[str, T], address: str, value: T) -> None:
    """Enter as the latest; the oldest entries make room."""
    table.pop(address, None)
    table[address] = value
    while len(table) > MAX_KEPT:
        del table[next(iter(table))]


def look_up(address: str) -> Found:
    """Ask the resolver and, if it knows several addresses, try those, one after the other. Waits for the answers."""
    host, port = split_address(address)
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have
        return Found("", f"name {host} does not resolve: {getattr(error, 'strerror', None) or error}")
    endpoints = []
    for *_, where in answers:
        ip = str(where[0])
        with contextlib.suppress(ValueError):
            endpoints.append(numeric(f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"))
    endpoints = list(dict.fromkeys(endpoints))[:MAX_ADDRESSES]
    if len(endpoints) == 1:
        return Found(endpoints[0])
    return _first_that_answers(host, endpoints)


def _first_that_answers(host: str, endpoints: list[str]) -> Found:
    """The first endpoint that answers, else the first that is silent: it may be slow. Closed ones do not count."""
    silent, why = "", "no address"
    for endpoint in endpoints:
        try:
            if _speaks(endpoint):
                return Found(endpoint)
            why = f"no encode node at {endpoint}"
        except TimeoutError:
            silent = silent or endpoint
        except OSError as error:
            why = error.strerror or str(error)
    if silent:
        return Found(silent)
    return Found("", f"name {host} has {len(endpoints)} addresses, and none answers: {why}")


def _speaks(endpoint: str) -> bool:
    """Whether a node answers there. Raises TimeoutError, or OSError if nobody listens."""
    with socket.create_connection(split_address(endpoint), timeout=TRY_S) as sock:
        said = b""
        while len(said) < 10:
            more = sock.recv(10 - len(said))
            if not more:
                return False
            said += more
    return _GREETING.fullmatch(said) is not None
