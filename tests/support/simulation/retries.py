"""The disturbance of which a scheduler's queues make good what is lost: the encode node goes, and another one is there.

It is apart, so that of all scenarios only this one depends on them.
"""

from __future__ import annotations

from embridge.allocator.geometry import Role
from embridge.pipeline.scheduler.queues import PreallocQueue
from support.simulation.rooms import BLOCK_SIZE, Transfer
from support.simulation.scenario import Scenario
from support.simulation.world import World


class Retries(Scenario):
    """Whatever fails with the encode node is sent to another one."""

    def __init__(self, world: World, disturbance: str = "retries") -> None:
        self.num_kept = 0  # blocks
        super().__init__(world, disturbance)

    def _plan_retries(self) -> None:
        """The encode node goes for good."""
        self.world.at(self._soon(), "the encode node goes", self._encode_goes)

    def _encode_goes(self) -> None:
        for actor in self.encode.clients:
            actor.is_dead = True
        self.world.close_node(self.encode)
        self.encode = self.world.node("spare", Role.ENCODE, self._geometry(), node_id=2)
        self.encoders = [self._client(self.encode)]

    def _take_up_lost(self) -> None:
        for transfer in list(self.lost):
            self._retry(transfer)

    def _retry(self, transfer: Transfer) -> None:
        """As a router does: once it is known who has all rows, and who is to get them from the other node."""
        lost, addr = self.lost[transfer], self.encode.own_addresses.bootstrap_addr
        waiting = [
            r for r in transfer.requests if r not in transfer.outcomes and r not in lost and r.bootstrap_addr == addr
        ]
        finished = [r for r in transfer.requests if transfer.outcomes.get(r) == "Success"]
        if transfer.num_due or len(lost) + len(waiting) + len(finished) < self.num_languages:
            return
        assert not (waiting and finished), f"{transfer}: two encode nodes at once"
        del self.lost[transfer]
        self._send_if_it_was_lost(transfer)
        for request in lost:
            scheduler = transfer.owners[request]
            self.num_kept += request.transferred_tokens // BLOCK_SIZE
            prealloc = PreallocQueue(scheduler.actor.client, scheduler.queue)
            prealloc.retry(request, addr, required_dst_info_num=len(lost) + len(waiting))
