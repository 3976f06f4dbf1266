"""Opens slots: a client writes the record of the next epoch, and what belongs to it, and then says that it is open.

The steps are native (`native/slots.h`), for their order is what P11 and R78 ask for, and a client may die between any
two.
"""

from __future__ import annotations

from embridge.allocator._core import Mapping, StatusTable, Words
from embridge.allocator.geometry import Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import CLAIM_WORDS, DESTINATION_WORDS, SLOT_BYTES
from embridge.allocator.request_tables import SlotRecord


class SlotOpener:
    """Opens slots of a node, each by the client that has leased it. Any thread."""

    def __init__(self, mapping: Mapping, layout: ControlLayout, status: StatusTable) -> None:
        num_slots, limits = layout.limits.num_slots, layout.limits
        self._status = status
        self._records = Words(mapping, layout.slots, num_slots * (SLOT_BYTES // 8))
        self._blanks: tuple[Words, ...] = ()  # tables of which a slot's part begins with zeroes
        self._claims: Words | None = None
        if layout.role == Role.ENCODE:
            count = num_slots * limits.max_destinations * DESTINATION_WORDS
            staging = Words(mapping, layout.staging, num_slots * layout.own_window)
            self._blanks = (Words(mapping, layout.destinations, count), staging)
        else:
            self._claims = Words(mapping, layout.claims, num_slots * CLAIM_WORDS)

    def open(self, slot: int, record: SlotRecord, now_ns: int, *, is_untold: bool = False) -> int:
        """Write a slot's record, then open its next epoch (the slot's client only). Returns the epoch, or 0 where the
        slot's epochs are used up.

        What the record says of its epoch need not be set. `is_untold`: no process of the node is told of it yet (R78).
        A client that is killed between any two steps leaves a slot that nobody takes for open.
        """
        return self._status.open_record(
            slot, now_ns, self._records, record.words, is_untold, self._blanks, self._claims
        )
