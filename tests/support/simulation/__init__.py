"""Whole nodes in one thread: the real roles and the real clients under one clock, one seed and a network that
misbehaves.

A `World` holds nodes, each with its two segments, its roles (`step(now, inbox) -> outbox`) and its clients, whose
library turns are called here and not by a thread. Whoever could run now (its doorbell was rung, something came, or its
time is up: what the real loops wait for) is drawn by the seed, makes one step, and the clock moves on; when nobody can,
it jumps to the next time that somebody wants. So a lost wake-up is a hang here, too.

The network carries encoded messages and may lose, double, delay and so reorder them. A role may be killed between any
two changes of shared memory, before its messages left, or before it committed its ring records: a new one over the same
segment takes its place. What must hold is looked at after every step (`World.check`), and by the engine at every write.

`scenario` and `rooms` are imported by their own names: only they know a scheduler's queues, so only tests of whole
requests depend on these.
"""

from support.simulation.fuse import Killed
from support.simulation.network import Flight, Network
from support.simulation.node import SimulatedNode, segment
from support.simulation.processes import Answered, ClientActor, RoleActor
from support.simulation.settings import LIMITS, ROWS_A_ROOM, Faults
from support.simulation.world import World

__all__ = [
    "LIMITS",
    "ROWS_A_ROOM",
    "Answered",
    "ClientActor",
    "Faults",
    "Flight",
    "Killed",
    "Network",
    "RoleActor",
    "SimulatedNode",
    "World",
    "segment",
]
