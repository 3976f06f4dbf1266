"""Published items that are used where they lie: two ranks of a language node read one on the shelf of an encode node of
their host, with every interleaving of pins, views, recalls and deaths.

Rank 0 decides where the item is used: nowhere, on the shelf, or in the host's own memory, into which it copies it when
the shelf is short (*recall*). Users come and go; each has a view in every rank, in rank 1 when that has come to the
load in rank 0's log. The encode node retires its item when
it likes, and the block is free when no rank pins it.

Modelled: an item that is published anew in the same block, loads, a recall, killed ranks, an encode node that is killed
and launched again (whose ranks keep the mapping of the shelf that was).

Not modelled: how rank 0 tells the others (`ranks_model`), how heads and pins are (`item_shelf_model`), whose turn it is
(`item_cache_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

READY, RETIRED, OVER = "ready", "retired", "over"
ALIVE, DEAD, BURIED = "alive", "dead", "buried"
LONGEST_LOG = 2
NOWHERE, SHELF, HOST = "nowhere", "shelf", "host"


class Head(NamedTuple):
    generation: int = 0
    state: str = OVER


class Place(NamedTuple):
    """Where rank 0 says that the item is; `is_given`: users may have it."""

    where: str = NOWHERE
    generation: int = 0
    is_given: bool = False


class Rank(NamedTuple):
    """A rank is idle, or looks again behind its pin; rank 1 then answers that it has the item, or has missed it."""

    at: str = "idle"
    generation: int = 0


class View(NamedTuple):
    where: str
    generation: int
    incarnation: int


class World(NamedTuple):
    head: Head = Head()
    block: int = 0  # the generation whose bytes are in it; 0: nobody's
    ledger: tuple[int, ...] = (0, 0)  # the generation that each rank pins
    host: int = 0  # the generation in the ranks' own memory
    place: Place = Place()
    ranks: tuple[Rank, ...] = (Rank(), Rank())
    views: tuple[View | None, ...] = (None, None)
    log: tuple[View, ...] = ()  # loads that rank 0 has made, and rank 1 has not reached
    incarnation: int = 1  # of the encode node
    mapped: tuple[int, ...] = (1, 1)  # whose shelf each rank has mapped
    block_before: int = 0  # what the block held when the encode node was killed
    processes: tuple[str, ...] = (ALIVE, ALIVE)
    loads: int = 0
    publications: int = 0
    recalls: int = 0
    rank_kills: int = 0
    encode_kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How often each thing may happen."""

    loads: int = 2
    publications: int = 3
    recalls: int = 1
    rank_kills: int = 0
    encode_kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r60_who_reads_pins: bool = True
    r61_given_when_all_ranks_have_pinned: bool = True
    r61_answers_name_what_was_pinned: bool = True
    r62_copied_before_it_is_said: bool = True
    r62_unpinned_behind_the_loads: bool = True
    r63_no_unpin_under_a_view: bool = True
    r64_the_mapping_of_the_dead_stays: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            loads=s.loads,
            publications=s.publications,
            recalls=s.recalls,
            rank_kills=s.rank_kills,
            encode_kills=s.encode_kills,
        )

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.encode_steps(world)
        if world.processes[0] == ALIVE:
            yield from self.leader_steps(world)
            yield from self.user_steps(world)
        for r in (0, 1):
            if world.processes[r] == ALIVE:
                yield from self.rank_steps(world, r)
        if world.processes[1] == ALIVE:
            yield from self.follower_steps(world)
        for r, state in enumerate(world.processes):
            yield from self.death_steps(world, r, state)

    def goal(self, world: World) -> bool:
        """No view, no pin, and the block is free or published."""
        is_quiet = world.views == (None, None) and world.ledger == (0, 0) and DEAD not in world.processes
        return is_quiet and not world.log and world.head.state in (READY, OVER)

    def is_mapped(self, world: World, rank: int) -> bool:
        return world.mapped[rank] == world.incarnation

    def pinned(self, world: World, rank: int, generation: int) -> World:
        return world._replace(ledger=put(world.ledger, rank, generation))

    def at(self, world: World, rank: int, me: Rank) -> World:
        return world._replace(ranks=put(world.ranks, rank, me))

    # ---- the encode node

    def encode_steps(self, world: World) -> Iterator[Step]:
        generation, state = world.head
        following = generation + 1
        if state == OVER and world.publications:
            published = world._replace(head=Head(following, READY), block=following)
            yield f"generation {following} is published", published._replace(publications=world.publications - 1)
        if state == READY:
            yield f"generation {generation} is retired", world._replace(head=Head(generation, RETIRED))
        if state == RETIRED and generation not in world.ledger:
            yield f"the block of generation {generation} is free", world._replace(head=Head(generation), block=0)
        if world.encode_kills:
            killed = world._replace(incarnation=world.incarnation + 1, block_before=world.block, ledger=(0, 0))
            again = killed._replace(head=Head(following, READY), block=following, encode_kills=world.encode_kills - 1)
            yield "the encode node is killed, launched again, and publishes", again

    # ---- rank 0, which decides

    def leader_steps(self, world: World) -> Iterator[Step]:
        me, (where, generation, is_given), rules = world.ranks[0], world.place, self.rules
        is_mapped = self.is_mapped(world, 0)
        if where == NOWHERE and world.head.state == READY and is_mapped and world.loads and me.at == "idle":
            pinned = self.pinned(world, 0, world.head.generation)
            yield "rank 0 pins the item", self.at(pinned, 0, Rank("looks", world.head.generation))
        if me.at == "looks":
            after = self.at(world, 0, Rank())
            if world.head == (me.generation, READY) and is_mapped:
                at_once = not (rules.r61_given_when_all_ranks_have_pinned and rules.r60_who_reads_pins)
                yield "rank 0 finds it still ready", after._replace(place=Place(SHELF, me.generation, at_once))
            else:
                yield "rank 0 finds it gone", self.pinned(after, 0, 0) if is_mapped else after
        if where == SHELF and not is_given:
            yield from self.answer_steps(world, world.ranks[1], generation)
        if where == SHELF and is_given and world.views[0] is None and not world.loads:
            yield "rank 0 has no users any more", world._replace(place=Place())
        if where == SHELF and not is_mapped and world.views[0] is None:
            forgotten = world._replace(place=Place())
            if world.processes[1] == ALIVE and world.ranks[1].at == "missed":
                forgotten = self.at(forgotten, 1, Rank())
            yield "rank 0 sees that the encode node is dead", forgotten

    def answer_steps(self, world: World, other: Rank, generation: int) -> Iterator[Step]:
        is_buried = world.processes[1] == BURIED
        names_it = other.generation == generation and world.mapped[0] == world.mapped[1]
        if is_buried or (other.at == "has" and (names_it or not self.rules.r61_answers_name_what_was_pinned)):
            yield "rank 0 knows that all ranks have it", world._replace(place=Place(SHELF, generation, True))
        elif other.at == "missed":
            missed = self.at(self.pinned(world, 0, 0), 1, Rank())
            yield "rank 0 knows that rank 1 has missed it", missed._replace(place=Place())

    def user_steps(self, world: World) -> Iterator[Step]:
        where, generation, is_given = world.place
        if where != NOWHERE and is_given and world.loads and world.views[0] is None and len(world.log) < LONGEST_LOG:
            view = View(where, generation, world.mapped[0])
            log = (*world.log, view) if world.processes[1] == ALIVE else ()
            given = world._replace(views=put(world.views, 0, view), log=log, loads=world.loads - 1)
            yield f"a user has generation {generation} of the {where}", given
        if where == SHELF and is_given and world.recalls:
            recalled = world._replace(recalls=world.recalls - 1, place=Place(HOST, generation, True))
            if self.rules.r62_copied_before_it_is_said:
                of_the_dead = not self.is_mapped(world, 0) and self.rules.r64_the_mapping_of_the_dead_stays
                recalled = recalled._replace(host=world.block_before if of_the_dead else world.block)
            yield "rank 0 copies the item out, and says so", recalled
        if where == HOST and not self.rules.r62_copied_before_it_is_said and world.host == 0:
            yield "rank 0 copies the item out, late", world._replace(host=world.block)

    # ---- every rank

    def rank_steps(self, world: World, r: int) -> Iterator[Step]:
        me, view, pin, where = world.ranks[r], world.views[r], world.ledger[r], world.place.where
        if view is not None:
            yield f"rank {r} reads, and its view ends", self.reads(world, r, view)
        is_behind = r == 1 and bool(world.log) and self.rules.r62_unpinned_behind_the_loads
        is_wanted = is_behind or (where == SHELF and world.place.generation == pin)
        is_viewed = view is not None and view.where == SHELF and self.rules.r63_no_unpin_under_a_view
        if pin and me.at not in ("looks", "missed") and not is_wanted and not is_viewed:
            unpinned = self.pinned(world, r, 0)
            yield f"rank {r} unpins generation {pin}", self.at(unpinned, r, Rank()) if r else unpinned
        is_old = not self.is_mapped(world, r) and view is None and not is_behind and me.at in ("idle", "has")
        if is_old and (where != SHELF or (r == 1 and self.is_mapped(world, 0))):
            mapped = world._replace(mapped=put(world.mapped, r, world.incarnation))
            yield f"rank {r} maps the new shelf", self.at(mapped, r, Rank())

    def reads(self, world: World, r: int, view: View) -> World:
        is_of_the_dead = view.incarnation != world.incarnation and self.rules.r64_the_mapping_of_the_dead_stays
        on_the_shelf = world.block_before if is_of_the_dead else world.block
        seen = world.host if view.where == HOST else on_the_shelf
        if seen != view.generation:
            return world._replace(fault=f"torn: rank {r} reads generation {seen} through {view}")
        return world._replace(views=put(world.views, r, None))

    # ---- rank 1, which follows

    def follower_steps(self, world: World) -> Iterator[Step]:
        me, (where, generation, is_given) = world.ranks[1], world.place
        is_mapped = self.is_mapped(world, 1)
        if world.log and world.views[1] is None:
            yield "rank 1 comes to a load", world._replace(views=put(world.views, 1, world.log[0]), log=world.log[1:])
        may_pin = where == SHELF and is_mapped and self.is_mapped(world, 0) and self.rules.r60_who_reads_pins
        if may_pin and me.at == "idle" and not world.ledger[1]:
            pinned = self.pinned(world, 1, generation)
            yield "rank 1 pins the item", self.at(pinned, 1, Rank("looks", generation))
        if me.at != "looks":
            return
        if world.head == (me.generation, READY) and is_mapped:
            yield "rank 1 finds it still ready", self.at(world, 1, Rank("has", me.generation))
        elif is_given and where == SHELF and is_mapped:
            yield "rank 1 finds it gone", world._replace(fault="split: rank 1 has not what rank 0 gave to a user")
        else:
            is_asked = not is_given and where == SHELF
            after = self.at(world, 1, Rank("missed" if is_asked else "idle"))
            yield "rank 1 finds it gone", self.pinned(after, 1, 0) if is_mapped else after

    def death_steps(self, world: World, r: int, state: str) -> Iterator[Step]:
        if state == ALIVE and world.rank_kills:
            killed = world._replace(processes=put(world.processes, r, DEAD), views=put(world.views, r, None))
            killed = killed._replace(log=() if r else world.log)
            yield f"rank {r} is killed", killed._replace(rank_kills=world.rank_kills - 1)
        if state == DEAD:
            buried = self.at(self.pinned(world, r, 0), r, Rank())._replace(processes=put(world.processes, r, BURIED))
            yield f"rank {r} is buried, and pins nothing", buried if r else buried._replace(place=Place())


def explore_in_place(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `torn` (a view shows other bytes), `split` (a rank lacks what another has) or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
