"""The messages by which a language node asks and grants: an init, or the question of a fetch; later a resume."""

from __future__ import annotations

import logging
from typing import Any

from embridge.allocator.records import Peer, Slot
from embridge.allocator.sessions import LiveSession
from embridge.allocator.status import split
from embridge.workers import messages as msg
from embridge.workers.role import RoleContext, Send

log = logging.getLogger(__name__)


class GrantMessages:
    """Used by the language bootstrap only."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots

    def key(self, slot: int, epoch: int) -> msg.RequestKey:
        """As this node knows the request."""
        return msg.RequestKey(slot, epoch, self._slots.get(slot, Slot.ROOM))

    def grant(
        self, slot: int, epoch: int, peer: int, session: LiveSession, window: tuple[int, list[int], int]
    ) -> Send:
        """The message with the window of a request: first block, indices, and how many tokens are granted."""
        first, indices, tokens = window
        record = self._control.peers.record(peer)
        common: dict[str, Any] = {
            "envelope": self._ctx.envelope(record.incarnation),
            "key": self.key(slot, epoch),
            "endpoint": self._ctx.addresses.poller_addr,
            "dst_port": session.port,
            "session_id": session.number,
            "base": session.base,
            "dst_embedding_indices": indices,
            "first_block": first,
            "required_dst_info_num": max(self._slots.get(slot, Slot.REQUIRED), 1),
            "allocated_tokens": max(tokens - first * self._ctx.bs, 0),
        }
        registration = self._control.peers.get(peer, Peer.REGISTRATION)
        message: msg.Init | msg.Resume | msg.Ask
        if self._slots.get(slot, Slot.HEARD_EPOCH) == epoch:
            message = msg.Resume(**common, sent_tokens=split(self._ctx.status.load(slot)).sent)
        elif self._control.fetches.has(slot, epoch):
            item, generation = self._control.fetches.question(slot)
            message = msg.Ask(**common, registration=registration, item=item, generation=generation)
        else:
            message = msg.Init(**common, registration=registration)
        said = common["key"].room, type(message).__name__, first, first + len(indices), session.number
        log.debug("room %d: %s grants blocks [%d, %d) under session %d", *said)
        return Send(record.bootstrap_addr, message, record.key)

    def abort(self, slot: int, epoch: int, peer: int) -> Send:
        """The message that gives a request up, and says why."""
        record = self._control.peers.record(peer)
        code, reason = self._slots.get(slot, Slot.FAILURE), msg.clip(self._slots.reason(slot))
        envelope = self._ctx.envelope(record.incarnation)
        return Send(record.bootstrap_addr, msg.Abort(envelope, self.key(slot, epoch), code, reason), record.key)
