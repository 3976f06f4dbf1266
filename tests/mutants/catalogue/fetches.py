"""Fetches of published items between hosts: both bootstraps, the worker, the client, and the pins that they share."""

from typing import Final

from ..mutant import Mutant
from .files import ASKED, FAR, FROM_AFAR, OWN_READER, SIMULATED_FETCHES

ITEMS: Final = "workers/bootstrap/fetched_items.py"
CLIENT: Final = "pipeline/client/far_fetch.py"
PINS: Final = "allocator/native/shelf_pins.h"
RESTARTS: Final = tuple(
    f"{ASKED}::test_a_bootstrap_that_dies_anywhere_leaves_no_pin_without_a_request[{change}]" for change in range(1, 45)
)

FETCHES: Final = [
    Mutant(
        "torn-answer", "R52, P6", "what an item is, is read while it is written",
        "allocator/fetches.py",
        "for field in _SHAPE])._replace(bytes=size)\n",
        "for field in _SHAPE])\n",
        (f"{FAR}::test_an_answer_that_is_being_written_is_read_whole_or_not_at_all[2]",),
    ),
    Mutant(
        "refused-without-a-tombstone", "R50", "a doubled question opens a request that was refused",
        ITEMS,
        "            peers.raise_tombstone(peer, slot, epoch)\n            self._refused",
        "            self._refused",
        (f"{ASKED}::test_a_refusal_stands_also_when_the_key_has_been_published_since",),
    ),
    Mutant(
        "lost-refusal-not-repeated", "R50, P8", "whoever has not heard a refusal asks until its deadline",
        ITEMS,
        "            return found if isinstance(found, Refusal) else REFUSED_BEFORE\n",
        "            return None if self._refused else found if isinstance(found, Refusal) else REFUSED_BEFORE\n",
        (f"{ASKED}::test_a_refusal_stands_also_when_the_key_has_been_published_since",),
    ),
    Mutant(
        "question-refused-when-doubled", "R51", "a question that comes twice refuses the request that it has opened",
        "workers/bootstrap/encode.py",
        "held.remote_epoch == ask.key.epoch:\n",
        "held.remote_epoch < ask.key.epoch:\n",
        (f"{ASKED}::test_a_request_has_one_slot_however_often_it_asks",),
    ),
    Mutant(
        "transfer-without-a-pin", "R52, P6", "the blocks of an item come free while it is sent",
        ITEMS,
        "        self._pins[slot] = pin\n        self._shares",
        "        self._shares",
        (f"{ASKED}::test_an_item_stays_until_no_attempt_can_read_it_whatever_became_of_the_request",),
    ),
    Mutant(
        "pin-kept-after-the-end", "R53", "an item is pinned for ever by a fetch that has ended",
        ITEMS,
        "        self._pins.pop(slot, None)\n",
        "",
        (f"{ASKED}::test_several_fetches_of_one_item_share_its_pin_until_the_last_has_ended",),
    ),
    Mutant(
        "taken-slot-kept", "R55", "a slot that has no destination when its bootstrap dies is held for ever",
        ITEMS,
        "            self._slots.raise_to(slot, Slot.RELEASED_EPOCH, epoch)\n            return False\n",
        "            return True\n",
        RESTARTS,
    ),
    Mutant(
        "pins-not-adopted", "R85, P6", "a new bootstrap takes the pins of open requests away",
        ITEMS,
        "        pin = self._reader.adopt(held.entry, held.generation)\n",
        "        pin = self._reader.adopt(held.entry, 0)\n",
        RESTARTS,
    ),
    Mutant(
        "pins-of-the-dead-kept", "R85", "what a bootstrap had pinned when it died is never evicted",
        ITEMS,
        "        self._reader.forget_others()\n",
        "",
        (f"{ASKED}::test_a_pin_that_no_request_has_is_taken_away_by_the_next_bootstrap",),
    ),
    Mutant(
        "tombstone-not-raised-again", "R51, R55", "a request of which the bootstrap has died may be opened twice",
        ITEMS,
        "                self._control.peers.raise_tombstone(peer, remote_slot, of.remote_epoch)\n",
        "                pass\n",
        tuple(
            f"{ASKED}::test_a_fetch_that_is_given_up_before_its_first_block_is_opened_once[{change}]"
            for change in range(10, 22)
        ),
    ),
    Mutant(
        "note-of-the-dead-believed", "R55, R16", "an encoder's request sends what a dead bootstrap was about to send",
        ITEMS,
        "self._control.fetches.ask_nothing(slot)  # whoever has",
        "pass  # whoever has",
        tuple(
            f"{ASKED}::test_what_a_dead_bootstrap_has_noted_of_a_slot_is_no_word_of_the_next_request_there[{change}]"
            for change in range(1, 10)
        ),
    ),
    Mutant(
        "question-of-the-dead-asked", "R16", "a request asks what a dead client was about to ask in its slot",
        "pipeline/client/slot_lease.py",
        "                self._fetches.ask_nothing(slot)\n",
        "                pass\n",
        (f"{FAR}::test_what_a_dead_client_was_about_to_ask_is_no_word_of_the_next_request_there",),
    ),
    Mutant(
        "any-generation-will-do", "R57", "who wants one generation gets another",
        ITEMS,
        "        if ask.generation not in (0, pin.number):\n",
        "        if ask.generation not in (0, pin.number, ask.generation):\n",
        (f"{ASKED}::test_what_is_not_there_is_refused_at_once_and_holds_no_slot",),
    ),
    Mutant(
        "fetches-take-all-pages", "P12, P21", "fetches leave no slot to encoders",
        ITEMS,
        "        self._num_pages = max(self._lanes.num_pages // 2, 1)\n",
        "        self._num_pages = self._lanes.num_pages\n",
        (f"{ASKED}::test_a_node_takes_no_more_than_half_of_its_pages_for_fetches",),
    ),
    Mutant(
        "busy-for-ever", "P12", "clients are not asked for pages that they do not use",
        ITEMS,
        "            self._control.slot_waiters.set(self._lane, True)\n",
        "",
        (f"{ASKED}::test_a_node_without_a_slot_for_a_fetch_says_so_and_clients_make_room",),
    ),
    Mutant(
        "behind-the-item", "P7, D15", "the last row of an item brings what lies behind it on the shelf",
        "workers/transfer/moves.py",
        "start, stop = low * row_bytes, min(high * row_bytes, size)",
        "start, stop = low * row_bytes, max(high * row_bytes, size - size)",
        (f"{ASKED}::test_a_question_is_answered_with_what_the_item_is_and_its_rows_come_as_blocks_are_granted",),
    ),
    Mutant(
        "shelf-unmapped-under-its-engine", "P6", "Mooncake reads memory that is not mapped any more",
        "workers/transfer/engines/mooncake.py",
        "        self._payload, self._shelf = payload, shelf  # kept mapped: the engine reads there\n",
        "        self._payload = payload\n",
        (f"{FROM_AFAR}::test_rows_of_any_dtype_width_and_key_come_as_they_were_published[mooncake]",),
    ),
    Mutant(
        "summed-from-the-first-row", "R27", "each attempt of a fetch is summed as if it began the item",
        "allocator/checksums.py",
        "        at = begin + first * self._columns[0][1]\n",
        "        at = begin + 0 * first * self._columns[0][1]\n",
        tuple(f"{SIMULATED_FETCHES}::test_a_fetch_is_checked_on_receipt_where_nodes_verify[{faults}-shm]"
              for faults in ("calm", "lossy", "deadly")),
    ),
    Mutant(
        "length-taken-for-the-answer", "B7", "a fetch whose length is announced fails, because nothing else is known",
        CLIENT,
        "        if not shape.bytes:  # the length alone was announced\n            return False\n",
        "",
        (f"{FAR}::test_the_length_alone_is_no_answer",),
    ),
    Mutant(
        "any-item-believed", "B6, P16", "an item whose bytes are not those of its rows is taken",
        CLIENT,
        "if not size or size != shape.bytes or total",
        "if not size or total",
        (f"{FAR}::test_an_item_that_cannot_be_as_it_is_told_fails_its_fetch_alone",),
    ),
    Mutant(
        "given-up-and-not-aborted", "D6, R54", "a fetch that was given up goes on, and holds slot and blocks",
        "pipeline/client/fetching.py",
        "                    far.give_up(error.reason)\n",
        "                    pass\n",
        (f"{FAR}::test_a_fetch_that_is_given_up_is_aborted_there_and_holds_its_blocks_until_that_is_answered",),
    ),
    Mutant(
        "all-of-the-pool-for-one-fetch", "P21", "a large item leaves no block to other requests",
        CLIENT,
        "max(self._control.blocks.num_blocks // 2, 1)",
        "max(self._control.blocks.num_blocks, 1)",
        (f"{FAR}::test_a_fetch_larger_than_the_pool_comes_in_rounds",),
    ),
    Mutant(
        "adopted-and-not-counted", "R85, R42", "the first of several adopted pins that goes takes all of them away",
        PINS,
        "    found->generation = generation;\n    r->counts[entry]++;\n",
        "    found->generation = generation;\n    r->counts[entry] = 1;\n",
        (f"{OWN_READER}::test_a_new_bootstrap_adopts_the_pins_of_open_requests_and_takes_the_others_away",),
    ),
    Mutant(
        "adopted-pins-forgotten", "R85, P6", "a new bootstrap takes away what it has just adopted",
        PINS,
        "        if (r->counts[entry] == 0 && atomic_load",
        "        if (r->counts[entry] + 1 && atomic_load",
        (f"{OWN_READER}::test_a_new_bootstrap_adopts_the_pins_of_open_requests_and_takes_the_others_away",),
    ),
    Mutant(
        "own-ledger-is-anothers", "R42", "the first client that reads in place writes into the node's own ledger",
        "allocator/shelf.py",
        "        for reader in range(OWN_READER + 1, MAX_READERS):\n",
        "        for reader in range(OWN_READER, MAX_READERS):\n",
        (f"{OWN_READER}::test_the_nodes_own_reader_is_none_of_those_that_are_listed",),
    ),
    Mutant(
        "own-ledger-not-looked-at", "R43, P6", "who makes room does not see the pins of the node's own transfers",
        "allocator/shelf.py",
        "        self._record.raise_to(Record.READERS, OWN_READER + 1)\n",
        "",
        (f"{ASKED}::test_an_item_stays_until_no_attempt_can_read_it_whatever_became_of_the_request",),
    ),
]
