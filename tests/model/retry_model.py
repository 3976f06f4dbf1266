"""A request whose encode node A is lost, or is taken for lost, and which goes on from encode node B at what was
committed.

Modelled: A's grants, attempts and what lands of them late; the failure, at any moment, of a request of which some
blocks are drained, some have landed, and some are being written; the copying of committed rows out of blocks that may
be taken back meanwhile and be given to somebody else; quarantine, acknowledgement, fence and, through shared memory,
the end of A's process; the new request, which begins behind what is kept, in blocks of its own; an encoder at B that
announces another length. A block holds one row.

Not modelled: what a failed attempt does while its node lives (`transfer_model`), who a message is about
(`identity_model`), messages that are lost (`repair_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put
from phases import FAILED, OPEN, SUCCESS

FIRST_SESSION = 0  # all grants of the first request leave under it: a fence comes after its failure
OTHER = -1  # a row of another request
FIRST, SECOND, BYSTANDER = 1, 2, 3  # who holds a block


class Cell(NamedTuple):
    """A destination block's owner, and the session under which it was exposed to it."""

    owner: int
    session: int


class Request(NamedTuple):
    """The language side of one of the two requests: rows below `begin` are here already.

    `held`: from the first block not drained.
    """

    phase: int = OPEN
    begin: int = 0
    granted: int = 0
    sent: int = 0
    held: tuple[int, ...] = ()

    @property
    def drained(self) -> int:
        return self.granted - len(self.held)


class Encode(NamedTuple):
    """`grants`: (block, session) of each request block that it knows, from `begin` on.

    `writing`: the row under way, and where to.
    """

    begin: int = 0
    sent: int = 0
    grants: tuple[tuple[int, int], ...] = ()
    writing: tuple[int, int, int] | None = None  # row, block, session
    is_dead: bool = False
    is_told: bool = False  # that the request was given up


class World(NamedTuple):
    first: Request = Request()
    a: Encode = Encode()
    second: Request | None = None
    b: Encode = Encode()
    cells: tuple[Cell | None, ...] = ()
    rows: tuple[int | None, ...] = ()  # what stands in each block
    host: tuple[int | None, ...] = ()  # what was copied out
    kept: int = 0
    # a block's row was copied after the failure, and it is to be looked whose the block still is
    copied: int | None = None
    is_kept: bool = False  # the copying after the failure is over
    late: tuple[tuple[int, int, int], ...] = ()
    session: int = FIRST_SESSION
    bystanders: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`total` rows, one a block; the encoder at B announces `other_total`."""

    total: int = 2
    other_total: int = 2
    blocks: int = 2
    shared_memory: bool = False  # the end of a process ends its writes
    bystanders: int = 0  # how often another request takes a free block, is written into it, and gives it back


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rule of the retry; each part of it is True, or is broken."""

    r26_begins_behind_what_is_kept: bool = True
    r26_only_what_has_landed_is_kept: bool = True
    r26_a_copy_counts_if_its_block_is_still_ours: bool = True
    r26_the_old_blocks_stay_in_quarantine: bool = True
    r26_the_length_is_that_of_before: bool = True


Step = tuple[str, World]



