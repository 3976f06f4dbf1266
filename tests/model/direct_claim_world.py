"""What the model of claims works on: the words, blocks, requests and writers of `direct_claim_model`, and the ways in
which both sides move them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Ruled, put
from phases import OPEN as UNENDED

NOBODY: Final = -1
FREE, OWNED, EXPOSED, QUARANTINED = "free", "owned", "exposed", "quarantined"
SHUT, OPEN, WRITING, REVOKED = "SHUT", "OPEN", "WRITING", "REVOKED"
ALIVE, DEAD, BURIED = "alive", "dead", "buried"


class Cell(NamedTuple):
    """The owner of a block: a slot and its epoch."""

    state: str = FREE
    slot: int = NOBODY
    epoch: int = 0


class Word(NamedTuple):
    """A slot's status word; it only increases."""

    epoch: int = 0
    phase: int = UNENDED
    sent: int = 0  # blocks


class Claim(NamedTuple):
    epoch: int = 0
    state: str = SHUT
    writer: int = NOBODY


class Record(NamedTuple):
    """What stands in a slot: its room, and the blocks that it was granted, in the order of its rows."""

    room: int = NOBODY
    grants: tuple[int, ...] = ()


class Request(NamedTuple):
    """The language side of one room. `at` is new, live, withdrawing, views, failed, quarantine, freeing or over."""

    at: str = "new"
    slot: int = NOBODY
    epoch: int = 0
    drained: int = 0


class Thread(NamedTuple):
    """A thread of a writer, and what it has read: its room, slot and epoch, and which block of the request."""

    at: str = "idle"
    room: int = NOBODY
    slot: int = NOBODY
    epoch: int = 0
    k: int = 0
    block: int = NOBODY


Content = tuple[int, int, bool]  # room, which block of it, and whether it is all of it


class World(NamedTuple):
    cells: tuple[Cell, ...]
    rows: tuple[Content | None, ...]
    words: tuple[Word, ...]
    claims: tuple[Claim, ...]
    records: tuple[Record, ...]
    table: tuple[int, ...]  # room -> slot: where writers find it
    requests: tuple[Request, ...]
    threads: tuple[Thread, ...]
    processes: tuple[str, ...]
    late: frozenset[Thread] = frozenset()  # copies that a device goes on with
    stopped: bool = False
    kills: int = 0
    stops: int = 0
    scheduler_kills: int = 0
    aborts: int = 0
    withdrawals: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    slots: int = 2
    blocks: int = 1
    length: int = 1  # of each of the two requests, in blocks
    threads: tuple[tuple[int, tuple[int, ...]], ...] = ((0, (0, 1)),)  # of each: its process, the rooms that it writes
    workers: frozenset[int] = frozenset()  # processes whose death fails no request, and which come back
    kills: int = 0
    stops: int = 0
    scheduler_kills: int = 0
    aborts: int = 0
    withdrawals: int = 0  # -1: as often as it may
    pinned: bool = False  # the writers' devices know the payload
    second_room_first: bool = False  # the encoder makes the rows of room 1 before those of room 0
    keeps_views: bool = False  # the scheduler keeps what it has of room 0 until room 1 is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r28_claims_before_it_copies: bool = True  # by CAS; else it only looks
    r28_the_claim_has_the_epoch: bool = True
    r28_the_room_is_compared: bool = True  # between the look at the claim and the CAS
    r29_reads_behind_the_claim: bool = True  # which rows are due, and where they go
    r30_revoked_before_freed: bool = True
    r30_revoked_is_quarantined: bool = True
    r31_given_back_by_cas: bool = True
    r32_the_word_is_moved_by_cas: bool = True
    r32_the_word_before_giving_back: bool = True
    r33_the_claim_names_its_writer: bool = True
    r33_death_is_the_end_of_its_writes: bool = True
    r34_a_grant_without_rows_is_withdrawn: bool = True
    r35_the_last_block_is_not_lent: bool = True


class Words(Ruled[Setting, Rules]):
    """The steps on shared words that several of the model's actors take."""

    def raised(self, world: World, slot: int, epoch: int, phase: int, sent: int) -> World | None:
        """The word moved up by CAS; None where it is of another epoch, has ended, or is there already."""
        old, new = world.words[slot], Word(epoch, phase, sent)
        ended = old.epoch == epoch and old.phase != UNENDED
        if self.rules.r32_the_word_is_moved_by_cas and (old.epoch != epoch or ended or new <= old):
            return None
        fault = f"word: slot {slot} goes from {old} to {new}" if new < old or (ended and new != old) else None
        return world._replace(words=put(world.words, slot, new), fault=fault)

    def with_claim(self, world: World, slot: int, claim: Claim) -> World:
        return world._replace(claims=put(world.claims, slot, claim))

    def moved(self, world: World, request: Request, to: str, only: tuple[str, ...]) -> World:
        """The request's blocks that are in one of these states, all of them to another."""
        key = (request.slot, request.epoch)
        after = Cell(to, *key) if to != FREE else Cell()
        cells = tuple(after if c.state in only and (c.slot, c.epoch) == key else c for c in world.cells)
        return world._replace(cells=cells)

    def land(self, world: World, thread: Thread, content: Content) -> World:
        """A write lands; it must be in a block that waits for it, or that nobody has (quarantine)."""
        cell = world.cells[thread.block]
        if cell.state not in (EXPOSED, QUARANTINED) or cell[1:] != (thread.slot, thread.epoch):
            return world._replace(fault=f"stray: room {thread.room} writes into block {thread.block}, which is {cell}")
        return world._replace(rows=put(world.rows, thread.block, content))

    def claim_of(self, world: World, me: Request) -> Claim:
        claim = world.claims[me.slot]
        return claim if claim.epoch == me.epoch else Claim(me.epoch)

    def shut(self, world: World, me: Request) -> World:
        """OPEN -> SHUT."""
        claim = self.claim_of(world, me)
        return self.with_claim(world, me.slot, Claim(me.epoch)) if claim.state == OPEN else world
