"""One request between nodes that verify, with rows that may be damaged on their way: every interleaving, until all know
how it ended.

Modelled: attempts of one row, whose end is stored in two words by a worker that may be killed between them; reports of
how many rows are sent and what their checksum is (here: which rows it went over, and that they were good); the check by
the language node, whose poller may be killed before and after it has stored what was checked; drained rows, whose
places get other bytes; what each destination says it has checked; Success, aborts, a deadline. Messages are never
forgotten, and come in any order, any number of times.

Not modelled: lost messages (`repair_model`), late writes (`transfer_model`), grants: a window holds all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from explorer import Finding, Ruled, explore, put
from phases import FAILED, OPEN, SUCCESS, fell

# how far the worker is with an attempt: nothing, the row is there, one of the two words is stored
IDLE, WRITTEN, HALF = 0, 1, 2
DAMAGED, OTHERS = -1, -2  # instead of a row's number: not as it was sent; some other request's


class Language(NamedTuple):
    """A destination. `rows`: what stands in its blocks; `checked`: what `VERIFIED` holds; `check`: a report
    under way.
    """

    phase: int = OPEN
    sent: int = 0
    rows: tuple[int, ...] = ()
    checked: tuple[int, ...] = ()
    check: tuple[int, int, tuple[int, ...]] | None = None
    answered: bool = False  # VERIFIED is stored, the word is not
    found_damage: bool = False


class Seat(NamedTuple):
    """A destination as the encode node keeps it. `summed`: what the checksum went over."""

    stage: int = IDLE
    summed: tuple[int, ...] = ()
    sent: int = 0
    verified: int = 0


class World(NamedTuple):
    languages: tuple[Language, ...]
    seats: tuple[Seat, ...]
    phase: int = OPEN
    failing: bool = False
    messages: frozenset[tuple[Any, ...]] = frozenset()
    damages: int = 0
    kills: int = 0
    deadlines: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How many rows and destinations, and how often each bad thing may happen."""

    total: int = 2
    destinations: int = 1
    damages: int = 0
    kills: int = 0
    deadlines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r27_word_rises_after_the_check: bool = True
    r27_success_when_all_have_checked: bool = True
    r27_summed_before_sent: bool = True
    r27_new_worker_counts_what_is_summed: bool = True
    r27_sent_and_checksum_are_one_word: bool = True
    r27_checked_is_stored_before_the_word: bool = True


Step = tuple[str, World]



