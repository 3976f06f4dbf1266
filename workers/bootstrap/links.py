"""The connections of a language node's bootstrap to encode nodes, and the requests that wait for one or for its name.

Each request that waits has a time of its own. Otherwise a request that joins would fail as soon as the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from embridge.workers import messages as msg
from embridge.workers.bootstrap.registrations import SHARED_GEOMETRY
from embridge.workers.role import RoleContext, Send


class Waiting:
    """Requests that wait for one thing, in the order in which they came."""

    def __init__(self) -> None:
        self._came: dict[int, tuple[int, int]] = {}  # slot -> (epoch, when)

    def __len__(self) -> int:
        return len(self._came)

    def add(self, slot: int, epoch: int, now_ns: int) -> None:
        """Begin a request's time, unless it waits already."""
        if self._came.get(slot, (0, 0))[0] != epoch:
            self._came.pop(slot, None)  # it goes behind all that came before
            self._came[slot] = epoch, now_ns

    def drop(self, slot: int, epoch: int) -> None:
        if self._came.get(slot, (0, 0))[0] == epoch:
            del self._came[slot]

    def take_before(self, limit_ns: int) -> list[tuple[int, int]]:
        """Remove and return the (slot, epoch) of requests that came before `limit_ns`.

        It costs as much as there are.
        """
        taken = []
        while self._came:
            slot, (epoch, came_ns) = next(iter(self._came.items()))
            if came_ns >= limit_ns:
                break
            del self._came[slot]
            taken.append((slot, epoch))
        return taken

    def take_all(self) -> list[tuple[int, int]]:
        taken = [(slot, epoch) for slot, (epoch, _) in self._came.items()]
        self._came.clear()
        return taken


@dataclass(slots=True)
class Link:
    """The connection to one encode node's bootstrap process."""

    address: str
    since_ns: int
    registration: int
    peer: int | None = None
    sent_ns: int = 0
    hint: str = ""  # why there is no connection, as far as that is known
    asked: str = ""  # the address as a request has given it, perhaps with a name
    waiting: Waiting = field(default_factory=Waiting)
    wanted_until_ns: int = 0  # by a client that wants to know the node, without a request


def registration(ctx: RoleContext, link: Link) -> Send:
    """The message by which this node introduces itself over a link."""
    control, geometry, own = ctx.control, ctx.control.geometry, ctx.addresses
    message = msg.Register(
        envelope=ctx.envelope(0),
        bootstrap_addr=own.bootstrap_addr,
        poller_addr=own.poller_addr,
        offers={engine.name: engine.offer(own.run_socket) for engine in ctx.engines},
        **{name: getattr(geometry, name) for name in SHARED_GEOMETRY},
        num_blocks=geometry.num_blocks,
        num_slots=control.limits.num_slots,
        window_blocks=control.limits.window_blocks,
        registration=link.registration,
        verify=control.verify,
    )
    return Send(link.address, message, asked=link.asked)
