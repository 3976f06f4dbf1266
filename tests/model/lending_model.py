"""Results that are views of a pool's blocks, and schedulers that keep them until all of theirs have come: who may lend,
who has a result that is drained just when it is popped, and what becomes of rows that are read as they land.

Modelled: requests of one row a block in the pool of one language node, the slots that they hold, two schedulers whose
library threads grant, drain and lend, each popping and releasing in a thread of its own, an encoder that stops with
blocks ahead of its rows, and the death of a scheduler. A look and the lending that follows it are two steps, so two
schedulers cross. A streamed request is marked, and lent then; one that fails has its status raised, and its poller
looks for the mark then.

Not modelled: messages and writes (a row lands where it was granted), runs, host memory, the order of grants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from explorer import Finding, Ruled, explore, put

RESERVE = 0
IN_BLOCKS = ("looked", "marked", "shown", "ended", "moving", "views")  # lent, or about to be
SHOWN = ("shown", "ended", "moving", "drained", "views")  # its scheduler may look at what it has `seen`
WITH_SLOT = ("flows", *IN_BLOCKS)


class Request(NamedTuple):
    """`blocks` are its cells; `seen`, which its scheduler looks at; `moves`, that the library is draining its result;
    `failed`, that its word says so, or that its poller has seen to it.
    """

    state: str = "waits"
    blocks: tuple[int, ...] = ()
    drained: int = 0
    seen: tuple[int, ...] = ()
    moves: bool = False
    is_marked: bool = False
    failed: str = ""  # or "said", or "served"


World = tuple[Request, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Requests of two schedulers, the pool, and the slots."""

    totals: tuple[int, ...] = (1, 1, 1)
    schedulers: tuple[int, ...] = (0, 0, 1)
    num_blocks: int = 3
    num_slots: int = 4
    stopped: tuple[int, ...] = ()  # requests whose encoder has stopped: they take blocks, and no row comes
    mortal: bool = False  # scheduler 1 may die
    streamed: tuple[int, ...] = ()  # requests whose rows are read as they land
    failing: tuple[int, ...] = ()  # requests that may fail on their way


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rule, by its parts; each is True, or is the part that is missing."""

    r35_the_reserve_is_never_lent: bool = True
    r35_a_quarter_is_never_lent: bool = True
    r35_half_of_the_slots_are_never_lent: bool = True
    r35_who_takes_it_out_has_it: bool = True
    r35_a_result_keeps_its_slot: bool = True
    r82_what_was_shown_stays: bool = True
    r82_marked_before_the_look: bool = True
    r82_a_failure_leaves_what_is_marked: bool = True


class Model(Ruled[Setting, Rules]):
    """The steps of one world."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        super().__init__(setting, rules)
        self.quarter = setting.num_blocks // 4 + 1
        kinds = [(owner, setting.totals[r], r in setting.stopped) for r, owner in enumerate(setting.schedulers)]
        alike = ([r for r, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds))
        self.alike = [requests for requests in alike if len(requests) > 1]

    def free(self, world: World) -> list[int]:
        held = {block for request in world for block in request.blocks}
        return [block for block in range(self.setting.num_blocks) if block not in held]

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Requests of one scheduler that want as many rows are alike: which of them is which is no other state."""
        for label, after in self.all_steps(world):
            ordered = list(after)
            for requests in self.alike:
                for r, request in zip(requests, sorted(after[r] for r in requests), strict=True):
                    ordered[r] = request
            yield label, tuple(ordered)

    def all_steps(self, world: World) -> Iterator[tuple[str, World]]:
        for r, request in enumerate(world):
            for steps in (self.library_steps(world, r, request), self.failure_steps(r, request)):
                for label, after in steps:
                    yield f"r{r} {label}", put(world, r, after)
            if request.state == "ended":
                yield f"r{r} is popped", put(world, r, request._replace(state="views", seen=request.blocks))
            elif request.state == "drained":
                yield f"r{r} is popped", put(world, r, request._replace(state="copy"))
        for scheduler in set(self.setting.schedulers):
            yield from self.scheduler_steps(world, scheduler)

    def library_steps(self, world: World, r: int, request: Request) -> Iterator[tuple[str, Request]]:
        total, stops, rules = self.setting.totals[r], r in self.setting.stopped, self.rules
        free = self.free(world)
        if request.failed:
            if request.state == "marked" and not rules.r82_marked_before_the_look:
                yield "is shown, for it had not failed at the look", request._replace(state="shown")
            elif request.failed == "served" and request.state != "shown":
                yield "is over, and was never shown", Request(state="over")
        elif request.state == "waits":
            if sum(other.state in WITH_SLOT for other in world) < self.setting.num_slots:
                yield "opens", request._replace(state="flows")
        elif request.state == "flows":
            if request.drained + len(request.blocks) < total:
                others = [block for block in free if block != RESERVE][:1]  # which are alike
                for block in [RESERVE, *others] if RESERVE in free and not stops and not request.blocks else others:
                    yield f"is granted {block}", request._replace(blocks=(*request.blocks, block))
            if request.blocks and not stops:
                rest, drained = request.blocks[1:], request.drained + 1
                state = "drained" if drained == total else "flows"
                yield "is drained", request._replace(blocks=rest, drained=drained, state=state)
                if len(request.blocks) == total and self.may_lend(world, request):
                    yield "may be lent", request._replace(state="looked")
                    if r in self.setting.streamed:
                        is_marked = rules.r82_marked_before_the_look
                        yield "is marked", request._replace(state="marked", seen=request.blocks, is_marked=is_marked)
        elif request.state == "looked":
            yield "is lent", request._replace(state="ended")
        elif request.state == "marked":  # and has not failed
            yield "is shown", request._replace(state="shown", is_marked=True)
        elif request.state == "shown":
            yield "ends", request._replace(state="ended")
        elif request.state == "ended" and not request.moves and not (request.seen and rules.r82_what_was_shown_stays):
            state = "moving" if rules.r35_who_takes_it_out_has_it else "ended"
            yield "is to be drained", request._replace(state=state, moves=True)
        elif request.moves:
            state = "drained" if request.state in ("moving", "ended") else request.state
            yield "was drained", request._replace(state=state, blocks=(), moves=False)

    def failure_steps(self, r: int, request: Request) -> Iterator[tuple[str, Request]]:
        if r in self.setting.failing and not request.failed and request.state in ("flows", "marked", "shown"):
            yield "fails", request._replace(failed="said")
        elif request.failed == "said":
            stays = request.is_marked and self.rules.r82_a_failure_leaves_what_is_marked
            yield "is served by its poller", request._replace(failed="served", blocks=request.blocks if stays else ())
        elif request.failed == "served" and request.state == "shown":
            yield "is released", Request(state="over")

    def may_lend(self, world: World, request: Request) -> bool:
        rules, lent = self.rules, sum(other.state in IN_BLOCKS for other in world)
        return (
            (RESERVE not in request.blocks or not rules.r35_the_reserve_is_never_lent)
            and (len(self.free(world)) >= self.quarter or not rules.r35_a_quarter_is_never_lent)
            and (lent < self.setting.num_slots // 2 or not rules.r35_half_of_the_slots_are_never_lent)
        )

    def scheduler_steps(self, world: World, scheduler: int) -> Iterator[tuple[str, World]]:
        own = [r for r, owner in enumerate(self.setting.schedulers) if owner == scheduler]
        wanted = [r for r in own if r not in self.setting.stopped and not world[r].failed and world[r].state != "over"]
        if wanted and all(world[r].state in ("views", "copy") for r in wanted):
            released = world
            for r in wanted:
                released = put(released, r, Request(state="over"))
            yield f"scheduler {scheduler} has all, and releases them", released
        if self.setting.mortal and scheduler == 1 and all(world[r].state != "dead" for r in own):
            after = world
            for r in own:
                leaked = world[r].state in IN_BLOCKS and not self.rules.r35_a_result_keeps_its_slot
                after = put(after, r, Request(state="dead", blocks=world[r].blocks if leaked else ()))
            yield f"scheduler {scheduler} dies, and what its slots lead to is freed", after

    def violated(self, world: World) -> str | None:
        for r, request in enumerate(world):
            if request.state in SHOWN and request.seen not in ((), request.blocks):
                return f"torn: r{r} looks at blocks that are not its own"
        lent = sum(len(request.blocks) for request in world if request.state in IN_BLOCKS)
        return "hoard" if lent > self.setting.num_blocks - self.quarter else None

    def is_over(self, world: World) -> bool:
        return all(
            request.state == "over" or (request.state == "dead" and not request.blocks)
            for r, request in enumerate(world)
            if r not in self.setting.stopped
        )


def explore_lending(setting: Setting, rules: Rules | None = None, max_states: int = 300_000) -> Finding:
    """Explore one setting; a fault is `stuck` (a result can never come), `hoard` or `torn`."""
    model = Model(setting, rules or Rules())
    first = (Request(),) * len(setting.totals)
    return explore(first, model.steps, violated=model.violated, goal=model.is_over, max_states=max_states)
