"""What cannot be true in a report of an encode node, by what this language node has granted and been told (R2)."""

from __future__ import annotations

from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotTable
from embridge.allocator.status import Phase
from embridge.workers import messages as msg


def why_wrong(slots: SlotTable, slot: int, room: msg.RoomState) -> str | None:
    """What is wrong with a report; None if all of it can be true.

    A grant is recorded here before it leaves, so no report of an honest node is ahead of it.
    """
    blocks, tokens = slots.granted(slot)
    session, total = slots.get(slot, Slot.SESSION), room.total_tokens
    if room.sent_tokens > tokens:
        return f"{room.sent_tokens} tokens sent, {tokens} were granted"
    if room.known_blocks > blocks:
        return f"{room.known_blocks} blocks known, {blocks} were granted"
    if room.session > session:
        return f"a grant under session {room.session}, the latest was under {session}"
    if total and max(room.sent_tokens, room.ready_tokens) > total:
        return f"{room.sent_tokens} tokens sent and {room.ready_tokens} ready of {total}"
    if room.phase == Phase.Success and not 0 < total == room.sent_tokens:
        return f"Success with {room.sent_tokens} of {total} tokens sent"
    return None
