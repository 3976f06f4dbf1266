"""The mutants: what each breaks, where, and the tests that are to turn red.

A mutant is one change of text. `old` must stand exactly once in its file (a test in `make test` checks it), so that the
list cannot rot: who changes that line changes its mutant, too. The tests are the cheapest that notice; a broken rule
should be noticed by one that cites it. Where two steps of the C core are swapped or torn apart, the mutant yields the
processor between them: else which run hits those few instructions would be chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RULES: Final = "tests/workers/test_rules.py"
GIVEN: Final = "tests/pipeline/client/test_given_rows.py"
CROSSINGS: Final = "tests/workers/test_crossings.py"
SESSIONS: Final = "tests/workers/transfer/test_sessions.py"
REGISTRATIONS: Final = "tests/workers/bootstrap/test_registrations.py"
STRANGERS: Final = "tests/hostile/test_strangers.py"
WEAR: Final = "tests/workers/transfer/test_wear.py"
LEAVING: Final = "tests/pipeline/client/test_leaving.py"
LOOKUPS: Final = "tests/workers/test_looked_up_names.py"
ADDRESSES: Final = "tests/transfers/test_addresses.py"
DYING: Final = "tests/pipeline/node/test_dying.py"
WAITING: Final = "tests/pipeline/client/test_waiting_for_slots.py"
MARKS: Final = "tests/workers/poller/test_lost_marks.py"
INHERITS: Final = "tests/pipeline/node/test_what_a_node_inherits.py"
RUN_DIR: Final = "tests/pipeline/node/test_run_dir.py"
NAMES: Final = "tests/allocator/test_segment_names.py"
SIZING: Final = "tests/pipeline/node/test_sizing.py"
BLOCKS: Final = "tests/allocator/test_core_blocks.py"
STATUS: Final = "tests/allocator/test_core_status.py"
LITMUS: Final = "tests/native/test_litmus.py"
SANITIZERS: Final = "tests/native/test_sanitizers.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken promise."""

    name: str
    breaks: str  # the labels of docs/invariants.md
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def is_native(self) -> bool:
        """Whether the core must be built anew."""
        return self.file.endswith((".c", ".h"))


def _rule(name: str) -> tuple[str, ...]:
    return (f"{RULES}::test_{name}",)


def _crossing(name: str) -> tuple[str, ...]:
    return (f"{CROSSINGS}::test_{name}",)


CORE: Final = [
    Mutant(
        "release-of-anothers-block", "P1, R16", "a block is released, exposed or reclaimed whoever holds it",
        "allocator/native/blocks.h",
        "while (cell_held_by(cell, owner) && states >> cell_state(cell) & 1) {",
        "while (cell_held_by(cell, cell & CELL_OWNER_MASK) && states >> cell_state(cell) & 1 && owner + 1) {",
        (f"{BLOCKS}::test_releasing_twice_frees_once_and_only_what_is_ones_own",),
    ),
    Mutant(
        "acquire-without-cas", "P1", "a free block is taken by a store: two may take it",
        "allocator/native/blocks.h",
        "            if (blocks_move(blocks, index, &cell, generation | owner | CELL_OWNED)) {\n",
        "            sched_yield();\n"
        "            atomic_store_explicit(&blocks->cells[index], generation | owner | CELL_OWNED, memory_order_release);\n"
        "            if (true) {\n",
        (f"{SANITIZERS}::test_clean[cells-address]",),
    ),
    Mutant(
        "generation-stays", "R16", "a block's generation is the same for its next owner",
        "allocator/native/blocks.h",
        "(cell + (UINT64_C(1) << CELL_GENERATION_SHIFT)) & CELL_GENERATION_MASK;",
        "cell & CELL_GENERATION_MASK;",
        (f"{BLOCKS}::test_a_block_names_its_owner_and_its_generation",),
    ),
    Mutant(
        "cell-before-exposure", "R6, R10", "two stores swapped: a block stands exposed before its word says to whom",
        "allocator/native/blocks.h",
        "    atomic_store_explicit(&blocks->exposure[index], exposure, memory_order_relaxed);\n"
        "    return blocks_change(blocks, index, owner, 1u << CELL_OWNED | 1u << CELL_EXPOSED, CELL_EXPOSED);\n",
        "    const bool exposed = blocks_change(blocks, index, owner, 1u << CELL_OWNED | 1u << CELL_EXPOSED, CELL_EXPOSED);\n"
        "    sched_yield();\n"
        "    atomic_store_explicit(&blocks->exposure[index], exposure, memory_order_relaxed);\n"
        "    return exposed;\n",
        (f"{LITMUS}::test_the_forbidden_outcome_is_not_seen[litmus_cell]",),
    ),
    Mutant(
        "quarantine-skipped", "P7, R7", "what was exposed is freed by `quarantine`",
        "allocator/native/blocks.h",
        "return blocks_change(blocks, index, owner, 1u << CELL_EXPOSED, CELL_QUARANTINED) ||",
        "return blocks_change(blocks, index, owner, 1u << CELL_EXPOSED, CELL_FREE) ||",
        (f"{BLOCKS}::test_a_quarantined_block_is_nobodys_until_its_quarantine_ends",),
    ),
    Mutant(
        "reclaim-frees-exposed", "P7, D2", "reclaiming a dead owner frees what others may still write into",
        "allocator/native/blocks.h",
        "quarantine_exposed ? CELL_QUARANTINED : CELL_FREE);",
        "quarantine_exposed ? CELL_FREE : CELL_FREE);",
        (f"{BLOCKS}::test_reclaiming_a_dead_owner_leaves_everybody_elses",),
    ),
    Mutant(
        "fence-frees-its-own-session", "R10", "a fence to session n frees what was exposed under n, too",
        "allocator/native/blocks.h",
        "(exposure & ~mask) >= below)",
        "(exposure & ~mask) > below)",
        (f"{BLOCKS}::test_a_fence_frees_what_was_exposed_below_its_session_and_to_its_peer",),
    ),
    Mutant(
        "word-decreases", "P5", "a status word may be lowered within its epoch",
        "allocator/native/status.h",
        "status_phase(word) >= FIRST_TERMINAL_PHASE || next <= word)",
        "status_phase(word) >= FIRST_TERMINAL_PHASE || next == word)",
        (f"{STATUS}::test_a_word_never_decreases_in_an_epoch",),
    ),
    Mutant(
        "terminal-phase-changes", "P5, D12", "Success may become Failed",
        "allocator/native/status.h",
        "status_phase(word) >= FIRST_TERMINAL_PHASE || next <= word)",
        "next <= word)",
        (f"{STATUS}::test_terminal_phases_absorb",),
    ),
    Mutant(
        "epoch-not-checked", "P17, R16", "a writer of another epoch raises the word",
        "allocator/native/status.h",
        "if (epoch == 0 || status_epoch(word) != epoch ||",
        "if (epoch == 0 ||",
        (f"{STATUS}::test_whoever_names_another_epoch_changes_nothing",),
    ),
    Mutant(
        "dirty-bit-before-word", "P8", "two stores swapped: the bit that says `look` is set before the word has changed",
        "allocator/native/status.h",
        "    } while (!atomic_compare_exchange_weak_explicit(&table->words[slot], &word, next, memory_order_acq_rel,\n"
        "                                                    memory_order_relaxed));\n"
        "    status_stamp(table, slot, epoch, phase, now_ns); // before the bit, which publishes it\n"
        "    for (uint32_t view = 0; view < table->num_views; view++)\n"
        "        status_mark(table, slot, view);\n",
        "        for (uint32_t view = 0; view < table->num_views; view++)\n"
        "            status_mark(table, slot, view);\n"
        "        sched_yield();\n"
        "    } while (!atomic_compare_exchange_weak_explicit(&table->words[slot], &word, next, memory_order_acq_rel,\n"
        "                                                    memory_order_relaxed));\n"
        "    status_stamp(table, slot, epoch, phase, now_ns);\n",
        (f"{SANITIZERS}::test_clean[status-address]",),
    ),
    Mutant(
        "dirty-bit-forgotten", "P8", "a change is shown to the first view alone, the library thread is not told",
        "allocator/native/status.h",
        "for (uint32_t view = 0; view < table->num_views; view++)",
        "for (uint32_t view = 0; view < 1; view++)",
        (f"{STATUS}::test_each_view_sees_every_change_once",),
    ),
    Mutant(
        "epochs-begin-again", "R17", "the last epoch does not retire its slot",
        "allocator/native/status.h",
        "        if (epoch > MAX_EPOCH)\n            return 0;\n",
        "",
        (f"{STATUS}::test_the_last_epoch_retires_the_slot",),
    ),
    Mutant(
        "tail-before-records", "P6", "two stores swapped: a ring's tail is raised before the records are there",
        "allocator/native/ring.h",
        "    memcpy(ring_record(ring, tail), records, first * RECORD_BYTES);\n",
        "    if (num)\n"
        "        atomic_store_explicit(&ring->header->tail, tail + num, memory_order_release);\n"
        "    sched_yield();\n"
        "    memcpy(ring_record(ring, tail), records, first * RECORD_BYTES);\n",
        (f"{SANITIZERS}::test_clean[ring-thread]",),
    ),
    Mutant(
        "full-ring-overwritten", "P12", "a producer writes over records that nobody has consumed",
        "allocator/native/ring.h",
        "const uint64_t num = count < (uint64_t)room ? count : (uint64_t)room;",
        "const uint64_t num = count;",
        ("tests/allocator/test_core_ring.py::test_a_full_ring_refuses_and_counts",),
    ),
    Mutant(
        "commit-without-release", "P6", "a record's place is given back before it has been read",
        "allocator/native/ring.h",
        "atomic_store_explicit(&ring->header->head, head + count, memory_order_release);",
        "atomic_store_explicit(&ring->header->head, head + count, memory_order_relaxed);",
        (f"{SANITIZERS}::test_clean[ring-thread]",),
    ),
    Mutant(
        "no-second-look", "P8", "an eventfd is armed without a second look: a ring in between is lost",
        "allocator/native/doorbell.h",
        "    if (atomic_load_explicit(&bell->sequence, memory_order_seq_cst) == seen)\n        return true;\n",
        "    if (atomic_load_explicit(&bell->sequence, memory_order_seq_cst) - seen < UINT32_MAX)\n        return true;\n",
        ("tests/allocator/test_core_doorbell.py::test_arming_after_a_ring_is_refused",),
    ),
    Mutant(
        "state-before-sequence", "P8", "two steps swapped: a ringer looks whether somebody sleeps, then rings",
        "allocator/native/doorbell.h",
        "    atomic_fetch_add_explicit(&bell->sequence, 1, memory_order_seq_cst);\n"
        "    uint32_t state = atomic_load_explicit(&bell->state, memory_order_seq_cst);\n",
        "    uint32_t state = atomic_load_explicit(&bell->state, memory_order_seq_cst);\n"
        "    sched_yield();\n"
        "    atomic_fetch_add_explicit(&bell->sequence, 1, memory_order_seq_cst);\n",
        (f"{LITMUS}::test_the_forbidden_outcome_is_not_seen[litmus_doorbell]",),
    ),
    Mutant(
        "awake-before-woken", "P1, P8", "a ringer ends the waiter's sleep in the word, then wakes it: killed between, nobody ever does",
        "allocator/native/doorbell.h",
        "    case DOORBELL_ASLEEP:\n        return syscall(",
        "    case DOORBELL_ASLEEP:\n"
        "        atomic_compare_exchange_strong(&bell->state, &state, (state & ~DOORBELL_KIND_MASK) | DOORBELL_AWAKE);\n"
        "        return syscall(",
        ("tests/allocator/test_core_doorbell.py::test_only_the_waiter_ends_its_sleep",),
    ),
    Mutant(
        "watermark-lowered", "P5, R2", "`raise_to` stores whatever is not equal",
        "allocator/native/shared.h",
        "while (current < value) {",
        "while (current != value) {",
        ("tests/allocator/test_core_words.py::test_raise_to_never_lowers",),
    ),
]

