"""What an encode node says of one request to one of its destinations, from the words that belong to it.

Its poller says it, and the transfer worker that has sent the last row.
"""

from __future__ import annotations

from embridge.allocator.plain_enums import Destination, Phase, Slot
from embridge.workers import messages as msg
from embridge.workers.role import RoleContext


def room_state(ctx: RoleContext, slot: int, d: int, phase: int, sent: int, checksum: int = 0) -> msg.RoomState:
    """The state of a request for one destination.

    `sent` was read before `tainted` is, so that what is reported clean is clean (R6); the phase was computed from that
    `sent`.
    """
    return state_of(ctx, slot, ctx.control.destinations.get_all(slot, d), phase, sent, checksum)


def state_of(
    ctx: RoleContext, slot: int, destination: list[int], phase: int, sent: int, checksum: int
) -> msg.RoomState:
    """The same, by the destination's words, which were read after `sent`."""
    words, failed = ctx.slots.get_all(slot), phase == Phase.Failed
    remote = destination[Destination.REMOTE_SLOT], destination[Destination.REMOTE_EPOCH]
    return msg.RoomState(
        key=msg.RequestKey(*remote, words[Slot.ROOM]),
        phase=phase,
        resumed=ctx.status.stamps(slot)[Phase.Transferring] != 0,
        sent_tokens=sent,
        total_tokens=words[Slot.TOTAL],
        ready_tokens=words[Slot.READY],
        known_blocks=destination[Destination.GRANTED_BLOCKS],
        session=destination[Destination.SESSION],
        tainted=destination[Destination.TAINTED],
        code=words[Slot.FAILURE] if failed else 0,
        reason=msg.clip(ctx.slots.reason(slot)) if failed else "",
        checksum=checksum,
        item=_item(ctx, slot, words[Slot.EPOCH]),
    )


def _item(ctx: RoleContext, slot: int, epoch: int) -> msg.ItemState | None:
    """What a request fetches; None: it fetches nothing."""
    if not ctx.control.is_fetch(slot, epoch):
        return None
    return msg.ItemState(*ctx.control.fetches.shape(slot))
