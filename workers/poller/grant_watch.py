"""Which grants of a language node have not reached an encode node, by what that has told: they are sent again."""

from __future__ import annotations

from embridge.allocator.plain_enums import Kick, Metric, Slot
from embridge.allocator.slot_changes import WordChanges, leased_pages
from embridge.allocator.status import split
from embridge.workers import messages as msg
from embridge.workers.poller.room_lists import HeardRooms
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS


class GrantWatch:
    """Looks at the requests that have been granted something since, or of which the encode node knows less (R24).

    It may lack blocks, or the latest session. Clients grant without telling the poller, so the words are compared.
    """

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._slots = ctx.slots
        self._every_ns = int(ctx.timing.heartbeat_s * NS)
        # with the epoch: a slot's next request may be granted just as much as the one before
        self._changes = [WordChanges(ctx.control, field) for field in (Slot.EPOCH, Slot.GRANTED, Slot.SESSION)]
        self._compared_ns = 0
        self._behind: dict[int, int] = {}  # slot -> when its grant was sent last, or was found to be news

    def reported(self, room: msg.RoomState, now_ns: int) -> None:
        """An encode node has told of a live request."""
        if self._is_behind(room):
            self._behind.setdefault(room.key.slot, now_ns)

    def look(self, peer: int, heard: HeardRooms, listed: set[int], now_ns: int) -> None:
        """A heartbeat has come, and has told of the slots in `listed`: have sent again what it shows to be missing.

        A grant of which it does not tell is given the time between two heartbeats, for it may be on its way.
        """
        if now_ns - self._compared_ns >= self._every_ns // 2:
            self._compared_ns = now_ns
            pages = leased_pages(self._ctx.control)
            for slot in (slot for changes in self._changes for slot in changes.take(pages)):
                self._behind.setdefault(slot, now_ns)
        for slot, since_ns in list(self._behind.items()):
            holder = self._slots.get(slot, Slot.PEER) - 1
            if holder not in (peer, -1):
                continue
            epoch = split(self._ctx.status.load(slot)).epoch
            room = heard.state(slot, epoch)
            if holder == -1 or room is None or not self._is_behind(room):  # what is not known yet is told later
                del self._behind[slot]
            elif slot in listed or now_ns - since_ns >= self._every_ns:
                self._behind[slot] = now_ns
                self._ctx.to("bootstrap").send(Kick.GRANT, slot, epoch)
                self._ctx.count(Metric.RESENT)

    def _is_behind(self, room: msg.RoomState) -> bool:
        slot = room.key.slot
        return self._ctx.is_live(slot, room.key.epoch) and (
            room.known_blocks < self._slots.granted(slot)[0] or room.session < self._slots.get(slot, Slot.SESSION)
        )

    def forget(self, slot: int) -> None:
        self._behind.pop(slot, None)
