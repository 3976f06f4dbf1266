"""Tells clients of an encode node, whose calls wait for a slot, which rooms can have one."""

from __future__ import annotations

from embridge.workers.bootstrap.ended_rooms import EndedRooms
from embridge.workers.bootstrap.pending_grants import PendingGrants
from embridge.workers.role import RoleContext


class Announcing:
    """Used by the encode bootstrap only, which gives it its tables."""

    def __init__(
        self, ctx: RoleContext, rooms: dict[int, tuple[int, int]], pending: PendingGrants, ended: EndedRooms
    ) -> None:
        self._control = ctx.control
        self._rooms = rooms
        self._pending = pending
        self._ended = ended
        self._wanted = ctx.control.wanted
        self._has_announced = False

    def announce(self, room: int) -> None:
        """Tell clients whose calls wait for a slot that this room has all its destinations, or needs no encoder.

        A room with fewer destinations than it needs is not announced, because it would hold a slot as long as a room
        that nobody has asked for.
        """
        if not self._control.room_waiters.lanes():
            return
        grants = [waiting.grant for _, waiting in self._pending.of_room(room)]
        is_over = room in self._rooms or self._ended.bars(room)
        if is_over or len(grants) >= max(min((grant.required_dst_info_num for grant in grants), default=1), 1):
            self._wanted.append(room, can_end=is_over or all(grant.dst_embedding_indices for grant in grants))
            self._has_announced = True

    def ring(self) -> None:
        """Wake those clients, if something was announced since the last call."""
        if self._has_announced:
            self._has_announced = False
            for lane in self._control.room_waiters.lanes():
                self._control.bell(f"library{lane}").ring()
