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
from dataclasses import dataclass
from typing import Any, NamedTuple

from explorer import Finding, explore, put
from phases import FAILED, OPEN, SUCCESS, Word, fell

INTENDED, SUBMITTED, LANDED, BROKEN = "intended", "submitted", "landed", "broken"
NEVER = -1  # no session


class Cell(NamedTuple):
    """A destination block's owner: the request, the session under which it was exposed last, whether it is
    quarantined.
    """

    request: int
    session: int
    quarantined: bool = False


class Receiver(NamedTuple):
    """The language side of one request.

    `held` are its blocks, from the first that is not drained; `storing` is half a report.
    """

    phase: int = OPEN
    sent: int = 0
    tainted: int = NEVER
    granted: int = 0
    held: tuple[int, ...] = ()
    resumed: bool = False
    storing: tuple[str, int] | None = None

    @property
    def drained(self) -> int:
        return self.granted - len(self.held)


class Attempt(NamedTuple):
    """A write of rows [first, end) into one block, under a session; `source` is the block it reads, if any."""

    at: str
    request: int
    first: int
    end: int
    block: int
    session: int
    source: int | None


class Sender(NamedTuple):
    """The encode side of one request.

    `grants` is the table request block -> (block, session), `staged` the cached source blocks.
    """

    phase: int = OPEN
    known: bool = False
    tombstone: bool = False
    ready: int = 0
    sent: int = 0
    tainted: int = NEVER
    grants: tuple[tuple[int, int], ...] = ()
    attempt: Attempt | None = None
    staged: tuple[tuple[int, int, bool], ...] = ()  # (request block, source block, READING)
    abort_asked: bool = False
    publishing: tuple[str, int] | None = None  # half of what a report will say


class World(NamedTuple):
    """Both nodes and the network. `late` are writes whose attempt was given up, and which may yet land."""

    receivers: tuple[Receiver, ...]
    senders: tuple[Sender, ...]
    cells: tuple[Cell | None, ...]
    rows: tuple[tuple[tuple[int, int] | None, ...], ...]  # what stands in each destination block: (request, row)
    sources: tuple[tuple[int, int] | None, ...]  # what stands in each source block: (request, request block)
    source_owners: tuple[int | None, ...]
    late: tuple[Attempt, ...] = ()
    messages: frozenset[tuple[Any, ...]] = frozenset()
    session: int = 0
    fencing: bool = False  # the new session is there, what the old one held is not freed yet
    node_dead: bool = False
    taken_for_dead: bool = False
    writers_gone: bool = False
    kills: int = 0
    failures: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    spare_fences: int = 0
    deaths: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    totals: tuple[int, ...] = (1, 1)  # rows of each request
    blocks: int = 1
    block_rows: int = 1
    sources: int = 0  # source blocks; 0: rows are read from the encoder's own memory
    streaming: bool = False
    shared_memory: bool = False  # the end of a process ends its writes
    fine_steps: bool = False  # reports are read and stored word by word, and a worker may pause before it submits
    kills: int = 0
    failures: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    spare_fences: int = 0
    deaths: int = 0
    all_succeed: bool = False  # nothing that happens here may fail a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r1_grants_are_absolute: bool = True
    r2_sent_is_not_obeyed: bool = True
    r3_whole_blocks_are_freed: bool = True
    r4_success_is_all_rows: bool = True
    r5_resume_from_counters: bool = True
    r6_failure_taints: bool = True
    r6_death_taints: bool = True
    r6_sent_is_read_before_tainted: bool = True
    r6_tainted_is_stored_before_sent: bool = True
    r7_reports_carry_tainted: bool = True
    r7_tainted_is_quarantined: bool = True
    r7_failed_frees_nothing: bool = True
    r8_reading_is_respected: bool = True
    r8_broken_attempt_keeps_its_source: bool = True
    r9_ack_after_the_last_attempt: bool = True
    r10_worker_keeps_to_its_grants_session: bool = True
    r10_new_port: bool = True
    r10_windows_are_sent_again: bool = True
    r10_fence_spares_the_new_session: bool = True
    r10_fenced_is_no_failure: bool = True
    r11_fence_runs_by_itself: bool = True
    r12_death_is_no_fence: bool = True
    r12_waits_for_the_writers_end: bool = True
    r13_done_is_applied: bool = True
    r15_abort_leaves_a_tombstone: bool = True


