"""Untold requests: what opens, sends, grants and releases them in one call each, for a client of either side.

The steps are native (`native/untold.h`, and what that joins): their order is what R35, R78 and R80 ask for, and a
client may die between any two.
"""

from __future__ import annotations

from array import array

from embridge.allocator._core import (
    END_WORDS,
    DirectWriter,
    GrantBinder,
    StatusTable,
    UntoldOpener,
    UntoldReceiver,
    UntoldSender,
    Words,
)
from embridge.allocator.control import Control
from embridge.allocator.ends import Counter
from embridge.allocator.geometry import AUX_WORDS
from embridge.allocator.layout import metric_names
from embridge.allocator.records import (
    ADDRESS_OFFSET,
    AUX_OFFSET,
    DESTINATION_WORDS,
    FETCHED_WORDS,
    LANE_WORDS,
    LINE_BYTES,
    METRIC_WORDS,
    NUM_VIEWS,
    PEER_BYTES,
    SLOT_BYTES,
    Lane,
)

_HEADER_WORDS = LINE_BYTES


def _room_words(control: Control, offset: int) -> Words:
    return Words(control.mapping, offset, control.limits.num_slots)


def _clients_ends(control: Control) -> Words:
    return Words(control.mapping, control.layout.ends + 8 * END_WORDS * Counter.CLIENTS, END_WORDS)


def _status(control: Control) -> StatusTable:
    at = control.layout
    return StatusTable(control.mapping, at.words, at.stamps, at.dirty, control.limits.num_slots, NUM_VIEWS)


def _slots(control: Control) -> Words:
    return Words(control.mapping, control.layout.slots, control.limits.num_slots * SLOT_BYTES // 8)


def untold_opener(control: Control, lane: int) -> UntoldOpener:
    """Opens untold requests for the client of a lane (encode side)."""
    at, mapping, limits = control.layout, control.mapping, control.limits
    count = limits.num_slots * limits.max_destinations * DESTINATION_WORDS
    return UntoldOpener(
        status=_status(control),
        slots=_slots(control),
        destinations=Words(mapping, at.destinations, count),
        staging=Words(mapping, at.staging, limits.num_slots * at.own_window),
        asked=_room_words(control, at.asked),
        untold=_room_words(control, at.untold),
        finished=_room_words(control, at.finished),
        lane=lane,
        aux_at=AUX_OFFSET // 8,
        aux_words=AUX_WORDS // 2,
    )


def untold_sender(control: Control, writer: DirectWriter, binder: GrantBinder, columns: array[int]) -> UntoldSender:
    """Sends untold requests of an encode node's client to the language node of this writer and binder.

    `columns`: the buffers of its rows, as `DirectWriter.write` takes them.
    """
    at = control.layout
    finished, untold = _room_words(control, at.finished), _room_words(control, at.untold)
    return UntoldSender(writer, binder, columns, finished, untold, _clients_ends(control))


def untold_receiver(control: Control, lane: int) -> UntoldReceiver:
    """Opens, grants, lends, renews and releases untold requests for the client of a lane (language side)."""
    at, mapping, limits = control.layout, control.mapping, control.limits
    num_rows = len(metric_names(limits))  # the last of them is the clients'
    return UntoldReceiver(
        poster=control.poster,
        status=_status(control),
        header=Words(mapping, at.header, _HEADER_WORDS),
        peers=Words(mapping, at.peers, limits.max_peers * PEER_BYTES // 8),
        fetches=Words(mapping, at.fetches, limits.num_slots * FETCHED_WORDS),
        lanes=Words(mapping, at.lanes, limits.max_clients * LANE_WORDS),
        metrics=Words(mapping, at.metrics, num_rows * METRIC_WORDS),
        ends=_clients_ends(control),
        lane=lane,
        lent_at=lane * LANE_WORDS + Lane.NUM_LENT,
        metrics_at=(num_rows - 1) * METRIC_WORDS,
        peer_words=PEER_BYTES // 8,
        fetch_words=FETCHED_WORDS,
        slot_words=SLOT_BYTES // 8,
        address_at=ADDRESS_OFFSET // 8,
        block_size=control.geometry.block_size,
    )
