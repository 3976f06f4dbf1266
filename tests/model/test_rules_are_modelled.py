"""Which model shows that a rule of the protocol is needed, by the knob that takes the rule away.

| rule | shown by (`model`: knob) |
|---|---|
| R1 | `transfer`: r1_grants_are_absolute |
| R2 | `transfer`: r2_sent_is_not_obeyed |
| R3 | `transfer`: r3_whole_blocks_are_freed |
| R4 | `transfer`: r4_success_is_all_rows; `destinations`: r4_success_needs_every_destination, \
r4_success_needs_the_total |
| R5 | `transfer`: r5_resume_from_counters |
| R6 | `transfer`: r6_failure_taints, r6_death_taints, r6_sent_rises_in_order, r6_nothing_counts_behind_a_failed_one, \
r6_sent_is_read_before_tainted, r6_tainted_is_stored_before_sent |
| R7 | `transfer`: r7_reports_carry_tainted, r7_tainted_is_quarantined, r7_failed_frees_nothing |
| R8 | `transfer`: r8_reading_is_respected, r8_broken_attempt_keeps_its_source |
| R9 | `transfer`: r9_ack_after_the_last_attempt |
| R10 | `transfer`: r10_worker_keeps_to_its_grants_session, r10_new_port, r10_windows_are_sent_again, \
r10_fence_spares_the_new_session, \
r10_fenced_is_no_failure |
| R11 | `transfer`: r11_fence_runs_by_itself |
| R12 | `transfer`: r12_death_is_no_fence, r12_waits_for_the_writers_end; `identity`: r12_waits_for_the_writers_end |
| R13 | `transfer`: r13_done_is_applied |
| R14 | `identity`: r14_reports_name_the_incarnation, r14_reports_name_the_epoch, r14_messages_name_their_target, \
r14_a_registration_voids_the_one_before, r14_worker_looks_again_behind_the_door |
| R15 | `identity`: r15_tombstones, r15_abort_leaves_a_tombstone; `transfer`: r15_abort_leaves_a_tombstone; \
`destinations`: r15_abort_fails_the_room; `room`: r15_late_comers_are_refused, r15_bar_ends_when_all_know, \
r15_bar_lasts_until_the_refused_know, r15_a_refused_ones_abort_bars_nothing, r15_abort_raises_the_tombstone |
| R17 | `identity`: r17_last_epoch_retires_the_slot |
| R18 | `destinations`: r18_an_absent_destination_counts_as_nothing, r18_progress_is_kept_apart; \
`supply`: r18_each_destination_is_told_its_own_progress |
| R19 | `supply`: r19_rows_flow_on_each_destinations_own_grant |
| R20 | `destinations`: r20_success_is_taken_from_the_phase |
| R21 | `supply`: r21_destination_reserve_for_waiting_rows, r21_destination_reserve_for_rows_that_fill_it, \
r21_source_reserve_for_heads, \
r21_source_reserve_is_dropped_after_the_write, r21_a_part_stays_for_those_whose_rows_came |
| R22 | `supply`: r22_a_head_without_rows_stops_nobody, r22_first_come_first_served |
| R23 | `repair`: r23_ended_stays_in_the_heartbeats, r23_slot_is_kept_until_closed, \
r23_abort_is_sent_until_acknowledged, \
r23_unknown_is_closed |
| R24 | `repair`: r24_heartbeats, r24_the_one_behind_gets_the_blocks_again, r24_an_unheard_grant_is_sent_again |
| R25 | `repair`: r25_slow_scan |
| R26 | `retry`: r26_begins_behind_what_is_kept, r26_only_what_has_landed_is_kept, \
r26_a_copy_counts_if_its_block_is_still_ours, r26_the_old_blocks_stay_in_quarantine, r26_the_length_is_that_of_before |
| R27 | `verify`: r27_word_rises_after_the_check, r27_success_when_all_have_checked, r27_summed_before_sent, \
r27_new_worker_counts_what_is_summed, r27_sent_and_checksum_are_one_word, r27_checked_is_stored_before_the_word |
| R28 | `claim`: r28_claims_before_it_copies, r28_the_claim_has_the_epoch, r28_the_room_is_compared; \
`rendezvous`: r28_the_network_takes_the_claim, r28_the_networks_claim_lasts_until_its_end |
| R29 | `claim`: r29_reads_behind_the_claim |
| R30 | `claim`: r30_revoked_before_freed, r30_revoked_is_quarantined |
| R31 | `claim`: r31_given_back_by_cas |
| R32 | `claim`: r32_the_word_is_moved_by_cas, r32_the_word_before_giving_back |
| R33 | `claim`: r33_the_claim_names_its_writer, r33_death_is_the_end_of_its_writes; \
`writers`: r33_a_spent_entry_retires, r33_the_claim_has_the_generation, \
r33_claims_are_given_back_before_the_entry_is_free |
| R34 | `claim`: r34_a_grant_without_rows_is_withdrawn; `told`: r34_kept_from_all_before_it_is_withdrawn, \
r34_opened_anew_it_is_told |
| R35 | `claim`: r35_the_last_block_is_not_lent; `lending`: r35_the_reserve_is_never_lent, \
r35_a_quarter_is_never_lent, \
r35_half_of_the_slots_are_never_lent, r35_who_takes_it_out_has_it, r35_a_result_keeps_its_slot |
| R36 | `outcome`: r36_whole_before_the_encode_sides_word, r36_every_destination_is_whole, \
r36_whole_stands_in_the_word, \
r36_a_whole_one_does_not_fail_for_itself, r36_the_encode_sides_word_is_first, r36_recorded_before_whole, \
r36_moved_by_cas, \
r36_told_until_closed |
| R37 | `rendezvous`: r37_posts_then_looks, r37_the_room_is_compared_in_the_slot, \
r37_the_encode_node_is_compared_in_the_slot, \
r37_the_epoch_is_looked_at_again, r37_posts_of_the_dead_are_taken_off, r37_the_init_follows |
| R39 | `shelf`: r39_the_generation_is_drawn_after_the_look |
| R40 | `shelf`: r40_all_is_written_before_ready |
| R41 | `shelf`: r41_looks_again_behind_its_pin, r41_pins_before_it_looks |
| R42 | `shelf`: r42_pins_are_words_of_their_reader, r42_threads_share_a_word_by_turns, \
r42_a_ledger_is_cleared_before_it_is_anothers |
| R43 | `shelf`: r43_retired_before_the_scan, r43_retired_is_final |
| R44 | `shelf`: r44_cells_are_freed_by_cas, r44_anyone_finishes_a_retired_entry |
| R45 | `shelf`: r45_filling_names_its_publisher, r45_not_before_its_device_is_silent, \
r45_nor_given_back, r45_retired_before_the_lane_is_anothers |
| R46 | `shelf`: r46_absent_after_two_equal_looks |
| R47 | `shelf`: r47_the_newest_counts, r47_a_dropped_one_retires_them_too, r47_the_oldest_goes_first |
| R48 | `shelf`: r48_the_floor_is_looked_at_again, r48_the_floor_only_rises |
| R49 | `shelf`: r49_who_finds_no_room_gives_back |
| R50 | `fetch`: r50_a_refusal_raises_the_tombstone |
| R51 | `fetch`: r51_one_request_one_slot |
| R52 | `fetch`: r52_the_item_word_is_a_pin, r52_looks_again_behind_the_item_word |
| R53 | `fetch`: r53_the_pin_lasts_until_no_attempt_is_open |
| R54 | `fetch`: r54_refused_after_the_last_attempt |
| R55 | `fetch`: r55_a_new_bootstrap_gives_taken_slots_back |
| R56 | `fetch`: r56_a_death_ends_the_slots_of_the_dead |
| R57 | `fetch`: r57_the_retry_names_its_generation |
| R58 | `fetch`: r58_a_generation_names_the_incarnation |
| R59 | `fetch`: r59_a_refusal_frees_what_came_with_the_question |
| R60 | `in place`: r60_who_reads_pins |
| R61 | `in place`: r61_given_when_all_ranks_have_pinned, r61_answers_name_what_was_pinned |
| R62 | `in place`: r62_copied_before_it_is_said, r62_unpinned_behind_the_loads |
| R63 | `in place`: r63_no_unpin_under_a_view |
| R64 | `in place`: r64_the_mapping_of_the_dead_stays; `lent`: r64_opened_where_it_is_pinned |
| R65 | `cache`: r65_the_first_takes_from_those_behind |
| R67 | `cache`: r67_one_fetch_a_key |
| R68 | `cache`: r68_all_who_wait_are_told_of_a_failure |
| R69 | `cache`: r69_an_admitted_users_items_stay |
| R70 | `cache`: r70_followers_are_past_what_is_used_again; `lent`: r70_pinned_until_all_have_read |
| R71 | `cache`: r71_memory_under_a_fetch_is_its_own |
| R72 | `notices`: r72_the_poller_compares |
| R73 | `notices`: r73_a_new_poller_begins_a_new_stream |
| R74 | `notices`: r74_heartbeats_carry_the_number |
| R75 | `notices`: r75_a_gap_asks_for_a_snapshot |
| R76 | `notices`: r76_a_snapshot_has_its_number, r76_a_snapshot_is_of_what_was_announced |
| R77 | `repair`: r77_digests_are_compared, r77_all_is_told_where_they_differ |
| R78 | `told`: r78_told_or_released_by_one_cas, r78_the_slots_of_the_dead_are_told, r78_a_report_tells |
| R79 | `told`: r79_joined_by_one_cas, r79_the_bound_one_is_taken_up, r79_who_notes_looks_whether_it_is_told, \
r79_what_was_closed_is_closed_again, r79_what_was_closed_is_known_until_its_release |
| R80 | `told`: r80_released_after_both_words, r80_told_is_shown_before_the_init, \
r80_who_has_ended_looks_whether_it_is_shown |
| R81 | `told`: r81_success_ends_the_claim, r81_whoever_writes_is_bound, r81_so_is_who_has_the_worker_write, \
r81_who_finds_a_grant_marks_it_first, r81_who_joins_looks_at_the_mark, r81_a_finder_is_kept_off |
| R82 | `lending`: r82_what_was_shown_stays, r82_marked_before_the_look, r82_a_failure_leaves_what_is_marked |
| R83 | `repair`: r83_the_word_is_raised_first, r83_heartbeats_repeat_what_the_worker_said |
| R84 | `showing`: r84_the_number_is_drawn_when_it_is_shown, r84_showing_before_the_number_is_drawn, \
r84_who_retires_completes_what_is_shown, r84_the_number_is_set_once, \
r84_it_is_for_the_generation_that_was_seen_before |
| R85 | `pins`: r85_pinned_before_the_slot_is_open, r85_released_before_the_pin_goes, \
r85_the_last_one_takes_it_away, r85_a_new_bootstrap_counts_the_slots, r85_a_new_bootstrap_takes_the_others_away |
| R86 | `shares`: r86_each_living_node_has_a_part, r86_what_is_beyond_the_parts_is_shared |
| R87 | `lent`: r87_looks_behind_its_copy, r87_looks_at_the_word, r87_looks_whose_word_it_is, \
r87_the_word_of_the_dead_counts |

What no knob shows, and why:

- R1, "another index under the same session fails the room" and "a message that would leave a gap is ignored": no \
honest node sends such
  a message, whatever is lost; they guard against a peer with a bug.
- R11, the time limit: the models have no time, so "at once when somebody waits" and "at the latest after a while" \
are the same step.
- R14, the answer "stale": silence would lead to the same end, only later.
- R15, tombstones that outlive a burial: with numbered registrations nothing of before comes through; they are a \
second lock.
- R16: a redone ring record and a block's generation are in the models of the ring and of the owner cell.
- R17, first in first out: it keeps an epoch away from reuse for as long as can be; no step depends on it.
- R20, phase and sent in one step: while Success is taken from the phase, two steps do no harm.
- R21, eviction and rows staged against grants: with the reserve nobody waits for them; they only save copies.
- R25, the scan at a restart: it is the same step as the slow scan, only sooner.
- R36, an abort that ends the encode side: without it the encoder's deadline does, later.
- R37, sequentially consistent: a post that is not seen yet when its side looks is a look before the post.
- R38: a room is used once at an encode node, and R37 compares both, so there is no second slot to be bound to.
- R41, the full fence, and R43, its other side: the models are sequentially consistent. A fence that is missing is the
  other order of the two steps, which the knobs have.
- R47, older ones that a publisher retires when its own is ready: the newest counts, and the oldest goes first, so they
  cost room and nothing else.
- R49, one publication of a thread at a time, and limits in bytes for what is pinned in place: they bound what somebody
  who is stopped for ever keeps; the models have one such process.
- R66: no step depends on it; the cache holds with its users in any order. It is there for fairness.
- R76, older snapshots: who takes one is told by the next heartbeat; the notices hold either way.
- R79, a grant is bound to one encoder: a room has one encoder; it guards against a room number that two use at once.
- R80, grants that wait and rooms that are opened: without the looks they meet when the encoder tells its node, later.
- R77, what is closed is named: else the digests differ once, and all is told again; so it only saves messages.
- R83, a worker's message is in no list: were it in one, digests would differ, and all be told again, for nothing.
- R87, the order of both looks: it holds in either; who has joined behind the look at the reader finds the item no more.
- R82, host memory that does not move, and copies that count only before a failure: both are one process's own steps.
"""