Step = tuple[str, World]



class Model:
    """The steps of one setting under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting, self.rules = setting, rules
        self.requests = range(len(setting.totals))
        self.num_blocks = [-(-total // setting.block_rows) for total in setting.totals]

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
        if self.rules.r10_windows_are_sent_again and any(world.cells[b].session < world.session for b in mine.held):  # type: ignore[union-attr]
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
        if world.kills and any(sender.attempt is not None for sender in world.senders):
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
            attempt = sender.attempt
            staged = tuple((k, source, False) for k, source, _ in sender.staged)
            sender = sender._replace(staged=staged)
            if attempt is not None:
                if attempt.at == SUBMITTED and not self.setting.shared_memory:
                    late.append(attempt._replace(at=SUBMITTED, source=None))
                sender = sender._replace(attempt=None)
                if self.rules.r6_death_taints and not self.setting.shared_memory:
                    sender = sender._replace(tainted=max(sender.tainted, attempt.session))
            senders[r] = sender
        late = [write._replace(source=None) for write in late]
        after = world._replace(senders=tuple(senders), late=tuple(sorted(late, key=repr)))
        return self.told(after, *(r for r in self.requests if senders[r].tainted != world.senders[r].tainted))

    # ---- the encode side

    def told(self, world: World, *requests: int) -> World:
        """The poller raises the word and reports, in the same step as what it reports (unless steps are fine)."""
        for r in requests:
            sender = world.senders[r]
            if sender.phase == OPEN and self.is_all_sent(sender, r):
                sender = sender._replace(phase=SUCCESS)
            world = world._replace(senders=put(world.senders, r, sender))
            if sender.known and not self.setting.fine_steps:
                tainted = sender.tainted if self.rules.r7_reports_carry_tainted else NEVER
                world = world._replace(messages=world.messages | {("report", r, sender.phase, sender.sent, tainted)})
        return world

    def is_all_sent(self, sender: Sender, r: int) -> bool:
        if self.rules.r4_success_is_all_rows:
            return sender.sent == self.setting.totals[r]
        return 0 < sender.sent == min(sender.ready, len(sender.grants) * self.setting.block_rows)

    def with_sender(self, world: World, r: int, sender: Sender) -> World:
        return world._replace(senders=put(world.senders, r, sender))

    def sender_steps(self, world: World, r: int) -> Iterator[Step]:
        mine = world.senders[r]
        if mine.phase == OPEN:
            if mine.ready < self.setting.totals[r]:
                after = self.with_sender(world, r, mine._replace(ready=mine.ready + 1))
                yield f"r{r}: the encoder gives row {mine.ready}", after
            if world.encoder_aborts and mine.known:
                failed = self.with_sender(world, r, mine._replace(phase=FAILED))
                yield (
                    f"r{r}: the encoder aborts",
                    self.told(failed._replace(encoder_aborts=world.encoder_aborts - 1), r),
                )
        if self.setting.fine_steps and mine.known:
            yield from self.publish_steps(world, r, mine)
        if self.setting.sources:
            yield from self.staging_steps(world, r, mine)
        if mine.attempt is None:
            if mine.phase == OPEN:
                yield from self.submit_steps(world, r, mine)
            if mine.abort_asked and mine.phase != OPEN:
                yield f"r{r}: nothing is under way, the abort is acknowledged", self.acknowledge(world, r)
        else:
            yield from self.attempt_steps(world, r, mine, mine.attempt)

    def publish_steps(self, world: World, r: int, mine: Sender) -> Iterator[Step]:
        """The two words of a report, read one after the other."""
        sent_first = self.rules.r6_sent_is_read_before_tainted
        if mine.publishing is None:
            name = "sent" if sent_first else "tainted"
            value = mine.sent if sent_first else mine.tainted
            yield (
                f"r{r}: the publisher reads {name}",
                self.with_sender(world, r, mine._replace(publishing=(name, value))),
            )
        else:
            sent, tainted = (mine.publishing[1], mine.tainted) if sent_first else (mine.sent, mine.publishing[1])
            phase = mine.phase if mine.phase != SUCCESS or sent == self.setting.totals[r] else OPEN
            after = self.with_sender(world, r, mine._replace(publishing=None))
            yield f"r{r}: the publisher reports", after._replace(
                messages=world.messages | {("report", r, phase, sent, tainted)}
            )

    def staging_steps(self, world: World, r: int, mine: Sender) -> Iterator[Step]:
        """One row a block: stage what is sent next; drop, at any time, what is not being read: somebody else may need
        the block.
        """
        staged = {k for k, _, _ in mine.staged}
        if mine.phase == OPEN and mine.sent < mine.ready and mine.sent not in staged:
            for source in [b for b, owner in enumerate(world.source_owners) if owner is None][:1]:
                after = self.with_sender(world, r, mine._replace(staged=(*mine.staged, (mine.sent, source, False))))
                yield f"r{r}: stages row {mine.sent} in source block {source}", after._replace(
                    sources=put(world.sources, source, (r, mine.sent)),
                    source_owners=put(world.source_owners, source, r),
                )
        for entry in mine.staged:
            k, source, reading = entry
            if not (reading and self.rules.r8_reading_is_respected):
                rest = tuple(other for other in mine.staged if other != entry)
                yield f"r{r}: drops row {k} from source block {source}", self.with_sender(
                    world, r, mine._replace(staged=rest)
                )._replace(source_owners=put(world.source_owners, source, None))

    def submit_steps(self, world: World, r: int, mine: Sender) -> Iterator[Step]:
        bs = self.setting.block_rows
        limit = min(mine.ready, len(mine.grants) * bs, self.setting.totals[r])
        if mine.sent >= limit:
            return
        k = mine.sent // bs
        block, session = mine.grants[k]
        if not self.rules.r10_worker_keeps_to_its_grants_session:
            session = world.session
        if session < world.session:
            return  # the door of that session is gone: a retry for ever, until a newer grant comes
        source, staged = None, mine.staged
        if self.setting.sources:
            held = [entry for entry in staged if entry[0] == k and not entry[2]]
            if not held:
                return
            source = held[0][1]
            staged = tuple((b, s, True) if b == k else (b, s, reading) for b, s, reading in staged)
        attempt = Attempt(INTENDED, r, mine.sent, min(limit, (k + 1) * bs), block, session, source)
        if not self.setting.fine_steps:
            attempt = attempt._replace(at=SUBMITTED)
        yield f"r{r}: the worker begins rows [{attempt.first}, {attempt.end}) into block {block}", self.with_sender(
            world, r, mine._replace(attempt=attempt, staged=staged)
        )

    def attempt_steps(self, world: World, r: int, mine: Sender, attempt: Attempt) -> Iterator[Step]:
        rows = f"rows [{attempt.first}, {attempt.end}) of r{r}"
        if attempt.at == INTENDED:
            yield (
                f"{rows} are submitted",
                self.with_sender(world, r, mine._replace(attempt=attempt._replace(at=SUBMITTED))),
            )
        elif attempt.at == SUBMITTED:
            passes = attempt.session == world.session or not self.rules.r10_new_port or self.setting.shared_memory
            if passes:
                landed = self.with_sender(world, r, mine._replace(attempt=attempt._replace(at=LANDED)))
                yield f"{rows} land in block {attempt.block}", self.land(landed, attempt)
            else:
                after = self.end_attempt(world, r)
                if not self.rules.r10_fenced_is_no_failure and mine.phase == OPEN:
                    after = self.told(self.with_sender(after, r, after.senders[r]._replace(phase=FAILED)), r)
                yield f"{rows} met a session that is gone: again", after
            if not self.rules.r13_done_is_applied:
                yield f"{rows} are done, says the engine", self.done(self.give_up(world, r), r)
            if world.failures and passes and not self.setting.shared_memory:
                yield (
                    f"{rows} fail, says the engine",
                    self.break_attempt(world._replace(failures=world.failures - 1), r),
                )
        elif attempt.at == LANDED:
            yield f"{rows} are done", self.done(world, r)
        elif attempt.at == BROKEN:
            after = world._replace(
                late=tuple(write._replace(source=None) if write.request == r else write for write in world.late)
            )
            yield "the encode side's engine is started again", self.end_attempt(after, r)

    def break_attempt(self, world: World, r: int) -> World:
        """Failed, timed out: it may still land, and still read its source until the engine is started again."""
        mine = world.senders[r]
        attempt = mine.attempt
        assert attempt is not None
        after = self.give_up(world, r)
        if self.rules.r6_failure_taints:
            mine = mine._replace(tainted=max(mine.tainted, attempt.session))
        if self.setting.sources and self.rules.r8_broken_attempt_keeps_its_source:
            mine = mine._replace(attempt=attempt._replace(at=BROKEN))
            return self.told(self.with_sender(after, r, mine), r)
        return self.told(self.end_attempt(self.with_sender(after, r, mine), r), r)

    def give_up(self, world: World, r: int) -> World:
        attempt = world.senders[r].attempt
        assert attempt is not None
        return world._replace(late=tuple(sorted((*world.late, attempt), key=repr)))

    def end_attempt(self, world: World, r: int) -> World:
        mine = world.senders[r]
        assert mine.attempt is not None
        source = mine.attempt.source
        staged = tuple((k, s, reading and s != source) for k, s, reading in mine.staged)
        return self.with_sender(world, r, mine._replace(attempt=None, staged=staged))

    def done(self, world: World, r: int) -> World:
        attempt = world.senders[r].attempt
        assert attempt is not None
        after = self.end_attempt(world, r)
        mine = after.senders[r]
        if mine.phase != OPEN:
            return after
        return self.told(self.with_sender(after, r, mine._replace(sent=max(mine.sent, attempt.end))), r)

    def land(self, world: World, write: Attempt) -> World:
        """The rows arrive, whoever holds the block by now."""
        cell = world.cells[write.block]
        if cell is None or cell.request != write.request:
            owner = "free" if cell is None else f"of r{cell.request}"
            return world._replace(
                fault=f"stray: rows of r{write.request} land in block {write.block}, which is {owner}"
            )
        bs = self.setting.block_rows
        content = list(world.rows[write.block])
        for row in range(write.first, write.end):
            what = (write.request, row) if write.source is None else world.sources[write.source]
            content[row % bs] = what
        return world._replace(rows=put(world.rows, write.block, tuple(content)))

    def acknowledge(self, world: World, r: int) -> World:
        mine = world.senders[r]
        after = self.with_sender(world, r, mine._replace(abort_asked=False))
        return after._replace(messages=world.messages | {("ack", r, mine.tainted)})

    def encode_takes(self, world: World, message: tuple[Any, ...]) -> Iterator[Step]:
        kind, r = message[:2]
        mine = world.senders[r]
        if kind == "grant":
            yield from self.take_grant(world, r, mine, message)
        elif not any(m[0] == "ack" and m[1] == r for m in world.messages) and not mine.abort_asked:
            if not mine.known:
                tombstone = self.rules.r15_abort_leaves_a_tombstone
                phase = FAILED if tombstone else mine.phase
                after = self.with_sender(world, r, mine._replace(tombstone=tombstone, phase=phase))
                yield f"r{r}: an abort of an unknown request comes", self.acknowledge(after, r)
            else:
                now = mine._replace(phase=mine.phase or FAILED, abort_asked=True)
                after = self.with_sender(world, r, now)
                if not self.rules.r9_ack_after_the_last_attempt:
                    after = self.acknowledge(after, r)
                yield f"r{r}: the abort comes", after

    def take_grant(self, world: World, r: int, mine: Sender, message: tuple[Any, ...]) -> Iterator[Step]:
        """The set-once table: an entry at or above `sent` changes only for a newer session, one below never."""
        _, _, first, blocks, session, sent = message
        if mine.phase != OPEN or mine.tombstone:
            return
        grants, sent_block = list(mine.grants), mine.sent // self.setting.block_rows
        if not self.rules.r1_grants_are_absolute:
            end, first = first + len(blocks), sent_block  # "the blocks for the rows from `sent` on"
            if end <= len(grants):
                return
            grants += [(blocks[-1], session)] * (end - len(grants))
        if first > len(grants):
            return
        for i, block in enumerate(blocks):
            k = first + i
            if k >= len(grants):
                grants.append((block, session))
            elif k >= sent_block and (grants[k][1] < session or not self.rules.r1_grants_are_absolute):
                grants[k] = (block, session)
        now = mine._replace(known=True, grants=tuple(grants))
        if not self.rules.r2_sent_is_not_obeyed:
            now = now._replace(sent=sent)
        if now != mine:
            yield f"r{r}: the encode side takes blocks {blocks} from {first} under session {session}", self.with_sender(
                world, r, now
            )

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
