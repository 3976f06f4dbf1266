"""Who may take which block, on both sides at once: every interleaving of several requests in pools of one block or two.

Modelled: each request's rows (one a source block, one or more a destination's) at the encoder, source blocks that cache
them, each destination's blocks, grants, writes, drains, and the rules by which a block is given: block 0 of each side
is the reserve, at a destination for a request whose waiting rows fill it or are its last, at a source for a row that a
write needs next; other blocks for rows and grants ahead of their time, which their own client evicts when it is short;
first come first served among those who can use a block; requests of which nothing is known hold no more than a half. A
source belongs to one of several clients, who cannot evict each other's rows. Some encoders may make no row, or stop
behind their first, and some destinations may never grant: the others must end all the same.

Not modelled: faults, messages (what one side knows, the other knows at once), host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

RESERVE = 0


class Destination(NamedTuple):
    """One destination of a request. `drained` counts blocks, which are given back; `held` are those behind them."""

    sent: int = 0
    drained: int = 0
    held: tuple[int, ...] = ()


class Request(NamedTuple):
    """One request: rows the encoder has made, its destinations, and the rows cached in source blocks: (row, block)."""

    ready: int = 0
    destinations: tuple[Destination, ...] = ()
    staged: tuple[tuple[int, int], ...] = ()


World = tuple[Request, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Pools and requests; `clients` says which encoder process each request belongs to."""

    totals: tuple[int, ...] = (1, 1)
    num_destinations: int = 2
    source_blocks: int = 1
    destination_blocks: int = 1
    clients: tuple[int, ...] = (0, 0, 0, 0)
    early_rows: bool = False  # all rows are there from the start
    block_rows: int = 1  # rows of a destination block
    silent: tuple[int, ...] = ()  # requests whose encoder makes no row
    stops: tuple[int, ...] = ()  # requests whose encoder makes one row
    absent: tuple[tuple[int, int], ...] = ()  # (request, destination) that never grants


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of supply; each is True, or is the rule that is broken."""

    r19_rows_flow_on_each_destinations_own_grant: bool = True
    r18_each_destination_is_told_its_own_progress: bool = True
    r21_destination_reserve_for_waiting_rows: bool = True
    r21_destination_reserve_for_rows_that_fill_it: bool = True
    r21_source_reserve_for_heads: bool = True
    r21_source_reserve_is_dropped_after_the_write: bool = True
    r22_a_head_without_rows_stops_nobody: bool = True
    r22_first_come_first_served: bool = True
    r21_a_part_stays_for_those_whose_rows_came: bool = True


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        super().__init__(setting, rules)
        self.destinations = range(setting.num_destinations)

    def initial(self) -> World:
        s = self.setting
        return tuple(Request(total if s.early_rows else 0, (Destination(),) * s.num_destinations) for total in s.totals)

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for r, request in enumerate(world):
            if request.ready < self.num_made(r):
                yield (
                    f"the encoder makes row {request.ready} of r{r}",
                    put(world, r, request._replace(ready=request.ready + 1)),
                )
            yield from self.staging_steps(world, r, request)
            for d in self.destinations:
                yield from self.destination_steps(world, r, request, d)

    def num_made(self, r: int) -> int:
        """How many rows its encoder makes."""
        return 0 if r in self.setting.silent else 1 if r in self.setting.stops else self.setting.totals[r]

    # ---- destinations

    def granted(self, there: Destination) -> int:
        """How many rows may be there, counted from the first."""
        return (there.drained + len(there.held)) * self.setting.block_rows

    def free_at(self, world: World, d: int) -> list[int]:
        held = {block for request in world for block in request.destinations[d].held}
        return [block for block in range(self.setting.destination_blocks) if block not in held]

    def may_have(self, world: World, r: int, d: int) -> int | None:
        """The block that request r would get now at destination d."""
        there, total = world[r].destinations[d], self.setting.totals[r]
        if self.granted(there) >= total or (r, d) in self.setting.absent:
            return None
        filled = min(self.granted(there) + self.setting.block_rows, total)
        fills = self.rules.r21_destination_reserve_for_rows_that_fill_it
        waits = world[r].ready >= (filled if fills else self.granted(there) + 1)
        is_bound = not world[r].ready and self.rules.r21_a_part_stays_for_those_whose_rows_came
        if is_bound and self.num_unknown(world, d) >= self.setting.destination_blocks / 2:
            return None  # nothing is known of it: a part of the pool stays for others
        for block in reversed(self.free_at(world, d)):
            if block != RESERVE or waits or not self.rules.r21_destination_reserve_for_waiting_rows:
                return block
        return None

    def num_unknown(self, world: World, d: int) -> int:
        """How many blocks of a destination are held by requests of whose encoders nothing has come."""
        return sum(len(request.destinations[d].held) for request in world if not request.ready)

    def hoard(self, world: World) -> str | None:
        """What must never be: that requests whose encoders have not come hold more than half of a pool of several."""
        if not world:
            return "unfair"  # no world is left where a later request was served first
        blocks = self.setting.destination_blocks
        return (
            "hoard" if blocks > 1 and any(self.num_unknown(world, d) > blocks / 2 for d in self.destinations) else None
        )

    def destination_steps(self, world: World, r: int, request: Request, d: int) -> Iterator[tuple[str, World]]:
        there = request.destinations[d]

        def now(after: Destination) -> World:
            return put(world, r, request._replace(destinations=put(request.destinations, d, after)))

        block = self.may_have(world, r, d)
        if block is not None and self.is_first(world, r, d):
            passed = [other for other in range(r) if self.may_have(world, other, d) is not None]
            label = f"d{d} grants block {block} to r{r}" + (f" before r{passed[0]}" if passed else "")
            yield label, (now(there._replace(held=(*there.held, block))) if not passed else ())
        others = request.destinations
        told = there.sent
        if not self.rules.r18_each_destination_is_told_its_own_progress:
            told = min(other.sent for other in others)
        begin, total = there.drained * self.setting.block_rows, self.setting.totals[r]
        if begin < total and told >= min(begin + self.setting.block_rows, total):
            yield (
                f"d{d} drains rows from {begin} of r{r}",
                now(there._replace(drained=there.drained + 1, held=there.held[1:])),
            )
        flows = self.rules.r19_rows_flow_on_each_destinations_own_grant or all(self.granted(other) for other in others)
        if flows and there.sent < self.granted(there) and any(row == there.sent for row, _ in request.staged):
            yield f"row {there.sent} of r{r} is written to d{d}", now(there._replace(sent=there.sent + 1))

    def is_first(self, world: World, r: int, d: int) -> bool:
        """First come, first served, among those who could be given a block now."""
        for other in range(r):
            if not self.rules.r22_a_head_without_rows_stops_nobody:
                if self.granted(world[other].destinations[d]) < self.setting.totals[other]:
                    return False
            elif self.rules.r22_first_come_first_served and self.may_have(world, other, d) is not None:
                return False
        return True

    # ---- the source

    def heads(self, request: Request) -> set[int]:
        """The rows that some destination needs next, and has a block for."""
        return {there.sent for there in request.destinations if there.sent < min(request.ready, self.granted(there))}

    def wanted(self, request: Request) -> set[int]:
        """The rows that some destination has a block for and has yet to get."""
        return {
            row
            for there in request.destinations
            for row in range(there.sent, min(request.ready, self.granted(there)))
        }

    def staging_steps(self, world: World, r: int, request: Request) -> Iterator[tuple[str, World]]:
        used = {block for other in world for _, block in other.staged}
        free = [block for block in range(self.setting.source_blocks) if block not in used]
        staged = {row for row, _ in request.staged}
        heads = self.heads(request)
        for row in sorted(self.useful(request) - staged):
            for block in free:
                if block != RESERVE or row in heads or not self.rules.r21_source_reserve_for_heads:
                    yield (
                        f"row {row} of r{r} is staged in {block}",
                        self.with_staged(world, r, (*request.staged, (row, block))),
                    )
        for entry in request.staged:
            row, block = entry
            reserve_over = block == RESERVE and row not in heads
            reserve_over &= (
                self.rules.r21_source_reserve_for_heads and self.rules.r21_source_reserve_is_dropped_after_the_write
            )
            written = all(there.sent > row for there in request.destinations)
            evicted = row not in self.wanted(request) and self.is_short(world, r)
            if reserve_over or written or evicted:
                rest = tuple(other for other in request.staged if other != entry)
                yield f"row {row} of r{r} is dropped from {block}", self.with_staged(world, r, rest)

    def useful(self, request: Request) -> set[int]:
        """What may be cached: rows with a block waiting for them, or the row behind the slowest, ahead of its grant."""
        slowest = min(there.sent for there in request.destinations)
        return self.wanted(request) | ({slowest} if slowest < request.ready else set())

    def is_short(self, world: World, r: int) -> bool:
        """Whether a request of the same client needs a block for a head, and can have none."""
        used = {block for other in world for _, block in other.staged}
        if len(used) < self.setting.source_blocks:
            return False
        mine = self.setting.clients[r]
        return any(
            self.setting.clients[other] == mine and self.heads(needy) - {row for row, _ in needy.staged}
            for other, needy in enumerate(world)
        )

    def with_staged(self, world: World, r: int, staged: tuple[tuple[int, int], ...]) -> World:
        return put(world, r, world[r]._replace(staged=tuple(sorted(staged))))

    def is_over(self, world: World) -> bool:
        stopped = {*self.setting.silent, *self.setting.stops, *(r for r, _ in self.setting.absent)}
        return bool(world) and all(
            there.drained * self.setting.block_rows >= self.setting.totals[r]
            for r, request in enumerate(world)
            if r not in stopped
            for there in request.destinations
        )



def explore_supply(setting: Setting, rules: Rules | None = None, max_states: int = 200_000) -> Finding:
    """Explore one setting; a fault is `stuck` (some request can never have all its rows), `unfair` (one was passed
    over) or `hoard`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(),
        model.steps,
        violated=model.hoard,
        goal=model.is_over,
        max_states=max_states,
    )
