"""The cache of published items at a language node: every interleaving of users that want sets of items, fetches that
come or fail, evictions, and followers that read what rank 0's log names, at their own pace.

Rank 0 decides alone. An item is absent, under way (its memory was taken when its size was known), or ready. A *user* is
a request of the engine that wants a set of keys, all at once; it is admitted when all of them are ready, and then loads
them, perhaps more than once, as it may be preempted and resumed.

Modelled: users that share items, memory for one to three items, fetches that fail, users that are aborted or preempted,
followers that are killed.

Not modelled: items of different sizes (each has one place), how an item is fetched (`item_fetch_model`), prefetches,
and sets that never fit, which are refused before any of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Finding, Ruled, explore, put

NOWHERE: Final = -1
ABSENT, UNDER_WAY, READY, BROKEN = "absent", "under way", "ready", "broken"
ALIVE, DEAD, BURIED = "alive", "dead", "buried"
ADMITTED = ("admitted", "loaded", "preempted")
LONGEST_LOG = 7


class Item(NamedTuple):
    state: str = ABSENT
    place: int = NOWHERE


class Place(NamedTuple):
    """Memory for one item: whose it is, whether that is all there, and how long the log was when it was given back (by
    which followers must be past what it held before).
    """

    key: int = NOWHERE
    is_whole: bool = False
    given_back: int = 0


class User(NamedTuple):
    """A user is new, wanting, admitted, loaded, preempted, told of a miss, or over."""

    at: str = "new"
    turn: int = 0


class Load(NamedTuple):
    """What one entry of the log says: where to find a key."""

    key: int
    place: int


class World(NamedTuple):
    items: tuple[Item, ...]
    places: tuple[Place, ...]
    users: tuple[User, ...]
    positions: tuple[int, ...]  # of followers, in the log
    followers: tuple[str, ...]
    log: tuple[tuple[Load, ...], ...] = ()
    late: frozenset[Load] = frozenset()  # fetches whose memory was taken from them
    turns: int = 0
    failures: int = 0
    aborts: int = 0
    preemptions: int = 0
    kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    places: int = 2
    wanted: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3))  # of each user
    followers: int = 1
    in_turn: bool = True  # who is behind one that lacks memory gets none (R66, which nothing here needs)
    failures: int = 0
    aborts: int = 0
    preemptions: int = 0
    kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r65_the_first_takes_from_those_behind: bool = True
    r67_one_fetch_a_key: bool = True
    r68_all_who_wait_are_told_of_a_failure: bool = True
    r69_an_admitted_users_items_stay: bool = True  # else only until it is preempted
    r70_followers_are_past_what_is_used_again: bool = True
    r71_memory_under_a_fetch_is_its_own: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            items=(Item(),) * (1 + max(key for keys in s.wanted for key in keys)),
            places=(Place(),) * s.places,
            users=(User(),) * len(s.wanted),
            positions=(0,) * s.followers,
            followers=(ALIVE,) * s.followers,
            failures=s.failures,
            aborts=s.aborts,
            preemptions=s.preemptions,
            kills=s.kills,
        )

    def steps(self, world: World) -> Iterator[Step]:
        line = sorted((user.turn, u) for u, user in enumerate(world.users) if user.at == "wants")
        for u, user in enumerate(world.users):
            yield from self.user_steps(world, u, user)
            if user.at == "wants":
                yield from self.want_steps(world, u, [other for _, other in line])
        for key, item in enumerate(world.items):
            if item.state == UNDER_WAY:
                yield from self.fetch_steps(world, key, item.place)
        for key, place in sorted(world.late):
            after = world._replace(late=world.late - {Load(key, place)})
            if world.places[place].key not in (NOWHERE, key):
                after = world._replace(fault=f"stray: item {key} is written into place {place}, which is another's")
            yield f"a write of item {key} comes late", after
        for f, state in enumerate(world.followers):
            yield from self.follower_steps(world, f, state)

    def goal(self, world: World) -> bool:
        """All users are over, nothing is under way, and all followers have read all."""
        return (
            all(user.at == "over" for user in world.users)
            and all(
                state == BURIED or (state == ALIVE and position == len(world.log))
                for state, position in zip(world.followers, world.positions, strict=True)
            )
            and all(item.state != UNDER_WAY for item in world.items)
        )

    def with_item(self, world: World, key: int, item: Item) -> World:
        return world._replace(items=put(world.items, key, item))

    def with_place(self, world: World, number: int, place: Place) -> World:
        return world._replace(places=put(world.places, number, place))

    def lacks(self, world: World, u: int) -> bool:
        return any(world.items[key].state == ABSENT for key in self.setting.wanted[u])

    # ---- users

    def user_steps(self, world: World, u: int, me: User) -> Iterator[Step]:
        def now(at: str, turn: int = me.turn) -> World:
            return world._replace(users=put(world.users, u, User(at, turn)))

        keys = self.setting.wanted[u]
        if me.at == "new":
            yield f"u{u} wants {keys}", now("wants", world.turns + 1)._replace(turns=world.turns + 1)
        elif me.at == "wants":
            if all(world.items[key].state == READY for key in keys):
                yield f"u{u} is admitted", now("admitted")
        elif me.at == "admitted" and len(world.log) < LONGEST_LOG:
            loads = tuple(Load(key, world.items[key].place) for key in keys)
            after = now("loaded")._replace(log=(*world.log, loads))
            lost = [key for key in keys if world.items[key].state != READY]
            if lost:
                after = world._replace(fault=f"miss: u{u} was admitted, and items {lost} are not there")
            yield f"u{u} loads its items", after
        elif me.at == "loaded":
            yield f"u{u} ends", now("over")
            if world.preemptions:
                yield f"u{u} is preempted", now("preempted")._replace(preemptions=world.preemptions - 1)
        elif me.at == "preempted":
            yield f"u{u} is resumed", now("admitted")
        elif me.at == "missed":
            yield f"u{u} asks again", now("wants")
        if me.at in ("wants", "admitted", "loaded") and world.aborts:
            yield f"u{u} is aborted", now("over")._replace(aborts=world.aborts - 1)

    def want_steps(self, world: World, u: int, line: list[int]) -> Iterator[Step]:
        is_first, ahead = line[0] == u, line[: line.index(u)]
        for key in self.setting.wanted[u]:
            state = world.items[key].state
            if state == UNDER_WAY and is_first and not self.rules.r67_one_fetch_a_key:
                yield f"u{u} fetches item {key}", world._replace(fault=f"twice: item {key} is fetched twice at once")
            if state != ABSENT or (self.setting.in_turn and any(self.lacks(world, other) for other in ahead)):
                continue
            free = next((m for m, place in enumerate(world.places) if self.may_take(world, place)), None)
            if free is None:
                yield from self.eviction_steps(world, u, is_first)
            else:
                taken = self.with_place(world, free, world.places[free]._replace(key=key, is_whole=False))
                fetched = self.with_item(taken, key, Item(UNDER_WAY, free))
                yield f"u{u} has item {key} fetched into place {free}", fetched

    def may_take(self, world: World, place: Place) -> bool:
        if place.key != NOWHERE:
            return False
        return not self.rules.r70_followers_are_past_what_is_used_again or all(
            position >= place.given_back or state == BURIED
            for position, state in zip(world.positions, world.followers, strict=True)
        )

    def eviction_steps(self, world: World, u: int, is_first: bool) -> Iterator[Step]:
        for key, (state, place) in enumerate(world.items):
            if key in self.setting.wanted[u]:
                continue
            if state == READY and self.may_evict(world, key, is_first):
                after = self.with_place(world, place, Place(given_back=len(world.log)))
                yield f"u{u} has item {key} evicted", self.with_item(after, key, Item())
            if state == UNDER_WAY and is_first and not self.rules.r71_memory_under_a_fetch_is_its_own:
                after = self.with_place(world, place, world.places[place]._replace(key=NOWHERE))
                after = self.with_item(after, key, Item())._replace(late=world.late | {Load(key, place)})
                yield f"u{u} takes place {place} from the fetch of item {key}", after

    def may_evict(self, world: World, key: int, is_first: bool) -> bool:
        stay = ADMITTED if self.rules.r69_an_admitted_users_items_stay else ADMITTED[:2]
        wanting = [user.at for keys, user in zip(self.setting.wanted, world.users, strict=True) if key in keys]
        takes = is_first and self.rules.r65_the_first_takes_from_those_behind
        return not any(at in stay or (at == "wants" and not takes) for at in wanting)

    # ---- fetches and followers

    def fetch_steps(self, world: World, key: int, place: int) -> Iterator[Step]:
        come = self.with_place(world, place, world.places[place]._replace(is_whole=True))
        yield f"item {key} has come", self.with_item(come, key, Item(READY, place))
        if world.failures:
            waiting = [u for u, me in enumerate(world.users) if me.at == "wants" and key in self.setting.wanted[u]]
            state = ABSENT
            if not self.rules.r68_all_who_wait_are_told_of_a_failure:
                waiting, state = waiting[:1], BROKEN
            users = tuple(me._replace(at="missed") if u in waiting else me for u, me in enumerate(world.users))
            failed = self.with_item(self.with_place(world, place, Place()), key, Item(state))
            yield f"the fetch of item {key} fails", failed._replace(users=users, failures=world.failures - 1)

    def follower_steps(self, world: World, f: int, state: str) -> Iterator[Step]:
        position = world.positions[f]
        if state == ALIVE and position < len(world.log):
            after = world._replace(positions=put(world.positions, f, position + 1))
            seen = [(load.key, world.places[load.place]) for load in world.log[position]]
            wrong = [place for key, place in seen if place[:2] != (key, True)]
            if any(place.key != NOWHERE for place in wrong):  # what was given back is as it was until it is taken
                after = world._replace(fault=f"torn: follower {f} reads {wrong} for load {position}")
            yield f"follower {f} reads load {position}", after
        if state == ALIVE and world.kills:
            killed = world._replace(followers=put(world.followers, f, DEAD))
            yield f"follower {f} is killed", killed._replace(kills=world.kills - 1)
        if state == DEAD:
            yield f"follower {f} is buried", world._replace(followers=put(world.followers, f, BURIED))


def explore_cache(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `twice` (one key is fetched twice at once), `miss` (an admitted user's item is not there), `torn` (a
    follower reads another item), `stray` (a fetch writes into another's memory) or `stuck`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
