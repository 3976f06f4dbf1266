"""A breadth-first explorer of every interleaving of a small model.

A model is an initial state (hashable) and a function that gives the steps possible in a state, as (label, next
state). What must never be is said by `violated`; what must stay reachable from everywhere, whatever happens
(liveness, as long as every process that can step does so at some time), by `goal`. Both come back with the shortest
trace that breaks them.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
Item = TypeVar("Item")
Setting = TypeVar("Setting")
Rules = TypeVar("Rules")


def put(items: tuple[Item, ...], index: int, value: Item) -> tuple[Item, ...]:
    """The same items, but for one."""
    return (*items[:index], value, *items[index + 1 :])


class Ruled(Generic[Setting, Rules]):
    """A model as it is explored: `setting` says how large it is and what may happen how often, `rules` which of the
    rules hold.
    """

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting, self.rules = setting, rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an exploration found; `fault` is None where nothing is wrong."""

    num_states: int
    fault: str | None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        steps = "".join(f"\n  {number}. {label}" for number, label in enumerate(self.trace, 1))
        return f"{self.fault or 'holds'} ({self.num_states} states){steps}"


class _Search(Generic[State]):
    """The states seen so far, in the order in which they were found; how each was reached first, and who leads to whom.

    States go by their numbers here: to hash one, a tuple of tuples, is most of what it costs to meet it.
    """

    def __init__(self, initial: State) -> None:
        self.states = [initial]
        self._numbers = {initial: 0}
        self._reached_by: list[tuple[int, str] | None] = [None]
        self._predecessors: list[list[int]] = [[]]

    def add(self, number: int, label: str, following: State) -> None:
        found = self._numbers.setdefault(following, len(self.states))
        if found < len(self.states):
            self._predecessors[found].append(number)
        else:
            self.states.append(following)
            self._reached_by.append((number, label))
            self._predecessors.append([number])

    def finding(self, fault: str, number: int) -> Finding:
        labels: list[str] = []
        step = self._reached_by[number]
        while step is not None:
            labels.append(step[1])
            step = self._reached_by[step[0]]
        return Finding(num_states=len(self.states), fault=fault, trace=labels[::-1])

    def unable_to_reach(self, goal: Callable[[State], bool]) -> int | None:
        """The number of the first state from which no goal can be reached."""
        queue = deque(number for number, state in enumerate(self.states) if goal(state))
        able = [False] * len(self.states)
        for number in queue:
            able[number] = True
        while queue:
            for before in self._predecessors[queue.popleft()]:
                if not able[before]:
                    able[before] = True
                    queue.append(before)
        return able.index(False) if False in able else None


def explore(
    initial: State,
    steps: Callable[[State], Iterable[tuple[str, State]]],
    *,
    violated: Callable[[State], str | None] = lambda state: None,
    goal: Callable[[State], bool] | None = None,
    max_states: int = 300_000,
) -> Finding:
    """Explore all that can happen from `initial`.

    Raises:
        RuntimeError: there are more than `max_states` states, so nothing is proved; make the model smaller.
    """
    collects = gc.isenabled()
    gc.disable()  # states are no cycles, and there are many of them to look through
    try:
        return _explored(_Search(initial), steps, violated, goal, max_states)
    finally:
        if collects:
            gc.enable()


def _explored(
    search: _Search[State],
    steps: Callable[[State], Iterable[tuple[str, State]]],
    violated: Callable[[State], str | None],
    goal: Callable[[State], bool] | None,
    max_states: int,
) -> Finding:
    states = search.states
    for number, state in enumerate(states):  # which grows meanwhile
        fault = violated(state)
        if fault is not None:
            return search.finding(fault, number)
        for label, following in steps(state):
            search.add(number, label, following)
        if len(states) > max_states:
            raise RuntimeError(f"more than {max_states} states; make the model smaller")
    if goal is not None:
        stuck = search.unable_to_reach(goal)  # the first that was found, which has the shortest trace
        if stuck is not None:
            return search.finding(f"stuck in {states[stuck]}", stuck)
    return Finding(num_states=len(states), fault=None)
