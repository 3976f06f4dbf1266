"""A request between two clients of one host, of which no process of either node hears unless it is *told*: every
interleaving of its open, its grant, its rows and its end.

Each side's slot has a word that says whether the side's node has been told of it. It is told by its client, by a report
that names it, or by its client's death; or its client alone releases it. A scheduler posts its grant, an encoder binds
itself to it, writes, raises both words, and both release their slots. Where one side is told and the other is not, the
told side's bootstrap and poller end it by the messages that they send today.

Modelled: either side told at any moment, by its client or by a report; an init that leaves early or late, is repeated,
or waits for the encoder's room; an encoder that is bound by its own client while its bootstrap joins the same room, and
then writes itself or leaves it to the worker; deadlines of both sides, and deaths of both clients at any step; a later
sender of the same room, which finds what the first has left, or a second one, at the same time (`direct_told_others`);
another one to which the node has joined the request, before it knew of the first, and which is closed before the first
is told of; and a grant to which nobody has come, which its scheduler withdraws while an encoder finds it (R34).
Messages are never forgotten, so each of them may come again at any later time; but what is said once of two senders
with one request comes once.

Not modelled: the table of posts (`direct_rendezvous_model`); the copy itself (`direct_claim_model`); several
destinations, which are always told (`direct_outcome_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from direct_told_others import BOUND, later_steps, looked
from direct_told_withdrawal import withdraw_steps
from direct_told_world import (
    CLIENT,
    FREE,
    NOBODY,
    NODE,
    RELEASED,
    REVOKED,
    SHUT,
    TOLD,
    UNTOLD,
    WRITING,
    Encoder,
    Language,
    Rules,
    Setting,
    Step,
    World,
)
from explorer import Finding, Ruled, explore
from phases import FAILED, OPEN, SUCCESS


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        return World(encoder_kills=self.setting.encoder_kills, scheduler_kills=self.setting.scheduler_kills)

    def steps(self, world: World) -> Iterator[Step]:
        for label, following in self.all_steps(world):
            yield label, self.judged(world, following)

    def all_steps(self, world: World) -> Iterator[Step]:
        language, encoder = world.language, world.encoder
        if language.alive:
            yield from self.scheduler_steps(world, language)
        if encoder.alive:
            yield from self.encoder_steps(world, encoder)
        if language.at == "open" and self.is_told(language):
            yield from self.language_node_steps(world, language)
        if encoder.at != "new" and self.is_told(encoder):
            yield from self.encode_node_steps(world, encoder)
        if not encoder.alive and language.claim in (WRITING, REVOKED):
            yield "the door ends the claim of the dead", self.of_language(world, claim=SHUT)
        if self.setting.doubles or (self.setting.later and encoder.at == "over"):
            yield from later_steps(self.setting, self.rules, world)
        yield from self.other_steps(world, language, encoder)
        for message in sorted(world.messages):
            yield from self.taken(world, *message)

    def judged(self, before: World, world: World) -> World:
        if world.fault is not None:
            return world
        if world.language.phase == SUCCESS and world.encoder.phase == FAILED:
            return world._replace(fault="apart: the rows have arrived, and their encoder is told that they have not")
        for name, old, new in (
            ("language", before.language, world.language),
            ("encode", before.encoder, world.encoder),
        ):
            if new.told == RELEASED and old.told == TOLD:
                return world._replace(fault=f"touched: the {name} client releases a slot that its node was told of")
            if new.told == TOLD and old.told == RELEASED:
                return world._replace(fault=f"touched: the {name} node is told of a slot that was released")
        return world

    def goal(self, world: World) -> bool:
        """Both slots are released, well where nothing bad may happen; nothing is left of it anywhere."""
        s = self.setting
        bad = s.deadlines or s.another or s.encoder_kills or s.scheduler_kills
        ends = (world.language, world.encoder)
        well = all(side.phase == SUCCESS for side in ends)
        clean = not world.pending and not world.language.posted and world.language.claim in (SHUT, FREE)
        are_over = all(side.at == "over" for side in ends) and world.other in ("none", "over")
        return are_over and (bool(bad) or well) and clean

    # ---- what several do

    def is_told(self, side: Language | Encoder) -> bool:
        """Whether the node's processes take the slot for theirs."""
        is_dead = not side.alive and side.told == UNTOLD and self.rules.r78_the_slots_of_the_dead_are_told
        return (side.told == TOLD or is_dead) and side.at != "over"

    def of_language(self, world: World, **words: Any) -> World:
        return world._replace(language=world.language._replace(**words))

    def of_encoder(self, world: World, **words: Any) -> World:
        return world._replace(encoder=world.encoder._replace(**words))

    def says(self, world: World, kind: str, value: int = 0) -> World:
        return world._replace(messages=world.messages | {(kind, value)})

    # ---- the language side

    def scheduler_steps(self, world: World, me: Language) -> Iterator[Step]:
        if world.scheduler_kills and me.at == "open":
            killed = self.of_language(world, alive=False)
            yield "the scheduler is killed", killed._replace(scheduler_kills=world.scheduler_kills - 1)
        if me.at == "new":
            opened = self.of_language(world, at="open", claim=FREE, posted=True)
            yield "the scheduler opens, grants and posts", opened
            return
        if me.at != "open":
            return
        if self.setting.withdraws and not me.renewed and me.phase == OPEN:
            yield from withdraw_steps(self.rules, world)
        tells = "language" in self.setting.told or self.setting.deadlines
        if me.told == UNTOLD and me.phase == OPEN and tells and not me.withdraws:
            yield "the scheduler tells its node", self.of_language(world, told=TOLD)
        if me.phase != SUCCESS:
            return
        if not me.freed:
            yield "the scheduler gives its blocks back", self.of_language(world, freed=True)
            return
        released = {"told": RELEASED, "at": "over", "posted": False, "ends": False}
        if self.rules.r78_told_or_released_by_one_cas:
            if me.told == UNTOLD:
                yield "the scheduler releases its slot", self.of_language(world, **released)
        elif me.ends:
            yield "the scheduler releases its slot, having looked", self.of_language(world, **released)
        elif me.told == UNTOLD:
            yield "the scheduler looks whether it is told", self.of_language(world, ends=True)

    def language_node_steps(self, world: World, me: Language) -> Iterator[Step]:
        if me.phase == OPEN and (self.setting.deadlines or not me.alive):
            yield "the language node fails it", self.failed(world)
        yield from self.init_steps(world, me)
        if me.phase == SUCCESS and not me.freed and not me.alive:
            yield "the language node takes the blocks of the dead", self.claim_ended(
                self.of_language(world, freed=True)
            )
        if me.phase == SUCCESS and me.freed:
            closed = self.says(self.of_language(world, at="over", posted=False), "close")
            yield "the language node closes and releases it", closed
        if me.phase == FAILED:
            if ("abort", 0) not in world.messages and ("ack", 0) not in world.messages:
                yield "the language node sends its abort", self.says(world, "abort")
            if ("ack", 0) in world.messages and me.claim == SHUT:
                yield "the language node releases it", self.of_language(world, at="over", posted=False)
            if me.claim == REVOKED and not world.encoder.alive:
                yield "the door ends the claim of the dead", self.of_language(world, claim=SHUT)

    def failed(self, world: World) -> World:
        claim = REVOKED if world.language.claim in (WRITING, REVOKED) else SHUT
        return self.of_language(world, phase=FAILED, claim=claim)

    def claim_ended(self, world: World) -> World:
        """The language node ends a claim that nobody holds."""
        return self.of_language(world, claim=SHUT) if world.language.claim == FREE else world

    def init_steps(self, world: World, me: Language) -> Iterator[Step]:
        """The init shows to writers that it is told, and leaves if the request is in flight still."""
        first = self.rules.r80_told_is_shown_before_the_init
        if me.init == "idle":
            if first:
                yield "the bootstrap shows that it is told", self.of_language(world, shown=True, init="shown")
            elif me.phase == OPEN:
                yield "the bootstrap looks at the word", self.of_language(world, init="seen")
        elif me.init == "shown" and me.phase == OPEN and ("init", 0) not in world.messages:
            yield "the bootstrap sends its init", self.says(world, "init")
        elif me.init == "seen" and ("init", 0) not in world.messages:
            yield "the bootstrap sends its init, and shows it", self.says(self.of_language(world, shown=True), "init")

    # ---- the encoder

    def encoder_steps(self, world: World, me: Encoder) -> Iterator[Step]:
        if world.encoder_kills and me.at not in ("new", "over"):
            killed = self.of_encoder(world, alive=False)
            yield "the encoder is killed", killed._replace(encoder_kills=world.encoder_kills - 1)
        if me.at == "new":
            yield "the encoder opens", self.of_encoder(world, at="open")
            return
        if me.at == "over":
            return
        if me.told == UNTOLD and me.phase == OPEN and ("encoder" in self.setting.told or self.setting.deadlines):
            yield "the encoder tells its node", self.of_encoder(world, told=TOLD)
        if me.phase == OPEN or me.at in ("copied", "raised", "said"):
            yield from self.write_steps(world, me)
        elif me.at in ("claimed",):
            yield "the encoder gives the claim back, having failed", self.given_back(world, "back")
        elif me.at in ("open", "found", "bound", "noted"):
            yield "the encoder has ended", self.of_encoder(world, at="back")
        elif me.at == "back":
            yield from self.release_steps(world, me)

    def given_back(self, world: World, at: str) -> World:
        is_last = at == "back" and world.encoder.at == "said" and self.rules.r81_success_ends_the_claim
        claim = {WRITING: SHUT if is_last else FREE, REVOKED: SHUT}.get(world.language.claim, world.language.claim)
        return self.of_encoder(self.of_language(world, claim=claim), at=at)

    def write_steps(self, world: World, me: Encoder) -> Iterator[Step]:
        language = world.language
        if me.at == "open" and me.worker == "asked":
            if not self.setting.doubles or self.setting.doorless:
                step = "the encoder has no door, and leaves its rows to the worker"
                yield step, self.of_encoder(world, worker="writing")
            if self.setting.doorless:
                return
            binds = self.rules.r81_whoever_writes_is_bound
            bound = self.of_language(world, bound=True) if binds else world
            if not self.rules.r81_so_is_who_has_the_worker_write:
                yield "the encoder leaves its rows to the worker", self.of_encoder(world, worker="writing")
            elif not (binds and language.bound):
                yield "the encoder leaves its rows to the worker", self.of_encoder(bound, worker="writing")
            if not (binds and language.bound):
                yield "the encoder says that it writes itself", self.of_encoder(bound, worker="idle", at="noted")
            else:
                yield "the encoder finds that another is bound, and fails", self.of_encoder(world, phase=FAILED)
        elif me.at == "open" and language.posted and language.claim == FREE:
            if me.joined == NOBODY and not language.bound and not self.setting.doorless:
                if self.setting.withdraws:
                    yield "the encoder finds the grant", self.of_encoder(world, at="found")
                else:
                    yield "the encoder binds itself", self.bound(world)
        elif me.at == "found":
            is_kept = language.bound or language.renewed or me.joined != NOBODY  # the next epoch has another word
            after = self.of_encoder(world, at="open") if is_kept else self.bound(world)
            yield "the encoder finds it kept, or binds itself", after
        elif me.at == "bound":
            noted = self.of_encoder(world, noted=True, at="noted")
            if me.told == TOLD and me.opened and self.rules.r79_who_notes_looks_whether_it_is_told:
                noted = self.known(noted)
            yield "the encoder notes its destination", noted
        elif me.at == "noted":
            if language.claim == FREE and not (me.joined == CLIENT and language.renewed):
                yield "the encoder claims", self.of_encoder(self.of_language(world, claim=WRITING), at="claimed")
        elif me.at == "claimed":
            fault = None
            if language.claim not in (WRITING, REVOKED) or language.freed:
                fault = "stray: the encoder writes without the claim"
            if me.worker != "idle":
                fault = "twice: the encoder and the worker write"
            yield "the encoder copies", self.of_encoder(world, at="copied")._replace(fault=fault)
        elif me.at == "copied":
            has_ended = me.phase != OPEN
            raised = self.of_encoder(world, phase=SUCCESS, at="raised")
            yield "the encoder raises its own word", self.given_back(world, "back") if has_ended else raised
            if not self.rules.r80_released_after_both_words and me.told == UNTOLD and me.phase == OPEN:
                early = self.of_encoder(world, phase=SUCCESS, at="over", told=RELEASED)
                yield "the encoder raises its own word, releases its slot, and is killed", early._replace(
                    encoder=early.encoder._replace(alive=False)
                ) if world.encoder_kills else early
        elif me.at == "raised":
            phase = SUCCESS if language.phase == OPEN else language.phase
            said = self.of_encoder(self.of_language(world, phase=phase), at="said")
            yield "the encoder raises the destination's word", said
        elif me.at == "said":
            yield "the encoder gives the claim back", self.given_back(world, "back")

    def bound(self, world: World) -> World:
        return self.of_encoder(self.of_language(world, bound=True), joined=CLIENT, at="bound")

    def release_steps(self, world: World, me: Encoder) -> Iterator[Step]:
        """Without the node where the destination has ended and its node has sent no init; else it is told."""
        is_shown = world.language.shown and self.rules.r80_who_has_ended_looks_whether_it_is_shown
        may = me.phase == SUCCESS and not is_shown
        if me.told == UNTOLD and not may:
            yield "the encoder tells its node how it ended", self.of_encoder(world, told=TOLD)
        elif me.ends or (me.told == UNTOLD and self.rules.r78_told_or_released_by_one_cas):
            yield "the encoder releases its slot", self.of_encoder(world, told=RELEASED, at="over", ends=False)
        elif me.told == UNTOLD:
            yield "the encoder looks whether it is told", self.of_encoder(world, ends=True)

    # ---- another sender of the room, to which its node has joined the request, because it did not see the first

    def other_steps(self, world: World, language: Language, encoder: Encoder) -> Iterator[Step]:
        is_found = language.bound and not encoder.opened
        if world.other == "none" and self.setting.another and is_found and ("init", 0) in world.messages:
            yield "the encode bootstrap joins another sender", world._replace(other="joined", stale=True)
        elif world.other == "joined":
            yield "the other sender finds the grant bound, and fails", world._replace(other="failed")
        elif world.other == "failed" and language.phase == OPEN:
            yield "the language node hears that the other has failed", self.failed(world)
        elif world.other == "failed" and (language.phase == SUCCESS or language.at == "over"):
            yield "the language node closes the other", world._replace(other="over")
        is_acked = self.setting.another and ("ack", 0) in world.messages
        if language.at == "open" and language.phase == FAILED and world.close == "none" and is_acked:
            answered = world._replace(messages=world.messages - {("abort", 0)})  # it is said no more
            is_kept = self.rules.r79_what_was_closed_is_known_until_its_release
            yield "the language node closes it, once", answered._replace(close="sent", forgotten=not is_kept)
        if world.close == "sent":
            other = "over" if world.other != "none" else "none"
            taken = self.of_encoder(world, closed=encoder.reported or encoder.closed)
            taken = taken._replace(close="taken", other=other)
            if taken.encoder.closed and encoder.phase == OPEN:
                taken = self.of_encoder(taken, phase=FAILED)
            yield "the encode node takes that close, for those that it has told of", taken

    # ---- the encode node

    def encode_node_steps(self, world: World, me: Encoder) -> Iterator[Step]:
        if not me.opened:
            yield "the encode bootstrap opens the room", self.room_opened(world)
        if me.phase == OPEN and (self.setting.deadlines or not me.alive):
            yield "the encode node fails it", self.of_encoder(world, phase=FAILED)
        if me.opened and world.barred and me.phase == OPEN:
            yield "the encode node fails it, for its room has failed", self.of_encoder(world, phase=FAILED)
        if me.looked:
            yield "the encode bootstrap joins it, having looked", self.joined(world)
        if me.worker == "entered":
            yield "the encode bootstrap looks who has found the grant", looked(self.rules, world)
        is_heard = me.closed or ("status", me.phase) in world.messages
        if self.setting.another and me.known and me.phase == OPEN and not me.reported:
            reported = self.says(self.of_encoder(world, reported=True), "status", OPEN)
            yield "the encode node reports that it is in flight", reported
        if me.known and me.phase != OPEN and not is_heard:
            yield "the encode node reports how it ended", self.says(world, "status", me.phase)
        if me.worker == "writing":
            fault = "twice: the encoder and the worker write" if me.at in ("claimed", "copied") else None
            if world.later in BOUND and self.setting.doubles:
                fault = "twice: two senders of a room write"
            yield "the worker copies", self.of_encoder(world, worker="done")._replace(fault=fault)
        elif me.worker == "done" and me.phase == OPEN:
            yield "the encode node raises its word", self.of_encoder(world, phase=SUCCESS)
        is_done = me.at == "back" or not me.alive
        if me.phase != OPEN and me.opened and is_done and (me.closed or not me.noted):
            over = self.of_encoder(world, at="over")
            if me.phase == FAILED and not me.noted:
                over = over._replace(barred=True)
                if world.pending:
                    over = self.says(over._replace(pending=False), "refused")
            yield "the encode node releases it", over

    def room_opened(self, world: World) -> World:
        opened = self.of_encoder(world, opened=True)
        if world.other in ("joined", "failed") and world.encoder.phase == OPEN:
            opened = self.of_encoder(opened, phase=FAILED)  # the room is in use by the other
        if world.encoder.noted and world.encoder.joined == CLIENT:
            return self.known(opened)
        return self.init_comes(opened) if world.pending else opened

    def known(self, world: World) -> World:
        """The bootstrap takes up the destination to which the client has bound the slot."""
        if not self.rules.r79_the_bound_one_is_taken_up:
            return world
        return self.of_encoder(world, known=True)._replace(pending=False, stale=True)

    def init_comes(self, world: World) -> World:
        """To a room that is open here."""
        me = world.encoder
        if me.joined == CLIENT:
            if me.noted:
                return self.known(world)
            return world._replace(pending=True)  # its client is about to note which one it has found, or is dead
        if me.phase != OPEN:
            return self.says(world._replace(pending=False), "refused")
        if not self.rules.r79_joined_by_one_cas:
            return self.of_encoder(world, looked=True)._replace(pending=True)
        return self.joined(world)

    def joined(self, world: World) -> World:
        looks = self.setting.doorless and self.rules.r81_who_joins_looks_at_the_mark
        worker = "entered" if looks else "asked"
        after = self.of_encoder(world, joined=NODE, noted=True, known=True, worker=worker, looked=False)
        return after._replace(pending=False, stale=True)

    # ---- messages

    def taken(self, world: World, kind: str, value: int) -> Iterator[Step]:
        language, encoder = world.language, world.encoder
        if kind == "init" and not world.stale:
            if world.barred:
                if ("refused", 0) not in world.messages:
                    yield "the encode bootstrap refuses the init", self.says(world, "refused")
            elif encoder.opened and encoder.at != "over" and self.is_told(encoder):
                yield "the init comes to the open room", self.init_comes(world)
            elif not world.pending:
                yield "the init waits for its encoder", world._replace(pending=True)
        elif kind == "refused" and language.at == "open" and self.is_told(language) and language.phase == OPEN:
            yield "the language node hears that it is refused", self.failed(world)
        elif kind == "status":
            yield from self.report_taken(world, language, value)
        elif kind == "close" and self.is_told(encoder) and encoder.known and not encoder.closed:
            phase = FAILED if encoder.phase == OPEN else encoder.phase
            yield "the encode node takes the close", self.of_encoder(world, closed=True, phase=phase)
        elif kind == "abort":
            if self.is_told(encoder) and encoder.known:
                phase = FAILED if encoder.phase == OPEN else encoder.phase
                after = self.of_encoder(world, phase=phase, closed=True)
                if ("ack", 0) not in world.messages or after != world:
                    yield "the encode node takes the abort", self.says(after, "ack")
            elif world.other in ("joined", "failed"):
                if ("ack", 0) not in world.messages:
                    after = world._replace(other="failed")
                    yield "the encode node takes the abort of the other", self.says(after, "ack")
            elif not world.stale or ("ack", 0) not in world.messages:
                after = world._replace(stale=True, pending=False, barred=not world.stale or world.barred)
                yield "the encode node takes the abort of a request that it does not know", self.says(after, "ack")

    def report_taken(self, world: World, language: Language, phase: int) -> Iterator[Step]:
        if phase == OPEN:  # said once
            world = world._replace(messages=world.messages - {("status", OPEN)})
            knows_it_closed = world.close != "none" and not world.forgotten
            is_closed = knows_it_closed and self.rules.r79_what_was_closed_is_closed_again
            if language.at == "open" and not (language.phase == FAILED and is_closed):
                yield "the language node takes the report of what is in flight", world
                return
        if language.at == "over" or language.told == RELEASED or language.phase != OPEN:
            if ("close", 0) not in world.messages:
                yield "the language node answers that it is over", self.says(world, "close")
            return
        if language.at == "new":
            return
        if not self.is_told(language):
            if not self.rules.r78_a_report_tells:
                heard = world._replace(messages=world.messages - {("status", phase)})
                yield "the language node does not know it, and closes", self.says(heard, "close")
                return
            world = self.of_language(world, told=TOLD)
        if phase == SUCCESS and self.rules.r81_success_ends_the_claim:
            world = self.claim_ended(world)
        after = self.of_language(world, phase=SUCCESS) if phase == SUCCESS else self.failed(world)
        yield "the language node takes the report", after


def explore_told(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `stray` (somebody writes without the claim), `twice` (two write), `apart` (the ends differ), `touched`
    (a slot is released that the node has), or `stuck`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
