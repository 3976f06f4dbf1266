"""What `embridge status` reads out of a control segment, which is made by hand here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from support.by_hand import by_hand
from support.claims import shut

from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.sessions import SHM_EXPOSURE, LiveSession, exposure_of
from embridge.allocator.status import Phase
from embridge.workers.inspection.scene import Scene, view_of


def test_rows_that_were_written_directly_are_ahead_of_what_the_encode_node_has_told(tmp_path: Path) -> None:
    """R32: they are heard of, ready and granted, though no message has said so."""
    control = by_hand(tmp_path)
    epoch = control.status.open(9, 1)
    assert view_of(Scene(control, 10), 9).is_heard is False  # type: ignore[union-attr]
    assert control.status.advance(9, epoch, Phase.WaitingForInput, 130, 2)
    view = view_of(Scene(control, 10), 9)
    assert (view.ready, view.is_heard, view.known_blocks) == (130, True, 2)  # type: ignore[union-attr]


def test_the_holder_of_a_claim_is_named_while_it_is_listed_and_dead_when_it_is_not(tmp_path: Path) -> None:
    """R33; and a claim of an older request is not this one's."""
    control = by_hand(tmp_path)
    epoch = control.status.open(9, 1)
    listed = control.writers.add(ForeignWriter(5, 1, os.getpid(), has_claims=True))
    assert listed is not None
    shut(control.claims, 9, epoch, 0)
    assert control.claims.offer(9, epoch)
    assert control.claims.take(9, epoch, listed)
    seen = [view_of(Scene(control, 10), 9)]
    control.writers.remove(listed.entry)
    seen.append(view_of(Scene(control, 10), 9))
    control.status.open(9, 1)
    seen.append(view_of(Scene(control, 10), 9))
    assert [(view.claim.name, view.writer.pid, view.is_writer_gone) for view in seen] == [  # type: ignore[union-attr]
        ("WRITING", os.getpid(), False),
        ("WRITING", 0, True),
        ("SHUT", 0, False),
    ]


def test_quarantined_blocks_are_told_by_the_session_whose_end_frees_them(tmp_path: Path) -> None:
    """R10, R12: of a worker's session, of one that is over, of writers through shared memory; a request that wants
    blocks says which.
    """
    control = by_hand(tmp_path)
    control.sessions.begin(0, LiveSession(5, 1, 1))
    control.sessions.begin(1, LiveSession(4, 1, 1))
    cells = control.blocks.cells
    for slot, exposure, count in ((1, exposure_of(0, 5), 4), (2, exposure_of(1, 3), 3), (3, SHM_EXPOSURE, 2)):
        blocks = control.blocks.acquire(slot, 1, count, may_take_reserve=True)
        assert cells.expose(blocks, 0, count, slot, 1, exposure) == count
        assert cells.quarantine(blocks, 0, count, slot, 1) == count
    scene = Scene(control, 10)
    assert [entry for entry, _ in scene.quarantine] == [
        {"session": "session 5 of worker0", "blocks": 4, "ends_with": "a fence of worker0"},
        {"session": "session 3 of worker1", "blocks": 3, "ends_with": "the poller's next look: that session is over"},
        {
            "session": "shared memory",
            "blocks": 2,
            "ends_with": "the abort's acknowledgement and the claim's end, or the writers' death",
        },
    ]
    view = view_of(scene, 9)
    assert (view.free_blocks, view.held) == (0, "4 held by room 0, 3 held by room 0, 2 held by room 0")
    assert view.fence == "session 5 of worker0, session 3 of worker1, shared memory"  # type: ignore[union-attr]
    assert view.fencing.name == "worker0"  # type: ignore[union-attr]
    assert [view_of(scene, slot).own_quarantined_blocks for slot in (1, 2, 9)] == [4, 3, 0]  # type: ignore[union-attr]
    assert np.sum(control.blocks.counts()) == 9
