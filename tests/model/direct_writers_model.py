"""The names of direct writers: an entry of the writers' table that is used again while a claim may still stand in its
name.

A claim names its writer by the entry and by the entry's *generation*: how often it was used before. When a writer is
dead (the door has its pidfd), its entry is DEAD; whoever buries it looks through the claims, gives back by CAS those
that bear its name, and then frees the entry, one generation later. Several may bury the same writer (the launcher, the
poller's slow scan, the successor of either), each slow between its look at a claim and its CAS. So the CAS must not
find the same value in the claim of a later writer. A generation has few bits. An entry whose generations are spent is
RETIRED, and used no more.

Modelled: one entry with two generations, one slot under one epoch, writers that come one after another, claim, copy and
are killed anywhere; two who bury; a scheduler that wants its block back at any time. A writer that finds no entry takes
the network path, and is done.

Not modelled: the epoch of the slot, which also tells claims apart, but not within one request (`direct_claim_model`);
several slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Finding, explore, put

GENERATIONS: Final = 2
FREE, JOINED, DEAD, RETIRED = "FREE", "JOINED", "DEAD", "RETIRED"
SHUT, OPEN, WRITING, REVOKED = "SHUT", "OPEN", "WRITING", "REVOKED"


class Entry(NamedTuple):
    """The only one of the writers' table."""

    state: str = FREE
    generation: int = 0


class Claim(NamedTuple):
    state: str = OPEN
    generation: int | None = None


class Writer(NamedTuple):
    """`at` is new, joined, copying, copied, killed or over."""

    at: str = "new"
    generation: int = 0


class Burier(NamedTuple):
    """`dead` is the entry that it buries; `seen` the claim that it is about to give back."""

    dead: Entry | None = None
    seen: Claim | None = None
    has_looked: bool = False


class World(NamedTuple):
    writers: tuple[Writer, ...]
    entry: Entry = Entry()
    claim: Claim = Claim()
    buriers: tuple[Burier, ...] = (Burier(), Burier())
    block_is_back: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How many writers come."""

    writers: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r33_a_spent_entry_retires: bool = True
    r33_the_claim_has_the_generation: bool = True
    r33_claims_are_given_back_before_the_entry_is_free: bool = True


Step = tuple[str, World]


def steps(rules: Rules, world: World) -> Iterator[Step]:
    for number, writer in enumerate(world.writers):
        yield from writer_steps(world, number, writer)
    for number, burier in enumerate(world.buriers):
        yield from burier_steps(rules, world, number, burier)
    yield from scheduler_steps(world)


def writer_steps(world: World, number: int, me: Writer) -> Iterator[Step]:
    def on(after: World, at: str, generation: int = me.generation) -> World:
        return after._replace(writers=put(after.writers, number, Writer(at, generation)))

    name = f"writer {number}"
    if me.at == "new" and all(other.at != "new" for other in world.writers[:number]):
        if world.entry.state == FREE:
            generation = world.entry.generation
            yield (
                f"{name}: joins as {generation}",
                on(world._replace(entry=Entry(JOINED, generation)), "joined", generation),
            )
        yield f"{name}: finds no entry, takes the network path", on(world, "over")
    elif me.at == "joined":
        if world.claim.state == OPEN:
            yield f"{name}: claims", on(world._replace(claim=Claim(WRITING, me.generation)), "copying")
    elif me.at == "copying":
        fault = f"stray: {name} copies into a block that is somebody else's" if world.block_is_back else None
        yield f"{name}: copies", on(world._replace(fault=fault), "copied")
    elif me.at == "copied":
        claim = world.claim
        if claim.generation == me.generation:
            claim = Claim(OPEN if claim.state == WRITING else SHUT)
        yield f"{name}: gives the claim back", on(world._replace(claim=claim), "joined")
    if me.at in ("joined", "copying", "copied"):
        yield f"{name}: is killed", on(world._replace(entry=Entry(DEAD, me.generation)), "over", 0)


def burier_steps(rules: Rules, world: World, number: int, me: Burier) -> Iterator[Step]:
    def on(after: World, burier: Burier) -> World:
        return after._replace(buriers=put(after.buriers, number, burier))

    name = f"burier {number}"
    if me.dead is not None:
        yield f"{name}: is killed, its successor knows nothing", on(world, Burier())
    if me.dead is None:
        if world.entry.state == DEAD:
            burying = on(world, Burier(dead=world.entry))
            if not rules.r33_claims_are_given_back_before_the_entry_is_free:
                burying = burying._replace(entry=freed(rules, world.entry))
            yield f"{name}: finds the dead", burying
    elif not me.has_looked:
        is_its = world.claim.state in (WRITING, REVOKED) and named_alike(rules, world.claim, me.dead)
        yield (
            f"{name}: looks at the claim",
            on(world, me._replace(seen=world.claim if is_its else None, has_looked=True)),
        )
    elif me.seen is not None:
        same = world.claim == me.seen
        if not rules.r33_the_claim_has_the_generation:
            same = world.claim.state == me.seen.state
        claim = Claim(OPEN if me.seen.state == WRITING else SHUT) if same else world.claim
        # who was forestalled looks again: the scheduler may have moved it to REVOKED
        following = me._replace(seen=None, has_looked=same)
        yield f"{name}: gives the claim back for the dead", on(world._replace(claim=claim), following)
    else:
        entry = freed(rules, world.entry) if world.entry == me.dead else world.entry
        yield f"{name}: frees the entry", on(world._replace(entry=entry), Burier())


def named_alike(rules: Rules, claim: Claim, dead: Entry) -> bool:
    return claim.generation == dead.generation or not rules.r33_the_claim_has_the_generation


def freed(rules: Rules, entry: Entry) -> Entry:
    """The entry for its next writer."""
    if entry.generation + 1 == GENERATIONS and rules.r33_a_spent_entry_retires:
        return Entry(RETIRED, entry.generation)
    return Entry(FREE, (entry.generation + 1) % GENERATIONS)


def scheduler_steps(world: World) -> Iterator[Step]:
    state = world.claim.state
    if state == OPEN:
        yield "scheduler: claim OPEN -> SHUT", world._replace(claim=Claim(SHUT))
    elif state == WRITING:
        yield "scheduler: claim WRITING -> REVOKED", world._replace(claim=world.claim._replace(state=REVOKED))
    elif state == SHUT and not world.block_is_back:
        yield "scheduler: gives its block to somebody else", world._replace(block_is_back=True)


def explore_writers(setting: Setting | None = None, rules: Rules | None = None) -> Finding:
    """A fault is `stray` (a writer copies into a block of somebody else), or `stuck` (a block never comes back)."""
    active = rules or Rules()
    return explore(
        World(writers=(Writer(),) * (setting or Setting()).writers),
        lambda world: steps(active, world),
        violated=lambda world: world.fault,
        goal=lambda world: world.block_is_back and all(writer.at == "over" for writer in world.writers),
    )
