"""Opens a room to be sent: what is asked for is checked, and the sender gets a slot or waits for one."""

from __future__ import annotations

from typing import Any

from embridge.allocator.geometry import MAX_TOKENS, Role
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.given_rows import aux_words
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.sender import EmbeddingSender


def open_sender(
    library: Library,
    room: int,
    total_tokens: int,
    *,
    aux_datas: Any = None,
    mrope_position_delta: int = 0,
    timeout_s: float | None = None,
) -> EmbeddingSender:
    """Open a room to be sent, as `Client.sender` says."""
    room = library.check_open(room, Role.ENCODE, "sender")
    if type(total_tokens) is not int or not 0 < total_tokens <= MAX_TOKENS:
        total_tokens = whole("total_tokens", total_tokens, 1, MAX_TOKENS)
    aux = aux_words(aux_datas, total_tokens, mrope_position_delta)
    sender = EmbeddingSender(library, room, total_tokens, aux)
    library.open(sender, timeout_s, may_be_untold=library.doors is not None and bool(library.doors.open_ones))
    return sender
