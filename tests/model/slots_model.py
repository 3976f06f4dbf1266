"""Two nodes with few slots each, and more rooms than slots, opened in opposite orders: who may hold a slot, and who
waits without one.

A room ends when it has a slot on both sides. The language side has nothing but its slots: a room is asked for (init)
when it has one. The encode side has calls of encoders, which wait in a queue of their client without a slot, and knows
by the inits which rooms are asked for. A slot of the language side names its request to the encode side by its number
and epoch; the tombstones there refuse what is over (R15).

Messages are lost, doubled and late; the scheduler aborts a room at any time; what is announced to the client (a log of
one entry here) may be overrun before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, explore, put

NOTHING = -1
Init = tuple[int, int, int]  # room, slot of the language side, its epoch


class World(NamedTuple):
    opened_there: int = 0  # rooms that the scheduler has opened, in its order
    here: tuple[tuple[int, int], ...] = ()  # language slots: (room, epoch)
    called: int = 0  # rooms for which the encoder has called, in its order
    queue: tuple[int, ...] = ()
    slots: tuple[tuple[int, bool], ...] = ()  # encode slots: (room, whether it has been joined to its destination)
    pending: frozenset[Init] = frozenset()
    tombstones: tuple[int, ...] = ()
    inits: frozenset[Init] = frozenset()
    asks: frozenset[int] = frozenset()
    log: int = NOTHING
    wanted: frozenset[int] = frozenset()
    aborted: int = NOTHING
    over: frozenset[int] = frozenset()  # rooms that have ended at the encode side
    losses: int = 0
    doubles: int = 0
    aborts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    unasked_hold_half: bool = True  # no more than half of the encode slots for rooms that nobody has asked for
    asked_take_any: bool = True  # a queued room that is asked for takes any slot, whatever waits before it
    calls_wait_without_slot: bool = True  # else the call is refused, and made again
    ask_or_resend: bool = True  # an init that is not answered is sent again, and announced again
    r15_abort_fails_the_room: bool = True  # later calls, and those that wait
    num_rooms: int = 4
    num_slots: int = 2  # on each side
    losses: int = 1
    doubles: int = 1
    aborts: int = 1


def steps_with(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    yield from scheduler_steps(rules, world)
    yield from network_steps(rules, world)
    yield from encoder_steps(rules, world)
    for at, (room, joined) in enumerate(world.slots):
        if joined:
            yield f"room {room} ends", end(world, at)


def scheduler_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    for at, (room, epoch) in enumerate(world.here):
        if room == NOTHING and world.opened_there < rules.num_rooms:
            following, number = (world.opened_there, epoch + 1), world.opened_there + 1
            opened = world._replace(opened_there=number, here=put(world.here, at, following))
            yield (
                f"the scheduler opens room {following[0]}",
                opened._replace(inits=world.inits | {(following[0], at, epoch + 1)}),
            )
            return  # slots are alike
    for at, (room, epoch) in enumerate(world.here):
        if room == NOTHING or (room, True) in world.slots:
            continue
        if rules.ask_or_resend and (room, at, epoch) not in world.inits:
            yield f"the init of room {room} is sent again", world._replace(inits=world.inits | {(room, at, epoch)})
        if world.aborts:
            yield (
                f"the scheduler aborts room {room}",
                abort(rules, world._replace(aborts=world.aborts - 1), at, room, epoch),
            )


def abort(rules: Rules, world: World, at: int, room: int, epoch: int) -> World:
    """It leaves a tombstone, and the room fails here, whoever comes for it later; a queued call is told."""
    world = world._replace(
        here=put(world.here, at, (NOTHING, epoch)),
        tombstones=put(world.tombstones, at, max(epoch, world.tombstones[at])),
        pending=world.pending - {(room, at, epoch)},
    )
    if not rules.r15_abort_fails_the_room:
        return world
    world = world._replace(aborted=room, log=room)
    for slot, (other, _) in enumerate(world.slots):
        if other == room:
            return free(world, slot)
    return world


def end(world: World, at: int) -> World:
    room = world.slots[at][0]
    there = next(slot for slot, (other, _) in enumerate(world.here) if other == room)
    return free(world._replace(here=put(world.here, there, (NOTHING, world.here[there][1]))), at)


def free(world: World, at: int) -> World:
    room = world.slots[at][0]
    return world._replace(slots=tuple(sorted(put(world.slots, at, (NOTHING, False)))), over=world.over | {room})


def network_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    for init in sorted(world.inits):
        room = init[0]
        gone = world._replace(inits=world.inits - {init})
        yield f"the init of room {room} comes", take(rules, gone, init)
        if world.losses:
            yield f"the init of room {room} is lost", gone._replace(losses=world.losses - 1)
        if world.doubles:
            yield (
                f"the init of room {room} comes, and again later",
                take(rules, world._replace(doubles=world.doubles - 1), init),
            )


def take(rules: Rules, world: World, init: Init) -> World:
    room, at, epoch = init
    if epoch <= world.tombstones[at]:
        return world
    if room == world.aborted:
        return world
    if (room, False) in world.slots:
        return join(world, init)
    kept = frozenset(other for other in world.pending if other[1] != at or other[2] > epoch)
    return world._replace(pending=kept | {init}, log=room)


def join(world: World, init: Init) -> World:
    room, at, epoch = init
    slots = tuple(sorted(put(world.slots, world.slots.index((room, False)), (room, True))))
    if world.here[at] != (room, epoch):
        slots = world.slots  # nobody is there any more: it waits for one who is
    tombstones = put(world.tombstones, at, max(epoch, world.tombstones[at]))
    return world._replace(slots=slots, tombstones=tombstones, pending=world.pending - {init})


def encoder_steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    unasked = sum(room != NOTHING and not joined for room, joined in world.slots)
    has_slot = (NOTHING, False) in world.slots
    may_open = has_slot and (not rules.unasked_hold_half or unasked < rules.num_slots // 2)
    if world.called < rules.num_rooms:
        room = rules.num_rooms - 1 - world.called
        called = world._replace(called=world.called + 1)
        if may_open and not world.queue:
            yield f"the encoder opens room {room}", open_here(called, room)
        elif rules.calls_wait_without_slot:
            yield (
                f"the call for room {room} waits",
                called._replace(queue=(*world.queue, room), asks=world.asks | {room}),
            )
    for room in sorted(world.asks):
        is_known = any(other == room for other, _, _ in world.pending) or room == world.aborted
        asked = world._replace(asks=world.asks - {room})
        yield f"it is asked whether room {room} is wanted", asked._replace(log=room) if is_known else asked
    if world.log != NOTHING:
        wanted = world.wanted | ({world.log} & set(world.queue))
        yield "the client reads the log", world._replace(log=NOTHING, wanted=wanted)
    if world.queue and may_open:
        yield f"room {world.queue[0]} has waited its turn", leave_queue(world, world.queue[0])
    if rules.asked_take_any and has_slot:
        for room in sorted(world.wanted):
            yield f"room {room} is wanted and takes a slot", leave_queue(world, room)


def leave_queue(world: World, room: int) -> World:
    queue = tuple(other for other in world.queue if other != room)
    return open_here(world._replace(queue=queue, wanted=world.wanted - {room}, asks=world.asks - {room}), room)


def open_here(world: World, room: int) -> World:
    if room == world.aborted:
        return world._replace(over=world.over | {room})
    slots = tuple(sorted(put(world.slots, world.slots.index((NOTHING, False)), (room, False))))
    world = world._replace(slots=slots)
    for init in sorted(world.pending):
        if init[0] == room:
            return join(world, init)
    return world


def explore_slots(rules: Rules) -> Finding:
    def is_over(world: World) -> bool:
        return len(world.over) == rules.num_rooms and all(room == NOTHING for room, _ in world.here)

    first = World(
        here=((NOTHING, 0),) * rules.num_slots,
        slots=((NOTHING, False),) * rules.num_slots,
        tombstones=(0,) * rules.num_slots,
        losses=rules.losses,
        doubles=rules.doubles,
        aborts=rules.aborts,
    )
    return explore(first, lambda world: steps_with(rules, world), goal=is_over, max_states=600_000)
