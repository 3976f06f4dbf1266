"""An item cache whose users have what lies on a shelf of this host before it is copied.

Where no user waits for memory, `admit` pins items there, and they are READY: nobody waits for a thread, nor for a copy.
The library thread copies them later, one a turn, for as long as somebody has them: a user, whoever keeps what it was
given, or the cache itself. So nothing stays pinned on the shelf of its node. Nobody wakes it for that: its turns take
the GIL from whoever schedules. Memory is counted from the first. Whoever reads rows is told where they lie then
(`HeldItem.lent`), and keeps that until they are read: it is the pin, or the copy.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Mapping

from embridge.allocator._core import Pin
from embridge.pipeline.client.cache_memory import CacheMemory
from embridge.pipeline.client.cached_items import HeldItem, Key, LentRows, Place, State
from embridge.pipeline.client.far_fetch import CopiedRows
from embridge.pipeline.client.fetch import Item
from embridge.pipeline.client.fetching import Fetching
from embridge.pipeline.client.item_cache import ItemCache
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.shelf_doors import Reached
from embridge.workers.addresses import numeric


class EarlyItem(HeldItem):
    """One that lies on a shelf, and then in memory of its cache. `freed` is told how much memory it was counted as when
    it is gone, unless it was copied: that counts as its memory does.
    """

    _freed: Callable[[int], object] | None = None

    def __init__(
        self, key: Key, found: Reached, address: str, memory: CacheMemory, freed: Callable[[int], object]
    ) -> None:
        super().__init__(key, LentRows(found.pin, found.where), address, memory)
        self._door, self._freed = found.door, freed
        self._given: list[weakref.ref[Item]] = []

    @property
    def item(self) -> Item:
        """The item, whose rows move with these; or when its node is short of room, if it is all that is left (R62)."""
        lent = self.lent
        given = Item(self.key, lent.rows)
        if isinstance(lent.rows, Pin):
            self._given.append(weakref.ref(given))
            if (door := self._door()) is not None:
                door.lend(given)
            if isinstance(self.lent.rows, CopiedRows):  # meanwhile
                given.move_to(lent.rows, self.lent.rows)
        return given

    def move_to(self, copy: LentRows) -> None:
        """Have its rows in a copy, which is counted by itself (one thread)."""
        pin, self.lent, self._freed = self.lent.rows, copy, None
        assert isinstance(pin, Pin)
        assert isinstance(copy.rows, CopiedRows)
        while self._given:
            if (given := self._given.pop()()) is not None:
                given.move_to(pin, copy.rows)

    def __del__(self) -> None:
        if self._freed is not None:
            self._freed(self.memory.taken(self.nbytes))


class EarlyItemCache(ItemCache):
    """As `ItemCache`, of memory that is shared."""

    memory: CacheMemory

    def __init__(self, library: Library, fetching: Fetching, max_bytes: int, wait_s: float) -> None:
        self._to_copy: deque[tuple[Place, weakref.ref[EarlyItem]]] = deque()
        super().__init__(library, fetching, max_bytes, wait_s, shared=True)  # last: turns may come from here on

    def _have(self, wanted: Mapping[Key, str]) -> bool:
        """Whether some items are here, or are pinned now where they lie."""
        num_pinned = 0
        for key, address in wanted.items():
            place = self._places.get(key)
            if place is not None and place.state == State.READY:
                continue
            if not num_pinned and self._line and self._first() is not None:
                return False
            if (place is not None and place.state != State.ABSENT) or not self._pin(key, address):
                return False
            num_pinned += 1
        return num_pinned == 0 or len(wanted) == 1 or super()._have(wanted)  # one may have made room for another

    def _pin(self, key: Key, address: str) -> bool:
        try:
            address = numeric(address)
        except ValueError:  # which `want` says
            return False
        found = self._fetching.reach(key, address)
        if found is None:
            return False
        size = self._taken(found.pin.bytes)
        if self._used_bytes + size > self.max_bytes and not self._make_room(size, None):
            return False
        place = self._place(key, address)
        place.attempt += 1
        place.rows, place.state, place.size, place.is_new = found.pin, State.READY, size, True
        place.held = held = EarlyItem(key, found, address, self.memory, self._freed.append)
        self._used_bytes += place.size
        self._to_copy.append((place, weakref.ref(held)))
        return True

    def _turn(self) -> bool:
        is_short = super()._turn()
        if self._copy_next():
            self._library.wake()
        return is_short

    def _copy_next(self) -> bool:
        """Copy rows from a shelf, without the lock; whether there may be more to copy."""
        while self._to_copy:
            place, known = self._to_copy.popleft()
            held = known()
            if held is not None and isinstance(held.lent.rows, Pin):
                return self._copy(place, held)
        return False

    def _copy(self, place: Place, held: EarlyItem) -> bool:
        rows = None
        try:
            with contextlib.suppress(MemoryError):
                rows = Item(held.key, held.lent.rows).copied(self._take_bytes)
        finally:
            if rows is None:
                self._lacks_memory(place, held)
        if rows is None:
            return False
        weakref.finalize(rows.bytes, self._freed.append, self._taken(held.nbytes)).atexit = False
        with self._lock:
            held.move_to(LentRows.of(rows, self.memory))
            if place.held is held:
                place.rows = rows
        return bool(self._to_copy)

    def _lacks_memory(self, place: Place, held: EarlyItem) -> None:
        """Let go of what no user has, which may be fetched again; the others' stays where it is until there is some."""
        with self._lock:
            if place.held is held and not place.users and self._places.get(place.key) is place:
                self._evict(place)
            self._to_copy.append((place, weakref.ref(held)))

    def _close(self) -> None:
        with self._lock:
            for me in self._users.values():  # whose items have them as a user: pins may not wait for the collector
                me.places, me.held = {}, {}
            for place, _ in self._to_copy:
                self._drop_rows(place)
        super()._close()
        for _ in range(len(self._to_copy)):  # what others keep
            self._copy_next()
        self._to_copy.clear()
