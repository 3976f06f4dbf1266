"""The transfer protocol between an encode node and one destination: every interleaving of a few requests in tiny pools.

Modelled: grants as whole windows under a session, the set-once table they fill, attempts (intended, submitted, landed,
failed), writes that land after they were given up, drains, reports with `tainted`, aborts from both sides with
tombstones and acknowledgements, fences, streaming, staging with READING, a worker or a whole encode node killed, and a
node that is taken for dead and is not. Messages are never forgotten, so any of them may come late, twice, or out of
order, and not receiving it for long is losing it until it is repaired.

Not modelled: several destinations, who waits for a block (`supply_model`), which message belongs to whom
(`identity_model`), messages that are really lost (`repair_model`), rows of a partly staged source block, and the single
steps on a block's cell, a ring or a doorbell, which have models of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from explorer import Finding, explore, put
from phases import FAILED, OPEN, SUCCESS, Word, fell
from transfer_encode import EncodeSide
from transfer_world import SUBMITTED, Cell, Receiver, Rules, Sender, Setting, Step, World


class Model(EncodeSide):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        later = s.streaming or s.sources
        return World(
            receivers=(Receiver(),) * len(s.totals),
            senders=tuple(Sender(ready=0 if later else total) for total in s.totals),
            cells=(None,) * s.blocks,
            rows=((None,) * s.block_rows,) * s.blocks,
            sources=(None,) * s.sources,
            source_owners=(None,) * s.sources,
            kills=s.kills,
            failures=s.failures,
            deadlines=s.deadlines,
            encoder_aborts=s.encoder_aborts,
            spare_fences=s.spare_fences,
            deaths=s.deaths,
        )

    def steps(self, world: World) -> Iterator[Step]:
        for r in self.requests:
            yield from self.receiver_steps(world, r)
            if not world.node_dead:
                yield from self.sender_steps(world, r)
        yield from self.fence_steps(world)
        yield from self.node_steps(world)
        for message in sorted(world.messages):
            if message[0] in ("grant", "abort"):
                if not world.node_dead:
                    yield from self.encode_takes(world, message)
            elif not world.taken_for_dead:
                yield from self.language_takes(world, message)
        for write in dict.fromkeys(world.late):
            if write.session == world.session or not self.rules.r10_new_port:
                rest = list(world.late)
                rest.remove(write)
                yield f"network: a late write of r{write.request} lands in block {write.block}", self.land(
                    world._replace(late=tuple(rest)), write
                )

    def checked_steps(self, world: World) -> Iterator[Step]:
        """Words never decrease, and terminal phases never change (P5, D12)."""
        for label, after in self.steps(world):
            words: list[tuple[str, Word, Word]] = []
            words += [("language", old, new) for old, new in zip(world.receivers, after.receivers, strict=True)]
            words += [("encode", old, new) for old, new in zip(world.senders, after.senders, strict=True)]
            for name, old, new in words:
                if new is not old and (fault := fell(name, old, new)):
                    after = after._replace(fault=fault)
            yield label, after

    # ---- the language side

    def receiver_steps(self, world: World, r: int) -> Iterator[Step]:
        mine, bs = world.receivers[r], self.setting.block_rows
        if mine.phase == OPEN:
            yield from self.grant_steps(world, r, mine)
            if world.deadlines and mine.granted:
                yield f"r{r}: deadline", self.fail_receiver(world._replace(deadlines=world.deadlines - 1), r)
        if mine.storing is not None:
            word, value = mine.storing
            if word == "sent":
                stored = mine._replace(sent=max(mine.sent, value), storing=None)
            else:
                stored = mine._replace(tainted=max(mine.tainted, value), storing=None)
            yield f"r{r}: the language poller stores {word}", world._replace(receivers=put(world.receivers, r, stored))
        if mine.phase != FAILED and mine.held:
            rows = mine.sent
            done = mine.drained
            end = mine.granted if rows == self.setting.totals[r] else rows // bs
            if not self.rules.r3_whole_blocks_are_freed:
                end = min(mine.granted, -(-rows // bs))
            if end > done:
                count = end - done
                yield f"r{r}: drains blocks {mine.held[:count]} at {rows} rows", self.drain(world, r, count)

    def grant_steps(self, world: World, r: int, mine: Receiver) -> Iterator[Step]:
        free = [b for b, cell in enumerate(world.cells) if cell is None]
        missing = self.num_blocks[r] - mine.granted
        due = mine.granted == 0 or self.rules.r5_resume_from_counters or (mine.sent and not mine.resumed)
        first_comes_first = not any(world.receivers[other].granted == 0 for other in range(r)) or mine.granted
        if missing and due and first_comes_first:
            for count in range(1, min(missing, len(free)) + 1):
                blocks = tuple(free[:count])
                cells = world.cells
                for block in blocks:
                    cells = put(cells, block, Cell(r, world.session))
                resumed = mine.granted > 0
                now = mine._replace(granted=mine.granted + count, held=mine.held + blocks, resumed=resumed)
                after = world._replace(cells=cells, receivers=put(world.receivers, r, now))
                yield f"r{r}: grants blocks {blocks} from {mine.granted}", self.send_grant(after, r)
        if self.rules.r10_windows_are_sent_again and any(
            world.cells[b].session < world.session  # type: ignore[union-attr]
            for b in mine.held
        ):
            cells = world.cells
            for block in mine.held:
                cells = put(cells, block, Cell(r, world.session))
            yield (
                f"r{r}: grants its window again under session {world.session}",
                self.send_grant(world._replace(cells=cells), r),
            )

    def send_grant(self, world: World, r: int) -> World:
        mine = world.receivers[r]
        sent = -1 if self.rules.r2_sent_is_not_obeyed else mine.drained * self.setting.block_rows
        message = ("grant", r, mine.drained, mine.held, world.session, sent)
        return world._replace(messages=world.messages | {message})

    def drain(self, world: World, r: int, count: int) -> World:
        """Copy whole blocks out, and free them, or quarantine them where a late write may land."""
        mine, bs = world.receivers[r], self.setting.block_rows
        for i, block in enumerate(mine.held[:count]):
            first = (mine.drained + i) * bs
            for row in range(first, min(first + bs, mine.sent)):
                if world.rows[block][row - first] != (r, row):
                    return world._replace(fault=f"torn: row {row} of r{r} read as {world.rows[block][row - first]}")
        cells = world.cells
        dirty = mine.tainted >= world.session and self.rules.r7_tainted_is_quarantined
        for block in mine.held[:count]:
            cell = cells[block]
            cells = put(cells, block, cell._replace(quarantined=True) if dirty and cell is not None else None)
        return world._replace(cells=cells, receivers=put(world.receivers, r, mine._replace(held=mine.held[count:])))

    def fail_receiver(self, world: World, r: int) -> World:
        """Failed frees nothing: what was exposed is quarantined, and the encode side is asked to stop."""
        mine = world.receivers[r]
        frees = not self.rules.r7_failed_frees_nothing
        if world.taken_for_dead:
            at_once = not self.rules.r12_death_is_no_fence or (
                self.setting.shared_memory and (world.writers_gone or not self.rules.r12_waits_for_the_writers_end)
            )
            frees = frees or at_once
        cells = tuple(
            (None if frees else cell._replace(quarantined=True)) if cell is not None and cell.request == r else cell
            for cell in world.cells
        )
        now = mine._replace(phase=FAILED, held=(), storing=None)
        return world._replace(
            cells=cells, receivers=put(world.receivers, r, now), messages=world.messages | {("abort", r)}
        )

    def language_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, r = message[:2]
        mine = world.receivers[r]
        if kind == "ack":
            tainted = max(mine.tainted, message[2])
            held = any(cell is not None and cell.request == r for cell in world.cells)
            if mine.phase == FAILED and held and (tainted < world.session or tainted > mine.tainted):
                cells = world.cells
                if tainted < world.session:
                    cells = tuple(None if cell is not None and cell.request == r else cell for cell in cells)
                after = world._replace(cells=cells, receivers=put(world.receivers, r, mine._replace(tainted=tainted)))
                yield f"r{r}: takes the acknowledgement (tainted {message[2]})", after
            return
        if mine.phase != OPEN or mine.storing is not None:
            return
        _, _, phase, sent, tainted = message
        label = f"r{r}: takes the report {phase, sent}, tainted {tainted}"
        if phase == FAILED:
            yield label, self.fail_receiver(world, r)
        elif phase == SUCCESS:
            now = mine._replace(phase=SUCCESS, sent=max(mine.sent, sent), tainted=max(mine.tainted, tainted))
            after = world._replace(receivers=put(world.receivers, r, now))
            if mine.granted < self.num_blocks[r] or now.sent < self.setting.totals[r]:
                after = after._replace(fault=f"short: r{r} succeeds with {now.sent} of {self.setting.totals[r]} rows")
            yield label, after
        elif sent > mine.sent or tainted > mine.tainted:
            now = mine._replace(sent=max(mine.sent, sent), tainted=max(mine.tainted, tainted))
            if self.setting.fine_steps and sent > mine.sent and tainted > mine.tainted:
                if self.rules.r6_tainted_is_stored_before_sent:
                    now = now._replace(sent=mine.sent, storing=("sent", sent))
                else:
                    now = now._replace(tainted=mine.tainted, storing=("tainted", tainted))
            yield label, world._replace(receivers=put(world.receivers, r, now))

    # ---- fences and deaths

    def fence_steps(self, world: World) -> Iterator[Step]:
        if world.fencing:
            old = world.session if self.rules.r10_fence_spares_the_new_session else world.session + 1
            cells = tuple(
                None if cell is not None and cell.quarantined and cell.session < old else cell for cell in world.cells
            )
            yield (
                f"fence to session {world.session}: frees what was quarantined",
                world._replace(cells=cells, fencing=False),
            )
            return
        if not self.rules.r11_fence_runs_by_itself or self.setting.shared_memory:
            return
        waiting = [cell for cell in world.cells if cell is not None and cell.quarantined]
        needed = any(world.taken_for_dead or world.receivers[cell.request].tainted >= world.session for cell in waiting)
        if waiting and (needed or world.spare_fences):
            late = world.late
            if self.rules.r10_new_port:
                late = tuple(write for write in late if write.session > world.session)
            spare = world.spare_fences - (not needed)
            yield f"fence: session {world.session + 1} begins", world._replace(
                session=world.session + 1, fencing=True, late=late, spare_fences=spare
            )

    def node_steps(self, world: World) -> Iterator[Step]:
        if world.kills and any(sender.attempts for sender in world.senders):
            yield "the worker is killed, and started again", self.kill_worker(world)._replace(kills=world.kills - 1)
        if world.deaths and not world.node_dead:
            dead = self.kill_worker(world)
            senders = tuple(sender._replace(staged=(), publishing=None) for sender in dead.senders)
            yield "the encode node dies", dead._replace(
                senders=senders,
                deaths=world.deaths - 1,
                node_dead=True,
                writers_gone=True,
                source_owners=(None,) * self.setting.sources,
            )
        if world.node_dead and not world.taken_for_dead:
            yield "the encode node is declared dead", self.declare_dead(world)
        elif world.deaths and not world.taken_for_dead:
            yield "the encode node is taken for dead", self.declare_dead(world)
        if world.taken_for_dead and self.setting.shared_memory and world.writers_gone:
            cells = tuple(None if cell is not None and cell.quarantined else cell for cell in world.cells)
            if cells != world.cells:
                yield "the language side sees that no writer is left", world._replace(cells=cells)

    def declare_dead(self, world: World) -> World:
        world = world._replace(taken_for_dead=True)
        for r in self.requests:
            if world.receivers[r].phase == OPEN:
                world = self.fail_receiver(world, r)
        return world

    def kill_worker(self, world: World) -> World:
        """What was under way may still land from the kernel's buffers, unless it was a copy through shared memory."""
        senders, late = list(world.senders), list(world.late)
        for r, sender in enumerate(world.senders):
            staged = tuple((k, source, False) for k, source, _ in sender.staged)
            sender = sender._replace(staged=staged, attempts=())
            for attempt in world.senders[r].attempts:
                if attempt.at == SUBMITTED and not self.setting.shared_memory:
                    late.append(attempt._replace(at=SUBMITTED, source=None))
                if self.rules.r6_death_taints and not self.setting.shared_memory:
                    sender = sender._replace(tainted=max(sender.tainted, attempt.session))
            senders[r] = sender
        late = [write._replace(source=None) for write in late]
        after = world._replace(senders=tuple(senders), late=tuple(sorted(late, key=repr)))
        return self.told(after, *(r for r in self.requests if senders[r].tainted != world.senders[r].tainted))

    # ---- what holds

    def is_over(self, world: World) -> bool:
        ended = all(receiver.phase for receiver in world.receivers) and (
            world.node_dead or all(sender.phase for sender in world.senders)
        )
        if self.setting.all_succeed and any(receiver.phase != SUCCESS for receiver in world.receivers):
            return False
        return ended and not any(world.cells) and all(owner is None for owner in world.source_owners)


def explore_transfer(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `stray`, `torn`, `short`, `word` or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(),
        model.checked_steps,
        violated=lambda world: world.fault,
        goal=model.is_over,
        max_states=max_states,
    )
