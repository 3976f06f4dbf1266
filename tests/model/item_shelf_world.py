"""What the model of the shelf works on: the words, blocks and processes of `item_shelf_model`, and the steps on shared
words that several of them take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Ruled, put

NOBODY: Final = -1
FILLING, READY, RETIRED, OVER = 1, 2, 3, 4
"""The states of an entry, in their order: a head is compared as (generation, state). A free entry is OVER."""
NAMES = {FILLING: "filling", READY: "ready", RETIRED: "retired", OVER: "over"}
ALIVE, DEAD, BURIED, STOPPED = "alive", "dead", "buried", "stopped"
HASHES = ((0, 0), (1, 1), (0, 1))
"""Of each key, in halves: those of keys 0 and 1, torn, make that of key 2."""


class Head(NamedTuple):
    """An entry's word; it only rises."""

    generation: int = 0
    state: int = OVER
    publisher: int = NOBODY


class Cell(NamedTuple):
    """The owner of a block: an entry and its generation."""

    entry: int = NOBODY
    generation: int = 0


FREE: Final = Cell()


class Rows(NamedTuple):
    """What stands in a block: which key's, of which version, which block of the item, and whether it is all of it."""

    key: int
    version: int
    k: int
    is_whole: bool


class Item(NamedTuple):
    """What a publisher publishes. `replaces`: also where the key is published already."""

    key: int
    version: int = 1
    replaces: bool = False


class Publisher(NamedTuple):
    """A publisher is idle, or is at a step of its publication number `item`: way, draw, take, early, hash, second half,
    blocks, half, rest, ready, older, give up. It knows its entry and generation, the head that it `looked` at, its
    blocks, and the one (or the entry) at which it is.
    """

    at: str = "idle"
    item: int = 0
    entry: int = NOBODY
    generation: int = 0
    k: int = 0
    looked: Head | None = None
    blocks: tuple[int, ...] = ()


class Found(NamedTuple):
    entry: int = NOBODY
    generation: int = 0


Look = tuple[tuple[int, int], ...]  # (generation, state) of each head


class Reader(NamedTuple):
    """A reader is idle, or is at a step of its lookup number `item`: see, half, compare, pin, late, look, read.

    It knows the heads that it saw in this look and in the one `before`, and the newest entry of its key among them. The
    last three are nobody's words, but what it is judged by: whether the key was there since it began, the floor then,
    and the newest version whose publication had returned then, or that it has read before (0 for the first one: none is
    older; all lookups of a reader that reads later ones are of one key).
    """

    at: str = "idle"
    item: int = 0
    entry: int = NOBODY
    generation: int = 0
    k: int = 0
    before: Look | None = None
    seen: Look = ()
    found: Found = Found()
    always: bool = False
    floor: int = 0
    promised: int = 0


class Evictor(NamedTuple):
    """A thread that ends entries, of whichever process: idle, older, retire, scan, cells; pre and now in the
    wrong order.
    """

    at: str = "idle"
    entry: int = NOBODY
    generation: int = 0
    k: int = 0


class Write(NamedTuple):
    """A write that a device goes on with for a publisher that was killed, or was broken off."""

    publisher: int
    entry: int
    generation: int
    block: int
    k: int