TABLES: Final = [
    Mutant(
        "code-before-reason", "P5", "two stores swapped: a failure is seen without its reason",
        "allocator/request_tables.py",
        "        self.set_reason(slot, reason)\n        self.set(slot, Slot.FAILURE, code)\n",
        "        self.set(slot, Slot.FAILURE, code)\n        self.set_reason(slot, reason)\n",
        _rule("a_failure_is_seen_with_its_reason_or_not_at_all"),
    ),
    Mutant(
        "second-reason-wins", "P5", "a later failure replaces the reason of the first",
        "allocator/request_tables.py",
        "if not first and (not insist or self.get(slot, Slot.FAILURE)):",
        "if not first and not insist:",
        _rule("a_failure_is_seen_with_its_reason_or_not_at_all"),
    ),
    Mutant(
        "reserve-for-anybody", "R21, D8", "the reserve goes to requests whose rows do not wait",
        "allocator/blocks.py",
        "want, RESERVE_BLOCK + 1, out, 0)",
        "want, RESERVE_BLOCK, out, 0)",
        _rule("a_source_block_of_the_reserve_is_staged_only_for_what_can_be_written_now"),
    ),
    Mutant(
        "session-number-stays", "R10", "the session after a fence has the number of the one before",
        "allocator/sessions.py",
        "return self._header.add(SegmentHeader.LAST_SESSION, 1) + 1",
        "return max(self._header.load(SegmentHeader.LAST_SESSION), self._header.raise_to(SegmentHeader.LAST_SESSION, 1))",
        (f"{SESSIONS}::test_in_a_new_session_every_window_is_granted_anew",),
    ),
    Mutant(
        "session-number-first", "R10", "two stores swapped: a session's number is there before its port and address",
        "allocator/sessions.py",
        "        self._words.store(at + Session.NUMBER, 0)\n",
        "        self._words.store(at + Session.NUMBER, session.number)\n",
        _crossing("whoever_looks_while_a_session_begins_sees_one_session_or_none"),
    ),
    Mutant(
        "old-session-stays", "R10", "while a session begins, the old number stands beside the new port",
        "allocator/sessions.py",
        "        self._words.store(at + Session.NUMBER, 0)\n",
        "",
        _crossing("whoever_looks_while_a_session_begins_sees_one_session_or_none"),
    ),
    Mutant(
        "port-used-again", "R10", "a session may take the port of one before it",
        "allocator/sessions.py",
        "return not self._ports.set_bits(port // 64, bit) & bit",
        "return self._ports.set_bits(port // 64, bit) >= 0",
        (f"{SESSIONS}::test_no_two_sessions_have_a_port_or_an_address_in_common",),
    ),
    Mutant(
        "heartbeats-counted-as-resent", "P12", "every room of every heartbeat counts as sent again",
        "workers/poller/peer_watch.py",
        "        envelope, most = self._ctx.envelope, 1024  # of some 100 bytes each: far below the limit of a message\n",
        "        envelope, most = self._ctx.envelope, 1024\n        self._ctx.count(Metric.RESENT, len(rooms))\n",
        ("tests/workers/test_counters.py::test_what_is_repeated_as_a_matter_of_course_is_not_counted_as_sent_again",),
    ),
    Mutant(
        "full-rings-not-counted", "P12", "a kick that waits for room in its ring is not counted",
        "allocator/rings.py",
        "        self._num_full += 1\n",
        "        self._num_full += 0\n",
        ("tests/workers/test_counters.py::test_kicks_that_wait_for_room_in_their_ring_are_counted_and_none_is_lost",),
    ),
    Mutant(
        "memory-kept-after-close", "P9", "what a client had mapped stays until it is collected",
        "pipeline/client/attachment.py",
        "        control.close()\n        if self.is_forked:\n",
        "        if self.is_forked:\n",
        (f"{LEAVING}::test_a_client_that_closes_frees_memory_and_descriptors_whoever_still_holds_its_objects",),
    ),
    Mutant(
        "lane-given-up-while-copying", "D2, R8", "a client gives its lane up though its library thread has not ended",
        "pipeline/client/library.py",
        "            late = self._leaves_late = not self._has_ended\n",
        "            late = self._leaves_late = False\n",
        (f"{LEAVING}::test_the_lane_is_kept_while_the_library_thread_copies",),
    ),
    Mutant(
        "lent-without-slot", "P22", "a client that closes lets go of the rows of those alone who have a slot",
        "pipeline/client/library.py",
        "        for handle in list(self.requests.known):  # those",
        "        for handle in list(self.requests.by_slot.values()):  # those",
        ("tests/pipeline/client/test_given_rows.py::"
         "test_rows_that_were_lent_to_a_request_without_a_slot_are_the_callers_again_when_its_client_closes",),
    ),
    Mutant(
        "clock-of-its-own", "P14", "the launcher stamps the end of requests by another clock than the one it is given",
        "pipeline/node/recovery.py",
        "word.sent, self._clock()):",
        "word.sent, time.monotonic_ns()):",
        ("tests/test_imports.py::test_the_clock_is_injected",),
    ),
    Mutant(
        "payload-kept-of-a-node-that-is-gone", "P9", "a client keeps the payload of a node that is gone until it closes",
        "pipeline/client/library.py",
        "        if not self.attachment.has_payload:\n",
        "        if not self.attachment.is_closed:\n",
        (f"{LEAVING}::test_the_memory_of_a_node_that_is_gone_is_free_before_its_clients_have_closed",),
    ),
    Mutant(
        "armed-after-close", "P9", "`arm` reads a descriptor that may be another file's by now",
        "pipeline/client/attachment.py",
        "        self.check_attached()\n        return self._event_fds[f\"lane{self.lane}\"]\n",
        "        return self._event_fds.get(f\"lane{self.lane}\", 0)\n",
        (f"{LEAVING}::test_after_close_every_method_is_refused",),
    ),
    Mutant(
        "closed-while-looked-at", "B12", "a mapping that is closed goes away under the views that there are",
        "allocator/_core_mapping.c",
        "    if (mapping->views == 0 && (errno = release_memory(mapping)) != 0)\n",
        "    if ((errno = release_memory(mapping)) != 0)\n",
        ("tests/allocator/test_core_mapping.py::"
         "test_a_mapping_that_is_closed_keeps_its_memory_for_the_views_that_there_are[the array]",),
    ),
    Mutant(
        "writer-forgotten", "R12, D2", "nobody asks whether a process of a dead node still has our payload mapped",
        "allocator/lanes_and_processes.py",
        "        return any(True for _ in self._entries(node_id, incarnation))\n",
        "        return any(False for _ in self._entries(node_id, incarnation))\n",
        _rule("the_death_of_a_peer_frees_no_block_while_it_can_still_write"),
    ),
    Mutant(
        "ticket-not-compared", "D14", "a rank's older ticket releases the memory of a newer hold",
        "allocator/ranklog.py",
        "self._tickets[rank].load(entry) >= ticket",
        "self._tickets[rank].load(entry) > 0",
        ("tests/allocator/test_ranklog.py::test_ranks_release_by_ticket_and_the_dead_have_released_everything",),
    ),
    Mutant(
        "tombstones-wiped", "R15", "a node that registers once more loses its tombstones",
        "allocator/peertable.py",
        "if self._tombstones is not None and not keep_tombstones:",
        "if self._tombstones is not None:",
        _crossing("an_abort_of_what_is_forgotten_is_told_of_a_taint_also_after_its_node_registered_again"),
    ),
    Mutant(
        "route-torn", "P17", "a reader of the routes does not look at the generation once more",
        "allocator/routes.py",
        "            if load(at + Route.GENERATION) == generation:\n                return words\n",
        "            return words\n",
        ("tests/allocator/test_routes.py::test_a_record_that_is_replaced_while_it_is_read_is_read_again",),
    ),
]

