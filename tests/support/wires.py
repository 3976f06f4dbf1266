"""Roles behind their real sockets, turned by the test's own thread: what comes through the sockets, without a process a
node.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from embridge.allocator.segment import Descriptor
from embridge.workers import messages as msg
from embridge.workers.keys import KeyPair
from embridge.workers.process_spec import ProcessSpec
from embridge.workers.role import Arrival, Denied, Inbox
from embridge.workers.wire.loop import Wire
from support.simulation import RoleActor


class Wired:
    """A role of a simulated node with a real wire. `arrivals` and `denied` are all that it was handed."""

    def __init__(self, actor: RoleActor, keys: KeyPair | None, allow_file: Path | None, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=1024)
        self.port = self._socket.getsockname()[1]
        self.address = f"tcp://[{host}]:{self.port}" if ":" in host else f"tcp://{host}:{self.port}"
        self.actor = actor
        self.arrivals: list[Arrival] = []
        self.denied: list[Denied] = []
        nothing = Descriptor(-1)
        self.wire = Wire(
            ProcessSpec(
                name=actor.role_name,
                control=nothing,
                control_bytes=0,
                payload=nothing,
                payload_bytes=0,
                event_fds={},
                death=nothing,
                listen=Descriptor(self._socket.fileno()),
                bind_addr=self.address,
                addresses=actor.node.own_addresses,
                timing=actor.world.timing,
                launcher_pid=0,
                keys=keys,
                allow_file=allow_file,
            ),
            actor.ctx,
        )
        self._readable: set[object] = set()

    def turn(self, wait_s: float = 0.0) -> None:
        """What came, a step, what goes out; then wait for more."""
        arrivals, refused, denied = self.wire.receive(self._readable)
        self.arrivals += arrivals
        self.denied += denied
        records = self.actor.records.take()
        self.wire.send(self.actor.role.step(time.monotonic_ns(), Inbox(records, arrivals, refused, denied)))
        self.actor.ctx.flush()
        self.actor.records.done()
        self._readable = self.wire.wait(wait_s)

    def turn_until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Turn until it is true; fails when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {self.metrics()}, {self.denied[-3:]}"
            self.turn(0.005)

    def metrics(self) -> dict[str, int]:
        return self.actor.control.metrics.row(self.actor.ctx.index)

    def close(self) -> None:
        self.wire.close()
        self._socket.close()


@contextmanager
def wired(
    actor: RoleActor, keys: KeyPair | None = None, allow_file: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[Wired]:
    """A role on its wire for the length of a block."""
    it = Wired(actor, keys, allow_file, host)
    try:
        yield it
    finally:
        it.close()


@contextmanager
def dealer(
    address: str, keys: KeyPair | None = None, server_key: str = "", **options: int
) -> Iterator[zmq.Socket[bytes]]:
    """Somebody who connects there: plain, or with a key to one that must prove `server_key`."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IPV6, 1)
        if keys is not None:
            sock.curve_secretkey, sock.curve_publickey = keys.secret.encode(), keys.public.encode()
            sock.curve_serverkey = server_key.encode()
        for name, value in options.items():
            sock.setsockopt(getattr(zmq, name), value)
        sock.connect(address)
        yield sock
        sock.close(0)
    finally:
        context.destroy(0)


def register(node_id: int = 50, *, registration: int = 1, incarnation: int = 1, version: int = msg.VERSION) -> bytes:
    """The registration of a language node of two columns."""
    return msg.encode(
        msg.Register(
            envelope=msg.Envelope(version, node_id, incarnation, 0), bootstrap_addr="tcp://127.0.0.1:1",
            poller_addr="tcp://127.0.0.1:2",
            offers={"shm": "here.sock"}, hidden_size=2, block_size=4, num_blocks=16, dtype="bfloat16",
            deepstack_layers=0,
            fill_ids=True, mrope_positions=True, num_slots=64, window_blocks=16, registration=registration,
            verify=False,
        )
    )  # fmt: skip


def say(sock: zmq.Socket[bytes], frame: bytes) -> None:
    """For who is being refused, perhaps: between two tries to connect there is nowhere to put the frame, and `send`
    would wait for ever.
    """
    with contextlib.suppress(zmq.Again):
        sock.send(frame, zmq.NOBLOCK)
