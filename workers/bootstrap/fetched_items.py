"""Fetches of published items by nodes on other hosts: requests that this node's bootstrap opens by itself (R50 to R59).

Nobody here has called for such a request, so its slot is of the node's own lane. It reads an item on the shelf, which
stays there meanwhile: by a pin in the ledger that is the bootstrap's own (R85). The slot says which item that is. So a
bootstrap that is started anew finds the pins of the requests that are open, and takes all others away (R55).
"""

from __future__ import annotations

from collections import deque

from embridge.allocator._core import Mapping, Pin
from embridge.allocator.errors import FailureCode
from embridge.allocator.fetches import HeldItem, ItemShape
from embridge.allocator.geometry import MAX_TOKENS, SLOTS_PER_PAGE
from embridge.allocator.records import Destination, JoinedBy, NodeState, Slot
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.rings import Kick
from embridge.allocator.shelf import ItemKey
from embridge.allocator.status import split
from embridge.workers import messages as msg
from embridge.workers.bootstrap.ended_rooms import Refusal
from embridge.workers.bootstrap.fetch_shares import FetchShares
from embridge.workers.bootstrap.grant_applier import GrantApplier, Open
from embridge.workers.bootstrap.pending_grants import RemoteSlot
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS

NO_SHELF = Refusal(FailureCode.REFUSED, "its node publishes nothing: set shelf_bytes there")
REFUSED_BEFORE = Refusal(FailureCode.BUSY, "its node has refused this fetch, and no longer knows why; try again")
WAIT_NS = 2 * NS
MOST_WAITERS = 64  # lanes that have a bit among those that wait for slots


