"""Who a message is from and about: every interleaving of one slot's requests, two nodes that restart, and burials on
both sides.

Modelled: a language node with one slot and one block, an encode node that opens whatever room it is asked for,
registration, the incarnations of both, epochs, tombstones, aborts, closes, "stale" answers, a node that is taken for
dead although it lives and registers again under the same incarnation, and a transfer worker that writes through shared
memory by way of the language node's door. Messages are never forgotten, so each may come at any later time, or be
answered twice.

Not modelled: watermarks (each request is one row), writes that land after their process has ended (`transfer_model`),
more than one peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from explorer import Finding, Ruled, explore

FREE, WAITING, LIVE, FAILED, SUCCESS = "free", "waiting", "live", "failed", "success"


class Entry(NamedTuple):
    """What a node knows of the other one: its incarnation, whether it lives, and under which registration they
    speak.
    """

    incarnation: int
    alive: bool
    registration: int


class Language(NamedTuple):
    """The language node.

    `block` is the epoch that holds the block (0: free, perhaps anybody else's), `peer` whom the request joined.
    """

    incarnation: int = 1
    epoch: int = 0
    state: str = FREE
    peer: int = 0
    block: int = 0
    entry: Entry | None = None
    registrations: int = 0


class Request(NamedTuple):
    """A request as the encode node holds it. `serial` is which one it really is; nobody in the model can see that."""

    incarnation: int
    epoch: int
    registration: int
    serial: int
    state: str = LIVE
    closed: bool = False
    abort_asked: bool = False


class Encode(NamedTuple):
    """The encode node.

    `door` is the language incarnation whose memory the worker has mapped, `worker` what it is about.
    """

    incarnation: int = 1
    entry: Entry | None = None
    requests: tuple[Request, ...] = ()
    tombstones: tuple[tuple[int, int], ...] = ()  # (language incarnation, highest epoch)
    door: int = 0
    worker: tuple[str, Request] | None = None


class World(NamedTuple):
    language: Language = Language()
    encode: Encode = Encode()
    messages: frozenset[tuple[Any, ...]] = frozenset()
    requests: int = 0  # how many may still be opened
    language_restarts: int = 0
    encode_restarts: int = 0
    language_burials: int = 0
    encode_burials: int = 0
    kills: int = 0
    deadlines: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How often each thing may happen."""

    requests: int = 2
    language_restarts: int = 0
    encode_restarts: int = 0
    language_burials: int = 0
    encode_burials: int = 0
    kills: int = 0
    deadlines: int = 0
    last_epoch: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r12_waits_for_the_writers_end: bool = True
    r14_reports_name_the_incarnation: bool = True
    r14_reports_name_the_epoch: bool = True
    r14_messages_name_their_target: bool = True
    r14_a_registration_voids_the_one_before: bool = True
    r14_worker_looks_again_behind_the_door: bool = True
    r15_tombstones: bool = True
    r15_abort_leaves_a_tombstone: bool = True
    r17_last_epoch_retires_the_slot: bool = True
    d3_the_dead_may_register_again: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            requests=s.requests,
            language_restarts=s.language_restarts,
            encode_restarts=s.encode_restarts,
            language_burials=s.language_burials,
            encode_burials=s.encode_burials,
            kills=s.kills,
            deadlines=s.deadlines,
        )

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.language_steps(world)
        yield from self.encode_steps(world)
        yield from self.worker_steps(world)
        for message in sorted(world.messages):
            if message[0] in ("register", "init", "abort", "close"):
                yield from self.encode_takes(world, message)
            else:
                yield from self.language_takes(world, message)

    # ---- the language node

    def language_steps(self, world: World) -> Iterator[Step]:
        me = world.language
        if me.state == FREE and world.requests:
            retired = me.epoch == self.setting.last_epoch
            if not (retired and self.rules.r17_last_epoch_retires_the_slot):
                epoch = 1 if retired else me.epoch + 1
                opened = me._replace(state=WAITING, epoch=epoch)
                yield f"L: opens epoch {epoch}", world._replace(language=opened, requests=world.requests - 1)
        if me.state == WAITING:
            yield from self.connect_steps(world, me)
        if me.state == LIVE and world.deadlines:
            yield "L: deadline", world._replace(language=me._replace(state=FAILED), deadlines=world.deadlines - 1)
        if me.entry is not None and me.entry.alive:
            yield from self.bury_encode_steps(world, me.entry)
        if me.state == FAILED:
            yield from self.abort_steps(world, me)
        if world.language_restarts:
            after = world._replace(language=Language(me.incarnation + 1), language_restarts=world.language_restarts - 1)
            yield "L: is started again", after

    def connect_steps(self, world: World, me: Language) -> Iterator[Step]:
        if me.entry is not None and me.entry.alive:
            entry = me.entry
            joined = me._replace(state=LIVE, peer=entry.incarnation, block=me.epoch)
            init = ("init", me.incarnation, entry.incarnation, me.epoch, entry.registration, self.serial(world))
            yield f"L: grants the block to epoch {me.epoch}", world._replace(
                language=joined, messages=world.messages | {init}
            )
        elif (
            me.entry is None
            or self.rules.d3_the_dead_may_register_again
            or me.entry.incarnation != world.encode.incarnation
        ):
            number = me.registrations + 1
            if ("register", me.incarnation, number) not in world.messages:
                yield f"L: registers, number {number}", self.say(world, "register", me.incarnation, number)

    def bury_encode_steps(self, world: World, entry: Entry) -> Iterator[Step]:
        there = world.encode
        beats = there.entry is not None and there.entry.alive and there.entry.incarnation == world.language.incarnation
        if entry.incarnation != there.incarnation or (world.language.state in (LIVE, FAILED) and not beats):
            yield "L: the encode node is silent, and declared dead", self.bury_encode(world)
        elif world.language_burials:
            spent = world._replace(language_burials=world.language_burials - 1)
            yield "L: takes the encode node for dead", self.bury_encode(spent)

    def bury_encode(self, world: World) -> World:
        me = world.language
        assert me.entry is not None
        entry = me.entry._replace(alive=False)
        return world._replace(language=me._replace(entry=entry, state=FAILED if me.state == LIVE else me.state))

    def abort_steps(self, world: World, me: Language) -> Iterator[Step]:
        """An ended request asks the encode node to stop, or waits until nobody of a dead one can write."""
        assert me.entry is not None
        if me.entry.alive and me.entry.incarnation == me.peer:
            abort = ("abort", me.incarnation, me.peer, me.epoch, me.entry.registration, self.serial(world))
            if abort not in world.messages:
                yield f"L: asks to abort epoch {me.epoch}", world._replace(messages=world.messages | {abort})
        else:
            mapped = world.encode.incarnation == me.peer and world.encode.door == me.incarnation
            if not mapped or not self.rules.r12_waits_for_the_writers_end:
                yield f"L: nobody is left to write for epoch {me.epoch}", world._replace(language=self.released(me))

    def serial(self, world: World) -> int:
        return self.setting.requests - world.requests

    def released(self, me: Language) -> Language:
        return me._replace(state=FREE, peer=0, block=0)

    def say(self, world: World, *message: Any) -> World:
        return world._replace(messages=world.messages | {message})

    def language_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, source, target = message[:3]
        me = world.language
        if self.rules.r14_reports_name_the_incarnation and target != me.incarnation:
            return
        if kind == "registered":
            number = me.registrations + 1
            if me.state == WAITING and not (me.entry and me.entry.alive) and message[3] == number:
                entry = Entry(source, True, number)
                yield f"L: is registered with incarnation {source}", world._replace(
                    language=me._replace(entry=entry, registrations=number)
                )
            return
        if me.entry is None or not me.entry.alive or me.entry.incarnation != source:
            return
        if kind == "stale":
            if message[3] == me.entry.registration:  # an answer comes on the connection that it is about
                yield "L: hears that the encode node is gone", self.bury_encode(world)
            return
        epoch = message[3]
        about_us = me.state in (LIVE, FAILED) and me.peer == source
        if self.rules.r14_reports_name_the_epoch:
            about_us = about_us and epoch == me.epoch
        if not about_us:
            close = ("close", me.incarnation, source, epoch, me.entry.registration, message[4])
            if close not in world.messages:
                yield (
                    f"L: closes epoch {epoch}, which it does not know",
                    world._replace(messages=world.messages | {close}),
                )
            return
        wrong = message[4] != self.serial(world)
        if (kind, me.state) in (("ack", FAILED), ("success", LIVE)):
            close = ("close", me.incarnation, source, epoch, me.entry.registration, message[4])
            after = self.say(world._replace(language=self.released(me)), *close)
            fault = f"mixed: {kind} of {target, epoch} ends {me.incarnation, me.epoch}" if wrong else None
            yield f"L: takes {kind} of epoch {epoch}", after._replace(fault=fault)
        elif kind == "failed" and me.state == LIVE:
            fault = f"mixed: {kind} of {target, epoch} fails {me.incarnation, me.epoch}" if wrong else None
            yield f"L: takes {kind} of epoch {epoch}", world._replace(language=me._replace(state=FAILED), fault=fault)

    # ---- the encode node

    def is_peer_of(self, encode: Encode, request: Request) -> bool:
        """Whether the node that granted this is there, and has not been through a burial since."""
        entry = encode.entry
        return (
            entry is not None
            and entry.alive
            and entry.incarnation == request.incarnation
            and (entry.registration == request.registration or not self.rules.r14_a_registration_voids_the_one_before)
        )

    def with_request(self, world: World, old: Request, new: Request | None) -> World:
        requests = tuple(request for request in world.encode.requests if request != old)
        if new is not None:
            requests = tuple(sorted((*requests, new)))
        worker = world.encode.worker
        if worker is not None and worker[1] == old:
            worker = (worker[0], new or old)
        return world._replace(encode=world.encode._replace(requests=requests, worker=worker))

    def encode_steps(self, world: World) -> Iterator[Step]:
        me = world.encode
        if me.entry is not None and me.entry.alive:
            dead = world._replace(encode=me._replace(entry=me.entry._replace(alive=False)))
            there = world.language
            beats = there.entry is not None and there.entry.alive and there.entry.incarnation == me.incarnation
            if me.entry.incarnation != there.incarnation or (me.requests and there.state != WAITING and not beats):
                yield "E: the language node is silent, and declared dead", dead
            elif world.encode_burials:
                yield "E: takes the language node for dead", dead._replace(encode_burials=world.encode_burials - 1)
        if world.encode_restarts:
            yield "E: is started again", world._replace(
                encode=Encode(me.incarnation + 1), encode_restarts=world.encode_restarts - 1
            )
        for request in me.requests:
            name = f"{request.incarnation, request.epoch}"
            busy = me.worker is not None and me.worker[0] == "writes" and me.worker[1] == request
            known = self.is_peer_of(me, request)
            if request.state == LIVE:
                why = "deadline" if known else "its node is lost"
                yield f"E: {name} fails, {why}", self.with_request(world, request, request._replace(state=FAILED))
                continue
            if me.entry is not None and me.entry.alive and me.entry.incarnation == request.incarnation:
                report = (request.state, me.incarnation, request.incarnation, request.epoch, request.serial)
                if report not in world.messages:
                    yield f"E: reports {request.state} of {name}", world._replace(messages=world.messages | {report})
            if request.abort_asked and not busy:
                after = self.with_request(world, request, request._replace(abort_asked=False))
                yield f"E: acknowledges the abort of {name}", self.say(
                    after, "ack", me.incarnation, request.incarnation, request.epoch, request.serial
                )
            if (request.closed or not known) and not busy:
                yield f"E: forgets {name}", self.with_request(world, request, None)

    def encode_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, source = message[:2]
        me = world.encode
        if kind == "register":
            yield from self.take_register(world, source, message[2])
            return
        target, epoch, registration, serial = message[2:]
        known = me.entry is not None and me.entry.alive and me.entry.incarnation == source
        wrong_target = target != me.incarnation and self.rules.r14_messages_name_their_target
        if not known or wrong_target:
            stale = ("stale", target, source, registration)
            if stale not in world.messages:
                yield "E: answers 'stale'", world._replace(messages=world.messages | {stale})
            return
        assert me.entry is not None
        held = next((r for r in me.requests if (r.incarnation, r.epoch) == (source, epoch)), None)
        highest = dict(me.tombstones).get(source, 0)
        if kind == "init" and held is None:
            current = registration == me.entry.registration or not self.rules.r14_a_registration_voids_the_one_before
            if current and (epoch > highest or not self.rules.r15_tombstones):
                request = Request(source, epoch, me.entry.registration, serial)
                raised = self.raise_tombstone(me, source, epoch)
                opened = raised._replace(requests=tuple(sorted((*me.requests, request))))
                yield f"E: opens {source, epoch}", world._replace(encode=opened)
        elif kind == "close" and held is not None and not held.closed:
            ended = held._replace(closed=True, state=FAILED if held.state == LIVE else held.state)
            yield f"E: {source, epoch} is closed by its node", self.with_request(world, held, ended)
        elif kind == "abort" and held is not None and not held.abort_asked:
            if ("ack", me.incarnation, source, epoch, serial) not in world.messages or held.state == LIVE:
                ended = held._replace(abort_asked=True, state=FAILED if held.state == LIVE else held.state)
                yield f"E: {source, epoch} is aborted by its node", self.with_request(world, held, ended)
        elif kind == "abort" and held is None:
            raised = self.raise_tombstone(me, source, epoch) if self.rules.r15_abort_leaves_a_tombstone else me
            after = self.say(world._replace(encode=raised), "ack", me.incarnation, source, epoch, serial)
            if after != world:
                yield f"E: acknowledges an abort of {source, epoch}, which it does not know", after

    def raise_tombstone(self, me: Encode, incarnation: int, epoch: int) -> Encode:
        known = dict(me.tombstones)
        known[incarnation] = max(known.get(incarnation, 0), epoch)
        return me._replace(tombstones=tuple(sorted(known.items())))

    def take_register(self, world: World, source: int, number: int) -> Iterator[Step]:
        me = world.encode
        entry = me.entry
        if entry is not None and entry.incarnation == source:
            if number < entry.registration or (number == entry.registration and not entry.alive):
                return
        elif entry is not None and entry.incarnation > source:
            return
        now = me._replace(entry=Entry(source, True, number))
        after = self.say(world._replace(encode=now), "registered", me.incarnation, source, number)
        if after != world:
            yield f"E: registers incarnation {source}, number {number}", after

    # ---- the transfer worker

    def worker_steps(self, world: World) -> Iterator[Step]:
        me, there = world.encode, world.language
        if world.kills and (me.worker is not None or me.door):
            killed = me._replace(worker=None, door=0)
            yield "E: the worker is killed, and started again", world._replace(encode=killed, kills=world.kills - 1)
        if me.worker is None:
            for request in me.requests:
                if request.state == LIVE and self.is_peer_of(me, request):
                    at = "writes" if me.door == request.incarnation else "knocks"
                    yield f"E: the worker {at} for {request.incarnation, request.epoch}", world._replace(
                        encode=me._replace(worker=(at, request))
                    )
            if me.door and not (me.entry and me.entry.alive and me.entry.incarnation == me.door):
                yield "E: the worker lets go of a dead node's memory", world._replace(encode=me._replace(door=0))
            return
        at, request = me.worker
        name = f"{request.incarnation, request.epoch}"
        if at == "knocks":
            entry = there.entry
            refused = entry is not None and entry.incarnation == me.incarnation and not entry.alive
            if there.incarnation != request.incarnation or refused:
                after = world._replace(encode=me._replace(worker=None))
                if request.state == LIVE:
                    after = self.with_request(after, request, request._replace(state=FAILED))
                yield f"L: the door is shut for {name}", after
            else:
                may = request.state == LIVE and self.is_peer_of(me, request)
                go = may or not self.rules.r14_worker_looks_again_behind_the_door
                inside = me._replace(door=request.incarnation, worker=("writes", request) if go else None)
                yield f"L: the door is opened for {name}", world._replace(encode=inside)
        else:
            done = (
                self.with_request(world, request, request._replace(state=SUCCESS)) if request.state == LIVE else world
            )
            done = done._replace(encode=done.encode._replace(worker=None))
            if there.incarnation == request.incarnation and there.block != request.epoch:
                holder = f"epoch {there.block}" if there.block else "nobody"
                done = done._replace(fault=f"stray: the row of epoch {request.epoch} lands in the block of {holder}")
            yield f"E: the row of {name} is written", done

    def is_over(self, world: World) -> bool:
        return world.language.state == FREE and not world.language.block and not world.encode.requests


def explore_identity(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `stray`, `mixed` or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.is_over, max_states=max_states
    )
