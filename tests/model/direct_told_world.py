"""The state of the model of requests of which no node is told (`direct_told_model`), its settings and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from phases import OPEN

UNTOLD, TOLD, RELEASED = "untold", "told", "released"
SHUT, FREE, WRITING, REVOKED = "SHUT", "OPEN", "WRITING", "REVOKED"
NOBODY, CLIENT, NODE = "", "client", "node"
Message = tuple[str, int]


class Language(NamedTuple):
    """The slot of the language node. `at` is new, open, over; `init` is what its bootstrap does: idle, shown, seen."""

    at: str = "new"
    told: str = UNTOLD
    alive: bool = True
    phase: int = OPEN
    claim: str = SHUT
    posted: bool = False
    shown: bool = False  # a writer can read that it is told
    init: str = "idle"
    ends: bool = False  # its client has looked, and is about to release it (without the rule)
    bound: bool = False  # the grant is bound to an encoder, or kept from all
    freed: bool = False  # its blocks may be anybody's
    withdraws: str = ""  # how far its client has come in taking the grant back: kept, ended, freed
    renewed: bool = False  # it was released, and is open again in its next epoch


class Encoder(NamedTuple):
    """The slot of the encode node. `at` is new, open, found (its client has looked at the grant, and is about to bind
    itself), bound, noted, claimed, copied, raised, said, back, over; `worker`
    is idle, entered (its bootstrap has yet to look who else has found the grant), asked (its client has yet to say who
    writes), writing, done.
    """

    at: str = "new"
    told: str = UNTOLD
    alive: bool = True
    phase: int = OPEN
    joined: str = NOBODY
    noted: bool = False  # its one destination stands in the slot
    known: bool = False  # its bootstrap has that destination in its tables
    opened: bool = False  # its bootstrap has the room in its tables
    closed: bool = False
    worker: str = "idle"
    reported: bool = False  # its poller has told the destination that it is in flight
    looked: bool = False  # its bootstrap has found nobody joined, and is about to join (without the rule)
    ends: bool = False


class World(NamedTuple):
    language: Language = Language()
    encoder: Encoder = Encoder()
    pending: bool = False  # an init waits for the encoder's room
    stale: bool = False  # a tombstone: an init of this request has no effect any more
    barred: bool = False
    messages: frozenset[Message] = frozenset()
    encoder_kills: int = 0
    scheduler_kills: int = 0
    # what a later sender of the room does, or a second one: none, marked, looked, holding, bound, claimed, done, gone
    later: str = "none"
    marked: bool = False  # its node can read that it has found the grant
    kept_off: bool = False  # its node has joined its slot, so that it binds itself to nothing
    other: str = "none"  # another sender, to which the node has joined the same request: none, joined, failed, over
    close: str = "none"  # the one that answers the node's acknowledgement: none, sent, taken
    forgotten: bool = False  # the language node's poller has done with it, and its bootstrap has yet to release it
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Which bad things may happen, and who may be told although nothing bad happens."""

    told: tuple[str, ...] = ("language", "encoder")
    later: bool = False  # the room is used again, after its first sender
    doubles: bool = False  # two senders have the room at one time, and each of them would write itself
    doorless: bool = False  # the sender that its node knows cannot write itself, and is bound to nothing
    withdraws: bool = False  # the scheduler takes a grant back to which nobody has come, and opens the request anew
    another: bool = False  # the node has a second sender of the room, and joins that one to the same request
    deadlines: bool = False
    encoder_kills: int = 0
    scheduler_kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r34_kept_from_all_before_it_is_withdrawn: bool = True
    r34_opened_anew_it_is_told: bool = True
    r78_told_or_released_by_one_cas: bool = True
    r78_the_slots_of_the_dead_are_told: bool = True
    r78_a_report_tells: bool = True
    r79_joined_by_one_cas: bool = True
    r79_the_bound_one_is_taken_up: bool = True
    r79_who_notes_looks_whether_it_is_told: bool = True
    r79_what_was_closed_is_closed_again: bool = True
    r79_what_was_closed_is_known_until_its_release: bool = True
    r80_released_after_both_words: bool = True
    r80_told_is_shown_before_the_init: bool = True
    r80_who_has_ended_looks_whether_it_is_shown: bool = True
    r81_success_ends_the_claim: bool = True
    r81_whoever_writes_is_bound: bool = True
    r81_so_is_who_has_the_worker_write: bool = True
    r81_who_finds_a_grant_marks_it_first: bool = True
    r81_who_joins_looks_at_the_mark: bool = True
    r81_a_finder_is_kept_off: bool = True

Step = tuple[str, World]
