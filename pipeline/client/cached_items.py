"""What an item cache knows of each item and of each user (`item_cache.py`, which has the lock).

What is made for each request is a `msgspec.Struct`, which runs no Python to be made: a scheduler waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

import msgspec

from embridge.allocator._core import Pin
from embridge.allocator.errors import FetchError, ItemsTooLarge
from embridge.allocator.rows_at import RowsAt
from embridge.allocator.shelf import dtype_of, raw_key
from embridge.pipeline.client.cache_memory import CacheMemory
from embridge.pipeline.client.far_fetch import CopiedRows
from embridge.pipeline.client.fetch import Fetch, Item
from embridge.workers.addresses import numeric

Key = str | bytes


class WantStatus(StrEnum):
    """What `ItemCache.want` answers."""

    READY = "ready"
    """All items are here, and stay until `end`."""
    NOT_YET = "not yet"
    """Some are on their way, or wait for memory; ask again."""
    MISSED = "missed"
    """Some could not be fetched. This is said once; who asks again has them fetched again."""


class Wanted(NamedTuple):
    """The answer to `ItemCache.want`."""

    status: WantStatus
    errors: Mapping[Key, FetchError]
    """Why, for each item that could not be fetched."""

    @property
    def is_ready(self) -> bool:
        """Whether the user has all its items."""
        return self.status == WantStatus.READY

    @classmethod
    def missed(cls, errors: Mapping[Key, FetchError]) -> Wanted:
        """That these cannot be had."""
        return cls(WantStatus.MISSED, errors)


READY: Final = Wanted(WantStatus.READY, {})
NOT_YET: Final = Wanted(WantStatus.NOT_YET, {})


class State(StrEnum):
    """Of an item."""

    ABSENT = "absent"
    ASKED = "asked"  # its fetch is under way, and has no memory
    TAKEN = "taken"  # it has memory
    READY = "ready"


class Place(msgspec.Struct, eq=False):
    """One item: on its way, or here. There is one of a key at a time, and those that were forgotten and are in use."""

    key: Key
    address: str
    state: State = State.ABSENT
    size: int = 0  # of its memory, in bytes, once that is known
    users: dict[User, None] = {}
    rows: CopiedRows | Pin | None = None
    held: HeldItem | None = None  # while it has rows, of a cache that is shared
    fetch: Fetch | None = None
    attempt: int = 0  # the number of the latest fetch; what another one says is nothing to it
    is_prefetched: bool = False
    is_new: bool = False  # it was reached for a user that has yet to ask for it
    is_held_back: bool = False  # its fetch was refused memory when it last asked
    again_ns: int = 0  # not before
    busy_since_ns: int = 0  # since when its node has had no slot

    def fill(self, rows: CopiedRows, memory: CacheMemory | None) -> None:
        """Have rows, which lie in memory of the cache."""
        self.rows, self.state = rows, State.READY
        if memory is not None:
            self.held = HeldItem(self.key, LentRows.of(rows, memory), self.address, memory)

    def give(self) -> Item:
        """An item that it has."""
        assert self.rows is not None
        return self.held.item if self.held is not None else Item(self.key, self.rows)

    def ask(self) -> str:
        """How it is counted that another user wants it."""
        if self.is_new or (self.lacks_memory and len(self.users) == 1):
            self.is_new = False
            return "misses"
        return "hits" if self.state == State.READY else "shared"

    @property
    def lacks_memory(self) -> bool:
        return self.state in (State.ABSENT, State.ASKED)

    @property
    def is_pinned(self) -> bool:
        return any(user.is_admitted for user in self.users)


class User(msgspec.Struct, eq=False):
    """Who wants a set of items, all at once."""

    since_ns: int = 0
    places: dict[Key, Place] = {}
    held: dict[Key, HeldItem] = {}  # once it is admitted, of a cache that is shared
    is_admitted: bool = False
    is_asking: bool = True  # else it was told of a miss, and has not asked again
    errors: dict[Key, FetchError] = {}  # of which it was not told yet

    @staticmethod
    def checked(items: Mapping[str, str] | Mapping[bytes, str]) -> dict[Key, str]:
        """What a user asks for, each address in its one form. Raises ValueError: a key or an address is none, or there
        is no item.
        """
        if not items:
            raise ValueError("items: there is none; a user wants at least one")
        return {key: numeric(address) for key, address in items.items() if raw_key(key)}

    def check_fits(self, max_bytes: int) -> None:
        """Raises ItemsTooLarge: its items take more memory together than a cache may have."""
        needed = sum(place.size for place in self.places.values())
        if needed > max_bytes:
            key = max(self.places.values(), key=lambda place: place.size).key
            raise ItemsTooLarge(key, f"its user's items take {needed} bytes > max_bytes {max_bytes} of the cache")

    def fail(self, error: FetchError) -> None:
        """Have it told of an error, when it asks next."""
        self.errors[error.key] = type(error)(error.key, error.reason)  # each may keep its own
        self.is_asking = False

    @property
    def waits(self) -> bool:
        return self.is_asking and not self.is_admitted

    @property
    def is_complete(self) -> bool:
        """Whether it waits, and all of its items are there."""
        return self.waits and all(place.state == State.READY for place in self.places.values())

    @property
    def lacks_memory(self) -> bool:
        return any(place.lacks_memory for place in self.places.values())


class LentRows(msgspec.Struct, eq=False):
    """The rows of an item where they lie just now, which stay there for as long as this is kept."""

    rows: CopiedRows | Pin
    where: Callable[[Any], RowsAt]
    """Says where they lie, for other processes of the host."""
    _at: RowsAt | None = None

    @classmethod
    def of(cls, rows: CopiedRows, memory: CacheMemory) -> Self:
        """Of rows in memory of a cache."""
        return cls(rows, lambda it: memory.where(it.bytes, (it.rows, it.width), dtype_of(it.dtype)))

    @property
    def at(self) -> RowsAt:
        """Where they lie, for other processes of the host."""
        if self._at is None:
            self._at = self.where(self.rows)
        return self._at

    @property
    def nbytes(self) -> int:
        """Of the rows."""
        return self.rows.bytes if isinstance(self.rows, Pin) else self.rows.bytes.nbytes


class HeldItem:
    """An item that stays for as long as this is there. Any thread may ask it."""

    def __init__(self, key: Key, lent: LentRows, address: str, memory: CacheMemory) -> None:
        self.key = key
        self.lent = lent
        """Where its rows lie now, for other processes of the host: keep it until they have read them (R70). Rows that
        lie on a shelf lie in memory of the cache a little later, and this is another then."""
        self.address = address
        """Of the node that has published it."""
        self.memory = memory
        """Of its cache."""

    @property
    def item(self) -> Item:
        """The item."""
        return Item(self.key, self.lent.rows)

    @property
    def nbytes(self) -> int:
        """Of its rows."""
        return self.lent.nbytes


class CacheCounts(NamedTuple):
    """What a cache holds, and has done."""

    items: int
    """That are here."""
    bytes: int
    """Of memory: of items that are here or on their way, and of evicted ones at which somebody still looks."""
    max_bytes: int
    admitted: int
    """Users that have all their items."""
    waiting: int
    """Users that have not."""
    longest_wait_s: float
    """Of those, since their first `want`."""
    hits: int
    """Items that were here when a user first asked for them."""
    shared: int
    """Items that were on their way then, for somebody else."""
    misses: int
    """Items that were not."""
    evictions: int
