"""What an encoder, a scheduler and an operator call.

    from embridge.pipeline import PipelineConfig, attach, launch

Names are loaded on first use, so that the processes of a node, which are spawned from this package's launcher, import only what
they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if not __name__.startswith("embridge."):
    raise ImportError(
        f"{__name__!r} is the folder of embridge.pipeline, imported by its bare name; import embridge.pipeline, "
        "or leave the repository's root"
    )

if TYPE_CHECKING:
    from embridge.allocator.errors import NodeBusyError, NodeUnhealthyError, NoRouteError
    from embridge.allocator.layout import Geometry, Limits
    from embridge.allocator.routes import RouteRecord
    from embridge.allocator.status import Phase
    from embridge.pipeline.client.client import Client, attach
    from embridge.pipeline.client.receiver import EmbeddingReceiver
    from embridge.pipeline.client.sender import EmbeddingSender
    from embridge.pipeline.config import ConfigError, PipelineConfig
    from embridge.pipeline.node.launch import Node, launch
    from embridge.pipeline.ranks.follower import FollowedRequest, Follower, follow
    from embridge.pipeline.scheduler.queues import PreallocQueue, TransferQueue, WaitingQueue
    from embridge.pipeline.scheduler.request import EmbeddingRequest
    from embridge.pipeline.spawn import spawn
    from embridge.workers.timing import Timing

_PLACES = {
    "Client": "embridge.pipeline.client.client",
    "ConfigError": "embridge.pipeline.config",
    "EmbeddingReceiver": "embridge.pipeline.client.receiver",
    "EmbeddingRequest": "embridge.pipeline.scheduler.request",
    "EmbeddingSender": "embridge.pipeline.client.sender",
    "FollowedRequest": "embridge.pipeline.ranks.follower",
    "Follower": "embridge.pipeline.ranks.follower",
    "Geometry": "embridge.allocator.layout",
    "Limits": "embridge.allocator.layout",
    "NoRouteError": "embridge.allocator.errors",
    "NodeBusyError": "embridge.allocator.errors",
    "NodeUnhealthyError": "embridge.allocator.errors",
    "Node": "embridge.pipeline.node.launch",
    "Phase": "embridge.allocator.status",
    "PipelineConfig": "embridge.pipeline.config",
    "PreallocQueue": "embridge.pipeline.scheduler.queues",
    "RouteRecord": "embridge.allocator.routes",
    "Timing": "embridge.workers.timing",
    "TransferQueue": "embridge.pipeline.scheduler.queues",
    "WaitingQueue": "embridge.pipeline.scheduler.queues",
    "attach": "embridge.pipeline.client.client",
    "follow": "embridge.pipeline.ranks.follower",
    "launch": "embridge.pipeline.node.launch",
    "spawn": "embridge.pipeline.spawn",
}

__all__ = [
    "Client",
    "ConfigError",
    "EmbeddingReceiver",
    "EmbeddingRequest",
    "EmbeddingSender",
    "FollowedRequest",
    "Follower",
    "Geometry",
    "Limits",
    "NoRouteError",
    "Node",
    "NodeBusyError",
    "NodeUnhealthyError",
    "Phase",
    "PipelineConfig",
    "PreallocQueue",
    "RouteRecord",
    "Timing",
    "TransferQueue",
    "WaitingQueue",
    "attach",
    "follow",
    "launch",
    "spawn",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
