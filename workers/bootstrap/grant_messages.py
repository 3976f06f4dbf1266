"""The messages by which a language node asks and grants: an init, or the question of a fetch; later a resume."""

from __future__ import annotations

import logging

from embridge.allocator.plain_enums import Peer, Slot
from embridge.allocator.sessions import LiveSession
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
        peers, key = self._control.peers, self.key(slot, epoch)
        address, peers_key = peers.where_its_bootstrap_is(peer)
        required = max(self._slots.get(slot, Slot.REQUIRED), 1)
        common = (
            self._ctx.envelope(peers.get(peer, Peer.INCARNATION)),
            key,
            self._ctx.addresses.poller_addr,
            session.port,
            session.number,
            session.base,
            indices,
            first,
            required,
            max(tokens - first * self._ctx.bs, 0),
        )
        message: msg.Init | msg.Resume | msg.Ask
        if self._slots.get(slot, Slot.HEARD_EPOCH) == epoch:
            message = msg.Resume(*common, self._ctx.status.sent(slot))
        elif self._control.fetches.has(slot, epoch):
            item, generation = self._control.fetches.question(slot)
            message = msg.Ask(*common, peers.get(peer, Peer.REGISTRATION), item, generation)
        else:
            message = msg.Init(*common, peers.get(peer, Peer.REGISTRATION))
        if log.isEnabledFor(logging.DEBUG):
            said = key.room, type(message).__name__, first, first + len(indices), session.number
            log.debug("room %d: %s grants blocks [%d, %d) under session %d", *said)
        return Send(address, message, peers_key)

    def abort(self, slot: int, epoch: int, peer: int) -> Send:
        """The message that gives a request up, and says why."""
        address, peers_key = self._control.peers.where_its_bootstrap_is(peer)
        code, reason = self._slots.get(slot, Slot.FAILURE), msg.clip(self._slots.reason(slot))
        envelope = self._ctx.envelope(self._control.peers.get(peer, Peer.INCARNATION))
        return Send(address, msg.Abort(envelope, self.key(slot, epoch), code, reason), peers_key)
