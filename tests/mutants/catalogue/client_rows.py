"""`pipeline/client/`: rows that are given, staged, written and received."""

from typing import Final

from ..mutant import Mutant
from .files import ATTEMPTS, BY_HAND, DOORS, GIVEN, QUARANTINE, RETRY, SHOWN, STRAIGHT, WAITING, crossing

CLIENT_ROWS: Final = [
    Mutant(
        "length-told-too-late", "B3, D13", "a length for which more must be granted waits for the first rows",
        "pipeline/client/staging.py",
        "< total <= self._dsts.get(slot, d, Destination.GRANTED_TOKENS)",
        "< total and 0 < self._dsts.get(slot, d, Destination.GRANTED_TOKENS)",
        (f"{SHOWN}::test_the_length_is_told_at_once_while_more_has_to_be_granted",),
    ),
    Mutant(
        "partial-block-drained", "R3, P6", "a drain frees a block into which rows are still to come",
        "pipeline/client/receiver.py",
        "if total and num_tokens >= total else min(num_tokens // self._bs,",
        "if total and num_tokens >= total else min(-(-num_tokens // self._bs),",
        (f"{BY_HAND}::test_a_drain_frees_whole_blocks_only_and_at_the_end_all",),
    ),
    Mutant(
        "tainted-blocks-drained", "R7, P7", "a drain frees a block that a late write may hit",
        "pipeline/client/receiver.py",
        "        if self.is_tainted:\n",
        "        if self.is_tainted and not total:\n",
        (f"{QUARANTINE}::test_a_block_that_a_late_write_may_hit_is_quarantined_by_the_drain",),
    ),
    Mutant(
        "resume-decided-by-phase", "R5, B9", "a resume is due in one phase only",
        "pipeline/client/receiver.py",
        "return now.phase < Phase.Success and now.sent == self.granted_tokens <",
        "return now.phase == Phase.Transferring and now.sent == self.granted_tokens <",
        (f"{BY_HAND}::test_a_resume_is_due_when_all_that_was_granted_is_sent_whatever_the_phase",),
    ),
    Mutant(
        "sent-not-checked", "R2", "a resume may claim more than has landed",
        "pipeline/client/receiver.py",
        "        if sent_tokens > self.progress().sent:\n",
        "        if sent_tokens > self.progress().sent + self.granted_tokens:\n",
        (f"{BY_HAND}::test_a_resume_that_claims_more_than_has_landed_is_the_callers_mistake",),
    ),
    Mutant(
        "grants-after-clear", "D12", "a receiver that was cleared takes another grant",
        "pipeline/client/receiver.py",
        "        if self._cleared:\n            raise ValueError",
        "        if self._cleared and self._final is None and count < 0:\n            raise ValueError",
        crossing("what_a_caller_grants_is_its_own_and_not_after_clear"),
    ),
    Mutant(
        "anybodys-blocks-granted", "D15, P6", "blocks of another request may be granted",
        "pipeline/client/receiver.py",
        "        if foreign or len(set(indices)) < count:\n",
        "        if len(set(indices)) < count:\n",
        crossing("what_a_caller_grants_is_its_own_and_not_after_clear"),
    ),
    Mutant(
        "blocks-kept-after-the-end", "P1", "blocks that come when the request has ended are kept",
        "pipeline/client/receiver.py",
        "            pool.release(blocks, self.slot, self.epoch)\n            return blocks[:0]\n",
        "            return blocks[:0]\n",
        crossing("blocks_that_come_when_the_request_has_ended_go_back_at_once"),
    ),
    Mutant(
        "dropped-while-read", "R8, P6", "a source block is freed while the worker reads it",
        "pipeline/client/staged_blocks.py",
        "if StageEntry.of(word).state != STAGE_STAGED or not self._staging.replace(slot, block, word, FREE_ENTRY):",
        "if not self._staging.replace(slot, block, word, FREE_ENTRY):",
        (f"{ATTEMPTS}::test_a_source_block_is_not_freed_while_an_attempt_reads_it",),
    ),
    Mutant(
        "reserve-for-rows-ahead", "R21, D8", "rows that nobody needs next are staged in the reserve",
        "pipeline/client/staging.py",
        "        if not blocks and missing[0] in heads:\n            blocks = pool.acquire",
        "        if not blocks and missing:\n            blocks = pool.acquire",
        (f"{ATTEMPTS}::test_a_source_block_of_the_reserve_is_staged_only_for_what_can_be_written_now",),
    ),
    Mutant(
        "rows-before-the-slot-untold", "B5, P8", "rows that were written while the request waited for a slot are not told when it has one",
        "pipeline/client/sender.py",
        "        if seen != self._told_ready:\n            self._slots.raise_to(self.slot, Slot.READY, seen)  "
        "# what was written before it had its slot\n",
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
        "pipeline/client/staging.py",
        "        self._kept.let_go(least)\n",
        "        self._kept.let_go(0 * least)\n",
        (f"{GIVEN}::test_rows_that_were_given_are_the_callers_again_and_the_memory_for_them_goes_back",),
    ),
    Mutant(
        "every-piece-is-looked-at", "P22", "a row that is staged costs a look at all pieces of its request",
        "pipeline/client/kept_rows.py",
        "        at = bisect_right(pieces, first, key=_first) - 1\n",
        "        at = [bisect_right(p, first, key=_first) for p in self._pieces.values() if p is pieces or len(p)] and \\\n"
        "            bisect_right(pieces, first, key=_first) - 1\n",
        (f"{GIVEN}::test_a_row_a_write_costs_the_same_for_every_row",),
    ),
    Mutant(
        "path-said-twice", "R28", "the thread that is later says anew how rows go",
        "pipeline/client/direct_path.py",
        "            decided = WrittenBy(self._dsts.settle(slot, d, Destination.WRITTEN_BY, decided))\n",
        "            self._dsts.set(slot, d, Destination.WRITTEN_BY, decided)\n",
        (f"{STRAIGHT}::test_the_first_who_says_how_rows_go_is_heeded_by_both_threads",),
    ),
    Mutant(
        "several-written-by-the-client", "R28, R36", "a client writes one of several destinations itself",
        "pipeline/client/direct_path.py",
        "        if self._slots.get(slot, Slot.REQUIRED) > 1:\n",
        "        if self._slots.get(slot, Slot.REQUIRED) > 9:\n",
        (f"{STRAIGHT}::test_a_request_with_several_destinations_is_the_worker_s",),
    ),
    Mutant(
        "retry-of-any-length", "R26, B3", "a retry of another length is written as far as it goes",
        "pipeline/client/direct_path.py",
        "            if length not in (0, self._total):",
        "            if length not in (0, length):",
        (f"{RETRY}::test_a_retry_of_another_length_fails_also_where_the_rest_fits_into_one_grant",),
    ),
    Mutant(
        "door-of-another-node", "R14, P17", "a door is known by the number of its incarnation alone",
        "pipeline/client/doors.py",
        "        if door is not None and door.node == node:\n",
        "        if door is not None and door.node[1] == incarnation:\n",
        (f"{DOORS}::test_a_door_leads_to_the_node_and_the_incarnation_that_a_request_names",),
    ),
    Mutant(
        "door-closed-under-a-writer", "R33, P7", "a door is closed while somebody writes through it",
        "pipeline/client/doors.py",
        "        if not self.rows.close() or self.held:\n            return False\n",
        "        self.rows.close()\n",
        (f"{DOORS}::test_a_door_that_is_to_be_closed_stands_while_somebody_writes_through_it",),
    ),
    Mutant(
        "copied-after-it-was-let-go", "P22", "rows are copied on after their client has let go of them with its node",
        "pipeline/client/sender.py",
        "        if self._final is not None or self._attachment.node_gone:\n",
        "        if self._final is not None:\n",
        (f"{DOORS}::test_a_client_that_finds_its_node_gone_copies_no_row_that_it_has_let_go_of",),
    ),
    Mutant(
        "refused-and-taken", "P22, P12", "rows that were refused count as given as far as they were written",
        "pipeline/client/in_place.py",
        "        if start != self._taken:\n",
        "        if start != self._ready:\n",
        (f"{STRAIGHT}::test_rows_that_are_refused_for_want_of_memory_are_given_again_although_some_were_granted",),
    ),
    Mutant(
        "whoever-finds-a-grant-writes", "R81, P6", "a sender writes into a grant that another sender has bound",
        "pipeline/client/direct_path.py",
        "        if decided != WrittenBy.UNDECIDED and not self._rendezvous.is_bound():\n",
        "        if decided != WrittenBy.UNDECIDED and self._rendezvous.is_bound() is None:\n",
        ("tests/transfers/test_untold.py::test_a_sender_whose_grant_another_has_writes_nothing_and_fails",),
    ),
    Mutant(
        "rows-out-kept-by-a-failure", "R31, P24", "a commit that comes too late does not give the claim back",
        "pipeline/client/direct_path.py",
        "        if not is_given_back:\n",
        "        if is_given_back:\n",
        ("tests/transfers/test_rows_in_place.py::"
         "test_rows_that_are_out_when_the_request_fails_harm_nobody_until_they_are_committed",),
    ),
    Mutant(
        "in-place-beyond-the-run", "R29, P6", "rows are handed out as one run whose blocks are none",
        "pipeline/client/direct_path.py",
        "            self.end > self.first and row != self._row + self.end - self.first\n",
        "            self.end > self.first and row == 0\n",
        ("tests/transfers/test_rows_in_place.py::"
         "test_rows_that_lie_elsewhere_or_are_not_granted_yet_are_handed_out_later",),
    ),
]