GRANTING: Final = [
    Mutant(
        "grant-without-expose", "D2, P7", "a grant leaves with blocks that are not exposed",
        "workers/bootstrap/granted_window.py",
        "self._control.blocks.cells.expose(array, 0, len(array), slot, epoch, exposure) == len(array)",
        "len(array) > exposure - exposure",
        _rule("a_drain_frees_whole_blocks_only_and_at_the_end_all"),
    ),
    Mutant(
        "expose-not-looked-at", "D2", "a grant leaves though its request ended while it was exposed",
        "workers/bootstrap/granted_window.py",
        "self._control.blocks.cells.expose(array, 0, len(array), slot, epoch, exposure) == len(array)",
        "self._control.blocks.cells.expose(array, 0, len(array), slot, epoch, exposure) >= 0",
        _crossing("a_grant_does_not_leave_when_its_request_ends_while_it_is_exposed"),
    ),
    Mutant(
        "windows-not-granted-anew", "R10", "after a fence nobody is told of the new session",
        "workers/bootstrap/language.py",
        "            case Kick.SESSION:\n                self._grant_anew(slot)\n",
        "            case Kick.SESSION:\n                self._ctx.is_current(slot, epoch)\n",
        (f"{SESSIONS}::test_in_a_new_session_every_window_is_granted_anew",),
    ),
    Mutant(
        "registration-number-repeats", "R14", "a later registration has the number of the one before",
        "workers/bootstrap/language.py",
        "max(self._registration + 1, max(known) + 1, now_ns)",
        "max(self._registration, max(known), 1)",
        (f"{REGISTRATIONS}::test_each_registration_has_a_greater_number_and_a_grant_carries_that_of_its_own",),
    ),
    Mutant(
        "refusal-of-an-older-epoch", "P17, R16", "a refusal that is late fails the slot's next request",
        "workers/bootstrap/language.py",
        "            and self._ctx.is_current(key.slot, key.epoch)\n",
        "",
        _crossing("a_refusal_of_another_epoch_fails_nobody"),
    ),
]

ADMITTING: Final = [
    Mutant(
        "tombstone-not-checked", "R15, P17", "an init of a request that is over opens it again",
        "workers/bootstrap/encode.py",
        "elif grant.key.epoch <= self._peers.tombstone(peer, grant.key.slot) or not",
        "elif not",
        _rule("an_init_at_or_below_the_tombstone_opens_nothing"),
    ),
    Mutant(
        "incarnation-not-checked", "R14, D5", "the encode side takes a message for another incarnation of itself",
        "workers/bootstrap/encode.py",
        "if peer is None or message.envelope.for_incarnation != self._control.incarnation:",
        "if peer is None:",
        _rule("a_message_for_another_incarnation_is_dropped_and_answered_stale"),
    ),
    Mutant(
        "registration-not-checked", "R14, D2", "a grant from before its node registered again is opened",
        "workers/bootstrap/encode.py",
        "return grant.registration == self._peers.get(peer, Peer.REGISTRATION)",
        "return True",
        (f"{REGISTRATIONS}::test_a_grant_that_was_sent_before_a_node_registered_again_opens_nothing",),
    ),
    Mutant(
        "gap-not-checked", "R1", "a grant that leaves a gap is taken",
        "workers/bootstrap/grant_applier.py",
        "if first > known:",
        "if first > known + len(grant.dst_embedding_indices) + self._control.limits.window_blocks:",
        _rule("a_grant_that_leaves_a_gap_is_ignored_until_the_whole_window_comes"),
    ),
    Mutant(
        "destinations-share-entries", "R1, B10", "the grants of a second destination go over those of the first",
        "allocator/request_tables.py",
        "return slot * self.window_blocks + destination * window + block % window",
        "return slot * self.window_blocks + block % window",
        _rule("the_destinations_of_a_request_share_its_window_and_no_entry_of_it"),
    ),
    Mutant(
        "share-not-checked", "R1, B10", "a destination may grant the whole window of a request that has others",
        "workers/bootstrap/grant_applier.py",
        "if end > sent_block + self._dsts.get(slot, d, Destination.WINDOW):",
        "if end > sent_block + self._control.limits.window_blocks:",
        _rule("the_destinations_of_a_request_share_its_window_and_no_entry_of_it"),
    ),
    Mutant(
        "grant-not-set-once", "R1", "another index under the same session replaces the first",
        "workers/bootstrap/grant_applier.py",
        "if grant.session_id == old_session and index != old_index:",
        "if grant.session_id < old_session and index != old_index:",
        _rule("a_granted_block_keeps_its_index_under_one_session"),
    ),
    Mutant(
        "older-session-replaces", "R1, R10", "a late grant of an older session replaces the newer one's",
        "workers/bootstrap/grant_applier.py",
        "                if grant.session_id <= old_session:\n                    continue\n",
        "",
        _rule("a_newer_session_replaces_what_is_not_sent_and_nothing_below"),
    ),
    Mutant(
        "grant-below-sent-changes", "R1", "a newer session replaces entries whose rows were sent",
        "workers/bootstrap/grant_applier.py",
        "                if k < sent_block:\n                    continue\n",
        "",
        _rule("a_newer_session_replaces_what_is_not_sent_and_nothing_below"),
    ),
    Mutant(
        "granted-shrinks", "R1, P17", "an older grant of the same blocks lowers how many tokens are granted",
        "workers/bootstrap/grant_applier.py",
        "self._dsts.raise_to(slot, d, Destination.GRANTED_TOKENS, tokens)",
        "self._dsts.set(slot, d, Destination.GRANTED_TOKENS, tokens)",
        _crossing("an_older_grant_of_the_same_blocks_lowers_nothing"),
    ),
    Mutant(
        "abort-leaves-no-tombstone", "R15", "an init that its abort has overtaken opens the request",
        "workers/bootstrap/encode.py",
        "is_news = self._peers.raise_tombstone(peer, abort.key.slot, abort.key.epoch)",
        "is_news = False",
        _rule("an_abort_of_a_room_without_init_fails_its_sender_present_or_later"),
    ),
    Mutant(
        "forgotten-abort-acked-clean", "R7", "the abort of what is forgotten is acknowledged as if nothing had been tainted",
        "workers/bootstrap/encode.py",
        "            tainted = self._peers.get(peer, Peer.TAINTED)\n",
        "            tainted = min(self._peers.get(peer, Peer.TAINTED), 0)\n",
        (f"{SESSIONS}::test_an_abort_of_what_is_forgotten_is_acknowledged_with_what_its_peer_has_tainted",),
    ),
    Mutant(
        "released-while-joining", "R23", "a slot is released though a destination that joined late has not heard of the end",
        "workers/bootstrap/encode.py",
        "if any(self._is_waiting(slot, d) for d in range(count)):",
        "if all(self._is_waiting(slot, d) for d in range(count, 0)) and count < 0:",
        _crossing("a_destination_that_joins_while_the_request_ends_hears_of_the_end"),
    ),
    Mutant(
        "destination-counted-first", "P11, R25", "two stores swapped: a destination is counted before its record says who it is",
        "workers/bootstrap/grant_applier.py",
        "        for field, value in (\n            (Destination.WINDOW, ",
        "        self._slots.set(slot, Slot.NUM_DESTINATIONS, d + 1)\n"
        "        for field, value in (\n            (Destination.WINDOW, ",
        _crossing("a_bootstrap_that_dies_while_a_destination_joins_leaves_none_or_a_whole_one"),
    ),
]

TRANSFER: Final = [
    Mutant(
        "sent-before-done", "P6, R9", "`sent` is raised when a write is submitted, not when it is done",
        "workers/transfer/encode.py",
        "            ticket = engine.submit(peer, session, moves)\n",
        "            ticket = engine.submit(peer, session, moves)\n"
        "            self._dsts.raise_to(slot, d, Destination.SENT, end)\n",
        _crossing("rows_count_as_sent_when_the_engine_says_that_they_are"),
    ),
    Mutant(
        "issued-after-submit", "R6", "two steps swapped: how far a write may reach is noted after it was submitted",
        "workers/transfer/encode.py",
        "            self._dsts.raise_to(slot, d, Destination.ISSUED, end)  # before it is submitted (R6)\n"
        "            ticket = engine.submit(peer, session, moves)\n",
        "            ticket = engine.submit(peer, session, moves)\n"
        "            self._dsts.raise_to(slot, d, Destination.ISSUED, end)\n",
        _rule("what_an_attempt_may_write_is_noted_before_it_is_submitted"),
    ),
    Mutant(
        "nothing-tainted", "R6, P7", "an attempt that did not end well leaves no taint",
        "workers/transfer/encode.py",
        "        self._dsts.raise_to(slot, d, Destination.TAINTED, tainted)\n",
        "",
        _rule("an_attempt_that_fails_taints_its_session_before_it_is_repeated"),
    ),
    Mutant(
        "dead-workers-attempt-not-tainted", "R6, P7", "what a dead worker was writing over a network is redone without a taint",
        "workers/transfer/encode.py",
        "            self._taint_unfinished(slot)\n",
        "",
        _rule("a_worker_that_died_in_an_attempt_leaves_its_session_tainted"),
    ),
    Mutant(
        "hold-without-cas", "R8", "a source block is read without being held",
        "workers/transfer/staged_blocks.py",
        "if self._staging.replace(slot, k, word, entry._replace(state=STAGE_READING).pack()):",
        "if entry._replace(state=STAGE_READING).pack() != word:",
        _rule("a_source_block_is_not_freed_while_an_attempt_reads_it"),
    ),
    Mutant(
        "failed-attempt-lets-go", "R8", "the source blocks of a failed attempt come free while its engine may read them",
        "workers/transfer/encode.py",
        "if outcome is Outcome.DONE or not attempt.engine.late_writes:",
        "if outcome is not Outcome.PENDING:",
        _rule("the_source_blocks_of_a_failed_attempt_are_kept_while_its_engine_may_read_them"),
    ),
    Mutant(
        "written-without-grant", "B10", "rows move as soon as they are ready, granted or not",
        "workers/transfer/encode.py",
        "limit = min(ready, get(slot, d, Destination.GRANTED_TOKENS))",
        "limit = max(ready, min(ready, get(slot, d, Destination.GRANTED_TOKENS)))",
        _rule("no_number_in_a_heartbeat_grants_anything"),
    ),
    Mutant(
        "quiesced-too-early", "R9, R8", "the worker says that nothing is under way while an attempt is",
        "workers/transfer/encode.py",
        "if slot in self._may_read or any(key[0] == slot for key in self._attempts):",
        "if slot in self._may_read and not self._attempts:",
        _rule("an_abort_is_acknowledged_only_when_the_last_attempt_has_ended"),
    ),
    Mutant(
        "written-under-another-session", "R10", "a block is written under a session that it was not granted under",
        "workers/transfer/encode.py",
        "if self._dsts.grant(slot, d, k)[1] != session.number:",
        "if self._dsts.grant(slot, d, k)[1] > session.number:",
        (f"{SESSIONS}::test_a_window_of_which_only_a_part_has_come_in_the_new_session_waits",),
    ),
    Mutant(
        "door-not-looked-through-again", "R14", "the worker does not look once more when the door to a node's memory has opened",
        "workers/transfer/encode.py",
        "        if not self._is_granted_by(peer, slot, d):  # once more: its door may have opened for what it granted since\n"
        "            return 0\n",
        "",
        (f"{REGISTRATIONS}::test_the_worker_looks_once_more_when_the_door_has_opened",),
    ),
    Mutant(
        "worker-does-not-scan", "R25", "the worker has no slow scan: a kick that was lost stays lost",
        "workers/transfer/encode.py",
        "            self._scan()\n",
        "",
        _rule("a_kick_that_was_lost_is_repaired_by_the_slow_scan"),
    ),
]

