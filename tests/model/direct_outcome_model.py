"""How a request on the direct path ends, where its encoder raises the words of both sides itself: every interleaving of
who dies, stops, aborts or runs out of time between two of them.

The outcome is decided in two steps, for one destination and for many:

1. The encoder raises each destination's word to *whole*: all of its rows are there, and their number is known. Until
   then a destination may fail for itself. From then on it may not, whoever asks it to: it tells the encode node and
   waits.
2. When every destination is whole, the encode side's word is raised to Success, by the encoder or by its node's poller.
   Whoever would fail the request there moves the same word to Failed. The first decides, and destinations follow: the
   encoder raises their words, and its node's poller tells those that have not said that they know.

Modelled: the words, the encode side's records of its destinations and of their progress, an encoder whose threads write
to two destinations at a time, which streams rows, announces their number late, aborts, is killed or stopped for ever;
deadlines of both sides; aborts and deaths of schedulers; a language node that is lost, an encode node that is lost; the
`init` of a destination that nobody has found; slots that are forgotten when all know. Messages are never forgotten, so
each may come late, and again. Beside those of this host there may be destinations on another one (*far*), to which the
node's worker writes: only their own node raises their words, by what it is told, and they are never whole. One of them
may fail for itself while all others have Success; no other may end otherwise than the encode side.

Not modelled: claims and blocks (`direct_claim_model`); how encoder and destination find each other
(`direct_rendezvous_model`). What a lost node's own word says is compared with nothing, for nobody reads it any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Finding, Ruled, explore, put
from phases import FAILED, OPEN, SUCCESS

WHOLE: Final = 2
TERMINAL: Final = (SUCCESS, FAILED)
NAMES: Final = {OPEN: "open", WHOLE: "whole", SUCCESS: "Success", FAILED: "Failed"}
Message = tuple[str, int, int]  # kind, destination, phase


class Destination(NamedTuple):
    """One language node and its scheduler. `looked` is what its poller saw before it fails the request: the word, and
    then whether the record says how many rows there are.
    """

    phase: int = OPEN
    sent: int = 0
    total_known: bool = False  # the number of rows stands in the slot's record
    looked: tuple[int, int, bool] | None = None
    must_fail: bool = False  # its scheduler is dead or has aborted, or its time is up
    lost: bool = False
    alone: bool = False  # it is far, and has failed for itself


class Seat(NamedTuple):
    """A destination as the encode side has recorded it."""

    recorded: bool = False
    is_whole: bool = False  # its `sent` is the total
    abort_came: bool = False
    closed: bool = False
    buried: bool = False


class Encoder(NamedTuple):
    """`at` is what a thread of it does next for each destination. `follows` is whose word is raised next when the end
    is known, and `closes` whether that is done.
    """

    at: tuple[str, ...]
    follows: int = -1
    closes: bool = False
    announced: bool = False
    state: str = "alive"

    @property
    def is_through(self) -> bool:
        """Whether it touches nothing of the request any more."""
        return self.follows == len(self.at) and {*self.at} <= {"find", "done"}


class World(NamedTuple):
    destinations: tuple[Destination, ...]
    seats: tuple[Seat, ...]
    encoder: Encoder
    encode: int = OPEN  # the encode side's word
    cleared: bool = False  # the encoder needs its slot no more
    forgotten: bool = False
    encode_lost: bool = False
    messages: frozenset[Message] = frozenset()
    kills: int = 0
    stops: int = 0
    encoder_aborts: int = 0
    encode_deadlines: int = 0
    failures: int = 0  # at destinations
    language_losses: int = 0
    encode_losses: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    destinations: int = 1
    far: int = 0  # of them, the last
    rows: int = 1
    two_threads: bool = False  # of the encoder write to two destinations at a time; else to one after the other
    streaming: bool = False  # the number of rows may become known after the last of them has been sent
    kills: int = 0
    stops: int = 0
    encoder_aborts: int = 0
    encode_deadlines: int = 0
    failures: int = 0
    language_losses: int = 0
    encode_losses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r36_whole_before_the_encode_sides_word: bool = True
    r36_every_destination_is_whole: bool = True
    r36_whole_stands_in_the_word: bool = True  # else whole is what has sent as many rows as the record says
    r36_a_whole_one_does_not_fail_for_itself: bool = True
    r36_the_encode_sides_word_is_first: bool = True  # else each destination's is, as soon as its rows are there
    r36_recorded_before_whole: bool = True  # the encode side knows the destination
    r36_moved_by_cas: bool = True
    r36_told_until_closed: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            destinations=(Destination(),) * s.destinations,
            seats=(Seat(),) * s.destinations,
            encoder=Encoder(at=("find",) * s.destinations, announced=not s.streaming),
            kills=s.kills,
            stops=s.stops,
            encoder_aborts=s.encoder_aborts,
            encode_deadlines=s.encode_deadlines,
            failures=s.failures,
            language_losses=s.language_losses,
            encode_losses=s.encode_losses,
        )

    def is_far(self, d: int) -> bool:
        return d >= self.setting.destinations - self.setting.far

    def checked_steps(self, world: World) -> Iterator[Step]:
        for label, after in self.steps(world):
            yield label, after._replace(fault=self.fault(world, after))

    def fault(self, before: World, after: World) -> str | None:
        moves = [("the encode side", (before.encode, 0), (after.encode, 0))]
        for d, (old, new) in enumerate(zip(before.destinations, after.destinations, strict=True)):
            moves.append((f"d{d}", (old.phase, old.sent), (new.phase, new.sent)))
            if new.phase == SUCCESS and new.sent < self.setting.rows:
                return f"short: d{d} ends in Success with {new.sent} of {self.setting.rows} rows"
        for name, was, now in moves:
            if now < was or (was[0] in TERMINAL and now != was):
                return f"word: {name} goes from {was} to {now}"
        ends = {
            f"d{d}": x.phase
            for d, x in enumerate(after.destinations)
            if not x.lost and not x.alone and x.phase in TERMINAL
        }
        if after.encode in TERMINAL and not after.encode_lost:
            ends["the encode side"] = after.encode
        return f"split: {ends}" if len(set(ends.values())) > 1 else None

    def steps(self, world: World) -> Iterator[Step]:
        if world.encoder.state == "alive":
            yield from self.encoder_steps(world, world.encoder)
            if world.kills:
                yield "the encoder is killed", self.encoder_is(world._replace(kills=world.kills - 1), "dead")
            if world.stops:
                yield "the encoder is stopped", self.encoder_is(world._replace(stops=world.stops - 1), "stopped")
        if not world.encode_lost:
            yield from self.encode_steps(world)
        for d, destination in enumerate(world.destinations):
            if not destination.lost:
                yield from self.language_steps(world, d, destination)
        for message in sorted(world.messages):
            yield from self.taken(world, message)

    def encoder_is(self, world: World, state: str) -> World:
        return world._replace(encoder=world.encoder._replace(state=state))

    def goal(self, world: World) -> bool:
        """All have ended, and know; who can, has forgotten the request."""
        over = all(x.lost or x.phase in TERMINAL for x in world.destinations)
        if world.encode_lost:
            return over
        return over and (world.forgotten or (world.encoder.state == "stopped" and world.encode in TERMINAL))

    # ---- words

    def with_destination(self, world: World, d: int, destination: Destination) -> World:
        return world._replace(destinations=put(world.destinations, d, destination))

    def with_seat(self, world: World, d: int, seat: Seat) -> World:
        return world._replace(seats=put(world.seats, d, seat))

    def decide(self, world: World, phase: int) -> World:
        """The encode side's word from open to a terminal phase; of two who try, the first does."""
        return world._replace(encode=phase) if world.encode == OPEN or not self.rules.r36_moved_by_cas else world

    def follow(self, world: World, d: int, phase: int) -> World:
        """A destination's word to what has been decided; nothing, where it has ended."""
        me = world.destinations[d]
        if me.phase in TERMINAL and self.rules.r36_moved_by_cas:
            return world
        return self.with_destination(world, d, me._replace(phase=phase, must_fail=False, looked=None))

    # ---- the encoder

    def encoder_steps(self, world: World, me: Encoder) -> Iterator[Step]:
        if not me.announced:
            yield "encoder: announces the number of rows", world._replace(encoder=me._replace(announced=True))
        if world.encoder_aborts and me.follows < 0:
            aborting = world._replace(encoder_aborts=world.encoder_aborts - 1)
            yield "encoder: aborts", self.begin_to_follow(self.decide(aborting, FAILED))
        if world.encode in TERMINAL and me.follows < 0:
            yield "encoder: sees that it has ended", self.begin_to_follow(world)
        left = [d for d, at in enumerate(me.at) if at != "done" and not self.is_far(d)]
        for d in left if self.setting.two_threads else left[:1]:
            yield from self.write_steps(world, me, d)
        if 0 <= me.follows < len(me.at):
            yield from self.follow_steps(world, me, me.follows)
        elif me.is_through and not world.cleared:
            yield "encoder: needs its slot no more", world._replace(cleared=True)

    def on(self, world: World, d: int, at: str) -> World:
        return world._replace(encoder=world.encoder._replace(at=put(world.encoder.at, d, at)))

    def begin_to_follow(self, world: World) -> World:
        return world if world.encoder.follows >= 0 else world._replace(encoder=world.encoder._replace(follows=0))

    def write_steps(self, world: World, me: Encoder, d: int) -> Iterator[Step]:
        """What a thread does that writes to one destination."""
        at, there = me.at[d], world.destinations[d]
        if at == "find" and world.encode == OPEN and me.follows < 0:
            if not self.rules.r36_recorded_before_whole:
                yield f"encoder: finds d{d}", self.on(world, d, "send")
            else:
                recorded = self.with_seat(world, d, world.seats[d]._replace(recorded=True))
                yield f"encoder: finds d{d}, and records it at its own side", self.on(recorded, d, "send")
        elif at == "send":
            if there.phase in TERMINAL:
                yield f"encoder: finds d{d} {NAMES[there.phase]}", self.on(world, d, "give up")
            elif me.follows >= 0:
                yield f"encoder: writes no more to d{d}", self.on(world, d, "done")
            elif there.sent < self.setting.rows:
                rows = there._replace(sent=there.sent + 1)
                yield f"encoder: row {there.sent} is in d{d}", self.with_destination(world, d, rows)
            elif me.announced:
                yield from self.make_whole(world, d, there)
        elif at == "count":
            counted = self.with_seat(world, d, world.seats[d]._replace(is_whole=True))
            yield f"encoder: counts d{d} as whole", self.on(counted, d, "look")
        elif at == "look":
            if all(seat.is_whole for seat in world.seats) or not self.rules.r36_every_destination_is_whole:
                yield f"encoder: finds all whole behind d{d}", self.on(world, d, "decide")
            if len(me.at) > 1:  # or looks at the others before they are counted
                yield f"encoder: leaves it to others behind d{d}", self.on(world, d, "done")
        elif at == "decide":
            decided = self.begin_to_follow(self.decide(world, SUCCESS))
            yield "encoder: encode word to Success", self.on(decided, d, "done")
        elif at == "give up":
            decided = self.begin_to_follow(self.decide(world, FAILED))
            yield "encoder: encode word to Failed", self.on(decided, d, "done")

    def follow_steps(self, world: World, me: Encoder, d: int) -> Iterator[Step]:
        """The destinations' words, one after the other, when the encode side's has ended."""
        def on(after: World, follows: int, *, closes: bool = False) -> World:
            return after._replace(encoder=after.encoder._replace(follows=follows, closes=closes))

        if world.encode_lost:
            yield "encoder: sees that its node is lost", on(world, len(me.at))
        elif me.at[d] == "find":
            yield f"encoder: d{d}, which it has not found, is told by its node", on(world, d + 1)
        elif not me.closes:
            yield f"encoder: d{d} follows", on(self.follow(world, d, world.encode), d, closes=True)
        else:  # no message is needed: the encoder has seen that word end
            closed = self.with_seat(world, d, world.seats[d]._replace(closed=True))
            yield f"encoder: d{d} has ended", on(closed, d + 1)

    def make_whole(self, world: World, d: int, there: Destination) -> Iterator[Step]:
        rules = self.rules
        if not rules.r36_the_encode_sides_word_is_first:
            yield f"encoder: d{d} to Success", self.on(self.follow(world, d, SUCCESS), d, "count")
        elif not rules.r36_whole_before_the_encode_sides_word:
            yield f"encoder: has sent all rows to d{d}", self.on(world, d, "count")
        elif rules.r36_whole_stands_in_the_word:
            whole = self.with_destination(world, d, there._replace(phase=WHOLE))
            yield f"encoder: d{d} to whole", self.on(whole, d, "count")
        else:
            known = self.with_destination(world, d, there._replace(total_known=True))
            yield f"encoder: writes the number of rows into the record of d{d}", self.on(known, d, "count")

    # ---- the encode node

    def encode_steps(self, world: World) -> Iterator[Step]:
        if world.encode_losses:
            lost = world._replace(encode_lost=True, encode_losses=world.encode_losses - 1)
            yield "the encode node is lost", lost
        if world.forgotten:
            return
        stopped = world.encoder.state == "stopped"
        if world.encode == OPEN:
            if world.encode_deadlines or stopped:
                late = world._replace(encode_deadlines=max(world.encode_deadlines - 1, 0))
                yield "encode poller: the deadline, encode word to Failed", self.decide(late, FAILED)
            if world.encoder.state == "dead":
                yield "encode poller: the encoder is dead, encode word to Failed", self.decide(world, FAILED)
            if all(seat.is_whole for seat in world.seats):
                yield "encode poller: all are whole, encode word to Success", self.decide(world, SUCCESS)
            if any(seat.abort_came for seat in world.seats):
                yield "encode poller: an abort, encode word to Failed", self.decide(world, FAILED)
        for d, seat in enumerate(world.seats):
            if world.destinations[d].lost and seat.recorded and not seat.buried:
                buried = self.with_seat(world, d, seat._replace(buried=True))
                yield f"encode poller: buries d{d}", self.decide(buried, FAILED)
            has_rows = world.encoder.announced and world.encoder.state != "dead" and world.encode == OPEN
            if self.is_far(d) and seat.recorded and not seat.is_whole and has_rows:
                has_all = self.with_seat(world, d, seat._replace(is_whole=True))
                yield f"worker: all rows are in d{d}, which counts", has_all
            report = ("report", d, world.encode)
            knows = seat.closed or seat.buried or report in world.messages
            if world.encode in TERMINAL and seat.recorded and not knows and self.rules.r36_told_until_closed:
                yield f"encode poller: tells d{d}", world._replace(messages=world.messages | {report})
        all_know = all(seat.closed or seat.buried or not seat.recorded for seat in world.seats)
        if world.encode in TERMINAL and all_know and (world.cleared or world.encoder.state == "dead"):
            yield "the encode node forgets the request", world._replace(forgotten=True)

    # ---- a destination

    def language_steps(self, world: World, d: int, me: Destination) -> Iterator[Step]:
        def now(after: Destination, *messages: Message) -> World:
            return self.with_destination(world, d, after)._replace(messages=world.messages | set(messages))

        if world.language_losses:
            lost = now(me._replace(lost=True))
            yield f"d{d}: its node is lost", lost._replace(language_losses=world.language_losses - 1)
        if me.phase in TERMINAL:
            return
        if world.failures and not me.must_fail:
            failing = now(me._replace(must_fail=True))
            yield f"d{d}: deadline, abort, or its scheduler is dead", failing._replace(failures=world.failures - 1)
        if world.encoder.state == "dead" and not me.must_fail and not self.is_far(d):
            yield f"d{d}: the door says that the writer is dead", now(me._replace(must_fail=True))
        if world.encode_lost:
            yield f"d{d}: its encode node is lost, Failed", self.follow(world, d, FAILED)
        elif ("init", d, OPEN) not in world.messages and me.phase == OPEN:
            yield f"d{d}: sends its init", now(me, ("init", d, OPEN))
        word_and_total = (me.phase, me.sent, me.total_known)
        if me.must_fail and me.looked is None:
            yield f"d{d}: its poller looks at the word", now(me._replace(looked=word_and_total))
        elif me.looked is not None:
            phase, sent, total_known = me.looked
            is_whole = phase == WHOLE or (total_known and sent == self.setting.rows)
            yield from self.fail(world, d, me, is_whole and self.rules.r36_a_whole_one_does_not_fail_for_itself)

    def fail(self, world: World, d: int, me: Destination, is_whole: bool) -> Iterator[Step]:
        """The destination's own node fails the request, if it still may; the encode node is told in any case."""
        telling = world._replace(messages=world.messages | {("abort", d, OPEN)})
        if is_whole:
            if telling != world:
                yield f"d{d}: is whole, asks the encode node to abort", telling
        elif (me.looked or ())[:2] == (me.phase, me.sent) or not self.rules.r36_moved_by_cas:
            failed = self.follow(telling, d, FAILED)
            alone = failed.destinations[d]._replace(alone=self.is_far(d))
            yield f"d{d}: fails for itself", self.with_destination(failed, d, alone)
        else:
            yield f"d{d}: the word has moved", self.with_destination(world, d, me._replace(looked=None))

    # ---- messages

    def taken(self, world: World, message: Message) -> Iterator[Step]:
        kind, d, phase = message
        seat, there = world.seats[d], world.destinations[d]
        if kind == "report":
            if not there.lost and ("close", d, OPEN) not in world.messages:
                has_landed = self.is_far(d) and phase == SUCCESS and there.phase not in TERMINAL
                rows = self.setting.rows if has_landed else there.sent
                after = self.follow(self.with_destination(world, d, there._replace(sent=rows)), d, phase)
                yield f"d{d}: hears {NAMES[phase]}", after._replace(messages=after.messages | {("close", d, OPEN)})
            return
        if world.encode_lost:
            return
        if world.forgotten:
            answer = ("report", d, FAILED)
            if kind != "close" and answer not in world.messages:
                yield f"encode node: knows nothing of d{d}", world._replace(messages=world.messages | {answer})
        elif kind == "close" and not seat.closed:
            yield f"encode node: d{d} knows", self.with_seat(world, d, seat._replace(closed=True))
        elif kind == "init" and not seat.recorded:
            yield f"encode node: takes the init of d{d}", self.with_seat(world, d, seat._replace(recorded=True))
        elif kind == "abort" and not seat.abort_came:
            yield f"encode node: takes the abort of d{d}", self.with_seat(world, d, seat._replace(abort_came=True))


def explore_outcome(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `split` (two sides have ended otherwise), `word`, `short`, or `stuck` (somebody never ends)."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(),
        model.checked_steps,
        violated=lambda world: world.fault,
        goal=model.goal,
        max_states=max_states,
    )
