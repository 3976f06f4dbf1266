"""Which items a consumer's requests have: the scheduler's side, in the process that has the item cache.

A request that vLLM is about to schedule wants its items beyond what is computed, all at once. `RequestItems` has the
rest: what stays for how long, and what becomes of it when a node dies.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from vllm.distributed.ec_transfer.ec_connector.utils import PlaceholderMetadataResolver

from embridge import ConfigError, HeldItem, Item, RequestItems, WantStatus
from embridge.allocator.errors import FetchError
from embridge.integrations.engine_settings import EngineSettings
from embridge.integrations.engine_shelf import EngineShelf
from embridge.integrations.membership import Membership

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.request import Request

log = logging.getLogger(__name__)

ADDRESS: Final = "address"
"""In the entry of an item in `ec_transfer_params`: where it is published."""


class Settings(EngineSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `ec_connector_extra_config` may say."""

    on_missing: Literal["error", "encode"] = "error"
    """What becomes of a request whose item cannot be had: "error", or "encode" where it brought the media."""


class Consumer:
    """Scheduler's thread only."""

    def __init__(
        self, settings: Settings, member: Membership, model: ModelConfig, own: EngineShelf | None, counts: Counter[str]
    ) -> None:
        """`own`: what the engine itself has published. `counts` are added to.

        Raises ConfigError: nothing says from where items may come. SegmentError: there is no memory for them.
        """
        self._settings, self._own, self._counts = settings, own, counts
        self._dtype, self._hidden = str(model.dtype).removeprefix("torch."), model.get_inputs_embeds_size()
        self._fields = PlaceholderMetadataResolver(model).fields_for
        self._available: dict[str, tuple[int, int, int]] = {}  # since so many tokens, of so many features, preemptions
        self._without: dict[str, set[str]] = {}  # keys of items that are encoded here instead, by request
        self._unavailable: dict[str, None] = {}
        try:
            self.items = RequestItems(
                member.look,
                settings.cache_bytes,
                wait_s=settings.wait_s,
                encoders=settings.encoders,
                own_address=own.address if own is not None else str,
            )
        except ValueError as error:
            raise ConfigError(
                "ec_connector_extra_config: encoders: name the encode nodes from which items may be fetched, as "
                f"tcp://ip:port; or give the node discovery ({error})"
            ) from None

    def find(self, request_id: str, identifier: str) -> HeldItem | None:
        """An item that a request has."""
        return self.items.find(self._settings.key(identifier), request_id)

    def load(self, request_id: str, identifier: str) -> None:
        """Have the next step load an item, if the request has it."""
        if (held := self.find(request_id, identifier)) is not None:
            self.items.add(identifier, held)

    def is_available(self, request: Request, computed: int) -> bool:
        """Whether all items of a request beyond `computed` tokens are here, or are to be encoded here."""
        name, now = request.request_id, (len(request.mm_features), request.num_preemptions)
        known = self._available.get(name)
        if known is not None and computed >= known[0] and known[1:] == now:
            return True
        if name in self._unavailable:
            return False
        features = self._wanted(request, computed)
        while wanted := {key: it for key, it in features.items() if key not in self._without.get(name, ())}:
            addresses = {key: address for key, (_, address) in wanted.items()}
            answer = self.items.ask(name, addresses, lambda key, item: self._why_wrong(features[key][0], item))
            if answer.status == WantStatus.NOT_YET:
                return False
            if answer.is_ready:
                break
            if not self._goes_on_without(request, answer.errors, features):
                return False
        self._available[name] = computed, *now
        return True

    def end(self, request: Request) -> None:
        """The request has ended, in whatever way."""
        for known in (self._available, self._without, self._unavailable):
            known.pop(request.request_id, None)
        self.items.end(request.request_id)

    def take_unavailable(self) -> set[str]:
        """Requests of which an item cannot be had, each once."""
        taken, self._unavailable = set(self._unavailable), {}
        return taken

    def _wanted(self, request: Request, computed: int) -> dict[Any, tuple[MultiModalFeatureSpec, str]]:
        """By its key, each item that may be had from somewhere, and from where."""
        found: dict[Any, tuple[MultiModalFeatureSpec, str]] = {}
        for it in request.mm_features:
            if it.mm_position.offset + it.mm_position.length <= computed:
                continue
            key, address = self._settings.key(it.identifier), _told(request.ec_transfer_params, it.identifier)
            if not address and (held := self.items.find(key)) is not None and not self._why_wrong(it, held.item):
                address = held.address
            if not address and self._own is not None and self._own.has(key):
                address = self._own.address()
            if address:
                found.setdefault(key, (it, address))
        return found

    def _why_wrong(self, feature: MultiModalFeatureSpec, item: Item) -> str:
        (rows, width), needed = item.shape, feature.mm_position.get_num_embeds()
        if rows == needed and width % self._hidden == 0 and item.dtype == self._dtype:
            return ""
        fits = f"{needed} rows of a multiple of {self._hidden} {self._dtype} are needed"
        return f"it has {rows} rows of {width} {item.dtype}, and {fits}"

    def _goes_on_without(
        self, request: Request, why: Mapping[Any, FetchError], features: Mapping[Any, tuple[MultiModalFeatureSpec, str]]
    ) -> bool:
        """Whether items that cannot be had may be encoded here; else the request is over."""
        name = request.request_id
        if lost := [key for key in why if not self._may_encode(request, features[key][0])]:
            log.warning("request %s: item %.80r cannot be had: %s", name, lost[0], why[lost[0]].reason)
            self._unavailable[name] = None
            self._counts["unavailable"] += 1
            return False
        self._without.setdefault(name, set()).update(why)
        return True

    def _may_encode(self, request: Request, feature: MultiModalFeatureSpec) -> bool:
        if not _told(request.ec_transfer_params, feature.identifier):  # it was only tried
            return True
        if self._settings.on_missing == "error" or feature.data is None:
            return False
        told_ahead = self._fields(feature.modality)
        return any(it.data is not None for field, it in feature.data.items() if field not in told_ahead)


def _told(params: Any, name: str) -> str:
    """The address of an item in `ec_transfer_params`, which come from clients of the engine; empty: there is none."""
    entry = params.get(name) if isinstance(params, dict) else None
    address = entry.get(ADDRESS) if isinstance(entry, dict) else None
    return address if isinstance(address, str) else ""
