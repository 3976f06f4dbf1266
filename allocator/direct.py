"""Direct writes: what finds the grants of one language node for an encode node's requests, and writes their rows there.

The steps of both are native (`native/bind.h`, `native/direct.h`): their order is what R28 to R33, R36 to R38 and R79
ask for, and a process may stop or die between any two.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from embridge.allocator._core import DirectWriter, GrantBinder, Mapping, StatusTable, Words
from embridge.allocator.buffers import aux_offset, pools
from embridge.allocator.claims import WriterId
from embridge.allocator.control import Control
from embridge.allocator.geometry import AUX_WORDS, Geometry
from embridge.allocator.layout import ControlLayout, metric_names
from embridge.allocator.records import (
    AUX_OFFSET,
    CLAIM_WORDS,
    DESTINATION_WORDS,
    MEETING_WORDS,
    METRIC_WORDS,
    NUM_VIEWS,
    PEER_BYTES,
    POSTS_A_SLOT,
    SLOT_BYTES,
)


def direct_writer(
    own: Control,
    part: Mapping,
    there: ControlLayout,
    payload: Mapping,
    geometry: Geometry,
    writer: WriterId,
    clock: Callable[[], int],
) -> DirectWriter:
    """Writes rows of requests of the encode node `own` into blocks of a language node.

    Of that node: `part` is the writers' part of its control segment with the layout `there`, `payload` has the blocks
    of `geometry`. `writer` is what claims name this process by. `clock` gives monotonic nanoseconds.
    """
    layout, limits, begin = own.layout, own.limits, there.writers_part[0]
    num_rows = len(metric_names(limits))  # the last of them is the clients'
    slots, slots_there = limits.num_slots, there.limits.num_slots
    return DirectWriter(
        slots=Words(own.mapping, layout.slots, slots * SLOT_BYTES // 8),
        destinations=Words(own.mapping, layout.destinations, slots * limits.max_destinations * DESTINATION_WORDS),
        grants=Words(own.mapping, layout.grants, slots * limits.window_blocks),
        metrics=Words(own.mapping, layout.metrics, num_rows * METRIC_WORDS),
        claims=Words(part, there.claims - begin, slots_there * CLAIM_WORDS),
        status=StatusTable(own.mapping, layout.words, layout.stamps, layout.dirty, slots, NUM_VIEWS),
        there=StatusTable(
            part, there.words - begin, there.stamps - begin, there.dirty - begin, slots_there, NUM_VIEWS
        ),
        payload=payload,
        writer=writer.pack(),
        slot_words=SLOT_BYTES // 8,
        aux_at=AUX_OFFSET,
        window_blocks=limits.window_blocks,
        num_destinations=limits.max_destinations,
        metrics_at=(num_rows - 1) * METRIC_WORDS,
        block_size=geometry.block_size,
        num_blocks=geometry.num_blocks,
        aux_offset=aux_offset(geometry, 0),
        aux_bytes=4 * AUX_WORDS,
        bells=there.doorbell("lane0") - begin,
        num_lanes=there.limits.max_clients,
        clock=clock,
    )


def grant_binder(
    own: Control, part: Mapping, there: ControlLayout, geometry: Geometry, node: tuple[int, int]
) -> GrantBinder:
    """Finds grants of the language node `node` (id, incarnation), and binds requests of the encode node `own` to them.

    Of the language node: `part` is the writers' part of its control segment with the layout `there`.
    """
    layout, limits, begin = own.layout, own.limits, there.writers_part[0]
    slots, slots_there = limits.num_slots, there.limits.num_slots
    return GrantBinder(
        slots=Words(own.mapping, layout.slots, slots * SLOT_BYTES // 8),
        destinations=Words(own.mapping, layout.destinations, slots * limits.max_destinations * DESTINATION_WORDS),
        grants=Words(own.mapping, layout.grants, slots * limits.window_blocks),
        peers=Words(own.mapping, layout.peers, limits.max_peers * PEER_BYTES // 8),
        tombstones=Words(own.mapping, layout.tombstones, limits.max_peers * limits.max_peer_slots),
        finders=Words(own.mapping, layout.finders, limits.max_peers * limits.max_peer_slots),
        claims=Words(part, there.claims - begin, slots_there * CLAIM_WORDS),
        meetings=Words(part, there.meetings - begin, slots_there * MEETING_WORDS),
        posts=Words(part, there.posts - begin, slots_there * POSTS_A_SLOT),
        windows=Words(part, there.windows - begin, slots_there * there.own_window),
        slot_words=SLOT_BYTES // 8,
        num_destinations=limits.max_destinations,
        window_blocks=limits.window_blocks,
        peer_words=PEER_BYTES // 8,
        num_peer_slots=limits.max_peer_slots,
        window_there=there.own_window,
        block_size=geometry.block_size,
        num_blocks=geometry.num_blocks,
        node_id=own.node_id,
        incarnation=own.incarnation,
        node_id_there=node[0],
        incarnation_there=node[1],
    )


def columns(geometry: Geometry) -> array[int]:
    """The buffers of rows of a payload of that geometry, as `DirectWriter.write` takes them; in `pools`' order."""
    return array("Q", [word for pool in pools(geometry) for word in (pool.offset, pool.row_bytes)])
