"""A breadth-first explorer of every interleaving of a small model.

A model is an initial state (hashable) and a function that gives the steps possible in a state, as (label, next
state). What must never be is said by `violated`; what must stay reachable from everywhere, whatever happens
(liveness, as long as every process that can step does so at some time), by `goal`. Both come back with the shortest
trace that breaks them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
Item = TypeVar("Item")


def put(items: tuple[Item, ...], index: int, value: Item) -> tuple[Item, ...]:
    """The same items, but for one."""
    return (*items[:index], value, *items[index + 1 :])


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
    """The states seen so far, how each was reached first, and who leads to whom."""

    def __init__(self, initial: State) -> None:
        self.reached_by: dict[State, tuple[State, str] | None] = {initial: None}
        self.predecessors: dict[State, list[State]] = {}
        self.queue = deque([initial])

    def add(self, state: State, label: str, following: State) -> None:
        self.predecessors.setdefault(following, []).append(state)
        if following not in self.reached_by:
            self.reached_by[following] = (state, label)
            self.queue.append(following)

    def finding(self, fault: str, state: State) -> Finding:
        labels: list[str] = []
        step = self.reached_by[state]
        while step is not None:
            labels.append(step[1])
            step = self.reached_by[step[0]]
        return Finding(num_states=len(self.reached_by), fault=fault, trace=labels[::-1])

    def able_to_reach(self, goal: Callable[[State], bool]) -> set[State]:
        able = {state for state in self.reached_by if goal(state)}
        queue = deque(able)
        while queue:
            for state in self.predecessors.get(queue.popleft(), ()):
                if state not in able:
                    able.add(state)
                    queue.append(state)
        return able


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
    search = _Search(initial)
    while search.queue:
        state = search.queue.popleft()
        fault = violated(state)
        if fault is not None:
            return search.finding(fault, state)
        for label, following in steps(state):
            search.add(state, label, following)
        if len(search.reached_by) > max_states:
            raise RuntimeError(f"more than {max_states} states; make the model smaller")
    if goal is not None:
        able = search.able_to_reach(goal)
        for state in search.reached_by:  # in the order in which they were found, so the first has the shortest trace
            if state not in able:
                return search.finding(f"stuck in {state}", state)
    return Finding(num_states=len(search.reached_by), fault=None)