PUBLISHING: Final = [
    Mutant(
        "tainted-before-sent", "R6", "a report reads `sent` after `tainted`, and so may be cleaner than its progress",
        "workers/poller/encode.py",
        "            sent_tokens=sent,\n",
        "            sent_tokens=max(sent, self._dsts.get(slot, d, Destination.SENT)),\n",
        _rule("a_report_is_no_cleaner_than_its_progress"),
    ),
    Mutant(
        "success-without-all", "R4, R18", "Success when those destinations have every row that have come",
        "workers/poller/encode.py",
        "        if not required or count < required:\n            return\n",
        "        if not required:\n            return\n",
        _rule("success_needs_every_required_destination"),
    ),
    Mutant(
        "success-of-the-first", "R4, R18", "the word holds the most that a destination has, not the least",
        "workers/poller/encode.py",
        "least = min(sent)",
        "least = max(sent)",
        _rule("each_destination_is_told_its_own_progress_and_the_word_holds_the_least"),
    ),
    Mutant(
        "success-of-a-round", "R4, B2", "Success when all that is ready has been sent",
        "workers/poller/encode.py",
        "if least >= total and",
        "if least >= min(total, slots.get(slot, Slot.READY)) and",
        _rule("a_round_that_has_landed_while_the_encoder_still_writes_is_no_success"),
    ),
    Mutant(
        "ack-while-under-way", "R9, P7", "an abort is acknowledged before the worker has said that nothing is under way",
        "workers/poller/encode.py",
        "            and phase >= TERMINAL\n            and self._slots.get(slot, Slot.QUIESCED_EPOCH) == epoch\n        ):\n",
        "            and phase >= TERMINAL\n        ):\n",
        _rule("an_abort_is_acknowledged_only_when_the_last_attempt_has_ended"),
    ),
    Mutant(
        "slot-free-before-closed", "R23", "a request that has ended is forgotten before its destination has closed it",
        "workers/poller/encode.py",
        "                self._dsts.get(slot, d, Destination.CLOSED)\n            ):\n                return\n",
        "                self._dsts.get(slot, d, Destination.CLOSED)\n            ):\n                break\n",
        _rule("a_request_that_has_ended_stays_in_the_heartbeats_until_it_is_closed"),
    ),
    Mutant(
        "encode-deadline-missing", "D1, P8", "the encode side lets a request wait for ever",
        "workers/poller/encode.py",
        "if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):",
        "if not code and self._now_ns < 0:",
        _rule("every_deadline_begins_when_the_request_is_opened"),
    ),
    Mutant(
        "dead-encoders-blocks-kept", "P1, P3", "source blocks of an encoder that died are not reclaimed",
        "workers/poller/encode.py",
        "if lane_dead and self._control.blocks.cells.reclaim(slot, epoch, False):",
        "if lane_dead and self._control.blocks.cells.num_free(1) < 0:",
        _crossing("what_an_encoder_that_died_held_comes_free"),
    ),
    Mutant(
        "lost-peer-not-noticed", "P4, R14", "a request goes on though its destination is dead or has registered anew",
        "workers/poller/encode.py",
        "code, reason = FailureCode.PEER_LOST,",
        "reason =",
        _rule("a_request_whose_destination_is_dead_needs_no_closing"),
    ),
]

RECEIVING: Final = [
    Mutant(
        "failed-frees-at-once", "R7, D2, P7", "Failed frees blocks into which the encode side may be writing",
        "workers/poller/language.py",
        "if cells.reclaim(slot, epoch, True):",
        "if cells.reclaim(slot, epoch, False):",
        _rule("blocks_are_quarantined_when_the_encode_side_says_failed_and_until_it_acknowledges"),
    ),
    Mutant(
        "ack-not-waited-for", "R7, R9", "quarantine ends before the abort is acknowledged",
        "workers/poller/language.py",
        "            if not self._is_acked(slot, epoch, peer):\n                return\n",
        "            self._is_acked(slot, epoch, peer)\n",
        _rule("blocks_are_quarantined_when_the_encode_side_says_failed_and_until_it_acknowledges"),
    ),
    Mutant(
        "tainted-blocks-freed-by-ack", "R7, P7", "the acknowledgement frees what a late write may still hit",
        "workers/poller/language.py",
        "if not self._is_tainted(slot) and cells.end_quarantine(slot, epoch):",
        "if cells.end_quarantine(slot, epoch):",
        _rule("blocks_of_a_failed_request_wait_for_the_abort_ack_and_the_tainted_ones_longer"),
    ),
    Mutant(
        "report-of-another-epoch", "R14, R16, P17", "a report about the slot's request before this one is taken",
        "workers/poller/language.py",
        "return self._ctx.is_current(key.slot, key.epoch) and self._slots.get(key.slot, Slot.PEER) == peer + 1",
        "return self._slots.get(key.slot, Slot.PEER) == peer + 1",
        _rule("a_status_of_another_epoch_of_the_slot_closes_it_there_and_changes_nothing_here"),
    ),
    Mutant(
        "word-before-tainted", "R6, P7", "two stores swapped: rows are seen to have landed before what is tainted is known",
        "workers/poller/language.py",
        "        slots.raise_to(slot, Slot.TAINTED, room.tainted)  # before the word (R6)\n",
        "        self._advance(slot, epoch, room)\n        slots.raise_to(slot, Slot.TAINTED, room.tainted)\n",
        _rule("what_is_tainted_is_stored_before_the_word_says_that_rows_have_landed"),
    ),
    Mutant(
        "success-from-counters", "R20", "the language side calls it Success when all of its own rows have landed",
        "workers/poller/language.py",
        "        phase = max(room.phase, split(self._ctx.status.load(slot)).phase)\n",
        "        phase = max(room.phase, split(self._ctx.status.load(slot)).phase)\n"
        "        phase = Phase.Success if room.sent_tokens == room.total_tokens else phase\n",
        _rule("the_language_side_takes_success_from_the_phase_alone"),
    ),
    Mutant(
        "no-fence", "R11", "quarantine ends for nobody who waits",
        "workers/poller/language.py",
        "self._ctx.to(f\"worker{worker}\").send(Kick.FENCE, worker, 0, number)",
        "self._ctx.to(f\"worker{worker}\").flush()",
        (f"{SESSIONS}::test_when_somebody_waits_for_a_block_the_fence_comes_soon",),
    ),
    Mutant(
        "fence-for-the-busy", "R11", "one quarantine after another, each of them short, bring a fence",
        "workers/poller/language.py",
        "block: self._quarantined_ns.get(block, self._now_ns) for blocks",
        "block: min(self._quarantined_ns.values(), default=self._now_ns) for blocks",
        (f"{SESSIONS}::test_quarantines_that_end_in_time_bring_no_fence_however_many_follow_one_another",),
    ),
    Mutant(
        "freed-before-the-fence", "R10, P7", "what is quarantined under the session that lives is taken for fenced",
        "workers/poller/language.py",
        "            if number < current:\n                self._free_fenced(worker, current)\n",
        "            if number <= current:\n                self._free_fenced(worker, current + 1)\n",
        (f"{SESSIONS}::test_a_fence_frees_only_what_was_exposed_under_a_lesser_session",),
    ),
    Mutant(
        "death-taken-for-a-fence", "R12, P7", "the death of a peer frees what it may have sent over a network",
        "workers/poller/language.py",
        "                self._acked(slot, epoch, session + 1)\n",
        "                self._acked(slot, epoch, 0)\n",
        (f"{SESSIONS}::test_when_a_peer_dies_what_it_may_have_written_over_the_network_waits_for_the_fence",),
    ),
    Mutant(
        "grant-not-sent-again", "R24", "a grant that was lost stays lost",
        "workers/poller/language.py",
        "if room.known_blocks < self._slots.granted(slot)[0] or room.session < self._slots.get(slot, Slot.SESSION):",
        "if room.session < self._slots.get(slot, Slot.SESSION):",
        _rule("a_grant_that_was_lost_is_sent_again_when_a_heartbeat_shows_it_missing"),
    ),
    Mutant(
        "abort-not-repeated", "R23, D2", "an abort that was lost stays lost, and its blocks in quarantine",
        "workers/poller/language.py",
        "            if self._slots.get(slot, Slot.ACKED_EPOCH) != epoch:\n",
        "            if self._slots.get(slot, Slot.ACKED_EPOCH) > epoch:\n",
        _rule("an_aborted_request_is_listed_and_its_abort_repeated_until_it_is_acknowledged"),
    ),
    Mutant(
        "sent-in-a-resume-not-checked", "R2", "a resume that claims more than was sent is taken",
        "workers/bootstrap/grant_applier.py",
        "            if grant.sent_tokens > sent:\n",
        "            if grant.sent_tokens > sent + (1 << 32):\n",
        _rule("a_resume_that_claims_more_than_was_sent_fails_its_request_alone"),
    ),
    Mutant(
        "success-of-rows-that-did-not-come", "P6, R4", "Success is believed whatever was sent",
        "workers/poller/language.py",
        "        if room.phase == Phase.Success and not 0 < total == room.sent_tokens:\n",
        "        if room.phase == Phase.Success and total == 0 == room.sent_tokens:\n",
        _rule("a_report_that_cannot_be_true_fails_its_request"),
    ),
    Mutant(
        "more-sent-than-granted", "D15, P16", "a report of rows for which no block was granted is believed",
        "workers/poller/language.py",
        "        if room.sent_tokens > tokens:\n",
        "        if room.sent_tokens > 1 << 32:\n",
        _crossing("more_rows_reported_than_were_granted_fail_the_request"),
    ),
    Mutant(
        "language-deadline-missing", "D1, P8", "the language side lets a request wait for ever",
        "workers/poller/language.py",
        "if not code and self._now_ns >= self._slots.get(slot, Slot.DEADLINE_NS):",
        "if not code and self._now_ns < 0:",
        _rule("every_deadline_begins_when_the_request_is_opened"),
    ),
]

