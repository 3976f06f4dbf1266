"""The source cache: stager, worker and two language nodes over one source block, in every interleaving.

Three requests of some blocks each go to two destinations that hold one block each. The stager
(`pipeline/client/sender.py`) copies a request's blocks into source blocks and takes them out again; the worker
(`workers/transfer/encode.py`) reads one from the moment at which its entry goes STAGED -> READING until it goes back.
Source block 0 is the reserve: only a block that a destination needs next may stand there. The caller gives a request's
blocks in order, each into host memory, or straight into a source block that is not the reserve; such a one is copied to
host memory before the source block goes to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore

RESERVE = 0
DESTINATIONS = (0, 1)


class Progress(NamedTuple):
    """Blocks of one request at one destination; the destination holds `granted - drained` of its own."""

    granted: int = 0
    sent: int = 0
    drained: int = 0


class Entry(NamedTuple):
    """Request block `block` stands in source block `source`; `reader` is the destination for which the worker
    reads it.
    """

    block: int
    source: int
    reader: int | None = None


class Request(NamedTuple):
    to: tuple[Progress, ...] = (Progress(),) * len(DESTINATIONS)
    given: int = 0
    kept: tuple[int, ...] = ()  # in host memory
    staged: tuple[Entry, ...] = ()
    is_aborted: bool = False


class World(NamedTuple):
    requests: tuple[Request, ...]
    contents: tuple[tuple[int, int] | None, ...]  # of each source block: (request, block)
    aborts: int = 0
    wrong: str = ""


@dataclass(frozen=True, kw_only=True)
class Rules:
    num_requests: int = 3
    num_blocks: int = 1  # of a request
    num_sources: int = 1
    aborts: int = 0
    is_reserve_kept: bool = True  # for what a destination needs next; and taken out again when nobody does
    is_read_respected: bool = True  # nothing is taken out while the worker reads it
    is_evicting: bool = True  # what no destination needs next may be taken out, for somebody else
    is_kept_before_the_drop: bool = True  # what stands in a source block alone


def heads(request: Request) -> set[int]:
    """The blocks that some destination needs next and has granted."""
    if request.is_aborted:
        return set()
    return {to.sent for to in request.to if to.sent < to.granted}


def least(request: Request) -> int:
    return min(to.sent for to in request.to)


def steps(rules: Rules, world: World) -> Iterator[tuple[str, World]]:
    for r, request in enumerate(world.requests):
        if world.aborts and not request.is_aborted:
            yield f"{r} is aborted", put(world, r, request._replace(is_aborted=True))._replace(aborts=world.aborts - 1)
        yield from destinations(rules, world, r, request)
        yield from worker(world, r, request)
        yield from stager(rules, world, r, request)
        yield from caller(rules, world, r, request)


def caller(rules: Rules, world: World, r: int, request: Request) -> Iterator[tuple[str, World]]:
    block = request.given
    if block == rules.num_blocks or request.is_aborted:
        return
    after = request._replace(given=block + 1)
    yield f"caller gives {r}:{block} to host memory", put(world, r, after._replace(kept=(*request.kept, block)))
    for source in free_sources(rules, world):
        if source != RESERVE:
            new = after._replace(staged=tuple(sorted((*request.staged, Entry(block, source)))))
            yield f"caller gives {r}:{block} into {source}", filled(put(world, r, new), source, (r, block))


def free_sources(rules: Rules, world: World) -> list[int]:
    taken = {entry.source for other in world.requests for entry in other.staged}
    return sorted(set(range(rules.num_sources)) - taken)


def filled(world: World, source: int, with_block: tuple[int, int]) -> World:
    return world._replace(contents=(*world.contents[:source], with_block, *world.contents[source + 1 :]))


def put(world: World, r: int, request: Request) -> World:
    return world._replace(requests=(*world.requests[:r], request, *world.requests[r + 1 :]))


def moved(request: Request, d: int, **words: int) -> Request:
    to = list(request.to)
    to[d] = to[d]._replace(**words)
    return request._replace(to=tuple(to))


def destinations(rules: Rules, world: World, r: int, request: Request) -> Iterator[tuple[str, World]]:
    for d in DESTINATIONS:
        to = request.to[d]
        if request.is_aborted:
            if to.granted > to.drained and all(entry.reader != d for entry in request.staged):  # acknowledged
                yield f"language {d} frees what {r} holds", put(world, r, moved(request, d, granted=to.drained))
            continue
        is_free = all(other.to[d].granted == other.to[d].drained for other in world.requests)
        if is_free and to.granted < rules.num_blocks:
            yield (
                f"language {d} grants block {to.granted} of {r}",
                put(world, r, moved(request, d, granted=to.granted + 1)),
            )
        if to.drained < to.sent:
            yield (
                f"language {d} drains block {to.drained} of {r}",
                put(world, r, moved(request, d, drained=to.drained + 1)),
            )


def worker(world: World, r: int, request: Request) -> Iterator[tuple[str, World]]:
    for i, entry in enumerate(request.staged):

        def with_entry(new: Entry, request: Request = request, i: int = i) -> Request:
            return request._replace(staged=(*request.staged[:i], new, *request.staged[i + 1 :]))

        if entry.reader is None:
            for d in () if request.is_aborted else DESTINATIONS:
                if request.to[d].sent == entry.block < request.to[d].granted:
                    yield f"worker reads {r}:{entry.block} for {d}", put(world, r, with_entry(entry._replace(reader=d)))
        else:
            after = moved(with_entry(entry._replace(reader=None)), entry.reader, sent=entry.block + 1)
            wrong = (
                ""
                if world.contents[entry.source] == (r, entry.block)
                else f"{r}:{entry.block} was read from a block that was dropped"
            )
            yield f"worker has sent {r}:{entry.block} to {entry.reader}", put(world, r, after)._replace(wrong=wrong)


def stager(rules: Rules, world: World, r: int, request: Request) -> Iterator[tuple[str, World]]:
    for entry in request.staged:
        if entry.reader is not None and rules.is_read_respected:
            continue
        is_over = request.is_aborted or entry.block < least(request)
        is_misplaced = rules.is_reserve_kept and entry.source == RESERVE and entry.block not in heads(request)
        is_evicted = rules.is_evicting and entry.block not in heads(request)
        if is_over or (
            (is_misplaced or is_evicted) and (entry.block in request.kept or not rules.is_kept_before_the_drop)
        ):
            yield f"stager drops {r}:{entry.block}", without(world, r, entry)
        elif is_evicted and entry.block not in request.kept:
            kept = tuple(sorted((*request.kept, entry.block)))
            yield f"stager copies {r}:{entry.block} to host memory", put(world, r, request._replace(kept=kept))
    staged = {entry.block for entry in request.staged}
    if request.kept and (request.is_aborted or request.kept[0] < least(request)):
        kept = () if request.is_aborted else tuple(block for block in request.kept if block >= least(request))
        yield f"stager lets go of the kept rows of {r}", put(world, r, request._replace(kept=kept))
    for block in request.kept:
        if block in staged or block < least(request) or request.is_aborted:
            continue
        for source in free_sources(rules, world):
            if source == RESERVE and rules.is_reserve_kept and block not in heads(request):
                continue
            new = request._replace(staged=tuple(sorted((*request.staged, Entry(block, source)))))
            yield f"stager stages {r}:{block} in {source}", filled(put(world, r, new), source, (r, block))


def without(world: World, r: int, entry: Entry) -> World:
    """Out of the cache. The worker that reads it, if that is not respected, goes on reading from there."""
    request = world.requests[r]
    if entry.reader is None:
        return put(world, r, request._replace(staged=tuple(e for e in request.staged if e != entry)))
    contents = tuple(None if i == entry.source else c for i, c in enumerate(world.contents))
    return world._replace(contents=contents)


def lost(world: World) -> str | None:
    """A block that was given, and that some destination has yet to get, stands somewhere."""
    for r, request in enumerate(world.requests):
        somewhere = {*request.kept, *(entry.block for entry in request.staged)}
        missing = set(range(least(request), request.given)) - somewhere
        if missing and not request.is_aborted:
            return f"the rows of {r}:{min(missing)} are lost"
    return None


def explore_staging(rules: Rules) -> Finding:
    return explore(
        World((Request(),) * rules.num_requests, (None,) * rules.num_sources, rules.aborts),
        lambda world: steps(rules, world),
        violated=lambda world: world.wrong or lost(world),
        goal=lambda world: all(is_over(rules, request) for request in world.requests),
    )


def is_over(rules: Rules, request: Request) -> bool:
    if request.is_aborted:
        return not request.staged and all(to.granted == to.drained for to in request.to)
    return all(to == (rules.num_blocks,) * 3 for to in request.to)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(), marks=pytest.mark.storm),
        pytest.param(Rules(num_requests=2, num_blocks=2), marks=pytest.mark.storm),
        Rules(num_sources=2, num_requests=2),
        Rules(num_sources=2, num_requests=2, is_evicting=False),
        Rules(num_requests=2, aborts=1),
    ],
    ids=[
        "three requests",
        "two of two blocks",
        "one more source block",
        "what was given into a block stays there",
        "an abort",
    ],
)
def test_any_request_passes_through_one_block_a_side_and_no_read_is_disturbed(rules: Rules) -> None:
    """R8, R21, D8: from every state all requests can still come to their end."""
    finding = explore_staging(rules)
    assert finding.fault is None, finding
    assert finding.num_states > 500


def test_without_the_reserve_two_requests_wait_for_each_other() -> None:
    """R21, D8: one has the source block and waits for a destination, which waits for the rows of another one."""
    finding = explore_staging(Rules(is_reserve_kept=False, is_evicting=False))
    assert finding.fault is not None
    assert finding.fault.startswith("stuck")


def test_what_stands_in_a_block_alone_is_lost_where_it_is_dropped_without_a_copy() -> None:
    """P22, R21."""
    finding = explore_staging(Rules(is_kept_before_the_drop=False, num_requests=2, num_sources=2))
    assert finding.fault is not None
    assert "are lost" in finding.fault


def test_a_block_that_is_dropped_while_it_is_read_is_caught() -> None:
    """R8."""
    finding = explore_staging(Rules(is_read_respected=False, num_requests=2, aborts=1))
    assert finding.fault is not None
    assert "was read from a block that was dropped" in finding.fault
