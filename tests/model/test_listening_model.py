"""A call that waits for a slot hears that its room is wanted, whoever is in between.

The two sides are `pipeline/client/slot_queue.py` and `workers/bootstrap/encode.py`.

Nobody waits any more, so the library thread stops to listen: it takes what stands in the log for read, and the mark of
its lane away. Meanwhile the caller's thread joins one: enters it, marks the lane, asks. The bootstrap announces the
room in the log when its init comes, and when it is asked afterwards, if the mark stands then. The init comes once here:
nothing is sent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore


class World(NamedTuple):
    caller: str = "enter"
    waits: bool = False
    mark: bool = True  # one has waited before, and has its slot
    asked: bool = False
    came: bool = False
    log: int = 0  # announcements of the room
    library: str = "idle"
    end: int = 0
    read: int = 0
    is_marked: bool = True
    heard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    marks_before_it_asks: bool = True
    reads_the_end_before_it_looks: bool = True
    looks_again: bool = True  # after it has taken the mark away
    asks_again: bool = True  # after it has set the mark again


def announced(world: World) -> World:
    return world._replace(log=world.log + 1) if world.came and world.mark else world


def steps_with(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    first, then = ("mark", "ask") if rules.marks_before_it_asks else ("ask", "mark")
    if world.caller == "enter":
        yield "the caller enters the call", world._replace(caller="first", waits=True)
    elif world.caller in ("first", "then"):
        after = world._replace(caller="then" if world.caller == "first" else "done")
        if (first if world.caller == "first" else then) == "mark":
            yield "the caller marks its lane", after._replace(mark=True)
        else:
            yield "the caller asks", after._replace(asked=True)
    if not world.came:
        yield "the init comes", announced(world._replace(came=True))
    if world.asked:
        yield "the bootstrap is asked", announced(world._replace(asked=False))
    yield from library_steps(rules, world)


def library_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    if world.library == "idle":
        yield "the library reads the end of the log", world._replace(library="look", end=world.log)
    elif world.library == "look" and not world.waits:
        yield "the library finds nobody", world._replace(library="stop")
    elif world.library == "look":
        yield (
            "the library listens",
            world._replace(library="listen", is_marked=True, mark=world.mark or not world.is_marked),
        )
    elif world.library == "listen":
        yield (
            "the library reads the log",
            world._replace(library="idle", read=world.log, heard=world.heard or world.log > world.read),
        )
    elif world.library == "stop":
        end = world.end if rules.reads_the_end_before_it_looks else world.log
        yield "the library has read all", world._replace(library="clear" if world.is_marked else "idle", read=end)
    elif world.library == "clear":
        following = "look again" if rules.looks_again else "idle"
        yield "the library takes the mark away", world._replace(library=following, mark=False, is_marked=False)
    elif world.library == "look again":
        yield "the library looks again", world._replace(library="mark again" if world.waits else "idle")
    elif world.library == "mark again":
        yield "the library marks again", world._replace(library="ask again" if rules.asks_again else "idle", mark=True)
    elif world.library == "ask again":
        yield "the library asks again", world._replace(library="idle", asked=True)


def explore_listening(rules: Rules) -> Finding:
    return explore(World(), lambda world: steps_with(rules, world), goal=lambda world: world.heard)


def test_a_call_that_joins_while_nobody_else_waits_hears_that_its_room_is_wanted() -> None:
    """P8: without the next init."""
    finding = explore_listening(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 100


@pytest.mark.parametrize("rule", Rules.__dataclass_fields__)
def test_each_step_of_listening_is_needed(rule: str) -> None:
    """P8: without it, an announcement falls between two looks."""
    finding = explore_listening(Rules(**{rule: False}))
    assert finding.fault is not None, finding
    assert finding.fault.startswith("stuck")