NODE: Final = [
    Mutant(
        "memory-with-a-name", "P9", "two steps swapped: a segment has a size while it still has a name",
        "allocator/segment.py",
        "mode=0o600, size=0).fd",
        "mode=0o600, size=4096).fd",
        (f"{NAMES}::test_a_kill_at_any_system_call_of_a_creation_leaves_an_empty_name_at_most",),
    ),
    Mutant(
        "left-names-stay", "P9", "a node that starts leaves the names of the dead where they are",
        "pipeline/node/launcher.py",
        "if left := remove_left_names():",
        "if left := list[str]():",
        (f"{NAMES}::test_the_next_start_removes_it",),
    ),
    Mutant(
        "names-of-the-living-removed", "P9", "the names of processes that live are removed, too",
        "allocator/segment.py",
        "            if int(found[3]) and _started(int(found[2])) == int(found[3]):\n",
        "            if not int(found[3]):\n",
        (f"{NAMES}::test_what_a_dead_process_left_is_removed_and_nothing_else",),
    ),
    Mutant(
        "pool-does-not-adapt", "P13", "a pool of which nobody said the size is the default, whatever room there is",
        "pipeline/node/sizing.py",
        "    blocks = _fitting(role, replace(geometry, num_blocks=DEFAULT_BLOCKS), limits, room_bytes)\n",
        "    blocks = DEFAULT_BLOCKS + 0 * room_bytes\n",
        (f"{SIZING}::test_a_pool_of_which_nobody_said_the_size_leaves_half_to_a_second_node",),
    ),
    Mutant(
        "pages-returned-in-use", "D6, R16", "a dead client's slots are given to another while requests in them are open",
        "workers/poller/reaper.py",
        "if any(self._in_use(page) for page in pages):",
        "if any(self._in_use(page) for page in pages[:0]):",
        _crossing("the_slots_of_a_scheduler_that_died_are_nobodys_until_its_requests_are_acknowledged"),
    ),
    Mutant(
        "dead-clients-lane-kept", "P1, P12", "the seat of a client that died is never free again",
        "workers/poller/base.py",
        "                self._reaper.bury(slot)\n",
        "",
        _crossing("the_slots_of_a_scheduler_that_died_are_nobodys_until_its_requests_are_acknowledged"),
    ),
    Mutant(
        "poller-does-not-scan", "R25", "the poller has no slow scan",
        "workers/poller/base.py",
        "            touched.update(current)\n",
        "",
        _crossing("a_failure_whose_kick_was_lost_is_found_by_the_slow_scan"),
    ),
    Mutant(
        "status-for-another-incarnation", "R14, P17", "a poller takes a message for another incarnation of itself",
        "workers/poller/peer_watch.py",
        "if peer is None or envelope.for_incarnation != self._ctx.control.incarnation:",
        "if peer is None:",
        _rule("a_status_for_or_from_another_incarnation_has_no_effect"),
    ),
    Mutant(
        "silence-is-no-death", "P4", "a peer that says nothing any more is waited for for ever",
        "workers/poller/peer_watch.py",
        "if silent_ns > timing.peer_timeout_s * NS:",
        "if silent_ns < 0:",
        _rule("who_is_silent_is_dead_and_who_was_stopped_itself_holds_nothing_against_others"),
    ),
    Mutant(
        "own-stop-held-against-others", "P14", "a process that was stopped takes its peers for dead",
        "workers/poller/peer_watch.py",
        "            if stalled:\n",
        "            if stalled and now_ns < 0:\n",
        _rule("who_is_silent_is_dead_and_who_was_stopped_itself_holds_nothing_against_others"),
    ),
    Mutant(
        "released-slot-is-current", "R16", "a slot that was released still counts as its last request's",
        "allocator/control.py",
        "            and self.slots.get(slot, Slot.RELEASED_EPOCH) < epoch\n",
        "",
        _rule("a_block_that_nobodys_request_holds_is_reported_once"),
    ),
    Mutant(
        "one-bug-ends-the-process", "D4", "an exception in one item ends the process, and so every request",
        "workers/role.py",
        "        except Exception as error:\n            log.exception(",
        "        except KeyError as error:\n            log.exception(",
        _rule("an_exception_in_one_item_ends_that_request_and_not_the_process"),
    ),
    Mutant(
        "fence-of-any-session", "R10, R11", "a fence that was asked for twice ends the next session, too",
        "workers/transfer/language.py",
        "and self._session.number and record.value == self._session.number:",
        "and self._session.number:",
        _crossing("a_fence_of_a_session_that_is_over_ends_nothing"),
    ),
    Mutant(
        "allow-list-not-checked", "D15", "a stranger's key is let in",
        "workers/wire/zap.py",
        "        if key in self._allow.list.keys:\n            return key\n",
        "        if key:\n            return key\n",
        (f"{STRANGERS}::test_a_stranger_reaches_no_role_and_a_listed_node_is_served_meanwhile",),
    ),
    Mutant(
        "delisted-key-may-speak", "D15", "a connection outlives the line of the allow-list that let it in",
        "workers/wire/loop.py",
        "return self._keys is None or (len(identity) == KEY_LENGTH and self._keys.is_listed(identity))",
        "return self._keys is None or len(identity) == KEY_LENGTH",
        (f"{STRANGERS}::test_a_key_that_is_taken_off_the_list_is_not_heard_any_more",),
    ),
    Mutant(
        "floods-are-read-at-once", "P16", "a flood of what is refused takes all of a process",
        "workers/wire/reader.py",
        "            if self.rests_until_ns > time.monotonic_ns():\n                return\n",
        "",
        (f"{STRANGERS}::test_a_flood_of_what_is_refused_is_read_slowly_and_whoever_else_is_there_is_served",),
    ),
    Mutant(
        "speaks-for-another", "D15, P17", "a listed node may send heartbeats and reports in the name of another",
        "workers/poller/peer_watch.py",
        "        if peers_key != key:\n",
        "        if peers_key != key and not key:\n",
        ("tests/hostile/test_impostors.py::test_a_heartbeat_in_the_name_of_another_keeps_nobody_alive",),
    ),
]

