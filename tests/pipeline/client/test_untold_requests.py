"""When the node is told of which untold requests, and when the library thread is woken for that."""

from __future__ import annotations

from typing import Any, Final
from unittest.mock import Mock

from embridge.allocator.status import Phase, Progress
from embridge.pipeline.client.untold import LOOK_NS, UntoldRequests
from embridge.workers.timing import NS

LATE_NS: Final = NS // 2


class Clocked:
    """Untold requests under a clock of the test, and the times at which their library thread was woken."""

    def __init__(self) -> None:
        self.now_ns = NS
        self.rings: list[int] = []
        self.untold = UntoldRequests(lambda: self.now_ns, lambda: self.rings.append(self.now_ns))
        self.untold.late_ns = LATE_NS
        self.told: list[str] = []

    def handle(self, name: str) -> Any:
        handle = Mock(opened_ns=self.now_ns, has_settled=False, driver=None)
        handle.progress.return_value = Progress(1, Phase.Bootstrapping, 0)
        handle.tell.side_effect = lambda: self.told.append(name)
        return handle

    def turn_at(self, now_ns: int) -> list[str]:
        self.now_ns = now_ns
        self.untold.turn(now_ns)
        return self.told


def test_the_node_is_told_soon_of_a_request_whose_encoder_looks_no_more() -> None:
    """R37, P8: the library thread is woken at once, and sleeps no longer than until then."""
    it = Clocked()
    handle = it.handle("late post")
    it.untold.add(handle)
    it.untold.tell_soon(handle)
    assert it.rings == [NS]
    assert it.untold.wait_s(0.1) == 2 * LOOK_NS / NS
    assert it.turn_at(NS + 2 * LOOK_NS - 1) == []
    assert it.turn_at(NS + 2 * LOOK_NS) == ["late post"]


def test_the_others_are_told_when_they_are_late() -> None:
    """R78: nobody is woken for them, where the library thread looks often enough."""
    it = Clocked()
    it.untold.add(it.handle("one"))
    assert it.rings == []
    assert it.turn_at(NS + LATE_NS // 2) == []
    assert it.turn_at(NS + LATE_NS) == ["one"]


def test_rows_that_wait_have_a_look_each_two_milliseconds_until_they_are_found_or_late() -> None:
    """R37: not more often, whoever wakes the library thread."""
    it = Clocked()
    handle, looks = it.handle("offered"), []

    def look() -> bool:
        looks.append(it.now_ns)
        return len(looks) == 3

    it.untold.look_soon(handle, look)
    assert it.untold.wait_s(0.1) == LOOK_NS / NS
    for k in range(10):
        it.turn_at(NS + k * LOOK_NS // 2)
    assert looks == [NS, NS + LOOK_NS, NS + 2 * LOOK_NS]
    assert it.untold.wait_s(0.1) == 0.1
    it.untold.look_soon(it.handle("never"), lambda: False)
    it.turn_at(NS + 2 * LATE_NS)
    assert it.untold.wait_s(0.1) == 0.1
