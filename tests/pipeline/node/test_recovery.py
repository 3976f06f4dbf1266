"""Who dies, and what is done: the cases name what there is, each has its test, and each recovery may die and be run
again.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import pytest
from support.alone import Alone, EncodeAlone, LanguageAlone

from embridge.allocator.geometry import Limits
from embridge.allocator.layout import process_names
from embridge.allocator.records import Lane, LaneState, SegmentHeader, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.node.recovery import Recovery

TESTS = Path(__file__).parents[2]


# ---- the cases


def docstrings() -> Iterator[str]:
    """Of every test function."""
    for path in TESTS.rglob("test_*.py"):
        for found in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(found, ast.FunctionDef) and found.name.startswith("test_"):
                yield ast.get_docstring(found) or ""


def cases() -> dict[str, list[str]]:
    """Of the page on recovery: who may die, and the functions that its case names."""
    text = (TESTS.parent / "docs" / "design" / "recovery.md").read_text()
    who_dies = text.partition("## Who dies\n")[2].partition("\n## ")[0]
    parts = [part.partition("\n") for part in who_dies.split("\n### ")[1:]]
    return {title[0].lower() + title[1:]: re.findall(r"`([\w.]+:[\w.]+)`", text) for title, _, text in parts}


def test_every_case_names_functions_that_exist_and_is_cited_by_a_test_of_that_death() -> None:
    """A page that nobody reads again when the code moves is prose."""
    assert len(cases()) == 14
    said = " ".join(" ".join(docstrings()).split())
    for dead, places in cases().items():
        assert len(places) > 1, f"{dead}: who notices, and what is done?"
        for place in places:
            module, _, name = place.partition(":")
            function = reduce(getattr, name.split("."), importlib.import_module(f"embridge.{module}"))
            assert callable(function), place
        assert f'"{dead}"' in said, f'no test says in its docstring that it is of a "{dead}"'


def test_every_process_of_a_node_has_its_case() -> None:
    for role in ("encode", "language"):
        for name in process_names(Limits(max_routes=1, has_web=1)):
            case = f"dead transfer worker ({role})" if name.startswith("worker") else f"dead {name}"
            assert case in cases(), name


@pytest.mark.parametrize("make", [EncodeAlone, LanguageAlone])
def test_the_requests_that_need_a_process_are_those_that_fail_without_it(
    make: type[EncodeAlone | LanguageAlone],
) -> None:
    """P8: none needs the registrar, all need bootstrap and poller; a language node's through shared memory need no
    worker.
    """
    alone = make()
    for room in (1, 2):
        if isinstance(alone, EncodeAlone):
            alone.sender(room, 12, rows=8)
        elif isinstance(alone, LanguageAlone):
            alone.receiver(room)
    recovery = Recovery(alone.control, lambda: 0)
    expected = {"registrar": 0, "bootstrap": 2, "poller": 2}
    expected["worker0"] = 2 if make is EncodeAlone else 0
    failed = {name: recovery.fail_requests_of(name, "it is gone", poller_is_dead=False) for name in expected}
    assert failed == expected


# ---- dead clients: with one kill, and with two


class Scene:
    """A client with two requests in flight that dies, and the peer that answers what it is asked."""

    def __init__(self, alone: Alone, slots: list[int], answer: Callable[[], None]) -> None:
        self.alone = alone
        self._slots = slots
        self._answer = answer

    def kill_client(self) -> None:
        self.alone.node.clients[0].die()

    def kill_at(self, role: str, change: int) -> list[str]:
        """Settle, with the peer's answers, while this role dies as `Alone.killed_at` says. Returns where it died."""
        with self.alone.killed_at(role, change) as places:
            self.settle()
        return places

    def settle(self) -> None:
        """All that can be done at once, the peer's answers included: the clock stands, so no slow scan helps."""
        for _ in range(4):
            self.alone.settle()
            self._answer()
        self.alone.settle()

    def assert_clean(self) -> None:
        """P3: blocks, slots, pages and the seat."""
        control = self.alone.control
        assert control.blocks.counts().free == control.blocks.num_blocks, control.blocks.counts()
        assert list(control.current_slots()) == []
        assert control.lanes.pages_of(0) == []
        assert control.lanes.get(0, Lane.STATE) == LaneState.FREE
        assert [self.alone.word(slot).phase for slot in self._slots] == [Phase.Failed] * len(self._slots)
        assert control.header.load(SegmentHeader.BLOCK_WAITERS) == 0


