"""Two bells and one turn (`direct_ring`, `CallersView`, `Library._take_turn`), every interleaving.

A writer raises a status word, marks it in both views, and rings the caller's bell; if he did not sleep there, the
library thread's, too. Either of the two takes the turn and serves what a mark of its own view has named. The caller
serves no more than what needs no copy, and he may be away for as long as he likes, once he has looked. Where nothing
waits for what a success gives free, the library thread is spared while the caller is awake. No slow look is modelled:
none is needed where nobody is killed, and it makes up for kills (`test_waited_word_model`). What a bell does by itself
is `test_status_doorbell_model`'s; so a sleeper's state and its second look are one step each here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore, put

AWAKE, ASLEEP, ARMED = "awake", "asleep", "armed"
CALLER, LIBRARY = 0, 1


class Waiter(NamedTuple):
    """`rung`: whether its bell's sequence has moved since it was noted; `named`: how many of the landed requests its
    marks have named so far.
    """

    at: str = "note"
    rung: bool = False
    named: int = 0
    has_turn: bool = False


class World(NamedTuple):
    landed: int = 0
    served: int = 0
    popped: int = 0
    marks: tuple[bool, bool] = (False, False)
    states: tuple[str, str] = (AWAKE, AWAKE)
    library_waits: bool = False
    writers: tuple[str, ...] = ("mark", "mark")
    waiters: tuple[Waiter, Waiter] = (Waiter(), Waiter())

    @property
    def is_taken(self) -> bool:
        return any(waiter.has_turn for waiter in self.waiters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    eventfd: bool = False  # not a rule: the caller sleeps in a poll loop of his own, which a writer cannot wake
    needs_copy: bool = False  # not a rule: the caller cannot serve what has landed
    is_away: bool = True  # not a rule: the caller may go and look no more
    is_spared: bool = False  # not a rule: what has landed may wait for the caller, as long as he likes
    awake_is_asked_behind_the_ring: bool = True
    armed_is_left_to_the_library: bool = True
    caller_passes_on: bool = True  # what he does not serve, by a ring
    caller_rings_who_waits: bool = True
    waits_before_try: bool = True  # the library says that it waits before it tries to take the turn
    library_tells: bool = True  # the caller, that it has served


def ring(world: World, whose: int) -> World:
    """Move the sequence, read the state, wake: a poll loop is woken by whoever has its eventfd."""
    return moved(world, whose)._replace(states=with_state(world, whose, AWAKE))


def moved(world: World, whose: int) -> World:
    """Its sequence has moved on."""
    waiters = put(world.waiters, whose, world.waiters[whose]._replace(rung=True))
    return world._replace(waiters=(waiters[0], waiters[1]))


def with_state(world: World, whose: int, state: str) -> tuple[str, str]:
    states = put(world.states, whose, state)
    return states[0], states[1]


def writer_step(world: World, at: str, rules: Rules) -> tuple[str, str, World]:
    if at == "mark":
        return "raises a word and marks it", "ring", world._replace(landed=world.landed + 1, marks=(True, True))
    if at == "ring" and rules.is_spared and not rules.awake_is_asked_behind_the_ring:
        is_awake = world.states[CALLER] == AWAKE
        return "asks whether the caller is awake", "only move" if is_awake else "ring without a question", world
    if at == "only move":
        return "moves the caller's sequence", "done", moved(world, CALLER)
    if at in ("ring", "ring without a question"):
        state = world.states[CALLER]
        after = moved(world, CALLER)
        if state == ASLEEP:
            return "wakes the caller", "done", after._replace(states=with_state(world, CALLER, AWAKE))
        if rules.is_spared and rules.awake_is_asked_behind_the_ring:
            return "finds the caller awake, or out of reach", "ask", after
        is_left = state == ARMED and not rules.armed_is_left_to_the_library
        return "finds the caller awake, or out of reach", "done" if is_left else "ring the library", after
    if at == "ask":
        is_awake = world.states[CALLER] == AWAKE
        return "asks whether the caller is awake", "done" if is_awake else "ring the library", world
    return "rings the library", "done", ring(world, LIBRARY)


def look_steps(world: World, whose: int, rules: Rules) -> Iterator[tuple[str, World]]:
    """What both threads do: note, take the mark, take the turn, serve, give it back, sleep."""
    me = world.waiters[whose]
    is_caller = whose == CALLER

    def go(label: str, following: Waiter, after: World = world) -> tuple[str, World]:
        waiters = put(after.waiters, whose, following)
        return f"{'caller' if is_caller else 'library'} {label}", after._replace(waiters=(waiters[0], waiters[1]))

    if me.at == "note":
        yield go("notes the sequence", me._replace(at="mark" if is_caller else "wait", rung=False))
    elif me.at == "mark":
        marks = put(world.marks, whose, False)
        named = world.landed if world.marks[whose] else me.named
        following = me._replace(at="try" if is_caller else "serve", named=named)
        yield go("takes its mark", following, world._replace(marks=(marks[0], marks[1])))
    elif me.at == "wait":
        yield go("says that it waits", me._replace(at="try"), world._replace(library_waits=rules.waits_before_try))
    elif me.at == "try" and is_caller and me.named <= world.served:
        yield go("finds nothing to serve", me._replace(at="pop"))
    elif me.at == "try" and world.is_taken:
        if is_caller:
            yield go("does not get the turn", me._replace(at="pass on" if rules.caller_passes_on else "pop"))
        elif rules.waits_before_try:
            yield go("does not get the turn", me._replace(at="sleep"))
        else:
            yield go("does not get the turn", me._replace(at="wait late"))
    elif me.at == "wait late":
        yield go("says that it waits", me._replace(at="sleep"), world._replace(library_waits=True))
    elif me.at == "try":
        taken = world if is_caller else world._replace(library_waits=False)
        yield go("takes the turn", me._replace(at="serve" if is_caller else "mark", has_turn=True), taken)
    elif me.at == "serve" and is_caller:
        served = world.served if rules.needs_copy else max(world.served, me.named)
        is_left = served < me.named and rules.caller_passes_on
        following = me._replace(at="pass on" if is_left else "look who waits", has_turn=False)
        yield go("serves, and gives the turn back", following, world._replace(served=served))
    elif me.at == "serve":
        after = world._replace(served=max(world.served, me.named))
        has_served = after.served > world.served and rules.library_tells
        following = me._replace(at="sleep", has_turn=False)
        yield go("serves, and gives the turn back", following, ring(after, CALLER) if has_served else after)
    elif me.at == "look who waits":
        rings = world.library_waits and rules.caller_rings_who_waits
        yield go("looks whether the library waits", me._replace(at="pass on" if rings else "pop"))
    elif me.at == "pass on":
        yield go("rings the library", me._replace(at="pop"), ring(world, LIBRARY))
    elif me.at == "pop":
        yield go("pops", me._replace(at="sleep"), world._replace(popped=world.served))
    elif me.at == "sleep":
        if me.rung:
            yield go("sees a ring, stays awake", me._replace(at="note"))
        else:
            state = ARMED if is_caller and rules.eventfd else ASLEEP
            yield go("sleeps", me._replace(at="asleep"), world._replace(states=with_state(world, whose, state)))
        if is_caller and rules.is_away:
            yield go("goes away", me._replace(at="away"))
    elif me.at == "asleep" and world.states[whose] == AWAKE:
        yield go("wakes up", me._replace(at="note"))


def explore_bells(rules: Rules) -> Finding:
    def steps(world: World) -> Iterator[tuple[str, World]]:
        for whose in (CALLER, LIBRARY):
            yield from look_steps(world, whose, rules)
        for at in dict.fromkeys(world.writers):
            i = world.writers.index(at)
            if at != "done":
                label, following, after = writer_step(world, at, rules)
                writers = tuple(sorted(put(after.writers, i, following)))  # they are alike
                yield f"a writer {label}", after._replace(writers=writers)

    def is_over(world: World) -> bool:
        has_popped = world.popped == world.landed or world.waiters[CALLER].at == "away"
        has_served = world.served == world.landed or (rules.is_spared and world.waiters[CALLER].at == "away")
        return all(at == "done" for at in world.writers) and has_served and has_popped

    def violated(world: World) -> str | None:
        return "both have the turn" if all(waiter.has_turn for waiter in world.waiters) else None

    return explore(World(), steps, violated=violated, goal=is_over)


SPARED = [
    pytest.param(False, False, id="futex-in place", marks=pytest.mark.storm),
    pytest.param(False, True, id="futex-to be drained"),
    pytest.param(True, False, id="eventfd-in place"),
    pytest.param(True, True, id="eventfd-to be drained", marks=pytest.mark.storm),
]


SERVED = [
    pytest.param(False, False, id="futex-in place"),
    pytest.param(False, True, id="futex-to be drained", marks=pytest.mark.storm),
    pytest.param(True, False, id="eventfd-in place", marks=pytest.mark.storm),
    pytest.param(True, True, id="eventfd-to be drained"),
]


@pytest.mark.parametrize(("eventfd", "needs_copy"), SERVED)
def test_what_has_landed_is_served_and_popped_whoever_was_woken(eventfd: bool, needs_copy: bool) -> None:
    """P8: with one wake-up where the caller sleeps on the futex, and by the library thread where he is away."""
    finding = explore_bells(Rules(eventfd=eventfd, needs_copy=needs_copy))
    assert finding.fault is None, finding
    assert finding.num_states > 1000


@pytest.mark.parametrize(("eventfd", "needs_copy"), SPARED)
def test_a_caller_who_looks_pops_what_has_landed_though_the_library_thread_is_spared(
    eventfd: bool, needs_copy: bool
) -> None:
    """P8: it sleeps on while he is awake, and he cannot fall asleep over what he has not seen."""
    finding = explore_bells(Rules(eventfd=eventfd, needs_copy=needs_copy, is_spared=True))
    assert finding.fault is None, finding
    assert finding.num_states > 1000


@pytest.mark.parametrize(
    "rules",
    [
        Rules(eventfd=True, armed_is_left_to_the_library=False),
        Rules(caller_passes_on=False, needs_copy=True),
        Rules(caller_rings_who_waits=False),
        Rules(waits_before_try=False),
        Rules(library_tells=False, needs_copy=True),
        pytest.param(Rules(is_spared=True, awake_is_asked_behind_the_ring=False), marks=pytest.mark.storm),
    ],
    ids=[
        "the ringer takes an armed eventfd for a sleeper that it has woken",
        "the caller keeps for himself what he does not serve",
        "the caller gives the turn back without a look at who waits for it",
        "the library says that it waits after it has found the turn taken",
        "the library does not tell that it has served",
        "a writer asks whether the caller is awake before it moves his sequence",
    ],
)
def test_each_rule_of_the_two_bells_is_needed(rules: Rules) -> None:
    """P8: without it, there is a state in which what has landed is served by nobody, or popped by nobody."""
    finding = explore_bells(rules)
    assert finding.fault is not None, finding
    assert finding.fault.startswith("stuck")
