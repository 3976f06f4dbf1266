"""The item cache of a language node's client: published items that its engine needs, fetched once and kept for many.

A *user* is a request of the engine. It wants a set of items, all at once, and is admitted when all of them are here;
they stay until it ends, whatever becomes of it meanwhile (R69). Users that wait stand in the order in which they first
asked. Memory goes to the first of them that lacks some; for it items are evicted, the least recently used first, that
no admitted user needs, and in the end those that only users behind it want (R65). So no two wait for each other.

Whoever asks does no I/O: the library thread begins fetches and copies what was fetched. Memory is taken when a fetch
has learned how much it needs, before any row moves (`Fetch.admit`), and is counted until the last view of it is gone.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from embridge.allocator.errors import Busy, EmbridgeError, FetchError, FetchFailed, FetchTimeout, ItemsTooLarge
from embridge.allocator.metrics import Metric
from embridge.allocator.shelf import raw_key
from embridge.pipeline.arguments import is_time, said, whole
from embridge.pipeline.client.cache_memory import CacheMemory, as_it_is, fresh_memory
from embridge.pipeline.client.cached_items import NOT_YET, READY, CacheCounts, HeldItem, Key, Place, State, User, Wanted
from embridge.pipeline.client.fetch import Fetch, Item
from embridge.pipeline.client.fetching import Fetching
from embridge.workers.addresses import numeric
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.library import Library

MAX_BYTES: Final = 1 << 50
BUSY_PAUSE_NS: Final = NS // 20
"""After which an item is asked for again whose node had no slot."""


class ItemCache:
    """One client's, made by `Client.item_cache`. Any thread may call it; no method waits or does I/O. In a forked child
    `end` and `forget` do nothing; `want`, `get`, `counts` and `prefetch` raise RuntimeError."""

    def __init__(
        self, library: Library, fetching: Fetching, max_bytes: int, wait_s: float, *, shared: bool = False
    ) -> None:
        attachment = library.attachment
        self.max_bytes = whole("max_bytes", max_bytes, 1, MAX_BYTES)
        """Of the memory of all items that it holds, those on their way, and evicted ones at which somebody still looks:
        their bytes, or where they are shared the pages that they take."""
        if not is_time(wait_s) or wait_s < 0:
            raise ValueError(f"wait_s: {said(wait_s)} s must not be negative")
        self._library, self._attachment = library, attachment
        self._fetching, self._wait_s = fetching, wait_s
        self.memory = CacheMemory(self.max_bytes) if shared else None
        """Where its items lie, for other processes of this host, too; None: for this one alone."""
        self._take_bytes = self.memory.take if self.memory is not None else fresh_memory
        self._taken = self.memory.taken if self.memory is not None else as_it_is
        self._metrics = attachment.control.metrics
        self._lock = threading.Lock()
        self._places: dict[Key, Place] = {}  # the least recently used first
        self._users: dict[Hashable, User] = {}
        self._line: dict[User, None] = {}  # those that are not admitted, in the order in which they first asked
        self._used_bytes = 0
        self._freed: deque[int] = deque()  # sizes of memory at which nobody looks any more
        self._ended: deque[tuple[Place, int, Fetch]] = deque()
        self._given_up: deque[Fetch] = deque()
        self.totals = Counter(hits=0, shared=0, misses=0, evictions=0)
        """What has happened so far, as `CacheCounts` has it; to be read only."""
        library.add_turn(self._turn, self._close)

    # ---- for the engine

    def want(self, user: Hashable, items: Mapping[str, str] | Mapping[bytes, str], *, hastens: bool = True) -> Wanted:
        """Ask for a set of items, all at once: the keys, and for each the tcp://ip:port of its encode node.

        The first call of a user puts it in line; further ones say how it stands. Once READY it stays so until `end`.
        After MISSED the next call asks anew, perhaps other nodes. It takes microseconds. Without `hastens` it is left
        to `hasten` that things go on: once, by whoever asks for many users.

        Raises:
            ItemsTooLarge: the items take more memory together than the cache. The user is in line no more.
            ValueError: a key or an address is none, or the user has asked for other keys before, and has not ended.
            RuntimeError: after `Client.close`, or in a forked child.
        """
        self._attachment.check_attached()
        with self._lock:
            me = self._users.get(user)
            if me is None:
                me = self._enter(user, User.checked(items))
            elif me.places.keys() != items.keys():
                raise ValueError(f"items: user {user!r} has asked for other keys before; `end` it first")
            elif me.errors:
                return self._told(user, me)
            elif not me.is_asking:
                for key, address in User.checked(items).items():
                    self._wanted_by(me, key, address)
                me.is_asking = True
            if me.is_complete:
                self._admit(me)
            if me.is_admitted:
                return READY
        if hastens:
            self.hasten()
        return NOT_YET

    def hasten(self) -> None:
        """Have what users wait for go on, at once."""
        if not self._attachment.is_closed:
            with contextlib.suppress(RuntimeError):  # another thread closes the client just now
                self._library.wake()

    def has_answer(self, user: Hashable) -> bool:
        """Whether `want` might say more than NOT_YET; without a lock, and without hastening anything."""
        return (me := self._users.get(user)) is None or not me.waits

    def get(self, user: Hashable, key: Key) -> Item:
        """An item of an admitted user, in memory of this process. Views of its rows may outlive the user.

        Raises ValueError: the user has not been READY, has ended, or has not asked for that key.
        """
        self._attachment.check_not_forked()  # a thread that is not in the child may have the lock
        with self._lock:
            me = self._users.get(user)
            place = me.places.get(key) if me is not None and me.is_admitted else None
            if place is None or place.rows is None:
                raise ValueError(f"item {key!r}: user {user!r} does not have it; `want` it until that is READY")
            return place.give()

    def held(self, user: Hashable) -> Mapping[Key, HeldItem]:
        """All items of an admitted user, and where their rows lie for others (of a cache that is `shared`); empty: it
        is not admitted. What this returns stays, though the client leaves. It takes no lock.
        """
        me = self._users.get(user)
        return me.held if me is not None and me.is_admitted else {}

    def admit(self, user: Hashable, items: Mapping[Key, str]) -> bool:
        """Admit a new user now, if all its items are here, or can be read in place. Microseconds; it raises nothing."""
        if self._attachment.is_forked or not items:  # a thread that is not here may have the lock
            return False
        with self._lock:
            is_here = user not in self._users and not self._attachment.is_closed and self._have(items)
            if is_here:
                me = User(is_admitted=True)
                for key in items:
                    place = me.places[key] = self._places[key] = self._places.pop(key)  # as the one that was used last
                    place.users[me] = None
                    if place.held is not None:
                        me.held[key] = place.held
                self._count(me.places.values())
                self._users[user] = me
        return is_here

    def end(self, user: Hashable) -> None:
        """The user needs its items no more: they stay until somebody else needs their memory. Again: no effect."""
        if self._attachment.is_forked:
            return
        with self._lock:
            if user in self._users:
                self._let_go(self._users.pop(user))
        self.hasten()

    def prefetch(self, key: Key, addr: str) -> None:
        """Fetch an item for whoever will want it, once there is memory that no user lacks. Raises as `want`."""
        self._attachment.check_attached()
        raw_key(key)  # whether it is one
        address = numeric(addr)
        with self._lock:
            self._place(key, address).is_prefetched = True
        self._library.wake()

    def forget(self, key: Key) -> None:
        """Have the next user that wants an item get it anew; who has it keeps it until it ends."""
        if self._attachment.is_forked:
            return
        with self._lock:
            place = self._places.pop(key, None)
            if place is None:
                return
            for me in [me for me in place.users if not me.is_admitted]:
                del place.users[me]
                self._wanted_by(me, key, place.address)
            self._give_up_unless_wanted(place)
        self.hasten()

    def counts(self) -> CacheCounts:
        """What it holds, and has done."""
        self._attachment.check_not_forked()
        with self._lock:
            self._collect()
            longest_ns = self._attachment.clock() - min(me.since_ns for me in self._line) if self._line else 0
            return CacheCounts(
                items=sum(place.state == State.READY for place in self._places.values()),
                bytes=self._used_bytes,
                max_bytes=self.max_bytes,
                admitted=len(self._users) - len(self._line),
                waiting=len(self._line),
                longest_wait_s=longest_ns / NS,
                **self.totals,
            )

    # ---- users and places (who has the lock)

    def _enter(self, user: Hashable, items: dict[Key, str]) -> User:
        me = User(self._attachment.clock())
        places = [self._wanted_by(me, key, address) for key, address in items.items()]
        try:
            me.check_fits(self.max_bytes)
        except ItemsTooLarge:
            self._let_go(me)
            raise
        self._users[user] = me
        self._line[me] = None
        self._count(places)
        return me

    def _count(self, places: Iterable[Place]) -> None:
        """Count that another user wants them."""
        for place in places:
            name = place.ask()
            self.totals[name] += 1
            if name != "shared":
                self._metrics.count_for_client(Metric.CACHE_HITS if name == "hits" else Metric.CACHE_MISSES)

    def _place(self, key: Key, address: str) -> Place:
        place = self._places.pop(key, None) or Place(key, address)
        self._places[key] = place  # as the one that was used last
        if place.state == State.ABSENT:
            place.address = address
        return place

    def _wanted_by(self, me: User, key: Key, address: str) -> Place:
        place = me.places[key] = self._place(key, address)
        place.users[me] = None
        return place

    def _told(self, user: Hashable, me: User) -> Wanted:
        errors, me.errors = me.errors, {}
        for error in errors.values():
            if isinstance(error, ItemsTooLarge):
                self._let_go(self._users.pop(user))
                raise error
        return Wanted.missed(errors)

    def _let_go(self, me: User) -> None:
        self._line.pop(me, None)
        for place in me.places.values():
            place.users.pop(me, None)
            self._give_up_unless_wanted(place)

    def _give_up_unless_wanted(self, place: Place) -> None:
        """Let go of a place that nobody wants; what has memory comes to its end first (R71)."""
        if place.users:
            return
        if place.state == State.ASKED and not place.is_prefetched:
            place.attempt += 1
            place.state, place.fetch, fetch = State.ABSENT, None, place.fetch
            if fetch is not None:
                self._given_up.append(fetch)
        if place.state == State.ABSENT:
            if not place.is_prefetched and self._places.get(place.key) is place:
                del self._places[place.key]
        elif self._places.get(place.key) is not place:  # it was forgotten
            self._drop_rows(place)

    def _have(self, wanted: Mapping[Key, str]) -> bool:
        """Whether some items are here."""
        return all((place := self._places.get(key)) is not None and place.state == State.READY for key in wanted)

    def _admit(self, me: User) -> None:
        """Admit a user that has all of its items, wherever it stands in line."""
        me.held = {key: place.held for key, place in me.places.items() if place.held is not None}
        me.is_admitted = True
        del self._line[me]

    def _first(self) -> User | None:
        """The first in line that lacks memory: nobody behind it gets any (R66)."""
        return next((me for me in self._line if me.waits and me.lacks_memory), None)

    # ---- memory

    def _may_take(self, place: Place, attempt: int, size: int) -> bool:
        """Take memory for what a fetch will bring, if it is its turn; evict for it what may go (any thread)."""
        with self._lock:
            if place.attempt != attempt or place.state != State.ASKED:  # it is given up
                return False
            place.size = size = self._taken(size)
            self._refuse_too_large(place)
            if place.attempt != attempt:
                self._library.wake()
                return False
            first, place.is_held_back = self._first(), True
            if (first is not None and first not in place.users) or not self._make_room(size, first):
                return False
            place.is_held_back = False
            place.state = State.TAKEN
            self._used_bytes += size
            return True

    def _refuse_too_large(self, place: Place) -> None:
        for me in [me for me in place.users if me.waits]:
            try:
                me.check_fits(self.max_bytes)
            except ItemsTooLarge as error:
                me.fail(error)
                del place.users[me]
        if not any(me.waits for me in place.users):
            place.is_prefetched &= place.size <= self.max_bytes
            self._give_up_unless_wanted(place)

    def _make_room(self, size: int, first: User | None) -> bool:
        self._collect()
        if self._used_bytes + size > self.max_bytes:
            victims, needed = [], self._used_bytes + size - self.max_bytes
            for place in self._places.values():
                if needed > 0 and self._may_evict(place, first):
                    victims.append(place)
                    needed -= place.size
            if needed > 0:
                return False  # nothing goes in vain, unless somebody looks at it still
            for victim in victims:
                self._evict(victim)
            self._collect()
        return self._used_bytes + size <= self.max_bytes

    def _may_evict(self, place: Place, first: User | None) -> bool:
        """Not what an admitted user has (R69), nor what the first in line wants; of the others' it may take (R65)."""
        if place.state != State.READY or place.is_pinned:
            return False
        return first not in place.users if first is not None else not place.users

    def _evict(self, place: Place) -> None:
        self._drop_rows(place)
        place.state, place.is_prefetched = State.ABSENT, False
        self.totals["evictions"] += 1
        self._metrics.count_for_client(Metric.CACHE_EVICTIONS)
        if not place.users:
            del self._places[place.key]

    def _drop_rows(self, place: Place) -> None:
        """Let go of rows; their memory counts until nobody looks at it."""
        place.rows = place.held = None

    def _collect(self) -> None:
        """Count what nobody looks at any more."""
        while self._freed:
            self._used_bytes -= self._freed.popleft()

    # ---- fetches: the library thread, but for `_has_ended`

    def _turn(self) -> bool:
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        for it in ended:
            self._take(*it)
        with self._lock:
            self._collect()
            complete = [me for me in self._line if me.is_complete]
            for me in complete:
                self._admit(me)
            asked = self._to_ask_for()
        while self._given_up:
            self._given_up.popleft().abort()
        for place in asked:
            self._ask(place)
        if ended or complete:
            self._attachment.user_bell.ring()
        if self._ended or (ended and not asked):  # what has ended at once, or who is behind it in line
            self._library.wake()
        return False

    def _to_ask_for(self) -> list[Place]:
        """The items of the first in line that lacks memory; while nobody does, those that were named ahead."""
        now_ns, first = self._attachment.clock(), self._first()
        places = first.places.values() if first is not None else self._places.values()
        due = [it for it in places if it.state == State.ABSENT and now_ns >= it.again_ns]
        asked = [it for it in due if first is not None or it.is_prefetched]
        for place in asked:
            place.attempt += 1
            place.state, place.is_held_back = State.ASKED, False
        return asked

    def _ask(self, place: Place) -> None:
        attempt = place.attempt
        try:
            may_take, take = partial(self._may_take, place, attempt), self._take_bytes
            fetch = self._fetching.fetch(place.key, place.address, wait_s=self._wait_s, admit=may_take, take=take)
        except (EmbridgeError, RuntimeError) as error:
            with self._lock:
                self._failed(place, FetchFailed(place.key, str(error)))
            return
        with self._lock:
            if place.attempt == attempt:
                place.fetch = fetch
            else:  # meanwhile nobody wants it any more
                self._given_up.append(fetch)
        fetch.add_done_callback(partial(self._has_ended, place, attempt))

    def _has_ended(self, place: Place, attempt: int, fetch: Fetch) -> None:
        """Note the end of a fetch (any thread)."""
        self._ended.append((place, attempt, fetch))
        self._library.wake()

    def _take(self, place: Place, attempt: int, fetch: Fetch) -> None:
        """Take what a fetch has brought: copy it, without the lock, if it was read where it lies."""
        error, rows = fetch.exception(), None
        if error is None:
            try:
                with fetch.result() as item:
                    rows = item.copied(self._take_bytes)
            except MemoryError:
                error = FetchFailed(place.key, f"this process has no memory for its {place.size} bytes")
        with self._lock:
            if place.attempt != attempt:
                return
            place.fetch = None
            if rows is None:
                assert error is not None
                self._failed(place, error)
                return
            assert place.state == State.TAKEN
            place.busy_since_ns = 0
            weakref.finalize(rows.bytes, self._freed.append, place.size).atexit = False
            place.fill(rows, self.memory)
            self._give_up_unless_wanted(place)

    def _failed(self, place: Place, error: FetchError) -> None:
        """Tell all who wait for it, once, but for what passes by itself (R68)."""
        if place.state == State.TAKEN:
            self._used_bytes -= place.size
        place.state, place.fetch = State.ABSENT, None
        if isinstance(error, FetchTimeout) and place.is_held_back:
            return  # it had no memory here
        now_ns = self._attachment.clock()
        place.busy_since_ns = place.busy_since_ns or now_ns
        if isinstance(error, Busy) and now_ns - place.busy_since_ns < self._attachment.request_timeout_s * NS:
            place.again_ns = now_ns + BUSY_PAUSE_NS
            return
        place.busy_since_ns, place.is_prefetched = 0, False
        for me in place.users:
            me.fail(error)
        self._give_up_unless_wanted(place)

    def _close(self) -> None:
        """The client leaves; views keep what they look at."""
        with self._lock:
            self._users.clear()
            self._line.clear()
            self._places.clear()
