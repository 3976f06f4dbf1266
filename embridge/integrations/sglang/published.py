"""The encoder's side: rows of a part, published on its encode node."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Final, NamedTuple

import torch

from embridge import EmbridgeError, PublishStatus
from embridge.integrations.membership import Membership
from embridge.integrations.sglang.options import Options
from embridge.workers.log_limit import LogLimit

log = logging.getLogger(__name__)

GONE: Final = "the node of this encoder is gone"


class Told(NamedTuple):
    """What a part's message says instead of carrying its rows."""

    key: str
    address: str
    """Of the encode node where it is published."""


class PublishedParts:
    """What an encoder publishes. The coroutines of one loop call it."""

    def __init__(self, options: Options) -> None:
        """Raises AttachError: no node runs here. ValueError: it has no shelf."""
        self._keep_s = options.keep_s
        self._member = Membership(options.directory("encode"))
        self._turn = asyncio.Lock()  # one thread at a time calls a client
        self._log_limit = LogLimit()
        client = self._member.look()
        if client is not None:
            try:
                client.shelf.counts()
            except BaseException:
                self._member.close()
                raise

    async def publish(self, rows: torch.Tensor) -> Told | None:
        """Publish a copy of the rows of one part, (tokens, width), from whichever device; the caller's loop goes on.

        None: they are not published, for the node is gone, or its shelf has no room for them. That is logged, within
        limits. Raises nothing.
        """
        key = f"sglang/{secrets.token_hex(16)}"
        async with self._turn:
            try:
                client = self._member.look()
                if client is None:
                    raise EmbridgeError(GONE)
                done = await asyncio.to_thread(client.publish, key, rows.detach(), ttl_s=self._keep_s)
                if done.status == PublishStatus.DROPPED:
                    raise EmbridgeError(f"its node has dropped it: {done.why.name}")
                return Told(key, client.bootstrap_addr)
            except (EmbridgeError, ValueError, RuntimeError) as error:
                text = "an embedding of %s goes by SGLang's own way: %s"
                self._log_limit.log(log, logging.WARNING, 0, self._member.clock(), text, tuple(rows.shape), str(error))
                return None

    def close(self) -> None:
        """Leave the node; what was published stays there."""
        self._member.close()
