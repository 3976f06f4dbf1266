"""The map of the control segment: what a node takes at its default limits."""

from __future__ import annotations

import pytest

from embridge.allocator.layout import ControlLayout, Geometry, Limits, Role

DEFAULT_POOL = Geometry(num_blocks=64)
MIB = 1 << 20


@pytest.mark.parametrize("role", Role)
def test_all_of_a_node_but_its_payload_fits_into_eight_mebibytes_at_the_default_limits(role: Role) -> None:
    """P12: a container has 64 MB of /dev/shm, and the rows are to have most of it."""
    assert ControlLayout.of(role, DEFAULT_POOL, Limits()).size <= 8 * MIB


def test_every_destination_of_a_request_has_a_share_of_its_window() -> None:
    """P13, R1."""
    with pytest.raises(ValueError, match=r"window_blocks: 3 < max_destinations 4, which share it"):
        Limits(window_blocks=3, max_destinations=4)
