"""An encoder's process on the direct path, stopped or killed at a step of a write: functions that an `Agent` calls, and
what a test sees of the claims.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from embridge import Client
from embridge.allocator.claims import Claim, ClaimState
from embridge.allocator.records import Destination, WrittenBy
from embridge.pipeline.client.client import library_of
from embridge.pipeline.client.handle import NO_SLOT
from embridge.pipeline.client.sender import EmbeddingSender
from support import encoding
from support.agents import Agent, running
from support.direct_steps import DirectStep
from support.encoding import client_of, give, num_doors, open_sender, wait_doors
from support.nodes import Station
from support.scheduling import Queues
from support.waiting import wait_until
from support.watching import watch

STEPS: Final = ("taken", "half copied", "copied", "whole", "sent", "own word", "destination's word", "given back")
"""What was the last thing that it did."""
TOLD: Final = STEPS.index("own word")
"""From this step on the encode side has its Success."""


def claims_of(station: Station) -> dict[int, Claim]:
    """The claims of a language node that somebody holds, by slot."""
    table = station.control.claims
    claims = {slot: table.get(slot) for slot in range(table.num_slots)}
    return {slot: claim for slot, claim in claims.items() if claim.state in (ClaimState.WRITING, ClaimState.REVOKED)}


def _get(sender: EmbeddingSender, field: Destination, d: int = 0) -> int:
    """A word of a request's destination; 0 while it has no slot."""
    return 0 if sender.slot == NO_SLOT else sender._library.destinations.get(sender.slot, d, field)


def written_by(sender: EmbeddingSender, d: int = 0) -> WrittenBy:
    """Who writes the rows of a request of this process to one destination."""
    return WrittenBy(_get(sender, Destination.WRITTEN_BY, d))


def wait_granted(sender: EmbeddingSender, tokens: int, num_destinations: int = 1) -> None:
    """Until its node knows that so many rows of the sender's room are granted, by each destination."""

    def are_granted() -> bool:
        return all(_get(sender, Destination.GRANTED_TOKENS, d) >= tokens for d in range(num_destinations))

    wait_until(are_granted, what=lambda: f"{sender} granted {tokens}")


def wait_direct(sender: EmbeddingSender, tokens: int, num_destinations: int = 1) -> None:
    """Until so many rows of the sender's room may be written straight into the blocks of each destination."""
    wait_granted(sender, tokens, num_destinations)
    assert sender._direct is not None
    assert wait_until(sender._direct.decide) == WrittenBy.CLIENT


def written(encode: Station) -> dict[str, int]:
    """Rows that were written by this node's clients, and by its workers."""
    rows = encode.control.metrics.all().items()
    by = {"clients": 0, "workers": 0}
    for name, row in rows:
        by["clients" if name == "clients" else "workers"] += row["tokens_written"]
    return by


def since(encode: Station, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in written(encode).items()}


# ---- functions of an agent


def ready_to_write(state: SimpleNamespace, run_dir: Path, room: int, tokens: int, num_destinations: int = 1) -> None:
    """Until the first rows that are given will go straight into the destination's blocks, or those of several."""
    wait_doors(client_of(state, run_dir))
    wait_direct(state.senders[room], tokens, num_destinations)


def doors(state: SimpleNamespace, run_dir: Path) -> int:
    """Until this process has a door to every language node of its node; how many."""
    client = client_of(state, run_dir)
    wait_doors(client)
    return len(library_of(client).attachment.control.peers.alive())


def strike_at(state: SimpleNamespace, step: str, number: int, num_before: int = 0) -> None:
    """Have this process send itself a signal when it has taken that step of a write the next time, or so many times
    later.
    """
    strike(step, lambda room: signal_here(number), num_before)


def signal_here(number: int) -> None:
    """Send this process a signal that this thread takes, and nobody else: it does nothing more before."""
    signal.pthread_kill(threading.get_ident(), number)


# ---- fail points of a process


_due: Final[dict[str, tuple[Callable[[int], object], int]]] = {}
_here: Final = threading.local()  # what this thread has done of its write


def strike(step: str, do: Callable[[int], object], num_before: int = 0) -> None:
    """Have this process do something once, with the room, when it has taken that step of a write the next time, or
    `num_before` writes later: on whichever thread, and with the claim held, unless it has just been given back. What
    was said before and has not been done is forgotten.
    """
    assert step in STEPS
    _due.clear()
    _due[step] = do, num_before
    watch(_stepped)


def _stepped(room: int, step: DirectStep, *_: int) -> None:
    for done in _done(step):
        do, num_before = _due.get(done, (None, 0))
        if do is None or done in _here.said:
            continue
        _here.said.add(done)
        if num_before:
            _due[done] = do, num_before - 1
        else:
            _due.clear()
            watch(None)
            do(room)


def _done(step: DirectStep) -> list[str]:
    """Which of `STEPS` have just been taken, before this one."""
    if step <= DirectStep.TAKE:
        _here.steps, _here.said = [], set()
    taken: list[DirectStep] = _here.steps
    taken.append(step)
    if step == DirectStep.LOOK:
        return ["taken"]
    if step == DirectStep.COPY:
        return ["half copied"] if taken.count(step) == 2 else []
    if step == DirectStep.LENGTH:
        return ["half copied", "copied"]
    if step == DirectStep.SENT and taken[-2:-1] == [DirectStep.WHOLE]:
        return ["whole"]
    if step == DirectStep.MOVED:
        return ["sent"]
    if step == DirectStep.THEIR_WORD:
        return ["own word"]
    if step == DirectStep.GIVE_BACK and DirectStep.OWN_WORD in taken:
        return ["own word", *(["destination's word"] if DirectStep.THEIR_WORD in taken else [])]
    return ["given back"] if step == DirectStep.DONE else []


def once_before(step: DirectStep, do: Callable[[], object]) -> None:
    """Have this process do something once, on the thread that is about to take that step of a write."""

    def before(_room: int, now: DirectStep, *_: int) -> None:
        if now == step:
            watch(None)
            do()

    watch(before)


def open_door(encode: Station, sending: Client, receiving: Queues, room: int) -> None:
    """Carry one request, and wait until the encoder's client has a door to the language node."""
    receiving.add(encode.addr, room)
    assert give(open_sender(sending, room, 10))
    assert receiving.take(room, 20).difference == ""
    wait_doors(sending)
    assert num_doors(sending)


@contextmanager
def doomed_encoder(encode: Station, language: Station) -> Iterator[Agent]:
    """An encoder's process of its own, which a test may stop and kill; nothing of it is left on either node."""
    with running("doomed encoder") as agent:
        yield agent
        if agent.process.exitcode is None:
            os.kill(agent.pid, signal.SIGCONT)
            agent.call(encoding.leave, encode.run_dir)
    encode.wait_idle()
    language.wait_idle()
    wait_until(lambda: not claims_of(language), what=lambda: claims_of(language))
