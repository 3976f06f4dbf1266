"""`allocator/`: the tables over shared memory, and what binds the core."""

from typing import Final

from ..mutant import Mutant
from .files import ATTEMPTS, CALLER, CLAIMS, DESTINATIONS, DOORS, NAMES, PHASES, QUARANTINE, REVOKED, SESSIONS, crossing

TABLES: Final = [
    Mutant(
        "code-before-reason", "P5", "two stores swapped: a failure is seen without its reason",
        "allocator/request_tables.py",
        "        self.set_reason(slot, reason)\n        self.set(slot, Slot.FAILURE, code)\n",
        "        self.set(slot, Slot.FAILURE, code)\n        self.set_reason(slot, reason)\n",
        (f"{PHASES}::test_a_failure_is_seen_with_its_reason_or_not_at_all",),
    ),
    Mutant(
        "second-reason-wins", "P5", "a later failure replaces the reason of the first",
        "allocator/request_tables.py",
        "if not first and (not insist or self.get(slot, Slot.FAILURE)):",
        "if not first and not insist:",
        (f"{PHASES}::test_a_failure_is_seen_with_its_reason_or_not_at_all",),
    ),
    Mutant(
        "reserve-for-anybody", "R21, D8", "the reserve goes to requests whose rows do not wait",
        "allocator/blocks.py",
        "        lowest = RESERVE_BLOCK + 1\n        if behind",
        "        lowest = RESERVE_BLOCK\n        if behind",
        (f"{ATTEMPTS}::test_a_source_block_of_the_reserve_is_staged_only_for_what_can_be_written_now",),
    ),
    Mutant(
        "session-number-stays", "R10", "the session after a fence has the number of the one before",
        "allocator/sessions.py",
        "return self._header.add(SegmentHeader.LAST_SESSION, 1) + 1",
        "return max(self._header.load(SegmentHeader.LAST_SESSION), self._header."
        "raise_to(SegmentHeader.LAST_SESSION, 1))",
        (f"{SESSIONS}::test_in_a_new_session_every_window_is_granted_anew",),
    ),
    Mutant(
        "session-number-first", "R10", "two stores swapped: a session's number is there before its port and address",
        "allocator/sessions.py",
        "        self._words.store(at + Session.NUMBER, 0)\n",
        "        self._words.store(at + Session.NUMBER, session.number)\n",
        crossing("whoever_looks_while_a_session_begins_sees_one_session_or_none"),
    ),
    Mutant(
        "old-session-stays", "R10", "while a session begins, the old number stands beside the new port",
        "allocator/sessions.py",
        "        self._words.store(at + Session.NUMBER, 0)\n",
        "",
        crossing("whoever_looks_while_a_session_begins_sees_one_session_or_none"),
    ),
    Mutant(
        "port-used-again", "R10", "a session may take the port of one before it",
        "allocator/sessions.py",
        "return not self._ports.set_bits(port // 64, bit) & bit",
        "return self._ports.set_bits(port // 64, bit) >= 0",
        (f"{SESSIONS}::test_no_two_sessions_have_a_port_or_an_address_in_common",),
    ),
    Mutant(
        "full-rings-not-counted", "P12", "a kick that waits for room in its ring is not counted",
        "allocator/rings.py",
        "        self._num_full += 1\n",
        "        self._num_full += 0\n",
        ("tests/workers/test_counters.py::test_kicks_that_wait_for_room_in_their_ring_are_counted_and_none_is_lost",),
    ),
    Mutant(
        "abandoned-and-counted", "P13", "what a process of a node has abandoned counts as memory of its own",
        "allocator/_core_mapping.c",
        "replace_memory(mapping, PROT_NONE)",
        "replace_memory(mapping, PROT_WRITE)",
        ("tests/allocator/test_core_mapping.py::"
         "test_a_mapping_that_is_abandoned_counts_as_no_memory_of_this_process",),
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
        "        return any(not self._words.load(at + Writer.HAS_CLAIMS) for at in self."
        "_entries(node_id, incarnation))\n",
        "        return any(False for at in self._entries(node_id, incarnation))\n",
        (f"{QUARANTINE}::test_the_death_of_a_peer_frees_no_block_while_it_can_still_write",),
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
        "if self._tombstones is not None and self._finders is not None and not keep_tombstones:",
        "if self._tombstones is not None and self._finders is not None:",
        crossing("an_abort_of_what_is_forgotten_is_told_of_a_taint_also_after_its_node_registered_again"),
    ),
    Mutant(
        "route-torn", "P17", "a reader of the routes does not look at the generation once more",
        "allocator/guarded_records.py",
        "            if load(at + Guarded.GENERATION) == generation:\n                return words\n",
        "            return words\n",
        ("tests/allocator/test_routes.py::test_a_record_that_is_replaced_while_it_is_read_is_read_again",),
    ),
    Mutant(
        "destinations-share-entries", "R1, B10", "the grants of a second destination go over those of the first",
        "allocator/request_tables.py",
        "return slot * self.window_blocks + destination * window + block % window",
        "return slot * self.window_blocks + block % window",
        (f"{DESTINATIONS}::test_the_destinations_of_a_request_share_its_window_and_no_entry_of_it",),
    ),
    Mutant(
        "destinations-not-compared", "R25", "the slow scan overlooks what has changed in a destination's words",
        "allocator/slot_changes.py",
        "            self._tables.append(_Rows(destinations, row_words, 0, row_words))\n",
        "            self._tables.append(_Rows(destinations, row_words, 0, 0))\n",
        ("tests/allocator/test_slot_changes.py::"
         "test_asked_anew_it_names_every_request_and_then_those_that_change",),
    ),
    Mutant(
        "memory-with-a-name", "P9", "two steps swapped: a segment has a size while it still has a name",
        "allocator/segment.py",
        "mode=0o600, size=0).fd",
        "mode=0o600, size=4096).fd",
        (f"{NAMES}::test_a_kill_at_any_system_call_of_a_creation_leaves_an_empty_name_at_most",),
    ),
    Mutant(
        "names-of-the-living-removed", "P9", "the names of processes that live are removed, too",
        "allocator/segment.py",
        "            if int(found[3]) and _started(int(found[2])) == int(found[3]):\n",
        "            if not int(found[3]):\n",
        (f"{NAMES}::test_what_a_dead_process_left_is_removed_and_nothing_else",),
    ),
    Mutant(
        "released-slot-is-current", "R16", "a slot that was released still counts as its last request's",
        "allocator/native/current.h",
        " && look_at(&record[SLOT_RELEASED_EPOCH]) < epoch;",
        ";",
        (f"{QUARANTINE}::test_a_block_that_nobodys_request_holds_is_reported_once",),
    ),
    Mutant(
        "untold-slot-is-current", "R78", "a slot whose client alone has it is everybody's",
        "allocator/native/current.h",
        "told == TOLD_TOLD || (told == TOLD_UNTOLD && !slot_has_client(looks, slot));",
        "told != TOLD_RELEASED;",
        ("tests/allocator/test_slot_looks.py::test_each_look_says_what_the_words_say",),
    ),
    Mutant(
        "texts-of-the-last-node", "R14, D15", "the addresses and the key of the node that had an entry before are kept",
        "allocator/peertable.py",
        "        if known is None or known[0] != raw:\n",
        "        if known is None:\n",
        ("tests/allocator/test_peertable.py::"
         "test_an_entry_is_read_as_it_stands_also_by_whoever_has_read_another_there",),
    ),
    Mutant(
        "kick-forgotten-by-its-flush", "P12", "a kick that found no room stays where it is, and its reader sleeps",
        "allocator/rings.py",
        "        self.is_due = bool(self._backlog)\n",
        "        self.is_due = False\n",
        ("tests/workers/test_full_rings.py::"
         "test_a_flush_rings_for_what_has_gone_out_since_the_last_one_and_for_nothing_else",),
    ),
    Mutant(
        "the-dead-wait", "P3, P8",
        "a client that has died while it waited counts as waiting until its peers let its slots go",
        "allocator/lanebits.py",
        "if word >> lane & 1 and self._lanes.get(lane, Lane.STATE) == LaneState.ATTACHED\n",
        "if word >> lane & 1 and self._lanes.get(lane, Lane.STATE) != LaneState.FREE\n",
        ("tests/pipeline/client/test_waiting_for_slots.py::"
         "test_one_that_died_while_it_waited_counts_for_nothing_while_its_peers_still_hold_its_slots",),
    ),
    Mutant(
        "setting-range-unchecked", "P13", "a setting that is out of its range is taken",
        "allocator/settings.py",
        "            msgspec.convert(value, _type_of(it))\n",
        "            _type_of(it)\n",
        ("tests/pipeline/test_settings.py::test_a_value_from_a_file_that_is_refused_names_the_file",),
    ),
    Mutant(
        "taken-for-good", "P8, D4", "a turn stays taken when an exception ends the work",
        "allocator/_core_turn.c",
        "static PyObject *taker_exit(PyObject *self, PyObject *unused)\n{\n    (void)unused;\n"
        "    taker_give_back((TurnTaker *)self);\n",
        "static PyObject *taker_exit(PyObject *self, PyObject *of_exception)\n{\n"
        "    if (PyTuple_GetItem(of_exception, 0) != Py_None)\n        ((TurnTaker *)self)->has_it = false;\n"
        "    taker_give_back((TurnTaker *)self);\n",
        (f"{CALLER}::test_a_signal_handler_that_raises_leaves_the_turn_to_the_next_one",),
    ),
    Mutant(
        "death-ends-everybody-s-claims", "R33, P7", "the death of an encoder ends the claims of all of them",
        "allocator/claims.py",
        "            while (now := self.get(slot)).state in HELD and now.writer == writer:\n",
        "            while (now := self.get(slot)).state in HELD:\n",
        (f"{CLAIMS}::test_all_claims_of_the_dead_end_and_nobody_else_s",),
    ),
    Mutant(
        "generation-not-compared", "R33, P7", "a death ends the claims of whoever has had that entry",
        "allocator/claims.py",
        "            while (now := self.get(slot)).state in HELD and now.writer == writer:\n",
        "            while (now := self.get(slot)).state in HELD and now.writer.entry == writer.entry:\n",
        (f"{CLAIMS}::test_all_claims_of_the_dead_end_and_nobody_else_s",),
    ),
    Mutant(
        "writers-generation-wraps", "R33", "an entry whose generations are spent begins anew",
        "allocator/lanes_and_processes.py",
        "            if self._words.load(at + Writer.NODE_ID) == 0 and generation <= MAX_GENERATION:\n",
        "            if self._words.load(at + Writer.NODE_ID) == 0:\n",
        (f"{CLAIMS}::test_an_entry_of_which_all_generations_are_spent_retires",),
    ),
    Mutant(
        "ended-claim-offered", "R30, P7", "a claim that was ended is offered once more",
        "allocator/claims.py",
        "        return self._words.compare_exchange(slot * CLAIM_WORDS, shut, open_)\n",
        "        now = self.get(slot)\n"
        "        may = now.epoch == epoch and now.state in (ClaimState.SHUT, ClaimState.ENDED)\n"
        "        return may and self._move(slot, now, Claim(epoch, ClaimState.OPEN))\n",
        (f"{REVOKED}::test_a_claim_is_not_offered_when_its_request_has_ended",),
    ),
    Mutant(
        "one-leaves-for-all", "R33, P7", "the first thread that leaves a door leaves it for the other, too",
        "allocator/_core_direct_write.c",
        "    self->num_writing--;\n",
        "    self->num_writing = 0;\n",
        (f"{DOORS}::test_a_door_is_closed_when_the_last_of_several_users_has_left",),
    ),
    Mutant(
        "clients-take-every-entry", "P12, P21", "clients leave no entry of the table of writers to transfer workers",
        "allocator/lanes_and_processes.py",
        "range(self._first_for_clients if writer.has_claims else 0, MAX_WRITERS)",
        "range(0, MAX_WRITERS)",
        (f"{CLAIMS}::test_clients_leave_an_entry_to_every_worker_of_every_peer",),
    ),
    Mutant(
        "success-ends-a-held-claim", "R81, R31",
        "a success ends the claim of whoever holds it and is about to give it back",
        "allocator/claims.py",
        "        self._move(slot, Claim(epoch, ClaimState.OPEN), Claim(epoch, ClaimState.ENDED))\n",
        "        self._move(slot, self.get(slot), Claim(epoch, ClaimState.ENDED))\n",
        (f"{REVOKED}::test_a_claim_that_is_held_is_left_to_its_writer_when_all_rows_are_there",),
    ),
]
