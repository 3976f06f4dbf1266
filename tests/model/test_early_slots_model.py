"""A page in which early slots may lie (`pipeline/client/slot_lease.py`): two threads, no lock; who adds a slot to it,
and who ends it.

The caller's thread takes a free slot of an early page, notes it in the page's set, and looks whether the page is early
still, with that very set; if not, it gives the slot back. Or it makes a page early: counts it, then enters an empty
set. The library thread takes slots out of the set as they leave, and ends the page when none is in it, at once or when
somebody waits; it looks again afterwards, for the caller's may just have added one. It gives a page away that is wholly
free and not early, which the caller's thread may just make early. Each step is one that the GIL makes atomic. One page
of two slots, which the node allows to be early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore, put

NONE = -1
SLOTS = frozenset({1, 2})
Slots = frozenset[int]


class World(NamedTuple):
    """`early`: which of `sets` stands for the page, if it is early.

    `num_early`: early pages, as the node's other clients have it.
    """

    calls: int = 0  # to come
    early: int = 0
    sets: tuple[Slots, ...] = (frozenset({1}),)
    num_early: int = 1
    free: Slots = frozenset({2})
    is_leased: bool = True
    open: Slots = frozenset({1})
    caller: str = "idle"
    slot: int = NONE  # the caller's
    seen: int = NONE  # the set that it adds to
    library: str = "idle"
    ends: int = NONE  # the set that it ends
    leaves: int = NONE
    drained: Slots = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    looks_after_adding: bool = True
    looks_after_ending: bool = True
    sweeps: bool = True  # each turn of the library thread ends pages without an early slot, however they came to be so
    gives: bool = True  # not a rule: whether pages are given to other clients
    calls: int = 3


def changed(world: World, at: int, slots: Slots) -> tuple[Slots, ...]:
    return put(world.sets, at, slots)


def caller_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    if world.caller == "idle" and world.calls:
        yield "the caller wants a slot", world._replace(caller="take", calls=world.calls - 1)
    elif world.caller == "take":
        if world.early != NONE and world.free:
            slot = min(world.free)
            yield (
                "the caller takes a free slot of the early page",
                world._replace(caller="get", slot=slot, free=world.free - {slot}),
            )
        else:
            yield "the caller counts one more early page", world._replace(caller="make", num_early=world.num_early + 1)
    elif world.caller == "make":
        can = world.num_early <= 1 and world.early == NONE and (world.free or not world.is_leased)
        if can:
            leased = world if world.is_leased else world._replace(is_leased=True, free=SLOTS)
            yield "the caller finds a page", leased._replace(caller="enter")
        else:
            yield "there is none to be made early", world._replace(caller="idle", num_early=world.num_early - 1)
    elif world.caller == "enter":
        entered = world._replace(caller="take made", early=len(world.sets), sets=(*world.sets, frozenset()))
        yield "the caller makes the page early", entered
    elif world.caller == "take made":
        if world.free:
            slot = min(world.free)
            yield (
                "the caller takes a slot of the page",
                world._replace(caller="get", slot=slot, free=world.free - {slot}),
            )
        else:
            yield "the library was faster", world._replace(caller="take")
    elif world.caller == "get":
        following = "add" if world.early != NONE else "give back"
        yield "the caller gets the set", world._replace(caller=following, seen=world.early)
    elif world.caller == "add":
        after = world._replace(caller="look", sets=changed(world, world.seen, world.sets[world.seen] | {world.slot}))
        yield "the caller adds the slot", after if rules.looks_after_adding else opened(after)
    elif world.caller == "look":
        is_early = world.early == world.seen
        yield (
            "the caller looks whether the page is early",
            opened(world) if is_early else world._replace(caller="take out"),
        )
    elif world.caller == "take out":
        after = world._replace(
            caller="give back", sets=changed(world, world.seen, world.sets[world.seen] - {world.slot})
        )
        yield "the caller takes the slot out", after
    elif world.caller == "give back":
        yield (
            "the caller gives the slot back",
            world._replace(caller="take", free=world.free | {world.slot}, slot=NONE, seen=NONE),
        )


def opened(world: World) -> World:
    return world._replace(caller="idle", open=world.open | {world.slot}, slot=NONE, seen=NONE)


def library_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    if world.library == "idle":
        for slot in sorted(world.open):
            yield f"slot {slot} leaves", world._replace(library="take out", leaves=slot, open=world.open - {slot})
        if rules.sweeps and world.early != NONE and not world.sets[world.early]:
            yield "the library finds a page without an early slot", world._replace(library="end", ends=world.early)
        if rules.gives and world.is_leased and world.free == SLOTS and world.early == NONE:
            yield "the library drains the page", world._replace(library="give", drained=world.free, free=frozenset())
    elif world.library == "take out":
        if world.early == NONE:
            yield "it was not early", left(world)
        else:
            slots = world.sets[world.early] - {world.leaves}
            after = world._replace(
                sets=changed(world, world.early, slots), library="release" if slots else "end", ends=world.early
            )
            yield "the library takes it out", after
            if not slots and rules.sweeps:  # else the page would stay early for ever
                yield "the library takes it out, and keeps the page", after._replace(library="release", ends=NONE)
    elif world.library == "end":
        yield "the library ends the page", world._replace(library="look again", early=NONE)
    elif world.library == "look again":
        following = "put back" if world.sets[world.ends] and rules.looks_after_ending else "uncount"
        yield "the library looks again", world._replace(library=following)
    elif world.library == "put back":
        if world.early == NONE:
            yield "the library puts the set back", world._replace(library="release", early=world.ends)
        else:
            both = world.sets[world.early] | world.sets[world.ends]
            yield "it is early anew", world._replace(library="uncount", sets=changed(world, world.early, both))
    elif world.library == "uncount":
        yield "the library counts one less", world._replace(library="release", num_early=world.num_early - 1)
    elif world.library == "release":
        yield "the slot is free", left(world)
    elif world.library == "give":
        if world.early == NONE:
            yield "the page is nobody's", world._replace(library="idle", is_leased=False, drained=frozenset())
        else:
            yield "it is kept", world._replace(library="idle", free=world.free | world.drained, drained=frozenset())


def left(world: World) -> World:
    slots = world.free if world.leaves == NONE else world.free | {world.leaves}
    return world._replace(library="idle", leaves=NONE, ends=NONE, free=slots)


def tidied(world: World) -> World:
    """Sets that nobody knows any more are not told apart."""
    known = list(dict.fromkeys(at for at in (world.early, world.seen, world.ends) if at != NONE))
    at = {NONE: NONE, **{old: new for new, old in enumerate(known)}}
    sets = tuple(world.sets[old] for old in known)
    return world._replace(sets=sets, early=at[world.early], seen=at[world.seen], ends=at[world.ends])


def wrong(world: World) -> str | None:
    if world.caller != "idle" or world.library != "idle":
        return None
    if world.open - (world.sets[world.early] if world.early != NONE else frozenset()):
        return "an early slot lies in a page that is not counted"
    return None if world.num_early == (world.early != NONE) else "the count is wrong"


def explore_page(rules: Rules) -> Finding:
    def is_over(world: World) -> bool:
        return (world.calls, world.caller, world.library, world.num_early) == (0, "idle", "idle", 0) and not world.open

    def steps(world: World) -> Iterator[tuple[str, World]]:
        for label, following in (*caller_steps(rules, world), *library_steps(rules, world)):
            yield label, tidied(following)

    return explore(World(calls=rules.calls), steps, violated=wrong, goal=is_over)


def test_early_slots_lie_in_counted_pages_and_no_page_is_counted_for_ever() -> None:
    """P8: whichever thread is in between."""
    finding = explore_page(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 100


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (Rules(looks_after_adding=False), "an early slot lies in a page that is not counted"),
        (Rules(looks_after_ending=False), "an early slot lies in a page that is not counted"),
        (Rules(sweeps=False), "stuck"),
        (Rules(sweeps=False, gives=False), "stuck"),
    ],
    ids=[
        "adds without a look",
        "ends without a look",
        "a page that is given away is made early",
        "both threads take it back",
    ],
)
def test_each_step_of_ending_a_page_is_needed(rules: Rules, fault: str) -> None:
    """P8: without it a page is counted for ever though none of its slots is early, or is not though one is."""
    finding = explore_page(rules)
    assert finding.fault is not None, finding
    assert finding.fault.startswith(fault), finding
