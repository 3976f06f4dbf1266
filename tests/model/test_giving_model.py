"""How rows go from the caller's thread to the library thread, and into the node's limit, in every interleaving.

`giving`: one `write` of two blocks (`pipeline/client/sender.py`). The caller's thread takes a source block for the
first, fills it, enters it, keeps the second in host memory, and then raises `ready`. The library thread reads `ready`,
shows what was entered, and stages what is kept. Meanwhile the request may fail; then the library thread frees the
blocks that were entered, and leaves the slot, which is another request's at once.

`limit`: clients count what they take in a word of their own, and look at all words, one after the other
(`pipeline/client/unsent_memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore, put

# ---- giving

@dataclass(frozen=True, kw_only=True)
class Rules:
    is_writing_respected: bool = True  # the library thread does not end a request that is being written to
    is_writing_first: bool = True  # the caller says that it writes before it looks whether the request has ended
    is_ready_read_first: bool = True  # the library thread reads `ready`, then what was entered
    is_ready_last: bool = True  # the caller's thread raises `ready` after it has entered the rows
    is_woken: bool = True  # by a write that finds the request ended


class Giving(NamedTuple):
    caller: int = 0  # its next step
    library: int = 0
    writing: bool = False
    has_failed: bool = False
    is_held: bool = False  # the source block
    filled: bool = False
    entered: bool = False  # in `_placed`
    shown: bool = False  # in `_staged`
    kept: bool = False  # the second block
    ready: int = 0
    seen: int = 0
    called: bool = True  # somebody has asked the library thread for a turn
    ended: bool = False
    wrong: str = ""


def giving_steps(rules: Rules, w: Giving) -> Iterator[tuple[str, Giving]]:
    if not w.has_failed:
        yield "the request fails", w._replace(has_failed=True, called=True)
    yield from caller(rules, w)
    yield from library(rules, w)


def caller(rules: Rules, w: Giving) -> Iterator[tuple[str, Giving]]:
    looks = 1 if rules.is_writing_first else 0
    if w.caller == 1 - looks:
        yield "the caller begins to write", w._replace(caller=w.caller + 1, writing=True)
    if w.caller == looks:
        yield "the caller looks at the phase", w._replace(caller=8 if w.has_failed else w.caller + 1)
    if w.caller == 2:
        yield "the caller takes a block", w._replace(caller=3, is_held=True)
    if w.caller == 3:
        yield "the caller fills it", w._replace(caller=4, filled=True)
    order = ("enter", "keep", "ready") if rules.is_ready_last else ("ready", "enter", "keep")
    if 4 <= w.caller < 7:
        at = w._replace(caller=w.caller + 1)
        match order[w.caller - 4]:
            case "enter":
                yield "the caller enters the block", at._replace(entered=True)
            case "keep":
                yield "the caller keeps the other block's rows", at._replace(kept=True)
            case _:
                wrong = "ready was raised in another request's record" if w.ended else ""
                yield "the caller raises ready", at._replace(ready=2, called=True, wrong=wrong)
    if w.caller in (7, 8):
        called = w.called or (rules.is_woken and w.has_failed)
        yield "the caller's write is over", w._replace(caller=9, writing=False, called=called)


def library(rules: Rules, w: Giving) -> Iterator[tuple[str, Giving]]:
    order = ("ready", "placed") if rules.is_ready_read_first else ("placed", "ready")
    if w.library == 0 and w.called and not w.ended:
        yield "the library thread takes a turn", w._replace(library=1, called=False)
    if w.library in (1, 2):
        at = w._replace(library=w.library + 1)
        if order[w.library - 1] == "ready":
            yield "the library thread reads ready", at._replace(seen=w.ready)
        elif w.entered and not w.shown:
            wrong = "" if w.filled else "the worker was shown an empty block"
            yield "the library thread shows the block", at._replace(entered=False, shown=True, wrong=wrong)
        else:
            yield "the library thread finds nothing to show", at
    if w.library == 3 and w.has_failed:
        if w.writing and rules.is_writing_respected:
            yield "the library thread waits for the write", w._replace(library=0)
        else:
            still = w.is_held and not (w.shown or w.entered)
            yield (
                "the library thread ends the request",
                w._replace(library=0, ended=True, is_held=still, shown=False, entered=False),
            )
    if w.library == 3 and not w.has_failed:
        wrong = w.wrong
        if w.seen and not w.shown:
            wrong = "the rows of the first block are nowhere"
        if w.seen and not w.kept:
            wrong = "the rows of the second block are nowhere"
        yield "the library thread stages", w._replace(library=0, wrong=wrong)


def explore_giving(rules: Rules) -> Finding:
    return explore(
        Giving(),
        lambda world: giving_steps(rules, world),
        violated=lambda world: world.wrong or None,
        goal=lambda world: world.ended and world.caller == 9 and not world.is_held,
    )


def test_what_is_given_is_found_and_an_end_that_comes_meanwhile_leaves_nothing() -> None:
    """P22, D2, D6: whenever the request fails, its blocks come back, and nothing is written for it any more."""
    finding = explore_giving(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 100


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (Rules(is_writing_respected=False), "another request's record"),
        (Rules(is_writing_first=False), "another request's record"),
        (Rules(is_ready_read_first=False), "nowhere"),
        (Rules(is_ready_last=False), "nowhere"),
        (Rules(is_woken=False), "stuck"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_rule_of_giving_is_needed(rules: Rules, fault: str) -> None:
    """P22, D2, D6."""
    found = explore_giving(rules).fault
    assert found is not None
    assert fault in found


# ---- the limit

LIMIT = 2


@dataclass(frozen=True, kw_only=True)
class LimitRules:
    # a client counts its rows in, then looks at all words; else it looks, then counts them in
    is_counted_first: bool = True
    is_taken_back: bool = True  # by a client that was refused
    is_dead_word_left_out: bool = True


class Client(NamedTuple):
    word: int = 0
    held: int = 0
    wants: int = 0  # bytes of the write under way
    step: int = 0
    next_lane: int = 0
    total: int = 0
    is_dead: bool = False


def limit_steps(rules: LimitRules, clients: tuple[Client, ...]) -> Iterator[tuple[str, tuple[Client, ...]]]:
    for i, client in enumerate(clients):
        for label, after in client_steps(rules, clients, client):
            yield f"client {i} {label}", put(clients, i, after)


def client_steps(rules: LimitRules, clients: tuple[Client, ...], c: Client) -> Iterator[tuple[str, Client]]:
    if c.is_dead:
        return
    if sum(other.is_dead for other in clients) < 1:
        yield "dies", c._replace(is_dead=True, held=0)
    first, then = ("count", "look") if rules.is_counted_first else ("look", "count")
    if c.step == 0:
        for size in (1, 2):
            yield f"is given {size}", c._replace(step=1, wants=size, next_lane=0, total=0)
        if c.held:
            yield "lets go of what it holds", c._replace(held=0, word=c.word - c.held)
        return
    doing = first if c.step == 1 else then if c.step == 2 else "decide"
    if doing == "count":
        yield "counts it in", c._replace(step=c.step + 1, word=c.word + c.wants)
    elif doing == "look":
        other = clients[c.next_lane]
        counts = 0 if other.is_dead and rules.is_dead_word_left_out else other.word
        looked = c._replace(next_lane=c.next_lane + 1, total=c.total + counts)
        yield f"looks at word {c.next_lane}", looked._replace(step=c.step + (looked.next_lane == len(clients)))
    else:
        total = c.total + (0 if rules.is_counted_first else c.wants)
        if total > LIMIT:
            yield "is refused", c._replace(step=0, wants=0, word=c.word - c.wants * rules.is_taken_back)
        else:
            yield "takes it", c._replace(step=0, wants=0, held=c.held + c.wants)


def explore_limit(rules: LimitRules) -> Finding:
    def violated(clients: tuple[Client, ...]) -> str | None:
        held = sum(client.held for client in clients)
        if held > LIMIT:
            return f"{held} are held"
        idle = [client for client in clients if not client.is_dead and client.step == 0]
        return next((f"{c.word} are counted, {c.held} are held" for c in idle if c.word != c.held), None)

    def goal(clients: tuple[Client, ...]) -> bool:
        """Somebody holds all that there is: what is free can be had."""
        return any(client.held == LIMIT for client in clients)

    initial: tuple[Client, ...] = (Client(), Client())
    return explore(initial, lambda clients: limit_steps(rules, clients), violated=violated, goal=goal)


def test_what_is_held_never_exceeds_the_limit_and_what_is_free_can_be_had() -> None:
    """P22, P12: whoever crosses, and whoever dies at whatever step."""
    finding = explore_limit(LimitRules())
    assert finding.fault is None, finding
    assert finding.num_states > 300


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (LimitRules(is_counted_first=False), "are held"),
        (LimitRules(is_taken_back=False), "are counted"),
        (LimitRules(is_dead_word_left_out=False), "stuck"),
    ],
    ids=str,
)
def test_each_rule_of_the_limit_is_needed(rules: LimitRules, fault: str) -> None:
    """P12."""
    found = explore_limit(rules).fault
    assert found is not None
    assert fault in found
