"""The success of a request, as the transfer worker that has sent its last row says it (R83).

Rows that have landed are of use when their scheduler knows of them. So the worker does not leave that to its node's
poller, which sleeps: it raises its node's word to Success, which decides (R36), and then says so to the destination's
poller itself. It does so where nothing but these rows was waited for; in all other cases the poller looks, as ever.
"""

from __future__ import annotations

from embridge.allocator.plain_enums import Destination, Phase, Slot
from embridge.allocator.status import TERMINAL, split
from embridge.workers import messages as msg
from embridge.workers.reports import room_state
from embridge.workers.role import Disconnect, Out, RoleContext, Send
from embridge.workers.transfer.contact import Contact

ONLY = 0  # the destination of a request that has one


class Success:
    """Raises the words of one transfer worker's requests, each once."""

    def __init__(self, ctx: RoleContext, contact: Contact) -> None:
        self._ctx = ctx
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._peers = ctx.control.peers
        self._contact = contact
        self._spoken_to: set[str] = set()

    def tell(self, slot: int, epoch: int, now_ns: int) -> Send | None:
        """Raise the word of a request to Success if it is due. Returns what tells its destination; None: the poller is
        to look at the request.
        """
        if not self._is_due(slot, epoch, now_ns):
            return None
        total = self._slots.get(slot, Slot.TOTAL)
        peer = self._dsts.get(slot, ONLY, Destination.PEER) - 1
        record = self._contact.record_of(peer)
        if not self._ctx.status.advance(slot, epoch, Phase.Success, total, now_ns):  # it has failed meanwhile
            return None
        self._spoken_to.add(record.poller_addr)
        state = room_state(self._ctx, slot, ONLY, Phase.Success, total)
        return Send(record.poller_addr, msg.Landed(self._ctx.envelope(record.incarnation), state), record.key)

    def hang_up(self) -> list[Out]:
        """End the connections to nodes that are gone."""
        gone = self._spoken_to - {self._peers.poller_addr(peer) for peer in self._peers.alive()}
        self._spoken_to -= gone
        return [Disconnect(address) for address in sorted(gone)]

    def _is_due(self, slot: int, epoch: int, now_ns: int) -> bool:
        """Whether all rows are there, and nothing speaks against a success that the poller would heed."""
        words = self._slots.get_all(slot)
        if self._ctx.control.verify or words[Slot.REQUIRED] != 1 or words[Slot.NUM_DESTINATIONS] != 1:
            return False
        word, total = split(self._ctx.status.load(slot)), words[Slot.TOTAL]
        if word.epoch != epoch or not Phase.WaitingForInput <= word.phase < TERMINAL:
            return False
        there = self._dsts.get_all(slot, ONLY)
        if not there[Destination.BEGIN] < total == there[Destination.SENT]:
            return False
        if word.phase < Phase.Transferring and there[Destination.FIRST_GRANT] < total:
            return False  # it was resumed, and the poller has yet to say so
        if words[Slot.FAILURE] or there[Destination.CLOSED]:
            return False
        if now_ns >= words[Slot.DEADLINE_NS]:
            return False
        return not self._ctx.is_lane_dead(slot) and self._contact.is_granted_by(there)
