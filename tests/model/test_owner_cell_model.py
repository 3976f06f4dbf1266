"""The owner cell of `allocator/native/blocks.h`, every interleaving, with owners killed between any two steps.

One block. Two requests compete for it; the one that owns it grants it to a remote writer, and gives it back, gives up
on it, or is killed. Recovery reclaims what a dead one held, by looking at the cell. The remote writer of a session
may write until it says that it is done, acknowledges an abort, or its session is fenced; a fence frees what is
quarantined under an older session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore

FREE, OWNED, EXPOSED, QUARANTINED = "free", "owned", "exposed", "quarantined"
MAX_GENERATION = 3  # enough for the same owner to come back
MAX_SESSION = 2


class Cell(NamedTuple):
    state: str = FREE
    owner: int = 0
    generation: int = 0


class Owner(NamedTuple):
    at: str = "idle"
    looked: Cell = Cell()


class Fence(NamedTuple):
    at: str = "idle"
    looked: Cell = Cell()
    exposure: int = 0


class Block(NamedTuple):
    """The shared words (cell, exposure), who stands where, and the sessions whose writer may still write here."""

    cell: Cell = Cell()
    exposure: int = 0
    session: int = 1
    owners: tuple[Owner, ...] = (Owner(), Owner())
    fence: Fence = Fence()
    writers: frozenset[int] = frozenset()
    kills: int = 1

    def move(self, owner: int, at: str, looked: Cell | None = None, **changes: object) -> Block:
        owners = tuple(Owner(at, looked or Cell()) if i == owner - 1 else o for i, o in enumerate(self.owners))
        return self._replace(owners=owners, **changes)  # type: ignore[arg-type]

    def granted(self, owner: int, at: str, session: int) -> Block:
        writers = self.writers | {session} if session >= self.session else self.writers  # a fenced one cannot write
        return self.move(owner, at, cell=self.in_state(EXPOSED), writers=writers)

    def freed(self) -> Cell:
        return Cell(generation=self.cell.generation)

    def in_state(self, state: str) -> Cell:
        return self.cell._replace(state=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol, and the ways to get it wrong."""

    compare: bool = True  # take by compare-and-swap from the value that was looked at; else by a store
    generations: bool = True  # each acquire takes the next generation
    exposure_first: bool = True  # the exposure word before the cell and the grant; else after both
    checked_release: bool = True  # only what (slot, epoch) holds; else whatever stands there
    quarantine: bool = True  # recovery quarantines what was exposed; else frees it


def owner_steps(block: Block, owner: int, rules: Rules) -> Iterator[tuple[str, Block]]:
    at, looked = block.owners[owner - 1]
    if at == "idle":
        if block.cell.state == FREE and block.cell.generation < MAX_GENERATION:
            yield "looks, free", block.move(owner, "looked", block.cell)
        if not rules.checked_release:
            yield "releases once more", block._replace(cell=block.freed())
    elif at == "looked":
        if block.cell == looked or not rules.compare:
            taken = Cell(OWNED, owner, looked.generation + rules.generations)
            yield "takes it", block.move(owner, "owner", cell=taken)
        else:
            yield "has lost it", block.move(owner, "idle")
    elif at == "owner":
        yield "releases", block.move(owner, "idle", cell=block.freed())
        if rules.exposure_first:
            yield "stores the exposure", block.move(owner, "exposing", exposure=block.session)
        else:
            yield "exposes and grants", block.granted(owner, "exposing", block.session)
    elif at == "exposing":
        if rules.exposure_first:
            yield "exposes and grants", block.granted(owner, "granted", block.exposure)
        else:
            yield "stores the exposure", block.move(owner, "granted", exposure=max(block.writers, default=0))
    elif at == "granted":
        yield "releases, the writer is done", block.move(owner, "idle", cell=block.freed(), writers=frozenset())
        yield "gives up", block.move(owner, "idle", cell=block.in_state(QUARANTINED))
    elif at == "dead":
        cell = block.cell
        if cell.owner == owner and cell.state == OWNED:
            cell = block.freed()
        elif cell.owner == owner and cell.state == EXPOSED:
            cell = block.in_state(QUARANTINED) if rules.quarantine else block.freed()
        yield "is reclaimed", block.move(owner, "idle", cell=cell)
    if block.kills and at not in ("idle", "dead"):
        yield "is killed", block.move(owner, "dead", kills=block.kills - 1)


def fence_steps(block: Block) -> Iterator[tuple[str, Block]]:
    at, looked, exposure = block.fence
    if at == "idle":
        if block.session < MAX_SESSION:
            live = frozenset(s for s in block.writers if s > block.session)
            yield "fence begins", block._replace(session=block.session + 1, writers=live, fence=Fence("began"))
    elif at == "began":
        if block.cell.state == QUARANTINED:
            yield "fence looks at the cell", block._replace(fence=Fence("looked", block.cell))
        else:
            yield "fence ends", block._replace(fence=Fence())
    elif at == "looked":
        yield "fence looks at the exposure", block._replace(fence=Fence("decides", looked, block.exposure))
    elif exposure < block.session and block.cell == looked:
        yield "fence frees", block._replace(cell=block.freed(), fence=Fence())
    else:
        yield "fence leaves it", block._replace(fence=Fence())


def explore_block(rules: Rules) -> Finding:
    def steps(block: Block) -> Iterator[tuple[str, Block]]:
        for owner in (1, 2):
            for label, following in owner_steps(block, owner, rules):
                yield f"{owner} {label}", following
        for label, following in fence_steps(block):
            yield label, following
        if block.cell.state == QUARANTINED:
            yield "the writer acknowledges", block._replace(cell=block.freed(), writers=frozenset())

    def violated(block: Block) -> str | None:
        holders = [i for i, (at, _) in enumerate(block.owners, 1) if at in ("owner", "exposing", "granted")]
        if len(holders) > 1:
            return "two owners"
        if holders and block.cell.owner != holders[0]:
            return "an owner's block is no longer its own"
        if block.writers and block.cell.state not in (EXPOSED, QUARANTINED):
            return f"a remote writer may write into a block that is {block.cell.state}"
        return None

    def given_back(block: Block) -> bool:
        return block.cell.state == FREE and all(at == "idle" for at, _ in block.owners)

    return explore(Block(), steps, violated=violated, goal=given_back)


def test_a_block_has_one_owner_and_always_comes_back() -> None:
    """P1, P7, D6: never two owners, no late write into a block that is not quarantined, and no leak, whoever dies."""
    finding = explore_block(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 500


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (Rules(compare=False), "two owners"),
        (Rules(checked_release=False), "no longer its own"),
        (Rules(quarantine=False), "may write into a block that is free"),
        (Rules(exposure_first=False), "may write into a block that is free"),
        (Rules(generations=False), "may write into a block that is free"),
    ],
    ids=["look, then store", "release without a check", "no quarantine", "exposure after the grant", "no generations"],
)
def test_each_rule_of_the_owner_cell_is_needed(rules: Rules, fault: str) -> None:
    """R10, R16: without it, the explorer has a trace."""
    finding = explore_block(rules)
    assert finding.fault is not None
    assert fault in finding.fault, finding
