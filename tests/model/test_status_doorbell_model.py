"""Status word, dirty bit and doorbell (`allocator/native/status.h`, `allocator/native/doorbell.h`), every interleaving,
with kills.

Writers raise the word, set the bit and ring. The one waiter notes the sequence, takes the bit, looks at the word, and
sleeps: on the futex, or in a poll loop of its own on an armed eventfd. Writers are killed between any two steps; then
recovery marks the slot and rings once more. What else waits behind a mark, beside the status word, is
`test_waited_word_model`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from explorer import Finding, explore

AWAKE, ASLEEP, ARMED = "awake", "asleep", "armed"


class Writer(NamedTuple):
    """`state` is the doorbell's state as it was read, with the number of its arming."""

    at: str = "raise"
    state: tuple[str, int] = (AWAKE, 0)


class Waiter(NamedTuple):
    """`seen` is the sequence that was noted, `word` the newest word looked at; `took`: a bit was taken just now."""

    at: str = "note"
    seen: int = 0
    word: int = 0
    took: bool = False


class World(NamedTuple):
    word: int = 0
    dirty: bool = False
    sequence: int = 0
    state: tuple[str, int] = (AWAKE, 0)
    event: bool = False  # the eventfd is readable
    woken: bool = False  # a futex wake came while the waiter slept
    writers: tuple[Writer, ...] = (Writer(), Writer())
    waiter: Waiter = Waiter()
    kills: int = 1
    repairs: int = 0  # how many dead writers nobody has cleaned up after yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol, and the ways to get it wrong."""

    eventfd: bool
    look_again: bool = True  # the waiter looks at the sequence once more after it has published its state
    sequence_first: bool = True  # the ringer moves the sequence before it reads the state
    wake_before_disarm: bool = True  # a ringer ends the arming after the write to the eventfd
    number_armings: bool = True
    ringer_leaves_asleep: bool = True  # only the waiter ends its sleep
    take_before_look: bool = True  # the waiter takes the bit, then loads the word
    word_before_bit: bool = True


def writer_steps(world: World, writer: Writer, rules: Rules) -> Iterator[tuple[str, Writer, World]]:
    """The steps of a writer: raise, mark, then ring (sequence, state, wake, disarm)."""
    kind, arming = writer.state
    disarmed = world._replace(state=(AWAKE, arming)) if world.state == writer.state else world
    if writer.at == "raise":
        if rules.word_before_bit:
            yield "raises the word", Writer("mark"), world._replace(word=world.word + 1)
        else:
            yield "sets the bit", Writer("mark"), world._replace(dirty=True)
    elif writer.at == "mark":
        if rules.word_before_bit:
            yield "sets the bit", Writer("first"), world._replace(dirty=True)
        else:
            yield "raises the word", Writer("first"), world._replace(word=world.word + 1)
    elif writer.at == ("first" if rules.sequence_first else "second"):
        following = Writer("second") if rules.sequence_first else Writer("wake", writer.state)
        yield "moves the sequence", following, world._replace(sequence=world.sequence + 1)
    elif writer.at == ("second" if rules.sequence_first else "first"):
        following = Writer("wake" if rules.sequence_first else "second", world.state)
        yield "reads the state", following, world
    elif writer.at == "wake":
        if kind == AWAKE:
            yield "need not wake", Writer("done"), world
        elif kind == ASLEEP and rules.ringer_leaves_asleep:
            yield "wakes", Writer("done"), world._replace(woken=world.waiter.at == "sleeping")
        elif rules.wake_before_disarm and kind == ARMED:
            yield "writes to the eventfd", Writer("disarm", writer.state), world._replace(event=True)
        else:
            ended = disarmed != world
            yield "ends the waiter's state", Writer("late wake" if ended else "done", writer.state), disarmed
    elif writer.at == "late wake":
        woken = kind == ASLEEP and world.waiter.at == "sleeping"
        yield "wakes late", Writer("done"), world._replace(woken=woken, event=world.event or kind == ARMED)
    elif writer.at == "disarm":
        yield "disarms", Writer("done"), disarmed


