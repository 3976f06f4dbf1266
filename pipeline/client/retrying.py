"""When a failed request may be sent again by another encode node, and from which row on."""

from __future__ import annotations

from typing import Final

from embridge.allocator.errors import FailureCode, TransferError

LOST: Final = frozenset(
    {FailureCode.PEER_LOST, FailureCode.UNREACHABLE, FailureCode.CLIENT_DIED, FailureCode.UNKNOWN_ROOM}
)
"""Codes of a request whose encode node, or its encoder, or what the node knew of it, is gone."""


def why_in_vain(found: TransferError, *, waits_for_grant: bool) -> str:
    """Why another encode node could not do better, in words; empty if it could.

    `waits_for_grant`: rows were there, and waited for a grant of ours.
    """
    is_silent = found.code == FailureCode.TIMEOUT and not waits_for_grant
    if found.code in LOST or is_silent:
        return ""
    return f"it failed as {found.code.name}, which is not for want of the encode node: {found.reason}"


def first_missing_block(num_tokens: int, total: int, block_size: int) -> int:
    """The request block from which a request is sent again of which rows [0, num_tokens) are here.

    Whole blocks are kept, but never the last of all. So each retry has rows to wait for, and ends as every request
    does, by what its encode node says (R20).
    """
    return max(min(num_tokens, total - 1), 0) // block_size
