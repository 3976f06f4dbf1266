"""What a producer has published on its encode node: for the scheduler, and for the worker that publishes."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import torch

from embridge import EmbridgeError, PublishStatus
from embridge.integrations.membership import Membership
from embridge.integrations.vllm.settings import Settings
from embridge.workers.log_limit import LogLimit

log = logging.getLogger(__name__)

GONE: Final = "the node of this engine is gone"


class Producer:
    """One thread at a time calls it, in each process."""

    def __init__(self, settings: Settings, member: Membership) -> None:
        """Raises ValueError: the node has no shelf."""
        self._settings, self._member = settings, member
        self._log_limit = LogLimit()
        self.counts: Counter[str] = Counter()
        if (client := member.look()) is not None:
            client.shelf.counts()

    @property
    def address(self) -> str:
        """Of its encode node; empty while that is gone."""
        client = self._member.look()
        return client.bootstrap_addr if client is not None else ""

    def has(self, identifier: str) -> bool:
        """Whether an item is published; it takes microseconds."""
        client = self._member.look()
        try:
            return client is not None and client.shelf.contains(self._settings.key(identifier)) > 0
        except (EmbridgeError, RuntimeError):
            return False

    def publish(self, identifier: str, rows: torch.Tensor) -> None:
        """Publish an encoder output. Raises nothing, for that would end the engine: what fails is counted and logged,
        within limits.
        """
        try:
            client = self._member.look()
            if client is None:
                raise EmbridgeError(GONE)
            found = client.publish(self._settings.key(identifier), rows)
            if found.status == PublishStatus.DROPPED:
                raise EmbridgeError(f"its node has dropped it: {found.why.name}")
            self.counts["published"] += found.status == PublishStatus.READY
        except Exception as error:
            self.counts["not_published"] += 1
            now_ns = self._member.clock()
            self._log_limit.log(log, logging.WARNING, 0, now_ns, "item %.80r is not published: %s", identifier, error)

    def take_counts(self) -> Counter[str]:
        """What was counted since the last call."""
        taken, self.counts = self.counts, Counter()
        return taken