class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(cells=(None,) * s.blocks, rows=(None,) * s.blocks, host=(None,) * s.total, bystanders=s.bystanders)

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.first_steps(world, world.first)
        yield from self.a_steps(world, world.a)
        yield from self.keep_steps(world, world.first)
        yield from self.end_steps(world)
        if world.second is not None:
            yield from self.second_steps(world, world.second, world.b)
        yield from self.bystander_steps(world)

    # ---- the first request, and A

    def first_steps(self, world: World, mine: Request) -> Iterator[Step]:
        if mine.phase != OPEN:
            return
        if mine.granted < self.setting.total:
            yield from self.grant(world, mine, FIRST)
        if mine.sent < world.a.sent:
            now = mine._replace(sent=world.a.sent, phase=SUCCESS if world.a.sent == self.setting.total else OPEN)
            yield f"first: hears that {now.sent} rows are sent", world._replace(first=now)
        if mine.held and mine.sent > mine.drained:
            yield from self.drain(world, mine, FIRST)
        cells = world.cells
        if not self.rules.r26_the_old_blocks_stay_in_quarantine:
            cells = tuple(None if cell is not None and cell.owner == FIRST else cell for cell in cells)
        yield "first: its encode node is taken for lost", world._replace(first=mine._replace(phase=FAILED), cells=cells)

    def a_steps(self, world: World, a: Encode) -> Iterator[Step]:
        if not a.is_dead:
            yield "A: dies", self.die(world, a)
            if world.first.phase == FAILED and not a.is_told:
                yield "A: is told that the request was given up", world._replace(a=a._replace(is_told=True))
            if a.writing is not None:
                landed = self.land(world, a.writing)
                yield f"A: row {a.writing[0]} lands", landed._replace(a=a._replace(writing=None, sent=a.writing[0] + 1))
            elif not a.is_told and a.sent < len(a.grants):
                yield f"A: submits row {a.sent}", world._replace(a=a._replace(writing=(a.sent, *a.grants[a.sent])))
            if not a.is_told and len(a.grants) < world.first.granted:
                window = tuple((block, FIRST_SESSION) for block in world.first.held)
                yield (
                    "A: learns of the window",
                    world._replace(a=a._replace(grants=a.grants[: world.first.drained] + window)),
                )
        for write in world.late:
            rest = world._replace(late=tuple(other for other in world.late if other != write))
            yield f"network: row {write[0]} lands late in block {write[1]}", self.land(rest, write)

    def die(self, world: World, a: Encode) -> World:
        late = world.late if self.setting.shared_memory or a.writing is None else (*world.late, a.writing)
        return world._replace(a=a._replace(is_dead=True, writing=None), late=late)

    def land(self, world: World, write: tuple[int, int, int]) -> World:
        """A write of A: nothing, once its session is fenced; else it may hit only a block that is kept for the first
        request.
        """
        row, block, session = write
        if session < world.session:
            return world
        cell = world.cells[block]
        if cell is None or cell.owner != FIRST:
            return world._replace(fault=f"stray: row {row} of A lands in block {block}, which belongs to {cell}")
        return world._replace(rows=put(world.rows, block, row))

    # ---- after its failure

    def keep_steps(self, world: World, mine: Request) -> Iterator[Step]:
        """Committed rows are copied out, one block after the other; each copy is of two steps."""
        if mine.phase != FAILED or world.is_kept:
            return
        at = world.kept
        if world.copied is not None:
            cell = world.cells[world.copied]
            if (
                cell is not None and cell.owner == FIRST
            ) or not self.rules.r26_a_copy_counts_if_its_block_is_still_ours:
                yield f"first: its block is still its own: row {at} is kept", world._replace(kept=at + 1, copied=None)
            else:
                yield (
                    f"first: its block was taken back: row {at} is not kept",
                    world._replace(copied=None, is_kept=True),
                )
            return
        end = mine.sent if self.rules.r26_only_what_has_landed_is_kept else mine.granted
        if at < end:
            block = mine.held[at - mine.drained]
            host = put(world.host, at, world.rows[block])
            yield f"first: copies row {at} out of block {block}", world._replace(host=host, copied=block)
            return
        yield "first: all that was committed is kept", world._replace(is_kept=True)

    def end_steps(self, world: World) -> Iterator[Step]:
        """What ends the quarantine of the first request's blocks, and the retry."""
        if world.first.phase != FAILED:
            return
        free = tuple(None if cell is not None and cell.owner == FIRST else cell for cell in world.cells)
        if free != world.cells:
            a = world.a
            if a.is_told and a.writing is None and not a.is_dead:
                yield "language: takes the acknowledgement of A", world._replace(cells=free)
            if self.setting.shared_memory and a.is_dead:
                yield "language: sees the end of A's process", world._replace(cells=free)
            if not self.setting.shared_memory:
                fenced = tuple(
                    None
                    if cell is not None and cell.owner == FIRST
                    else cell and cell._replace(session=world.session + 1)
                    for cell in world.cells
                )
                yield "language: fences the session", world._replace(cells=fenced, session=world.session + 1)
        if world.is_kept and world.second is None:
            begin = min(world.kept, self.setting.total - 1)
            request = Request(begin=begin, granted=begin, sent=0)
            told = begin if self.rules.r26_begins_behind_what_is_kept else 0
            yield (
                f"second: is opened at B from row {begin}",
                world._replace(second=request, b=Encode(begin=told, sent=told)),
            )

    # ---- the second request, and B

    def second_steps(self, world: World, mine: Request, b: Encode) -> Iterator[Step]:
        if mine.phase != OPEN:
            return
        if self.setting.other_total != self.setting.total and self.rules.r26_the_length_is_that_of_before:
            yield "second: hears of another length, and fails", world._replace(second=mine._replace(phase=FAILED))
            return
        if mine.granted < self.setting.total:
            yield from self.grant(world, mine, SECOND)
        if mine.begin == b.begin and b.sent < mine.granted:
            block = mine.held[b.sent - mine.drained]
            rows = put(world.rows, block, b.sent)
            yield f"B: row {b.sent} lands", world._replace(rows=rows, b=b._replace(sent=b.sent + 1))
        if mine.sent < b.sent:
            yield f"second: hears that {b.sent} rows are sent", world._replace(second=mine._replace(sent=b.sent))
        if mine.held and mine.sent > mine.drained:
            yield from self.drain(world, mine, SECOND)
        if mine.sent == min(self.setting.total, self.setting.other_total) and not mine.held:
            after = world._replace(second=mine._replace(phase=SUCCESS))
            if self.setting.other_total != self.setting.total:
                after = after._replace(
                    fault=f"short: {self.setting.total} rows of A's request, {self.setting.other_total} of B's"
                )
            elif world.host != tuple(range(self.setting.total)):
                after = after._replace(fault=f"torn: {world.host} was received")
            yield "second: succeeds", after

    # ---- blocks

    def grant(self, world: World, mine: Request, owner: int) -> Iterator[Step]:
        for block, cell in enumerate(world.cells):
            if cell is None:
                now = mine._replace(granted=mine.granted + 1, held=(*mine.held, block))
                cells = put(world.cells, block, Cell(owner, world.session))
                after = world._replace(cells=cells)
                yield (
                    f"{self.name(owner)}: grants block {block} for row {mine.granted}",
                    self.with_request(after, owner, now),
                )
                return

    def drain(self, world: World, mine: Request, owner: int) -> Iterator[Step]:
        row, block = mine.drained, mine.held[0]
        if world.rows[block] != row:
            yield f"{self.name(owner)}: drains", world._replace(fault=f"torn: row {row} read as {world.rows[block]}")
            return
        after = world._replace(
            cells=put(world.cells, block, None),
            host=put(world.host, row, row),
            kept=row + 1 if owner == FIRST else world.kept,
        )
        yield (
            f"{self.name(owner)}: drains row {row}",
            self.with_request(after, owner, mine._replace(held=mine.held[1:])),
        )

    def with_request(self, world: World, owner: int, request: Request) -> World:
        return world._replace(first=request) if owner == FIRST else world._replace(second=request)

    def name(self, owner: int) -> str:
        return "first" if owner == FIRST else "second"

    def bystander_steps(self, world: World) -> Iterator[Step]:
        for block, cell in enumerate(world.cells):
            if cell is None and world.bystanders:
                taken = put(world.cells, block, Cell(BYSTANDER, world.session))
                rows = put(world.rows, block, OTHER)
                after = world._replace(cells=taken, rows=rows, bystanders=world.bystanders - 1)
                yield f"another request: takes block {block}, and its row lands", after
            if cell is not None and cell.owner == BYSTANDER:
                yield f"another request: gives block {block} back", world._replace(cells=put(world.cells, block, None))

    def is_over(self, world: World) -> bool:
        if world.first.phase == SUCCESS:
            return True
        return world.second is not None and world.second.phase != OPEN and all(cell is None for cell in world.cells)


def explore_retry(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `stray`, `torn`, `short` or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.is_over, max_states=max_states
    )