from __future__ import annotations

import re
from dataclasses import fields

import destinations_model
import direct_claim_model
import direct_outcome_model
import direct_rendezvous_model
import direct_told_model
import direct_writers_model
import fetch_share_model
import identity_model
import item_cache_model
import item_fetch_model
import item_in_place_model
import item_lent_model
import item_notices_model
import item_pins_model
import item_shelf_model
import item_showing_model
import lending_model
import pytest
import repair_model
import retry_model
import room_model
import supply_model
import test_destinations_model
import test_direct_claim_model
import test_direct_outcome_model
import test_direct_rendezvous_model
import test_direct_told_model
import test_direct_writers_model
import test_fetch_share_model
import test_identity_model
import test_item_cache_model
import test_item_fetch_model
import test_item_in_place_model
import test_item_lent_model
import test_item_notices_model
import test_item_pins_model
import test_item_shelf_model
import test_item_showing_model
import test_lending_model
import test_repair_model
import test_retry_model
import test_room_model
import test_supply_model
import test_transfer_model
import test_verify_model
import transfer_model
import verify_model

MODELS = {
    "transfer": (transfer_model, test_transfer_model),
    "destinations": (destinations_model, test_destinations_model),
    "supply": (supply_model, test_supply_model),
    "identity": (identity_model, test_identity_model),
    "lending": (lending_model, test_lending_model),
    "repair": (repair_model, test_repair_model),
    "retry": (retry_model, test_retry_model),
    "room": (room_model, test_room_model),
    "verify": (verify_model, test_verify_model),
    "claim": (direct_claim_model, test_direct_claim_model),
    "writers": (direct_writers_model, test_direct_writers_model),
    "outcome": (direct_outcome_model, test_direct_outcome_model),
    "rendezvous": (direct_rendezvous_model, test_direct_rendezvous_model),
    "told": (direct_told_model, test_direct_told_model),
    "shelf": (item_shelf_model, test_item_shelf_model),
    "showing": (item_showing_model, test_item_showing_model),
    "fetch": (item_fetch_model, test_item_fetch_model),
    "pins": (item_pins_model, test_item_pins_model),
    "in place": (item_in_place_model, test_item_in_place_model),
    "lent": (item_lent_model, test_item_lent_model),
    "cache": (item_cache_model, test_item_cache_model),
    "notices": (item_notices_model, test_item_notices_model),
    "shares": (fetch_share_model, test_fetch_share_model),
}


