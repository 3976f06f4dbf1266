"""The library thread's turn (`pipeline/client/library.py`): a slot that changes hands, its mark, its status word, and a
word beside it.

The caller opens the slot's next epoch, enters its handle, and wakes the handle that has left. A writer raises the
status word and another word that the handle waits for (its peer, its length, that rows are ready), each with a mark; it
may come as soon as the epoch is open, and be killed between a word and its mark. The library thread takes the mark,
finds out whose the slot is, takes what was woken, and serves. Its slow look comes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore

NOBODY, OLD, NEW = 0, 1, 2
STATUS, OTHER = 0, 1


class World(NamedTuple):
    """`raised`, `served`: the status word and the other one of the new epoch, as they stand, and as its handle has seen
    them.
    """

    caller: str = "open"
    open: bool = False
    entered: int = NOBODY
    raised: tuple[int, int] = (0, 0)
    served: tuple[int, int] = (0, 0)
    compared: tuple[bool, int] = (False, 0)  # the epoch and status of the last comparison
    bit: bool = False
    woken: frozenset[int] = frozenset()
    writer: tuple[str, ...] = ("raise status", "mark", "raise other", "mark")
    library: str = "idle"
    todo: frozenset[int] = frozenset()
    named: int = NOBODY  # who is looked at for the slot's sake, where the table is kept by slot
    kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    by_handle: bool = True  # what is to be served is kept by handle, not by slot
    slow_look: str = "round"  # "nothing"; "compare": status words; "round": and every open handle in turn
    writer_waits: bool = False  # not a rule: nobody raises a word before the handle is entered
    kills: int = 1


def serve(world: World, handles: frozenset[int]) -> World:
    seen = world.raised if NEW in handles and world.entered == NEW else world.served
    return world._replace(served=seen, library="idle", todo=frozenset(), named=NOBODY)


def steps_with(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    if world.caller == "open":
        yield "the caller opens the epoch", world._replace(caller="enter", open=True)
    elif world.caller == "enter":
        yield "the caller enters the handle", world._replace(caller="wake", entered=NEW)
    elif world.caller == "wake":
        yield "the caller wakes the handle that has left", world._replace(caller="done", woken=world.woken | {OLD})
    yield from writer_steps(rules, world)
    yield from library_steps(rules, world)


def writer_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    if not world.writer or not world.open or (rules.writer_waits and world.entered != NEW):
        return
    step, rest = world.writer[0], world.writer[1:]
    status, other = world.raised
    if step == "raise status":
        yield "the status rises", world._replace(writer=rest, raised=(1, other))
    elif step == "raise other":
        yield "the other word rises", world._replace(writer=rest, raised=(status, 1))
    else:
        yield "the writer marks", world._replace(writer=rest, bit=True)
        if world.kills:
            yield (
                "the writer is killed before its mark; another goes on",
                world._replace(writer=rest, kills=world.kills - 1),
            )


def library_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    def named(world: World) -> World:
        """Whoever is entered for the slot now."""
        if world.entered != NEW:
            return world
        return world._replace(todo=world.todo | {NEW}, named=NEW)

    if world.library == "idle":
        if world.bit:
            yield "the library takes the mark", world._replace(bit=False, library="whose")
        if world.woken:
            yield "the library finds no mark", world._replace(library="woken")
        if rules.slow_look != "nothing":
            now = (world.open, world.raised[STATUS])
            looked = world._replace(compared=now, bit=False, library="woken")
            changed = now != world.compared or world.bit or rules.slow_look == "round"
            yield "the library takes its slow look", named(looked) if changed else looked
    elif world.library == "whose":
        yield "the library finds whose the slot is", named(world)._replace(library="woken")
    elif world.library == "woken":
        todo = world.todo | world.woken
        if not rules.by_handle and OLD in world.woken:
            todo = frozenset({OLD})
        yield "the library serves", serve(world._replace(woken=frozenset()), todo)


def explore_turn(rules: Rules) -> Finding:
    def has_seen_all(world: World) -> bool:
        return not world.writer and world.caller == "done" and world.served == world.raised

    return explore(World(kills=rules.kills), lambda world: steps_with(rules, world), goal=has_seen_all)


def test_whatever_mark_is_lost_the_request_sees_every_word_that_it_waits_for() -> None:
    """P1, P8: by a kill, or because its bit was taken before its handle was entered."""
    finding = explore_turn(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 100


def test_a_mark_that_is_not_lost_needs_no_slow_look() -> None:
    """P8: a handle that was woken takes nothing from the one that the mark has named."""
    finding = explore_turn(Rules(slow_look="nothing", kills=0, writer_waits=True))
    assert finding.fault is None, finding


@pytest.mark.parametrize(
    "rules",
    [
        Rules(by_handle=False, slow_look="nothing", kills=0, writer_waits=True),
        Rules(by_handle=False, slow_look="compare", kills=0, writer_waits=True),
        Rules(slow_look="compare", writer_waits=True),
        Rules(slow_look="compare", kills=0),
        Rules(slow_look="nothing", kills=0),
    ],
    ids=[
        "by slot, no slow look",
        "by slot, a comparison",
        "a comparison, and a writer is killed",
        "a comparison, and a mark is taken before the entry",
        "no slow look, and a mark is taken before the entry",
    ],
)
def test_each_rule_of_the_turn_is_needed(rules: Rules) -> None:
    """P8: without it, a request waits for ever for a word that stands there."""
    finding = explore_turn(rules)
    assert finding.fault is not None, finding
    assert finding.fault.startswith("stuck")
