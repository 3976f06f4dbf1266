"""The direct path: writers of other processes copy rows into a language node's blocks, with nobody in between. Every
interleaving of a slot's claim and of its blocks' lives.

A *claim* is one word a slot: `epoch, state, writer`. It is SHUT (nobody may write), OPEN (a writer may take it),
WRITING (its writer copies), or REVOKED (its writer may still be copying, and its rows are not wanted any more). A
writer touches a block only between its CAS OPEN -> WRITING and its giving back: WRITING -> OPEN, or REVOKED -> SHUT.
Who ends a request, or wants blocks back, moves the claim first: under OPEN -> SHUT all blocks are free at once; under
WRITING -> REVOKED exposed blocks are quarantined until the claim is SHUT.

Modelled: slots that are used again, grants of one block at a time, drains, several threads and processes that may write
the same request (the caller's thread, the library thread, and the network's worker are writers like any other),
streaming over several grants, aborts, withdrawn grants, a killed scheduler, killed and stopped writers, a device that
goes on copying for a killed process, views that a scheduler keeps. Any process may be slow between two steps, so a stop
that ends is every interleaving; `stops` is one that never ends.

Not modelled: bells and dirty bits (who waits looks again by itself), how a writer's name is used again
(`direct_writers_model`), the words of both sides at the end (`direct_outcome_model`; here the holder of the claim
raises one word), and how the two sides find each other (`direct_rendezvous_model`; here it is one table).
"""

from __future__ import annotations

from collections.abc import Iterator

from direct_claim_world import (
    ALIVE,
    BURIED,
    DEAD,
    EXPOSED,
    FREE,
    NOBODY,
    OPEN,
    OWNED,
    QUARANTINED,
    REVOKED,
    SHUT,
    WRITING,
    Cell,
    Claim,
    Record,
    Request,
    Rules,
    Setting,
    Thread,
    Word,
    Words,
    World,
)
from explorer import Finding, explore, put
from phases import FAILED, SUCCESS
from phases import OPEN as UNENDED

Step = tuple[str, World]


