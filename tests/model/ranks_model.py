"""Rank 0 and those who follow it on one node: every interleaving of a few requests, with any of the processes killed at
any moment.

Modelled: the library thread of rank 0, which places a finished request in shared memory and passes it on when every
rank's log has room; its caller's `pop_transferred`, which writes one batch into one log after the other, each in two
steps (the records, then the tail), and then releases what it popped; followers that join, pop batches, release and die;
the door, which notices a death some time after it; and deadlines, which may come at any moment to a request that waits.

Not modelled: the ring below the log (`test_ring_model`), wake-ups (`test_status_doorbell_model`), bytes and fragments
of shared memory: it is a few places of one request each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

NOBODY = -1
FINISHED, FAILED = "finished", "failed"


class Item(NamedTuple):
    """What a log says of one request; `place` is NOBODY for a failed one. `ticket` rises with every item."""

    request: int
    kind: str
    place: int
    ticket: int


Batch = tuple[Item, ...]


class Place(NamedTuple):
    """Shared memory for one request: whose bytes are in it, under which ticket, and whether rank 0 has released it."""

    request: int = NOBODY
    ticket: int = 0
    released: bool = False


class Follower(NamedTuple):
    """One more rank.

    `seen` is how much of its log it has popped; `marks` are its words, one a place: the last ticket it released.
    """

    state: str = "outside"  # outside, inside, dead, ended
    log: tuple[Batch, ...] = ()
    unwritten: bool = False  # the tail was moved, the records behind it were not written yet
    seen: int = 0
    popped: tuple[Batch, ...] = ()
    holds: tuple[Item, ...] = ()
    marks: tuple[int, ...] = ()
    buried: bool = False  # the door has noticed its death
    cut: bool = False

    @property
    def unread(self) -> int:
        return sum(len(batch) for batch in self.log[self.seen :])


class Pop(NamedTuple):
    """`pop_transferred` of rank 0, half way: the batch, whose log is next, and whether its records are written."""

    batch: Batch
    rank: int = 0
    wrote: bool = False


class World(NamedTuple):
    """All of them. `order` are the batches that rank 0 popped, or is popping."""

    followers: tuple[Follower, ...]
    places: tuple[Place, ...]
    lives: bool = True
    waiting: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()
    passed: tuple[Item, ...] = ()
    pop: Pop | None = None
    order: tuple[Batch, ...] = ()
    held: tuple[Item, ...] = ()
    kills: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`kinds` of the requests, in the order in which they end; `absent` ranks never come; so many processes may be
    killed.
    """

    kinds: tuple[str, ...] = (FINISHED, FAILED, FINISHED)
    num_followers: int = 1
    num_places: int = 1
    log_items: int = 2
    absent: tuple[int, ...] = ()
    kills: int = 2
    deadlines: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Each is True, or is the rule that is broken."""

    a_record_is_written_before_it_is_published: bool = True
    a_batch_is_published_in_one_step: bool = True
    the_log_is_written_by_the_pop: bool = True
    room_is_claimed_before_a_request_is_passed_on: bool = True
    memory_waits_for_every_living_rank: bool = True
    a_rank_that_was_cut_off_keeps_its_holds: bool = True
    a_release_names_what_it_releases: bool = True
    the_dead_have_released_everything: bool = True
    memory_is_waited_for_until_the_deadline_only: bool = True
    a_full_log_is_cut_off_at_the_deadline: bool = True
    the_door_tells_followers_of_the_end: bool = True


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        followers = (Follower(marks=(0,) * s.num_places),) * s.num_followers
        return World(followers, (Place(),) * s.num_places, waiting=tuple(range(len(s.kinds))), kills=s.kills)

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if world.fault:
            return
        if world.lives:
            yield from self.library_steps(world)
            yield from self.caller_steps(world)
            if world.kills:
                yield "rank 0 is killed", world._replace(lives=False, pop=None, kills=world.kills - 1)
        for rank, follower in enumerate(world.followers):
            yield from self.follower_steps(world, rank, follower)

    # ---- rank 0's library thread

    def library_steps(self, world: World) -> Iterator[tuple[str, World]]:
        for request in world.waiting:
            if self.setting.deadlines and request not in world.expired:
                yield f"the deadline of r{request} passes", world._replace(expired=(*world.expired, request))
            yield from self.pass_on(world, request)
        for number, place in enumerate(world.places):
            if place.released and all(self.has_released(world, rank, number) for rank in range(len(world.followers))):
                yield f"place {number} is free again", world._replace(places=put(world.places, number, Place()))

    def pass_on(self, world: World, request: int) -> Iterator[tuple[str, World]]:
        after = world._replace(waiting=tuple(r for r in world.waiting if r != request))
        ticket = 1 + sum(len(batch) for batch in world.order) + len(world.passed)
        item, expired = Item(request, self.setting.kinds[request], NOBODY, ticket), request in world.expired
        if item.kind == FINISHED:
            place = next((n for n, place in enumerate(world.places) if place.request == NOBODY), None)
            if place is not None:
                item = item._replace(place=place)
                after = after._replace(places=put(after.places, place, Place(request, ticket)))
            elif expired and self.rules.memory_is_waited_for_until_the_deadline_only:
                item = item._replace(kind=FAILED)
            else:
                return
        full = [rank for rank in range(len(world.followers)) if not self.has_room(world, rank)]
        if full and not (expired and self.rules.a_full_log_is_cut_off_at_the_deadline):
            return
        for rank in full:
            after = with_follower(after, rank, after.followers[rank]._replace(cut=True))
        label = f"r{request} is passed on as {item.kind}" + "".join(f", rank {rank + 1} is cut off" for rank in full)
        after = after._replace(passed=(*after.passed, item))
        if not self.rules.the_log_is_written_by_the_pop:
            for rank, follower in enumerate(after.followers):
                if not follower.buried and not follower.cut:
                    after = with_follower(after, rank, follower._replace(log=(*follower.log, (item,))))
        yield label, after

    def has_room(self, world: World, rank: int) -> bool:
        follower = world.followers[rank]
        if follower.buried or follower.cut:
            return True
        claimed = 0
        if self.rules.room_is_claimed_before_a_request_is_passed_on:
            under_way = world.pop is not None and world.pop.rank <= rank
            claimed = len(world.passed) + (len(world.pop.batch) if under_way and world.pop is not None else 0)
        return follower.unread + claimed < self.setting.log_items

    def has_released(self, world: World, rank: int, place: int) -> bool:
        follower, at = world.followers[rank], world.places[place]
        if follower.buried and self.rules.the_dead_have_released_everything:
            return True
        if follower.cut and not self.rules.a_rank_that_was_cut_off_keeps_its_holds:
            return True
        was_sent = any(item.request == at.request for batch in follower.log for item in batch)
        if not was_sent or not self.rules.memory_waits_for_every_living_rank:
            return True
        mark = follower.marks[place]
        return mark >= at.ticket if self.rules.a_release_names_what_it_releases else mark > 0

    # ---- rank 0's caller

    def caller_steps(self, world: World) -> Iterator[tuple[str, World]]:
        for item in world.held:
            places = world.places
            if item.place != NOBODY:
                places = put(places, item.place, places[item.place]._replace(released=True))
            held = tuple(other for other in world.held if other != item)
            yield f"rank 0 releases r{item.request}", world._replace(held=held, places=places)
        if world.pop is None and world.passed:
            batch = tuple(sorted(world.passed, key=lambda item: item.kind == FAILED))  # the finished ones first
            after = world._replace(passed=(), order=(*world.order, batch), pop=Pop(batch))
            yield f"rank 0 begins to pop {named(batch)}", after
        if world.pop is not None:
            yield from self.publish(world, world.pop)

    def publish(self, world: World, pop: Pop) -> Iterator[tuple[str, World]]:
        if pop.rank == len(world.followers):
            yield "rank 0 has popped", world._replace(pop=None, held=world.held + pop.batch)
            return
        follower, onward = world.followers[pop.rank], pop._replace(rank=pop.rank + 1, wrote=False)
        name = f"rank {pop.rank + 1}"
        if follower.buried or follower.cut or not self.rules.the_log_is_written_by_the_pop:
            yield f"{name} is passed over", world._replace(pop=onward)
            return
        first, batch = self.rules.a_record_is_written_before_it_is_published, pop.batch
        if not self.rules.a_batch_is_published_in_one_step and len(batch) > 1:
            done = follower._replace(log=(*follower.log, batch[:1]))
            rest = pop._replace(batch=batch[1:])
            yield (
                f"the first of a batch is published to {name}",
                with_follower(world, pop.rank, done)._replace(pop=rest),
            )
            return
        if not pop.wrote and follower.unread + len(batch) > self.setting.log_items:
            yield f"{name} has no room", world._replace(fault=f"{name} has no room for what rank 0 pops")
            return
        if not pop.wrote:
            after = follower if first else follower._replace(log=(*follower.log, batch), unwritten=True)
            what = "records are written for" if first else "the tail is moved for"
            yield f"{what} {name}", with_follower(world, pop.rank, after)._replace(pop=pop._replace(wrote=True))
            return
        after = follower._replace(log=(*follower.log, batch)) if first else follower._replace(unwritten=False)
        what = "the tail is moved for" if first else "records are written for"
        yield f"{what} {name}", with_follower(world, pop.rank, after)._replace(pop=onward)

    # ---- followers

    def follower_steps(self, world: World, rank: int, follower: Follower) -> Iterator[tuple[str, World]]:
        def now(after: Follower) -> World:
            return with_follower(world, rank, after)

        name = f"rank {rank + 1}"
        if follower.state == "outside" and world.lives and rank not in self.setting.absent:
            yield f"{name} joins", now(follower._replace(state="inside"))
        if follower.state == "dead" and world.lives and not follower.buried:
            yield f"the door finds {name} dead", now(follower._replace(buried=True))
        for item in follower.holds:
            holds = tuple(other for other in follower.holds if other != item)
            marks = follower.marks
            if item.place != NOBODY:
                marks = put(marks, item.place, max(marks[item.place], item.ticket))
            yield f"{name} releases r{item.request}", now(follower._replace(holds=holds, marks=marks))
        if follower.state != "inside":
            return
        if world.kills:
            yield f"{name} is killed", now(follower._replace(state="dead", holds=()))._replace(kills=world.kills - 1)
        if follower.seen < len(follower.log):
            yield from self.pop_of(world, rank, follower)
        elif follower.cut or (not world.lives and self.rules.the_door_tells_followers_of_the_end):
            yield f"{name} hears of the end", now(follower._replace(state="ended"))

    def pop_of(self, world: World, rank: int, follower: Follower) -> Iterator[tuple[str, World]]:
        batch, name = follower.log[follower.seen], f"rank {rank + 1}"
        if follower.unwritten and follower.seen == len(follower.log) - 1:
            yield f"{name} pops", world._replace(fault="a record was read before it was written")
            return
        after = follower._replace(
            seen=follower.seen + 1,
            popped=(*follower.popped, batch),
            holds=follower.holds + tuple(item for item in batch if item.place != NOBODY),
        )
        yield f"{name} pops {named(batch)}", with_follower(world, rank, after)

    # ---- what must hold

    def violated(self, world: World) -> str | None:
        if world.fault:
            return world.fault
        for rank, follower in enumerate(world.followers):
            for ours, theirs in zip(world.order, follower.popped, strict=False):
                if ours != theirs:
                    return f"order: rank {rank + 1} popped {named(theirs)} where rank 0 popped {named(ours)}"
            for item in follower.holds:
                if world.places[item.place].request != item.request:
                    return f"reused: rank {rank + 1} holds r{item.request} in place {item.place}, which is another's"
        for item in world.held:
            if item.place != NOBODY and world.places[item.place].request != item.request:
                return f"reused: rank 0 holds r{item.request}"
        return None

    def goal(self, world: World) -> bool:
        """All requests were popped everywhere and nothing is held; or rank 0 is dead and everybody knows."""
        if not world.lives:
            return all(follower.state in ("dead", "ended", "outside") for follower in world.followers)
        if world.waiting or world.passed or world.pop is not None:
            return False
        if self.setting.absent:
            return True
        if any(place.request != NOBODY for place in world.places):
            return False
        return all(
            follower.state in ("dead", "ended", "outside") or follower.popped == world.order or follower.cut
            for follower in world.followers
        )



def with_follower(world: World, rank: int, follower: Follower) -> World:
    return world._replace(followers=put(world.followers, rank, follower))


def named(batch: Batch) -> str:
    return " ".join(f"r{item.request}" for item in batch)


def explore_ranks(setting: Setting, rules: Rules | None = None, max_states: int = 300_000) -> Finding:
    model = Model(setting, rules or Rules())
    return explore(model.initial(), model.steps, violated=model.violated, goal=model.goal, max_states=max_states)