def rows() -> dict[str, dict[str, list[str]]]:
    """The table above: rule -> model -> knobs."""
    assert __doc__ is not None
    table = {}
    for rule, shown in re.findall(r"^\| (R\d+) \| (.*) \|$", __doc__, re.MULTILINE):
        parts = [part.split(": ") for part in shown.split("; ")]
        table[rule] = {model.strip("`"): knobs.split(", ") for model, knobs in parts}
    return table


def test_every_rule_of_the_protocol_stands_in_the_table_or_is_said_to_be_shown_elsewhere() -> None:
    """R1 to R87: none is forgotten; the last of the docstring says what no knob shows."""
    assert __doc__ is not None
    said = set(re.findall(r"^- (R\d+)", __doc__, re.MULTILINE))
    assert set(rows()) | said == {f"R{number}" for number in range(1, 88)}


@pytest.mark.parametrize("name", MODELS)
def test_the_table_names_every_knob_and_every_knob_is_broken_by_a_test(name: str) -> None:
    """R1 to R87: a rule that is taken away in no test proves nothing."""
    model, tests = MODELS[name]
    knobs = {field.name for field in fields(model.Rules)}
    named = {knob for models in rows().values() for knob in models.get(name, [])}
    assert named == {knob for knob in knobs if knob.startswith("r")}
    assert knobs == {rule for rule, _, _ in tests.BROKEN}
