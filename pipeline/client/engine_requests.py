"""Which requests of an engine may be scheduled, as far as their items go: an engine that may make items by itself, too.

`RequestItems` says of a set of items whether a request has it. This says what an engine asks in each of its steps:
whether a request may go on. It may, when it has all that it needs for the tokens that are not computed; an item that
cannot be had, and that the engine makes itself, is needed no more. Else the request is over, which is told once.

Who has an item is told from outside. Where it is not, it is had from its own encode node, or from where another request
has it; and if nobody has it, the engine makes it, as it would without embridge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from embridge.allocator.errors import FetchError
from embridge.pipeline.client.cached_items import Key, WantStatus
from embridge.pipeline.client.fetch import Item
from embridge.pipeline.client.request_items import RequestItems

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client

log = logging.getLogger(__name__)

COUNTS: Final = {
    "loads": "Items that were loaded instead of being encoded.",
    "load_bytes": "Bytes of those.",
    "missed": "Items that could not be fetched.",
    "refused": "Items that were refused: an address that is not allowed, or rows that do not fit the model.",
    "unavailable": "Requests that were ended because an item of theirs could not be had.",
    "hits": "Items that were in host memory when a request first asked for them.",
    "shared": "Items that were on their way then, for another request.",
    "misses": "Items that had to be fetched.",
    "evictions": "Items that made room for others in host memory.",
}
"""What `EngineRequests.take_counts` counts, and what that is."""


class Need(msgspec.Struct):
    """An item that a request needs."""

    key: Key
    rows: int
    """How many it must have."""
    address: str = ""
    """Of the encode node that has it, as was told from outside; empty: nothing was told."""
    media: Any = None
    """Of which the engine could make it, for `may_make`."""


ADDRESS: Final = "address"
"""In what is told of an item from outside: the address of the encode node that has it."""


def told_address(params: object, name: str) -> str:
    """The address of an item in {its name: {"address": …}}; empty: there is none. `params` come from clients of the
    engine, and may be anything.
    """
    entry = params.get(name) if isinstance(params, dict) else None
    address = entry.get(ADDRESS) if isinstance(entry, dict) else None
    return address if isinstance(address, str) else ""


class OwnShelf(Protocol):
    """What an engine has published on its own encode node."""

    def address(self) -> str:
        """Of the node; empty: it is gone."""

    def address_of(self, key: Key) -> str:
        """The same, if an item is published there; empty: it is not. Microseconds; it raises nothing."""


def _never(need: Need) -> bool:
    return False


class EngineRequests(RequestItems):
    """Of one engine. One thread at a time calls it; no method waits or does I/O, and a node's death raises nothing."""

    def __init__(
        self,
        find_client: Callable[[], Client | None],
        max_bytes: int,
        *,
        width: int,
        dtype: str,
        wait_s: float = 0.0,
        encoders: Sequence[str] = (),
        own: OwnShelf | None = None,
        may_make: Callable[[Need], bool] = _never,
    ) -> None:
        """Rows must be a multiple of `width` values wide, for a model may want several embeddings of a token, and of
        `dtype`, as torch names it. `own` is the engine's own shelf, if it has one; `may_make` says whether the engine
        may make an item that cannot be had. The rest is as for `RequestItems`, and so is what it raises.
        """
        own_address = own.address if own is not None else str
        super().__init__(find_client, max_bytes, wait_s=wait_s, encoders=encoders, own_address=own_address)
        self._width, self._dtype = width, dtype
        self._own, self._may_make = own, may_make
        self._admitted: dict[Hashable, tuple[int, Hashable]] = {}  # with so many tokens computed, and how it was then
        self._made: dict[Hashable, set[Key]] = {}  # what the engine makes for them
        self._unavailable: dict[Hashable, None] = {}

    def admit(self, request: Hashable, needs: Iterable[Need], computed: int = 0, state: Hashable = None) -> bool:
        """Whether a request may go on, with `computed` tokens computed, whose others need these items: it has those
        that the engine does not make. What it has stays until `end`. Microseconds.

        False: it is asked again in the next step, unless `take_unavailable` names it. After True `needs` are not looked
        at any more, unless less is computed, or `state` is another, which stands for all else that changes them.
        """
        known = self._admitted.get(request)
        if known is not None and computed >= known[0] and known[1] == state:
            return True
        if request in self._unavailable:
            return False
        made, asked, needed = self._made.get(request, ()), dict[Key, str](), dict[Key, Need]()
        for need in needs:
            if (address := need.address or self._had_from(need)) and need.key not in needed and need.key not in made:
                asked[need.key], needed[need.key] = address, need
        while asked:
            answer = self.ask(request, asked, partial(self._why_wrong, needed))
            if answer.status == WantStatus.NOT_YET:
                return False
            if answer.status == WantStatus.READY:
                break
            if not self._goes_on_without(request, answer.errors, needed):
                return False
            asked = {key: address for key, address in asked.items() if key not in answer.errors}
        self._admitted[request] = computed, state
        return True

    def take_unavailable(self) -> set[Any]:
        """Requests that are over, for an item of theirs cannot be had and is not made here; each is named once."""
        taken, self._unavailable = set(self._unavailable), {}
        return taken

    def end(self, request: Hashable) -> None:
        """As `RequestItems.end`."""
        for known in (self._admitted, self._made, self._unavailable):
            known.pop(request, None)
        super().end(request)

    def _had_from(self, need: Need) -> str:
        """Who has an item of which nothing was told: the engine's own node, or whoever another request has it from."""
        held = self.find(need.key)
        if held is not None and not self._why_wrong({need.key: need}, need.key, held.item):
            return held.address
        return self._own.address_of(need.key) if self._own is not None else ""

    def _why_wrong(self, needed: Mapping[Key, Need], key: Key, item: Item) -> str:
        (rows, width), needed_rows = item.shape, needed[key].rows
        if rows == needed_rows and width % self._width == 0 and item.dtype == self._dtype:
            return ""
        fits = f"{needed_rows} rows of a multiple of {self._width} {self._dtype} are needed"
        return f"it has {rows} rows of {width} {item.dtype}, and {fits}"

    def _goes_on_without(
        self, request: Hashable, why: Mapping[Key, FetchError], needed: Mapping[Key, Need]
    ) -> bool:
        """Have the engine make what cannot be had, if it may; else the request is over. What was only tried, for
        nobody has told of it, it makes in any case.
        """
        lost = next((key for key in why if needed[key].address and not self._may_make(needed[key])), None)
        if lost is not None:
            log.warning("request %s: item %.80r cannot be had: %s", request, lost, why[lost].reason)
            self._unavailable[request] = None
            self._counts["unavailable"] += 1
            return False
        self._made.setdefault(request, set()).update(why)
        return True