class World(NamedTuple):
    heads: tuple[Head, ...]
    hashes: tuple[tuple[int, int], ...]
    lists: tuple[tuple[int, ...], ...]  # the blocks of each entry
    cells: tuple[Cell, ...]
    rows: tuple[Rows | None, ...]
    ledgers: tuple[tuple[int, ...], ...]  # the generation that each reader pins of each entry
    counts: tuple[int, ...]  # of pins: of the threads of one process, or where the ledgers are taken away
    publishers: tuple[Publisher, ...]
    readers: tuple[Reader, ...]
    evictors: tuple[Evictor, ...]
    processes: tuple[str, ...]  # publishers, then readers
    drawn: int = 0  # the last generation
    floor: int = 0
    floors: frozenset[int] = frozenset()  # that were drawn, and are not stored yet
    cleared: int = 0  # the highest floor that was stored: what a reader that begins now is judged by
    unburied: frozenset[int] = frozenset()  # processes whose successor has begun before their burial
    late: frozenset[Write] = frozenset()
    evictions: int = 0
    clears: int = 0
    exceptions: int = 0
    publisher_kills: int = 0
    reader_kills: int = 0
    evictor_kills: int = 0
    publisher_stops: int = 0
    reader_stops: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    entries: int = 1  # the ways of one set
    blocks: int = 1
    length: int = 1  # of an item, in blocks
    publications: tuple[tuple[Item, ...], ...] = ((Item(0),),)  # of each publisher
    lookups: tuple[tuple[int, ...], ...] = ((0,),)  # of each reader, by key
    one_process: bool = False  # of which all readers are threads, with one ledger
    evictors: int = 1
    evictions: int = 0  # how often an item that may be found is picked as a victim
    clears: int = 0
    exceptions: int = 0  # publications that are broken off
    publisher_kills: int = 0
    reader_kills: int = 0
    evictor_kills: int = 0
    publisher_stops: int = 0  # for ever
    reader_stops: int = 0
    reborn: bool = False  # who was killed has a successor, in the same lane, which does the rest (all of one version)
    older_ones_stay: bool = False  # a publisher retires none when its own is ready, which costs room alone
    has_device: bool = False  # which may write on for a publisher that was killed or broken off
    halves: bool = True  # a hash is written and compared in halves, a block list is written by itself; else in one step
    one_look: bool = False  # the look through the set is one step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r39_the_generation_is_drawn_after_the_look: bool = True
    r40_all_is_written_before_ready: bool = True
    r41_looks_again_behind_its_pin: bool = True
    r41_pins_before_it_looks: bool = True
    r42_pins_are_words_of_their_reader: bool = True  # else a count
    r42_threads_share_a_word_by_turns: bool = True  # who is not the first or last of them stores nothing
    r42_a_ledger_is_cleared_before_it_is_anothers: bool = True
    r43_retired_before_the_scan: bool = True
    r43_retired_is_final: bool = True
    r44_cells_are_freed_by_cas: bool = True
    r44_anyone_finishes_a_retired_entry: bool = True
    r45_filling_names_its_publisher: bool = True
    r45_not_before_its_device_is_silent: bool = True
    r45_nor_given_back: bool = True  # before its device is silent
    r45_retired_before_the_lane_is_anothers: bool = True
    r46_absent_after_two_equal_looks: bool = True
    r47_the_newest_counts: bool = True
    r47_a_dropped_one_retires_them_too: bool = True
    r47_the_oldest_goes_first: bool = True  # of a key, when room is made
    r48_the_floor_is_looked_at_again: bool = True
    r48_the_floor_only_rises: bool = True
    r49_who_finds_no_room_gives_back: bool = True


class Words(Ruled[Setting, Rules]):
    """The steps on shared words that several of the model's actors take."""

    def moved(self, world: World, entry: int, old: Head, new: Head) -> World | None:
        """The CAS of a head; None where it is another one."""
        if world.heads[entry] != old:
            return None
        falls = new[:2] <= old[:2] and self.rules.r43_retired_is_final
        fault = f"falls: the head of entry {entry} goes from {old} to {new}" if falls else None
        return world._replace(heads=put(world.heads, entry, new), fault=fault)

    def buried(self, world: World, process: int) -> World:
        """The process has left nothing any more; it has a successor, or none."""
        after = world._replace(unburied=world.unburied - {process})
        if world.processes[process] != DEAD:
            return after
        return after._replace(processes=put(after.processes, process, ALIVE if self.setting.reborn else BURIED))

    def reborn(self, world: World, process: int) -> World:
        """The wrong way round: its lane is its successor's before it is buried."""
        return world._replace(
            processes=put(world.processes, process, ALIVE), unburied=world.unburied | {process}
        )

    def is_visible(self, world: World, key: int) -> bool:
        return any(
            head.state == READY and head.generation >= world.floor and world.hashes[entry] == HASHES[key]
            for entry, head in enumerate(world.heads)
        )

    def is_pinned(self, world: World, entry: int, generation: int, reader: int) -> bool:
        """By this reader; a count cannot say by whom."""
        if self.rules.r42_pins_are_words_of_their_reader:
            return world.ledgers[reader][entry] == generation
        return world.counts[entry] > 0

    def pinned(self, world: World, reader: int, entry: int, generation: int) -> World:
        """The pin is stored; generation 0 takes it away, where no other thread of the process has it."""
        count = world.counts[entry] + (1 if generation else -1)
        counted = world._replace(counts=put(world.counts, entry, count))
        if not self.rules.r42_pins_are_words_of_their_reader:
            return counted
        if self.setting.one_process:
            reader = 0
            if self.rules.r42_threads_share_a_word_by_turns:
                world = counted
                if count and not generation:
                    return world
        ledger = put(world.ledgers[reader], entry, generation)
        return world._replace(ledgers=put(world.ledgers, reader, ledger))

    def is_others(self, world: World, entry: int, generation: int) -> bool:
        """Another thread of the process pins the entry, and another generation of it."""
        takes_turns = self.setting.one_process and self.rules.r42_threads_share_a_word_by_turns
        return takes_turns and world.counts[entry] > 0 and world.ledgers[0][entry] != generation

    def freed(self, world: World, cell: Cell, block: int) -> World:
        if world.cells[block] != cell and self.rules.r44_cells_are_freed_by_cas:
            return world
        return world._replace(cells=put(world.cells, block, FREE))

    def landed(self, world: World, write: Write, rows: Rows) -> World:
        """A write lands; its block must be that entry's, and of that generation."""
        if world.cells[write.block] != (write.entry, write.generation):
            owner = world.cells[write.block]
            return world._replace(fault=f"stray: {write} lands where the owner is {owner}")
        return world._replace(rows=put(world.rows, write.block, rows))