class Model(Words):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            cells=(Cell(),) * s.blocks,
            rows=(None,) * s.blocks,
            words=(Word(),) * s.slots,
            claims=(Claim(),) * s.slots,
            records=(Record(),) * s.slots,
            table=(NOBODY,) * 2,
            requests=(Request(),) * 2,
            threads=(Thread(),) * len(s.threads),
            processes=(ALIVE,) * (1 + max(process for process, _ in s.threads)),
            kills=s.kills,
            stops=s.stops,
            scheduler_kills=s.scheduler_kills,
            aborts=s.aborts,
            withdrawals=s.withdrawals,
        )

    def steps(self, world: World) -> Iterator[Step]:
        for room, request in enumerate(world.requests):
            yield from self.language_steps(world, room, request)
        if world.scheduler_kills:
            yield "the scheduler is killed; its node does the rest", self.kill_scheduler(world)
        for t, thread in enumerate(world.threads):
            if world.processes[self.setting.threads[t][0]] == ALIVE and not world.stopped:
                yield from self.writer_steps(world, t, thread)
        yield from self.death_steps(world)

    def goal(self, world: World) -> bool:
        """Every request has ended, every block is free; but a writer that is stopped for ever keeps what it copies."""
        if world.stopped:
            revoked = {(c.slot, c.epoch) for c in world.cells if c.state == QUARANTINED}
            held = all(world.claims[slot].state == REVOKED for slot, _ in revoked)
            over = all(r.at in ("over", "quarantine") for r in world.requests)
            return over and held and all(c.state in (FREE, QUARANTINED) for c in world.cells)
        idle = all(
            thread.at == "idle" or world.processes[self.setting.threads[t][0]] != ALIVE
            for t, thread in enumerate(world.threads)
        )
        return idle and all(r.at == "over" for r in world.requests) and all(c.state == FREE for c in world.cells)

    # ---- the language side

    def language_steps(self, world: World, room: int, me: Request) -> Iterator[Step]:
        def now(after: World, at: str, drained: int = me.drained) -> World:
            return after._replace(requests=put(after.requests, room, me._replace(at=at, drained=drained)))

        if me.at == "new":
            yield from self.open(world, room)
        elif me.at == "live":
            yield from self.live_steps(world, room, me)
        elif me.at == "withdrawing":
            record, sent = world.records[me.slot], world.words[me.slot].sent
            cells = world.cells
            for block in record.grants[sent:]:
                cells = put(cells, block, Cell())
            kept = put(world.records, me.slot, record._replace(grants=record.grants[:sent]))
            yield f"r{room}: its blocks without rows are free", now(world._replace(cells=cells, records=kept), "live")
        elif me.at == "views":
            waits = self.setting.keeps_views and room == 0 and world.requests[1].at not in ("over", "quarantine")
            if not waits:
                after = self.shut(world, me)
                yield f"r{room}: releases", self.over(self.moved(after, me, FREE, (OWNED, EXPOSED)), room)
        elif me.at == "failed":
            yield from self.failed_steps(world, room, me)
        elif me.at == "quarantine":
            if self.claim_of(world, me).state == SHUT:
                yield f"r{room}: the claim was given back", now(world, "freeing")
        elif me.at == "freeing":
            freed = self.moved(world, me, FREE, (OWNED, EXPOSED, QUARANTINED))
            yield f"r{room}: its blocks are free", self.over(freed, room)

    def over(self, world: World, room: int) -> World:
        requests = put(world.requests, room, Request(at="over"))
        return world._replace(requests=requests, table=put(world.table, room, NOBODY))

    def open(self, world: World, room: int) -> Iterator[Step]:
        taken = {request.slot for request in world.requests}
        free = [slot for slot in range(self.setting.slots) if slot not in taken]
        if not free or any(world.requests[other].at == "new" for other in range(room)):
            return
        slot = free[0]
        epoch = world.words[slot].epoch + 1
        yield (
            f"r{room}: opens slot {slot}, epoch {epoch}",
            world._replace(
                records=put(world.records, slot, Record(room)),
                words=put(world.words, slot, Word(epoch)),
                claims=put(world.claims, slot, Claim(epoch)),
                requests=put(world.requests, room, Request("live", slot, epoch)),
            ),
        )

    def live_steps(self, world: World, room: int, me: Request) -> Iterator[Step]:
        slot, epoch = me.slot, me.epoch
        word, record, claim = world.words[slot], world.records[slot], world.claims[slot]

        def now(after: World, at: str, drained: int = me.drained) -> World:
            return after._replace(requests=put(after.requests, room, me._replace(at=at, drained=drained)))

        if word.phase == SUCCESS:
            yield self.ends_well(world, room, me)
            return
        if word.phase == FAILED:
            yield f"r{room}: sees Failed", now(world, "failed")
            return
        if world.aborts:
            failed = self.raised(world, slot, epoch, FAILED, word.sent)
            if failed is not None:
                yield f"r{room}: aborts", now(failed, "failed")._replace(aborts=world.aborts - 1)
        if me.drained < word.sent:
            block = record.grants[me.drained]
            if world.rows[block] != (room, me.drained, True):
                yield f"r{room}: drains", world._replace(fault=f"torn: r{room} reads {world.rows[block]}")
            else:
                freed = world._replace(cells=put(world.cells, block, Cell()))
                yield f"r{room}: drains block {block}, and frees it", now(freed, "live", me.drained + 1)
        if world.table[room] != slot:
            yield f"r{room}: stands in the table", world._replace(table=put(world.table, room, slot))
            return
        owned = [b for b, cell in enumerate(world.cells) if cell == (OWNED, slot, epoch)]
        free = [b for b, cell in enumerate(world.cells) if cell.state == FREE]
        if owned:
            granted = world._replace(
                cells=put(world.cells, owned[0], Cell(EXPOSED, slot, epoch)),
                records=put(world.records, slot, record._replace(grants=(*record.grants, owned[0]))),
            )
            if claim == (epoch, SHUT, NOBODY):
                granted = self.with_claim(granted, slot, Claim(epoch, OPEN))
            yield f"r{room}: exposes block {owned[0]}, and grants it", granted
        elif free and len(record.grants) < self.setting.length:
            yield (
                f"r{room}: takes block {free[0]}",
                world._replace(cells=put(world.cells, free[0], Cell(OWNED, slot, epoch))),
            )
        may_withdraw = self.setting.withdrawals and self.rules.r34_a_grant_without_rows_is_withdrawn
        if may_withdraw and world.withdrawals and len(record.grants) > word.sent and claim == (epoch, OPEN, NOBODY):
            withdrawn = now(self.shut(world, me), "withdrawing")
            yield (
                f"r{room}: withdraws its grant",
                withdrawn._replace(withdrawals=world.withdrawals - (world.withdrawals > 0)),
            )

    def ends_well(self, world: World, room: int, me: Request) -> Step:
        record = world.records[me.slot]
        for k in range(me.drained, self.setting.length):
            if world.rows[record.grants[k]] != (room, k, True):
                fault = f"torn: r{room} has Success with {world.rows[record.grants[k]]} for its block {k}"
                return f"r{room}: sees Success", world._replace(fault=fault)
        after = world
        if self.setting.keeps_views and room == 0 and self.rules.r35_the_last_block_is_not_lent:
            after = self.moved(self.shut(world, me), me, FREE, (OWNED, EXPOSED))  # there is one block: it is copied out
        requests = put(after.requests, room, me._replace(at="views", drained=self.setting.length))
        return f"r{room}: pops its rows", after._replace(requests=requests)

    def failed_steps(self, world: World, room: int, me: Request) -> Iterator[Step]:
        claim = self.claim_of(world, me)

        def now(after: World, at: str) -> World:
            return after._replace(requests=put(after.requests, room, me._replace(at=at)))

        if not self.rules.r30_revoked_before_freed:
            freed = self.moved(world, me, FREE, (OWNED, EXPOSED))
            yield f"r{room}: its blocks are free, the claim is {claim.state}", self.over(freed, room)
        elif claim.state == WRITING:
            revoked = self.with_claim(world, me.slot, claim._replace(state=REVOKED))
            exposed_to = QUARANTINED if self.rules.r30_revoked_is_quarantined else FREE
            after = self.moved(self.moved(revoked, me, exposed_to, (EXPOSED,)), me, FREE, (OWNED,))
            yield f"r{room}: claim WRITING -> REVOKED", now(after, "quarantine")
        else:
            yield f"r{room}: claim {claim.state} -> SHUT", now(self.shut(world, me), "freeing")

    def kill_scheduler(self, world: World) -> World:
        after = world._replace(scheduler_kills=world.scheduler_kills - 1)
        for room, me in enumerate(world.requests):
            if me.at == "new":
                after = self.over(after, room)
            elif me.at in ("live", "withdrawing", "views"):
                after = self.raised(after, me.slot, me.epoch, FAILED, after.words[me.slot].sent) or after
                after = after._replace(requests=put(after.requests, room, me._replace(at="failed")))
        return after

    # ---- writers

    def writer_steps(self, world: World, t: int, me: Thread) -> Iterator[Step]:
        name = f"w{t}"

        def on(after: World, thread: Thread) -> World:
            return after._replace(threads=put(after.threads, t, thread))

        if me.at == "idle":
            for room in self.setting.threads[t][1]:
                slot = world.table[room]
                if slot != NOBODY and world.claims[slot].state != SHUT and self.makes(world, room):
                    yield f"{name}: finds room {room} in slot {slot}", on(world, Thread("found", room, slot))
        elif me.at == "found":
            yield f"{name}: looks at the claim", on(world, self.look(world, me))
        elif me.at == "looked":
            is_mine = world.records[me.slot].room == me.room or not self.rules.r28_the_room_is_compared
            yield f"{name}: compares the room", on(world, me._replace(at="compared") if is_mine else Thread())
        elif me.at == "compared":
            yield from self.claim_steps(world, t, me)
        elif me.at == "claimed":
            reading = self.read(world, me) if self.rules.r29_reads_behind_the_claim else me
            at = "begin" if reading.block != NOBODY else "raised"
            yield f"{name}: reads block {reading.block} for its rows {reading.k}", on(world, reading._replace(at=at))
        elif me.at == "begin":
            landed = self.land(world, me, (me.room, me.k, False))
            yield f"{name}: copies half of block {me.block}", on(landed, me._replace(at="go on"))
        elif me.at == "go on":
            landed = self.land(world, me, (me.room, me.k, True))
            at = "copied" if self.rules.r32_the_word_before_giving_back else "give back first"
            yield f"{name}: copies the rest of block {me.block}", on(landed, me._replace(at=at))
        elif me.at in ("copied", "given back"):
            phase = SUCCESS if me.k + 1 == self.setting.length else UNENDED
            raised = self.raised(world, me.slot, me.epoch, phase, me.k + 1) or world
            yield f"{name}: raises the word", on(raised, me._replace(at="raised") if me.at == "copied" else Thread())
        elif me.at in ("raised", "give back first"):
            following = Thread() if me.at == "raised" else me._replace(at="given back")
            yield f"{name}: gives the claim back", on(self.give_back(world, t, me), following)

    def makes(self, world: World, room: int) -> bool:
        """Whether the encoder has this room's rows yet."""
        if not self.setting.second_room_first or room == 1:
            return True
        other = world.requests[1]
        has_a_slot = other.slot != NOBODY
        return other.at == "over" or (has_a_slot and world.words[other.slot].phase != UNENDED)

    def look(self, world: World, me: Thread) -> Thread:
        claim = world.claims[me.slot]
        if claim.state == SHUT or (claim.state != OPEN and self.rules.r28_claims_before_it_copies):
            return Thread()
        looked = me._replace(at="looked", epoch=claim.epoch)
        if self.rules.r29_reads_behind_the_claim:
            return looked
        early = self.read(world, looked)
        return early if early.block != NOBODY else Thread()

    def read(self, world: World, me: Thread) -> Thread:
        """Which block of the request is due, and where it goes; NOBODY where none is granted, or all is over."""
        word, grants = world.words[me.slot], world.records[me.slot].grants
        is_due = word.epoch == me.epoch and word.phase == UNENDED and word.sent < len(grants)
        return me._replace(k=word.sent, block=grants[word.sent] if is_due else NOBODY)

    def claim_steps(self, world: World, t: int, me: Thread) -> Iterator[Step]:
        claim = world.claims[me.slot]
        process = self.setting.threads[t][0]
        is_the_same = claim.epoch == me.epoch or not self.rules.r28_the_claim_has_the_epoch
        if not self.rules.r28_claims_before_it_copies:
            after, thread = world, me._replace(at="claimed")
        elif claim.state == OPEN and is_the_same:
            after = self.with_claim(world, me.slot, Claim(claim.epoch, WRITING, process))
            thread = me._replace(at="claimed", epoch=claim.epoch)
        else:
            after, thread = world, Thread()
        yield f"w{t}: {thread.at}", after._replace(threads=put(world.threads, t, thread))

    def give_back(self, world: World, t: int, me: Thread) -> World:
        claim, process = world.claims[me.slot], self.setting.threads[t][0]
        if claim == (me.epoch, WRITING, process):
            return self.with_claim(world, me.slot, Claim(me.epoch, OPEN))
        if claim == (me.epoch, REVOKED, process):
            return self.with_claim(world, me.slot, Claim(me.epoch))
        if self.rules.r31_given_back_by_cas or not self.rules.r28_claims_before_it_copies:
            return world
        return self.with_claim(world, me.slot, Claim(me.epoch))

    # ---- death

    def death_steps(self, world: World) -> Iterator[Step]:
        for process, state in enumerate(world.processes):
            if state == ALIVE and world.kills:
                yield f"process {process} is killed", self.kill(world, process)
            if state == DEAD and not (world.late and self.rules.r33_death_is_the_end_of_its_writes):
                yield f"the claims of process {process} are given back for it", self.bury(world, process)
            if state == BURIED:
                for room, me in enumerate(world.requests):
                    is_its = any(process == other and room in rooms for other, rooms in self.setting.threads)
                    if is_its and me.at == "live" and world.words[me.slot].phase == UNENDED:
                        sent = world.words[me.slot].sent
                        failed = self.raised(world, me.slot, me.epoch, FAILED, sent) or world
                        yield f"r{room}: its encoder is dead, Failed", failed
        for thread in sorted(world.late):
            landed = self.land(world, thread, (thread.room, thread.k, False))
            yield f"a device goes on with block {thread.block}", landed._replace(late=world.late - {thread})
        if world.stops and not world.stopped:
            yield "every writer is stopped for ever", world._replace(stopped=True, stops=0)

    def kill(self, world: World, process: int) -> World:
        late, threads = world.late, world.threads
        for t, (other, _) in enumerate(self.setting.threads):
            if other == process:
                if self.setting.pinned and threads[t].at in ("begin", "go on"):
                    late = late | {threads[t]}
                threads = put(threads, t, Thread())
        processes = put(world.processes, process, DEAD)
        return world._replace(processes=processes, threads=threads, late=late, kills=world.kills - 1)

    def bury(self, world: World, process: int) -> World:
        """Each claim of the dead becomes what the dead would have made of it, had it written nothing more."""
        claims = tuple(
            claim._replace(state=OPEN if claim.state == WRITING else SHUT, writer=NOBODY)
            if claim.state in (WRITING, REVOKED)
            and (claim.writer == process or not self.rules.r33_the_claim_names_its_writer)
            else claim
            for claim in world.claims
        )
        state = ALIVE if process in self.setting.workers else BURIED
        return world._replace(claims=claims, processes=put(world.processes, process, state))


def explore_claims(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `stray` (a write lands in a block of somebody else, or of nobody), `torn`, `word`, or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
