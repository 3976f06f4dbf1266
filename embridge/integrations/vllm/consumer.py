"""Which items a consumer's requests have: the scheduler's side, in the process that has the item cache.

A request that vLLM is about to schedule wants its items beyond what is computed, all at once. They are available when
all lie in this host's memory, and stay until the request ends, preempted or not (R65, R69). What a step loads is kept
until its workers say that they have read it, whatever becomes of the request meanwhile (R70).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver

from embridge import Client, ConfigError, EmbridgeError, Item, ItemCache, WantStatus
from embridge.integrations.membership import Membership
from embridge.integrations.options import why_refused
from embridge.integrations.vllm.producer import GONE, Producer
from embridge.integrations.vllm.settings import Settings
from embridge.pipeline.client.cache_memory import CacheMemory, RowsAt
from embridge.pipeline.client.client import library_of

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.request import Request

log = logging.getLogger(__name__)

ADDRESS: Final = "address"
"""In the entry of an item in `ec_transfer_params`: where it is published."""


class Held(NamedTuple):
    """An item that stays, and where its rows lie for the workers."""

    item: Item
    at: RowsAt
    memory: CacheMemory


class Wish:
    """What one request wants."""

    def __init__(self, request_id: str) -> None:
        self.user = (request_id, 0)
        self.wanted: dict[str, str] = {}  # the address of each item, by its identifier
        self.asked: dict[str, str] | None = None  # the same by its key, once no address is refused
        self.computed = self.num_features = 0  # of the request, when that was made out
        self.held: dict[str, Held] | None = None  # once it is admitted
        self.without: set[str] = set()  # items that are encoded here instead


class Consumer:
    """Scheduler's thread only."""

    def __init__(self, settings: Settings, member: Membership, model: ModelConfig, own: Producer | None) -> None:
        """`own`: what the engine itself has published.

        Raises ConfigError: nothing says from where items may come.
        """
        self._settings, self._member, self._own = settings, member, own
        self._dtype, self._hidden = str(model.dtype).removeprefix("torch."), model.get_inputs_embeds_size()
        self._fields = PlaceholderMetadataResolver(model).fields_for
        self._client: Client | None = None
        self._cache: ItemCache | None = None
        self._counted: Counter[str] = Counter()
        self._wishes: dict[str, Wish] = {}
        self._held: dict[str, dict[tuple[str, int], Held]] = {}
        self._unavailable: set[str] = set()
        self._is_waiting = False
        self.counts: Counter[str] = Counter()
        if not settings.encoders and own is None:
            try:
                self._find_cache()
                assert self._client is not None
                self._client.encode_nodes()
            except ValueError:
                raise ConfigError(
                    "ec_connector_extra_config: encoders: name the encode nodes from which items may be fetched, as "
                    "tcp://ip:port; or give the node discovery"
                ) from None

    # ---- what vLLM asks

    def is_available(self, request: Request, computed: int) -> bool:
        """Whether all items of a request beyond `computed` tokens are here, or are to be encoded here."""
        wish = self._wishes.get(request.request_id)
        if wish is not None and wish.held is not None:
            if computed >= wish.computed and len(request.mm_features) == wish.num_features:
                return True
        elif request.request_id in self._unavailable:
            return False
        needed = self._needed(request, computed, wish)
        if not needed:
            return True
        if wish is None:
            wish = self._wishes[request.request_id] = Wish(request.request_id)
        if not needed.keys() <= wish.wanted.keys():
            self._let_go(wish)
            wish.wanted, wish.computed, wish.num_features = needed, computed, len(request.mm_features)
        return wish.held is not None or self._look(request, wish)

    def find(self, identifier: str) -> Held | None:
        """An item that some admitted request has."""
        return next(iter(self._held.get(identifier, {}).values()), None)

    def end(self, request: Request) -> None:
        """The request has ended, in whatever way."""
        wish = self._wishes.pop(request.request_id, None)
        self._unavailable.discard(request.request_id)
        if wish is not None:
            self._let_go(wish)

    def end_step(self) -> None:
        """Have the cache go on, once a step, if some request waits for it."""
        if self._is_waiting and self._client is not None:
            library_of(self._client).wake()
        self._is_waiting = False

    def take_unavailable(self) -> set[str]:
        """Requests of which an item cannot be had, each once."""
        taken, self._unavailable = self._unavailable, set()
        return taken

    def take_counts(self) -> Counter[str]:
        """What was counted since the last call."""
        if self._cache is not None and self.counts:
            found = self._cache.counts()
            now = Counter({name: getattr(found, name) for name in ("hits", "shared", "misses", "evictions")})
            self.counts += now - self._counted
            self._counted = now
        taken, self.counts = self.counts, Counter()
        del taken["looks"]
        return taken

    # ---- one request

    def _needed(self, request: Request, computed: int, wish: Wish | None) -> dict[str, str]:
        told, needed = request.ec_transfer_params, {}
        for feature in request.mm_features:
            place, name = feature.mm_position, feature.identifier
            if place.offset + place.length <= computed or (wish is not None and name in wish.without):
                continue
            if address := _told(told, name):
                needed[name] = address
            elif self._own is not None and self._own.has(name):
                needed[name] = self._own.address
        return needed

    def _look(self, request: Request, wish: Wish) -> bool:
        cache = self._find_cache()
        if cache is not None and wish.asked is not None and not cache.has_answer(wish.user):
            self._is_waiting = True
            return False
        self.counts["looks"] += 1
        if cache is None:
            return self._missed(request, wish, dict.fromkeys(wish.wanted, GONE))
        if wish.asked is None:
            if refused := {name: why for name in wish.wanted if (why := self._why_refused(wish.wanted[name]))}:
                self.counts["refused"] += len(refused)
                return self._missed(request, wish, refused)
            wish.asked = {self._settings.key(name): address for name, address in wish.wanted.items()}
        try:
            answer = cache.want(wish.user, wish.asked)
        except (EmbridgeError, ValueError, RuntimeError) as error:
            return self._missed(request, wish, dict.fromkeys(wish.wanted, str(error)))
        if answer.status == WantStatus.MISSED:
            key = self._settings.key
            why_not = {name: str(answer.errors[key(name)]) for name in wish.wanted if key(name) in answer.errors}
            return self._missed(request, wish, why_not)
        return answer.is_ready and self._admit(request, wish, cache)

    def _why_refused(self, address: str) -> str:
        if self._own is not None and address == self._own.address:
            return ""
        return why_refused(address, self._settings.encoders, self._client)

    def _admit(self, request: Request, wish: Wish, cache: ItemCache) -> bool:
        """Take the items of a request that has all of them; False: one does not fit the model."""
        memory, held, wrong = cache.memory, {}, {}
        assert memory is not None
        for feature in request.mm_features:
            if (name := feature.identifier) not in wish.wanted or name in held:
                continue
            item = cache.get(wish.user, self._settings.key(name))
            wide, rows = item.shape[1] % self._hidden, feature.mm_position.get_num_embeds()
            if item.dtype != self._dtype or wide or item.shape[0] != rows:
                fits = f"{rows} rows of a multiple of {self._hidden} {self._dtype} are needed"
                wrong[name] = f"it has {item.shape[0]} rows of {item.shape[1]} {item.dtype}, and {fits}"
            held[name] = Held(item, memory.where(item.copied().bytes, item.shape, item.dtype), memory)
        if wrong:
            self.counts["refused"] += len(wrong)
            return self._missed(request, wish, wrong)
        wish.held = held
        for name, it in held.items():
            self._held.setdefault(name, {})[wish.user] = it
        return True

    def _missed(self, request: Request, wish: Wish, why: Mapping[str, str]) -> bool:
        """Go on without items, where they may be encoded here; else the request is over."""
        self.counts["missed"] += len(why)
        if lost := [name for name in why if not self._may_encode(request, name)]:
            log.warning("request %s: item %.80r cannot be had: %s", request.request_id, lost[0], why[lost[0]])
            self.counts["unavailable"] += 1
            self._unavailable.add(request.request_id)
            return False
        self._let_go(wish)
        wish.without |= why.keys()
        wish.wanted = {name: address for name, address in wish.wanted.items() if name not in why}
        return not wish.wanted or self._look(request, wish)

    def _may_encode(self, request: Request, name: str) -> bool:
        if not _told(request.ec_transfer_params, name):  # it was only tried
            return True
        [feature, *_] = [it for it in request.mm_features if it.identifier == name]
        if self._settings.on_missing == "error" or feature.data is None:
            return False
        told_ahead = self._fields(feature.modality)
        return any(it.data is not None for field, it in feature.data.items() if field not in told_ahead)

    def _let_go(self, wish: Wish) -> None:
        if self._cache is not None:
            self._cache.end(wish.user)
        for name in wish.held or ():
            holders = self._held[name]
            del holders[wish.user]
            if not holders:
                del self._held[name]
        wish.held, wish.asked, wish.user = None, None, (wish.user[0], wish.user[1] + 1)

    def _find_cache(self) -> ItemCache | None:
        """The cache; a new one where the node has come back; None while it is gone."""
        client = self._member.look()
        if client is not None and client is not self._client:
            self._client, self._counted = client, Counter()
            self._cache = client.item_cache(self._settings.cache_bytes, wait_s=self._settings.wait_s, shared=True)
        return self._cache if client is not None else None


def _told(params: Any, name: str) -> str:
    """The address of an item in `ec_transfer_params`, which come from clients of the engine; empty: there is none."""
    entry = params.get(name) if isinstance(params, dict) else None
    address = entry.get(ADDRESS) if isinstance(entry, dict) else None
    return address if isinstance(address, str) else ""
