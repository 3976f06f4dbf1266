"""The encode side of the model of transfers (`transfer_model`): its senders, attempts, staging and reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from explorer import Ruled, put
from phases import FAILED, OPEN, SUCCESS
from transfer_world import (
    BROKEN,
    DONE,
    INTENDED,
    LANDED,
    NEVER,
    SUBMITTED,
    Attempt,
    Rules,
    Sender,
    Setting,
    Step,
    World,
)


class EncodeSide(Ruled[Setting, Rules]):
    """The steps of the encode node under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        super().__init__(setting, rules)
        self.requests = range(len(setting.totals))
        self.num_blocks = [-(-total // setting.block_rows) for total in setting.totals]

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
        if mine.phase == OPEN and len(mine.attempts) < self.setting.attempts:
            yield from self.submit_steps(world, r, mine)
        if not mine.attempts and mine.abort_asked and mine.phase != OPEN:
            yield f"r{r}: nothing is under way, the abort is acknowledged", self.acknowledge(world, r)
        for i, attempt in enumerate(mine.attempts):
            yield from self.attempt_steps(world, r, i, attempt)

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
        row = mine.attempts[-1].end if mine.attempts and self.setting.attempts > 1 else mine.sent
        if mine.phase == OPEN and row < mine.ready and row not in staged:
            for source in [b for b, owner in enumerate(world.source_owners) if owner is None][:1]:
                after = self.with_sender(world, r, mine._replace(staged=(*mine.staged, (row, source, False))))
                yield f"r{r}: stages row {row} in source block {source}", after._replace(
                    sources=put(world.sources, source, (r, row)),
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
        first = mine.attempts[-1].end if mine.attempts else mine.sent
        if first >= limit or any(other.void or other.at in (INTENDED, BROKEN) for other in mine.attempts):
            return
        k = first // bs
        block, session = mine.grants[k]
        if mine.attempts and session != mine.attempts[0].session:
            return
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
        attempt = Attempt(INTENDED, r, first, min(limit, (k + 1) * bs), block, session, source)
        if not self.setting.fine_steps:
            attempt = attempt._replace(at=SUBMITTED)
        yield f"r{r}: the worker begins rows [{attempt.first}, {attempt.end}) into block {block}", self.with_sender(
            world, r, mine._replace(attempts=(*mine.attempts, attempt), staged=staged)
        )

    def attempt_steps(self, world: World, r: int, i: int, attempt: Attempt) -> Iterator[Step]:
        mine = world.senders[r]
        rows = f"rows [{attempt.first}, {attempt.end}) of r{r}"
        if attempt.at == INTENDED:
            yield (
                f"{rows} are submitted",
                self.now_at(world, r, i, SUBMITTED),
            )
        elif attempt.at == SUBMITTED:
            passes = attempt.session == world.session or not self.rules.r10_new_port or self.setting.shared_memory
            if passes:
                landed = self.now_at(world, r, i, LANDED)
                yield f"{rows} land in block {attempt.block}", self.land(landed, attempt)
            else:
                after = self.end_attempt(self.void_behind(world, r, i), r, i)
                if not self.rules.r10_fenced_is_no_failure and mine.phase == OPEN:
                    after = self.told(self.with_sender(after, r, after.senders[r]._replace(phase=FAILED)), r)
                yield f"{rows} met a session that is gone: again", after
            if not self.rules.r13_done_is_applied:
                yield f"{rows} are done, says the engine", self.done(self.give_up(world, r, i), r, i)
            if world.failures and passes and not self.setting.shared_memory:
                yield (
                    f"{rows} fail, says the engine",
                    self.break_attempt(world._replace(failures=world.failures - 1), r, i),
                )
        elif attempt.at == LANDED:
            yield f"{rows} are done", self.done(world, r, i)
        elif attempt.at == BROKEN and len(mine.attempts) == 1:  # the others have ended, or it is killed with them
            after = world._replace(
                late=tuple(write._replace(source=None) if write.request == r else write for write in world.late)
            )
            yield "the encode side's engine is started again", self.end_attempt(after, r, i)

    def now_at(self, world: World, r: int, i: int, at: str) -> World:
        mine = world.senders[r]
        return self.with_sender(
            world, r, mine._replace(attempts=put(mine.attempts, i, mine.attempts[i]._replace(at=at)))
        )

    def void_behind(self, world: World, r: int, i: int) -> World:
        """What is behind an attempt that has failed counts no more; what of it was done is over."""
        if not self.rules.r6_nothing_counts_behind_a_failed_one:
            return world
        mine = world.senders[r]
        behind = tuple(other._replace(void=True) for other in mine.attempts[i + 1 :] if other.at != DONE)
        return self.with_sender(world, r, mine._replace(attempts=mine.attempts[: i + 1] + behind))

    def break_attempt(self, world: World, r: int, i: int) -> World:
        """Failed, timed out: it may still land, and still read its source until the engine is started again."""
        after = self.void_behind(self.give_up(world, r, i), r, i)
        mine = after.senders[r]
        attempt = mine.attempts[i]
        if self.rules.r6_failure_taints:
            mine = mine._replace(tainted=max(mine.tainted, attempt.session))
        if self.setting.sources and self.rules.r8_broken_attempt_keeps_its_source:
            return self.told(self.now_at(self.with_sender(after, r, mine), r, i, BROKEN), r)
        return self.told(self.end_attempt(self.with_sender(after, r, mine), r, i), r)

    def give_up(self, world: World, r: int, i: int) -> World:
        return world._replace(late=tuple(sorted((*world.late, world.senders[r].attempts[i]), key=repr)))

    def let_go(self, world: World, r: int, i: int) -> World:
        """Its source block is not read any more."""
        mine = world.senders[r]
        source = mine.attempts[i].source
        staged = tuple((k, s, reading and s != source) for k, s, reading in mine.staged)
        return self.with_sender(world, r, mine._replace(staged=staged))

    def end_attempt(self, world: World, r: int, i: int) -> World:
        after = self.let_go(world, r, i)
        mine = after.senders[r]
        return self.with_sender(after, r, mine._replace(attempts=mine.attempts[:i] + mine.attempts[i + 1 :]))

    def done(self, world: World, r: int, i: int) -> World:
        """`sent` rises over those at the front that are done; one behind them waits."""
        attempt = world.senders[r].attempts[i]
        if attempt.void:
            return self.end_attempt(world, r, i)
        after = self.now_at(self.let_go(world, r, i), r, i, DONE)
        mine = after.senders[r]
        sent, attempts = mine.sent, mine.attempts
        if not self.rules.r6_sent_rises_in_order:
            sent, attempts = max(sent, attempt.end), attempts[:i] + attempts[i + 1 :]
        while attempts and attempts[0].at == DONE:
            sent, attempts = max(sent, attempts[0].end), attempts[1:]
        after = self.with_sender(after, r, mine._replace(attempts=attempts))
        if mine.phase != OPEN or sent == mine.sent:
            return after
        return self.told(self.with_sender(after, r, after.senders[r]._replace(sent=sent)), r)

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
