"""The direct path when somebody stops or dies over it: nothing is torn, both sides agree, and no block is kept from
others when nobody can write into it any more.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from support import direct, encoding, scheduling
from support.agents import Agent, running
from support.carrying import carried
from support.direct import STEPS, TOLD, claims_of, doomed_encoder
from support.encoding import ended, give, open_sender
from support.nodes import Station, station
from support.scheduling import ByHand, Queues
from support.stopping import is_stopped
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator.claims import ClaimState
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase, split

pytestmark = pytest.mark.process

TOTAL: Final = 500  # four blocks of 128


@pytest.fixture
def agent(encode: Station, language: Station) -> Iterator[Agent]:
    with doomed_encoder(encode, language) as agent:
        yield agent


# ---- an encoder that stops in the middle of a copy


def in_mid_copy(
    agent: Agent,
    encode: Station,
    client: Client,
    room: int,
    *,
    timeout_s: float | None = None,
    scheduler_timeout_s: float | None = None,
) -> ByHand:
    """A request whose encoder is stopped while it copies: half of its rows are in their four blocks."""
    agent.start(encoding.open_room, encode.run_dir, room, TOTAL, timeout_s=timeout_s)
    agent.result()
    it = ByHand(client, encode.addr, room, timeout_s=scheduler_timeout_s)
    it.grant(4, TOTAL)
    agent.call(direct.ready_to_write, encode.run_dir, room, TOTAL)
    agent.call(direct.strike_at, "half copied", signal.SIGSTOP)
    agent.start(encoding.write, room, 0, TOTAL)
    wait_until(lambda: is_stopped(agent.pid))
    return it


def states(language: Station) -> list[ClaimState]:
    """Of the claims that somebody holds."""
    return [claim.state for claim in claims_of(language).values()]


@contextmanager
def others_rows(encode: Station, language: Station, sending: Client, receiving: Queues, room: int) -> Iterator[None]:
    """Every block that is free holds rows of somebody else meanwhile, and they are right at the end."""
    it = ByHand(receiving.client, encode.addr, room)
    free = language.counts().free
    it.grant(free, free * 128)
    sender = open_sender(sending, room, free * 128)
    assert give(sender)
    it.wait_sent(free * 128)
    yield
    assert it.finish(free * 128).difference == ""


ENDS: Final[dict[str, dict[str, float]]] = {
    "the scheduler gives up": {},
    "the scheduler's deadline": {"scheduler_timeout_s": 2.0},
    "the encoder's deadline": {"timeout_s": 2.0},
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
def test_blocks_are_kept_for_an_encoder_that_is_stopped_while_it_copies_until_it_can_write_no_more(
    encode: Station,
    language: Station,
    sending: Client,
    receiving: Queues,
    rooms: Iterator[int],
    agent: Agent,
    end: str,
    is_killed: bool,
) -> None:
    """R30, R33, P7, D2: everybody else goes on meanwhile, and not a byte of it shows in rows of another request."""
    room, other, third = next(rooms), next(rooms), next(rooms)
    it = in_mid_copy(agent, encode, receiving.client, room, **ENDS[end])
    assert states(language) == [ClaimState.WRITING]
    if end == "the scheduler gives up":
        it.receiver.abort("enough")
    failed = ended(it.receiver)
    assert failed.error == ("TransferAborted" if end == "the scheduler gives up" else "TransferTimeout")
    it.receiver.clear()
    wait_until(lambda: states(language) == [ClaimState.REVOKED])
    assert carried(receiving, encode.addr, sending, other, 5000).difference == ""
    with others_rows(encode, language, sending, receiving, third):
        assert language.counts().quarantined == 4
        if is_killed:
            agent.kill()
        else:
            os.kill(agent.pid, signal.SIGCONT)
            agent.result()
        wait_until(lambda: not language.counts().quarantined, 5, language.counts)
    assert not claims_of(language)
    if not is_killed:
        assert agent.call(encoding.outcome, room).reason == failed.reason


def test_an_encoder_that_only_rested_is_as_if_nothing_had_been(
    encode: Station, language: Station, receiving: Queues, room: int, agent: Agent
) -> None:
    """P11: while nobody has given up, its claim stands, and its rows arrive."""
    it = in_mid_copy(agent, encode, receiving.client, room)
    assert it.receiver.sent_tokens == 0
    os.kill(agent.pid, signal.SIGCONT)
    assert agent.result()
    assert it.finish(TOTAL).difference == ""
    assert agent.call(encoding.outcome, room).error == ""


def test_a_scheduler_that_is_killed_leaves_its_blocks_to_who_writes_into_them(
    encode: Station, language: Station, receiving: Queues, room: int, agent: Agent
) -> None:
    """R30, P7: a "dead scheduler client"; its lane and its slots wait, too."""
    with running("doomed scheduler") as scheduler:
        agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
        scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
        agent.call(direct.ready_to_write, encode.run_dir, room, TOTAL)
        agent.call(direct.strike_at, "half copied", signal.SIGSTOP)
        agent.start(encoding.write, room, 0, TOTAL)
        wait_until(lambda: is_stopped(agent.pid))
        scheduler.kill()
    wait_until(lambda: states(language) == [ClaimState.REVOKED])
    wait_until(lambda: language.counts().quarantined >= 4, 5, language.counts)
    assert language.dead_lanes()
    os.kill(agent.pid, signal.SIGCONT)
    agent.result()
    assert agent.call(encoding.outcome, room).error == "PeerLost"
    language.wait_idle(5)


# ---- an encoder that is killed at any step


@pytest.mark.parametrize(
    ("step", "is_granted"),
    [
        pytest.param(
            step, is_granted, id=f"{'its caller' if is_granted else 'its library'}'s thread-{step}",
            marks=[pytest.mark.storm] * (not is_granted and number % 2),
        )
        for is_granted in (True, False)
        for number, step in enumerate(STEPS)
    ],
)
def test_an_encoder_that_is_killed_at_a_step_of_a_write_leaves_both_sides_agreed_and_every_block_free(
    encode: Station, language: Station, receiving: Queues, room: int, agent: Agent, step: str, is_granted: bool
) -> None:
    """R32, R33, R36, P1: a "dead encoder client"; before its own side's word has risen the request is Failed on both
    sides, after it it has arrived, whether the other word had risen or not.
    """
    agent.call(encoding.open_room, encode.run_dir, room, TOTAL)
    (slot,) = [it for it, _ in encode.control.open_slots() if encode.control.slots.get(it, Slot.ROOM) == room]
    if is_granted:
        receiving.add(encode.addr, room)
        agent.call(direct.ready_to_write, encode.run_dir, room, TOTAL)
        agent.call(direct.strike_at, step, signal.SIGKILL)
        agent.start(encoding.write, room, 0, TOTAL)
    else:
        agent.call(direct.doors, encode.run_dir)
        assert agent.call(encoding.write, room, 0, TOTAL)
        agent.call(direct.strike_at, step, signal.SIGKILL)
        receiving.add(encode.addr, room)
    received = receiving.take(room, 20)
    agent.process.join()
    if STEPS.index(step) >= TOLD:
        assert (received.error, received.difference) == ("", "")
    elif step != "sent" or received.error:  # all rows are there: the poller may have seen it before the death
        assert (received.error, received.reason) == ("PeerLost", "the encoder process died")
    encode.wait_idle()
    phase = split(encode.control.status.load(slot)).phase
    assert phase == (Phase.Failed if received.error else Phase.Success)


# ---- whole nodes


@pytest.mark.parametrize("how", ["its launcher", "every process of it"])
def test_an_encoder_whose_own_node_dies_while_it_copies_holds_what_it_copies_into_and_no_more(
    own_dir: Path, language: Station, receiving: Queues, room: int, how: str
) -> None:
    """R30, R12, P4: a "dead peer"; the encoder lives on, and is told when it goes on."""
    with running("encoder without a node") as agent:
        with station("encode", own_dir / "e", deepstack_layers=3) as doomed:
            it = in_mid_copy(agent, doomed, receiving.client, room)
            if how == "its launcher":
                os.kill(doomed.node.pid, signal.SIGKILL)
            else:
                doomed.kill_group()
            assert ended(it.receiver).error == "PeerLost"
            it.receiver.clear()
        wait_until(lambda: states(language) == [ClaimState.REVOKED])
        wait_until(lambda: language.counts().quarantined == 4, 5, language.counts)
        os.kill(agent.pid, signal.SIGCONT)
        agent.result()
        wait_until(lambda: not claims_of(language))
        language.wait_idle(5)
        agent.call(encoding.leave, doomed.run_dir)


def test_an_encoder_whose_destination_s_node_dies_while_it_copies_is_told_and_goes_on(
    own_dir: Path, encode: Station, receiving: Queues, rooms: Iterator[int], agent: Agent
) -> None:
    """P4, P11: what it writes lands in memory that is nobody's; its next request, to another node, arrives."""
    room, other = next(rooms), next(rooms)
    with (
        station("language", own_dir / "l", deepstack_layers=3, default_allocate_tokens=1024) as doomed,
        attach(doomed.run_dir) as client,
    ):
        in_mid_copy(agent, encode, client, room)
        doomed.kill_group()
        os.kill(agent.pid, signal.SIGCONT)
        agent.result()
        assert agent.call(encoding.outcome, room).error in ("", "PeerLost")
    receiving.add(encode.addr, other)
    agent.call(encoding.send, encode.run_dir, other, TOTAL)
    assert receiving.take(other, 20).difference == ""
