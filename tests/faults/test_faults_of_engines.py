"""P15: a Mooncake engine that gets no thread for a moment goes on when it gets one; no request waits for ever, and no
peer is lost (D3).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support import faults
from support.faults import Point
from support.waiting import wait_until

from embridge.allocator.sessions import LiveSession
from embridge.workers.transfer.engines import mooncake
from embridge.workers.transfer.engines.base import Outcome
from embridge.workers.transfer.engines.mooncake import MooncakeEngine
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

THREAD = Point("threading.Thread.start", 1)
MOVES = [(0, 0, 8)]
SESSION = LiveSession(1, 4000, 1 << 20)
PEER: Any = SimpleNamespace(poller_addr="tcp://127.0.0.1:1")


class Library:
    """Stands for Mooncake: everything succeeds at once."""

    def register_memory(self, address: int, size: int) -> int:
        return 0

    def send_probe(self, name: str) -> int:
        return 0

    def transfer_submit_write(self, name: str, here: int, there: int, size: int) -> int:
        return 1

    def transfer_check_status(self, number: int) -> int:
        return 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MooncakeEngine:
    monkeypatch.setattr(mooncake, "start_engine", lambda host, settings: Library())
    payload: Any = SimpleNamespace(address=0, size=1 << 12)
    return MooncakeEngine(payload, None, "127.0.0.1", MooncakeSettings())


def outcome(engine: MooncakeEngine) -> Outcome:
    ticket = engine.submit(0, SESSION, MOVES)
    found = [Outcome.PENDING]

    def ended() -> bool:
        found[0] = engine.poll(ticket)
        return found[0] is not Outcome.PENDING

    wait_until(ended)
    return found[0]


def test_a_probe_that_gets_no_thread_is_tried_again(engine: MooncakeEngine) -> None:
    with faults.in_force(THREAD) as plan:
        assert not engine.open(0, PEER, SESSION)
        assert plan.hit
        wait_until(lambda: engine.open(0, PEER, SESSION))


def test_a_first_write_that_gets_no_thread_has_failed_and_the_next_one_is_submitted(engine: MooncakeEngine) -> None:
    wait_until(lambda: engine.open(0, PEER, SESSION))
    with faults.in_force(THREAD) as plan:
        assert outcome(engine) is Outcome.FAILED
        assert plan.hit
        assert outcome(engine) is Outcome.DONE
