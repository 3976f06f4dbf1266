"""One request between nodes whose messages are really lost, doubled and reordered, and whose processes are killed
between two words.

Modelled: grants of a window of one block, a kick from bootstrap to worker that dies with the bootstrap, the slow scan,
reports when something changes, a success that the worker tells over a connection of its own, heartbeats with a digest
of what was told of what is open, and with what has ended until it is closed, or with its name alone if it was closed
first; the question for all that was told where digests differ, and its answer; pollers that are killed, and with them
what they have told or heard; aborts sent until they are acknowledged, `close`, which ends the request at the sender,
and the release of both slots. Each message is delivered once, in any order; it may be doubled or lost while the budget
lasts. Nobody has a deadline but the one abort, so what is not repaired stays.

Not modelled: blocks and late writes (`transfer_model`), who a message is about (`identity_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from explorer import Finding, Ruled, explore
from phases import FAILED, OPEN, SUCCESS, fell

MOST_REPORTS = 1  # a heartbeat waits while so many are in flight; one more report, of news, can still overtake it
NOTHING = (-1, -1, -1)  # was told or heard


class Language(NamedTuple):
    """`heard`: the encode node has reported this request; `told`: what it has told of it last, while it is open."""

    phase: int = OPEN
    sent: int = 0
    granted: int = 0
    heard: bool = False
    told: tuple[int, int, int] = NOTHING
    acknowledged: bool = False
    released: bool = False
    kick: bool = False  # the client has asked the bootstrap to send the window


class Encode(NamedTuple):
    phase: int = OPEN
    joined: bool = False
    tombstone: bool = False
    granted: int = 0
    sent: int = 0
    told: tuple[int, int, int] = NOTHING  # by the poller
    is_landed: bool = False  # the worker has raised the word, and has told the destination
    kick: bool = False
    ack_due: bool = False
    closed: bool = False
    is_listed: bool = False  # closed before it was told that it is over: a heartbeat is to name it
    released: bool = False


class World(NamedTuple):
    language: Language = Language()
    encode: Encode = Encode()
    messages: tuple[tuple[Any, ...], ...] = ()
    losses: int = 0
    doubles: int = 0
    kills: int = 0
    poller_kills: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How many rows (one a block), and how often each bad thing may happen; `kills` are those of bootstraps."""

    total: int = 2
    losses: int = 0
    doubles: int = 0
    kills: int = 0
    poller_kills: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    worker_tells: bool = True  # else the poller finds that all rows are there, as where there are several destinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r23_ended_stays_in_the_heartbeats: bool = True
    r23_slot_is_kept_until_closed: bool = True
    r23_abort_is_sent_until_acknowledged: bool = True
    r23_unknown_is_closed: bool = True
    r24_heartbeats: bool = True
    r24_the_one_behind_gets_the_blocks_again: bool = True
    r24_an_unheard_grant_is_sent_again: bool = True
    r25_slow_scan: bool = True
    r77_digests_are_compared: bool = True
    r77_all_is_told_where_they_differ: bool = True
    r83_the_word_is_raised_first: bool = True
    r83_heartbeats_repeat_what_the_worker_said: bool = True
    d12_terminal_phases_absorb: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            losses=s.losses, doubles=s.doubles, kills=s.kills, poller_kills=s.poller_kills, deadlines=s.deadlines,
            encoder_aborts=s.encoder_aborts,
        )

    def send(self, world: World, *message: Any) -> World:
        """Put a message on its way; the same one twice is no more than once, unless the network doubles it."""
        if message in world.messages:
            return world
        return world._replace(messages=tuple(sorted((*world.messages, message))))

    def checked_steps(self, world: World) -> Iterator[Step]:
        for label, after in self.steps(world):
            for name, old, new in (
                ("language", world.language, after.language),
                ("encode", world.encode, after.encode),
            ):
                if fault := fell(name, old, new):
                    after = after._replace(fault=fault)
            if after.language.phase == SUCCESS and after.encode.phase == FAILED:
                after = after._replace(fault="outcome: a success here, a failure there")
            yield label, after

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.network_steps(world)
        if not world.language.released:
            yield from self.language_steps(world, world.language)
        if not world.encode.released:
            yield from self.encode_steps(world, world.encode)
        yield from self.beat_steps(world, world.encode)

    def network_steps(self, world: World) -> Iterator[Step]:
        for i, message in enumerate(world.messages):
            rest = world._replace(messages=world.messages[:i] + world.messages[i + 1 :])
            name = " ".join(map(str, message))
            if world.losses:
                yield f"network: loses {name}", rest._replace(losses=world.losses - 1)
            is_for_encode = message[0] in ("grant", "abort", "close", "resync")
            takes = self.encode_takes if is_for_encode else self.language_takes
            yield from takes(rest, message, f"takes {name}")
            if world.doubles:
                yield from takes(
                    world._replace(doubles=world.doubles - 1), message, f"takes {name}, which comes again later"
                )

    # ---- the language node

    def language_steps(self, world: World, me: Language) -> Iterator[Step]:
        if me.phase == OPEN:
            if me.sent == me.granted < self.setting.total:
                granted = me._replace(granted=me.granted + 1, kick=True)
                yield f"L: grants block {me.granted}", world._replace(language=granted)
            if me.kick:
                sent = world._replace(language=me._replace(kick=False))
                yield "L: the bootstrap sends the window", self.send(sent, "grant", me.granted)
                if world.kills:
                    yield "L: the bootstrap is killed before it sends the window", sent._replace(kills=world.kills - 1)
            if not me.heard and me.granted and self.rules.r24_an_unheard_grant_is_sent_again:
                again = self.send(world, "grant", me.granted)
                if again != world:
                    yield "L: nobody has answered: the window again", again
            if world.deadlines and me.granted:
                failed = world._replace(language=me._replace(phase=FAILED, kick=False), deadlines=world.deadlines - 1)
                yield "L: deadline", self.send(failed, "abort")
        elif me.phase == FAILED and not me.acknowledged and self.rules.r23_abort_is_sent_until_acknowledged:
            again = self.send(world, "abort")
            if again != world:
                yield "L: the abort again", again
        elif me.phase == SUCCESS or me.acknowledged:
            yield "L: releases its slot", world._replace(language=me._replace(released=True))
        if me.told != NOTHING and world.poller_kills:
            forgot = me._replace(told=NOTHING)
            yield "L: the poller is killed", world._replace(language=forgot, poller_kills=world.poller_kills - 1)

    def language_takes(self, world: World, message: tuple[Any, ...], label: str) -> Iterator[Step]:
        me, kind = world.language, message[0]
        if kind == "beat":
            _, digest, names_it = message
            if names_it:
                world = world._replace(language=me._replace(told=NOTHING))
            yield f"L: {label}", self.language_compares(world, digest)
            return
        if kind == "snapshot":
            yield f"L: {label}", world._replace(language=me._replace(told=NOTHING))
            return
        if kind == "landed":
            if me.released or me.phase != OPEN:
                yield f"L: {label}, in vain", world
            else:
                ended = me._replace(phase=SUCCESS, sent=self.setting.total, heard=True)
                yield f"L: {label}", self.send(world._replace(language=ended), "close")
            return
        if me.released:
            told = message[1:] if kind == "report" and message[1] == OPEN else NOTHING
            noted = world._replace(language=me._replace(told=told))
            yield f"L: {label}", self.send(noted, "close") if self.rules.r23_unknown_is_closed else noted
            return
        if kind == "ack":
            if me.phase == FAILED:
                yield f"L: {label}", self.send(world._replace(language=me._replace(acknowledged=True)), "close")
            else:
                yield f"L: {label}", world
            return
        _, phase, sent, known = message
        me = me._replace(told=(phase, sent, known) if phase == OPEN else NOTHING)
        now, world = me._replace(heard=True), world._replace(language=me)
        if me.phase == SUCCESS and self.rules.d12_terminal_phases_absorb:
            yield f"L: {label}", self.send(world, "close")
        elif me.phase == FAILED and self.rules.d12_terminal_phases_absorb:
            yield f"L: {label}", world
        elif phase == SUCCESS:
            ended = now._replace(phase=SUCCESS, sent=self.setting.total)
            yield f"L: {label}", self.send(world._replace(language=ended), "close")
        elif phase == FAILED:
            yield f"L: {label}", self.send(world._replace(language=now._replace(phase=FAILED)), "abort")
        else:
            yield f"L: {label}", world._replace(language=now._replace(sent=max(me.sent, sent)))

    def language_compares(self, world: World, digest: tuple[int, int, int]) -> World:
        """A heartbeat shows what this side has missed, and what the other side has."""
        me = world.language
        if digest != me.told and self.rules.r77_digests_are_compared:
            world = self.send(world, "resync")
        if me.released and me.told != NOTHING and self.rules.r23_unknown_is_closed:
            world = self.send(world, "close")
        is_behind = not me.released and me.phase == OPEN and me.told != NOTHING and me.told[2] < me.granted
        if is_behind and self.rules.r24_the_one_behind_gets_the_blocks_again:
            world = self.send(world, "grant", me.granted)
        return world

    # ---- the encode node

    def encode_steps(self, world: World, me: Encode) -> Iterator[Step]:
        def now(**changes: Any) -> World:
            return world._replace(encode=me._replace(**changes))

        can_move = me.phase == OPEN and me.sent < me.granted
        if me.kick:
            if can_move:
                sent = me.sent + 1
                if sent == self.setting.total and self.setting.worker_tells:
                    phase = SUCCESS if self.rules.r83_the_word_is_raised_first else OPEN
                    raised = now(sent=sent, phase=phase, is_landed=phase == SUCCESS)
                    yield "E: the last row is written, and the worker says so", self.send(
                        raised, "landed", SUCCESS, sent, me.granted
                    )
                    if world.kills:
                        yield "E: the last row is written; the worker is killed before it says so", raised._replace(
                            kills=world.kills - 1
                        )
                else:
                    phase = SUCCESS if sent == self.setting.total else OPEN
                    yield f"E: row {me.sent} is written", now(sent=sent, phase=phase)
            else:
                yield "E: the kick finds nothing to do", now(kick=False)
        elif can_move and self.rules.r25_slow_scan:
            yield "E: the slow scan finds rows to move", now(kick=True)
        if not me.joined:
            return
        state = (me.phase, me.sent, me.granted)
        if me.phase == OPEN and me.sent == self.setting.total:
            yield "E: the poller finds that all rows are there", now(phase=SUCCESS)
        if me.phase == OPEN and world.encoder_aborts:
            yield "E: the encoder gives up", now(phase=FAILED)._replace(encoder_aborts=world.encoder_aborts - 1)
        is_left = me.is_landed and me.told != NOTHING
        if state != me.told and not me.closed and not is_left:
            yield f"E: reports {state}", self.send(now(told=state), "report", *state)
        if me.told != NOTHING and not me.closed and world.poller_kills:
            dead = me._replace(told=NOTHING)
            after = world._replace(encode=dead, poller_kills=world.poller_kills - 1)
            yield "E: the poller is killed, and tells all anew", after
        if me.ack_due and me.phase != OPEN:
            yield "E: acknowledges the abort", self.send(now(ack_due=False), "ack")
        if me.phase != OPEN and (me.closed or not self.rules.r23_slot_is_kept_until_closed):
            yield "E: releases its slot", now(released=True)

    def beat_steps(self, world: World, me: Encode) -> Iterator[Step]:
        """Heartbeats, which go on after the request is over."""
        in_flight = sum(message[0] in ("report", "beat") for message in world.messages)
        if not me.joined or in_flight >= MOST_REPORTS or not self.rules.r24_heartbeats:
            return
        state = (me.phase, me.sent, me.granted)
        after = world
        if me.closed or me.released:
            if world.language.told == NOTHING and not me.is_listed:
                return  # it would find nothing to compare
            after = world._replace(encode=me._replace(told=NOTHING, is_listed=False))
            after = self.send(after, "beat", NOTHING, me.is_listed)
        elif me.phase == OPEN and state == me.told:
            after = self.send(world, "beat", state, False)
        elif me.phase != OPEN and state == me.told and self.rules.r23_ended_stays_in_the_heartbeats:
            after = self.send(world, "report", *state)
        elif me.is_landed and me.told != NOTHING and self.rules.r83_heartbeats_repeat_what_the_worker_said:
            after = self.send(world._replace(encode=me._replace(told=state)), "report", *state)
        if after != world:
            yield f"E: a heartbeat with {state}", after

    def encode_takes(self, world: World, message: tuple[Any, ...], label: str) -> Iterator[Step]:
        me, kind = world.encode, message[0]
        if kind == "grant":
            if (me.tombstone and not me.joined) or me.released or me.phase != OPEN:
                yield f"E: {label}, in vain", world
                return
            granted = max(me.granted, message[1])
            now = world._replace(encode=me._replace(joined=True, tombstone=True, granted=granted, kick=True))
            yield f"E: {label}, kicks the worker", now
            if world.kills:
                dead = now._replace(encode=now.encode._replace(kick=me.kick), kills=world.kills - 1)
                yield f"E: {label}; the bootstrap is killed before it kicks", dead
        elif kind == "resync":
            state = (me.phase, me.sent, me.granted)
            if me.joined and not (me.released or me.closed) and self.rules.r77_all_is_told_where_they_differ:
                yield f"E: {label}", self.send(world._replace(encode=me._replace(told=state)), "report", *state)
            elif self.rules.r77_all_is_told_where_they_differ:
                yield f"E: {label}", self.send(world._replace(encode=me._replace(told=NOTHING)), "snapshot")
            else:
                yield f"E: {label}, in vain", world
        elif kind == "abort":
            if me.joined and not me.released:
                ending = me._replace(phase=me.phase or FAILED, ack_due=True)
                yield f"E: {label}", world._replace(encode=ending)
            else:
                ended = me if me.released else me._replace(tombstone=True, phase=FAILED, closed=True)
                yield f"E: {label}, and does not know the request", self.send(world._replace(encode=ended), "ack")
        else:
            if me.released or not me.joined:
                yield f"E: {label}, in vain", world
            else:
                is_listed = me.is_listed or me.told[0] == OPEN
                closed = me._replace(closed=True, is_listed=is_listed, phase=me.phase or FAILED)
                yield f"E: {label}", world._replace(encode=closed)

    def is_over(self, world: World) -> bool:
        is_released = world.language.released and (world.encode.released or not world.encode.joined)
        return is_released and world.language.told == NOTHING


def explore_repair(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `word` or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(),
        model.checked_steps,
        violated=lambda world: world.fault,
        goal=model.is_over,
        max_states=max_states,
    )
