"""A room number that is used twice at one encode node, after its first use has failed there: every interleaving of what
is late.

Modelled: the encoder's senders of the room, one for each use; one destination, with one request a use, that comes
before its encoder, after it, or after it has failed; the room's bar (`workers/bootstrap/ended_rooms.py`), the
destination's tombstone, inits that are sent again, refusals, aborts and their acknowledgements. Messages are never
forgotten, so each may come at any later time, and again; what is lost is what comes late. The second use begins when
the first has ended on both sides, as far as its users can see: both words are terminal, and the destination's slot is
free.

Not modelled: time (a bar also ends with it, and only so where nobody says how many destinations belong to the room),
several destinations, grants (`destinations_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, explore, put

NEW, OPEN, FAILED, DONE = "new", "open", "failed", "done"
USES = (1, 2)
Message = tuple[str, int]  # kind, and the use (epoch) of the destination's request


class Bar(NamedTuple):
    """The room is barred."""

    refused: bool = False  # the destination was, and has not said that it knows
    told: bool = False
    encoder_told: bool = False


class World(NamedTuple):
    senders: tuple[str, ...] = (NEW, NEW)
    joined: tuple[int, ...] = (0, 0)  # the destination's epoch that each sender has
    requests: tuple[str, ...] = (NEW, NEW)
    acked: tuple[bool, ...] = (False, False)
    pending: int = 0
    tombstone: int = 0
    bar: Bar | None = None
    gives_up: int = 1  # times that the destination may end the first use itself
    messages: frozenset[Message] = frozenset()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r15_late_comers_are_refused: bool = True
    r15_bar_ends_when_all_know: bool = True
    r15_bar_lasts_until_the_refused_know: bool = True
    r15_a_refused_ones_abort_bars_nothing: bool = True
    r15_abort_raises_the_tombstone: bool = True


Step = tuple[str, World]


def said(world: World, *messages: Message) -> World:
    return world._replace(messages=world.messages | set(messages))


def ended(rules: Rules, world: World) -> World:
    """The bar is over when the encoder has been told, and the destination knows."""
    bar = world.bar
    if bar is None or not rules.r15_bar_ends_when_all_know:
        return world
    knows = bar.told or (bar.refused and not rules.r15_bar_lasts_until_the_refused_know)
    waits = bar.refused and rules.r15_bar_lasts_until_the_refused_know
    return world._replace(bar=None) if bar.encoder_told and knows and not waits else world


def steps(rules: Rules, world: World) -> Iterator[Step]:
    if world.fault:
        return
    for use in USES:
        i = use - 1
        may_begin = use == 1 or (world.senders[0] == FAILED and world.requests[0] == FAILED and world.acked[0])
        if may_begin and world.senders[i] == NEW:
            yield f"encoder opens use {use}", opened(rules, world, use)
        if may_begin and world.requests[i] == NEW:
            yield (
                f"destination comes, use {use}",
                said(world._replace(requests=put(world.requests, i, OPEN)), ("init", use)),
            )
    if world.senders[0] == OPEN:
        yield "encoder gives up use 1", fail_sender(rules, world, 1)
    if world.requests[0] == OPEN and world.gives_up:
        yield "destination gives up use 1", said(
            world._replace(requests=put(world.requests, 0, FAILED), gives_up=0), ("abort", 1)
        )
    for kind, epoch in sorted(world.messages):
        i = epoch - 1
        if kind == "init":
            yield f"init {epoch} comes", init(rules, world, epoch)
        elif kind == "abort":
            yield f"abort {epoch} comes", abort(rules, world, epoch)
        elif kind == "ack" and not world.acked[i]:
            yield f"ack {epoch} comes", world._replace(acked=put(world.acked, i, True))
        elif kind in ("refused", "failed") and world.requests[i] == OPEN:
            after = said(world._replace(requests=put(world.requests, i, FAILED)), ("abort", epoch))
            yield f"destination hears that use {epoch} has failed", after._replace(
                fault="barred: the second use fails of the first" if epoch == 2 else None
            )
        elif kind == "success" and world.requests[i] == OPEN:
            yield f"destination hears of success of use {epoch}", world._replace(requests=put(world.requests, i, DONE))


def opened(rules: Rules, world: World, use: int) -> World:
    world = ended(rules, world)
    if world.bar is not None:
        fault = "barred: the second use fails of the first" if use == 2 else None
        return release(rules, world._replace(senders=put(world.senders, use - 1, FAILED), fault=fault), use)
    world = world._replace(senders=put(world.senders, use - 1, OPEN))
    return join(world, use, world.pending)._replace(pending=0) if world.pending else world


def join(world: World, use: int, epoch: int) -> World:
    world = world._replace(joined=put(world.joined, use - 1, epoch), tombstone=max(world.tombstone, epoch))
    if epoch != use:
        return world._replace(fault=f"mixed: the sender of use {use} has the destination of use {epoch}")
    if use == 2:
        return said(world._replace(senders=put(world.senders, 1, DONE)), ("success", 2))
    return world


def fail_sender(rules: Rules, world: World, use: int) -> World:
    world = world._replace(senders=put(world.senders, use - 1, FAILED))
    if epoch := world.joined[use - 1]:
        return said(world, ("failed", epoch))  # and is released when the destination has aborted or closed it
    return release(rules, world, use)


def release(rules: Rules, world: World, use: int) -> World:
    """The encode node is done with a sender that has failed before its destination had come."""
    if not rules.r15_late_comers_are_refused:
        return world
    world = ended(rules, world._replace(bar=(world.bar or Bar())._replace(encoder_told=True)))
    if world.bar is not None and world.pending:
        world = said(world._replace(bar=world.bar._replace(refused=True), pending=0), ("refused", world.pending))
    return world


def init(rules: Rules, world: World, epoch: int) -> World:
    if epoch in world.joined or epoch <= world.tombstone or world.pending == epoch:
        return world
    world = ended(rules, world)
    if world.bar is not None:
        return said(world._replace(bar=world.bar._replace(refused=True)), ("refused", epoch))
    if OPEN in world.senders:
        return join(world, world.senders.index(OPEN) + 1, epoch)
    return world._replace(pending=epoch)


def abort(rules: Rules, world: World, epoch: int) -> World:
    if epoch in world.joined:
        use = world.joined.index(epoch) + 1
        if world.senders[use - 1] == OPEN:
            world = world._replace(senders=put(world.senders, use - 1, FAILED))
        return said(world, ("ack", epoch))
    was_pending = world.pending == epoch
    is_news = epoch > world.tombstone
    world = said(world._replace(pending=0 if was_pending else world.pending), ("ack", epoch))
    if rules.r15_abort_raises_the_tombstone:
        world = world._replace(tombstone=max(world.tombstone, epoch))
    if world.bar is not None and world.bar.refused and rules.r15_a_refused_ones_abort_bars_nothing:
        return ended(rules, world._replace(bar=world.bar._replace(refused=False, told=True)))
    if is_news or was_pending:
        if rules.r15_late_comers_are_refused:
            world = ended(rules, world._replace(bar=(world.bar or Bar())._replace(told=True)))
        if OPEN in world.senders:
            use = world.senders.index(OPEN) + 1
            fault = "barred: the second use fails of the first" if use == 2 else None
            world = release(rules, world._replace(senders=put(world.senders, use - 1, FAILED), fault=fault), use)
    return world


def is_over(world: World) -> bool:
    """Both uses have ended; the second one well."""
    return world.senders == (FAILED, DONE) and world.requests == (FAILED, DONE) and world.acked[0]


def explore_room(rules: Rules | None = None, *, gives_up: int = 1) -> Finding:
    """A fault is `barred` (the second use fails of the first), `mixed` (it has its destination), or `stuck`.

    `gives_up`: whether the destination has a deadline.
    """
    active = rules or Rules()
    return explore(
        World(gives_up=gives_up), lambda world: steps(active, world), violated=lambda world: world.fault, goal=is_over
    )
