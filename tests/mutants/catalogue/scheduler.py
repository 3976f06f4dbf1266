"""`pipeline/scheduler/`: queues, grants, results."""

from typing import Final

from ..mutant import Mutant
from .files import LENT, SCARCE, STAYING, STREAMED, crossing

SCHEDULER: Final = [
    Mutant(
        "reserve-without-rows", "R21, D8",
        "a request at the destination takes the last block though it has no rows waiting",
        "pipeline/scheduler/transfer_queue.py",
        "may_take_reserve=record.fills_a_block, ",
        "may_take_reserve=True, ",
        crossing("a_request_without_rows_leaves_the_reserve_where_it_is"),
    ),
    Mutant(
        "waiting-rooms-take-all", "P21",
        "a request of which nothing is known is granted its default, whoever else waits",
        "pipeline/scheduler/transfer_queue.py",
        "            target = min(target, max((num_granted + share) * self._bs, granted))\n",
        "            target = max(target, 0 * share, granted)\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_requests_that_wait_for_their_encoders_leave_a_quarter_of_the_pool_to_those_whose_rows_come",),
    ),
    Mutant(
        "announced-rooms-take-all", "P21",
        "a request is granted ahead of its rows as soon as its length is known, whoever else waits",
        "pipeline/scheduler/transfer_queue.py",
        "total, shows_rows = request.total_embedding_length, ready > 0\n",
        "total, shows_rows = request.total_embedding_length, request.total_embedding_length + ready > 0\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_requests_whose_lengths_are_announced_leave_that_quarter_as_long_as_they_have_shown_no_row",),
    ),
    Mutant(
        "share-after-share", "P21", "a request without rows takes a share once more whenever it is looked at",
        "pipeline/scheduler/transfer_queue.py",
        "        may_have_more = receiver.ready_tokens > 0 or not record.has_share\n",
        "        may_have_more = receiver.ready_tokens >= 0 or not record.has_share\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_a_request_without_rows_takes_nothing_of_what_comes_free_later",),
    ),
    Mutant(
        "all-ahead-of-the-rows", "P21", "a request whose encoder stops holds the whole pool, once its length is known",
        "pipeline/scheduler/default_grant.py",
        "    most = max(num_blocks // 2, SMALL_POOL // 2)\n",
        "    most = num_blocks\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::"
         "test_no_request_has_more_than_half_of_the_pool_ahead_of_its_rows",),
    ),
    Mutant(
        "quarter-of-the-blocks", "P21", "no part of the pool stays for requests whose rows come",
        "pipeline/scheduler/default_grant.py",
        "    return max(0, min(free // 2, free - num_blocks // 4))\n",
        "    return free // 2\n",
        ("tests/pipeline/scheduler/test_waiting_rooms.py::test_however_many_wait_a_quarter_stays",),
    ),
    Mutant(
        "youngest-first", "R22, D9", "requests that wait for blocks are served last come, first served",
        "pipeline/scheduler/transfer_queue.py",
        "        for request in self._wanting:\n",
        "        for request in reversed(self._wanting):\n",
        (f"{SCARCE}::test_those_whose_rows_wait_are_served_first_come_first_served",),
    ),
    Mutant(
        "finished-before-success", "R20, B2",
        "a request is handed over when its own rows have landed, not when every destination has all",
        "pipeline/scheduler/transfer_queue.py",
        "if now.phase == Phase.Success and request.transferred_tokens == request.total_embedding_length:",
        "if request.transferred_tokens == request.total_embedding_length > 0:",
        crossing("what_has_landed_here_is_not_handed_over_before_it_has_landed_everywhere"),
    ),
    Mutant(
        "woken-for-nothing", "P8", "a caller with ranks who was woken alone tells nobody",
        "pipeline/scheduler/transfer_queue.py",
        "        self._driver = Driver(self._serve, self._end_at_once, self._withdrawing.late)\n",
        "        ends = self._end_at_once if ranks is None else lambda receiver: True\n"
        "        self._driver = Driver(self._serve, ends, self._withdrawing.late)\n",
        ("tests/transfers/test_without_repair.py::"
         "test_a_caller_who_was_woken_and_may_not_go_on_himself_has_the_library_thread_do_it",),
    ),
    Mutant(
        "run-goes-on-anywhere", "R35", "blocks are taken for one run wherever the later ones lie",
        "pipeline/scheduler/record.py",
        "        begin = self.first_of_run + granted\n",
        "        begin = blocks[0]\n",
        (f"{LENT}::test_blocks_that_are_no_run_in_the_order_of_the_rows_are_drained",),
    ),
    Mutant(
        "no-room-behind", "R35", "a request of unknown length begins where the next one ends its run",
        "pipeline/scheduler/straight.py",
        "        return max(needed - num_blocks, 0) if needed <= receiver.max_window_blocks else 0\n",
        "        return 0\n",
        (f"{STAYING}::test_requests_whose_lengths_are_unknown_leave_each_other_room[True]",),
    ),
    Mutant(
        "room-given-twice", "R35", "two requests of unknown length are given the same room",
        "allocator/blocks.py",
        "                self._roomy_from = start + length\n",
        "                self._roomy_from = start\n",
        (f"{STAYING}::test_requests_whose_lengths_are_unknown_leave_each_other_room[True]",),
    ),
    Mutant(
        "result-made-anew", "R35", "each look at a result makes another tensor",
        "pipeline/scheduler/request.py",
        "        if self._embeddings is None:\n",
        "        if self._embeddings is not self:\n",
        (f"{LENT}::test_a_result_makes_each_view_once_and_is_not_to_be_changed",),
    ),
    Mutant(
        "blocks-that-are-no-run-lent", "R35", "blocks that are granted together are taken for a run",
        "pipeline/scheduler/record.py",
        "        elif blocks == list(range(begin, begin + len(blocks))):  # as nearly always\n",
        "        elif blocks[0] == begin:\n",
        (f"{LENT}::test_blocks_that_are_no_run_in_the_order_of_the_rows_are_drained",),
    ),
    Mutant(
        "reserve-lent", "R35, R21", "block 0 is lent, too",
        "pipeline/scheduler/lending.py",
        " or record.drained_tokens or record.first_of_run == RESERVE_BLOCK:\n",
        " or record.drained_tokens:\n",
        (f"{LENT}::test_the_reserve_is_never_lent",),
    ),
    Mutant(
        "quarter-lent", "R35, D8", "results are lent until no block is left but the reserve",
        "pipeline/scheduler/lending.py",
        "        is_short = self._num_free() + num_behind < self._quarter\n",
        "        is_short = False\n",
        (f"{LENT}::test_a_scheduler_that_keeps_all_it_gets_still_gets_the_next_one",),
    ),
    Mutant(
        "lent-though-somebody-waits", "R35, D8", "results are lent while another client waits for a block",
        "pipeline/scheduler/lending.py",
        "        return bool(is_short or self._control.blocks.waiters() or self._control.slot_waiters.lanes())\n",
        "        return bool(is_short or self._control.slot_waiters.lanes())\n",
        (f"{LENT}::test_nothing_is_lent_while_somebody_waits_for_a_block_or_a_slot",),
    ),
    Mutant(
        "late-write-into-a-result", "R35, R7", "what is lent may be written to by an attempt that has failed",
        "pipeline/scheduler/lending.py",
        " >= total <= granted and not receiver.is_tainted\n",
        " >= total <= granted\n",
        (f"{LENT}::test_blocks_into_which_a_late_write_may_land_are_drained",),
    ),
    Mutant(
        "popped-and-drained", "R35, P6", "a result is drained though its scheduler may pop it meanwhile",
        "pipeline/scheduler/lending.py",
        "                passed.append(finished.pop())\n",
        "                passed.append(finished[-1])\n",
        (f"{STAYING}::test_a_result_that_is_drained_just_when_it_is_popped_comes_out_once",),
    ),
    Mutant(
        "unpopped-kept", "R35, D8", "results that nobody has popped stay in their blocks, whoever waits for one",
        "pipeline/scheduler/lending.py",
        "                (lacks_blocks or self._control.slot_waiters.lanes()) and self._drain_finished(finished)\n",
        "                False\n",
        (f"{STAYING}::test_results_that_were_not_popped_are_drained_when_somebody_is_short_and_no_others",),
    ),
    Mutant(
        "rows-on-their-way-kept", "R35, R21", "rows that have landed stay in their blocks, whoever waits for one",
        "pipeline/scheduler/lending.py",
        "            if not (lacks_blocks and self._drain_kept()) and not (\n",
        "            if not (\n",
        (f"{STAYING}::test_rows_that_are_on_their_way_are_drained_when_somebody_is_short",),
    ),
    Mutant(
        "lent-beyond-its-client", "R35, P6",
        "a client that leaves gives away blocks at which its scheduler still looks",
        "pipeline/scheduler/transfer_queue.py",
        "        self._lending.end()\n",
        "        pass\n",
        (f"{LENT}::test_a_result_outlives_its_client",),
    ),
    Mutant(
        "lent-is-no-pool", "R35, P21", "what is lent counts as pool that a stopped encoder may hold ahead of its rows",
        "pipeline/scheduler/default_grant.py",
        "    return min(most, max((num_blocks - num_lent) // 2, 1)) if num_lent else most\n",
        "    return most\n",
        (f"{STAYING}::test_an_encoder_that_stops_does_not_hold_all_that_is_not_lent",),
    ),
    Mutant(
        "streamed-drained-unpopped", "R82, P6", "rows that are looked at are drained when the request has ended",
        "pipeline/scheduler/lending.py",
        " or record.available_tokens or not lent.claim():",
        " or not lent.claim():",
        (f"{STREAMED}::test_rows_that_are_looked_at_are_not_drained_when_somebody_is_short",),
    ),
    Mutant(
        "streamed-drained-on-its-way", "R82, P6", "rows that are looked at are drained before the last one has come",
        "pipeline/scheduler/lending.py",
        "            if not request.is_streamed:\n                self._kept[request] = None\n",
        "            self._kept[request] = None\n            if not request.is_streamed:\n                pass\n",
        (f"{STREAMED}::test_rows_that_are_looked_at_are_not_drained_when_somebody_is_short",),
    ),
    Mutant(
        "streamed-unmarked", "R82, D2", "rows are shown in blocks, and no word says so",
        "pipeline/scheduler/lending.py",
        "        self._control.slots.raise_to(receiver.slot, Slot.LENT, Lent.STREAM)\n",
        "",
        (f"{STREAMED}::test_rows_that_were_looked_at_stay_right_though_the_request_has_failed",),
    ),
    Mutant(
        "streamed-shown-too-late", "R82, D2", "rows are shown of a request that has failed, and may be another's",
        "pipeline/scheduler/streamed.py",
        "        if not stays or receiver.poll() == Phase.Failed:\n",
        "        if not stays:\n",
        (
            f"{STREAMED}::test_a_request_that_fails_while_it_is_lent_shows_nothing",
            f"{STREAMED}::test_rows_are_not_shown_whose_blocks_may_have_been_anothers_when_they_were_copied_out",
        ),
    ),
    Mutant(
        "streamed-moves", "R82, B12", "the host memory of a streamed request grows with its grants, and its rows move",
        "pipeline/scheduler/draining.py",
        ", request.total_embedding_length if request.is_streamed else 0)",
        ", 0)",
        (f"{STREAMED}::test_a_request_of_any_length_streams_through_few_blocks",),
    ),
    Mutant(
        "streamed-released-by-its-failure", "R82, P6",
        "the memory of what was looked at goes back when the request fails",
        "pipeline/scheduler/transfer_queue.py",
        "        if not request.is_retryable and not is_looked_at:\n",
        "        if not request.is_retryable:\n",
        (f"{STREAMED}::test_rows_that_were_looked_at_stay_right_though_the_request_has_failed",),
    ),
]
