"""The soak's judgement of what processes had of the machine."""

from __future__ import annotations

import os
import tempfile
import threading

import pytest

from embridge.workers.bootstrap.ended_rooms import EndedRooms, Remote
from storm.clients import ABORTED, was_given_up
from storm.soak import MORE_BYTES, Held, drift, held_by

STEADY = Held(20, 4, 300, 50 << 20)


def series(last: Held, *, spikes: int = 0, num: int = 200) -> list[Held]:
    """Steady, and something else in the last tenth; with a sample out of the way now and then."""
    samples = [STEADY] * (num - num // 10) + [last] * (num // 10)
    for i in range(spikes):
        samples[-1 - 7 * i] = Held(99, 99, 999, 1 << 30)
    return samples


def test_what_is_steady_does_not_drift_and_a_moment_is_no_drift() -> None:
    """P20."""
    assert drift(series(STEADY)) == []
    assert drift(series(STEADY, spikes=2)) == []
    assert drift(series(STEADY._replace(descriptors=19))) == []
    assert drift(series(STEADY._replace(resident_bytes=STEADY.resident_bytes + MORE_BYTES))) == []


def test_what_comes_in_the_warm_up_is_no_drift() -> None:
    assert drift([Held(1, 1, 1, 1)] * 10 + [STEADY] * 190) == []


@pytest.mark.parametrize("field", ["descriptors", "threads", "mappings"])
def test_one_more_at_the_end_is_a_drift(field: str) -> None:
    """P20: +0."""
    more = STEADY._replace(**{field: getattr(STEADY, field) + 1})
    (found,) = drift(series(more))
    assert found.startswith(f"{field}: {getattr(STEADY, field)}, then ")


def test_memory_that_grows_is_a_drift() -> None:
    """P20: also a little at a time."""
    (found,) = drift([STEADY._replace(resident_bytes=(50 << 20) + i * (1 << 16)) for i in range(200)])
    assert found.startswith("resident_bytes: ")


def test_too_few_samples_are_no_proof() -> None:
    assert drift([STEADY] * 10) == ["10 samples are too few to judge"]


def test_what_a_process_holds_is_counted() -> None:
    before = held_by(os.getpid())
    assert before is not None
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    with tempfile.TemporaryFile():
        thread.start()
        during = held_by(os.getpid())
        done.set()
        thread.join()
    assert during is not None
    assert (during.descriptors, during.threads) == (before.descriptors + 1, before.threads + 1)
    assert held_by(2**22 + 1) is None


def test_a_request_that_one_side_gave_up_is_explained_also_to_a_destination_that_comes_after() -> None:
    """R15: the encode node bars the room, and says why."""
    rooms = EndedRooms(1.0, 1)
    rooms.fail(3, 1, ABORTED, 0)
    barred = rooms.came(3, Remote(0, 7, 1), 1, 0)
    assert barred is not None
    assert barred.reason != ABORTED
    assert was_given_up(barred.reason)
    assert was_given_up(ABORTED)
    rooms.fail(4, 1, "the encoder process died", 0)
    other = rooms.came(4, Remote(0, 8, 1), 1, 0)
    assert other is not None
    assert not was_given_up(other.reason)