class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        super().__init__(setting, rules)
        self.good = tuple(range(setting.total))

    def initial(self) -> World:
        s = self.setting
        language = Language(rows=(OTHERS,) * s.total)
        return World(
            languages=(language,) * s.destinations,
            seats=(Seat(),) * s.destinations,
            damages=s.damages,
            kills=s.kills,
            deadlines=s.deadlines,
        )

    def checked_steps(self, world: World) -> Iterator[Step]:
        for label, after in self.steps(world):
            yield label, after._replace(fault=after.fault or self.fault(world, after))

    def fault(self, before: World, after: World) -> str | None:
        if before.phase and after.phase != before.phase:
            return f"word: the encode node's went from {before.phase} to {after.phase}"
        for d, (old, new) in enumerate(zip(before.languages, after.languages, strict=True)):
            if fault := fell(f"d{d}", old, new):
                return fault
            if DAMAGED in new.rows[old.sent : new.sent]:
                return f"wrong: d{d} says that row {new.rows.index(DAMAGED)} is there, and it is damaged"
            if new.found_damage and self.setting.damages == after.damages:
                return f"alarm: d{d} finds damage where there is none"
            if new.found_damage and after.phase == SUCCESS:
                return f"split: d{d} finds damage, the encode node has ended in Success"
            if new.phase == SUCCESS and after.phase != SUCCESS:
                return f"split: d{d} ends in Success, the encode node may yet fail"
        return None

    def steps(self, world: World) -> Iterator[Step]:
        for d in range(self.setting.destinations):
            yield from self.worker_steps(world, d, world.seats[d])
            yield from self.language_steps(world, d, world.languages[d])
        yield from self.encode_poller_steps(world)
        for message in sorted(world.messages):
            yield from (self.language_takes if message[0] == "report" else self.encode_takes)(world, message)

    # ---- the encode node

    def worker_steps(self, world: World, d: int, seat: Seat) -> Iterator[Step]:
        if world.phase != OPEN:
            return

        def now(**changes: Any) -> World:
            return world._replace(seats=put(world.seats, d, seat._replace(**changes)))

        row, landed = seat.sent, world.languages[d]
        if seat.stage == IDLE and row < self.setting.total:
            for value in (row, DAMAGED)[: 1 + (world.damages > 0)]:
                rows = put(landed.rows, row, value) if landed.phase == OPEN else landed.rows
                languages = put(world.languages, d, landed._replace(rows=rows))
                after = now(stage=WRITTEN)._replace(languages=languages, damages=world.damages - (value == DAMAGED))
                yield f"row {row} is written to d{d}{', damaged' * (value == DAMAGED)}", after
        if seat.stage == WRITTEN:
            if self.rules.r27_summed_before_sent:
                yield f"worker: d{d} summed", now(stage=HALF, summed=(*seat.summed, row))
            else:
                yield f"worker: d{d} sent", now(stage=HALF, sent=row + 1)
        if seat.stage == HALF:
            if self.rules.r27_summed_before_sent:
                yield f"worker: d{d} sent", now(stage=IDLE, sent=row + 1)
            else:
                yield f"worker: d{d} summed", now(stage=IDLE, summed=(*seat.summed, row - 1))
        if seat.stage != IDLE and world.kills:
            sent = max(seat.sent, len(seat.summed)) if self.rules.r27_new_worker_counts_what_is_summed else seat.sent
            yield (
                f"worker: killed, and born again, d{d} sent {sent}",
                now(stage=IDLE, sent=sent)._replace(kills=world.kills - 1),
            )

    def encode_poller_steps(self, world: World) -> Iterator[Step]:
        total = self.setting.total
        if world.phase == OPEN:
            if world.failing:
                yield "the encode node fails", world._replace(phase=FAILED)
            elif all(
                len(s.summed) >= total and (s.verified >= total or not self.rules.r27_success_when_all_have_checked)
                for s in world.seats
            ):
                yield "the encode node succeeds", world._replace(phase=SUCCESS)
        for d, seat in enumerate(world.seats):
            sent = len(seat.summed) if self.rules.r27_sent_and_checksum_are_one_word else seat.sent
            report = ("report", d, world.phase, sent, seat.summed)
            if report not in world.messages and (sent or world.phase):
                yield f"reports {report[2:]} to d{d}", world._replace(messages=world.messages | {report})

    def encode_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, d, value = message
        if kind == "abort" and world.phase == OPEN and not world.failing:
            yield f"takes the abort of d{d}", world._replace(failing=True)
        if kind == "verified" and value > world.seats[d].verified:
            seats = put(world.seats, d, world.seats[d]._replace(verified=value))
            yield f"takes that d{d} has checked {value} rows", world._replace(seats=seats)

    # ---- a destination

    def language_steps(self, world: World, d: int, me: Language) -> Iterator[Step]:
        def now(after: Language, *messages: tuple[Any, ...]) -> World:
            return world._replace(languages=put(world.languages, d, after), messages=world.messages | set(messages))

        if me.phase != OPEN:
            if me.phase == FAILED and set(me.rows) != {OTHERS}:
                yield f"d{d}: its blocks go to others", now(me._replace(rows=(OTHERS,) * self.setting.total))
            return
        if me.rows[0] != OTHERS and me.sent:
            drained = tuple(OTHERS if row < me.sent else value for row, value in enumerate(me.rows))
            if drained != me.rows:
                yield f"d{d}: drains {me.sent} rows", now(me._replace(rows=drained))
        if me.check is not None:
            yield from self.check_steps(world, d, me, now)
        if world.deadlines:
            yield (
                f"d{d}: deadline",
                now(me._replace(phase=FAILED, check=None), ("abort", d, 0))._replace(deadlines=world.deadlines - 1),
            )

    def check_steps(self, world: World, d: int, me: Language, now: Any) -> Iterator[Step]:
        assert me.check is not None
        phase, sent, summed = me.check
        if not me.answered:
            here = (*me.checked, *me.rows[len(me.checked) : sent])
            if here == summed and self.rules.r27_checked_is_stored_before_the_word:
                yield f"d{d}: rows up to {sent} are right", now(me._replace(checked=here, answered=True))
            elif here == summed:
                yield f"d{d}: the word rises to {sent}", now(me._replace(sent=max(me.sent, sent), answered=True))
            else:
                yield (
                    f"d{d}: rows up to {sent} are wrong",
                    now(me._replace(phase=FAILED, check=None, found_damage=True), ("abort", d, 0)),
                )
        else:
            word = me._replace(check=None, answered=False, sent=max(me.sent, sent), checked=summed, phase=phase)
            yield f"d{d}: the word rises to {sent}, checked", now(word, ("verified", d, sent))
        if world.kills:
            dead = now(me._replace(check=None, answered=False))._replace(kills=world.kills - 1)
            yield f"d{d}: its poller is killed", dead

    def language_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        _, d, phase, sent, summed = message
        me = world.languages[d]

        def now(after: Language, *messages: tuple[Any, ...]) -> World:
            return world._replace(languages=put(world.languages, d, after), messages=world.messages | set(messages))

        if me.phase != OPEN:
            return
        if phase == FAILED:
            yield f"d{d}: takes Failed", now(me._replace(phase=FAILED, check=None), ("abort", d, 0))
        elif sent <= len(me.checked) or not self.rules.r27_word_rises_after_the_check:
            after = me._replace(phase=phase, sent=max(me.sent, sent), check=None if phase else me.check)
            told = now(after, ("verified", d, after.sent))
            if told != world:
                yield f"d{d}: takes {phase, sent}", told
        elif me.check is None:
            yield f"d{d}: has {sent} rows checked", now(me._replace(check=(phase, sent, summed)))


def is_over(world: World) -> bool:
    """Everybody knows how it ended."""
    return world.phase != OPEN and all(language.phase != OPEN for language in world.languages)


def explore_verify(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.checked_steps, violated=lambda world: world.fault, goal=is_over, max_states=max_states
    )
