"""A control segment that no process has: what looks at a node is shown whatever a test writes there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embridge.allocator._core import Mapping
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.status import Phase
from embridge.pipeline.client.slot_lease import SlotLease
from embridge.pipeline.inspection.observe import _told
from embridge.pipeline.inspection.open_readonly import Look
from embridge.workers.timing import NS

NOW_NS = 100 * NS
"""When such a node is looked at."""


def by_hand(folder: Path, role: Role = Role.LANGUAGE, *, num_blocks: int = 9) -> Control:
    """One of a node with 9 blocks and 64 slots, in a file."""
    geometry = Geometry(hidden_size=8, num_blocks=num_blocks)
    limits = Limits(num_slots=64, max_clients=1, window_blocks=4, max_peers=1)
    size = ControlLayout.of(role, geometry, limits).size
    with open(folder / f"control-{role.name}", "wb+") as file:
        file.truncate(size)
        mapping = Mapping(file.fileno(), size)
    format_control(mapping, role, geometry, limits, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping)


class RequestsByHand:
    """The requests of one client of such a node."""

    def __init__(self, control: Control) -> None:
        self.control = control
        lane = control.lanes.take(os.getpid(), NS)
        assert lane is not None
        self._lease = SlotLease(control, lane)

    def open(
        self, room: int, *, opened_s: float, address: str = "tcp://10.0.0.3:5000", **words: int
    ) -> tuple[int, int]:
        """Open a slot for a room at this time; `words` of its record by their names. Returns (slot, epoch)."""

        def prepare(slot: int, record: SlotRecord) -> None:
            record.set_address(address)
            for name, value in words.items():
                record.words[Slot[name]] = value

        opened = self._lease.open(room, round(opened_s * NS), NOW_NS + 30 * NS, prepare)
        assert opened is not None
        return opened

    def enter(self, request: tuple[int, int], phase: Phase, at_s: float, sent: int = 0) -> None:
        """A request enters a phase, or gets so far in it."""
        assert self.control.status.advance(*request, phase, sent, round(at_s * NS))

    def release(self, request: tuple[int, int]) -> None:
        self.control.slots.set(request[0], Slot.RELEASED_EPOCH, request[1])


def seen(control: Control, now_ns: int = NOW_NS) -> dict[str, Any]:
    """What `node_status` says of such a node."""
    return _told(Look(control, {}, "", None, "", False), now_ns)
