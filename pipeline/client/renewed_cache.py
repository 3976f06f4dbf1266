"""An item cache of a language node that may go away, and come back: then it is another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from embridge.allocator.errors import EmbridgeError

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client
    from embridge.pipeline.client.item_cache import ItemCache

log = logging.getLogger(__name__)


class RenewedCache:
    """One thread at a time calls it."""

    def __init__(self, find_client: Callable[[], Client | None], make: Callable[[Client], ItemCache]) -> None:
        """`find_client` gives the client of the node, None while that is gone; `make`, a cache of a new client.

        Raises what `make` does, if there is a client now.
        """
        self._find_client, self._make = find_client, make
        self._without: Client | None = None  # that has no cache, which was said
        self.client: Client | None = None
        """Of the last cache; None: there was none yet."""
        self.last: ItemCache | None = None
        """Also while the node is gone."""
        client = find_client()
        if client is not None:
            self._renew(client)

    def find(self) -> ItemCache | None:
        """The cache; a new one where the node has come back; None while it is gone. It raises nothing, and says once
        in the log why a node that is back has none.
        """
        client = self._find_client()
        if client is None or client is self.client:
            return self.last if client is not None else None
        try:
            return self._renew(client)
        except (EmbridgeError, RuntimeError, ValueError) as error:  # it is gone again, or there is no memory for it now
            if client is not self._without:  # each step of an engine asks
                log.warning("the node in %s has no item cache: %s", client.run_dir, str(error))
            self._without = client
            return None

    def _renew(self, client: Client) -> ItemCache:
        cache = self._make(client)
        self.client, self.last = client, cache
        return cache
