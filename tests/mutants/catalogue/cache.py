"""The cache of published items at a language node."""

from typing import Final

from ..mutant import Mutant

SOURCE: Final = "pipeline/client/item_cache.py"
TESTS: Final = "tests/pipeline/client/test_item_cache.py"
REQUESTS: Final = "pipeline/client/request_items.py"
TESTS_OF_REQUESTS: Final = "tests/pipeline/client/test_request_items.py"
ENGINE: Final = "pipeline/client/engine_requests.py"
TESTS_OF_ENGINE: Final = "tests/pipeline/client/test_engine_requests.py"
MEMORY: Final = "pipeline/client/cache_memory.py"
TESTS_OF_MEMORY: Final = "tests/pipeline/client/test_cache_memory.py"
ITEMS: Final = "pipeline/client/cached_items.py"
EARLY: Final = "pipeline/client/early_cache.py"
TESTS_OF_EARLY: Final = "tests/pipeline/client/test_early_cache.py"

CACHE: Final = [
    Mutant(
        "first-takes-nothing", "R65, D8, P8", "items that somebody wants are evicted for nobody",
        SOURCE,
        "        return first not in place.users if first is not None else not place.users\n",
        "        return not place.users\n",
        (f"{TESTS}::test_every_user_gets_its_whole_set_in_the_end[0-False]",),
    ),
    Mutant(
        "behind-takes-memory", "R66", "memory goes to whoever asks, not to the first in line",
        SOURCE,
        "            if (first is not None and first not in place.users) or not self._make_room(size, first):\n",
        "            if not self._make_room(size, first):\n",
        (f"{TESTS}::test_a_failure_is_told_to_all_who_wait_once_and_whoever_asks_again_has_it_fetched_again",),
    ),
    Mutant(
        "fetched-for-each", "R67", "an item that is on its way is fetched once more",
        SOURCE,
        "for it in places if it.state == State.ABSENT and now_ns",
        "for it in places if it.state != State.READY and now_ns",
        (f"{TESTS}::test_a_user_is_admitted_when_all_its_items_are_there_and_what_is_there_is_fetched_once",),
    ),
    Mutant(
        "told-to-one", "R68, P8", "of those who wait for an item one is told that it has failed",
        SOURCE,
        "        for me in place.users:\n            me.fail(error)\n",
        "        for me in [*place.users][:1]:\n            me.fail(error)\n",
        (f"{TESTS}::test_a_failure_is_told_to_all_who_wait_once_and_whoever_asks_again_has_it_fetched_again",),
    ),
    Mutant(
        "admitted-and-evicted", "R69", "items of an admitted user are evicted",
        SOURCE,
        "        if place.state != State.READY or place.is_pinned:\n",
        "        if place.state != State.READY:\n",
        (f"{TESTS}::test_items_of_an_admitted_user_stay_until_it_ends_and_then_as_long_as_there_is_room",),
    ),
    Mutant(
        "memory-from-under-a-fetch", "R71", "a fetch that nobody wants any more loses its memory",
        SOURCE,
        "        if place.state == State.ASKED and not place.is_prefetched:\n            place.attempt += 1\n",
        "        if place.state != State.READY and not place.is_prefetched:\n            place.attempt += 1\n",
        (f"{TESTS}::test_the_first_in_line_takes_what_only_users_behind_it_want_and_no_other",),
    ),
    Mutant(
        "looked-at-and-not-counted", "R63", "memory of an evicted item counts no more, though somebody looks at it",
        SOURCE,
        "        self._drop_rows(place)\n        place.state, place.is_prefetched = State.ABSENT, False\n",
        "        self._drop_rows(place)\n        place.state, place.is_prefetched = State.ABSENT, False\n"
        "        self._used_bytes -= place.size\n",
        (f"{TESTS}::test_memory_counts_until_nobody_looks_at_it",),
    ),
    Mutant(
        "too-large-for-ever", "D9", "a user whose items never fit waits for ever",
        ITEMS,
        "        if needed > max_bytes:\n",
        "        if needed > 2 * max_bytes:\n",
        (f"{TESTS}::test_a_set_that_never_fits_is_refused_at_once_and_holds_nothing",),
    ),
    Mutant(
        "not-woken-for-the-end", "P8", "an engine that sleeps is not woken when a user has all its items",
        SOURCE,
        "        if ended or complete:\n",
        "        if complete and not ended:\n",
        (f"{TESTS}::test_a_user_is_admitted_when_all_its_items_are_there_and_what_is_there_is_fetched_once",),
    ),
    Mutant(
        "grown-and-let-go", "R69", "a request that needs more loses what it has while it waits for that",
        REQUESTS,
        "        if it.held and not any(",
        "        if it.held or not any(",
        (f"{TESTS_OF_REQUESTS}::test_who_needs_more_later_keeps_what_it_has",),
    ),
    Mutant(
        "grown-and-held", "R65, P8", "requests that need more keep what they have, whoever else is there",
        REQUESTS,
        "        if it.held and not any(",
        "        if False and not any(",
        (f"{TESTS_OF_REQUESTS}::test_requests_that_need_more_do_not_wait_for_one_another_for_ever",),
    ),
    Mutant(
        "read-by-some", "R70", "what a step loads is let go before its workers have read it",
        REQUESTS,
        "[it for it in self._loads if it <= step]",
        "[it for it in self._loads if it >= step]",
        (f"{TESTS_OF_REQUESTS}::test_what_a_step_loads_stays_until_it_is_read_whatever_becomes_of_the_request",),
    ),
    Mutant(
        "without-what-it-needs", "P8", "a request is scheduled without an item that cannot be had and nobody makes",
        ENGINE,
        "            self._unavailable[request] = None\n",
        "            self._made.setdefault(request, set()).update(why)\n            return True\n",
        (f"{TESTS_OF_ENGINE}::test_a_request_is_over_when_an_item_cannot_be_had_and_that_is_said_once",),
    ),
    Mutant(
        "warm-for-ever", "P12", "memory that nobody uses any more is kept beside what is used",
        MEMORY,
        "self._warm.cut(self._used + self._warm.free_bytes + size - self._limit)",
        "self._warm.cut(0)",
        (f"{TESTS_OF_MEMORY}::test_memory_that_nobody_uses_is_kept_and_no_more_than_the_cache_may_have",),
    ),
    Mutant(
        "part-of-a-page-counted", "P12", "small items are counted by their bytes, though each takes a page",
        SOURCE,
        "            place.size = size = self._taken(size)\n",
        "            place.size = size\n",
        (f"{TESTS_OF_MEMORY}::test_items_smaller_than_a_page_take_no_more_than_the_cache_may_have",),
    ),
    Mutant(
        "copied-under-no-pin", "R87, P6", "rows that were copied after their pin was taken away are loaded",
        MEMORY,
        "    if now != pin.generation or reader != pin.reader:\n",
        "    if now > pin.generation or reader != pin.reader:\n",
        (f"{TESTS_OF_EARLY}::test_rows_are_no_one_s_whose_pin_was_taken_away_meanwhile",),
    ),
    Mutant(
        "pinned-by-another", "R87, P6", "rows are loaded whose pin is by now another reader's, who has yet to look",
        MEMORY,
        "    if now != pin.generation or reader != pin.reader:\n",
        "    if now != pin.generation:\n",
        (f"{TESTS_OF_EARLY}::test_rows_are_no_one_s_whose_ledger_is_another_reader_s_by_now",),
    ),
    Mutant(
        "reached-out-of-turn", "R66", "who can read in place overtakes a user that waits for memory",
        EARLY,
        "            if not num_pinned and self._line and self._first() is not None:\n",
        "            if num_pinned and self._line and self._first() is not None:\n",
        (f"{TESTS_OF_EARLY}::test_nobody_overtakes_a_user_that_waits_for_memory",),
    ),
    Mutant(
        "read-in-place-for-nothing", "P12", "memory of what is read in place is not counted",
        EARLY,
        "        self._used_bytes += place.size\n        self._to_copy",
        "        self._to_copy",
        (f"{TESTS_OF_EARLY}::test_bytes_are_counted_right_whatever_comes_between[0]",),
    ),
    Mutant(
        "pinned-for-ever", "P21", "what was reached on a shelf stays pinned there",
        EARLY,
        "        self._to_copy.append((place, weakref.ref(held)))\n        return True\n",
        "        return True\n",
        (f"{TESTS_OF_EARLY}::test_what_lies_on_a_shelf_is_there_at_once_and_is_copied_behind",),
    ),
    Mutant(
        "left-and-pinned", "P21", "what somebody keeps of a client that leaves stays pinned on a shelf",
        EARLY,
        "        for _ in range(len(self._to_copy)):",
        "        for _ in range(0):",
        (f"{TESTS_OF_EARLY}::test_a_client_that_leaves_pins_nothing_but_what_a_step_reads",),
    ),
    Mutant(
        "evicted-and-pinned", "R62, P21", "an item that its cache has evicted stays pinned while somebody keeps it",
        EARLY,
        "                door.lend(given)\n",
        "                pass\n",
        (
            f"{TESTS_OF_EARLY}::"
            "test_what_somebody_keeps_of_an_item_that_was_evicted_is_copied_or_moves_when_its_node_is_short",
        ),
    ),
    Mutant(
        "without-memory-and-pinned", "P21", "what nobody needs stays pinned while there is no memory to copy it",
        EARLY,
        "            if place.held is held and not place.users and",
        "            if place.held is None and not place.users and",
        (f"{TESTS_OF_EARLY}::test_a_copy_for_which_there_is_no_memory_is_tried_again",),
    ),
]
