"""From which encode nodes a client fetches, where addresses come from those whom its engine serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from embridge.allocator.errors import EmbridgeError
from embridge.workers.addresses import MAX_REMEMBERED, numeric

if TYPE_CHECKING:
    from embridge.pipeline.client.client import Client

ANY_PORT: Final = ":*"
MAX_KNOWN: Final = 1024


class AllowedNodes:
    """A list; or, where that is empty, what discovery tells."""

    def __init__(self, listed: Sequence[str]) -> None:
        """`listed`: tcp://ip:port, or tcp://ip:* for every one of a host. Raises ValueError: one is neither."""
        self.listed = frozenset(_rule(it) for it in listed)
        """In the one form in which addresses are compared."""
        self._known: set[str] = set()  # as they were written; clients write them, so it is bounded

    def why_not(self, address: str, client: Client | None) -> str:
        """Why nothing is fetched from an address; empty: it is allowed. `client` is asked what discovery has told it.

        It raises nothing, whatever the address.
        """
        if isinstance(address, str) and address in self._known:
            return ""
        written = address
        try:
            address = numeric(address)
        except ValueError as error:
            return str(error)
        if address in self.listed or address.rpartition(":")[0] + ANY_PORT in self.listed:
            if len(self._known) < MAX_KNOWN and len(written) <= MAX_REMEMBERED:
                self._known.add(written)
            return ""
        if not self.listed and client is not None:
            try:
                if any(node.bootstrap_addr == address for node in client.encode_nodes()):
                    return ""
            except (EmbridgeError, RuntimeError, ValueError) as error:
                return str(error)
        return f"{address} is none of the encode nodes that are allowed"


def _rule(text: str) -> str:
    host = text.removesuffix(ANY_PORT)
    try:
        return numeric(text) if host == text else numeric(f"{host}:1").removesuffix(":1") + ANY_PORT
    except ValueError as error:
        raise ValueError(f"encoders: {error}") from None
