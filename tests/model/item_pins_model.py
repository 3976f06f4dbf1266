"""The pins of a node's own transfers: every interleaving of a bootstrap that opens and releases fetches of one item, an
evictor that wants its room, a publisher that takes it, a transfer worker that reads, and deaths of the bootstrap.

All fetches of an item share one word of the bootstrap's ledger, which the evictor looks at (R43). How many share it,
the bootstrap counts in memory of its own, which is gone when it dies; the slots that are open say which item each of
them reads.

Modelled: one entry, which is used again for the next generation; fetches that end at any moment; a bootstrap that is
killed between any two of its steps, and whose successor looks at the slots.

Not modelled: how a fetch asks and is answered, and when it may be released (`item_fetch_model`); keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

READY, RETIRED, OVER = range(1, 4)


class Bootstrap(NamedTuple):
    """`at`: new (it has just been born), idle, pinned, opened, released or unpinned; of `slot`. How many share the word
    is its own knowledge.
    """

    at: str = "idle"
    slot: int = 0
    shares: int = 0


class World(NamedTuple):
    generation: int = 1  # of the item whose rows lie in the blocks
    state: int = READY
    word: int = 0  # of the ledger
    slots: tuple[int, ...] = ()  # the generation that each reads; 0: it is free
    bootstrap: Bootstrap = Bootstrap()
    is_scanned: bool = False  # the evictor has found no pin
    left: int = 0  # fetches that are still to come
    publications: int = 0
    kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    slots: int = 2
    fetches: int = 3
    publications: int = 1
    kills: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r85_pinned_before_the_slot_is_open: bool = True
    r85_released_before_the_pin_goes: bool = True
    r85_the_last_one_takes_it_away: bool = True
    r85_a_new_bootstrap_counts_the_slots: bool = True
    r85_a_new_bootstrap_takes_the_others_away: bool = True


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(slots=(0,) * s.slots, left=s.fetches, publications=s.publications, kills=s.kills)

    def goal(self, world: World) -> bool:
        is_idle = world.bootstrap.at == "idle" and not any(world.slots)
        return not world.left and is_idle and not world.word and world.state != RETIRED

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if world.fault:
            return
        yield from self.bootstrap_steps(world, world.bootstrap)
        if world.kills and world.bootstrap.at != "new":
            yield "the bootstrap is killed", world._replace(bootstrap=Bootstrap("new"), kills=world.kills - 1)
        yield from self.evictor_steps(world)
        for slot, generation in enumerate(world.slots):
            if generation and (world.generation, world.state) not in ((generation, READY), (generation, RETIRED)):
                yield f"slot {slot} is read", world._replace(fault=f"torn: slot {slot} reads other rows")

    def evictor_steps(self, world: World) -> Iterator[tuple[str, World]]:
        if world.state == READY and world.publications:
            yield "the item is retired", world._replace(state=RETIRED)
        elif world.state == RETIRED and world.is_scanned:
            yield "its blocks are free", world._replace(state=OVER, is_scanned=False)
        elif world.state == RETIRED and world.word != world.generation:
            yield "nobody pins it", world._replace(is_scanned=True)
        elif world.state == OVER and world.publications:
            after = world._replace(generation=world.generation + 1, state=READY)
            yield "the next one is published there", after._replace(publications=world.publications - 1)

    def bootstrap_steps(self, world: World, me: Bootstrap) -> Iterator[tuple[str, World]]:
        rules = self.rules
        if me.at == "new":
            yield "it is born", self.born(world)
        elif me.at == "idle":
            slot = next((slot for slot, generation in enumerate(world.slots) if not generation), None)
            may_share = me.shares == 0 or world.word == world.generation
            if world.left and slot is not None and world.state == READY and may_share:
                begun = world._replace(left=world.left - 1)
                if rules.r85_pinned_before_the_slot_is_open:
                    yield f"it pins for slot {slot}", self.pinned(begun, me._replace(at="pinned", slot=slot))
                else:
                    opened = begun._replace(slots=put(world.slots, slot, world.generation))
                    yield f"it opens slot {slot}", opened._replace(bootstrap=me._replace(at="opened", slot=slot))
            elif world.left and world.state != READY and not world.publications:
                yield "it refuses", world._replace(left=world.left - 1)
            for number, generation in enumerate(world.slots):
                if generation and rules.r85_released_before_the_pin_goes:
                    released = world._replace(slots=put(world.slots, number, 0))
                    yield f"it releases slot {number}", released._replace(bootstrap=me._replace(at="released"))
                elif generation:
                    yield f"it unpins slot {number}", self.unpinned(world, me._replace(at="unpinned", slot=number))
        elif me.at == "pinned":
            if (world.state, world.generation) == (READY, world.word):
                opened = world._replace(slots=put(world.slots, me.slot, world.generation))
                yield f"it opens slot {me.slot}", opened._replace(bootstrap=me._replace(at="idle"))
            else:  # it has gone, as the look behind the pin shows
                yield "it lets go", self.unpinned(world, me._replace(at="idle"))
        elif me.at == "opened":
            yield f"it pins for slot {me.slot}", self.pinned(world, me._replace(at="idle"))
        elif me.at == "released":
            yield "it unpins", self.unpinned(world, me._replace(at="idle"))
        else:
            released = world._replace(slots=put(world.slots, me.slot, 0))
            yield f"it releases slot {me.slot}", released._replace(bootstrap=me._replace(at="idle"))

    def pinned(self, world: World, me: Bootstrap) -> World:
        word = world.word if me.shares else world.generation
        return world._replace(word=word, bootstrap=me._replace(shares=me.shares + 1))

    def unpinned(self, world: World, me: Bootstrap) -> World:
        shares = max(me.shares - 1, 0)
        goes = shares == 0 or not self.rules.r85_the_last_one_takes_it_away
        return world._replace(word=0 if goes else world.word, bootstrap=me._replace(shares=shares))

    def born(self, world: World) -> World:
        rules, shares = self.rules, 0
        if rules.r85_a_new_bootstrap_counts_the_slots:
            shares = sum(generation == world.word != 0 for generation in world.slots)
        forgets = shares == 0 and rules.r85_a_new_bootstrap_takes_the_others_away
        return world._replace(word=0 if forgets else world.word, bootstrap=Bootstrap("idle", 0, shares))


def explore_pins(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `torn` (a transfer reads rows of another item), or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
