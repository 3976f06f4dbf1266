"""Pages of slots go round between the clients of a node."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

from support.alone import EncodeAlone
from support.simulation import LIMITS

from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.slot_lease import SlotLease

WATCHDOG_S = 30.0


def test_pages_go_round_and_no_slot_is_lost_or_doubled() -> None:
    """P1, R16: two clients take, leave and share at random; each slot is held by one of them, or free with one, or in a
    free page.
    """
    node = EncodeAlone()
    control = node.control
    other = node.new_client()
    leases = [SlotLease(control, lane) for lane in (node.client.lane, other.lane)]
    rng = random.Random(5)
    held: list[list[tuple[int, int]]] = [[], []]
    num_early: list[int] = []
    for _ in range(4000):
        i = rng.randrange(2)
        lease = leases[i]
        if rng.random() < 0.5:
            is_early = rng.random() < 0.3
            opened = lease.open(1, 1, 2, lambda *_: None, is_early=is_early)
            control.slot_waiters.set(i, opened is None and not is_early)
            if opened is not None:
                assert all(opened[0] != slot for slots in held for slot, _ in slots)
                held[i].append(opened)
        elif held[i]:
            slot, epoch = held[i].pop(rng.randrange(len(held[i])) if rng.random() < 0.3 else 0)
            control.status.advance(slot, epoch, Phase.Failed, 0, 1)
            lease.leave(slot, epoch)
            control.slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
        lease.share(is_needy=control.slot_waiters.has(i))
        num_early.append(control.lanes.num_early())
        assert sorted(lease.pages.tolist()) == control.lanes.pages_of(i)
    assert max(num_early) == control.lanes.num_pages // 2
    for i, lease in enumerate(leases):
        control.slot_waiters.set(i, False)
        for slot, epoch in held[i]:
            lease.leave(slot, epoch)
            control.slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)
    for lease in leases:
        lease.collect()
        lease.share(is_needy=False)
        assert {page: sorted(free) for page, free in lease._free.items()} == {
            page: list(range(64 * page, 64 * page + 64)) for page in lease.pages.tolist()
        }
    assert control.lanes.num_early() == 0


def test_a_page_for_early_slots_is_kept_while_they_are_few_and_nobody_waits() -> None:
    """P8: one request after the other finds it there; and what nobody uses is nobody's as soon as it is needed."""
    node = EncodeAlone(limits=replace(LIMITS, num_slots=8 * 64))
    control, other = node.control, node.new_client()
    leases = [SlotLease(control, lane) for lane in (node.client.lane, other.lane)]

    def one_after_the_other(lease: SlotLease) -> None:
        for room in (1, 2):
            opened = lease.open(room, 1, 2, lambda *_: None, is_early=True)
            assert opened is not None
            lease.released(*opened)
            lease.share(is_needy=False)

    one_after_the_other(leases[0])
    assert control.lanes.num_early() == 1
    for _ in range(2):
        control.lanes.add_early(other.lane, 1)  # others have some
    one_after_the_other(leases[1])
    assert control.lanes.num_early() == 1 + 2, "more than a quarter of the pages would be kept"
    control.slot_waiters.set(other.lane, True)
    leases[0].share(is_needy=False)
    assert control.lanes.num_early() == 2


class Handed(dict[int, set[int]]):
    """The early pages of a client, one of which is given away just when it is to be made early."""

    give: Callable[[], None] | None = None

    def setdefault(self, page: int, early: set[int]) -> set[int]:
        if self.give is not None:
            give, self.give = self.give, None
            give()
        return super().setdefault(page, early)


def test_a_page_that_is_given_away_while_it_is_made_early_is_not_counted() -> None:
    """P8: the library thread gives it to a client that waits, in between."""
    node = EncodeAlone()
    control, lane = node.control, node.client.lane
    lease = SlotLease(control, lane)
    assert lease._lease_page() is not None
    control.slot_waiters.set(node.new_client().lane, True)
    early = lease._early = Handed()
    early.give = lambda: lease.share(is_needy=False)
    lease.open(1, 1, 2, lambda *_: None, is_early=True)
    lease.share(is_needy=False)
    assert control.lanes.num_early() == len(early) == sum(map(len, early.values()))


class Crossed(set[int]):
    """The early slots of a page.

    The caller's thread adds one when the library thread has found it empty, and takes it out at once.
    """

    def __init__(self, slots: set[int], caller: threading.Thread) -> None:
        super().__init__(slots)
        self.caller = caller
        self.has_got, self.is_ended, self.has_added, self.is_looked_at = (threading.Event() for _ in range(4))

    def add(self, slot: int) -> None:
        self.has_got.set()
        assert self.is_ended.wait(WATCHDOG_S)
        super().add(slot)
        self.has_added.set()
        assert self.is_looked_at.wait(WATCHDOG_S)

    def __bool__(self) -> bool:
        if not len(self) and not self.is_looked_at.is_set():
            if not self.num_looks:
                self.num_looks = 1
                return False
            self.is_ended.set()
            assert self.has_added.wait(WATCHDOG_S)
            self.is_looked_at.set()
            self.caller.join(WATCHDOG_S)
            return True
        return len(self) > 0

    num_looks = 0


def test_a_page_of_which_the_last_early_slot_leaves_while_another_is_taken_is_not_counted() -> None:
    """P8: neither thread has a slot of it then, each having made way for the other."""
    node = EncodeAlone()
    control = node.control
    lease = SlotLease(control, node.client.lane)
    first = lease.open(1, 1, 2, lambda *_: None, is_early=True)
    assert first is not None
    opened: list[object] = []
    caller = threading.Thread(target=lambda: opened.append(lease.open(2, 1, 2, lambda *_: None, is_early=True)))
    early = lease._early[0] = Crossed(lease._early[0], caller)
    caller.start()
    assert early.has_got.wait(WATCHDOG_S)
    lease.leave(*first)
    caller.join(WATCHDOG_S)
    assert opened == [None]
    lease.share(is_needy=False)
    assert (control.lanes.num_early(), lease._early) == (0, {})
