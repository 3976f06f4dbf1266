"""What a world is made with: how badly it behaves, its clocks, the size of its tables."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.allocator.geometry import Limits
from embridge.workers.timing import NS, Timing

MS = NS // 1000
ROWS_A_ROOM = 4096  # what a row's id tells: room * ROWS_A_ROOM + row

# Idle peers beat faster than in life, so that a lossy network does not look like a dead peer.
TIMING = Timing(idle_heartbeat_s=0.25, connect_timeout_s=20.0, request_timeout_s=120.0)
LIMITS = Limits(
    num_slots=128,
    max_clients=2,
    num_workers=1,
    max_destinations=2,
    window_blocks=16,
    max_peers=4,
    max_peer_slots=128,
    ring_records=16,
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities: of a message, of a step, of an attempt."""

    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    delay_ms: int = 50
    kill_role: float = 0.0
    stall: float = 0.0
    failed_attempt: float = 0.0
    slow_attempt: float = 0.5
    damage: float = 0.0  # of a byte of what an engine writes
    # of a turn of a library thread: the dirty bits that it would take are gone, and not the bell
    lost_marks: float = 0.0
    # of a step of a direct write: others go on before it, for a moment or long; and it is its process's last
    pause: float = 0.0
    kill_writer: float = 0.0
    give_up: float = 0.0  # of a destination that is whole: its scheduler has it aborted then
