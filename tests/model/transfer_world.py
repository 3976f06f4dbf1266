"""The state of the model of transfers (`transfer_model`), how large it is, and the rules of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from phases import OPEN

INTENDED, SUBMITTED, LANDED, DONE, BROKEN = "intended", "submitted", "landed", "done", "broken"
NEVER = -1  # no session


class Cell(NamedTuple):
    """A destination block's owner: the request, the session under which it was exposed last, whether it is
    quarantined.
    """

    request: int
    session: int
    quarantined: bool = False


class Receiver(NamedTuple):
    """The language side of one request.

    `held` are its blocks, from the first that is not drained; `storing` is half a report.
    """

    phase: int = OPEN
    sent: int = 0
    tainted: int = NEVER
    granted: int = 0
    held: tuple[int, ...] = ()
    resumed: bool = False
    storing: tuple[str, int] | None = None

    @property
    def drained(self) -> int:
        return self.granted - len(self.held)


class Attempt(NamedTuple):
    """A write of rows [first, end) into one block, under a session; `source` is the block it reads, if any.

    A void one counts for nothing: one before it has failed.
    """

    at: str
    request: int
    first: int
    end: int
    block: int
    session: int
    source: int | None
    void: bool = False


class Sender(NamedTuple):
    """The encode side of one request.

    `grants` is the table request block -> (block, session), `staged` the cached source blocks.
    """

    phase: int = OPEN
    known: bool = False
    tombstone: bool = False
    ready: int = 0
    sent: int = 0
    tainted: int = NEVER
    grants: tuple[tuple[int, int], ...] = ()
    attempts: tuple[Attempt, ...] = ()  # in the order of their rows
    staged: tuple[tuple[int, int, bool], ...] = ()  # (request block, source block, READING)
    abort_asked: bool = False
    publishing: tuple[str, int] | None = None  # half of what a report will say


class World(NamedTuple):
    """Both nodes and the network. `late` are writes whose attempt was given up, and which may yet land."""

    receivers: tuple[Receiver, ...]
    senders: tuple[Sender, ...]
    cells: tuple[Cell | None, ...]
    rows: tuple[tuple[tuple[int, int] | None, ...], ...]  # what stands in each destination block: (request, row)
    sources: tuple[tuple[int, int] | None, ...]  # what stands in each source block: (request, request block)
    source_owners: tuple[int | None, ...]
    late: tuple[Attempt, ...] = ()
    messages: frozenset[tuple[Any, ...]] = frozenset()
    session: int = 0
    fencing: bool = False  # the new session is there, what the old one held is not freed yet
    node_dead: bool = False
    taken_for_dead: bool = False
    writers_gone: bool = False
    kills: int = 0
    failures: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    spare_fences: int = 0
    deaths: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    totals: tuple[int, ...] = (1, 1)  # rows of each request
    blocks: int = 1
    block_rows: int = 1
    attempts: int = 1  # of one destination at a time
    sources: int = 0  # source blocks; 0: rows are read from the encoder's own memory
    streaming: bool = False
    shared_memory: bool = False  # the end of a process ends its writes
    fine_steps: bool = False  # reports are read and stored word by word, and a worker may pause before it submits
    kills: int = 0
    failures: int = 0
    deadlines: int = 0
    encoder_aborts: int = 0
    spare_fences: int = 0
    deaths: int = 0
    all_succeed: bool = False  # nothing that happens here may fail a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r1_grants_are_absolute: bool = True
    r2_sent_is_not_obeyed: bool = True
    r3_whole_blocks_are_freed: bool = True
    r4_success_is_all_rows: bool = True
    r5_resume_from_counters: bool = True
    r6_failure_taints: bool = True
    r6_death_taints: bool = True
    r6_sent_rises_in_order: bool = True
    r6_nothing_counts_behind_a_failed_one: bool = True
    r6_sent_is_read_before_tainted: bool = True
    r6_tainted_is_stored_before_sent: bool = True
    r7_reports_carry_tainted: bool = True
    r7_tainted_is_quarantined: bool = True
    r7_failed_frees_nothing: bool = True
    r8_reading_is_respected: bool = True
    r8_broken_attempt_keeps_its_source: bool = True
    r9_ack_after_the_last_attempt: bool = True
    r10_worker_keeps_to_its_grants_session: bool = True
    r10_new_port: bool = True
    r10_windows_are_sent_again: bool = True
    r10_fence_spares_the_new_session: bool = True
    r10_fenced_is_no_failure: bool = True
    r11_fence_runs_by_itself: bool = True
    r12_death_is_no_fence: bool = True
    r12_waits_for_the_writers_end: bool = True
    r13_done_is_applied: bool = True
    r15_abort_leaves_a_tombstone: bool = True


Step = tuple[str, World]
