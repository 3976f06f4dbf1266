"""How many fetches each language node may have open at an encode node (`workers/bootstrap/fetch_shares.py`): every
order in which three nodes ask, have their fetches end, register and die.

Modelled: the counts, and the rule by which a fetch is let in. Not modelled: time, and what a fetch does. What may last
for ever is an open fetch, so a node that is kept off by those of another one is kept off for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, explore, put


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule that is not in force breaks the model."""

    r86_each_living_node_has_a_part: bool = True
    r86_what_is_beyond_the_parts_is_shared: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """How large it is."""

    capacity: int = 6
    nodes: int = 3
    deaths: int = 1


class World(NamedTuple):
    """`counts`: the fetches that are open, by node; `refused`: who was refused last, with how many it had."""

    counts: tuple[int, ...]
    living: tuple[bool, ...]
    late: tuple[bool, ...]  # it has registered when others had fetches already
    deaths: int
    refused: tuple[int, int] | None = None


def may_open(world: World, me: int, capacity: int, rules: Rules) -> bool:
    """As `FetchShares.may_open`."""
    if sum(world.counts) >= capacity:
        return False  # there is no slot
    num_living = sum(world.living)
    part = capacity // 2 // num_living if rules.r86_each_living_node_has_a_part else 0
    if world.counts[me] < part:
        return True
    if not rules.r86_what_is_beyond_the_parts_is_shared:
        return False
    beyond = sum(max(count - part * is_living, 0) for count, is_living in zip(world.counts, world.living, strict=True))
    return beyond < capacity - part * num_living


def steps(world: World, setting: Setting, rules: Rules) -> Iterator[tuple[str, World]]:
    before = world._replace(refused=None)
    for me, count in enumerate(world.counts):
        if world.living[me] and may_open(world, me, setting.capacity, rules):
            yield f"node {me} opens a fetch", before._replace(counts=put(world.counts, me, count + 1))
        elif world.living[me]:
            yield f"node {me} is refused", world._replace(refused=(me, count))
        if count:
            yield f"a fetch of node {me} ends", before._replace(counts=put(world.counts, me, count - 1))
        if world.living[me] and world.deaths and sum(world.living) > 1:
            after = before._replace(living=put(world.living, me, False), deaths=world.deaths - 1)
            yield f"node {me} dies", after
        if not world.living[me] and not count:
            late = put(world.late, me, sum(world.counts) > 0)
            yield f"node {me} registers", before._replace(living=put(world.living, me, True), late=late)


def fault(world: World, setting: Setting) -> str | None:
    """`starved`: a node without a fetch is refused, though all were there from the beginning; `idle`: one that is alone
    is.
    """
    if world.refused is None:
        return None
    me, count = world.refused
    others = sum(world.counts) - count
    if not others and count < setting.capacity:
        alone = sum(world.living) == 1
        if alone:
            return f"idle: node {me} is alone, has {count} of {setting.capacity}, and is refused"
    if not count and not any(world.late) and all(world.living):
        return f"starved: node {me} has none, and is refused beside {world.counts}"
    return None


def explore_shares(setting: Setting, rules: Rules | None = None) -> Finding:
    """Whether a node is refused that must not be."""
    rules = rules or Rules()
    every = (True,) * setting.nodes
    initial = World((0,) * setting.nodes, every, (False,) * setting.nodes, setting.deaths)
    return explore(
        initial,
        lambda world: steps(world, setting, rules),
        violated=lambda world: fault(world, setting),
        goal=lambda world: not sum(world.counts),
        max_states=100_000,
    )
