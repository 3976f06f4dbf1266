"""Requests between two clients of one host, of which their nodes hear only where they must."""

from typing import Final

from ..mutant import Mutant

UNTOLD = "tests/transfers/untold/test_untold.py"
BIND = "tests/allocator/test_core_bind.py"
GRANT = "tests/allocator/test_core_grant.py"
IN_ONE_CALL = "tests/allocator/test_core_untold.py"

FOUND_LATE = "tests/transfers/untold/test_found_late.py"
WITHDRAWN = "tests/transfers/untold/test_withdrawn.py"

CLIENT_RENDEZVOUS: Final = [
    Mutant(
        "grant-unposted", "R37", "a scheduler's grant is sent to the encode node, and stands nowhere else",
        "allocator/native/grant.h",
        "    if (!grant_may(g, GRANT_POST) || !post_enter(",
        "    if (true || !post_enter(",
        (f"{UNTOLD}::test_requests_that_go_well_cost_no_process_of_either_node_a_kick",),
    ),
    Mutant(
        "offered-before-it-is-written-down", "R30, R37, P1", "a claim is open before anybody can know what is granted",
        "allocator/native/grant.h",
        "    grant_write_down(g);\n    if (!grant_may(g, GRANT_OFFER))\n        return POSTED_NOT;\n"
        "    claim_move(claim, claim_word(g->epoch, CLAIM_SHUT, 0), claim_word(g->epoch, CLAIM_OPEN, 0));\n",
        "    claim_move(claim, claim_word(g->epoch, CLAIM_SHUT, 0), claim_word(g->epoch, CLAIM_OPEN, 0));\n"
        "    if (!grant_may(g, GRANT_OFFER))\n        return POSTED_NOT;\n    grant_write_down(g);\n",
        (f"{GRANT}::test_a_death_before_any_step_leaves_what_came_before_it",),
    ),
    Mutant(
        "ended-claim-granted", "R30", "who grants opens a claim that whoever ended the request has ended",
        "allocator/native/grant.h",
        "    claim_move(claim, claim_word(g->epoch, CLAIM_SHUT, 0), claim_word(g->epoch, CLAIM_OPEN, 0));\n",
        "    grant_store(claim, claim_word(g->epoch, CLAIM_OPEN, 0));\n",
        (f"{GRANT}::test_an_ended_claim_is_not_offered_again",),
    ),
    Mutant(
        "taken-back-block-granted", "R30, P6", "a block that has been taken back meanwhile is offered all the same",
        "allocator/native/grant.h",
        "        if (!blocks_expose(g->tables->blocks, g->blocks[k], owner, LOCAL_EXPOSURE))\n"
        "            return false;\n",
        "        blocks_expose(g->tables->blocks, g->blocks[k], owner, LOCAL_EXPOSURE);\n",
        (f"{GRANT}::test_a_block_that_is_not_the_requests_any_more_is_offered_to_nobody",),
    ),
    Mutant(
        "told-request-released", "R78", "a client releases a request that the node's processes have",
        "allocator/native/grant.h",
        "    return grant_load(&record[SLOT_TOLD]) == (g->epoch << TOLD_BITS | TOLD_UNTOLD) &&\n",
        "    return grant_load(&record[SLOT_TOLD]) == (g->epoch << TOLD_BITS | TOLD_UNTOLD) ||\n",
        (f"{GRANT}::test_what_is_not_the_clients_alone_is_left_alone",),
    ),
    Mutant(
        "released-with-its-blocks", "R78, D6", "a slot is released while blocks are held in its name",
        "allocator/native/grant.h",
        "    if (!grant_free(g, now_ns) || !grant_may(g, END_TAKE_OFF))\n",
        "    if (!grant_may(g, END_TAKE_OFF))\n",
        (f"{GRANT}::test_the_end_gives_everything_back",),
    ),
    Mutant(
        "bound-grant-withdrawn", "R34, R79", "a grant is withdrawn to which an encoder is bound",
        "allocator/native/grant.h",
        "    uint64_t bound = g->epoch << 1;\n",
        "    uint64_t bound = meeting[MEETING_BOUND];\n",
        (f"{IN_ONE_CALL}::test_what_may_be_somebodys_is_not_withdrawn",),
    ),
    Mutant(
        "withdrawn-under-an-open-claim", "R30, R34", "the claim of a withdrawn grant stays open",
        "allocator/native/grant.h",
        "    claim_move(claim, claim_word(g->epoch, CLAIM_OPEN, 0), claim_word(g->epoch, CLAIM_ENDED, 0));\n",
        "",
        (f"{IN_ONE_CALL}::test_a_death_in_a_withdrawal_leaves_what_came_before_it",),
    ),
    Mutant(
        "opened-anew-untold", "R34", "a request whose grant was withdrawn is opened anew, and its node not told",
        "allocator/_core_untold_receiver.c",
        "    struct slot_opening opening = {.values = values,\n"
        "                                   .record = {record, self->slot_words},\n",
        "    struct slot_opening opening = {.values = values,\n                                   .is_untold = true,\n"
        "                                   .record = {record, self->slot_words},\n",
        (f"{IN_ONE_CALL}::test_a_grant_to_which_nobody_has_come_is_withdrawn_and_its_request_opened_anew",),
    ),
    Mutant(
        "found-by-nobody-and-kept", "R34, P21", "rows wait while requests without rows hold the blocks that they need",
        "pipeline/scheduler/withdrawing.py",
        "        if before < wanted:\n",
        "        if before > wanted:\n",
        (f"{WITHDRAWN}::test_grants_that_nobody_has_found_make_room_for_rows_that_wait",),
    ),
    Mutant(
        "room-for-oneself", "R34, P21", "rows of another client wait for blocks that this one's requests do not use",
        "pipeline/scheduler/withdrawing.py",
        "        wanted = self._blocks.num_blocks // 4 if self._others_wait() else 0\n",
        "        wanted = 0\n",
        (f"{WITHDRAWN}::test_a_client_makes_room_for_rows_that_another_waits_with",),
    ),
    Mutant(
        "offered-rows-wait", "R34, P21", "rows of which nobody is told wait for blocks that nobody uses",
        "pipeline/scheduler/withdrawing.py",
        "            elif not record.is_contacted and self._posts.has_offer(request.room):\n",
        "            elif False:\n",
        (f"{FOUND_LATE}::test_rows_of_which_nobody_is_told_have_a_grant_taken_back_that_nobody_has_found",),
    ),
    Mutant(
        "told-with-its-grant", "R34, P21", "a node is told of late requests with all that they were granted",
        "pipeline/scheduler/withdrawing.py",
        "        return not may_keep and self._take_back(receiver)\n",
        "        return False\n",
        (f"{WITHDRAWN}::test_requests_that_are_late_are_told_without_their_grants",),
    ),
    Mutant(
        "withdrawn-and-granted-again", "R34, P21", "a request whose grant was withdrawn takes the next block",
        "pipeline/scheduler/transfer_queue.py",
        "            missing = 0 if record.is_withdrawn else max(",
        "            missing = max(",
        (f"{WITHDRAWN}::test_requests_that_are_late_are_told_without_their_grants",),
    ),
    Mutant(
        "withdrawn-memory-counted", "D8, R34", "host memory stays counted in for what was withdrawn",
        "pipeline/scheduler/withdrawing.py",
        "        self._memory.give_back_later(None, record.reserved_tokens)\n",
        "",
        (f"{WITHDRAWN}::test_grants_that_nobody_has_found_make_room_for_rows_that_wait",),
    ),
    Mutant(
        "given-up-and-opened-anew", "P8, D2", "a request that is given up while it is opened anew goes on",
        "pipeline/scheduler/withdrawing.py",
        "        if request.abort_reason:  #",
        "        if False:  #",
        (f"{WITHDRAWN}::test_a_request_that_is_given_up_while_its_grant_is_withdrawn_ends",),
    ),
    Mutant(
        "rows-first-looked-for-once", "R37, R78", "an encoder that has offered its rows looks for no grant any more",
        "pipeline/client/untold.py",
        "            self._looking.setdefault(handle, look)\n",
        "            pass\n",
        (f"{FOUND_LATE}::test_rows_that_come_first_cost_no_process_of_either_node_a_kick",),
    ),
    Mutant(
        "late-post-untold", "R37, P8", "an encoder that looks no more is told of its grant as late as any other",
        "pipeline/client/untold.py",
        "        self._soon.append((self._clock() + 2 * LOOK_NS, handle))\n",
        "",
        (f"{FOUND_LATE}::test_an_encoder_that_looks_no_more_is_told_of_its_grant",),
    ),
    Mutant(
        "told-for-want-of-a-block", "R78, P21",
        "an encode node is told of a request at once for which no block is free",
        "pipeline/scheduler/straight.py",
        "        is_young = self._attachment.clock() < receiver.opened_ns + WAITS_NS\n",
        "        is_young = False\n",
        (f"{FOUND_LATE}::test_a_request_for_which_there_is_no_block_waits_a_little_for_others_to_end",),
    ),
    Mutant(
        "waits-for-blocks-untold", "R19, R78", "an encode node is told of a request without blocks when it is late",
        "pipeline/scheduler/straight.py",
        "        is_young = self._attachment.clock() < receiver.opened_ns + WAITS_NS\n",
        "        is_young = True\n",
        (f"{FOUND_LATE}::test_a_request_for_which_no_block_comes_free_is_told_soon",),
    ),
    Mutant(
        "finished-untold-unnoted", "P24",
        "a client that has released an untold request leaves no note that its room is over",
        "allocator/native/untold.h",
        "    room_note(l->finished, l->room);\n",
        "",
        (f"{UNTOLD}::test_who_comes_to_a_room_that_was_finished_untold_hears_of_it",),
    ),
    Mutant(
        "released-though-told-there", "R80",
        "an encoder releases a request of which the language node was told, and waits for an answer",
        "allocator/native/untold.h",
        "    return atomic_fetch_add_explicit(told, 0, memory_order_seq_cst) < epoch;\n",
        "    return told != NULL;\n",
        (f"{IN_ONE_CALL}::"
         "test_a_request_of_which_somebody_has_heard_is_released_by_its_node[the language node is told]",),
    ),
    Mutant(
        "opened-uncounted", "R80", "a room is counted after the look whether somebody has asked for it",
        "allocator/_core_untold.c",
        "    room_count(&self->untold, room, 1);\n",
        "",
        (f"{IN_ONE_CALL}::test_a_request_goes_from_its_opening_to_its_release_by_six_calls",),
    ),
    Mutant(
        "opened-before-those-who-wait", "R21", "a request takes blocks at once though others wait for some",
        "allocator/native/untold.h",
        "grant_load(&t->header[HEADER_FAILING]) | grant_load(&t->header[HEADER_BLOCK_WAITERS]) |\n",
        "grant_load(&t->header[HEADER_FAILING]) |\n",
        (f"{IN_ONE_CALL}::test_what_is_out_of_the_ordinary_is_opened_as_any_other[somebody waits for a block]",),
    ),
    Mutant(
        "last-quarter-lent-at-once", "R35", "rows are lent at one look although few blocks are free",
        "allocator/native/untold.h",
        "        blocks_num_free(g->blocks, (uint32_t)enough) < enough || !grant_may(grant, GRANT_LEND))\n",
        "        !grant_may(grant, GRANT_LEND))\n",
        (f"{IN_ONE_CALL}::test_what_others_may_need_is_not_lent[few blocks are free]",),
    ),
    Mutant(
        "failed-request-bound", "R37, P5", "an encoder binds a request that has failed to a grant",
        "allocator/_core_untold.c",
        "status_epoch(word) != epoch || status_phase(word) >= FIRST_TERMINAL_PHASE)\n",
        "status_epoch(word) != epoch)\n",
        (f"{IN_ONE_CALL}::test_who_has_ended_or_finds_no_grant_sends_nothing",),
    ),
    Mutant(
        "slots-beyond-the-binder", "P7", "a sender has slots that are not in the tables of its binder",
        "allocator/_core_bind.c",
        "    if (t->num_slots < num_slots || t->num_slots_there < num_slots_there) {\n",
        "    if (t->num_slots_there < num_slots_there) {\n",
        (f"{IN_ONE_CALL}::test_a_sender_and_its_binder_have_the_same_slots",),
    ),
    Mutant(
        "any-rooms-grant", "R37, P6", "an encoder binds itself to whatever grant its room's tag leads to",
        "allocator/native/bind.h",
        "    if (said[MEETING_ROOM] != b->room || said[MEETING_NODE_ID] != t->own.id ||\n",
        "    if (said[MEETING_NODE_ID] != t->own.id ||\n",
        (f"{BIND}::test_a_grant_that_is_refused_hides_no_other",),
    ),
    Mutant(
        "granted-blocks-unchecked", "R37", "blocks are noted as another node's memory says, whatever they are",
        "allocator/native/bind.h",
        "    return k == count;\n",
        "    return k <= count;\n",
        (f"{BIND}::test_what_cannot_be_true_is_left_alone",),
    ),
    Mutant(
        "buried-grant-bound", "R79, R81", "an encoder marks a grant to which its node has joined another",
        "allocator/native/bind.h",
        "!bind_is_there(b) || bind_is_over(b))",
        "!bind_is_there(b))",
        (f"{BIND}::test_what_cannot_be_true_is_left_alone",),
    ),
    Mutant(
        "marked-without-a-look", "R81, P6",
        "an encoder marks a grant as found, and does not look at its tombstone after that",
        "allocator/native/bind.h",
        "!bind_mark(b) || bind_is_over(b))",
        "!bind_mark(b))",
        (f"{BIND}::test_who_marks_a_grant_sees_its_tombstone_or_is_seen",),
    ),
    Mutant(
        "mark-overwritten", "R81, P6", "an encoder that finds a grant hides who has found it before",
        "allocator/native/bind.h",
        "        return word == ours;\n",
        "        word = bind_load(finder);\n",
        (f"{BIND}::test_a_grant_has_one_mark_an_epoch",),
    ),
    Mutant(
        "bound-grant-kept", "R79", "an encoder whose slot the bootstrap has joined keeps the grant that it has bound",
        "allocator/native/bind.h",
        "        if (bind_may(b, BIND_UNBIND))\n"
        "            bind_move(bound, b->remote_epoch << 1 | 1, b->remote_epoch << 1);\n",
        "        bind_may(b, BIND_UNBIND);\n",
        (f"{BIND}::test_a_grant_is_let_go_of_where_the_bootstrap_was_faster",),
    ),
    Mutant(
        "no-look-whether-told", "R79", "who notes a destination does not look whether its node was told meanwhile",
        "allocator/native/bind.h",
        "(is_untold ? 0 : BIND_TOLD)",
        "(is_untold || record ? 0 : BIND_TOLD)",
        (f"{BIND}::test_a_node_that_is_told_meanwhile_is_seen_to_be",),
    ),
    Mutant(
        "counted-before-it-is-noted", "R79, P1", "a destination is there before its record is",
        "allocator/native/bind.h",
        "    bind_store(&record[SLOT_REQUIRED], 1);\n",
        "    bind_store(&record[SLOT_REQUIRED], 1);\n    bind_store(&record[SLOT_NUM_DESTINATIONS], 1);\n",
        (f"{BIND}::test_a_death_before_any_step_leaves_what_came_before_it",),
    ),
    Mutant(
        "late-ones-stay-untold", "R37, R78", "a request that takes long is never told to its node",
        "pipeline/client/untold.py",
        "            if not is_over and (handle.driver is None or not handle.driver.take_back(handle)):\n",
        "            if not is_over and handle.driver is not None and not handle.driver.take_back(handle):\n",
        ("tests/transfers/test_failures.py",),
    ),
]
