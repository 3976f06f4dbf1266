"""Grants: a window of blocks that is drained and granted anew, told in messages that are lost, doubled, late and out of
order.

One request of some blocks, a language node with fewer. A message carries the whole window that is held when it is sent,
absolute (R1); once sent it may be delivered at any time and any number of times, and so it also stands for those that
are late; what is lost is taken away. The encode node keeps its table of request block -> index, and writes what the
table allows. A write that lands in a block that is not held for that very request block is what must never be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore


class Grant(NamedTuple):
    first: int
    indices: tuple[int, ...]
    sent: int  # what the language side has heard: for information (R2)


class Transfer(NamedTuple):
    held: tuple[int, ...] = ()  # indices, from request block `drained` on
    drained: int = 0
    heard: int = 0  # how much of `sent` the language side knows
    messages: frozenset[Grant] = frozenset()
    table: tuple[int, ...] = ()  # encode side: index of each request block that is known
    known: int = 0
    sent: int = 0
    attempt: tuple[int, int] | None = None  # (request block, index)
    losses: int = 2
    wrong: str = ""

    @property
    def granted(self) -> int:
        return self.drained + len(self.held)


@dataclass(frozen=True, kw_only=True)
class Rules:
    num_blocks: int = 3  # of the request
    pool: int = 2  # of the language node
    takes: str = "absolute"  # what a window is to the encode side
    obeys_sent: bool = False
    repeats: bool = True  # a grant that the encode side seems not to know (R24)
    drains: str = "heard"


def explore_grants(rules: Rules) -> Finding:
    return explore(
        Transfer(),
        lambda now: steps(rules, now),
        violated=lambda now: now.wrong or None,
        goal=lambda now: now.heard == now.drained == rules.num_blocks and not now.held,
    )


def steps(rules: Rules, now: Transfer) -> Iterator[tuple[str, Transfer]]:
    yield from language(rules, now)
    yield from network(rules, now)
    yield from encode(now)


def window(now: Transfer) -> Grant:
    return Grant(now.drained, now.held, now.heard)


def language(rules: Rules, now: Transfer) -> Iterator[tuple[str, Transfer]]:
    for index in sorted(set(range(rules.pool)) - set(now.held)):
        if now.granted < rules.num_blocks:
            after = now._replace(held=(*now.held, index))
            message = window(after) if rules.takes != "what is new" else Grant(now.granted, (index,), now.heard)
            yield f"grant block {now.granted} in {index}", after._replace(messages=after.messages | {message})
    if rules.repeats and now.held and now.known < now.granted and window(now) not in now.messages:
        yield "send the window again", now._replace(messages=now.messages | {window(now)})
    if rules.takes == "a number" and now.known < now.granted:  # as much as a heartbeat says, whatever blocks are known
        yield f"a heartbeat says {now.granted} granted", now._replace(known=now.granted)
    if now.heard < now.sent:
        yield f"hear of {now.heard + 1} sent", now._replace(heard=now.heard + 1)
    if now.held and now.drained < (now.heard if rules.drains == "heard" else now.heard + 1):
        yield f"drain block {now.drained}", now._replace(held=now.held[1:], drained=now.drained + 1)


def network(rules: Rules, now: Transfer) -> Iterator[tuple[str, Transfer]]:
    for message in sorted(now.messages):
        yield f"deliver {message}", taken(rules, now, message)
        if now.losses:
            yield f"lose {message}", now._replace(messages=now.messages - {message}, losses=now.losses - 1)


def taken(rules: Rules, now: Transfer, grant: Grant) -> Transfer:
    """The encode side's table after a message."""
    if rules.obeys_sent:
        now = now._replace(sent=grant.sent)
    if rules.takes == "from sent":  # a list that begins where we are, as the message's fields can be read
        table = now.table[: now.sent] + grant.indices
        return now._replace(table=table, known=min(len(table), rules.num_blocks))
    if grant.first > now.known:
        return now  # a gap: what is missing comes with the next whole window
    table = now.table
    for k, index in enumerate(grant.indices, grant.first):
        if k >= len(table):
            table = (*table, index)
        elif k >= now.sent and table[k] != index:
            return now._replace(wrong=f"block {k} was granted as {table[k]} and as {index}")
    return now._replace(table=table, known=max(now.known, len(table)))


def encode(now: Transfer) -> Iterator[tuple[str, Transfer]]:
    if now.attempt is None and now.sent < now.known:
        if now.sent >= len(now.table):
            yield "write without a block", now._replace(wrong=f"block {now.sent} is written where no block is known")
            return
        yield f"submit block {now.sent}", now._replace(attempt=(now.sent, now.table[now.sent]))
    if now.attempt is not None:
        k, index = now.attempt
        at = k - now.drained
        is_held = 0 <= at < len(now.held) and now.held[at] == index
        wrong = "" if is_held else f"block {k} lands in {index}, which is not held for it"
        yield f"block {k} lands in {index}", now._replace(attempt=None, sent=max(now.sent, k + 1), wrong=wrong)


@pytest.mark.parametrize(
    "rules",
    [Rules(), Rules(pool=1), Rules(num_blocks=4, pool=1), Rules(num_blocks=2, pool=2)],
    ids=["three through two", "three through one", "four through one", "two at once"],
)
def test_a_window_that_moves_is_written_right_whatever_happens_to_its_messages(rules: Rules) -> None:
    """R1, R3, R24, B10: and from every state the request can still come to its end."""
    finding = explore_grants(rules)
    assert finding.fault is None, finding
    assert finding.num_states > 50


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (Rules(takes="from sent"), "not held for it"),
        (Rules(takes="a number"), "no block is known|not held for it"),
        (Rules(obeys_sent=True), "not held for it"),
        (Rules(drains="one ahead"), "not held for it|stuck"),
        (Rules(repeats=False), "stuck"),
        (Rules(takes="what is new", repeats=False), "stuck"),
    ],
    ids=[
        "a list that begins at what is sent",
        "a number that grants",
        "sent_tokens obeyed",
        "a block drained before it is full",
        "nothing sent again",
        "only what is new in a message",
    ],
)
def test_each_rule_of_a_grant_is_needed(rules: Rules, fault: str) -> None:
    """R1, R2, R3, R24: without it the shortest way to what is wrong is found."""
    finding = explore_grants(rules)
    assert finding.fault is not None
    assert any(word in finding.fault for word in fault.split("|")), finding