def encoder_scene() -> Scene:
    alone = EncodeAlone()
    senders = [alone.sender(room, 12, rows=8) for room in (1, 2)]
    alone.init(1, [3, 4])
    alone.control.blocks.set_waiting(0, True)
    assert alone.control.blocks.counts().owned

    def answer() -> None:
        alone.close(1)

    return Scene(alone, [sender.slot for sender in senders], answer)


def scheduler_scene() -> Scene:
    alone = LanguageAlone()
    receivers = [alone.receiver(room) for room in (1, 2)]
    receivers[1].allocate(1)
    assert alone.counts() == {"free": 3, "owned": 1, "exposed": 4}

    def answer() -> None:
        for receiver in receivers:
            if alone.slots.get(receiver.slot, Slot.ACKED_EPOCH) != receiver.epoch:
                alone.abort_ack(receiver)

    return Scene(alone, [receiver.slot for receiver in receivers], answer)


SCENES = {"encoder": encoder_scene, "scheduler": scheduler_scene}


@pytest.mark.parametrize("client", list(SCENES))
def test_what_a_dead_client_leaves_is_free_without_waiting_for_any_scan(client: str) -> None:
    """P3, D6: a "dead encoder client", a "dead scheduler client"; blocks, slots, pages, waiter's bit and seat, while
    the clock stands.
    """
    scene = SCENES[client]()
    scene.kill_client()
    scene.settle()
    scene.assert_clean()


def test_what_a_dead_scheduler_had_granted_is_quarantined_before_anybody_answers() -> None:
    """P3, P7, R7: owned blocks are free at once, exposed ones wait for the acknowledgement."""
    scene = scheduler_scene()
    scene.kill_client()
    scene.alone.settle()
    assert scene.alone.counts() == {"free": 4, "quarantined": 4}  # type: ignore[attr-defined]
    scene.settle()
    scene.assert_clean()


@pytest.mark.parametrize(
    ("client", "role", "is_answered"),
    [
        ("encoder", "poller", False),
        ("encoder", "worker0", False),
        ("encoder", "poller", True),
        ("encoder", "bootstrap", True),
        ("scheduler", "poller", False),
        ("scheduler", "poller", True),
        ("scheduler", "bootstrap", True),
    ],
)
def test_recovery_that_dies_at_any_change_it_makes_is_done_again_by_who_comes_after(
    client: str, role: str, is_answered: bool
) -> None:
    """P1, P2, R25: the poller in the middle of burying a lane, the bootstrap in the middle of a release; before every
    change of the step that begins it, or of the one after the peer's answer, and then with a second kill in the new
    one.
    """
    for again in (0, 1, 3):
        places, change = ["in the middle of a step"], 0
        while places == ["in the middle of a step"]:
            change += 1
            scene = SCENES[client]()
            scene.kill_client()
            if is_answered:
                scene.alone.settle()
            places = scene.kill_at(role, change)
            if again:
                scene.kill_at(role, again)
            scene.settle()
            scene.alone.advance(1.2)  # a kick that its sender had not flushed is repaired by the slow scan
            scene.settle()
            scene.assert_clean()
        assert change > 1, f"{role} makes {change - 1} changes only"


def test_a_lane_that_is_dead_is_found_by_the_slow_scan_should_the_kick_be_lost() -> None:
    """R25: the kick says "look", no more."""
    scene = scheduler_scene()
    actor = scene.alone.node.clients[0]
    actor.is_dead = True
    scene.alone.control.lanes.bury(actor.lane)
    scene.alone.advance(1.2)
    scene.settle()
    scene.alone.advance(1.2)
    scene.assert_clean()
