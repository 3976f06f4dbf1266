"""The scheduler's side: the parts of requests that wait for their embeddings, on one rank.

The first rank of a host *leads*: it has the item cache, which fetches each part once, however many ranks there are
(R67). The others map that memory, and are told of what lies there (`exchange`). A request has its parts all at once, or
none of them, and they stay until it has left SGLang's list of those that wait, on all ranks (R65, R69, R70).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import torch

from embridge import CacheReader, EmbridgeError, ItemCache, RowsAt, WantStatus
from embridge.integrations.engine_settings import naming_encoders
from embridge.integrations.membership import Membership
from embridge.integrations.sglang.options import VARIABLE, Options
from embridge.pipeline.client.allowed_nodes import AllowedNodes
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.renewed_cache import RenewedCache

GONE: Final = "the node of this scheduler is gone"


class PartMissed(Exception):
    """The embeddings of a request cannot be had; the text says why."""


class Part(NamedTuple):
    """What a message has told of one part."""

    key: str
    address: str
    shape: tuple[int, ...]
    dtype: str


class Parts:
    """Of one rank. The scheduler's thread only."""

    def __init__(self, options: Options, *, leads: bool, group: Any = None) -> None:
        """`group`: SGLang's group of the ranks that share one memory; None: no other rank does.

        Raises:
            AttachError: the rank leads, and no node runs here.
            ConfigError: it leads, and nothing says from where embeddings may come.
            SegmentError: the memory of the cache cannot be had.
        """
        self._options, self._group = options, group
        self._allowed = AllowedNodes(options.encoders)
        self._wanted: dict[str, dict[int, Part]] = {}  # by request and part
        self._placed: dict[str, dict[int, RowsAt]] = {}  # what the ranks that follow may read
        self._news: dict[str, dict[int, RowsAt]] = {}  # of which they are not told yet
        self._reader = CacheReader()
        self._is_waiting = False
        self._member: Membership | None = None
        self._caches: RenewedCache | None = None
        if leads:
            self._member = Membership(options.directory("language"))
            try:
                self._caches = RenewedCache(
                    self._member.look, lambda client: client.item_cache(options.cache_bytes, shared=True)
                )
                if not options.encoders and self._caches.client is not None:
                    with naming_encoders(VARIABLE):
                        self._caches.client.encode_nodes()
            except BaseException:
                self._member.close()
                raise

    def expect(self, rid: str, index: int, told: Any, shape: Any, dtype: torch.dtype) -> None:
        """A message has come that says where a part is published. Raises ValueError: it says nothing of the kind."""
        texts = tuple(told) if isinstance(told, tuple | list) else ()
        if len(texts) != 2 or not all(isinstance(it, str) for it in texts):
            raise ValueError(f"part {index}: {told!r:.80} names no item; expected its key and its encode node")
        part = Part(*texts, tuple(shape), str(dtype).removeprefix("torch."))
        self._wanted.setdefault(rid, {})[index] = part
        if self._caches is None:
            return
        cache = self._caches.find()
        if cache is not None and not self._allowed.why_not(part.address, self._caches.client):
            cache.prefetch(part.key, part.address)

    def rows(self, rid: str) -> Mapping[int, torch.Tensor] | None:
        """The rows of all parts of a request that messages have told of, by part; None: not yet. Microseconds, no I/O.

        They are views of memory that is not to be written to, and stay until `keep` leaves the request out.

        Raises PartMissed: they cannot be had.
        """
        wanted = self._wanted.get(rid)
        if not wanted:
            return {}
        if self._caches is not None:
            return self._fetched(self._caches, rid, wanted)
        placed = self._placed.get(rid)
        return None if placed is None else {index: self._mapped(at) for index, at in placed.items()}

    def exchange(self) -> None:
        """Tell the ranks that follow what lies in memory since the last call; all ranks call it at one time."""
        if self._group is None:
            return
        news, self._news = self._news, {}
        told = self._group.broadcast_object(news if self._member is not None else None, src=0)
        if self._member is None:
            self._placed.update(told)

    def keep(self, rids: Collection[str]) -> None:
        """Forget all requests but these: they have left the list of those that wait."""
        for rid in [rid for rid in self._wanted if rid not in rids]:
            parts = self._wanted.pop(rid)
            self._news.pop(rid, None)
            if self._caches is not None and self._caches.last is not None:
                self._caches.last.end(rid)
                for part in parts.values():  # of which no other request will ever hear
                    self._caches.last.forget(part.key)
        for rid in [rid for rid in self._placed if rid not in rids]:
            del self._placed[rid]
        if self._is_waiting and self._caches is not None and self._caches.client is not None:
            library_of(self._caches.client).wake()
        self._is_waiting = False

    def close(self) -> None:
        """Leave the node."""
        if self._member is not None:
            self._member.close()

    # ---- the rank that leads

    def _fetched(
        self, caches: RenewedCache, rid: str, wanted: dict[int, Part]
    ) -> Mapping[int, torch.Tensor] | None:
        cache = caches.find()
        if cache is None:
            raise PartMissed(GONE)
        if not cache.has_answer(rid):
            self._is_waiting = True
            return None
        for part in wanted.values():
            if why := self._allowed.why_not(part.address, caches.client):
                raise PartMissed(why)
        try:
            answer = cache.want(rid, {part.key: part.address for part in wanted.values()})
        except (EmbridgeError, ValueError, RuntimeError) as error:
            raise PartMissed(str(error)) from error
        if answer.status == WantStatus.MISSED:
            raise PartMissed(str(next(iter(answer.errors.values()))))
        return self._taken(rid, wanted, cache) if answer.is_ready else None

    def _taken(self, rid: str, wanted: dict[int, Part], cache: ItemCache) -> Mapping[int, torch.Tensor]:
        rows, placed, memory = {}, {}, cache.memory
        assert memory is not None
        for index, part in wanted.items():
            item = cache.get(rid, part.key)
            if (item.shape, item.dtype) != (part.shape, part.dtype):
                had, told = f"{item.shape} of {item.dtype}", f"{part.shape} of {part.dtype}"
                raise PartMissed(f"item {part.key!r:.80}: it has {had}, and its message tells of {told}")
            rows[index] = item.rows
            placed[index] = memory.where(item.copied().bytes, item.shape, item.dtype)
        if self._group is not None:
            self._news[rid] = placed
        return rows

    # ---- the others

    def _mapped(self, at: RowsAt) -> torch.Tensor:
        try:
            return self._reader.rows(at)
        except (EmbridgeError, ValueError) as error:
            raise PartMissed(str(error)) from error
