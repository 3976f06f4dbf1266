"""The network between the nodes: it may lose, double, delay and so reorder messages."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embridge.workers import messages as msg
from embridge.workers.role import Arrival, Disconnect, Out, Reply, Send
from support.simulation.settings import MS

if TYPE_CHECKING:
    from support.simulation.node import SimulatedNode
    from support.simulation.processes import RoleActor
    from support.simulation.world import World


@dataclass(order=True)
class Flight:
    """A message on its way."""

    due_ns: int
    number: int
    target: str = field(compare=False)  # an address, or a connection
    data: bytes = field(compare=False)
    origin: str = field(compare=False)  # "" or the connection on which it travels
    address: str = field(compare=False)  # where the connection leads


class Network:
    """Carries encoded messages between roles; the seed says how badly."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._flights: list[Flight] = []
        self._number = 0
        self._lines: dict[str, set[str]] = {}  # address -> connections to it
        self.cut: set[tuple[str, str]] = set()  # (from, to): names of nodes; nothing goes that way
        self.num_delivered = 0

    def post(self, actor: RoleActor, out: list[Out]) -> None:
        for item in out:
            match item:
                case Send(address, message):
                    connection = actor.connection_prefix + address
                    self._lines.setdefault(address, set()).add(connection)
                    self._launch(actor, address, message, connection, address)
                case Reply(connection, message):
                    self._launch(actor, connection.decode(), message, "", actor.address)
                case Disconnect(address):
                    connection = actor.connection_prefix + address
                    self._lines.get(address, set()).discard(connection)
                    self._flights = [f for f in self._flights if f.origin != connection]
                    heapq.heapify(self._flights)

    def _launch(self, actor: RoleActor, target: str, message: msg.Message, origin: str, address: str) -> None:
        world, faults = self._world, self._world.faults
        if world.chance(faults.lost):
            world.note(f"network LOST {brief(message)}")
            return
        data = msg.encode(message)
        for _ in range(1 + world.chance(faults.doubled)):
            delay_ns = world.rng.randint(50_000, 300_000)
            if world.chance(faults.delayed):
                delay_ns += world.rng.randint(0, faults.delay_ms * MS)
            self._number += 1
            heapq.heappush(self._flights, Flight(world.now_ns + delay_ns, self._number, target, data, origin, address))

    def next_due_ns(self) -> int | None:
        return self._flights[0].due_ns if self._flights else None

    def deliver(self, now_ns: int) -> None:
        while self._flights and self._flights[0].due_ns <= now_ns:
            self._deliver(heapq.heappop(self._flights))

    def _deliver(self, flight: Flight) -> None:
        world = self._world
        message = msg.decode(flight.data, flight.address)
        if flight.origin:
            target, sender = world.role_at(flight.address), world.role_of(flight.origin)
            if target is None:
                if sender is not None:
                    sender.refused.append(flight.address)
                return
            if sender is not None and self._is_cut(sender, target):
                return
            key = sender.node.key if sender is not None else ""
            target.arrivals.append(Arrival(message, flight.origin.encode(), None, key))
        else:
            target = world.role_of(flight.target)
            sender = world.role_at(flight.address)
            if target is None or sender is None or self._is_cut(sender, target):
                return
            if flight.target not in self._lines.get(flight.address, ()):
                return
            target.arrivals.append(Arrival(message, None, flight.address, sender.node.key))
        self.num_delivered += 1

    def _is_cut(self, sender: RoleActor, target: RoleActor) -> bool:
        return (sender.node.name, target.node.name) in self.cut

    def forget(self, actor: RoleActor) -> None:
        """A process died: its connections end, and about half of what was on the way to or from it with them."""
        world, prefix = self._world, actor.connection_prefix
        keep = []
        for flight in self._flights:
            ours = (
                flight.target == actor.address or flight.origin.startswith(prefix) or flight.target.startswith(prefix)
            )
            if not ours or world.chance(0.5):
                keep.append(flight)
        self._flights = keep
        heapq.heapify(self._flights)
        for lines in self._lines.values():
            lines.difference_update([line for line in lines if line.startswith(prefix)])

    def node_closed(self, node: SimulatedNode) -> None:
        """Its ports are closed: everybody who was connected is refused."""
        for address in node.addresses.values():
            for connection in sorted(self._lines.pop(address, ())):
                actor = self._world.role_of(connection)
                if actor is not None:
                    actor.refused.append(address)


def brief(message: msg.Message | msg.Foreign) -> str:
    kind = type(message).__name__
    match message:
        case msg.Init() | msg.Resume():
            key, blocks = message.key, message.dst_embedding_indices
            return f"{kind}({key.slot}.{key.epoch} {message.first_block}+{blocks}={message.allocated_tokens})"
        case msg.Status(room=room) | msg.Landed(room=room):
            key = room.key
            return f"{kind}({key.slot}.{key.epoch} {room.phase} sent {room.sent_tokens} known {room.known_blocks})"
        case msg.Heartbeat(rooms=rooms) | msg.Snapshot(rooms=rooms):
            return f"{kind}({[(r.key.slot, r.key.epoch, r.phase, r.sent_tokens) for r in rooms]})"
        case msg.Checked(rooms=checked):
            return f"{kind}({[(r.key.slot, r.key.epoch, r.checked_tokens) for r in checked]})"
    about: msg.RequestKey | None = getattr(message, "key", None)
    return f"{kind}({about.slot}.{about.epoch})" if about is not None else kind
