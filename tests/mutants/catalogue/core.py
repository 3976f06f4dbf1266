"""`allocator/native/`: the lock-free structures of the core."""

from typing import Final

from ..mutant import Mutant
from .files import BLOCKS, CLAIMS, LITMUS, OPENING, OUTCOME, SANITIZERS, STATUS, STEPS, UNDER_A_CLAIM

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
        "            atomic_store_explicit(&blocks->cells[index], generation | owner | CELL_OWNED, "
        "memory_order_release);\n"
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
        "    const bool exposed = blocks_change(blocks, index, owner, 1u << CELL_OWNED | 1u << CELL_EXPOSED, "
        "CELL_EXPOSED);\n"
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
        "dirty-bit-before-word", "P8",
        "two stores swapped: the bit that says `look` is set before the word has changed",
        "allocator/native/status.h",
        "    } while (!atomic_compare_exchange_weak_explicit(&table->words[slot], &word, next, memory_order_acq_rel,\n"
        "                                                    memory_order_relaxed));\n"
        "    status_follow_up(table, slot, epoch, phase, now_ns);\n",
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
        "    if (atomic_load_explicit(&bell->sequence, memory_order_seq_cst) - seen < UINT32_MAX)\n"
        "        return true;\n",
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
        "awake-before-woken", "P1, P8",
        "a ringer ends the waiter's sleep in the word, then wakes it: killed between, nobody ever does",
        "allocator/native/doorbell.h",
        "    case DOORBELL_ASLEEP:\n        *woke = true;\n        return syscall(",
        "    case DOORBELL_ASLEEP:\n"
        "        atomic_compare_exchange_strong(&bell->state, &state, (state & ~DOORBELL_KIND_MASK) | "
        "DOORBELL_AWAKE);\n"
        "        *woke = true;\n        return syscall(",
        ("tests/allocator/test_core_doorbell.py::test_only_the_waiter_ends_its_sleep",),
    ),
    Mutant(
        "watermark-lowered", "P5, R2", "`raise_to` stores whatever is not equal",
        "allocator/native/shared.h",
        "while (current < value) {",
        "while (current != value) {",
        ("tests/allocator/test_core_words.py::test_raise_to_never_lowers",),
    ),
    Mutant(
        "writer-wakes-two", "P8", "who writes the last rows wakes the library thread of a caller who sleeps, too",
        "allocator/native/direct.h",
        "    if (is_left)\n        doorbell_ring(library, -1);\n",
        "    doorbell_ring(library, -1);\n",
        ("tests/transfers/test_without_repair.py::"
         "test_who_writes_the_last_rows_wakes_a_caller_who_sleeps_and_nobody_else",),
    ),
    Mutant(
        "written-without-the-claim", "R28, R30", "an encoder writes whether or not it has got the claim",
        "allocator/native/direct.h",
        "    if (!w->is_held && (!direct_may(w, DIRECT_TAKE, 0, 0, 0) || !claim_take(w->claim, w->there.epoch, "
        "w->writer)))\n"
        "        return;\n",
        "    if (!direct_may(w, DIRECT_TAKE, 0, 0, 0))\n"
        "        return;\n"
        "    claim_take(w->claim, w->there.epoch, w->writer);\n",
        (f"{UNDER_A_CLAIM}::test_an_encoder_writes_nothing_where_it_does_not_get_the_claim",),
    ),
    Mutant(
        "epoch-opened-before-record", "P11, R16", "two steps swapped: an epoch is open before its record says so",
        "allocator/native/slots.h",
        "    atomic_store_explicit(&record[SLOT_EPOCH], next, memory_order_release);\n"
        "    return status_open(status, slot, now_ns);\n",
        "    const uint64_t epoch = status_open(status, slot, now_ns);\n"
        "    atomic_store_explicit(&record[SLOT_EPOCH], next, memory_order_release);\n"
        "    return epoch;\n",
        (f"{STEPS}::test_what_a_death_leaves_is_recovered_however_often_recovery_dies",),
    ),
    Mutant(
        "record-before-release", "R16, R78",
        "a slot's record changes before the epoch that it is about counts as released",
        "allocator/native/slots.h",
        "    word_raise(&record[SLOT_RELEASED_EPOCH], last);\n",
        "",
        (f"{OPENING}::test_nothing_of_the_epoch_before_is_left",),
    ),
    Mutant(
        "claim-of-another-epoch", "R28, R31", "a slot is opened with the claim of the request before",
        "allocator/native/slots.h",
        "        claim_begin(opening->claim, next, values[SLOT_LANE], values[SLOT_TOTAL]);\n",
        "        (void)claim_begin;\n",
        (f"{OPENING}::test_a_slot_is_opened_with_its_record_and_no_other_is_touched",),
    ),
    Mutant(
        "given-back-by-a-store", "R31, P7", "a writer gives a claim back that was revoked or is another's by now",
        "allocator/native/claims.h",
        "    if (claim_move(claim, claim_word(epoch, CLAIM_WRITING, writer), claim_word(epoch, state, 0)))\n"
        "        return true;\n",
        "    atomic_store(claim, claim_word(epoch, state, writer & 0));\n"
        "    if (epoch)\n"
        "        return true;\n",
        (f"{CLAIMS}::test_every_move_from_every_claim",),
    ),
    Mutant(
        "revoked-claim-kept", "R31, P8", "a writer that finds its claim revoked does not give it back",
        "allocator/native/claims.h",
        "    claim_move(claim, claim_word(epoch, CLAIM_REVOKED, writer), claim_word(epoch, CLAIM_ENDED, 0));\n",
        "",
        (f"{CLAIMS}::test_every_move_from_every_claim",),
    ),
    Mutant(
        "told-before-it-is-there", "R32, P6", "two steps swapped: the words rise, then the rows are copied",
        "allocator/native/direct.h",
        "    if (!direct_copy(w)) {\n"
        "        w->end = w->first;\n"
        "        return;\n"
        "    }\n"
        "    direct_say(w);\n",
        "    direct_say(w);\n"
        "    direct_copy(w);\n",
        (f"{UNDER_A_CLAIM}::test_the_encode_side_says_that_rows_are_there_before_the_destination_does",),
    ),
    Mutant(
        "length-untold", "R26, B7", "who writes rows directly leaves their length to the messages behind them",
        "allocator/native/direct.h",
        "    claim_tell_length(w->claim, w->num_rows); // a retry goes by it\n",
        "",
        ("tests/transfers/test_direct.py::test_who_has_rows_knows_the_length_though_no_message_has_come",),
    ),
    Mutant(
        "destination-told-first", "R36", "two steps swapped: the destination's word is raised, then the encode side's",
        "allocator/native/direct.h",
        "    if (!direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, now_ns, &has_risen) || !has_risen)\n"
        "        return false; // has_risen false: the request has ended as Failed\n"
        "    return direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, w->end, now_ns, &has_risen);\n",
        "    direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, w->end, now_ns, &has_risen);\n"
        "    return direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, now_ns, &has_risen) && has_risen;\n",
        (f"{UNDER_A_CLAIM}::test_the_encode_side_says_that_rows_are_there_before_the_destination_does",),
    ),
    Mutant(
        "whole-unsaid", "R36", "a destination may fail for itself when all of its rows are counted",
        "allocator/native/direct.h",
        "    if (end == w->num_rows) {\n",
        "    if (end > w->num_rows) {\n",
        (f"{OUTCOME}::test_a_destination_that_is_whole_fails_only_as_it_is_told",),
    ),
    Mutant(
        "counted-before-whole", "R36", "two steps swapped: the encode side counts rows, then the destination is whole",
        "allocator/native/direct.h",
        "        if (!status_make_whole(",
        "        word_raise(&w->destination[DESTINATION_SENT], end);\n        if (!status_make_whole(",
        (f"{OUTCOME}::test_a_destination_that_fails_before_it_is_whole_is_not_counted",),
    ),
    Mutant(
        "whole-fails-for-itself", "R36", "a destination that is whole fails like any other",
        "allocator/native/status.h",
        "        if (whole && phase == PHASE_FAILED && !may_fail_whole)\n",
        "        if (whole && phase > PHASE_FAILED && !may_fail_whole)\n",
        (f"{OUTCOME}::test_a_destination_that_is_whole_fails_only_as_it_is_told",),
    ),
    Mutant(
        "whole-for-a-while", "R36", "the next report of a whole destination takes that from its word",
        "allocator/native/status.h",
        "(phase < FIRST_TERMINAL_PHASE ? whole : 0)",
        "(phase > FIRST_TERMINAL_PHASE ? whole : 0)",
        (f"{OUTCOME}::"
         "test_several_destinations_are_whole_before_the_encode_side_succeeds_and_none_hears_of_it_before",),
    ),
    Mutant(
        "first-decides-for-all", "R36, R4", "the encode side succeeds when one of several destinations has all rows",
        "allocator/native/direct.h",
        "        p.least = sent < p.least ? sent : p.least;\n",
        "        p.least = sent > p.least || d == 0 ? sent : p.least;\n",
        (f"{OUTCOME}::"
         "test_several_destinations_are_whole_before_the_encode_side_succeeds_and_none_hears_of_it_before",),
    ),
    Mutant(
        "told-although-refused", "R36, D12", "a destination is told of an arrival that its encode side has refused",
        "allocator/native/direct.h",
        "    if (!direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, now_ns, &has_risen) || !has_risen)\n",
        "    if (!direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, now_ns, &has_risen))\n",
        (f"{UNDER_A_CLAIM}::test_a_destination_is_not_told_of_an_arrival_that_its_encode_side_refused",),
    ),
    Mutant(
        "spared-though-nobody-is-awake", "P8",
        "a library thread is spared whose caller sleeps where no writer wakes him",
        "allocator/native/direct.h",
        "doorbell_is_spared(library) && doorbell_is_awake(caller)",
        "doorbell_is_spared(library)",
        ("tests/allocator/test_core_direct.py"
         "::test_a_library_thread_that_is_spared_hears_of_a_success_where_its_caller_is_not_awake[True]",),
    ),
    Mutant(
        "sent-from-before-the-claim", "R29", "the rows to write are those that were found before the claim was taken",
        "allocator/native/direct.h",
        "    w->first = w->end = direct_word(&w->destination[DESTINATION_SENT]);\n",
        "    w->first = w->end = w->num_spans ? direct_span(w, 0)[SPAN_FIRST] : 0;\n",
        (f"{UNDER_A_CLAIM}::test_a_writer_goes_by_what_it_finds_under_the_claim",),
    ),
    Mutant(
        "success-gives-back-an-open-claim", "R81, P6", "whoever writes the last row leaves the claim to be taken again",
        "allocator/native/claims.h",
        "is_over ? CLAIM_ENDED : CLAIM_OPEN;",
        "is_over && !epoch ? CLAIM_ENDED : CLAIM_OPEN;",
        ("tests/allocator/test_core_direct.py::test_rows_come_from_any_pieces_and_go_into_any_blocks",),
    ),
]
