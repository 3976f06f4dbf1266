"""What the model of a fetch works on: the words of both nodes and the messages between them (`item_fetch_model`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from explorer import Ruled, put

NONE: Final = -1
FILLING, READY, RETIRED, OVER = "filling", "ready", "retired", "over"


class Generation(NamedTuple):
    """Of an item, as messages name it."""

    incarnation: int = 0  # of the encode node
    number: int = 0


ANY: Final = Generation()


class Request(NamedTuple):
    incarnation: int  # of the language node
    number: int


NOBODY: Final = Request(0, NONE)


class Row(NamedTuple):
    """What stands in a block: of which generation, which row (NONE: half of one), and which incarnation made it."""

    generation: Generation
    k: int
    made_by: int


class Head(NamedTuple):
    """The entry's word. There is one key, and one entry."""

    generation: Generation = Generation(1)
    state: str = OVER


class Slot(NamedTuple):
    """A transfer at the encode node: taken, open or failed. `item` is its item word, which pins; a block for each row
    is granted (NONE: the language node has the row already).
    """

    state: str
    request: Request
    item: Generation
    sent: int = 0
    grants: tuple[int, ...] = ()


class Attempt(NamedTuple):
    """A write under way. One that is `late` was reported as failed, and may land yet."""

    request: Request
    item: Generation
    k: int
    block: int
    late: bool = False


class Bootstrap(NamedTuple):
    """What the encode node's bootstrap does: idle, looked, again (the second look) or refuse."""

    at: str = "idle"
    request: Request = NOBODY
    item: Generation = ANY
    first: int = 0
    block: int = NONE
    slot: int = NONE


class Cell(NamedTuple):
    """The owner of a block of the language node: a request, and which row it waits for."""

    request: Request = NOBODY
    k: int = NONE


FREE: Final = Cell()


class Fetch(NamedTuple):
    """The language side of a request: new, ask, get, abort or end. `rows` are those that came, or were kept."""

    at: str = "new"
    request: Request = NOBODY
    generation: Generation = ANY
    rows: tuple[Row, ...] = ()
    block: int = NONE


class Message(NamedTuple):
    """An init, a grant, an abort or a close for an incarnation `to`; or what a node says of a request: status, no."""

    kind: str
    request: Request
    to: int = 0
    generation: Generation = ANY
    k: int = 0  # the first row, the row of a grant, or how many were sent
    block: int = NONE


class World(NamedTuple):
    head: Head
    owner: Generation | None  # whose rows the blocks of the entry hold
    source: tuple[Row | None, ...]
    slots: tuple[Slot | None, ...]
    cells: tuple[Cell, ...]
    landed: tuple[Row | None, ...]
    fetches: tuple[Fetch, ...]
    bootstrap: Bootstrap = Bootstrap()
    frees: bool = False  # the evictor has found no pin
    tombstones: frozenset[Request] = frozenset()
    attempts: frozenset[Attempt] = frozenset()
    messages: frozenset[Message] = frozenset()
    encode: int = 1  # incarnations
    language: int = 1
    known: int = 1  # the encode node's, as the language node knows it
    publications: int = 0
    evictions: int = 0
    aborts: int = 0
    failures: int = 0
    doubles: int = 0
    losses: int = 0
    encode_kills: int = 0
    language_kills: int = 0
    bootstrap_kills: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    length: int = 1  # of an item, in rows of a block each
    blocks: int = 1  # of the language node
    slots: int = 1
    fetches: int = 2  # one after the other
    under_way: int = 2  # messages at once; one more is lost
    keeps_rows: bool = False  # the next fetch goes on where one has failed
    publications: int = 2
    evictions: int = 1
    aborts: int = 0
    failures: int = 0  # attempts that are reported as failed
    doubles: int = 1
    losses: int = 0
    encode_kills: int = 0
    language_kills: int = 0
    bootstrap_kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r50_a_refusal_raises_the_tombstone: bool = True
    r51_one_request_one_slot: bool = True
    r52_the_item_word_is_a_pin: bool = True
    r52_looks_again_behind_the_item_word: bool = True
    r53_the_pin_lasts_until_no_attempt_is_open: bool = True
    r54_refused_after_the_last_attempt: bool = True
    r55_a_new_bootstrap_gives_taken_slots_back: bool = True
    r56_a_death_ends_the_slots_of_the_dead: bool = True
    r57_the_retry_names_its_generation: bool = True
    r58_a_generation_names_the_incarnation: bool = True
    r59_a_refusal_frees_what_came_with_the_question: bool = True


class Words(Ruled[Setting, Rules]):
    """What both sides do with messages, slots and fetches."""

    def is_full(self, world: World) -> bool:
        return len(world.messages) >= self.setting.under_way

    def sent(self, world: World, message: Message) -> World:
        """One more than may be under way is lost; what is lost is said again."""
        return world if self.is_full(world) else world._replace(messages=world.messages | {message})

    def with_slot(self, world: World, number: int, slot: Slot | None) -> World:
        return world._replace(slots=put(world.slots, number, slot))

    def slot_of(self, world: World, request: Request) -> tuple[int, Slot] | None:
        return next(((i, slot) for i, slot in enumerate(world.slots) if slot and slot.request == request), None)

    def is_written(self, world: World, request: Request) -> bool:
        """An attempt of the request is open."""
        return any(attempt.request == request for attempt in world.attempts)

    def buried(self, world: World, request: Request) -> World:
        return world._replace(tombstones=world.tombstones | {request})
