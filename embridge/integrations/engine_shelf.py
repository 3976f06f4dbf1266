"""The shelf of an engine's encode node, for code into which nothing may be raised."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import torch

from embridge import EmbridgeError, PublishStatus
from embridge.integrations.membership import Membership
from embridge.workers.log_limit import LogLimit

log = logging.getLogger(__name__)

COUNTS: Final = {
    "published": "Encoder outputs that were published.",
    "not_published": "Encoder outputs that could not be published: the shelf is full of what is read, or gone.",
}
"""What `EngineShelf.take_counts` counts, and what that is."""


class EngineShelf:
    """One thread at a time calls it."""

    def __init__(self, member: Membership) -> None:
        """Raises ValueError: the node has no shelf."""
        self._member, self._log_limit = member, LogLimit()
        self._counts: Counter[str] = Counter()
        if (client := member.look()) is not None:
            client.shelf.counts()

    def address(self) -> str:
        """Of its node; empty while that is gone."""
        client = self._member.look()
        return client.bootstrap_addr if client is not None else ""

    def has(self, key: str | bytes) -> bool:
        """Whether an item is published; it takes microseconds."""
        client = self._member.look()
        try:
            return client is not None and client.shelf.contains(key) > 0
        except (EmbridgeError, RuntimeError, ValueError):
            return False

    def address_of(self, key: str | bytes) -> str:
        """Where an item is published; empty: it is not."""
        return self.address() if self.has(key) else ""

    def take_counts(self) -> Counter[str]:
        """What was counted since the last call (`COUNTS`); not_published is also what came while the node was gone."""
        taken, self._counts = self._counts, Counter()
        return taken

    def publish(self, key: str, rows: torch.Tensor) -> None:
        """As `Client.publish`. Raises nothing: what fails is counted, and logged within limits."""
        why = "the node of this engine is gone"
        try:
            if (client := self._member.look()) is not None:
                found = client.publish(key, rows)
                if found.status != PublishStatus.DROPPED:
                    self._counts["published"] += found.status == PublishStatus.READY
                    return
                why = f"its node has dropped it: {found.why.name}"
        except Exception as error:
            why = str(error)  # a kept record would keep the error's frames, and the rows in them
        self._counts["not_published"] += 1
        self._log_limit.log(
            log, logging.WARNING, 0, self._member.clock(), "item %.80r is not published: %s", key, why
        )
