"""Published items: the shelf in the core, its tables, its node, and those who publish and fetch."""

from typing import Final

from ..mutant import Mutant
from .files import FETCHING, MEETING, PUBLISHING, READERS, SHELF, STEPS

SHELF_MUTANTS: Final = [
    Mutant(
        "pinned-without-a-second-look", "R41, P6",
        "a reader stores its pin, and does not look whether the item is there",
        "allocator/native/shelf_pins.h",
        "if (head_state(head) == SHELF_READY && head_generation(head) == generation && generation >= shelf_floor(s)) {",
        "if (head + 1) {",
        (f"{SHELF}::test_a_reader_whose_item_goes_between_its_look_and_its_pin_looks_again[0]",),
    ),
    Mutant(
        "floor-before-the-pin-alone", "R48", "a reader that was slow gets what has been cleared",
        "allocator/native/shelf_pins.h",
        "head_generation(head) == generation && generation >= shelf_floor(s)) {",
        "head_generation(head) == generation) {",
        (f"{SHELF}::test_the_floor_is_looked_at_behind_the_pin",),
    ),
    Mutant(
        "pins-not-counted", "R42, P6", "the first thread of a reader that lets go takes the pin of all",
        "allocator/native/shelf_pins.h",
        "    if (--r->counts[entry] == 0)\n",
        "    if (r->counts[entry]-- > 0)\n",
        (f"{SHELF}::test_threads_of_a_reader_share_a_pin_by_turns",),
    ),
    Mutant(
        "absent-after-one-look", "R46", "a key that moves while it is published anew is said not to be there",
        "allocator/native/shelf.h",
        "bool has_changed = !again;",
        "bool has_changed = false;",
        (f"{STEPS}::test_another_process_changes_the_shelf_meanwhile[pin]",),
    ),
    Mutant(
        "pinned-blocks-freed", "R43, P6", "what is retired comes free under its readers",
        "allocator/native/shelf.h",
        "if (head_state(head) != SHELF_RETIRED || shelf_is_pinned(s, entry, generation) ||",
        "if (head_state(head) != SHELF_RETIRED || (generation == 0 && shelf_is_pinned(s, entry, generation)) ||",
        (f"{SHELF}::test_what_is_retired_stays_until_its_last_pin_goes",),
    ),
    Mutant(
        "numbered-when-begun", "R84", "an item's place among those of its key is that of its publication's beginning",
        "allocator/native/shelf.h",
        "    const uint64_t number = shelf_draw(s);\n    if (!shelf_may(s, SHELF_STEP_NUMBER))",
        "    const uint64_t number = head_generation(head);\n    if (!shelf_may(s, SHELF_STEP_NUMBER))",
        (f"{SHELF}::test_an_item_that_is_shown_later_is_newer_though_it_began_earlier",),
    ),
    Mutant(
        "showing-left-alone", "R84", "who retires an item does not complete one of its key that is being shown",
        "allocator/native/shelf.h",
        "                if (!shelf_complete(s, entry, head))\n                    return false;\n"
        "                continue;",
        "                break;",
        (f"{SHELF}::test_who_retires_completes_what_is_being_shown_first",),
    ),
    Mutant(
        "older-one-left-behind", "R47", "the newer of two items of a key is evicted, and the older one is found again",
        "allocator/native/shelf.h",
        "    if ((may_be_seen && !shelf_retire_older(s, &key, &older)) || !shelf_may(s, SHELF_STEP_RETIRE))",
        "    if ((!may_be_seen && !shelf_retire_older(s, &key, &older)) || !shelf_may(s, SHELF_STEP_RETIRE))",
        (f"{SHELF}::test_who_evicts_the_newer_of_two_items_takes_the_older_one_first",),
    ),
    Mutant(
        "all-lanes-buried", "R45", "the death of one publisher ends what the others fill",
        "allocator/native/shelf.h",
        "&& head_lane(head) == lane) {",
        "&& head_lane(head) + 1 > 0) {",
        (f"{SHELF}::test_a_burial_leaves_what_others_fill",),
    ),
    Mutant(
        "block-freed-whoever-has-it", "R44, P1", "who finishes an entry late frees a block that is another's by now",
        "allocator/native/shelf.h",
        "        if (atomic_load_explicit(&s->cells[block], memory_order_relaxed) != owner)\n            continue;\n",
        "        owner = atomic_load_explicit(&s->cells[block], memory_order_relaxed);\n",
        (f"{SHELF}::test_blocks_that_are_lost_to_another_publisher_are_given_back",),
    ),
    Mutant(
        "dropped-without-a-word", "R47", "a replacing publication that is dropped leaves the older item",
        "allocator/native/shelf_publish.h",
        "    shelf_give_back(s, p->entry, p->generation, p->lane);\n"
        "    shelf_drop_older(s, p);\n"
        "    return s->is_stopped ? SHELF_STOPPED : SHELF_NO_ROOM;",
        "    shelf_give_back(s, p->entry, p->generation, p->lane);\n"
        "    return s->is_stopped ? SHELF_STOPPED : SHELF_NO_ROOM;",
        (f"{SHELF}::test_a_replacing_publication_that_is_dropped_retires_the_older_ones_all_the_same",),
    ),
    Mutant(
        "evicted-for-nothing", "R49, P12", "items are evicted for one that finds no room all the same",
        "allocator/native/shelf_publish.h",
        "state == SHELF_SHOWING || shelf_is_pinned(s, entry, generation))",
        "state == SHELF_SHOWING || (generation == 0 && shelf_is_pinned(s, entry, generation)))",
        (f"{SHELF}::test_an_item_that_needs_more_than_there_is_evicts_nothing",),
    ),
    Mutant(
        "evicted-in-any-order", "P12", "what was just read is evicted before what nobody uses",
        "allocator/native/shelf_pins.h",
        "            atomic_store_explicit(&s->uses[entry], now_ns, memory_order_relaxed);\n",
        "",
        (f"{SHELF}::test_an_item_is_evicted_by_its_last_use_and_a_pinned_one_never",),
    ),
    Mutant(
        "ledger-left-to-the-next", "R42, P6", "a dead reader's pins stay, and are its successor's",
        "allocator/shelf.py",
        "        self.core.bury_reader(reader)\n",
        "",
        (f"{SHELF}::test_a_dead_readers_pins_are_taken_away_before_its_entry_is_anothers",),
    ),
    Mutant(
        "child-takes-the-pins", "R60, P6", "a forked child that ends takes the pins of its parent away",
        "allocator/connection.py",
        "        for mapping in self._written_to:\n            mapping.discard()\n",
        "",
        (f"{READERS}::test_a_child_of_a_reader_takes_no_pins_away",),
    ),
    Mutant(
        "views-without-a-connection", "R63, P6", "the node forgets a reader that has left and still has views",
        "allocator/shelf.py",
        "            connection=connection,\n",
        "            connection=None,\n",
        (f"{READERS}::test_views_outlive_their_client_and_keep_their_place",),
    ),
    Mutant(
        "dead-shelf-kept", "R64, P23", "who fetches no more keeps the shelf of a dead node",
        "pipeline/client/fetching.py",
        "            self._doors.drop_dead()\n",
        "            pass\n",
        (f"{READERS}::test_nobody_keeps_the_shelf_of_a_dead_node_without_looking_at_it",),
    ),
    Mutant(
        "wanted-over-wanted", "P8", "of two nodes that are wanted at a time one is lost",
        "allocator/lanes_and_processes.py",
        "        if self._words.load(lane * LANE_WORDS + Lane.WANTS_NODE):\n            return False\n",
        "",
        (f"{MEETING}::test_of_two_that_are_wanted_at_a_time_none_is_lost",),
    ),
    Mutant(
        "publication-not-buried", "R45, P1", "what a dead client was publishing keeps its room for ever",
        "pipeline/node/recovery.py",
        "if self._control.has_shelf and (num_items := self._control.shelf.core.bury_publisher(lane)):",
        "if self._control.has_shelf and (num_items := 0):",
        (f"{PUBLISHING}::test_a_publisher_that_stands_still_keeps_one_item_and_stops_nobody",),
    ),
    Mutant(
        "shelf-to-write", "D15", "a reader can write to what it reads",
        "pipeline/node/launcher.py",
        'os.open(f"/proc/self/fd/{shelf.fd}", os.O_RDONLY | os.O_CLOEXEC)',
        'os.open(f"/proc/self/fd/{shelf.fd}", os.O_RDWR | os.O_CLOEXEC)',
        (f"{FETCHING}::test_a_reader_is_handed_the_rows_to_read_and_no_more",),
    ),
    Mutant(
        "view-of-the-shelf-after-the-end", "R45, P7",
        "a client that has left writes on through the rows that it was making",
        "pipeline/client/attachment.py",
        "    def _keep_rows_out_to_itself(self) -> None:\n"
        "        if self.shelf is not None:\n            self.shelf.discard()\n",
        "    def _keep_rows_out_to_itself(self) -> None:\n",
        (f"{PUBLISHING}::test_a_client_that_leaves_while_it_makes_rows_writes_to_nobodys_memory",),
    ),
    Mutant(
        "dead-peer-met-again", "D3", "a client that wants a node that has restarted waits for the dead one",
        "workers/bootstrap/language.py",
        "        if link is not None and link.peer is not None and not self._control.peers.is_alive(link.peer):\n"
        "            self._drop_link_of(link.peer)\n            link = None\n",
        "",
        (f"{MEETING}::test_one_that_was_declared_dead_is_registered_with_anew",),
    ),
]
