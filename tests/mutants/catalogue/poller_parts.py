"""`workers/poller/`: what the pollers of both roles are made of."""

from typing import Final

from ..mutant import Mutant
from .files import DIGESTS, IDENTITY, MARKS, PHASES, REPAIR, SESSIONS, SILENCE, TAINTS, crossing

POLLER_PARTS: Final = [
    Mutant(
        "nobody-looked-up-among-peers", "R16, D4",
        "who tells of a slot that is opened meanwhile looks up a peer that is none",
        "allocator/peertable.py",
        "            peer >= 0\n            and get(peer, Peer.STATE)",
        "            get(peer, Peer.STATE)",
        (f"{MARKS}::test_a_request_whose_slot_is_opened_while_it_is_told_of_has_no_destination_any_more",),
    ),
    Mutant(
        "tainted-before-sent", "R6", "a report reads `sent` after `tainted`, and so may be cleaner than its progress",
        "workers/reports.py",
        "        sent_tokens=sent,\n",
        "        sent_tokens=max(sent, ctx.control.destinations.get(slot, 0, Destination.SENT)),\n",
        (f"{TAINTS}::test_a_report_is_no_cleaner_than_its_progress",),
    ),
    Mutant(
        "heartbeats-list-all", "R77", "a heartbeat lists every request in flight, changed or not",
        "workers/poller/room_lists.py",
        "        if self._states.get(at) != state:\n            self._stale[at] = None\n",
        "        self._stale[at] = None\n",
        (f"{DIGESTS}::test_what_is_no_news_for_a_report_comes_with_the_next_heartbeat",),
    ),
    Mutant(
        "no-fence", "R11", "no fence ends a quarantine while somebody waits for blocks",
        "workers/poller/quarantine.py",
        "self._ctx.to(f\"worker{worker}\").send(Kick.FENCE, worker, 0, number)",
        "self._ctx.to(f\"worker{worker}\").flush()",
        (f"{SESSIONS}::test_when_somebody_waits_for_a_block_the_fence_comes_soon",),
    ),
    Mutant(
        "fence-for-the-busy", "R11", "several short quarantines, one after another, bring a fence",
        "workers/poller/quarantine.py",
        "block: self._since_ns.get(block, now_ns) for blocks",
        "block: min(self._since_ns.values(), default=now_ns) for blocks",
        (f"{SESSIONS}::test_quarantines_that_end_in_time_bring_no_fence_however_many_follow_one_another",),
    ),
    Mutant(
        "freed-before-the-fence", "R10, P7", "blocks that are quarantined under the living session count as fenced",
        "workers/poller/quarantine.py",
        "            if number < current:\n                self._free_fenced(worker, current)\n",
        "            if number <= current:\n                self._free_fenced(worker, current + 1)\n",
        (f"{SESSIONS}::test_a_fence_frees_only_what_was_exposed_under_a_lesser_session",),
    ),
    Mutant(
        "grant-not-sent-again", "R24", "a grant that was lost stays lost",
        "workers/poller/grant_watch.py",
        "room.known_blocks < self._slots.granted(slot)[0] or room.session",
        "room.session",
        (f"{REPAIR}::test_a_grant_that_was_lost_is_sent_again_when_a_heartbeat_shows_it_missing",),
    ),
    Mutant(
        "success-of-rows-that-did-not-come", "P6, R4", "Success is believed whatever was sent",
        "workers/poller/reports.py",
        "    if room.phase == Phase.Success and not 0 < total == room.sent_tokens:\n",
        "    if room.phase == Phase.Success and total == 0 == room.sent_tokens:\n",
        (f"{PHASES}::test_a_report_that_cannot_be_true_fails_its_request",),
    ),
    Mutant(
        "more-sent-than-granted", "D15, P16", "a report of rows for which no block was granted is believed",
        "workers/poller/reports.py",
        "    if room.sent_tokens > tokens:\n",
        "    if room.sent_tokens > 1 << 32:\n",
        crossing("more_rows_reported_than_were_granted_fail_the_request"),
    ),
    Mutant(
        "pages-returned-in-use", "D6, R16",
        "a dead client's slots are given to another while requests in them are open",
        "workers/poller/reaper.py",
        "if any(self._in_use(page) for page in pages):",
        "if any(self._in_use(page) for page in pages[:0]):",
        crossing("the_slots_of_a_scheduler_that_died_are_nobodys_until_its_requests_are_acknowledged"),
    ),
    Mutant(
        "dead-clients-lane-kept", "P1, P12", "the lane of a client that died is never free again",
        "workers/poller/base.py",
        "                self._reaper.bury(slot)\n",
        "",
        crossing("the_slots_of_a_scheduler_that_died_are_nobodys_until_its_requests_are_acknowledged"),
    ),
    Mutant(
        "poller-does-not-scan", "R25", "the poller has no slow scan",
        "workers/poller/base.py",
        "            touched.update(changed)\n",
        "",
        crossing("a_failure_whose_kick_was_lost_is_found_by_the_slow_scan"),
    ),
    Mutant(
        "status-for-another-incarnation", "R14, P17", "a poller takes a message for another incarnation of itself",
        "workers/poller/peer_watch.py",
        "if peer is None or envelope.for_incarnation != self._ctx.control.incarnation:",
        "if peer is None:",
        (f"{IDENTITY}::test_a_status_for_or_from_another_incarnation_has_no_effect",),
    ),
    Mutant(
        "silence-is-no-death", "P4", "a peer that has fallen silent is waited for for ever",
        "workers/poller/peer_watch.py",
        "if silent_ns > timing.peer_timeout_s * NS:",
        "if silent_ns < 0:",
        (f"{SILENCE}::test_who_is_silent_is_dead_and_who_was_stopped_itself_holds_nothing_against_others",),
    ),
    Mutant(
        "own-stop-held-against-others", "P14", "a process that was stopped takes its peers for dead",
        "workers/poller/peer_watch.py",
        "            if stalled:\n",
        "            if stalled and now_ns < 0:\n",
        (f"{SILENCE}::test_who_is_silent_is_dead_and_who_was_stopped_itself_holds_nothing_against_others",),
    ),
    Mutant(
        "speaks-for-another", "D15, P17", "a listed node may send heartbeats and reports in the name of another",
        "workers/poller/peer_watch.py",
        "        if peers_key != key:\n",
        "        if peers_key != key and not key:\n",
        ("tests/hostile/test_impostors.py::test_a_heartbeat_in_the_name_of_another_keeps_nobody_alive",),
    ),
]
