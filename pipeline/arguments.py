"""What callers give: numbers, which are Python's own, NumPy's, or one element of a tensor; and addresses.

All else is a ValueError that names it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import lru_cache
from numbers import Real
from typing import Any, Final, TypeGuard

from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.records import ADDRESS_BYTES
from embridge.workers.addresses import split_address

MAX_SAID: Final = 200


def whole(name: str, value: Any, low: int, high: int, limits: str = "") -> int:
    """`value` as an int from `low` to `high` (said as `limits`), of any type that is an integer. Raises ValueError."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the latter two: a tensor of several elements, or without data
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name}: {said(value)} is outside {limits or f'{low} to {high}'}")
    return number


def said(value: Any) -> str:
    """`value` as an error names it, shortened.

    It is its type alone if the value has no text, as an int of 5000 digits has none.
    """
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}..."


def is_time(value: Any) -> TypeGuard[float]:
    """Whether this is a number of seconds, of Python's or NumPy's types, that a float can hold."""
    if type(value) is float:
        return True
    if not isinstance(value, Real):
        return False
    try:
        float(value)
    except (OverflowError, ValueError):
        return False
    return True


def check_address(bootstrap_addr: str) -> None:
    """Raise ValueError if this is not an encode node's address."""
    if not isinstance(bootstrap_addr, str):
        raise ValueError(
            f"bootstrap_addr: {said(bootstrap_addr)} is not of the form tcp://host:port; see Node.bootstrap_addr"
        )
    try:
        _is_address(bootstrap_addr)
    except ValueError as error:
        raise ValueError(f"bootstrap_addr: {error}; see Node.bootstrap_addr") from None
    size = len(bootstrap_addr.encode())
    if size > ADDRESS_BYTES:
        raise ValueError(f"bootstrap_addr: {size} bytes > {ADDRESS_BYTES} bytes")


@lru_cache(maxsize=256)
def _is_address(bootstrap_addr: str) -> bool:
    """Raises ValueError as `split_address` does. Whoever names nodes names the same ones over and over."""
    split_address(bootstrap_addr)
    return True


def grant_of(
    indices: Iterable[object], tokens: object | None, num_blocks: int, block_size: int
) -> tuple[list[int], int]:
    """Destination blocks, and for how many tokens they are granted: as many as they hold, if that is not said.

    Raises:
        ValueError: an index names no block of the pool, or the tokens do not end in the last of the blocks.
    """
    blocks = [whole("embedding_indices", index, 0, num_blocks - 1) for index in indices]
    count, most = len(blocks), len(blocks) * block_size
    granted = most if tokens is None else whole("allocated_tokens", tokens, 0, MAX_TOKENS)
    if not (most - block_size < granted <= most or granted == count == 0):
        raise ValueError(
            f"allocated_tokens: {granted} does not end in the last of {count} blocks of {block_size} tokens; "
            f"expected {max(most - block_size, 0) + bool(count)} to {most}"
        )
    return blocks, granted