PIPELINE: Final = [
    Mutant(
        "partial-block-drained", "R3, P6", "a drain frees a block into which rows are still to come",
        "pipeline/client/receiver.py",
        "if total and num_tokens >= total else num_tokens // self._bs",
        "if total and num_tokens >= total else -(-num_tokens // self._bs)",
        _rule("a_drain_frees_whole_blocks_only_and_at_the_end_all"),
    ),
    Mutant(
        "tainted-blocks-drained", "R7, P7", "a drain frees a block that a late write may hit",
        "pipeline/client/receiver.py",
        "        if self.is_tainted:\n",
        "        if self.is_tainted and not total:\n",
        _rule("a_block_that_a_late_write_may_hit_is_quarantined_by_the_drain"),
    ),
    Mutant(
        "resume-decided-by-phase", "R5, B9", "a resume is due in one phase only",
        "pipeline/client/receiver.py",
        "return now.phase < Phase.Success and now.sent == granted < total",
        "return now.phase == Phase.Transferring and now.sent == granted < total",
        _rule("a_resume_is_due_when_all_that_was_granted_is_sent_whatever_the_phase"),
    ),
    Mutant(
        "sent-not-checked", "R2", "a resume may claim more than has landed",
        "pipeline/client/receiver.py",
        "        if sent_tokens > self.progress().sent:\n",
        "        if sent_tokens > self.progress().sent + self.granted_tokens:\n",
        _rule("a_resume_that_claims_more_than_has_landed_is_the_callers_mistake"),
    ),
    Mutant(
        "grants-after-clear", "D12", "a receiver that was cleared takes another grant",
        "pipeline/client/receiver.py",
        "        if self._cleared:\n            raise ValueError",
        "        if self._cleared and self._final is None and count < 0:\n            raise ValueError",
        _crossing("what_a_caller_grants_is_its_own_and_not_after_clear"),
    ),
    Mutant(
        "anybodys-blocks-granted", "D15, P6", "blocks of another request may be granted",
        "pipeline/client/receiver.py",
        "        if foreign or len(set(indices)) < count:\n",
        "        if len(set(indices)) < count:\n",
        _crossing("what_a_caller_grants_is_its_own_and_not_after_clear"),
    ),
    Mutant(
        "blocks-kept-after-the-end", "P1", "blocks that come when the request has ended are kept",
        "pipeline/client/receiver.py",
        "        if len(blocks) and self.poll() >= Phase.Success:  # ended meanwhile: whoever cleans up may have passed already\n"
        "            self._control.blocks.release(blocks, self.slot, self.epoch)\n",
        "        if len(blocks) and self.poll() >= Phase.Success:\n",
        _crossing("blocks_that_come_when_the_request_has_ended_go_back_at_once"),
    ),
    Mutant(
        "slots-last-in-first-out", "R17", "the slot that has just come free is used next",
        "pipeline/client/slot_lease.py",
        "return self._free[page].popleft()",
        "return self._free[page].pop()",
        _rule("slots_are_used_first_in_first_out"),
    ),
    Mutant(
        "slot-used-before-released", "R23, R16", "a slot is used again before the node is done with it",
        "pipeline/client/slot_lease.py",
        "if self._slots.get(slot, Slot.RELEASED_EPOCH) >= epoch and",
        "if self._slots.get(slot, Slot.RELEASED_EPOCH) <= epoch and",
        _rule("a_slot_is_not_used_again_before_the_node_has_released_it"),
    ),
    Mutant(
        "epoch-opened-before-record", "P11, R16", "two stores swapped: an epoch is open before its record says so",
        "pipeline/client/slot_lease.py",
        "            self._slots.set(slot, Slot.EPOCH, split(self._control.status.load(slot)).epoch + 1)\n"
        "            epoch = self._control.status.open(slot, opened_ns)\n",
        "            epoch = self._control.status.open(slot, opened_ns)\n"
        "            self._slots.set(slot, Slot.EPOCH, split(self._control.status.load(slot)).epoch)\n",
        _crossing("an_epoch_is_opened_after_its_record_was_written"),
    ),
    Mutant(
        "dropped-while-read", "R8, P6", "a source block is freed while the worker reads it",
        "pipeline/client/staged_blocks.py",
        "if StageEntry.of(word).state != STAGE_STAGED or not self._staging.replace(slot, block, word, FREE_ENTRY):",
        "if not self._staging.replace(slot, block, word, FREE_ENTRY):",
        _rule("a_source_block_is_not_freed_while_an_attempt_reads_it"),
    ),
    Mutant(
        "reserve-for-rows-ahead", "R21, D8", "rows that nobody needs next are staged in the reserve",
        "pipeline/client/sender.py",
        "        if not blocks and missing[0] in heads:\n            blocks = pool.acquire",
        "        if not blocks and missing:\n            blocks = pool.acquire",
        _rule("a_source_block_of_the_reserve_is_staged_only_for_what_can_be_written_now"),
    ),
    Mutant(
        "rows-before-the-slot-untold", "B5, P8", "rows that were written while the request waited for a slot are not told when it has one",
        "pipeline/client/sender.py",
        "            self._slots.raise_to(self.slot, Slot.READY, seen)  # what was written before it had its slot\n",
        "",
        (f"{WAITING}::test_a_call_that_waits_can_be_used_and_goes_on_when_its_room_is_asked_for",),
    ),
    Mutant(
        "rows-are-lent-unasked", "P22", "the caller's rows are not copied, and nobody has said so",
        "pipeline/client/sender.py",
        "        lent = given.lent() if borrow else None\n",
        "        lent = given.lent()\n",
        (f"{GIVEN}::test_rows_that_were_given_are_the_callers_again_and_the_memory_for_them_goes_back",),
    ),
    Mutant(
        "evicted-without-a-copy", "P22, R21", "a source block is freed though its rows stand nowhere else",
        "pipeline/client/staged_blocks.py",
        "        if not self._kept.has(block) and not self._kept.is_over(block):\n            entry",
        "        if block < 0:\n            entry",
        (f"{GIVEN}::test_what_stands_in_a_block_alone_is_copied_to_host_memory_before_the_block_is_anothers",),
    ),
    Mutant(
        "ended-while-it-is-written", "P22, D2", "the library thread ends a request into which its caller is writing",
        "pipeline/client/sender.py",
        "        if self._writing:  # it wakes us, too\n",
        "        if self._writing and self.slot < 0:\n",
        (f"{GIVEN}::test_a_request_is_not_ended_while_its_rows_are_being_written",),
    ),
    Mutant(
        "a-limit-for-each-client", "P22, P12", "a client looks at its own word alone",
        "pipeline/client/unsent_memory.py",
        "        total = self._lanes.unsent_bytes()\n",
        "        total = self._lanes.get(self._lane, 7)  # type: ignore[arg-type]\n",
        (f"{GIVEN}::test_beyond_the_nodes_limit_no_row_is_taken_and_a_later_write_is",),
    ),
    Mutant(
        "kept-until-the-end", "P22", "host memory goes back at the end of a request alone",
        "pipeline/client/sender.py",
        "        self._kept.let_go(least)\n",
        "        self._kept.let_go(0 * least)\n",
        (f"{GIVEN}::test_rows_that_were_given_are_the_callers_again_and_the_memory_for_them_goes_back",),
    ),
    Mutant(
        "every-piece-is-looked-at", "P22", "a row that is staged costs a look at all pieces of its request",
        "pipeline/client/kept_rows.py",
        "            at = bisect_right(pieces, first, key=_first) - 1\n",
        "            at = [bisect_right(p, first, key=_first) for p in self._pieces.values() if p is pieces or len(p)] and \\\n"
        "                bisect_right(pieces, first, key=_first) - 1\n",
        (f"{GIVEN}::test_a_row_a_write_costs_the_same_for_every_row",),
    ),
    Mutant(
        "reserve-without-rows", "R21, D8", "a request at the destination takes the last block though it has no rows waiting",
        "pipeline/scheduler/transfer_queue.py",
        "may_take_reserve=record.has_rows_waiting)",
        "may_take_reserve=True)",
        _crossing("a_request_without_rows_leaves_the_reserve_where_it_is"),
    ),
    Mutant(
        "waiting-rooms-take-all", "P21", "a request of which nothing is known is granted its default, whoever else waits",
        "pipeline/scheduler/transfer_queue.py",
        "            target = min(target, max((receiver.granted_blocks + self._share(missing)) * self._bs, granted))\n",
        "            target = max(target, 0 * self._share(missing), granted)\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_requests_that_wait_for_their_encoders_leave_a_quarter_of_the_pool_to_those_whose_rows_come",),
    ),
    Mutant(
        "announced-rooms-take-all", "P21", "a request is granted ahead of its rows as soon as its length is known, whoever else waits",
        "pipeline/scheduler/transfer_queue.py",
        "request.total_embedding_length, receiver.granted_tokens, receiver.ready_tokens > 0\n",
        "request.total_embedding_length, receiver.granted_tokens, request.total_embedding_length + receiver.ready_tokens > 0\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_requests_whose_lengths_are_announced_leave_that_quarter_as_long_as_they_have_shown_no_row",),
    ),
    Mutant(
        "share-after-share", "P21", "a request without rows takes a share once more whenever it is looked at",
        "pipeline/scheduler/transfer_queue.py",
        "        may_have_more = receiver.ready_tokens > 0 or not record.has_share\n",
        "        may_have_more = receiver.ready_tokens >= 0 or not record.has_share\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::test_a_request_without_rows_takes_nothing_of_what_comes_free_later",),
    ),
    Mutant(
        "all-ahead-of-the-rows", "P21", "one whose encoder stops holds the whole pool, once its length is known",
        "pipeline/scheduler/default_grant.py",
        "    return max(num_blocks // 2, SMALL_POOL // 2)\n",
        "    return num_blocks\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::test_no_request_has_more_than_half_of_the_pool_ahead_of_its_rows",),
    ),
    Mutant(
        "quarter-of-the-blocks", "P21", "nothing of the pool stays for those whose rows come",
        "pipeline/scheduler/default_grant.py",
        "    return max(0, min(free // 2, free - num_blocks // 4))\n",
        "    return free // 2\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::test_however_many_wait_a_quarter_stays",),
    ),
    Mutant(
        "quarter-of-the-slots", "P8, D8", "rooms that are asked for with no block take the last slots",
        "pipeline/client/slot_lease.py",
        "        return 4 * (free + unleased * SLOTS_PER_PAGE) >= (len(self._free) + unleased) * SLOTS_PER_PAGE\n",
        "        return free + unleased > 0\n",
        (f"{WAITING}::test_rooms_that_are_asked_for_with_no_block_leave_a_quarter_of_the_slots",),
    ),
    Mutant(
        "ban-without-end", "R15, D11", "a room that has failed is barred though everybody who belongs to it knows",
        "workers/bootstrap/ended_rooms.py",
        "        all_know = self.is_encoder_told and 0 < self.required <= len(self.told)\n",
        "        all_know = self.is_encoder_told and 0 > self.required\n",
        ("tests/workers/bootstrap/test_ended_rooms.py::"
         "test_a_room_that_failed_before_its_destination_came_is_free_when_that_one_knows",),
    ),
    Mutant(
        "stderr-without-bound", "P21, P12", "what is said is kept without a bound while nobody reads it",
        "workers/stderr.py",
        "        if self._queue.qsize() >= MAX_TEXTS or not (self._is_started or self.start()):\n",
        "        if not (self._is_started or self.start()):\n",
        ("tests/workers/test_stderr.py::test_who_writes_into_a_full_pipe_goes_on_and_what_was_dropped_is_counted",),
    ),
    Mutant(
        "youngest-first", "R22, D9", "those who wait for blocks are served last come, first served",
        "pipeline/scheduler/transfer_queue.py",
        "        for request in self._wanting:\n",
        "        for request in reversed(self._wanting):\n",
        _rule("those_whose_rows_wait_are_served_first_come_first_served"),
    ),
    Mutant(
        "finished-before-success", "R20, B2", "a request is handed over when its own rows have landed, not when all have all",
        "pipeline/scheduler/transfer_queue.py",
        "if now.phase == Phase.Success and request.transferred_tokens == request.total_embedding_length:",
        "if request.transferred_tokens == request.total_embedding_length > 0:",
        _crossing("what_has_landed_here_is_not_handed_over_before_it_has_landed_everywhere"),
    ),
    Mutant(
        "woken-by-slot", "P8, R16", "a handle that was woken takes the place of the one that a mark has named, if it has had the same slot",
        "pipeline/client/library.py",
        "            todo[self._to_serve.popleft()] = None\n",
        "            woken = self._to_serve.popleft()\n"
        "            todo.pop(requests.by_slot.get(woken.slot), None)\n"
        "            todo[woken] = None\n",
        (f"{MARKS}::test_a_handle_that_was_woken_after_it_has_left_takes_nothing_from_the_next_one_in_its_slot",),
    ),
    Mutant(
        "marks-are-certain", "P8", "the library thread looks at nothing that neither a mark nor a status word names",
        "pipeline/client/library.py",
        "dict.fromkeys(self._round.some())",
        "dict.fromkeys(self._round.some()[:0])",
        (f"{MARKS}::test_requests_arrive_though_every_mark_is_lost[0]",),
    ),
    Mutant(
        "rises-are-marked", "P8", "the caller is shown no rise that was marked before its request was entered",
        "pipeline/client/client.py",
        "for handle in looks if handle.has_risen()",
        "for handle in looks[:0] if handle.has_risen()",
        (f"{MARKS}::test_a_rise_that_came_before_the_request_was_entered_is_made_up_for",),
    ),
    Mutant(
        "released-by-slot", "R16", "a slot is free again for an earlier epoch's release",
        "pipeline/client/slot_lease.py",
        "self._releasing.pop(left, False) is None",
        "self._releasing.pop(next((key for key in self._releasing if key[0] == slot), left), False) is None",
        (f"{MARKS}::test_a_slot_is_given_back_once_though_two_threads_collect_it",),
    ),
    Mutant(
        "all-slots-early", "P8, D8", "every slot of an encode node may be held by rooms that nobody has asked for",
        "pipeline/client/slot_lease.py",
        "if self._lanes.num_early() <= self._lanes.num_pages // 2:",
        "if self._lanes.num_early() <= self._lanes.num_pages:",
        (f"{WAITING}::test_rooms_that_are_opened_in_opposite_orders_all_arrive[1-faults0]",),
    ),
    Mutant(
        "asked-for-unheard", "P8", "a call that waits for a slot does not hear that its room is asked for",
        "pipeline/client/slot_queue.py",
        "        for room, can_end in rooms:\n",
        "        for room, can_end in rooms[:0]:\n",
        (f"{WAITING}::test_a_room_that_is_asked_for_before_its_call_takes_a_slot_at_once",),
    ),
    Mutant(
        "read-past-who-joins", "P8", "what is announced after the look at who waits counts as read",
        "pipeline/client/slot_queue.py",
        "            self._read = end\n",
        "            self._read = max(end, self._wanted.end)\n",
        (f"{WAITING}::test_a_call_that_joins_while_the_library_thread_finds_nobody_hears_that_it_is_wanted",),
    ),
    Mutant(
        "asked-unmarked", "P8", "who has asked while its lane had no mark does not ask again",
        "pipeline/client/slot_queue.py",
        "                    self._attachment.ask(handle.room)\n",
        "                    handle.room\n",
        (f"{WAITING}::test_a_call_that_asks_while_the_library_thread_takes_the_mark_away_is_asked_for_again",),
    ),
    Mutant(
        "given-up-and-waits", "P5, P8", "a receiver that is given up while it waits for a slot ends when it gets one, or at its deadline",
        "pipeline/client/slot_queue.py",
        "            late = list(self._first)  # they",
        "            late = list(self._first) if is_slow and late else []  # they",
        (f"{WAITING}::test_a_receiver_that_waits_and_is_given_up_ends_in_the_next_turn[abort]",),
    ),
    Mutant(
        "the-dead-wait", "P3, P8", "a client that has died while it waited counts as one that waits until its peers let its slots go",
        "allocator/lanebits.py",
        "if word >> lane & 1 and self._lanes.get(lane, Lane.STATE) == LaneState.ATTACHED\n",
        "if word >> lane & 1 and self._lanes.get(lane, Lane.STATE) != LaneState.FREE\n",
        ("tests/pipeline/client/test_waiting_for_slots.py::"
         "test_one_that_died_while_it_waited_counts_for_nothing_while_its_peers_still_hold_its_slots",),
    ),
    Mutant(
        "empty-page-counted", "P8", "a page counts as early for ever though no early slot lies in it, where two threads have crossed",
        "pipeline/client/slot_lease.py",
        "        for page, early in list(self._early.items()):\n            if not early:",
        "        for page, early in list(self._early.items())[:0]:\n            if not early:",
        (f"{WAITING}::test_a_page_of_which_the_last_early_slot_leaves_while_another_is_taken_is_not_counted",),
    ),
    Mutant(
        "single-page-early", "P8, D8", "the only page of slots may be full of rooms that nobody has asked for",
        "pipeline/client/slot_lease.py",
        "if self._lanes.num_early() <= self._lanes.num_pages // 2:",
        "if self._lanes.num_early() <= max(1, self._lanes.num_pages // 2):",
        (f"{WAITING}::test_with_a_single_page_of_slots_rooms_are_opened_when_they_are_asked_for",),
    ),
    Mutant(
        "pages-kept", "P8", "a client gives no page of slots back while it lives",
        "pipeline/client/slot_lease.py",
        "        gone = [page for page in unused if",
        "        gone = [page for page in unused[:0] if",
        (f"{WAITING}::test_a_client_with_nothing_to_do_keeps_no_slots_from_another",),
    ),
    Mutant(
        "report-of-two-requests", "R16, P6", "a report is made though the slot is another request's by now",
        "workers/poller/encode.py",
        "        if not self._ctx.is_current(slot, epoch):\n            return  # it was",
        "        if epoch < 0:\n            return  # it was",
        (f"{MARKS}::test_no_report_is_made_of_the_words_of_two_requests",),
    ),
    Mutant(
        "rebuilt-by-slot", "R15, R16, P11", "a restarted bootstrap takes the last in the table for the latest of a slot there",
        "workers/bootstrap/encode.py",
        "if key not in self._open or held.remote_epoch > self._open[key].remote_epoch:",
        "if True:",
        (f"{MARKS}::test_a_bootstrap_that_is_restarted_finds_the_latest_request_of_a_slot_there",),
    ),
    Mutant(
        "no-restart", "P11, D4", "a process of the node that died is not started again",
        "pipeline/node/supervisor.py",
        "        child.restart_ns = now + int(pause_s * NS)\n",
        "        child.restart_ns = 0 * int(pause_s * NS)\n",
        ("tests/pipeline/node/test_node_restarts.py::"
         "test_a_process_that_is_restarted_takes_requests_that_were_opened_while_it_was_away",),
    ),
    Mutant(
        "dead-client-not-buried", "P3, P4", "nobody is told that a client has died",
        "pipeline/node/recovery.py",
        "        if self._control.lanes.bury(lane):",
        "        if self._control.lanes.num_lanes < 0:",
        ("tests/transfers/test_failures.py::test_when_the_encoder_process_is_killed_the_scheduler_is_told_and_every_block_comes_back",),
    ),
    Mutant(
        "thread-is-process", "P6, P3", "a process counts as dead when one of its threads has ended",
        "pipeline/node/death_watch.py",
        "            is_gone = not has_memory(self._pid)\n",
        "            is_gone = True\n",
        (f"{DYING}::test_a_thread_that_ends_is_no_death_and_another_one_is_watched_instead",),
    ),
    Mutant(
        "one-thread-looked-at", "P6", "whether a process has memory is asked of its first thread alone",
        "pipeline/node/death_watch.py",
        "for thread in _threads(pid))",
        "for thread in _threads(pid)[:1])",
        (f"{DYING}::test_a_process_whose_first_thread_has_ended_has_memory_while_another_thread_lives",),
    ),
    Mutant(
        "device-forgotten", "P6", "an encoder for which a device may write is dead before its driver hears of it",
        "pipeline/node/run_socket_server.py",
        "        is_pinned = guest.lane >= 0 and self._control.lanes.get(guest.lane, Lane.PINNED)\n",
        "        is_pinned = False\n",
        (f"{DYING}::test_an_encoder_for_which_a_device_may_write_is_dead_when_its_driver_is_told",),
    ),
    Mutant(
        "name-at-a-socket", "P21", "whatever an address holds is given to libzmq, which looks names up in its one I/O thread",
        "workers/wire/loop.py",
        "            numeric(address)  # a name",
        "            str(address)  # a name",
        (f"{LOOKUPS}::test_no_name_reaches_a_socket",),
    ),
    Mutant(
        "a-link-a-spelling", "R14, D2", "a node that is asked by name and by number is registered with twice",
        "workers/bootstrap/language.py",
        "self._open_at(found.endpoint, asked, slot, epoch, now_ns)",
        'self._open_at(found.endpoint.replace("10.", "010."), asked, slot, epoch, now_ns)',
        (f"{LOOKUPS}::test_a_node_that_is_asked_by_name_and_by_number_has_one_link",),
    ),
    Mutant(
        "name-announced", "P16, P21", "a node may announce an address that is no number",
        "workers/bootstrap/registrations.py",
        "        if wrong := why_not_numeric(message):",
        '        if wrong := why_not_numeric(message) and "":',
        (f"{LOOKUPS}::test_a_node_that_announces_no_number_is_refused_with_the_field",),
    ),
    Mutant(
        "hung-names-have-all", "P21, P12", "names whose look-ups hang again and again may hold every thread",
        "workers/addresses.py",
        "for address in self._begun]) < MAX_THREADS // 2\n",
        "for address in self._begun]) < MAX_THREADS\n",
        (f"{LOOKUPS}::test_names_that_have_hung_before_have_half_of_the_places_however_many_they_are",),
    ),
    Mutant(
        "led-to-nobody", "P21", "where a name leads is kept though nobody answers there",
        "workers/bootstrap/language.py",
        "            self._ctx.forget(link.address)\n        if not link.waiting:\n",
        "        if not link.waiting:\n",
        (f"{LOOKUPS}::test_where_a_name_leads_is_forgotten_when_nobody_answers_there[given up]",),
    ),
    Mutant(
        "as-late-as-the-first", "P21, P8", "who joins those who wait for a name or a connection fails with the first of them",
        "workers/bootstrap/links.py",
        "            if came_ns >= limit_ns:\n",
        "            if came_ns >= limit_ns and not taken:\n",
        (f"{LOOKUPS}::test_who_joins_those_who_wait_for_a_name_has_as_long_as_they_had",
         f"{LOOKUPS}::test_who_joins_those_who_wait_for_a_connection_has_as_long_as_they_had"),
    ),
    Mutant(
        "asked-again-waits-anew", "P8", "who is asked for again while it waits for a connection has all its time again",
        "workers/bootstrap/links.py",
        "        if self._came.get(slot, (0, 0))[0] != epoch:\n            self._came.pop",
        "        if self._came.get(slot, (0, 0))[0] != -epoch:\n            self._came.pop",
        (f"{LOOKUPS}::test_who_joins_those_who_wait_for_a_connection_has_as_long_as_they_had",),
    ),
    Mutant(
        "knocks-since-the-first", "P21, D3", "who needs contact with a peer that does not answer fails as soon as any other who waits",
        "workers/transfer/encode.py",
        "self._now_ns - self._knocks_since(slot, d) <= error.patience_ns",
        "self._now_ns - self._knocks_since(slot, d) <= 0",
        ("tests/workers/transfer/test_contact.py::test_a_request_that_comes_while_a_peer_does_not_answer_has_as_long_as_the_first",),
    ),
    Mutant(
        "worn-for-ever", "P23", "a worker whose engine keeps something of every peer that has gone goes on as it is",
        "workers/transfer/encode.py",
        "            if why := engine.wear():",
        '            if why := engine.wear() and "":',
        (f"{WEAR}::test_a_worn_worker_lets_what_is_under_way_end_and_begins_anew",),
    ),
    Mutant(
        "worn-breaks-off", "P11, P23", "a worn worker waits for nothing that is under way",
        "workers/transfer/encode.py",
        "        if not is_busy:\n            raise Renew(f",
        "        if self._why_worn:\n            raise Renew(f",
        (f"{WEAR}::test_when_there_is_no_quiet_moment_none_is_submitted_until_there_is_one",),
    ),
    Mutant(
        "shortage-blamed", "P23", "a contact that fails for want of descriptors here is blamed on the peer's firewall",
        "workers/transfer/engines/mooncake.py",
        "bool(short)\n",
        "False\n",
        (f"{WEAR}::test_a_contact_that_fails_for_want_of_descriptors_is_no_fault_of_the_peer",),
    ),
    Mutant(
        "who-listens-unasked", "D5", "whatever node listens at a run socket is taken for the one that names it",
        "workers/run_socket.py",
        'if (frame.node_id, frame.incarnation) == self._meant:',
        'if (frame.node_id, frame.incarnation) != (0, 0):',
        (f"{ADDRESSES}::test_a_node_at_whose_path_another_listens_is_not_taken_for_one_of_this_host",),
    ),
]

