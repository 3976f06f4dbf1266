"""Notices of what is published and what is not any more: every interleaving of changes, notices, heartbeats and
snapshots between the shelf of an encode node and one subscriber.

The heads on the shelf are the truth. The node's poller compares them with what it has announced, gives each difference
a number and sends it. A subscriber that misses something asks for a snapshot.

Modelled: keys that are published and retired, messages that are lost, doubled and reordered, a poller that is killed
and begins anew, a subscriber that comes late or is killed, and (where the publisher sends notices) a killed publisher.

Not modelled: several subscribers (each has messages of its own), the death of the node (its incarnation stands before
the stream in every comparison, and rises as the stream does here).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put


class Message(NamedTuple):
    """A notice (which key has which generation, 0: none), a heartbeat, a snapshot, or an ask for one."""

    kind: str
    stream: int = 0
    number: int = 0
    key: int = 0
    generation: int = 0
    view: tuple[int, ...] = ()


ASK = Message("ask")


class Subscriber(NamedTuple):
    """What it has heard last, and the generation of each key as it knows it."""

    stream: int
    number: int
    view: tuple[int, ...]


class World(NamedTuple):
    truth: tuple[int, ...]  # the generation of each key that is ready; 0: none
    announced: tuple[int, ...]
    subscriber: Subscriber
    drawn: int = 0  # the last generation
    stream: int = 1
    number: int = 0  # of the last notice
    leaving: Message | None = None  # a notice that has its number, and has not left
    due: tuple[int, int] | None = None  # the change of which a publisher is about to send a notice
    messages: frozenset[Message] = frozenset()
    changes: int = 0
    losses: int = 0
    doubles: int = 0
    poller_kills: int = 0
    subscriber_kills: int = 0
    publisher_kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    keys: int = 1
    under_way: int = 2  # messages at once; one more is lost
    takes_older_snapshots: bool = False  # which nothing here minds
    changes: int = 3
    losses: int = 1
    doubles: int = 1
    poller_kills: int = 1
    subscriber_kills: int = 1
    publisher_kills: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r72_the_poller_compares: bool = True  # else the publisher sends a notice after its change
    r73_a_new_poller_begins_a_new_stream: bool = True
    r74_heartbeats_carry_the_number: bool = True
    r75_a_gap_asks_for_a_snapshot: bool = True
    r76_a_snapshot_has_its_number: bool = True
    r76_a_snapshot_is_of_what_was_announced: bool = True  # else of what is published now


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        super().__init__(setting, rules)
        self.nothing = (0,) * setting.keys

    def initial(self) -> World:
        s = self.setting
        return World(
            truth=self.nothing,
            announced=self.nothing,
            subscriber=Subscriber(0, 0, self.nothing),
            changes=s.changes,
            losses=s.losses,
            doubles=s.doubles,
            poller_kills=s.poller_kills,
            subscriber_kills=s.subscriber_kills,
            publisher_kills=s.publisher_kills,
        )

    def violated(self, world: World) -> str | None:
        """Who has heard the last number knows what was announced."""
        stream, number, view = world.subscriber
        is_told = (stream, number) == (world.stream, world.number) and world.leaving is None
        if is_told and view != world.announced:
            return f"wrong: {world.subscriber} at that number, and {world.announced} was announced"
        return None

    def goal(self, world: World) -> bool:
        """The subscriber knows what is published, and that it does."""
        is_heard = world.subscriber == (world.stream, world.number, world.truth)
        return is_heard and world.announced == world.truth and world.due is None and world.leaving is None

    def is_full(self, world: World) -> bool:
        return len(world.messages) >= self.setting.under_way

    def sent(self, world: World, message: Message) -> World:
        return world if self.is_full(world) else world._replace(messages=world.messages | {message})

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.publisher_steps(world)
        yield from self.poller_steps(world)
        if world.subscriber_kills:
            late = world._replace(subscriber=Subscriber(0, 0, self.nothing))
            yield "the subscriber begins anew", late._replace(subscriber_kills=world.subscriber_kills - 1)
        for message in sorted(world.messages):
            without = world._replace(messages=world.messages - {message})
            after = self.taken(without, message)
            yield f"a {message.kind} arrives", after
            if world.doubles and not self.is_full(after):
                doubled = after._replace(messages=after.messages | {message}, doubles=world.doubles - 1)
                yield f"a {message.kind} arrives, and once more later", doubled
            if world.losses:
                yield f"a {message.kind} is lost", without._replace(losses=world.losses - 1)

    # ---- the encode node

    def publisher_steps(self, world: World) -> Iterator[Step]:
        for key, generation in enumerate(world.truth if world.changes else ()):
            drawn = world.drawn if generation else world.drawn + 1
            following = 0 if generation else drawn
            changed = world._replace(truth=put(world.truth, key, following), drawn=drawn, changes=world.changes - 1)
            label = f"key {key} is retired" if generation else f"key {key} is published, generation {following}"
            if self.rules.r72_the_poller_compares:
                yield label, changed
            elif world.due is None:
                yield f"{label}, a notice is due", changed._replace(due=(key, following))
        if world.due is not None:
            after = self.announce(world._replace(due=None), *world.due)
            assert after.leaving is not None
            yield "the publisher sends its notice", self.sent(after._replace(leaving=None), after.leaving)
            if world.publisher_kills:
                killed = world._replace(due=None, publisher_kills=world.publisher_kills - 1)
                yield "the publisher is killed before its notice", killed

    def announce(self, world: World, key: int, generation: int) -> World:
        number = world.number + 1
        notice = Message("notice", world.stream, number, key, generation)
        return world._replace(announced=put(world.announced, key, generation), number=number, leaving=notice)

    def poller_steps(self, world: World) -> Iterator[Step]:
        if world.leaving is not None:
            yield "the poller sends its notice", self.sent(world._replace(leaving=None), world.leaving)
        else:
            compared = zip(world.truth, world.announced, strict=True)
            differing = [key for key, (is_so, was_said) in enumerate(compared) if is_so != was_said]
            for key in differing if self.rules.r72_the_poller_compares else ():
                yield f"the poller numbers the change of key {key}", self.announce(world, key, world.truth[key])
            heartbeat = Message("heartbeat", world.stream, world.number)
            if heartbeat not in world.messages and not self.is_full(world):
                yield "the poller sends a heartbeat", self.sent(world, heartbeat)
        if world.poller_kills:
            stream = world.stream + 1 if self.rules.r73_a_new_poller_begins_a_new_stream else world.stream
            anew = world._replace(stream=stream, number=0, announced=self.nothing, leaving=None)
            yield "the poller is killed, and begins anew", anew._replace(poller_kills=world.poller_kills - 1)

    # ---- what comes of a message

    def taken(self, world: World, message: Message) -> World:
        stream, number, view = world.subscriber
        heard, said = (stream, number), (message.stream, message.number)
        if message.kind == "ask":
            view = world.announced if self.rules.r76_a_snapshot_is_of_what_was_announced else world.truth
            return self.sent(world, Message("snapshot", world.stream, world.number, view=view))
        if message.kind == "heartbeat":
            is_behind = said > heard and self.rules.r74_heartbeats_carry_the_number
            return self.sent(world, ASK) if is_behind else world
        if message.kind == "snapshot":
            if said < heard and not self.setting.takes_older_snapshots:
                return world
            if not self.rules.r76_a_snapshot_has_its_number:
                said = (message.stream, max(number, message.number - 1) if message.stream == stream else 0)
            return world._replace(subscriber=Subscriber(*said, message.view))
        if said <= heard:
            return world
        if said != (stream, number + 1) and self.rules.r75_a_gap_asks_for_a_snapshot:
            return self.sent(world, ASK)
        return world._replace(subscriber=Subscriber(*said, put(view, message.key, message.generation)))


def explore_notices(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `wrong` (a subscriber that has heard all has a wrong view) or `stuck` (it never has the right one)."""
    model = Model(setting, rules or Rules())
    return explore(model.initial(), model.steps, violated=model.violated, goal=model.goal, max_states=max_states)
