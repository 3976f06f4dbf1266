"""A record of `allocator/guarded_records.py`, every interleaving of one writer and one reader, with the writer killed
between any two stores.

A record is two words behind a generation; a writing gives both words its number, so a record is torn when they differ.
The writer is killed, and the next registrar starts: it frees a record that it finds half written, and goes on writing.
The reader takes what it read only between two equal, even generations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore

MAX_WRITINGS = 3


class Record(NamedTuple):
    """The shared words, where writer and reader stand, and what the reader has taken."""

    generation: int = 0
    first: int = 0
    second: int = 0
    writer: str = "idle"  # idle, odd, one, two, dead
    writing: int = 0  # the number of the last writing that was begun
    completed: int = 0
    kills: int = 2
    reader: str = "start"  # start, looked, one, two, took
    looked: int = 0
    read: tuple[int, int] = (0, 0)
    since: int = 0  # the writing that was completed when the reader began


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol, and the ways to get it wrong."""

    odd_first: bool = True  # the generation is odd before the first word changes; else it only steps at the end
    # a new writer leaves an odd generation odd until it has written; else it steps it to even first
    goes_on_from_odd: bool = True
    second_look: bool = True  # the reader compares the generation again
    rejects_odd: bool = True  # the reader does not begin at an odd generation
    # a new writer frees what was half written at once; else only when it next writes that record
    freed_at_start: bool = True


def begin(record: Record, number: int, rules: Rules, what: str) -> Iterator[tuple[str, Record]]:
    generation = record.generation
    if rules.goes_on_from_odd or not generation & 1:
        if rules.odd_first:
            generation |= 1
        yield f"writer begins {what}", record._replace(writer="odd", writing=number, generation=generation)
    else:
        yield f"writer begins {what}, even", record._replace(writer="odd", writing=number, generation=generation + 1)


def writer_steps(record: Record, rules: Rules) -> Iterator[tuple[str, Record]]:
    at, number = record.writer, record.writing
    if at == "idle" and number < MAX_WRITINGS:
        yield from begin(record, number + 1, rules, f"writing {number + 1}")
    elif at == "odd":
        yield "writer stores the first word", record._replace(writer="one", first=number)
    elif at == "one":
        yield "writer stores the second word", record._replace(writer="two", second=number)
    elif at == "two":
        generation = record.generation + (1 if record.generation & 1 else 2)
        yield "writer ends", record._replace(writer="idle", generation=generation, completed=number)
    elif at == "dead":
        if record.generation & 1 and rules.freed_at_start:
            yield from begin(record, number, rules, "anew")
        else:
            yield "new writer starts", record._replace(writer="idle")
    if at in ("odd", "one", "two") and record.kills:
        yield "writer is killed", record._replace(writer="dead", kills=record.kills - 1)


def reader_steps(record: Record, rules: Rules) -> Iterator[tuple[str, Record]]:
    at = record.reader
    if at in ("start", "took"):
        if record.generation & 1 and rules.rejects_odd:
            yield "reader finds it being written", record._replace(reader="start", since=record.completed)
        else:
            yield "reader looks", record._replace(reader="looked", looked=record.generation, since=record.completed)
    elif at == "looked":
        yield "reader loads the first word", record._replace(reader="one", read=(record.first, 0))
    elif at == "one":
        yield "reader loads the second word", record._replace(reader="two", read=(record.read[0], record.second))
    elif at == "two":
        same = record.generation == record.looked or not rules.second_look
        yield "reader looks again", record._replace(reader="took" if same else "start")


def explore_record(rules: Rules) -> Finding:
    def steps(record: Record) -> Iterator[tuple[str, Record]]:
        yield from writer_steps(record, rules)
        yield from reader_steps(record, rules)

    def violated(record: Record) -> str | None:
        if record.reader == "took":
            if record.read[0] != record.read[1]:
                return f"the reader took a torn record {record.read}"
            if record.read[0] < record.since:
                return f"the reader took writing {record.read[0]}, when {record.since} was complete before it began"
        return None

    def readable(record: Record) -> bool:
        return record.reader == "took" and record.read[0] == MAX_WRITINGS

    return explore(Record(), steps, violated=violated, goal=readable)


def test_a_reader_takes_whole_records_only_and_never_an_old_one_and_always_gets_one() -> None:
    """D3, D5: whatever the registrar's process dies of, and wherever, no client reads a route that was never
    reported.
    """
    finding = explore_record(Rules())
    assert finding.fault is None, finding
    assert finding.num_states > 500


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (Rules(odd_first=False), "torn"),
        (Rules(goes_on_from_odd=False), "torn"),
        (Rules(second_look=False), "torn"),
        (Rules(rejects_odd=False), "torn"),
        (Rules(freed_at_start=False), "stuck"),
    ],
    ids=["no odd generation", "even before it is whole", "no second look", "begins at an odd one", "left half written"],
)
def test_each_part_of_it_is_needed(rules: Rules, fault: str) -> None:
    """Without it, the explorer has a trace."""
    finding = explore_record(rules)
    assert finding.fault is not None
    assert fault in finding.fault, finding
