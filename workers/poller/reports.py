"""What a report of an encode node may say of a request of this language node, and what is said where none comes."""

from __future__ import annotations

from embridge.allocator.fetches import ItemShape
from embridge.allocator.plain_enums import Phase, Slot
from embridge.allocator.request_tables import SlotTable
from embridge.allocator.status import split
from embridge.workers import messages as msg
from embridge.workers.role import RoleContext


def what_is_wrong(slots: SlotTable, room: msg.RoomState) -> str | None:
    """What cannot be true in a report, judged by what this node has granted and been told; None if all of it can.

    A grant is recorded here before it leaves, so no report of an honest node is ahead of it.
    """
    blocks, tokens = slots.granted(room.key.slot)
    session, total = slots.get(room.key.slot, Slot.SESSION), room.total_tokens
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


def note_item(ctx: RoleContext, room: msg.RoomState) -> None:
    """Write down what a fetch fetches, before its length is known (of another request: nothing)."""
    it = room.item
    if it is not None and ctx.control.fetches.has(room.key.slot, room.key.epoch):
        ctx.control.fetches.answer(room.key.slot, ItemShape(it.generation, it.rows, it.width, it.dtype, it.num_bytes))


def why_late(ctx: RoleContext, slot: int) -> str:
    """Why a request fails whose deadline has passed: what it has waited for."""
    slots, word = ctx.slots, split(ctx.status.load(slot))
    total, (_, granted) = slots.get(slot, Slot.TOTAL), slots.granted(slot)
    if not slots.get(slot, Slot.PEER):
        waited = "no handshake with the encode node"
    elif word.phase == Phase.Bootstrapping:
        waited = "the encoder has not opened the room, or not all destinations have sent their init"
    else:
        free = ctx.control.blocks.cells.num_free(1)
        waited = f"sent {word.sent} granted {granted} of {total or 'unknown'} tokens, {free or 'no'} block free"
    return f"deadline passed on the language side: {waited}"
