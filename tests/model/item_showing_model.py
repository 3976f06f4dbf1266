"""The order of the items of one key: every interleaving of publishers that show theirs, an evictor that takes one away,
and a reader that looks the key up again and again.

An item has a generation since its publication began, and lies in an entry. Publications of one key cross: one that
began earlier may be shown later. What a reader may go by is the item's *number*, which is drawn when it is shown. An
entry is SHOWING first, then the number is drawn and set, then it is READY; whoever retires an item completes those of
its key that are SHOWING, and then retires those with a lesser number before it.

Modelled: two or three publishers of one key, entries that are used again, publishers that are killed at any step and
buried, an evictor that is killed, a publisher that stands still while others complete its item, take it away and use
its entry again.

Not modelled: hashes, blocks, pins and the floor (`item_shelf_model`): a retired entry is free in one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, explore, put

NOBODY = -1
FILLING, SHOWING, READY, RETIRED, OVER = range(1, 6)


class Entry(NamedTuple):
    """`number` is the generation until the item is shown."""

    generation: int = 0
    state: int = OVER
    publisher: int = NOBODY
    number: int = 0


class Actor(NamedTuple):
    """A publisher (idle, fill, draw, set, ready, older) or the evictor (idle, others). `k` is the entry at which it
    looks for others of its key; `drawn` the number that it has drawn, for itself or for the item there, whose
    generation it has `seen` before.
    """

    at: str = "idle"
    entry: int = NOBODY
    generation: int = 0
    number: int = 0
    k: int = 0
    drawn: int = 0
    seen: int = 0


class Reader(NamedTuple):
    """It has seen the numbers of the entries before `k` in this look; `best` of them is (number, entry, generation).
    `least` is what it may see no lesser number than.
    """

    looks: int = 0
    k: int = NOBODY
    best: tuple[int, int, int] = (0, NOBODY, 0)
    least: int = 0


class World(NamedTuple):
    entries: tuple[Entry, ...]
    publishers: tuple[Actor, ...]
    evictor: Actor = Actor()
    reader: Reader = Reader()
    dead: frozenset[int] = frozenset()
    left: tuple[int, ...] = ()  # publications of each publisher
    drawn: int = 0
    promised: int = 0  # the highest number whose publication has returned
    evictions: int = 0
    kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    entries: int = 2
    publications: tuple[int, ...] = (1, 1)  # of each publisher
    looks: int = 2
    evictions: int = 1
    kills: int = 0
    one_look: bool = True  # the reader's look through the entries is one step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r84_the_number_is_drawn_when_it_is_shown: bool = True  # else the generation is the number
    r84_showing_before_the_number_is_drawn: bool = True
    r84_who_retires_completes_what_is_shown: bool = True
    r84_the_number_is_set_once: bool = True
    r84_it_is_for_the_generation_that_was_seen_before: bool = True


class Model:
    """The steps of one setting under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting, self.rules = setting, rules

    def initial(self) -> World:
        s = self.setting
        return World(
            (Entry(),) * s.entries, (Actor(),) * len(s.publications),
            left=s.publications, evictions=s.evictions, kills=s.kills,
        )  # fmt: skip

    def goal(self, world: World) -> bool:
        ended = not any(world.left) and all(it.at == "idle" for it in (*world.publishers, world.evictor))
        return ended and all(it.state in (READY, OVER) for it in world.entries)

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if world.fault:
            return
        for p, me in enumerate(world.publishers):
            if p not in world.dead:
                yield from self.publisher_steps(world, p, me)
                if world.kills and me.at != "idle":
                    dead = world._replace(dead=world.dead | {p}, kills=world.kills - 1)
                    yield f"p{p} is killed", dead
            else:
                yield f"p{p} is buried", self.buried(world, p)
        yield from self.evictor_steps(world, world.evictor)
        yield from self.reader_steps(world, world.reader)

    def buried(self, world: World, p: int) -> World:
        entries = tuple(
            it._replace(state=RETIRED) if it.publisher == p and it.state in (FILLING, SHOWING) else it
            for it in world.entries
        )
        left = put(world.left, p, 0)
        gone = world._replace(entries=entries, dead=world.dead - {p}, left=left)
        return gone._replace(publishers=put(gone.publishers, p, Actor()))

    def with_entry(self, world: World, entry: int, **changes: int) -> World:
        return world._replace(entries=put(world.entries, entry, world.entries[entry]._replace(**changes)))

    # ---- publishers

    def publisher_steps(self, world: World, p: int, me: Actor) -> Iterator[tuple[str, World]]:
        def on(after: World, actor: Actor) -> World:
            return after._replace(publishers=put(after.publishers, p, actor))

        rules = self.rules
        mine = world.entries[me.entry] if me.entry != NOBODY else Entry()
        is_mine = mine.generation == me.generation
        if me.at == "idle" and world.left[p]:
            entry = next((e for e, it in enumerate(world.entries) if it.state == OVER), None)
            if entry is not None:
                drawn = world.drawn + 1
                taken = self.with_entry(world, entry, generation=drawn, state=FILLING, publisher=p, number=drawn)
                begun = taken._replace(drawn=drawn, left=put(world.left, p, world.left[p] - 1))
                at = "fill" if rules.r84_the_number_is_drawn_when_it_is_shown else "ready"
                yield f"p{p} fills entry {entry}", on(begun, Actor(at, entry, drawn, drawn))
        elif me.at == "fill":
            if rules.r84_showing_before_the_number_is_drawn:
                showing = self.with_entry(world, me.entry, state=SHOWING)
                yield f"p{p} shows entry {me.entry}", on(showing, me._replace(at="draw"))
            else:
                yield f"p{p} draws early", on(world._replace(drawn=world.drawn + 1),
                                              me._replace(at="set", drawn=world.drawn + 1))  # fmt: skip
        elif me.at == "draw":
            number = world.drawn + 1
            yield f"p{p} draws {number}", on(world._replace(drawn=number), me._replace(at="set", drawn=number))
        elif me.at == "set":
            after = self.numbered(world, me.entry, me.generation, me.drawn)
            yield f"p{p} sets its number", on(after, me._replace(at="ready"))
        elif me.at == "ready":
            may = is_mine and mine.state in (SHOWING, FILLING)
            after = self.with_entry(world, me.entry, state=READY) if may else world
            number = after.entries[me.entry].number if after.entries[me.entry][:2] == (me.generation, READY) else 0
            yield f"p{p} is ready", on(after, Actor("older", me.entry, me.generation, number))
        elif me.at == "older" and (me.k == len(world.entries) or not me.number):
            promised = max(world.promised, me.number)
            yield f"p{p} returns", on(world._replace(promised=promised), Actor())
        elif me.at == "older":
            for label, after, actor in self.older(world, me):
                yield f"p{p} {label}", on(after, actor)

    def numbered(self, world: World, entry: int, generation: int, number: int) -> World:
        it = world.entries[entry]
        if self.rules.r84_the_number_is_set_once and it.number != generation:
            return world
        return self.with_entry(world, entry, number=number)

    def older(self, world: World, me: Actor) -> Iterator[tuple[str, World, Actor]]:
        """Entry `k`, of another item of the key: complete it where it is shown, retire it where it is older; where it
        is newer, retire oneself.
        """
        if me.k == me.entry:
            me = me._replace(k=me.k + 1)
        if me.k == len(world.entries):
            yield "has seen all", world, me
            return
        it, following = world.entries[me.k], me._replace(k=me.k + 1, drawn=0, seen=0)
        completes = self.rules.r84_who_retires_completes_what_is_shown
        if it.state == SHOWING and completes and not me.drawn:
            drawn = world.drawn + 1
            drawing = me._replace(drawn=drawn, seen=it.generation)
            yield f"draws {drawn} for entry {me.k}", world._replace(drawn=drawn), drawing
        elif it.state == SHOWING and completes:
            after, is_named = world, self.rules.r84_it_is_for_the_generation_that_was_seen_before
            if it.generation == me.seen or not is_named:
                after = self.with_entry(self.numbered(world, me.k, it.generation, me.drawn), me.k, state=READY)
            yield f"completes entry {me.k}", after, me._replace(drawn=0, seen=0)
        elif it.state == READY and it.number < me.number:
            yield f"retires entry {me.k}", self.with_entry(world, me.k, state=RETIRED), following
        elif it.state == READY and self.is_there(world, me):
            yield f"finds a newer one in entry {me.k}", self.with_entry(world, me.entry, state=RETIRED), following
        else:
            yield f"finds none in entry {me.k}", world, following

    def is_there(self, world: World, me: Actor) -> bool:
        return me.at == "older" and world.entries[me.entry][:2] == (me.generation, READY)

    # ---- the evictor

    def evictor_steps(self, world: World, me: Actor) -> Iterator[tuple[str, World]]:
        if me.at == "idle":
            for e, it in enumerate(world.entries):
                if it.state == RETIRED:
                    yield f"entry {e} is over", self.with_entry(world, e, state=OVER, publisher=NOBODY)
                if it.state == READY and world.evictions:
                    actor = Actor("others", e, it.generation, it.number)
                    yield f"entry {e} is picked", world._replace(evictor=actor, evictions=world.evictions - 1)
            return
        if world.kills:
            yield "the evictor is killed", world._replace(evictor=Actor(), kills=world.kills - 1)
        if world.entries[me.entry][:2] != (me.generation, READY):
            yield "the victim has gone", world._replace(evictor=Actor())
        elif me.k == len(world.entries):
            retired = self.with_entry(world, me.entry, state=RETIRED)
            yield f"entry {me.entry} is evicted", retired._replace(evictor=Actor())
        else:
            for label, after, actor in self.older(world, me):
                yield f"the evictor {label}", after._replace(evictor=actor)

    # ---- the reader

    def reader_steps(self, world: World, me: Reader) -> Iterator[tuple[str, World]]:
        if me.k == NOBODY:
            if me.looks < self.setting.looks:
                looking = Reader(me.looks, 0, least=max(me.least, world.promised))
                if self.setting.one_look:
                    found = [(it.number, e, it.generation) for e, it in enumerate(world.entries) if it.state == READY]
                    yield self.decides(world, looking._replace(best=max(found, default=looking.best)))
                else:
                    yield "the reader looks", world._replace(reader=looking)
        elif me.k < len(world.entries):
            it = world.entries[me.k]
            best = max(me.best, (it.number, me.k, it.generation)) if it.state == READY else me.best
            yield f"the reader sees entry {me.k}", world._replace(reader=me._replace(k=me.k + 1, best=best))
        else:
            _, entry, generation = me.best
            if entry != NOBODY and world.entries[entry][:2] != (generation, READY):
                yield "the reader looks again", world._replace(reader=me._replace(k=0, best=Reader().best))
            else:
                yield self.decides(world, me)

    def decides(self, world: World, me: Reader) -> tuple[str, World]:
        """The reader has what it found last, and it was there still."""
        number, entry, _ = me.best
        done = world._replace(reader=Reader(me.looks + 1, least=max(me.least, number)))
        if entry == NOBODY:
            return "the reader finds nothing", done
        is_old = number < me.least or number != world.entries[entry].number
        fault = f"old: the reader has number {number} after {me.least}" if is_old else None
        return f"the reader has number {number}", done._replace(fault=fault)


def explore_showing(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `old` (a reader sees a lesser number than before, or than one whose publication had returned, or the
    number changes), or `stuck`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
