"""An item cache whose users have what lies on a shelf of this host before it is copied.

Where no user waits for memory, `reach` pins items there, and they are READY: nobody waits for a thread, nor for a copy.
The library thread copies them later, one a turn and unless they have gone, so that nothing stays pinned on the shelf of
its node. Nobody wakes it for that: its turns take the GIL from whoever schedules. Memory is counted from the first.
Whoever reads rows is told where they lie then (`HeldItem.lent`), and keeps that until they are read: it is the pin, or
the copy.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Mapping

from embridge.allocator._core import Pin
from embridge.pipeline.client.cached_items import Key, LentRows, Place, State
from embridge.pipeline.client.far_fetch import CopiedRows
from embridge.pipeline.client.fetch import Item
from embridge.pipeline.client.fetching import Fetching
from embridge.pipeline.client.item_cache import ItemCache
from embridge.pipeline.client.library import Library


class EarlyItemCache(ItemCache):
    """As `ItemCache`, of memory that is shared."""

    def __init__(self, library: Library, fetching: Fetching, max_bytes: int, wait_s: float) -> None:
        self._to_copy: deque[Place] = deque()
        self._copying: Pin | None = None
        super().__init__(library, fetching, max_bytes, wait_s, shared=True)  # last: turns may come from here on

    def reach(self, items: Mapping[Key, str]) -> bool:
        if self._attachment.is_forked:  # a thread that is not here may have the lock
            return False
        try:
            wanted = self._checked(items)  # type: ignore[arg-type]  # one kind of key, or both
        except ValueError:  # which `want` says
            return False
        with self._lock:
            if self._first() is not None:
                return False
            places = {key: self._place(key, address) for key, address in wanted.items() if key in self._places}
            for key, address in wanted.items():
                state = places[key].state if key in places else State.ABSENT
                if state != State.READY and (state != State.ABSENT or not self._pin(key, address)):
                    return False
        return self.are_here(items)  # but where one had to make room for another

    def _pin(self, key: Key, address: str) -> bool:
        found = self._fetching.reach(key, address)
        if found is None or not self._make_room(found[0].bytes, None):
            return False
        pin, at = found
        place = self._place(key, address)
        place.attempt += 1
        place.size, place.is_new = pin.bytes, True
        place.fill(pin, self.memory, at)
        self._used_bytes += pin.bytes
        self._to_copy.append(place)
        return True

    def _drop_rows(self, place: Place) -> None:
        if isinstance(place.rows, Pin) and place.rows is not self._copying:
            self._used_bytes -= place.size
        super()._drop_rows(place)

    def _turn(self) -> bool:
        is_short = super()._turn()
        with self._lock:
            place = self._next_to_copy()
        if place is not None and self._copy(place):
            self._library.wake()
        return is_short

    def _next_to_copy(self) -> Place | None:
        while self._to_copy:
            place = self._to_copy.popleft()
            if isinstance(place.rows, Pin):
                self._copying = place.rows
                return place
        return None

    def _copy(self, place: Place) -> bool:
        """Copy rows from a shelf, without the lock; whether there was memory for them, else they stay there."""
        pin, rows = self._copying, None
        assert pin is not None
        try:
            with contextlib.suppress(MemoryError):
                rows = Item(place.key, pin).copied(self._take_bytes)
        finally:
            goes_on = self._put(place, pin, rows)
        return goes_on

    def _put(self, place: Place, pin: Pin, rows: CopiedRows | None) -> bool:
        size = pin.bytes
        with self._lock:
            self._copying = None
            if rows is None:
                if place.rows is pin:
                    self._to_copy.append(place)
                else:
                    self._used_bytes -= size
                return False
            for item in place.given:
                item.move_to(pin, rows)
            weakref.finalize(rows.bytes, self._freed.append, size).atexit = False
            if place.rows is pin:
                assert place.held is not None
                assert self.memory is not None
                place.rows, place.held.lent = rows, LentRows.of(rows, self.memory)
            return bool(self._to_copy)

    def _close(self) -> None:
        with self._lock:
            for me in self._users.values():  # whose items have them as a user: pins may not wait for the collector
                me.places, me.held = {}, {}
        super()._close()
        self._to_copy.clear()