class FetchedItems:
    """Used by the encode bootstrap only, which gives it its tables."""

    def __init__(
        self, ctx: RoleContext, shelf: Mapping | None, held: dict[RemoteSlot, Open], grants: GrantApplier
    ) -> None:
        """`shelf`: the rows of published items; None where the node has no shelf."""
        self._ctx = ctx
        self._control = control = ctx.control
        self._slots = ctx.slots
        self._lanes = control.lanes
        self._lane = control.lanes.own_lane
        self._open = held
        self._grants = grants
        self._pins: dict[int, Pin] = {}  # by slot
        self._free: dict[int, deque[int]] = {}  # page of the node's own -> its free slots, first in, first out (R17)
        self._refused: dict[RemoteSlot, tuple[int, Refusal]] = {}  # the last request of a slot that was refused
        self._waits_until_ns = 0
        self._num_pages = max(self._lanes.num_pages // 2, 1)
        self._shares = FetchShares(self._num_pages * SLOTS_PER_PAGE)
        self._reader = control.shelf.own_reader(shelf) if shelf is not None and control.has_shelf else None
        if self._reader is not None:
            control.lanes.take_own()
            self._missed = control.missed_items
            self._opener = control.opener

    # ---- after a restart

    def rebuild(self) -> None:
        """Adopt the pins of the requests that are open, and give back what no request has (R55, R85)."""
        if self._reader is None:
            return
        for page in self._lanes.pages_of(self._lane):
            free = self._free[page] = deque[int]()
            for slot in range(page * SLOTS_PER_PAGE, (page + 1) * SLOTS_PER_PAGE):
                epoch = split(self._ctx.status.load(slot)).epoch
                if not epoch or not self._control.is_open(slot, epoch) or not self._adopt(slot, epoch):
                    self._control.fetches.ask_nothing(slot)  # whoever has the page next opens the epoch noted there
                    free.append(slot)
            self._give_back_if_free(page)
        self._reader.forget_others()
        self._waits_until_ns = 1  # as the one before this may have

    def _adopt(self, slot: int, epoch: int) -> bool:
        """Whether a slot is in use; one whose destination was never entered is not."""
        assert self._reader is not None
        if not self._slots.get(slot, Slot.NUM_DESTINATIONS):
            self._slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
            return False
        held = self._control.fetches.held(slot)
        self._shares.opened(slot, self._control.destinations.get(slot, 0, Destination.PEER) - 1)
        pin = self._reader.adopt(held.entry, held.generation)
        if pin is not None:
            self._pins[slot] = pin
        else:  # its rows may be another item's
            self._ctx.fail(slot, epoch, FailureCode.INTERNAL, "the item is not pinned any more")
        for (peer, remote_slot), of in self._open.items():
            if (of.slot, of.epoch) == (slot, epoch):
                self._control.peers.raise_tombstone(peer, remote_slot, of.remote_epoch)
        return True

    # ---- questions

    def take(self, ask: msg.Ask, peer: int, now_ns: int) -> Refusal | None:
        """Open the request of a question that is not open here. Why it is refused; None: it is open.

        A refusal has raised the tombstone: whoever asks again does so as a new request (R50).
        """
        peers, (slot, epoch) = self._control.peers, (ask.key.slot, ask.key.epoch)
        if epoch <= peers.tombstone(peer, slot):  # the answer may have been lost, and the bootstrap that has sent it
            last, refusal = self._refused.get((peer, slot), (0, None))
            found = refusal if last == epoch else self._find(ask, now_ns)
            return found if isinstance(found, Refusal) else REFUSED_BEFORE
        found = self._find(ask, now_ns)
        refusal = found if isinstance(found, Refusal) else self._begin(ask, found, peer, now_ns)
        if refusal is not None:
            peers.raise_tombstone(peer, slot, epoch)
            self._refused[peer, slot] = epoch, refusal
        return refusal

    def _find(self, ask: msg.Ask, now_ns: int) -> Pin | Refusal:
        """The item that is asked for, pinned; or why there is none."""
        control, reader = self._control, self._reader
        if reader is None:
            return NO_SHELF
        if control.state >= NodeState.DRAINING:
            return Refusal(FailureCode.REFUSED, "its node is being stopped")
        pin = reader.pin(*ItemKey.of(ask.item, (control.node_id, control.incarnation)), now_ns)
        if pin is None:
            self._missed.put(ask.item, now_ns)
            return Refusal(FailureCode.NOT_PUBLISHED, "it is not published")
        if ask.generation > pin.number:
            other = f"generation {ask.generation} is not published yet; {pin.number} is"
            return Refusal(FailureCode.NOT_PUBLISHED, other)
        if ask.generation not in (0, pin.number):
            gone = f"generation {ask.generation} is gone; {pin.number} is there"
            return Refusal(FailureCode.GENERATION_GONE, gone)
        return pin

    def _begin(self, ask: msg.Ask, pin: Pin, peer: int, now_ns: int) -> Refusal | None:
        control = self._control
        total = -(-pin.bytes // control.geometry.embedding_bytes)
        if not 0 < total <= MAX_TOKENS:
            most = MAX_TOKENS * control.geometry.embedding_bytes
            return Refusal(FailureCode.TOO_LARGE, f"{pin.bytes} bytes > {most} bytes of one request")
        if ask.first_block * control.geometry.block_size >= total:
            return Refusal(FailureCode.PROTOCOL, f"it begins at block {ask.first_block}, behind its {total} tokens")
        if not self._shares.may_open(peer, control.peers.alive()):
            return Refusal(FailureCode.BUSY, "its node has as many fetches of this one as it may have; try again")
        found = self._open_slot(ask.key.room, pin, total, now_ns)
        if found is None:
            return Refusal(FailureCode.BUSY, "its node has no slot for the fetch; try again")
        self._enter(*found, ask, peer, pin, now_ns)
        return None

    def _enter(self, slot: int, epoch: int, ask: msg.Ask, peer: int, pin: Pin, now_ns: int) -> None:
        """Enter the destination of a slot that was opened, last that there is one: before, nobody is told of it."""
        self._pins[slot] = pin
        self._shares.opened(slot, peer)
        self._grants.begin(slot, 0, ask, peer)
        held = self._open[peer, ask.key.slot] = Open(ask.key.epoch, slot, epoch, 0)
        self._slots.set(slot, Slot.NUM_DESTINATIONS, 1)
        self._control.peers.raise_tombstone(peer, ask.key.slot, ask.key.epoch)
        self._ctx.to("poller").send(Kick.OPEN, slot, epoch)
        self._grants.apply(held, ask, now_ns)

    # ---- slots

    def _open_slot(self, room: int, pin: Pin, total: int, now_ns: int) -> tuple[int, int] | None:
        """(slot, epoch), opened with its item word; None: there is no slot."""
        while (slot := self._take_slot(now_ns)) is not None:
            next_epoch = split(self._ctx.status.load(slot)).epoch + 1
            shape = ItemShape(pin.number, pin.rows, pin.width, pin.dtype, pin.bytes)
            self._control.fetches.hold(slot, next_epoch, HeldItem(pin.entry, pin.generation, pin.first), shape)
            record = SlotRecord()
            for field, value in (
                (Slot.ROOM, room),
                (Slot.LANE, self._lane),
                (Slot.TOTAL, total),
                (Slot.OPENED_NS, now_ns),
                (Slot.DEADLINE_NS, now_ns + int(self._ctx.timing.request_timeout_s * NS)),
                (Slot.READY, total),
                (Slot.REQUIRED, 1),
                (Slot.CLEARED_EPOCH, next_epoch),  # nobody here needs anything of it
                (Slot.JOINED_BY, JoinedBy.BOOTSTRAP),
            ):
                record.words[field] = value
            if epoch := self._opener.open(slot, record, now_ns):
                return slot, epoch
        return None

    def _take_slot(self, now_ns: int) -> int | None:
        """A slot of the node's own, of half of its pages at most; one page more is leased when none is free."""
        for free in self._free.values():
            if free:
                return free.popleft()
        page = None
        if len(self._free) < self._num_pages:
            page = self._lanes.lease_page(self._lane)
        if page is None:
            self._wait_for_page(now_ns)
            return None
        self._free[page] = deque(range(page * SLOTS_PER_PAGE, (page + 1) * SLOTS_PER_PAGE))
        return self._free[page].popleft()

    def _wait_for_page(self, now_ns: int) -> None:
        """Have clients give back pages that they do not use, for a while: whoever was refused may ask again."""
        if self._lane < MOST_WAITERS:
            self._waits_until_ns = now_ns + WAIT_NS
            self._control.slot_waiters.set(self._lane, True)
            self._control.ring_libraries()

    def look(self, now_ns: int) -> None:
        """Wait for pages no longer than that."""
        if self._waits_until_ns and now_ns >= self._waits_until_ns:
            self._waits_until_ns = 0
            self._control.slot_waiters.set(self._lane, False)

    def released(self, slot: int) -> None:
        """A request has been released: nobody reads its item for it any more (R53)."""
        self._pins.pop(slot, None)
        self._shares.released(slot)
        page = slot // SLOTS_PER_PAGE
        if page in self._free:
            self._free[page].append(slot)
            self._give_back_if_free(page)

    def _give_back_if_free(self, page: int) -> None:
        if len(self._free[page]) == SLOTS_PER_PAGE and self._lanes.return_page(page, self._lane):
            del self._free[page]
            self._control.ring_slot_waiters()

    def forget_peer(self, peer: int) -> None:
        """A node is gone: nothing of it is asked again."""
        for key in [key for key in self._refused if key[0] == peer]:
            del self._refused[key]
