"""What an encode node says of one request to one of its destinations, from the words that belong to it.

Its poller says it, and the transfer worker that has sent the last row.
"""

from __future__ import annotations

from embridge.allocator.records import Destination, Slot
from embridge.allocator.status import Phase
from embridge.workers import messages as msg
from embridge.workers.role import RoleContext


def room_state(ctx: RoleContext, slot: int, d: int, phase: int, sent: int, checksum: int = 0) -> msg.RoomState:
    """The state of a request for one destination.

    `sent` was read before `tainted` is, so that what is reported clean is clean (R6); the phase was computed from that
    `sent`.
    """
    get, slots = ctx.control.destinations.get, ctx.slots
    tainted = get(slot, d, Destination.TAINTED)
    remote = get(slot, d, Destination.REMOTE_SLOT), get(slot, d, Destination.REMOTE_EPOCH)
    failed = phase == Phase.Failed
    return msg.RoomState(
        key=msg.RequestKey(*remote, slots.get(slot, Slot.ROOM)),
        phase=phase,
        resumed=ctx.status.stamps(slot)[Phase.Transferring] != 0,
        sent_tokens=sent,
        total_tokens=slots.get(slot, Slot.TOTAL),
        ready_tokens=slots.get(slot, Slot.READY),
        known_blocks=get(slot, d, Destination.GRANTED_BLOCKS),
        session=get(slot, d, Destination.SESSION),
        tainted=tainted,
        code=slots.get(slot, Slot.FAILURE) if failed else 0,
        reason=msg.clip(slots.reason(slot)) if failed else "",
        checksum=checksum,
        item=_item(ctx, slot),
    )


def _item(ctx: RoleContext, slot: int) -> msg.ItemState | None:
    """What a request fetches; None: it fetches nothing."""
    if not ctx.control.is_fetch(slot, ctx.slots.get(slot, Slot.EPOCH)):
        return None
    return msg.ItemState(*ctx.control.fetches.shape(slot))
