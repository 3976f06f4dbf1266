"""An attempt: one write that a transfer worker has submitted to an engine."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.allocator.checksums import RowSum
from embridge.workers.transfer.engines.base import TransferEngine


@dataclass(slots=True)
class Attempt:
    """One submitted write: rows [first, end) of a request to one destination, from blocks held in READING."""

    slot: int
    epoch: int
    destination: int
    peer: int
    first: int
    end: int
    blocks: list[int]
    sum: RowSum | None
    ticket: int
    num_bytes: int
    engine: TransferEngine
    submitted_ns: int
    queued_bytes: int  # under way with it, its own among them
    look_ns: int = 0  # not before that, where the engine has threads of its own
