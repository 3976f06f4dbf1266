"""The enumerations that a node's processes go by for each message and kick, as classes with plain attributes.

A type checker sees the enumerations themselves. In Python 3.11 their metaclass has a `__getattr__`, so to look a member
up takes several times as long as to load the word that it names, and a process does that hundreds of times a request.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from embridge.allocator import metrics, records, rings, status

__all__ = [
    "Destination",
    "JoinedBy",
    "Kick",
    "Lane",
    "LaneState",
    "Metric",
    "Peer",
    "PeerState",
    "Phase",
    "Process",
    "Slot",
    "Told",
    "WrittenBy",
]


def plain(kind: type[IntEnum]) -> type:
    """A class that has the members as attributes, and makes a member of a value as `kind` does."""
    return type(kind.__name__, (), {**kind.__members__, "__new__": lambda _, value: kind(value)})


if TYPE_CHECKING:
    from embridge.allocator.metrics import Metric
    from embridge.allocator.records import (
        Destination,
        JoinedBy,
        Lane,
        LaneState,
        Peer,
        PeerState,
        Process,
        Slot,
        Told,
        WrittenBy,
    )
    from embridge.allocator.rings import Kick
    from embridge.allocator.status import Phase
else:
    Destination, JoinedBy, Lane = plain(records.Destination), plain(records.JoinedBy), plain(records.Lane)
    LaneState, Peer, PeerState = plain(records.LaneState), plain(records.Peer), plain(records.PeerState)
    Slot, Metric, Kick, Phase = plain(records.Slot), plain(metrics.Metric), plain(rings.Kick), plain(status.Phase)
    Process, Told, WrittenBy = plain(records.Process), plain(records.Told), plain(records.WrittenBy)
