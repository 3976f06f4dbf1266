"""Grants, step 4, applied: an encode node checks what a language node has granted, and enters it for its workers.

The scheduler's library thread decides a grant (`TransferQueue._grant`) and records it in its slot
(`EmbeddingReceiver.grant`). The language bootstrap sends it (`GrantSender._send_grant`). Here it is applied to a
destination of the encode node's slot. The transfer worker reads there how far it may write (`TransferWorker._submit`).
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.plain_enums import Destination, Kick, Peer, Slot, WrittenBy
from embridge.workers import messages as msg
from embridge.workers.bootstrap.pending_grants import Grant
from embridge.workers.role import RoleContext

log = logging.getLogger(__name__)


class Open(NamedTuple):
    """A destination of a room that an encoder has opened here."""

    remote_epoch: int
    slot: int
    epoch: int
    destination: int


class GrantApplier:
    """Applies grants to destinations: the only writer of their tables of blocks (bootstrap of an encode node)."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._slots = ctx.slots
        self._dsts = ctx.control.destinations
        self._peers = ctx.control.peers

    def why_wrong(self, grant: Grant, peer: int) -> str | None:
        """What is wrong with a grant, judged by the geometry that its node has registered; None if nothing is."""
        count, bs = len(grant.dst_embedding_indices), self._ctx.bs
        num_blocks, limits = self._peers.get(peer, Peer.NUM_BLOCKS), self._control.limits
        required, window = grant.required_dst_info_num, limits.window_blocks // grant.required_dst_info_num
        if grant.key.slot >= self._peers.get(peer, Peer.NUM_SLOTS):
            return f"slot {grant.key.slot} is outside the {self._peers.get(peer, Peer.NUM_SLOTS)} slots registered"
        if grant.endpoint != self._peers.poller_addr(peer):
            return f"endpoint {grant.endpoint!r}, {self._peers.poller_addr(peer)!r} registered"
        if isinstance(grant, msg.Init) and grant.first_block * bs > MAX_TOKENS:
            begins = f"it begins at block {grant.first_block} of {bs} tokens"
            return f"{begins}, behind the {MAX_TOKENS} that a request may have"
        if isinstance(grant, msg.Ask) and (required != 1 or (grant.first_block and not grant.generation)):
            from_ = f"from block {grant.first_block} on" * bool(grant.first_block)
            return f"a fetch of {required} destinations, of generation {grant.generation} {from_}"
        if required > limits.max_destinations:
            return f"required_dst_info_num {required} > max_destinations {limits.max_destinations}"
        if count > window:
            return f"{count} blocks granted > window of {window} blocks"
        if count and max(grant.dst_embedding_indices) >= num_blocks:
            return f"block {max(grant.dst_embedding_indices)} granted, {num_blocks} blocks registered"
        if len(set(grant.dst_embedding_indices)) != count:
            return "a block is granted twice in one message"
        if not ((count - 1) * bs < grant.allocated_tokens <= count * bs or count == grant.allocated_tokens == 0):
            return (
                f"allocated_tokens {grant.allocated_tokens} does not end in the last of {count} blocks of {bs} tokens"
            )
        return None

    def begin(self, slot: int, d: int, grant: Grant, peer: int) -> None:
        """Fill the words of a new destination, before anybody can see it."""
        first = grant.first_block  # another encode node has sent the blocks before it (R26)
        for field, value in (
            (Destination.WINDOW, self._control.limits.window_blocks // grant.required_dst_info_num),
            (Destination.PEER, peer + 1),
            (Destination.INCARNATION, grant.envelope.incarnation),
            (Destination.REGISTRATION, self._peers.get(peer, Peer.REGISTRATION)),
            (Destination.REMOTE_SLOT, grant.key.slot),
            (Destination.REMOTE_EPOCH, grant.key.epoch),
            (Destination.BEGIN, first * self._ctx.bs),
            (Destination.SUMMED, RowSum(first * self._ctx.bs, 0).pack()),
            (Destination.SENT, first * self._ctx.bs),
            (Destination.GRANTED_TOKENS, first * self._ctx.bs),
            (Destination.GRANTED_BLOCKS, first),
        ):
            self._dsts.set(slot, d, field, value)

    def apply(self, held: Open, grant: Grant, now_ns: int) -> None:
        """Grants, step 4, applied: enter a grant's blocks for its destination (R1).

        An entry is set once: at or above `sent` it changes only for a newer session, below never. A message that would
        leave a gap is ignored. `GRANTED_TOKENS` rises to the contiguous length. `TransferWorker._submit` uses what is
        entered here.
        """
        slot, epoch, d = held.slot, held.epoch, held.destination
        if not self._ctx.is_live(slot, epoch):
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
            return
        wrong = self._check_progress(held, grant)
        if wrong:
            self._ctx.fail(slot, epoch, FailureCode.PROTOCOL, f"a destination's grant is wrong: {wrong}")
            return
        known = self._dsts.get(slot, d, Destination.GRANTED_BLOCKS)
        sent_block = self._dsts.get(slot, d, Destination.SENT) // self._ctx.bs
        first, end = grant.first_block, grant.first_block + len(grant.dst_embedding_indices)
        if first > known:
            self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
            return  # an earlier message is missing; the language node will send the whole window again
        if end > sent_block + self._dsts.get(slot, d, Destination.WINDOW):
            self._ctx.fail(
                slot, epoch, FailureCode.PROTOCOL, f"grant to block {end} exceeds the window at {sent_block}"
            )
            return
        if grant.session_id > self._dsts.get(slot, d, Destination.SESSION):
            self._dsts.set(slot, d, Destination.PORT, grant.dst_port)
            self._dsts.set(slot, d, Destination.BASE, grant.base)
            self._dsts.set(slot, d, Destination.SESSION, grant.session_id)
        for i, index in enumerate(grant.dst_embedding_indices):
            k = first + i
            if k < known:
                if k < sent_block:
                    continue
                old_index, old_session = self._dsts.grant(slot, d, k)
                if grant.session_id == old_session and index != old_index:
                    reason = f"block {k} was granted as {old_index} and as {index} under one session"
                    self._ctx.fail(slot, epoch, FailureCode.PROTOCOL, reason)
                    return
                if grant.session_id <= old_session:
                    continue
            self._dsts.set_grant(slot, d, k, index, grant.session_id)
        self._dsts.raise_to(slot, d, Destination.GRANTED_BLOCKS, end)
        if end >= known and grant.allocated_tokens:
            tokens = first * self._ctx.bs + grant.allocated_tokens
            if self._dsts.get(slot, d, Destination.FIRST_GRANT) == 0:
                self._dsts.set(slot, d, Destination.FIRST_GRANT, tokens)
            if self._dsts.raise_to(slot, d, Destination.GRANTED_TOKENS, tokens):
                self._slots.raise_to(slot, Slot.MOVED_NS, now_ns)
        log.debug("room %d: a grant to block %d is entered for destination %d", grant.key.room, end, d)
        self.look(slot, epoch)

    def _check_progress(self, held: Open, grant: Grant) -> str | None:
        """What is wrong with a grant, judged by what this node knows of its request; None if nothing is.

        The language node knows how much has been sent from our reports alone (R2). If it names less, the message or a
        report was late; it can never truly name more. Where nodes verify, a report carries `SUMMED` and may be ahead of
        `SENT` for a moment (R27).
        """
        slot, d = held.slot, held.destination
        required = self._slots.get(slot, Slot.REQUIRED)
        if grant.required_dst_info_num != required:
            return f"required_dst_info_num {grant.required_dst_info_num}, it was {required}"
        if isinstance(grant, msg.Resume):
            sent = max(
                self._dsts.get(slot, d, Destination.SENT), RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)).tokens
            )
            if grant.sent_tokens > sent:
                return f"sent_tokens {grant.sent_tokens} > {sent} tokens that were sent to it"
        return None

    def look(self, slot: int, epoch: int) -> None:
        """Have whoever writes its rows, and the poller, look at a request."""
        # the one who writes is woken now and not at the end of the step, because it has the most to do
        destinations, get = range(self._slots.get(slot, Slot.NUM_DESTINATIONS)), self._dsts.get
        writers = {get(slot, d, Destination.WRITTEN_BY) for d in destinations}
        may_write = self._slots.get(slot, Slot.MAY_WRITE)
        if may_write and writers != {WrittenBy.WORKER}:
            self._ctx.wake_library(slot)
        if not may_write or WrittenBy.WORKER in writers:
            self._ctx.to_worker_of(slot).send_now(Kick.LOOK, slot, epoch)
        self._ctx.to("poller").send(Kick.LOOK, slot, epoch)
