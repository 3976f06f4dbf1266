"""Rows on a shelf that one process has pinned and another copies: the cache of an engine pins an item at once, tells
workers where it lies, and copies it later; every interleaving of that with recalls, evictions, and deaths.

The *owner* pins in its own ledger, and a *worker* has no pin: it opens what the owner has open, copies half by half,
and then looks whether the pin has stood all the while. When the owner is killed its ledger is cleared, and is the next
reader's, which may store the same generation, and look too late.

Modelled: one entry, used again for the next generation, whose blocks are filled half by half; the evictor, which looks
at one ledger after the other; another reader, in the ledger of the dead or beside it; owners that end their users,
copy, and are killed at any step; an encode node that dies, whose publishers go on in its memory without anybody who
buries, while another one has memory of its own.

Not modelled: how a key is found (`item_shelf_model`); which user has what (`item_cache_model`); a process whose number
is that of the dead owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

READY, RETIRED, OVER, FILLING = "ready", "retired", "over", "filling"
ALIVE, DEAD, CLEARED, BURIED = "alive", "dead", "cleared", "buried"
NOWHERE, SHELF, HOST = "nowhere", "shelf", "host"
OWNER, OTHER = 1, 2
NOBODY = 0


class Head(NamedTuple):
    generation: int = 1
    state: str = READY


class Reader(NamedTuple):
    """A process that pins for itself: idle, found (a generation), looks, has, half (it has read half of it)."""

    at: str = "idle"
    generation: int = 0
    ledger: int = -1


class Load(NamedTuple):
    """Where the owner has told the worker to read."""

    where: str
    generation: int


class Worker(NamedTuple):
    """A worker is idle, told, opened, half, copied, stood (the first look was well); and what it has copied so far."""

    at: str = "idle"
    load: Load = Load(NOWHERE, 0)
    copied: tuple[int, ...] = ()


class World(NamedTuple):
    head: Head = Head()
    block: tuple[int, int] = (1, 1)  # the generation whose bytes are in each half of it
    words: tuple[int, ...] = ()  # of each ledger
    whose: tuple[int, ...] = ()  # that is
    scanned: int = -1  # how many ledgers the evictor has looked at; -1: it does not look
    owner: Reader = Reader(ledger=0)
    owner_is: str = ALIVE
    place: Load = Load(NOWHERE, 0)  # where the item lies for the owner's users
    other: Reader = Reader()
    workers: tuple[Worker, ...] = ()
    node_is_dead: bool = False
    loads: int = 0
    publications: int = 0
    owner_kills: int = 0
    node_kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each thing may happen in it."""

    ledgers: int = 1
    workers: int = 1
    loads: int = 1
    publications: int = 1
    owner_kills: int = 0
    node_kills: int = 0
    whose_first: bool = False  # a worker looks at the word behind the look at whose that is


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r87_looks_behind_its_copy: bool = True
    r87_looks_at_the_word: bool = True
    r87_looks_whose_word_it_is: bool = True
    r87_the_word_of_the_dead_counts: bool = True
    r64_opened_where_it_is_pinned: bool = True
    r70_pinned_until_all_have_read: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            words=(0,) * s.ledgers,
            whose=(OWNER, *(NOBODY,) * (s.ledgers - 1)),
            workers=(Worker(),) * s.workers,
            loads=s.loads,
            publications=s.publications,
            owner_kills=s.owner_kills,
            node_kills=s.node_kills,
        )

    def goal(self, world: World) -> bool:
        """Nobody reads, nobody pins, and the block is free or published; of a dead node all is gone with its readers.
        """
        is_quiet = all(worker.at == "idle" for worker in world.workers) and world.other.at == "idle"
        is_over = world.node_is_dead or (not any(world.words) and world.head.state in (READY, OVER))
        return is_quiet and is_over and world.owner_is in (ALIVE, BURIED)

    def steps(self, world: World) -> Iterator[Step]:
        if world.fault:
            return
        yield from self.node_steps(world)
        yield from self.other_steps(world, world.other)
        if world.owner_is == ALIVE:
            yield from self.pin_steps(world, world.owner)
            yield from self.cache_steps(world, world.owner)
        yield from self.death_steps(world)
        for number, worker in enumerate(world.workers):
            yield from self.worker_steps(world, number, worker)

    # ---- the encode node: whoever publishes and evicts, and its launcher

    def node_steps(self, world: World) -> Iterator[Step]:
        (generation, state), left = world.head, world.publications
        if state == READY and left:
            yield f"generation {generation} is retired", world._replace(head=Head(generation, RETIRED), scanned=0)
        elif state == RETIRED and world.scanned < len(world.words):
            is_pinned = self.counts(world, world.scanned) and world.words[world.scanned] == generation
            following = 0 if is_pinned else world.scanned + 1  # it looks again, later
            label = f"the evictor looks at ledger {world.scanned}"
            if following != world.scanned:
                yield label, world._replace(scanned=following)
        elif state == RETIRED:
            yield "its blocks are free", world._replace(head=Head(generation, OVER), scanned=-1)
        elif state == OVER and left:
            begun = world._replace(head=Head(generation + 1, FILLING), publications=left - 1)
            yield "half of the next one is there", begun._replace(block=(generation + 1, world.block[1]))
        elif state == FILLING:
            yield "the next one is there", world._replace(head=Head(generation, READY), block=(generation,) * 2)

    def counts(self, world: World, ledger: int) -> bool:
        """Whether who evicts minds what is pinned there."""
        is_of_the_dead = world.whose[ledger] == OWNER and world.owner_is != ALIVE
        return self.rules.r87_the_word_of_the_dead_counts or not is_of_the_dead

    def death_steps(self, world: World) -> Iterator[Step]:
        state = world.owner_is
        if state == ALIVE and world.owner_kills:
            killed = world._replace(owner_is=DEAD, owner_kills=world.owner_kills - 1, place=Load(NOWHERE, 0))
            yield "the owner is killed", killed
        if world.node_kills and not world.node_is_dead:
            yield "the encode node is killed", world._replace(node_is_dead=True, node_kills=world.node_kills - 1)
        if world.node_is_dead and state in (DEAD, CLEARED):
            yield "nobody buries the owner", world._replace(owner_is=BURIED)
        elif state == DEAD:
            yield "its ledger is cleared", self.stored(world, 0, 0)._replace(owner_is=CLEARED)
        elif state == CLEARED:
            yield "its ledger is nobody's", world._replace(owner_is=BURIED, whose=put(world.whose, 0, NOBODY))

    def stored(self, world: World, ledger: int, generation: int) -> World:
        return world._replace(words=put(world.words, ledger, generation))

    # ---- who pins for itself

    def other_steps(self, world: World, me: Reader) -> Iterator[Step]:
        if me.ledger < 0:
            free = next((ledger for ledger, whose in enumerate(world.whose) if whose == NOBODY), None)
            if free is not None and not world.node_is_dead:
                joined = world._replace(whose=put(world.whose, free, OTHER))
                yield f"another reader has ledger {free}", joined._replace(other=me._replace(ledger=free))
        elif me.at == "idle" and world.head.state == READY:
            found = me._replace(at="found", generation=world.head.generation)
            yield f"another reader finds generation {found.generation}", world._replace(other=found)
        elif me.at == "found":
            pinned = self.stored(world, me.ledger, me.generation)
            yield f"another reader pins generation {me.generation}", pinned._replace(other=me._replace(at="looks"))
        elif me.at == "looks":
            is_there = world.head == (me.generation, READY)
            after = world if is_there else self.stored(world, me.ledger, 0)
            looked = after._replace(other=me._replace(at="has" if is_there else "idle"))
            yield f"another reader finds it {'ready' if is_there else 'gone'}", looked
        elif me.at == "has":
            fault = None if world.block == (me.generation,) * 2 else "torn: another reader reads other rows"
            unpinned = self.stored(world, me.ledger, 0)._replace(other=me._replace(at="idle"), fault=fault)
            yield "another reader reads, and unpins", unpinned

    def pin_steps(self, world: World, me: Reader) -> Iterator[Step]:
        if me.at == "idle" and world.place.where == NOWHERE and world.head.state == READY and world.loads:
            found = me._replace(at="found", generation=world.head.generation)
            yield f"the owner finds generation {found.generation}", world._replace(owner=found)
        elif me.at == "found":
            pinned = self.stored(world, 0, me.generation)
            yield f"the owner pins generation {me.generation}", pinned._replace(owner=me._replace(at="looks"))
        elif me.at == "looks" and world.head == (me.generation, READY):
            place = Load(SHELF, me.generation)
            yield "the owner finds it ready", world._replace(owner=me._replace(at="has"), place=place)
        elif me.at == "looks":
            gone = self.stored(world, 0, 0)
            yield "the owner finds it gone", gone._replace(owner=me._replace(at="idle"))

    # ---- the owner's cache

    def cache_steps(self, world: World, me: Reader) -> Iterator[Step]:
        place, workers = world.place, world.workers
        is_read = any(worker.load.where == SHELF for worker in workers)
        if place.where != NOWHERE and world.loads and all(worker.at == "idle" for worker in workers):
            told = world._replace(workers=(Worker("told", place),) * len(workers), loads=world.loads - 1)
            yield f"a step loads it from the {place.where}", told
        if place.where == SHELF:
            fault = None if world.block == (place.generation,) * 2 else "torn: the owner copies other rows"
            copied = world._replace(place=Load(HOST, place.generation), fault=fault)
            yield "the owner has copied it", copied
        if place.where != NOWHERE:
            yield "its users have ended, and it is evicted", world._replace(place=Load(NOWHERE, 0))
        if me.at == "has" and place.where != SHELF and not (is_read and self.rules.r70_pinned_until_all_have_read):
            yield "the owner unpins it", self.stored(world, 0, 0)._replace(owner=me._replace(at="idle"))

    # ---- workers

    def worker_steps(self, world: World, number: int, me: Worker) -> Iterator[Step]:
        where, generation = me.load
        name = f"worker {number}"
        if me.at == "told":
            if world.owner_is == ALIVE:
                yield f"{name} opens what its owner has open", self.at(world, number, me._replace(at="opened"))
            else:
                yield f"{name} finds its owner gone", self.at(world, number, Worker())
        elif me.at in ("opened", "half"):
            half = len(me.copied)
            seen = generation if where == HOST else self.rows_before(world)[half]
            copied = me._replace(at="half" if half == 0 else "copied", copied=(*me.copied, seen))
            is_well = half == 1 or self.rules.r87_looks_behind_its_copy or self.stands(world, me)
            yield f"{name} copies half {half}", self.at(world, number, copied if is_well else Worker())
        elif me.at == "copied" and (where == HOST or not self.rules.r87_looks_behind_its_copy):
            yield from self.ends(world, number, me)
        elif me.at == "copied":
            is_well = self.is_owners(world) if self.setting.whose_first else self.word_is(world, generation)
            yield from self.looks(world, number, me, "stood", is_well=is_well)
        elif me.at == "stood":
            is_well = self.word_is(world, generation) if self.setting.whose_first else self.is_owners(world)
            yield from self.looks(world, number, me, "", is_well=is_well)

    def at(self, world: World, number: int, me: Worker) -> World:
        return world._replace(workers=put(world.workers, number, me))

    def rows_before(self, world: World) -> tuple[int, int]:
        """What lies where the worker reads."""
        return (0, 0) if self.reads_the_new_node(world) else world.block

    def reads_the_new_node(self, world: World) -> bool:
        return world.node_is_dead and not self.rules.r64_opened_where_it_is_pinned

    def word_is(self, world: World, generation: int) -> bool:
        is_there = world.words[0] == generation and not self.reads_the_new_node(world)
        return is_there or not self.rules.r87_looks_at_the_word

    def is_owners(self, world: World) -> bool:
        is_there = world.whose[0] == OWNER and not self.reads_the_new_node(world)
        return is_there or not self.rules.r87_looks_whose_word_it_is

    def stands(self, world: World, me: Worker) -> bool:
        return me.load.where == HOST or (self.word_is(world, me.load.generation) and self.is_owners(world))

    def looks(self, world: World, number: int, me: Worker, then: str, *, is_well: bool) -> Iterator[Step]:
        if not is_well:
            after = self.at(world, number, Worker())
            fault = "lost: a worker has no rows, and its owner lives" if world.owner_is == ALIVE else None
            yield f"worker {number} finds its pin gone", after._replace(fault=fault)
        elif then:
            yield f"worker {number} looks once", self.at(world, number, me._replace(at=then))
        else:
            yield from self.ends(world, number, me)

    def ends(self, world: World, number: int, me: Worker) -> Iterator[Step]:
        fault = None if me.copied == (me.load.generation,) * 2 else f"torn: worker {number} has the rows {me.copied}"
        yield f"worker {number} has its rows", self.at(world, number, Worker())._replace(fault=fault)


def explore_lent(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `torn` (somebody has rows of another item), `lost` (a living owner's worker has none), or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
