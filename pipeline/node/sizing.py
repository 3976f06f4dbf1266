"""How much shared memory a node takes, and how many blocks fit.

A container has 64 MB of /dev/shm unless it is given more. Where `num_blocks` is 0, the pool has `DEFAULT_BLOCKS`, or
as many as fit into half of /dev/shm, for the other half is often another node's. A number that is set is taken as it
is, or refused with the number that would fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout, PayloadLayout
from embridge.allocator.segment import SHARED_MEMORY, Space
from embridge.allocator.shelf import shelf_size

MIB: Final = 1 << 20
DEFAULT_BLOCKS: Final = 64  # of 128 tokens: the 8192 that the documents grant to one request by default
FEW_SLOTS: Final = 256  # what is advised where not even one block fits


class Sizes(NamedTuple):
    """Bytes of a node's segments."""

    control: int
    payload: int
    shelf: int

    @property
    def total(self) -> int:
        return self.control + self.payload + self.shelf

    @classmethod
    def of(cls, role: Role, geometry: Geometry, limits: Limits) -> Sizes:
        """`geometry` has a number of blocks."""
        shelf = shelf_size(limits) if role == Role.ENCODE else 0
        return cls(ControlLayout.of(role, geometry, limits).size, PayloadLayout.of(geometry).size, shelf)


def chosen_pool(role: Role, geometry: Geometry, limits: Limits, space: Space) -> Geometry:
    """The geometry with a number of blocks: its own, or, where that is 0, as many as this machine has room for.

    Raises:
        SegmentError: the pool does not fit; the text has the number of blocks that does, and the settings that help.
    """
    if geometry.num_blocks:
        if Sizes.of(role, geometry, limits).total > space.free:
            raise SegmentError(_why_not(role, geometry, limits, space))
        return geometry
    least = replace(geometry, num_blocks=1)
    room_bytes = min(space.free, max(space.size // 2, Sizes.of(role, least, limits).total))
    blocks = _fitting(role, replace(geometry, num_blocks=DEFAULT_BLOCKS), limits, room_bytes)
    if not blocks:
        raise SegmentError(_why_not(role, least, limits, space))
    return replace(geometry, num_blocks=blocks)


def _fitting(role: Role, geometry: Geometry, limits: Limits, room_bytes: int) -> int:
    """The most blocks, up to those of `geometry`, with which a node fits into the given bytes; 0 when none fits."""
    low, high = 0, geometry.num_blocks
    while low < high:
        middle = (low + high + 1) // 2
        if Sizes.of(role, replace(geometry, num_blocks=middle), limits).total <= room_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _why_not(role: Role, geometry: Geometry, limits: Limits, space: Space) -> str:
    """Why a node of this size does not fit, and what would help."""
    sizes = Sizes.of(role, geometry, limits)
    fits = _fitting(role, geometry, limits, space.free)
    if fits:
        remedy = f"lower num_blocks to {fits} (--num-blocks), or block_size or hidden_size"
    else:
        few = Sizes.of(role, geometry, replace(limits, num_slots=min(limits.num_slots, FEW_SLOTS)))
        remedy = "lower block_size (--block-size)"
        if few.control < sizes.control:
            remedy += f", or num_slots (--num-slots {FEW_SLOTS}: {mib(few.control)} control segment)"
    shelf = f" + {mib(sizes.shelf)} shelf" if sizes.shelf else ""
    if sizes.shelf:
        remedy += ", or shelf_bytes (--shelf-bytes)"
    return (
        f"shared memory: {mib(sizes.control)} control segment{shelf} + {mib(sizes.payload)} payload "
        f"({geometry.num_blocks} blocks of {geometry.block_size} tokens of {geometry.token_bytes} bytes) > "
        f"{mib(space.free)} free of {mib(space.size)} in {SHARED_MEMORY}; {remedy}, "
        f"or enlarge {SHARED_MEMORY} (containers: --shm-size)"
    )


def mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB"
