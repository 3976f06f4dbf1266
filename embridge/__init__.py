"""Multimodal embeddings on their way from encoder processes to language-model schedulers.

    from embridge import PipelineConfig, attach, launch

A node is started by `launch` (or by `embridge launch`), and joined by `attach`. On an encode node, `Client.sender`
sends the rows of one request. On a language node, `PreallocQueue`, `TransferQueue` and `WaitingQueue` carry requests to
their end, `receive` carries one by one call, and `Client.receiver` receives one by hand; `follow` is for the other
ranks of a scheduler. `Client.publish` leaves rows on an encode node, under a key, and `Client.fetch` reads them.
`spawn` starts processes of the caller's own.

Names are loaded when they are first used: the processes of a node import only what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embridge.allocator.errors import AttachError as AttachError
    from embridge.allocator.errors import Busy as Busy
    from embridge.allocator.errors import EmbridgeError as EmbridgeError
    from embridge.allocator.errors import FailureCode as FailureCode
    from embridge.allocator.errors import FetchError as FetchError
    from embridge.allocator.errors import FetchFailed as FetchFailed
    from embridge.allocator.errors import FetchTimeout as FetchTimeout
    from embridge.allocator.errors import GenerationGone as GenerationGone
    from embridge.allocator.errors import ItemsTooLarge as ItemsTooLarge
    from embridge.allocator.errors import LaunchError as LaunchError
    from embridge.allocator.errors import NodeBusyError as NodeBusyError
    from embridge.allocator.errors import NodeGoneError as NodeGoneError
    from embridge.allocator.errors import NodeUnhealthyError as NodeUnhealthyError
    from embridge.allocator.errors import NoRouteError as NoRouteError
    from embridge.allocator.errors import NotPublished as NotPublished
    from embridge.allocator.errors import PeerLost as PeerLost
    from embridge.allocator.errors import SegmentError as SegmentError
    from embridge.allocator.errors import TransferAborted as TransferAborted
    from embridge.allocator.errors import TransferError as TransferError
    from embridge.allocator.errors import TransferTimeout as TransferTimeout
    from embridge.allocator.geometry import Geometry as Geometry
    from embridge.allocator.geometry import Limits as Limits
    from embridge.allocator.missed_items import WantedItem as WantedItem
    from embridge.allocator.notices import NoticeKind as NoticeKind
    from embridge.allocator.routes import RouteRecord as RouteRecord
    from embridge.allocator.rows_at import RowsAt as RowsAt
    from embridge.allocator.shelf import ItemRecord as ItemRecord
    from embridge.allocator.shelf import ShelfCounts as ShelfCounts
    from embridge.allocator.status import Phase as Phase
    from embridge.pipeline.attach import attach as attach
    from embridge.pipeline.client.cache_memory import CacheReader as CacheReader
    from embridge.pipeline.client.cached_items import CacheCounts as CacheCounts
    from embridge.pipeline.client.cached_items import HeldItem as HeldItem
    from embridge.pipeline.client.cached_items import Wanted as Wanted
    from embridge.pipeline.client.cached_items import WantStatus as WantStatus
    from embridge.pipeline.client.client import Client as Client
    from embridge.pipeline.client.fetch import Fetch as Fetch
    from embridge.pipeline.client.fetch import Item as Item
    from embridge.pipeline.client.in_place import WritableRows as WritableRows
    from embridge.pipeline.client.item_cache import ItemCache as ItemCache
    from embridge.pipeline.client.publishing import ClientShelf as ClientShelf
    from embridge.pipeline.client.publishing import Published as Published
    from embridge.pipeline.client.publishing import PublishedRows as PublishedRows
    from embridge.pipeline.client.publishing import PublishStatus as PublishStatus
    from embridge.pipeline.client.publishing import WhyDropped as WhyDropped
    from embridge.pipeline.client.receiver import EmbeddingReceiver as EmbeddingReceiver
    from embridge.pipeline.client.request_items import RequestItems as RequestItems
    from embridge.pipeline.client.request_items import StepLoads as StepLoads
    from embridge.pipeline.client.sender import EmbeddingSender as EmbeddingSender
    from embridge.pipeline.client.subscriptions import ItemNotice as ItemNotice
    from embridge.pipeline.client.subscriptions import Subscription as Subscription
    from embridge.pipeline.config import ConfigError as ConfigError
    from embridge.pipeline.config import PipelineConfig as PipelineConfig
    from embridge.pipeline.inspection.node_status import node_status as node_status
    from embridge.pipeline.node.launch import Node as Node
    from embridge.pipeline.node.launch import launch as launch
    from embridge.pipeline.ranks.follower import FollowedRequest as FollowedRequest
    from embridge.pipeline.ranks.follower import Follower as Follower
    from embridge.pipeline.ranks.follower import follow as follow
    from embridge.pipeline.scheduler.arrivals import Arrival as Arrival
    from embridge.pipeline.scheduler.arrivals import receive as receive
    from embridge.pipeline.scheduler.queues import PreallocQueue as PreallocQueue
    from embridge.pipeline.scheduler.queues import WaitingQueue as WaitingQueue
    from embridge.pipeline.scheduler.request import EmbeddingChunk as EmbeddingChunk
    from embridge.pipeline.scheduler.request import EmbeddingRequest as EmbeddingRequest
    from embridge.pipeline.scheduler.request import EmbeddingResult as EmbeddingResult
    from embridge.pipeline.scheduler.transfer_queue import TransferQueue as TransferQueue
    from embridge.pipeline.spawn import spawn as spawn
    from embridge.workers.timing import Timing as Timing
    from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings as MooncakeSettings

    __version__: str

_NAMES = {
    "embridge.allocator.errors": (
        *(
            "AttachError",
            "EmbridgeError",
            "FailureCode",
            "LaunchError",
            "NoRouteError",
            "NodeBusyError",
            "NodeGoneError",
        ),
        *("NodeUnhealthyError", "PeerLost", "SegmentError", "TransferAborted", "TransferError", "TransferTimeout"),
        *("Busy", "FetchError", "FetchFailed", "FetchTimeout", "GenerationGone", "ItemsTooLarge", "NotPublished"),
    ),
    "embridge.allocator.geometry": ("Geometry", "Limits"),
    "embridge.allocator.routes": ("RouteRecord",),
    "embridge.allocator.missed_items": ("WantedItem",),
    "embridge.allocator.notices": ("NoticeKind",),
    "embridge.allocator.rows_at": ("RowsAt",),
    "embridge.allocator.shelf": ("ItemRecord", "ShelfCounts"),
    "embridge.allocator.status": ("Phase",),
    "embridge.pipeline.attach": ("attach",),
    "embridge.pipeline.client.cache_memory": ("CacheReader",),
    "embridge.pipeline.client.cached_items": ("CacheCounts", "HeldItem", "WantStatus", "Wanted"),
    "embridge.pipeline.client.client": ("Client",),
    "embridge.pipeline.client.fetch": ("Fetch", "Item"),
    "embridge.pipeline.client.in_place": ("WritableRows",),
    "embridge.pipeline.client.item_cache": ("ItemCache",),
    "embridge.pipeline.client.publishing": (
        *("ClientShelf", "Published", "PublishedRows", "PublishStatus", "WhyDropped"),
    ),
    "embridge.pipeline.client.receiver": ("EmbeddingReceiver",),
    "embridge.pipeline.client.request_items": ("RequestItems", "StepLoads"),
    "embridge.pipeline.client.sender": ("EmbeddingSender",),
    "embridge.pipeline.client.subscriptions": ("ItemNotice", "Subscription"),
    "embridge.pipeline.config": ("ConfigError", "PipelineConfig"),
    "embridge.pipeline.inspection.node_status": ("node_status",),
    "embridge.pipeline.node.launch": ("Node", "launch"),
    "embridge.pipeline.ranks.follower": ("FollowedRequest", "Follower", "follow"),
    "embridge.pipeline.scheduler.arrivals": ("Arrival", "receive"),
    "embridge.pipeline.scheduler.queues": ("PreallocQueue", "WaitingQueue"),
    "embridge.pipeline.scheduler.request": ("EmbeddingChunk", "EmbeddingRequest", "EmbeddingResult"),
    "embridge.pipeline.scheduler.transfer_queue": ("TransferQueue",),
    "embridge.pipeline.spawn": ("spawn",),
    "embridge.workers.timing": ("Timing",),
    "embridge.workers.transfer.engines.mooncake_settings": ("MooncakeSettings",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib import metadata  # not above: it brings half of `email`

            found: Any = metadata.version("embridge")
        elif name in _MODULE_OF:
            found = getattr(import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see dir({__name__})")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
