"""One request with two destinations, each of which may give up or be lost: every interleaving, until everybody knows
how it ended.

Modelled: the encode node's word (phase and the least progress of the required destinations), each destination's word,
grants of a window of one block, rows (one a block) that flow on each destination's own grant, reports, aborts and their
acknowledgements, closes, a destination that comes after the end, one whose deadline passes, one whose node is lost.
Messages are never forgotten.

Not modelled: writes that last (`transfer_model`), who gets a block when several want it (`supply_model`), stale
identities (`identity_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from explorer import Finding, Ruled, explore, put
from phases import FAILED, OPEN, SUCCESS, Word, fell


class Language(NamedTuple):
    """A destination's own node."""

    phase: int = OPEN
    sent: int = 0
    granted: int = 0
    contacted: bool = False
    acknowledged: bool = False
    lost: bool = False


class Seat(NamedTuple):
    """A destination as the encode node keeps it."""

    joined: bool = False
    granted: int = 0
    sent: int = 0
    abort_asked: bool = False
    closed: bool = False
    buried: bool = False


class World(NamedTuple):
    languages: tuple[Language, ...]
    seats: tuple[Seat, ...]
    phase: int = OPEN  # the encode node's word
    sent: int = 0
    ready: int = 0
    announced: bool = False
    failing: bool = False  # somebody has claimed the failure, the word does not say so yet
    released: bool = False
    messages: frozenset[tuple[Any, ...]] = frozenset()
    deadlines: int = 0
    losses: int = 0
    encoder_aborts: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How many rows, and how often each bad thing may happen."""

    total: int = 2
    deadlines: int = 0
    losses: int = 0
    encoder_aborts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r4_success_needs_every_destination: bool = True
    r4_success_needs_the_total: bool = True
    r18_an_absent_destination_counts_as_nothing: bool = True
    r18_progress_is_kept_apart: bool = True
    r20_success_is_taken_from_the_phase: bool = True
    d11_everyone_is_told: bool = True
    d11_late_comers_are_told: bool = True
    d12_terminal_phases_absorb: bool = True
    r15_abort_fails_the_room: bool = True


Step = tuple[str, World]



class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            languages=(Language(), Language()),
            seats=(Seat(), Seat()),
            deadlines=s.deadlines,
            losses=s.losses,
            encoder_aborts=s.encoder_aborts,
        )

    def checked_steps(self, world: World) -> Iterator[Step]:
        for label, after in self.steps(world):
            yield label, after._replace(fault=after.fault or self.fault(world, after))

    def fault(self, before: World, after: World) -> str | None:
        words: list[tuple[str, Word, Word]] = [("encode", before, after)]
        words += zip(("d0", "d1"), before.languages, after.languages, strict=True)
        for name, old, new in words:
            if fault := fell(name, old, new):
                return fault
        if after.sent > min(seat.sent for seat in after.seats):
            return (
                f"word: the encode node says {after.sent}, a destination has {min(seat.sent for seat in after.seats)}"
            )
        for d, language in enumerate(after.languages):
            if language.phase == SUCCESS and after.phase != SUCCESS:
                return f"split: d{d} ends in Success, the encode node may yet fail"
            if language.phase == SUCCESS and after.seats[d].sent < self.setting.total:
                return f"short: d{d} ends in Success with {after.seats[d].sent} of {self.setting.total} rows"
            if language.sent > after.seats[d].sent:
                return f"short: d{d} drains {language.sent} rows, {after.seats[d].sent} have landed"
        return None

    def steps(self, world: World) -> Iterator[Step]:
        for d, language in enumerate(world.languages):
            if not language.lost:
                yield from self.language_steps(world, d, language)
        if not world.released:
            yield from self.encode_steps(world)
        for message in sorted(world.messages):
            d = message[1]
            if message[0] in ("grant", "abort", "close"):
                yield from self.encode_takes(world, message)
            elif not world.languages[d].lost:
                yield from self.language_takes(world, message)

    # ---- a destination

    def language_steps(self, world: World, d: int, me: Language) -> Iterator[Step]:
        def now(after: Language, *messages: tuple[Any, ...]) -> World:
            return world._replace(languages=put(world.languages, d, after), messages=world.messages | set(messages))

        if me.phase == OPEN:
            if not me.contacted:
                yield f"d{d}: comes, with no block", now(me._replace(contacted=True), ("grant", d, 0))
            elif me.sent == me.granted < self.setting.total:
                yield f"d{d}: grants block {me.granted}", now(
                    me._replace(granted=me.granted + 1), ("grant", d, me.granted + 1)
                )
            if world.deadlines and me.contacted:
                failed = now(me._replace(phase=FAILED), ("abort", d))
                yield f"d{d}: deadline", failed._replace(deadlines=world.deadlines - 1)
            if not self.rules.r20_success_is_taken_from_the_phase and me.sent == self.setting.total:
                yield f"d{d}: has all rows, ends in Success", now(me._replace(phase=SUCCESS), ("close", d))
        if world.losses and me.contacted:
            lost = now(me._replace(lost=True))
            yield f"d{d}: its node is lost", lost._replace(losses=world.losses - 1)

    def language_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, d = message[:2]
        me = world.languages[d]

        def now(after: Language, *messages: tuple[Any, ...]) -> World:
            return world._replace(languages=put(world.languages, d, after), messages=world.messages | set(messages))

        if kind == "ack":
            if me.phase == FAILED and not me.acknowledged:
                yield f"d{d}: takes the acknowledgement", now(me._replace(acknowledged=True), ("close", d))
            return
        phase, sent = message[2:]
        if me.phase == OPEN or not self.rules.d12_terminal_phases_absorb:
            if phase == FAILED:
                yield f"d{d}: takes Failed", now(me._replace(phase=FAILED), ("abort", d))
            elif phase == SUCCESS:
                yield f"d{d}: takes Success", now(me._replace(phase=SUCCESS, sent=max(me.sent, sent)), ("close", d))
            elif sent > me.sent:
                yield f"d{d}: drains up to row {sent}", now(me._replace(sent=sent))

    # ---- the encode node

    def with_seat(self, world: World, d: int, seat: Seat) -> World:
        return world._replace(seats=put(world.seats, d, seat))

    def encode_steps(self, world: World) -> Iterator[Step]:
        total = self.setting.total
        if world.phase == OPEN:
            if world.ready < total:
                yield f"the encoder makes row {world.ready}", world._replace(ready=world.ready + 1, announced=True)
            if world.encoder_aborts and not world.failing:
                yield "the encoder aborts", world._replace(failing=True, encoder_aborts=world.encoder_aborts - 1)
            for d, seat in enumerate(world.seats):
                if seat.sent < min(world.ready, seat.granted) and not seat.buried:
                    yield (
                        f"row {seat.sent} is written to d{d}",
                        self.with_seat(world, d, seat._replace(sent=seat.sent + 1)),
                    )
        for d, seat in enumerate(world.seats):
            if world.languages[d].lost and seat.joined and not seat.buried:
                buried = self.with_seat(world, d, seat._replace(buried=True))
                yield f"the loss of d{d} is noticed", buried._replace(failing=buried.phase == OPEN or buried.failing)
            if seat.abort_asked and world.phase != OPEN:
                acked = self.with_seat(world, d, seat._replace(abort_asked=False))
                yield f"the abort of d{d} is acknowledged", acked._replace(messages=world.messages | {("ack", d)})
        looked = self.look(world)
        if looked != world:
            yield "the encode poller looks", looked
        ended = all(seat.closed or seat.buried or not seat.joined for seat in world.seats)
        if world.phase != OPEN and ended:
            yield "the encode node forgets the request", world._replace(released=True)

    def look(self, world: World) -> World:
        """Raise the word to what the watermarks say, and tell the destinations."""
        total, seats = self.setting.total, world.seats
        counted = (
            seats if self.rules.r18_an_absent_destination_counts_as_nothing else [s for s in seats if s.joined] or seats
        )
        least = min(seat.sent for seat in counted)
        most = max(seat.sent for seat in seats)
        if world.phase == OPEN:
            enough = least if self.rules.r4_success_needs_every_destination else most
            known = world.announced or not self.rules.r4_success_needs_the_total
            if world.failing:
                world = world._replace(phase=FAILED)
            elif known and all(seat.joined for seat in seats) and enough >= (total if world.announced else 0):
                world = world._replace(phase=SUCCESS, sent=max(world.sent, least))
            else:
                world = world._replace(sent=max(world.sent, least))
        told = set()
        for d, seat in enumerate(seats):
            if not seat.joined or seat.closed or seat.buried:
                continue
            if world.phase == FAILED and not self.rules.d11_everyone_is_told and not seat.abort_asked:
                continue
            told.add(("status", d, world.phase, seat.sent if self.rules.r18_progress_is_kept_apart else most))
        return world._replace(messages=world.messages | told)

    def encode_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, d = message[:2]
        seat = world.seats[d]
        known = seat.joined and not world.released
        if kind == "grant" and known:
            if message[2] > seat.granted:
                yield f"the encode node takes block {message[2] - 1} of d{d}", self.with_seat(
                    world, d, seat._replace(granted=message[2])
                )
        elif kind == "grant":
            if seat.joined or ("ack", d) in world.messages:  # its tombstone stands
                return
            if world.phase == OPEN and not world.failing:
                yield f"d{d} joins", self.with_seat(world, d, seat._replace(joined=True, granted=message[2]))
            elif world.phase == FAILED and self.rules.d11_late_comers_are_told:
                refused = ("status", d, FAILED, 0)
                if refused not in world.messages:
                    yield f"d{d} comes too late, and is told so", world._replace(messages=world.messages | {refused})
        elif kind == "abort" and known:
            if not seat.abort_asked and ("ack", d) not in world.messages:
                asked = self.with_seat(world, d, seat._replace(abort_asked=True))
                yield f"the abort of d{d} comes", asked._replace(failing=asked.phase == OPEN or asked.failing)
        elif kind == "abort":
            if ("ack", d) not in world.messages:
                fails = world.phase == OPEN and self.rules.r15_abort_fails_the_room
                yield f"an abort of d{d} comes, which is not known", world._replace(
                    failing=world.failing or fails, messages=world.messages | {("ack", d)}
                )
        elif kind == "close" and known and not seat.closed:
            closed = self.with_seat(world, d, seat._replace(closed=True))
            yield f"d{d} closes the request", closed._replace(failing=closed.phase == OPEN or closed.failing)

    def is_over(self, world: World) -> bool:
        """All that began has ended, everywhere; a destination that never came needs nothing."""
        everywhere = all(
            language.lost or language.phase == SUCCESS or (language.phase == FAILED and language.acknowledged)
            for language in world.languages
        )
        return everywhere and world.released


def explore_destinations(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `word`, `split`, `short` or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(),
        model.checked_steps,
        violated=lambda world: world.fault,
        goal=model.is_over,
        max_states=max_states,
    )