def waiter_steps(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    waiter = world.waiter
    arming = world.state[1]

    def go(label: str, following: Waiter, **changes: object) -> tuple[str, World]:
        return f"waiter {label}", world._replace(waiter=following, **changes)  # type: ignore[arg-type]

    if waiter.at == "note":
        yield go("notes the sequence", waiter._replace(at="one", seen=world.sequence))
    elif waiter.at == ("one" if rules.take_before_look else "two"):
        following = "two" if rules.take_before_look else "sleep"
        took = world.dirty and rules.take_before_look
        yield go("takes the bit", waiter._replace(at=following, took=took), dirty=False)
    elif waiter.at == ("two" if rules.take_before_look else "one"):
        following = "sleep" if rules.take_before_look else "two"
        set_bit = waiter.took if rules.take_before_look else world.dirty
        word = world.word if set_bit else waiter.word
        yield go("looks at the word", waiter._replace(at=following, word=word, took=False))
    elif waiter.at == "sleep":
        state = (ARMED, arming + rules.number_armings) if rules.eventfd else (ASLEEP, arming)
        yield go("publishes its state", waiter._replace(at="again"), state=state)
    elif waiter.at == "again":
        if rules.look_again and world.sequence != waiter.seen:
            yield go("sees a ring, stays awake", waiter._replace(at="note"), state=(AWAKE, arming))
        elif rules.eventfd:
            yield go("polls", waiter._replace(at="polling"))
        else:
            # The kernel compares and sleeps in one step; who does not look again does not ask for the comparison
            # either.
            yield go("sleeps", waiter._replace(at="sleeping"), woken=False)
    elif waiter.at == "sleeping" and world.woken:
        yield go("wakes up", waiter._replace(at="note"), woken=False, state=(AWAKE, arming))
    elif waiter.at == "polling" and world.event:
        yield go("reads the eventfd", waiter._replace(at="note"), event=False)


def explore_world(rules: Rules) -> Finding:
    def steps(world: World) -> Iterator[tuple[str, World]]:
        yield from waiter_steps(world, rules)
        for i, writer in enumerate(world.writers):
            others = world.writers[:i], world.writers[i + 1 :]

            def put(following: Writer, others: tuple[tuple[Writer, ...], ...] = others) -> tuple[Writer, ...]:
                return (*others[0], following, *others[1])

            for label, following, after in writer_steps(world, writer, rules):
                yield f"writer {i} {label}", after._replace(writers=put(following))
            if world.kills and writer.at not in ("raise", "done"):
                dead = world._replace(writers=put(Writer("done")), kills=world.kills - 1, repairs=world.repairs + 1)
                yield f"writer {i} is killed before {writer.at}", dead
            if world.repairs and writer.at == "done":
                # Recovery stands where the dead one stood after it had raised the word: it marks and rings again.
                repaired = world._replace(writers=put(Writer("mark" if rules.word_before_bit else "first")), repairs=0)
                yield "recovery marks and rings", repaired._replace(dirty=True)

    def violated(world: World) -> str | None:
        return "the waiter has seen a word that never was" if world.waiter.word > world.word else None

    def all_seen(world: World) -> bool:
        return all(w.at == "done" for w in world.writers) and not world.repairs and world.waiter.word == world.word

    return explore(World(), steps, violated=violated, goal=all_seen)


@pytest.mark.parametrize("eventfd", [False, True], ids=["futex", "eventfd"])
def test_no_wake_up_is_lost_and_the_newest_word_is_always_seen(eventfd: bool) -> None:
    """P1, P5, P8: wherever a writer is killed, any later ring wakes the waiter, and it sees the newest word."""
    finding = explore_world(Rules(eventfd=eventfd))
    assert finding.fault is None, finding
    assert finding.num_states > 1000


@pytest.mark.parametrize(
    "rules",
    [
        Rules(eventfd=False, look_again=False),
        Rules(eventfd=True, look_again=False),
        Rules(eventfd=False, sequence_first=False),
        pytest.param(Rules(eventfd=True, sequence_first=False), marks=pytest.mark.storm),
        Rules(eventfd=False, ringer_leaves_asleep=False),
        pytest.param(Rules(eventfd=True, wake_before_disarm=False), marks=pytest.mark.storm),
        Rules(eventfd=True, number_armings=False),
        Rules(eventfd=False, take_before_look=False),
        Rules(eventfd=False, word_before_bit=False),
    ],
    ids=[
        "no second look before the sleep",
        "no second look after arming",
        "state read before the sequence moves, futex",
        "state read before the sequence moves, eventfd",
        "the ringer ends the sleep before it wakes",
        "the ringer disarms before it writes",
        "armings without a number",
        "the word is looked at before the bit is taken",
        "the bit is set before the word is raised",
    ],
)
def test_each_rule_of_the_doorbell_is_needed(rules: Rules) -> None:
    """P8: without it, there is a state in which the waiter sleeps for ever on a word that it has not seen."""
    finding = explore_world(rules)
    assert finding.fault is not None, finding
    assert finding.fault.startswith("stuck")
