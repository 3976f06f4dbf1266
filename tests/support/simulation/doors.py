"""Doors of a simulated encoder: what it writes straight into a language node's blocks, one step after another.

Each step may be the last one of its process, and others may do much between two of them (`World.pause`). Every row is
looked at as it lands: whose block that is, and whether this process holds the claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embridge.allocator.claims import HELD, ClaimState, WriterId
from embridge.allocator.errors import AttachError
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import is_whole
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.doors import Door
from embridge.workers.run_socket import NotYet
from embridge.workers.transfer.engines.base import EngineError
from support.direct_steps import DirectStep
from support.simulation.settings import MS

if TYPE_CHECKING:
    from support.simulation.node import SimulatedNode
    from support.simulation.processes import ClientActor

LEAST_NOTICED_MS, MOST_NOTICED_MS = 0, 300  # after which a launcher sees that a connection has ended


class Line:
    """The connection by which a launcher keeps a door open. Its end is seen later."""

    def __init__(self, actor: ClientActor, node: SimulatedNode, writer: WriterId) -> None:
        self._actor = actor
        self._node = node
        self._writer = writer
        self._is_open = True
        actor.lines.append(self)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            world = self._actor.world
            delay_ns = world.rng.randint(LEAST_NOTICED_MS, MOST_NOTICED_MS) * MS
            world.at(world.now_ns + delay_ns, f"a door of {self._actor.name} has ended", self._ended)

    def _ended(self) -> None:
        if self._node in self._node.world.nodes:
            self._node.writer_gone(self._writer)


class SimulatedKnock:
    """A question at a simulated node whether it lets a client in, as its launcher answers it."""

    def __init__(self, actor: ClientActor, attachment: Attachment, record: PeerRecord) -> None:
        node = actor.world.node_at(record.offer)
        if node is None or node.control.incarnation != record.incarnation:
            raise EngineError(f"{record} is not reachable")
        if node.is_backlog_full:
            raise BlockingIOError
        self._actor = actor
        self._own = attachment.control
        self._node = node

    def answer(self) -> Door:
        actor, node, own = self._actor, self._node, self._own
        if node not in actor.world.nodes:
            raise ConnectionResetError("the node is gone")
        if actor.world.chance(0.3):
            raise BlockingIOError
        if node.control.peers.find(own.node_id, own.incarnation) is None:
            raise NotYet("this incarnation is not registered here, or was declared dead")
        writer = node.control.writers.add(ForeignWriter(own.node_id, own.incarnation, 1, has_claims=True))
        if writer is None:
            raise AttachError("too many foreign writers")
        return SimulatedDoor(actor, node, writer)

    def close(self) -> None:
        pass


class SimulatedDoor(Door):
    """One language node, open to a simulated client."""

    def __init__(self, actor: ClientActor, node: SimulatedNode, writer: WriterId) -> None:
        control = node.control
        identity = (control.node_id, control.incarnation)
        line, attachment = Line(actor, node, writer), library_of(actor.client).attachment
        super().__init__(line, identity, node.payload, control, node.writers_part, writer, attachment)
        self._actor = actor
        self._at = node
        self._fuse = actor.fuse
        self._own = actor.node.control
        self.rows.watch(self._step)
        self.grants.watch(lambda _step: self._fuse.burn())
        self.untold.watch(lambda _step: self._fuse.burn())
        actor.fuse.guard(self.part.posts, "post_offer", "take_off_offer", "take_off_grant", "bind", "is_told")

    def _step(self, step: int, slot: int, block: int, first: int, end: int) -> None:
        """Before each step of a write: it may be the last."""
        if step == DirectStep.COPIED:
            self._landed(block, first, end)
            return
        self._actor.num_writing += 1
        try:
            self._fuse.burn()
        finally:
            self._actor.num_writing -= 1
        if step in (DirectStep.AUX, DirectStep.COPY):
            self._before(block)
        if step in (DirectStep.SENT, DirectStep.MOVED, DirectStep.COUNT, DirectStep.OWN_WORD):
            self._look_at_whole(slot)

    def _look_at_whole(self, slot: int) -> None:
        """Some schedulers give up just before the encode side decides, when all rows are there."""
        world, own = self._actor.world, self._own
        if own.slots.get(slot, Slot.NUM_DESTINATIONS) < own.slots.get(slot, Slot.REQUIRED):
            return
        slots = {
            own.destinations.get(slot, d, Destination.PEER) - 1: own.destinations.get(slot, d, Destination.REMOTE_SLOT)
            for d in range(own.slots.get(slot, Slot.NUM_DESTINATIONS))
        }
        nodes = {own.peers.find(node.control.node_id, node.control.incarnation): node for node in world.nodes}
        asked = [(nodes[peer], there) for peer, there in slots.items() if peer in nodes]
        if all(is_whole(node.control.status.load(there)) for node, there in asked):
            for node, there in asked:
                if world.chance(world.faults.give_up):
                    world.num_given_up += 1
                    world.give_up(node, there)

    def _before(self, block: int) -> None:
        """Look whether the block may be written still (P7, R28, R30)."""
        with self._actor.world.insisting():
            slot = self._at.check_exposed(block)
            claim = self._at.control.claims.get(slot)
            _, _, epoch, _ = self._at.control.blocks.cells.cell(block)
            assert claim.state in HELD, f"{self._actor.name} writes into block {block} under {claim}"
            assert (claim.writer, claim.epoch) == (self.writer, epoch), (
                f"{self._actor.name} writes into block {block} under {claim}"
            )

    def _landed(self, block: int, first: int, end: int) -> None:
        """Rows [first, end) of one request block have landed: they are that request's, and in their places."""
        with self._actor.world.insisting():
            self._at.check_landed(block, first % self.geometry.block_size, end - first)
        world, slot = self._actor.world, self._at.control.blocks.cells.cell(block)[1]
        world.num_landed += 1
        world.num_revoked += self._at.control.claims.get(slot).state == ClaimState.REVOKED
