"""Addresses at which nobody listens: their nodes are dead, and who waits for an answer need not wait long.

A host that is up refuses a connection to a port that nobody has. So while a fetch has no answer, its address is tried
now and then; nothing is sent. A bootstrap that begins anew has its port again within less time than counts here. A host
that is down refuses nothing: `connect_timeout_s` and `peer_timeout_s` are for that.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import Final

from embridge.workers.addresses import split_address
from embridge.workers.timing import NS

TRY_NS: Final = NS // 10
REFUSED_NS: Final = 4 * TRY_NS
"""For so long each try was refused."""
FORGET_NS: Final = 10 * NS


class _Tries:
    """Those of one address."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.next_ns = self.looked_ns = 0
        self.refused_ns: tuple[int, int] | None = None  # when the first of them was, and the last


class Refusals:
    """Those that one client has met. Nothing waits. Who calls a method has the turn."""

    def __init__(self) -> None:
        self._tries: dict[str, _Tries] = {}

    def is_refused(self, address: str, now_ns: int) -> bool:
        """Whether nobody has listened at a numeric address for a while; tries it, each time that this is asked."""
        it = self._tries.get(address)
        if it is None:
            it = self._tries[address] = _Tries()
        elif now_ns - it.looked_ns >= FORGET_NS:
            self._end(it)
            it.refused_ns = None
        it.looked_ns = now_ns
        found = self._try(it, address) if now_ns >= it.next_ns or it.sock is not None else None
        if found is not None:
            self._end(it)
            it.next_ns = now_ns + TRY_NS
            first_ns = now_ns if it.refused_ns is None else it.refused_ns[0]
            it.refused_ns = (first_ns, now_ns) if found else None
        return it.refused_ns is not None and it.refused_ns[1] - it.refused_ns[0] >= REFUSED_NS

    def forget_old(self, now_ns: int) -> None:
        """Keep nothing of addresses for which nobody has asked for long."""
        for old in [old for old, it in self._tries.items() if now_ns - it.looked_ns >= FORGET_NS]:
            self._end(self._tries.pop(old))

    @staticmethod
    def _try(it: _Tries, address: str) -> bool | None:
        """Whether a connection was refused; None: that is not known yet."""
        try:
            if it.sock is None:
                host, port = split_address(address)
                it.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
                it.sock.setblocking(False)
                if (code := it.sock.connect_ex((host, port))) != errno.EINPROGRESS:
                    return code == errno.ECONNREFUSED
            poll = select.poll()
            poll.register(it.sock, select.POLLOUT)
            code = it.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if poll.poll(0) else errno.EINPROGRESS
        except OSError:
            return False  # nothing is known of it
        return None if code == errno.EINPROGRESS else code == errno.ECONNREFUSED

    @staticmethod
    def _end(it: _Tries) -> None:
        sock, it.sock = it.sock, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """Stop trying."""
        for it in self._tries.values():
            self._end(it)
        self._tries.clear()