LAUNCH: Final = [
    Mutant(
        "launch-working-directory", "P13", "the working directory is on the import path of a node",
        "pipeline/node/launcher_start.py",
        "elif path in roots or path not in (here, script):",
        "elif path in roots or path != script:",
        (f"{INHERITS}::test_the_import_path_is_that_of_the_process_the_standard_library_first",),
    ),
    Mutant(
        "launch-library-behind", "P13", "folders of the user come before the standard library",
        "pipeline/node/launcher_start.py",
        "            first.append(path)",
        "            found.append(path)",
        (f"{INHERITS}::test_modules_of_a_folder_on_pythonpath_do_not_stand_for_those_of_the_standard_library",),
    ),
    Mutant(
        "launch-thread-a-core", "P13", "numpy's library of linear algebra begins a thread a core in every process of a node",
        "pipeline/node/launcher_start.py",
        "    os.environ.setdefault(*ONE_THREAD)",
        "    pass",
        (f"{INHERITS}::test_a_process_that_has_found_the_package_by_a_path_of_its_own_launches_it",),
    ),
    Mutant(
        "launch-own-path", "P13", "a launcher looks for modules where its interpreter does, and not where whoever launches has found them",
        "pipeline/node/launcher_start.py",
        '"--", *import_path()]',
        '"--"]',
        (f"{INHERITS}::test_a_process_that_has_found_the_package_by_a_path_of_its_own_launches_it",),
    ),
    Mutant(
        "launch-forked-parent", "P9", "a node ends with the last process that holds its pipe",
        "pipeline/node/launcher.py",
        "for fd in (options.alive_fd, options.parent_fd) if",
        "for fd in (options.alive_fd,) if",
        (f"{INHERITS}::test_a_node_ends_with_the_process_that_launched_it_whatever_that_has_forked",),
    ),
    Mutant(
        "launch-other-program", "P9", "a node lives on when whoever launched it has become another program",
        "pipeline/node/launcher.py",
        "for fd in (options.alive_fd, options.parent_fd) if",
        "for fd in (options.parent_fd,) if",
        (f"{INHERITS}::test_a_node_ends_when_the_process_that_launched_it_becomes_another_program",),
    ),
    Mutant(
        "launch-low-descriptor", "P13", "a descriptor that is handed over may be that of standard input",
        "workers/files.py",
        "    if fd > 2:",
        "    if fd > -1:",
        (f"{INHERITS}::test_descriptors_that_whoever_launches_has_closed_are_not_used_for_anything_else[(0,)]",),
    ),
    Mutant(
        "launch-closed-descriptors", "P13", "a segment may be opened as standard output",
        "pipeline/node/launcher_start.py",
        "    for fd in (0, 1, 2):",
        "    for fd in (0,):",
        (f"{INHERITS}::test_descriptors_that_whoever_launches_has_closed_are_not_used_for_anything_else[(1, 2)]",),
    ),
    Mutant(
        "launch-signals-ignored", "D4", "a signal that whoever launches ignores is ignored in the node",
        "pipeline/node/launcher_start.py",
        "        if signal.getsignal(number) == signal.SIG_IGN:",
        "        if signal.getsignal(number) == -1:",
        (f"{INHERITS}::test_signals_that_whoever_launches_ignores_or_blocks_have_their_effect",),
    ),
    Mutant(
        "launch-signals-blocked", "P18", "a signal that whoever launches blocks is blocked in the node",
        "pipeline/node/launcher_start.py",
        "signal.pthread_sigmask(signal.SIG_SETMASK, ())",
        "signal.pthread_sigmask(signal.SIG_BLOCK, ())",
        (f"{INHERITS}::test_signals_that_whoever_launches_ignores_or_blocks_have_their_effect",),
    ),
    Mutant(
        "launch-hangup", "P18", "SIGHUP ends a node without draining",
        "pipeline/node/launcher.py",
        "SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)",
        "SIGNALS = (signal.SIGTERM, signal.SIGINT)",
        (f"{INHERITS}::test_sighup_ends_nothing_and_is_answered_in_the_log",),
    ),
    Mutant(
        "setting-range-unchecked", "P13", "a setting that is out of its range is taken",
        "allocator/settings.py",
        "            msgspec.convert(value, _type_of(it))\n",
        "            _type_of(it)\n",
        ("tests/pipeline/test_settings.py::test_a_value_from_a_file_that_is_refused_names_the_file",),
    ),
    Mutant(
        "setting-origin-untold", "P13", "a setting that is refused does not say where its value came from",
        "pipeline/config.py",
        'return ConfigError(f"{error} (from {origin})") if origin else error',
        "return error",
        ("tests/pipeline/test_settings.py::test_a_value_from_a_file_that_is_refused_names_the_file",),
    ),
    Mutant(
        "local-requests-failed", "P8", "requests through shared memory fail with a transfer worker that they do not need",
        "pipeline/node/recovery.py",
        "return control.role == Role.ENCODE or control.verify or crosses_network",
        "return control.role == Role.ENCODE or control.verify or not crosses_network",
        ("tests/pipeline/node/test_recovery.py::test_the_requests_that_need_a_process_are_those_that_fail_without_it",),
    ),
    Mutant(
        "launch-bind-once", "P10", "a port that a process of a node before still holds is not waited for",
        "pipeline/node/ports.py",
        "patient=time.monotonic() < until",
        "patient=time.monotonic() < 0",
        ("tests/faults/test_faults_of_the_launcher.py::test_a_port_that_comes_free_while_a_node_begins_is_taken",),
    ),
    Mutant(
        "launch-anothers-socket", "D5", "the end of a node removes the socket of the next one at its path",
        "pipeline/node/run_socket_server.py",
        "if _inode(self._path) == self._made:",
        "if self._made != _inode(self._path.parent):",
        (f"{RUN_DIR}::test_the_end_of_a_node_leaves_the_socket_of_the_next_one",),
    ),
    Mutant(
        "launch-lock-removed", "D5", "a node without its lock file loses its socket to the next one",
        "pipeline/node/run_socket_server.py",
        "        if _is_answered(path):",
        "        if not path.name:",
        (f"{RUN_DIR}::test_a_node_whose_lock_was_removed_keeps_its_socket",),
    ),
    Mutant(
        "launch-foreign-folder", "P13", "the run directory may stand in a folder of somebody else",
        "pipeline/run_dir.py",
        "        if not self._is_trusted(status.st_uid):",
        "        if status.st_uid < 0:",
        (f"{RUN_DIR}::test_a_folder_of_somebody_else_is_refused[run]",),
    ),
    Mutant(
        "launch-link-followed", "P13", "a link in /tmp is followed",
        "pipeline/run_dir.py",
        "        if is_last or self._is_below_sticky:",
        "        if is_last:",
        (f"{RUN_DIR}::test_no_link_is_followed_where_anybody_may_put_one[run]",),
    ),
    Mutant(
        "launch-open-folder", "P13", "a folder above the run directory may be written by everybody",
        "pipeline/run_dir.py",
        "and (is_last or not status.st_mode & stat.S_ISVTX):",
        "and is_last:",
        (f"{RUN_DIR}::test_a_folder_that_everybody_may_write_to_is_refused_unless_it_is_sticky",),
    ),
    Mutant(
        "launch-any-file", "P8, P13", "a FIFO is read as if it were a file",
        "workers/files.py",
        "    if not stat.S_ISREG(",
        "    if stat.S_ISSOCK(",
        (f"{RUN_DIR}::test_an_identity_that_is_none_is_named_with_the_remedy[a FIFO]",),
    ),
    Mutant(
        "launch-copied-identity", "R14, D5", "a node that bears the id and the incarnation of another one is taken for it",
        "workers/bootstrap/registrations.py",
        "if twin is not None and peers.record(twin).poller_addr != message.poller_addr:",
        "if twin is not None and not message.poller_addr:",
        (*_rule("two_nodes_with_a_copied_identity_are_told_so"),),
    ),
    Mutant(
        "spawned-orphan", "P10", "a process that a caller has spawned outlives it",
        "pipeline/spawn.py",
        "    set_parent_death_signal(signal.SIGKILL)",
        "    set_parent_death_signal(0)",
        ("tests/pipeline/test_spawning.py::test_when_the_caller_is_killed_its_processes_end",),
    ),
]

MUTANTS: Final = [*CORE, *TABLES, *GRANTING, *ADMITTING, *TRANSFER, *PUBLISHING, *RECEIVING, *NODE, *PIPELINE, *LAUNCH]
