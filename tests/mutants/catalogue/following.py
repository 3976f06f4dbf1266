"""Fetches that break off and are retried, shares of slots, refused nodes, and following what is published."""

from typing import Final

from ..mutant import Mutant
from .files import ASKED, BREAKING, FOLLOWED, MEETING, NOTICED, RETRIED
from .files import FETCHING as FETCHED

FETCHING: Final = "pipeline/client/fetching.py"
CLIENT: Final = "pipeline/client/far_fetch.py"
ITEMS: Final = "workers/bootstrap/fetched_items.py"
TOLD: Final = "workers/poller/shelf_notices.py"
VIEWS: Final = "workers/poller/followed_shelves.py"

FOLLOWING: Final = [
    Mutant(
        "broken-and-not-aborted", "D4, D6", "a fetch that breaks off holds its slot for ever",
        FETCHING,
        "                    far.give_up(why)\n            return True\n",
        "                    pass\n            return True\n",
        (f"{BREAKING}::test_a_fetch_that_breaks_off_is_aborted_and_leaves_nothing",),
    ),
    Mutant(
        "one-broken-stops-all", "D4, P21", "a fetch that cannot be looked at stops those behind it",
        FETCHING,
        "        except Exception as error:\n            log.exception(",
        "        except SegmentError as error:\n            log.exception(",
        (f"{BREAKING}::test_a_fetch_that_cannot_be_looked_at_stops_no_other",),
    ),
    Mutant(
        "two-outcomes", "R54", "a fetch that was given up in the midst of a look has an item all the same",
        FETCHING,
        "        if found is None or it.is_done:  # a signal",
        "        if found is None:  # a signal",
        (f"{BREAKING}::test_a_fetch_that_is_given_up_in_the_midst_of_a_look_is_over[1]",),
    ),
    Mutant(
        "opened-for-nobody", "D6", "a fetch that is given up while its request is opened leaves that",
        FETCHING,
        "        if it.is_done and it.far is not None:  # by",
        "        if it.is_done and it.far is None:  # by",
        (f"{BREAKING}::test_a_fetch_that_is_given_up_while_its_request_is_opened_leaves_none",),
    ),
    Mutant(
        "late-instead-of-absent", "P24", "what is known to be absent is said to be late",
        FETCHING,
        "now_ns + ASK_AGAIN_NS < it.deadline_ns",
        "now_ns < it.deadline_ns",
        (f"{BREAKING}::test_what_is_not_published_while_somebody_waits_is_said_to_be_so_and_not_that_it_is_late",),
    ),
    Mutant(
        "closed-doors-kept", "P20, P23", "each address from which was fetched is kept for ever",
        "pipeline/client/shelf_doors.py",
        "            elif door.asked_ns <= long_ago_ns:\n",
        "            elif door.asked_ns <= 0:\n",
        (f"{BREAKING}::test_what_did_not_open_is_forgotten_when_nobody_asks_for_it_any_more",),
    ),
    Mutant(
        "dead-by-one-try", "P11", "an address is dead when one try was refused, and the next has no answer",
        "pipeline/client/refusals.py",
        "        return it.refused_ns is not None and it.refused_ns[1] - it.refused_ns[0] >= REFUSED_NS\n",
        "        return it.refused_ns is not None and now_ns - it.refused_ns[0] >= REFUSED_NS\n",
        (f"{BREAKING}::test_an_address_is_not_dead_while_the_second_try_has_no_answer",),
    ),
    Mutant(
        "refused-and-not-noted", "P24", "a fetch from a node that refuses its node waits until its deadline",
        "workers/bootstrap/language.py",
        "        self._refused_nodes.put(link.address, reason, self._now_ns)\n",
        "",
        (f"{MEETING}::test_a_refused_registration_ends_a_fetch_at_once",),
    ),
    Mutant(
        "refused-for-ever", "D3", "what was refused once is refused when it is right",
        "allocator/refused_nodes.py",
        "words[RefusedNode.REFUSED_NS] < since_ns:\n",
        "not since_ns:\n",
        (f"{MEETING}::test_a_node_that_was_refused_and_is_right_now_is_registered_with",),
    ),
    Mutant(
        "retry-of-any-generation", "R57, P6", "the rest of another item is asked for",
        CLIENT,
        "            generation, total = part.rows.shape.number,",
        "            generation, total = 0,",
        (f"{RETRIED}::test_a_retry_goes_on_behind_what_has_come_and_names_its_generation",),
    ),
    Mutant(
        "behind-another-item", "R57, P6", "rows of another item stand behind those that have come",
        CLIENT,
        "        if (part.node, part.rows.shape) == (self._node, shape):\n",
        "        if part.node == self._node:\n",
        (f"{RETRIED}::test_rows_of_another_item_never_stand_behind_what_has_come",),
    ),
    Mutant(
        "behind-another-incarnations", "R58, P6", "rows of the next incarnation stand behind those that have come",
        CLIENT,
        "        if (part.node, part.rows.shape) == (self._node, shape):\n",
        "        if part.rows.shape == shape:\n",
        (f"{RETRIED}::test_after_a_restart_of_its_node_a_retry_begins_at_the_first_row",),
    ),
    Mutant(
        "generations-begin-anew", "R58", "a generation that a caller has kept names an item of the next incarnation",
        "allocator/control.py",
        "        begin_shelf(mapping, layout, incarnation)\n",
        "        pass\n",
        (f"{ASKED}::test_a_generation_names_no_item_of_a_later_incarnation",),
    ),
    Mutant(
        "rest-of-nothing", "R57, B6", "a fetch may begin behind the end of its item",
        ITEMS,
        "        if ask.first_block * control.geometry.block_size >= total:\n",
        "        if ask.first_block * control.geometry.block_size > 2 * total:\n",
        (f"{ASKED}::test_a_fetch_that_goes_on_has_the_rest_alone_and_of_the_same_item",),
    ),
    Mutant(
        "one-node-has-all-slots", "R86, P21", "one language node has all slots of fetches, and the others none",
        "workers/bootstrap/fetch_shares.py",
        "        return beyond < self._capacity - part * len(living)\n",
        "        return beyond < self._capacity\n",
        (f"{ASKED}::test_no_node_takes_so_many_slots_that_another_has_none_for_its_fetches",),
    ),
    Mutant(
        "shares-forgotten", "R86, R55", "a new bootstrap does not know whose the open fetches are",
        ITEMS,
        "        self._shares.opened(slot, self._control.destinations.get(slot, 0, Destination.PEER) - 1)\n",
        "",
        (f"{ASKED}::test_no_node_takes_so_many_slots_that_another_has_none_for_its_fetches",),
    ),
    Mutant(
        "nothing-recalled", "R62", "items at which nobody looks keep the shelf from new ones",
        "pipeline/client/shelf_doors.py",
        "                item.move_out()\n",
        "                pass\n",
        (f"{FETCHED}::test_items_at_which_nobody_looks_are_copied_out_where_their_node_is_short_of_room",),
    ),
    Mutant(
        "numbered-and-not-announced", "R72", "what is told is not what was announced",
        TOLD,
        "            known = self._announced.pop(entry, None)\n",
        "            known = self._announced.get(entry)\n",
        (f"{NOTICED}::test_who_has_missed_some_is_told_those_and_who_has_missed_too_many_is_told_all",
         f"{NOTICED}::test_what_is_gone_is_in_no_inventory"),
    ),
    Mutant(
        "no-number-in-heartbeats", "R74", "a lost last notice is never missed",
        TOLD,
        "        if first == self._number and now_ns - it.beaten_ns < self._ctx.timing.heartbeat_s * NS:\n",
        "        if first == self._number:\n",
        (f"{NOTICED}::test_a_heartbeat_says_the_number_so_that_a_lost_notice_shows",),
    ),
    Mutant(
        "another-streams-numbers", "R73", "who was told by the poller before is told what this one has announced since",
        TOLD,
        "if asked is not None and (asked[0] != self._stream or not",
        "if asked is not None and (not",
        (f"{NOTICED}::test_a_new_poller_begins_a_new_stream",
         f"{NOTICED}::test_who_follows_is_told_all_that_is_there_and_then_what_changes"),
    ),
    Mutant(
        "floor-not-looked-at", "R48, R72", "what was cleared is told to be there",
        "allocator/shelf.py",
        "            if head == before and not is_old:\n",
        "            if head == before:\n",
        (f"{NOTICED}::test_what_is_below_the_floor_is_gone_though_nobody_has_taken_it_away",),
    ),
    Mutant(
        "gap-passed-over", "R75", "a change is entered though the one before it was lost",
        VIEWS,
        "        if message.first > view.number + 1:\n            view.is_behind = True  # the gap is asked for (R75)\n"
        "            return\n",
        "        view.number = max(view.number, message.first - 1)\n",
        (f"{FOLLOWED}::test_a_gap_is_asked_for_and_nothing_behind_it_is_told_before",),
    ),
    Mutant(
        "new-stream-taken-for-the-old", "R73", "changes of a new stream are entered into a view of the one before",
        VIEWS,
        "        elif message.stream != view.stream:\n",
        "        elif message.stream < view.stream:\n",
        (f"{FOLLOWED}::test_a_new_stream_is_asked_for_whole",),
    ),
    Mutant(
        "pieces-of-two-inventories", "R76", "pieces that were made at two numbers count together",
        VIEWS,
        "            view.pieces.clear()\n        if len",
        "            pass\n        if len",
        (f"{FOLLOWED}::test_an_inventory_counts_when_all_its_pieces_are_there",),
    ),
    Mutant(
        "told-over-what-is-unread", "P21, R72", "a client that does not read loses what it was told",
        "allocator/notices.py",
        "        return NOTICES_A_LANE - (self._words.load(Heard.WRITTEN) - self._words.load(Heard.READ))\n",
        "        return NOTICES_A_LANE\n",
        (f"{FOLLOWED}::test_a_client_that_does_not_read_holds_nobody_up_and_is_told_how_things_are_when_it_does",),
    ),
    Mutant(
        "followed-for-the-dead", "P20", "what a dead client has followed is followed for ever",
        VIEWS,
        "                table.clear()\n",
        "                found += [(lane, word) for word in words]\n",
        (f"{FOLLOWED}::test_nobody_is_followed_for_a_client_that_has_closed_its_subscription_or_is_dead",),
    ),
]
