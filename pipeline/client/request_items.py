"""What the requests of an engine have of an item cache: which may be scheduled, and what stays for whom.

The engine asks for a request in each of its steps (`ask`), tells its workers where the items lie that a step loads
(`find`, `add`, `tell`), and says when they have read them (`has_read`). What a request has been given stays until it
ends, though it is preempted, or needs more later (R69); what a step loads, until its workers have read it, whatever
becomes of the request meanwhile (R70). All that outlives the engine's node: when that has come back, further items come
into a new cache.

Requests that need more wait, and hold what they have. Where only such are left nobody would ever end and give memory
back, so they let it go, and stand in line with all that they want, as others do (R65).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from embridge.allocator.errors import EmbridgeError, FetchError, FetchFailed
from embridge.allocator.rows_at import RowsAt
from embridge.pipeline.client.allowed_nodes import AllowedNodes
from embridge.pipeline.client.cached_items import NOT_YET, READY, HeldItem, Key, LentRows, Wanted, WantStatus
from embridge.pipeline.client.fetch import Item
from embridge.pipeline.client.renewed_cache import RenewedCache

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client
    from embridge.pipeline.client.item_cache import ItemCache

GONE: Final = "the node of this engine is gone"


def _fits(key: Key, item: Item) -> str:
    return ""


class StepLoads(NamedTuple):
    """What a scheduler tells the workers of one step."""

    step: int
    """Its number; they count upwards."""
    rows: dict[str, RowsAt]
    """Where they read, by name (`CacheReader.load`)."""
    is_owed: bool
    """Whether they are to say when they are past it (`RequestItems.has_read`): something is kept for them, of this step
    or of one before, of which nothing has been heard yet."""


NO_LOADS: Final = StepLoads(0, {}, is_owed=False)
"""What the workers of an engine without a cache are told."""


class _Request(msgspec.Struct, eq=False):
    """What one request has, and waits for."""

    held: dict[Key, HeldItem] = {}
    users: list[Hashable] = []  # of the cache, for what it holds
    wanted: Mapping[Key, str] | None = None  # what it waits for; None: it waits for nothing
    asked: Mapping[Key, str] | None = None  # what the cache was asked for; None: nothing yet
    user: Hashable = None  # of the cache, for that
    missed: Wanted | None = None  # of which it was not told yet
    number: int = 0

    def lacks(self, cache: ItemCache) -> Mapping[Key, str]:
        """What it wants, but for what it has of another cache."""
        assert self.wanted is not None
        held = self.held
        if not held:
            return self.wanted
        return {key: at for key, at in self.wanted.items() if key not in held or held[key].memory is cache.memory}

    def new_user(self, request: Hashable) -> Hashable:
        """A user of the cache, for what is asked next."""
        self.user, self.number = (request, self.number), self.number + 1
        return self.user


class RequestItems:
    """Of one engine. One thread at a time calls it; no method waits or does I/O, and a node's death raises nothing."""

    def __init__(
        self,
        find_client: Callable[[], Client | None],
        max_bytes: int,
        *,
        wait_s: float = 0.0,
        encoders: Sequence[str] = (),
        own_address: Callable[[], str] = str,
    ) -> None:
        """`find_client` gives the client of the language node, None while that is gone. `max_bytes`, `wait_s` are the
        cache's, which is shared with other processes. Items are fetched from `encoders` (tcp://ip:port, or tcp://ip:*
        for all of a host), from the engine's own encode node, if `own_address` names one; where nothing is listed, from
        those of which discovery has told.

        Raises:
            ValueError: a number is out of range, an address is none, or nothing says from where items may come.
            SegmentError: memory that is shared cannot be had.
            NodeGoneError: the node is gone.
        """
        self._own_address = own_address
        self._max_bytes, self._wait_s = max_bytes, wait_s
        self._allowed = AllowedNodes(encoders)
        self._counted: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._requests: dict[Hashable, _Request] = {}
        self._held: dict[Key, dict[Hashable, HeldItem]] = {}
        self._step = 0
        self._to_load: dict[str, HeldItem] = {}  # of the step that is being made up
        self._loads: dict[int, list[LentRows]] = {}  # what workers have yet to read, by step
        self._new: dict[Hashable, _Request] = {}  # of which the cache has yet to hear
        self._is_waiting = False
        if not encoders and not own_address() and (client := find_client()) is not None:
            client.encode_nodes()
        self._caches = RenewedCache(find_client, self._make)

    # ---- requests

    def ask(self, request: Hashable, items: Mapping[Key, str], fits: Callable[[Key, Item], str] = _fits) -> Wanted:
        """Whether a request has all of some items: their keys, and for each the address of its encode node.

        It may ask for others, or for more, at any time. `fits` says why an item that has come cannot be used, an empty
        text if it can. READY stays so until `end`. MISSED tells once why, for each item that cannot be had: not
        fetched, or from an address that is not allowed, or one that does not fit. It takes microseconds: what waits
        begins, and goes on, with `hasten`.
        """
        it = self._requests.get(request)
        if it is None:
            it = self._requests[request] = _Request()
        elif items.keys() <= it.held.keys():
            return READY
        cache = self._caches.find()
        if cache is None:
            self._withdraw(it)
            return self._missed({key: GONE for key in items if key not in it.held})
        if it.wanted is None or it.wanted.keys() != items.keys():
            if it.wanted is not None:
                self._withdraw(it)
            it.wanted = items
            if not self._has_at_once(request, it, cache):
                self._new[request] = it
                return NOT_YET
        if it.missed is not None:
            missed = it.missed
            self._withdraw(it)
            return missed
        if it.asked is None:
            return NOT_YET
        if found := cache.held(it.user):
            return self._admit(request, it, cache, found, fits)
        if cache.has_answer(it.user):
            self._look(it, cache)
            return self.ask(request, items, fits)
        self._is_waiting = True
        if it.held and not any(other.held and other.wanted is None for other in self._requests.values()):
            self._let_go(request, it)
            if it.asked.keys() != items.keys():
                self._withdraw(it)
        return NOT_YET

    def _has_at_once(self, request: Hashable, it: _Request, cache: ItemCache) -> bool:
        """Whether the cache has all that it lacks, and has admitted a user of its."""
        asked = it.lacks(cache)
        if self._refused(it, asked) or not cache.admit(it.new_user(request), asked):
            return False
        it.asked = asked
        return True

    def _begin(self, request: Hashable, it: _Request, cache: ItemCache) -> None:
        """Have the cache fetch what it lacks."""
        asked = it.lacks(cache)
        if refused := self._refused(it, asked):
            it.missed = self._missed(refused, "refused")
            return
        it.asked = asked
        it.new_user(request)
        self._look(it, cache)

    def _refused(self, it: _Request, asked: Mapping[Key, str]) -> dict[Key, str]:
        """Why, for each item whose address is not allowed."""
        refused, own, client = {}, self._own_address(), self._caches.client
        for key, at in asked.items():
            if (not own or at != own) and key not in it.held and (why := self._allowed.why_not(at, client)):
                refused[key] = why
        return refused

    def _look(self, it: _Request, cache: ItemCache) -> None:
        """Ask the cache how it stands; for what it does not know of, as one whose node has come back, anew."""
        assert it.asked is not None
        try:
            answer = cache.want(it.user, it.asked, hastens=False)  # type: ignore[arg-type]  # one kind of key, or both
        except (EmbridgeError, RuntimeError, ValueError) as error:
            it.missed = self._missed(dict.fromkeys(it.asked, str(error)))
            return
        if answer.status == WantStatus.MISSED:
            it.missed = self._missed({key: error.reason for key, error in answer.errors.items()})

    def _admit(
        self,
        request: Hashable,
        it: _Request,
        cache: ItemCache,
        found: Mapping[Key, HeldItem],
        fits: Callable[[Key, Item], str],
    ) -> Wanted:
        wrong: dict[Key, str] = {}
        for key, held in found.items():
            if fits is not _fits and (why := fits(key, Item(key, held.lent.rows))):  # which nobody keeps
                wrong[key] = why
        if wrong:
            self._withdraw(it)
            for key in wrong:
                cache.forget(key)  # another node may have one that fits
            return self._missed(wrong, "refused")
        if it.users and it.held.keys() <= found.keys():
            self._let_go(request, it)
        it.users.append(it.user)
        it.wanted = it.asked = None
        for key, held in found.items():
            it.held[key] = held
            self._held.setdefault(key, {})[request] = held
        return READY

    def _missed(self, why: Mapping[Key, str], counted: str = "missed") -> Wanted:
        errors: dict[Key, FetchError] = {key: FetchFailed(key, text) for key, text in why.items()}
        self._counts[counted] += len(errors)
        return Wanted.missed(errors)

    def find(self, key: Key, request: Hashable = None) -> HeldItem | None:
        """An item that this request has been given, or any."""
        holders = self._held.get(key)
        if holders is None:
            return None
        return holders.get(request) if request is not None else next(iter(holders.values()))

    def end(self, request: Hashable) -> None:
        """The request has ended, in whatever way. Again, or of one that has asked for nothing: no effect."""
        it = self._requests.pop(request, None)
        if it is not None:
            self._new.pop(request, None)
            self._withdraw(it)
            self._let_go(request, it)

    def _withdraw(self, it: _Request) -> None:
        """It waits for nothing any more."""
        if it.asked is not None and self._caches.last is not None:
            self._caches.last.end(it.user)
        it.wanted = it.asked = it.missed = None

    def _let_go(self, request: Hashable, it: _Request) -> None:
        """Of what it holds."""
        for user in it.users:
            if self._caches.last is not None:
                self._caches.last.end(user)
        for key in it.held:
            holders = self._held[key]
            del holders[request]
            if not holders:
                del self._held[key]
        it.users, it.held = [], {}

    # ---- steps

    def add(self, name: str, held: HeldItem) -> None:
        """Have the step that is being made up load an item, under a name."""
        self._to_load[name] = held

    def tell(self) -> StepLoads:
        """What the workers of the step that was made up are told, whether they load anything or not. There it stays
        until `has_read`. The next step begins; and what requests wait for goes on (`hasten`).
        """
        self.hasten()
        self._step += 1
        lent, self._to_load = {name: held.lent for name, held in self._to_load.items()}, {}
        if lent:
            self._loads[self._step] = list(lent.values())
        return StepLoads(self._step, {name: it.at for name, it in lent.items()}, bool(self._loads))

    def has_read(self, step: int) -> None:
        """All workers are past the loads of this step, and of those before."""
        for done in [it for it in self._loads if it <= step]:
            lent = self._loads.pop(done)
            self._counts.update(loads=len(lent), load_bytes=sum(it.nbytes for it in lent))

    def hasten(self) -> None:
        """Have the cache fetch what requests lack that were told to wait since the last call: once a step, for all."""
        new, self._new = self._new, {}
        cache = self._caches.find() if new or self._is_waiting else None
        if cache is not None:
            for request, it in new.items():
                if it.wanted is not None and it.asked is None and it.missed is None:
                    self._begin(request, it, cache)
            cache.hasten()
        elif new:
            for it in new.values():
                self._withdraw(it)  # it is told when it asks again
        self._is_waiting = False

    def take_counts(self) -> Counter[str]:
        """What was counted since the last call: hits, shared, misses, evictions, as `CacheCounts` has them; missed,
        items that could not be fetched; refused, those whose address is not allowed, or that came and do not fit;
        loads, those that workers have read, and load_bytes, theirs.
        """
        taken, self._counts = self._counts, Counter()
        if self._caches.last is not None:
            now = Counter(self._caches.last.totals)
            taken.update(now - self._counted)
            self._counted = now
        return taken

    # ---- the node

    def _make(self, client: Client) -> ItemCache:
        cache = client.item_cache(self._max_bytes, wait_s=self._wait_s, shared=True, in_place=True)
        self._counted = Counter()
        return cache
