"""What a process without a port of its own tells other nodes: it speaks, and hears nothing.

Its connections are as those of a process with a port: the same keys, the same bounds. Each ends at the port of another
node's poller, which reads it as it reads all others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

import zmq

from embridge.allocator.plain_enums import Metric
from embridge.workers.log_limit import LogLimit
from embridge.workers.process_spec import ProcessSpec
from embridge.workers.role import Disconnect, Out, RoleContext, Send
from embridge.workers.timing import NS
from embridge.workers.wire.dealers import Dealer, Dealers, Keyring

log = logging.getLogger(__name__)

LOOK_NS = NS // 10  # between two looks at what a connection's monitor has told
NO_EVENTS: frozenset[int] = frozenset()


class Teller:
    """The sockets of such a process, all used by its one thread (D19)."""

    def __init__(self, spec: ProcessSpec, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._limit = LogLimit()
        self._keys = Keyring(spec.keys, spec.allow_file) if spec.keys and spec.allow_file else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealers = Dealers(self._context, self._keys, ctx)
        self._looked_ns: dict[str, int] = {}

    def send(self, out: list[Out]) -> None:
        """Hand messages to the sockets; never waits. One that does not fit is dropped; the poller's heartbeats repair
        that.
        """
        if self._keys is not None:
            self._keys.refresh()
        for item in out:
            assert isinstance(item, Send | Disconnect)
            address = item.address
            try:
                if (dealer := self._dealers.by_address.get(address)) is not None:
                    self._dealers.look(address, self._events(address, dealer))
                if isinstance(item, Send):
                    self._dealers.send(item)
                else:
                    self._dealers.drop(address)
                    self._looked_ns.pop(address, None)
            except zmq.ZMQError as error:
                self._limit.log(
                    log, logging.WARNING, address, time.monotonic_ns(), "message not sent: %s", str(error)
                )
        self._ctx.count(Metric.MESSAGES_OUT, len(out))

    def _events(self, address: str, dealer: Dealer) -> Collection[int]:
        """What a monitor has told, now and then: to ask it takes longer than to send."""
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns.get(address, 0) < LOOK_NS:
            return NO_EVENTS
        self._looked_ns[address] = now_ns
        return dealer.events()

    def close(self) -> None:
        self._dealers.close()
        self._context.destroy(0)
